//! Fuzz targets of everything that parses what a stranger sent, and their corpora.

#![forbid(unsafe_code)]
