//! Disks of the host: only as much as reading the guest files and writing a log takes.

pub mod ata;
