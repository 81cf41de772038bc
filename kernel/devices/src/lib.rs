//! The guest's chips as register machines: `(now, access)` in, effects out.

#![no_std]
#![forbid(unsafe_code)]
