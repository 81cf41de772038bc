//! One instruction at a time, as bytes, against devices that remember what was done to them.

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::testing::{Ram, ScriptedVcpu, control_long};
use arch::regs::{CpuState, Gpr, Segment};

/// Where the tests' device lies: one page behind the RAM.
pub(super) const DEVICE: u64 = 0x1_0000;
const CODE: u64 = 0x4000;

/// A page of registers, and a port that counts up.
pub(super) struct Device {
    pub(super) bytes: Vec<u8>,
    pub(super) accesses: Vec<(u64, u8, Option<u64>)>,
    ports: Vec<(u16, u8, Option<u32>)>,
}

impl Device {
    fn new() -> Self {
        Self {
            bytes: vec![0; 8192],
            accesses: Vec::new(),
            ports: Vec::new(),
        }
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.bytes[at..].first_chunk().expect("inside"))
    }
}

impl Bus for Device {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        self.accesses.push((gpa.0, size, None));
        let at = (gpa.0 - DEVICE) as usize;
        (0..usize::from(size))
            .map(|i| u64::from(self.bytes[at + i]) << (8 * i))
            .sum()
    }

    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.accesses.push((gpa.0, size, Some(value)));
        let at = (gpa.0 - DEVICE) as usize;
        self.bytes[at..at + usize::from(size)]
            .copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        self.ports.push((port, size, None));
        self.ports.len() as u32
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        self.ports.push((port, size, Some(value)));
    }
}

pub(super) struct Bench {
    pub(super) vcpu: ScriptedVcpu,
    ram: Ram,
    pub(super) device: Device,
    cache: DecodeCache,
}

impl Bench {
    /// 32-bit protected mode, RBX and RSI and RDI at the device.
    pub(super) fn protected() -> Self {
        let mut state = CpuState::protected_mode(CODE as u32);
        for gpr in [Gpr::Rbx, Gpr::Rsi, Gpr::Rdi] {
            state.gprs[gpr] = DEVICE;
        }
        Self {
            vcpu: ScriptedVcpu::new(state, &[]),
            ram: Ram::new(DEVICE as usize),
            device: Device::new(),
            cache: DecodeCache::default(),
        }
    }

    /// 64-bit mode, everything mapped to itself by one 1 GiB page.
    pub(super) fn long() -> Self {
        let mut bench = Self::protected();
        bench.ram.put_u64(0x1000, 0x2000 | 7);
        bench.ram.put_u64(0x2000, 0x83);
        bench.vcpu.state.control = control_long(0x1000);
        bench.vcpu.state.segments[SegmentName::Cs] = Segment::flat(8, 0xa09b);
        bench
    }

    fn gpr(&mut self, gpr: Gpr) -> &mut u64 {
        &mut self.vcpu.state.gprs[gpr]
    }

    pub(super) fn execute(&mut self, code: &[u8]) -> Outcome {
        self.ram.put(CODE, code);
        execute(
            &mut self.vcpu,
            &mut self.ram,
            &mut self.device,
            &mut self.cache,
            false,
        )
    }

    fn done(&mut self, code: &[u8]) {
        assert_eq!(
            self.execute(code),
            Outcome::Done(code.len() as u8),
            "{code:02x?}"
        );
    }
}

#[test]
fn moves_of_every_size_in_both_directions() {
    let mut b = Bench::long();
    *b.gpr(Gpr::Rax) = 0x1122_3344_5566_7788;
    b.done(&[0x48, 0x89, 0x03]); // mov [rbx], rax
    assert_eq!(b.device.word(0), 0x1122_3344_5566_7788);
    *b.gpr(Gpr::Rcx) = u64::MAX;
    b.done(&[0x8a, 0x6b, 0x01]); // mov ch, [rbx+1]
    assert_eq!(*b.gpr(Gpr::Rcx), 0xffff_ffff_ffff_77ff);
    b.done(&[0x8b, 0x0b]); // mov ecx, [rbx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0x5566_7788);
    b.done(&[0x66, 0xc7, 0x43, 0x10, 0xcd, 0xab]); // mov word [rbx+16], 0xabcd
    assert_eq!(b.device.word(16), 0xabcd);
    b.done(&[0x48, 0xc7, 0x43, 0x18, 0xff, 0xff, 0xff, 0xff]); // mov qword [rbx+24], -1
    assert_eq!(b.device.word(24), u64::MAX);
    assert_eq!(
        b.device.accesses.last(),
        Some(&(DEVICE + 24, 8, Some(u64::MAX)))
    );
}

