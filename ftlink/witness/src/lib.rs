//! The fencing arbiter: keeps one record per pair, durably, and says which host may act.

#![forbid(unsafe_code)]
