//! The fencing arbiter: keeps one record per pair, durably, and says which host may act. Every
//! decision is [`ftlink::arbiter::decide`]; here are the file, etcd, UDP and HTTP around it.

#![forbid(unsafe_code)]

pub mod config;
pub mod etcd;
pub mod file;
pub mod http;
pub mod metrics;
pub mod service;
pub mod store;
