//! Formats of Intel VT-x: VMCS fields and controls, exit reasons and their qualifications, event
//! encoding, capability MSRs, and the checks that a VM entry makes.
//!
//! Section numbers are those of the SDM revision named in the crate's documentation: chapter 26 is the
//! VMCS, 28 VM entries, 29 VM exits, 30 address translation.

pub mod capability;
pub mod control;
pub mod entry_check;
pub mod event;
pub mod exit;
pub mod field;
