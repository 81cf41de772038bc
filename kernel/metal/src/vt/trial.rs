//! Landings from afar, by which a counter shows that it stops a guest in time: the proof's programs are too short for that.

use arch::addr::Gpa;
use arch::regs::{CpuState, Gpr};
use vmm::cpu::{Exit, Vcpu};
use vmm::memory::GuestMemory;
use vmm::random::Random;

use crate::guest_ram::GuestRam;

/// Where the program lies.
const CODE: u16 = 0x1000;
/// `mov ecx, ROUNDS; 1: dec ecx; jnz 1b; hlt` in 16-bit code.
const LOOP: &[u8] = &[0x66, 0xb9, 0, 0, 0x10, 0, 0x66, 0x49, 0x75, 0xfc, 0xf4];
/// More than the landings need.
const ROUNDS: u64 = 0x10_0000;
/// Offset of DEC, and of JNZ.
const PLACES: [u64; 2] = [8, 6];
const LANDINGS: u64 = 8;
/// Host ticks per entry; only a bound.
const BUDGET: u64 = 100_000_000;
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// Lets a guest land, each time more than `margin` instructions away, where registers tell how many it has executed.
pub(super) fn lands<V: Vcpu<Memory = GuestRam>>(
    vcpu: &mut V,
    memory: &mut GuestRam,
    margin: u64,
) -> bool {
    vcpu.restore(&CpuState::real_mode(CODE));
    if memory.write(Gpa(u64::from(CODE)), LOOP).is_err() {
        return false;
    }
    let mut random = Random::new(SEED);
    (0..LANDINGS).all(|_| {
        let far = 1 + random.below(margin.saturating_add(1));
        let target = vcpu.icount().after(margin.saturating_add(far));
        let landed = loop {
            match vcpu.run(memory, target, BUDGET) {
                Exit::HostWork => {}
                exit => break exit == Exit::Landed,
            }
        };
        let executed = target.0;
        let place = PLACES[usize::from(executed % 2 == 1)];
        landed
            && vcpu.icount() == target
            && vcpu.gprs()[Gpr::Rcx] == ROUNDS.saturating_sub(executed / 2)
            && vcpu.rip() == u64::from(CODE) + place
    })
}
