//! Hardware data types of x86-64 and of its two virtualization extensions.
//!
//! What is here is a fact of a manual: addresses, registers, MSR numbers, table formats, exit
//! codes. No policy, no allocation, no instruction is executed here.
//!
//! Manuals, cited by section throughout: Intel SDM, order number 325462-088 (June 2025), volumes
//! "SDM 2" and "SDM 3"; AMD APM volume 2, publication 24593 rev. 3.42 ("APM 2").

#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod addr;
pub mod calibrate;
pub mod elf;
pub mod ept;
pub mod event;
pub mod flags;
pub mod msr;
pub mod npt;
pub mod pmu;
pub mod regs;
pub mod svm;
pub mod vmx;
