//! Formats of AMD SVM: the virtual machine control block, intercepts, exit codes and what comes with
//! them, event injection, CPUID features, and the checks that VMRUN makes.
//!
//! Section numbers are those of the APM revision named in the crate's documentation: chapter 15 is SVM,
//! appendix B the layout of the control block.

pub mod capability;
pub mod control;
pub mod entry_check;
pub mod event;
pub mod exit;
pub mod vmcb;
