//! Hardware data types of x86-64 and of its two virtualization extensions, and the drivers of network cards.
//!
//! What is here is a fact of a manual: addresses, registers, MSR numbers, table formats, exit
//! codes, and how a card wants to be started and fed. No policy, no allocation, no instruction is executed here.
//!
//! Manuals, cited by section throughout: Intel SDM, order number 325462-088 (June 2025), volumes
//! "SDM 2" and "SDM 3"; AMD APM volume 2, publication 24593 rev. 3.42 ("APM 2").

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod addr;
pub mod calibrate;
pub mod elf;
pub mod ept;
pub mod event;
pub mod flags;
pub mod msr;
pub mod nic;
pub mod npt;
pub mod pmu;
pub mod regs;
pub mod svm;
pub mod vmx;
