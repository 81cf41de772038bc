//! The bare-metal hypervisor.
#![no_std]