#[test]
fn extensions() {
    let mut b = Bench::long();
    b.device.bytes[0] = 0x80;
    b.device.bytes[3] = 0xff;
    *b.gpr(Gpr::Rcx) = u64::MAX;
    b.done(&[0x0f, 0xb6, 0x0b]); // movzx ecx, byte [rbx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0x80);
    b.done(&[0x48, 0x0f, 0xbe, 0x0b]); // movsx rcx, byte [rbx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0xffff_ffff_ffff_ff80);
    b.done(&[0x48, 0x63, 0x0b]); // movsxd rcx, dword [rbx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0xffff_ffff_ff00_0080);
    b.done(&[0x66, 0x0f, 0xbe, 0x0b]); // movsx cx, byte [rbx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0xffff_ffff_ff00_ff80);
}

#[test]
fn addressing_modes() {
    let mut b = Bench::long();
    b.device.bytes[0x40] = 7;
    *b.gpr(Gpr::R9) = 8;
    b.done(&[0x42, 0x8a, 0x04, 0xcb]); // mov al, [rbx+r9*8]
    assert_eq!(*b.gpr(Gpr::Rax) & 0xff, 7);
    let distance = (DEVICE + 0x40 - CODE - 6) as u32;
    let [d0, d1, d2, d3] = distance.to_le_bytes();
    *b.gpr(Gpr::Rax) = 0;
    b.done(&[0x8a, 0x05, d0, d1, d2, d3]); // mov al, [rip+distance]
    assert_eq!(*b.gpr(Gpr::Rax), 7);
    b.vcpu.state.segments[SegmentName::Gs].base = DEVICE;
    b.vcpu.state.segments[SegmentName::Ds].base = 0xdead_0000; // does not count in 64-bit mode
    *b.gpr(Gpr::Rax) = 0;
    b.done(&[0x65, 0x8a, 0x04, 0x25, 0x40, 0, 0, 0]); // mov al, gs:[0x40]
    assert_eq!(*b.gpr(Gpr::Rax), 7);
    b.done(&[0xa0, 0x40, 0, 1, 0, 0, 0, 0, 0]); // mov al, [0x10040] with a 64-bit offset
    let mut b = Bench::protected();
    b.device.bytes[0x40] = 9;
    b.vcpu.state.segments[SegmentName::Ds].base = DEVICE;
    b.done(&[0xa0, 0x40, 0, 0, 0]); // mov al, ds:[0x40]
    assert_eq!(*b.gpr(Gpr::Rax), 9);
}

#[test]
fn arithmetic_reads_modifies_and_writes() {
    let mut b = Bench::long();
    b.device.bytes[0] = 0xf0;
    b.done(&[0x80, 0x0b, 0x0f]); // or byte [rbx], 0x0f
    assert_eq!(b.device.bytes[0], 0xff);
    assert!(b.vcpu.state.rflags.contains(Rflags::SF));
    b.done(&[0x83, 0x03, 0x01]); // add dword [rbx], 1
    assert_eq!(b.device.word(0), 0x100);
    b.device.accesses.clear();
    b.done(&[0xf7, 0x03, 0, 1, 0, 0]); // test dword [rbx], 0x100
    assert!(!b.vcpu.state.rflags.contains(Rflags::ZF));
    b.done(&[0x81, 0x3b, 0, 1, 0, 0]); // cmp dword [rbx], 0x100
    assert!(b.vcpu.state.rflags.contains(Rflags::ZF));
    assert!(
        b.device
            .accesses
            .iter()
            .all(|(_, _, written)| written.is_none())
    );
    *b.gpr(Gpr::Rax) = 0x55;
    b.done(&[0x86, 0x03]); // xchg [rbx], al
    assert_eq!((b.device.bytes[0], *b.gpr(Gpr::Rax)), (0x55, 0));
    b.done(&[0xf6, 0x13]); // not byte [rbx]
    assert_eq!(b.device.bytes[0], 0xaa);
    b.done(&[0xf0, 0x0f, 0xba, 0x2b, 0x00]); // lock bts dword [rbx], 0
    assert_eq!(b.device.bytes[0], 0xab);
    assert!(!b.vcpu.state.rflags.contains(Rflags::CF));
}

