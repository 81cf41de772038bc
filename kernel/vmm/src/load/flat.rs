//! Flat images: raw bytes at an address below 64 KiB, entered there in real mode with CS = 0.

use arch::regs::CpuState;

use super::{Cause, place};
use crate::memory::GuestMemory;

pub(super) fn load<M: GuestMemory>(
    bytes: &[u8],
    load_address: u16,
    memory: &mut M,
) -> Result<CpuState, Cause> {
    place(memory, u64::from(load_address), bytes)?;
    Ok(CpuState::real_mode(load_address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Ram;

    #[test]
    fn is_entered_where_it_is_loaded() {
        let mut ram = Ram::new(0x1_0000);
        let state = load(&[0xf4], 0x7c00, &mut ram).expect("fits");
        assert_eq!((state.rip, ram.0[0x7c00]), (0x7c00, 0xf4));
    }

    #[test]
    fn what_is_larger_than_memory_is_refused() {
        let mut ram = Ram::new(0x8000);
        assert_eq!(
            load(&[0; 0x401], 0x7c00, &mut ram),
            Err(Cause::DoesNotFit {
                end: 0x8001,
                memory: 0x8000
            })
        );
    }
}
