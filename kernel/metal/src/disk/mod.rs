//! Disks of the host: only as much as reading the guest files takes.

pub mod ata;