#[test]
fn a_bit_offset_in_a_register_reaches_beyond_the_operand() {
    let mut b = Bench::long();
    *b.gpr(Gpr::Rbx) = DEVICE + 64;
    *b.gpr(Gpr::Rcx) = (-33_i64) as u64;
    b.done(&[0x0f, 0xab, 0x0b]); // bts dword [rbx], ecx
    assert_eq!(b.device.word(56), 1 << 31);
}

#[test]
fn compare_and_exchange_writes_in_either_case() {
    let mut b = Bench::long();
    *b.gpr(Gpr::Rax) = 5;
    *b.gpr(Gpr::Rcx) = 6;
    b.done(&[0x0f, 0xb1, 0x0b]); // cmpxchg [rbx], ecx
    assert_eq!(*b.gpr(Gpr::Rax), 0);
    assert_eq!(b.device.accesses.last(), Some(&(DEVICE, 4, Some(0))));
    b.done(&[0x0f, 0xb1, 0x0b]);
    assert_eq!(b.device.word(0), 6);
    assert!(b.vcpu.state.rflags.contains(Rflags::ZF));
}

#[test]
fn an_access_may_straddle_ram_and_device() {
    let mut b = Bench::protected();
    *b.gpr(Gpr::Rbx) = DEVICE - 2;
    *b.gpr(Gpr::Rax) = 0x4433_2211;
    b.done(&[0x89, 0x03]); // mov [ebx], eax
    assert_eq!(b.ram.0[DEVICE as usize - 2..], [0x11, 0x22]);
    assert_eq!(b.device.bytes[..2], [0x33, 0x44]);
    *b.gpr(Gpr::Rcx) = 0;
    b.done(&[0x8b, 0x0b]); // mov ecx, [ebx]
    assert_eq!(*b.gpr(Gpr::Rcx), 0x4433_2211);
}

#[test]
fn repeated_moves_between_ram_and_device() {
    let mut b = Bench::protected();
    b.ram.put(0x5000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    *b.gpr(Gpr::Rsi) = 0x5000;
    *b.gpr(Gpr::Rcx) = 4;
    b.done(&[0xf3, 0x66, 0xa5]); // rep movsw
    assert_eq!(b.device.bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        (*b.gpr(Gpr::Rsi), *b.gpr(Gpr::Rdi), *b.gpr(Gpr::Rcx)),
        (0x5008, DEVICE + 8, 0)
    );
    // Backwards, from device to RAM.
    *b.gpr(Gpr::Rsi) = DEVICE + 7;
    *b.gpr(Gpr::Rdi) = 0x6007;
    *b.gpr(Gpr::Rcx) = 8;
    b.vcpu.state.rflags |= Rflags::DF;
    b.done(&[0xf3, 0xa4]); // rep movsb
    assert_eq!(b.ram.0[0x6000..0x6008], [1, 2, 3, 4, 5, 6, 7, 8]);
    b.done(&[0xf3, 0xaa]); // rep stosb with a count of zero
    assert_eq!(*b.gpr(Gpr::Rdi), 0x5fff);
}

#[test]
fn a_long_repeat_is_done_in_bounded_pieces() {
    let mut b = Bench::protected();
    *b.gpr(Gpr::Rcx) = 5000;
    assert_eq!(b.execute(&[0xf3, 0xaa]), Outcome::Unfinished); // rep stosb
    assert_eq!(*b.gpr(Gpr::Rcx), 904);
    assert_eq!(b.execute(&[0xf3, 0xaa]), Outcome::Done(2));
    assert_eq!((*b.gpr(Gpr::Rcx), *b.gpr(Gpr::Rdi)), (0, DEVICE + 5000));
}

#[test]
fn string_input_and_output() {
    let mut b = Bench::protected();
    *b.gpr(Gpr::Rdx) = 0x1f0;
    *b.gpr(Gpr::Rdi) = 0x5000;
    *b.gpr(Gpr::Rcx) = 3;
    b.done(&[0xf3, 0x66, 0x6d]); // rep insw
    assert_eq!(b.ram.0[0x5000..0x5006], [1, 0, 2, 0, 3, 0]);
    b.device.ports.clear();
    *b.gpr(Gpr::Rsi) = 0x5002;
    b.done(&[0x6f]); // outsd
    assert_eq!(b.device.ports, [(0x1f0, 4, Some(0x0003_0002))]);
    // 16-bit addressing keeps the upper half of the registers.
    *b.gpr(Gpr::Rsi) = 0xabcd_ffff;
    b.done(&[0x67, 0x6e]); // outsb with SI
    assert_eq!(*b.gpr(Gpr::Rsi), 0xabcd_0000);
}

#[test]
fn a_fault_in_the_middle_keeps_what_was_done() {
    let mut b = Bench::long();
    // 4 KiB pages: the one behind 0x5000 is missing.
    b.ram.put_u64(0x2000, 0x3000 | 7);
    b.ram.put_u64(0x3000, 0x7000 | 7);
    for page in 0..16 {
        b.ram.put_u64(
            0x7000 + page * 8,
            if page == 6 { 0 } else { page << 12 | 3 },
        );
    }
    *b.gpr(Gpr::Rdi) = 0x5ffc;
    *b.gpr(Gpr::Rcx) = 8;
    *b.gpr(Gpr::Rdx) = 0x60;
    let fault = b.execute(&[0xf3, 0x6c]); // rep insb
    assert_eq!(
        fault,
        Outcome::Fault(Event::exception_with_code(vector::PF, 2), Some(0x6000))
    );
    assert_eq!((*b.gpr(Gpr::Rcx), *b.gpr(Gpr::Rdi)), (4, 0x6000));
    assert_eq!(
        b.device.ports.len(),
        4,
        "the port is not read for the element that faults"
    );
}

#[test]
fn what_is_not_emulated_says_so() {
    let mut b = Bench::long();
    assert!(matches!(
        b.execute(&[0x0f, 0x10, 0x03]),
        Outcome::Unsupported { .. }
    )); // movups
    assert_eq!(
        b.execute(&[0x06]),
        Outcome::Fault(Event::undefined_opcode(), None)
    );
    b.vcpu.state.rip = DEVICE;
    assert_eq!(
        execute(&mut b.vcpu, &mut b.ram, &mut b.device, &mut b.cache, false),
        Outcome::Fault(Event::undefined_opcode(), None)
    );
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever bytes stand at RIP, in every mode: the emulator returns.
        #[test]
        fn bytes_are_survived(
            code in proptest::collection::vec(any::<u8>(), 15),
            regs in proptest::collection::vec(any::<u64>(), 16),
            long: bool,
        ) {
            let mut b = if long { Bench::long() } else { Bench::protected() };
            for (gpr, value) in Gpr::ALL.iter().zip(&regs) {
                b.vcpu.state.gprs[*gpr] = value % (DEVICE + 4096);
            }
            b.device.bytes = vec![0; 1 << 20];
            let mut quiet = Quiet;
            b.ram.put(CODE, &code);
            let outcome = execute(&mut b.vcpu, &mut b.ram, &mut quiet, &mut b.cache, false);
            if let Outcome::Done(length) = outcome {
                prop_assert!((1..=15).contains(&length));
            }
        }
    }

    struct Quiet;

    impl Bus for Quiet {
        fn read(&mut self, _: Gpa, _: u8) -> u64 {
            u64::MAX
        }
        fn write(&mut self, _: Gpa, _: u8, _: u64) {}
        fn read_port(&mut self, _: u16, _: u8) -> u32 {
            u32::MAX
        }
        fn write_port(&mut self, _: u16, _: u8, _: u32) {}
    }
}
