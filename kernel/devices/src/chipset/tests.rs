//! The chips together, as Linux meets them on its way up.

use super::*;
use alloc::vec::Vec;

const BASE: u64 = 1_795_330_160;
const MS: u64 = 1_000_000;
const COM1: u16 = uart::spec::COM1_PORT;

pub(crate) const CONFIG: Config = Config {
    low_memory: 512 << 20,
    high_memory: 0,
    clock_base: BASE,
    serial: [true, true],
    physical_address_bits: 40,
    timer_width: TimerWidth::Bits32,
    virtio: virtio_devices::Config {
        nics: [None; virtio_devices::MAX_NICS],
        console: None,
    },
};

/// The machine and where time is.
struct Bench {
    chips: Chipset,
    now: GuestTime,
}

impl Bench {
    fn new() -> Self {
        Self {
            chips: Chipset::new(&CONFIG),
            now: GuestTime(0),
        }
    }

    fn inb(&mut self, port: u16) -> u8 {
        self.chips.read_port(self.now, port, 1).unwrap() as u8
    }

    fn outb(&mut self, port: u16, value: u8) -> Effect {
        self.chips
            .write_port(self.now, port, 1, value.into())
            .unwrap()
    }

    fn outs(&mut self, list: &[(u16, u8)]) {
        for (port, value) in list {
            assert_eq!(self.outb(*port, *value), Effect::None);
        }
    }

    fn wait(&mut self, ns: u64) {
        self.now = GuestTime(self.now.0 + ns);
        self.chips.advance(self.now);
    }

    fn apic(&mut self, register: u8, value: u32) -> Effect {
        let address = lapic::spec::ADDRESS + (u64::from(register) << 4);
        self.chips
            .write_memory(self.now, address, 4, value.into())
            .unwrap()
    }

    fn redirect(&mut self, pin: u8, entry: u64) {
        for (register, value) in [(0x11, entry >> 32), (0x10, entry & 0xffff_ffff)] {
            let index = u64::from(register + 2 * pin);
            for (offset, value) in [(0, index), (0x10, value)] {
                let address = ioapic::spec::ADDRESS + offset;
                self.chips
                    .write_memory(self.now, address, 4, value)
                    .unwrap();
            }
        }
    }

    fn redirection(&mut self, pin: u8) -> u32 {
        let address = ioapic::spec::ADDRESS;
        let index = u64::from(0x10 + 2 * pin);
        self.chips
            .write_memory(self.now, address, 4, index)
            .unwrap();
        self.chips.read_memory(self.now, address + 0x10, 4).unwrap() as u32
    }

    /// Runs for `ns` as a processor that takes every interrupt and ends it at the local APIC or the 8259A.
    fn run(&mut self, ns: u64) -> Vec<u8> {
        let end = GuestTime(self.now.0 + ns);
        let mut taken = Vec::new();
        loop {
            while let Some(source) = self.chips.pending().interrupt {
                taken.push(self.chips.acknowledge().unwrap());
                match source {
                    Source::Pic => self.outs(&[(0xa0, 0x20), (0x20, 0x20)]),
                    Source::Lapic(_) => assert_eq!(self.apic(0x0b, 0), Effect::None),
                }
            }
            match self.chips.deadline().filter(|deadline| *deadline <= end) {
                Some(deadline) => self.now = deadline,
                None => break,
            }
            self.chips.advance(self.now);
        }
        self.now = end;
        self.chips.advance(end);
        taken
    }

    /// The 8259A pair with Linux's vectors, everything masked; then what `mask` leaves.
    fn init_8259(&mut self, mask: u8) {
        self.outs(&[
            (0x21, 0xff),
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, mask),
            (0xa1, 0xff),
        ]);
    }

    /// Counter 0 as a rate generator of 250 Hz: 4772 ticks, just below 4 ms.
    fn start_timer(&mut self) {
        self.outs(&[(0x43, 0x34), (0x40, 0xa4), (0x40, 0x12)]);
    }
}

#[test]
fn nothing_interrupts_a_machine_just_handed_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.chips.deadline(), None);
    bench.start_timer();
    assert_eq!(bench.run(100 * MS), []);
    assert_eq!(bench.inb(0x4d1), 0x02);
}

#[test]
fn the_timer_comes_through_the_8259a_before_the_apic_is_used() {
    let mut bench = Bench::new();
    bench.init_8259(0xfe);
    bench.start_timer();
    let ticks = bench.run(100 * MS);
    assert_eq!(ticks, [0x30; 25]);
    // Also with the local APIC switched off altogether.
    bench
        .chips
        .write_msr(bench.now, msr::APIC_BASE, 0xfee0_0100)
        .unwrap();
    assert_eq!(bench.run(40 * MS), [0x30; 10]);
    assert_eq!(bench.chips.read_memory(bench.now, 0xfee0_0030, 4), None);
}

#[test]
fn timer_irq_works_through_the_io_apic() {
    let mut bench = Bench::new();
    bench.init_8259(0xff);
    bench.apic(0x0f, 0x1ff);
    // check_timer(): line 0 is overridden to pin 2; 8259A masked, LINT0 masked.
    bench.apic(0x35, 0x1_0700);
    bench.redirect(2, 0x0000_0000_0000_0030);
    bench.start_timer();
    let ticks = bench.run(100 * MS);
    assert_eq!(ticks, [0x30; 25]);
    bench.redirect(2, 0x1_0030);
    assert_eq!(bench.run(100 * MS), []);
}

#[test]
fn check_timer_falls_back_as_on_a_pc() {
    // The 8259A through the I/O APIC's pin 0 …
    let mut bench = Bench::new();
    bench.init_8259(0xfe);
    bench.apic(0x35, 0x1_0700);
    bench.start_timer();
    assert_eq!(bench.run(20 * MS), []);
    bench.redirect(0, 0x700);
    // The request that waits, and five more.
    assert_eq!(bench.run(20 * MS), [0x30; 6]);
    // … as a vector of that pin …
    bench.redirect(0, 0x33);
    assert_eq!(bench.run(5 * MS), [0x33]);
    // … or as a vector of LINT0 (virtual wire).
    let mut bench = Bench::new();
    bench.init_8259(0xfe);
    bench.outs(&[(0x21, 0xff)]);
    bench.apic(0x35, 0x31);
    bench.start_timer();
    bench.outs(&[
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, 0x03),
        (0x21, 0xfe),
    ]);
    bench.wait(5 * MS);
    assert_eq!(bench.chips.acknowledge(), Some(0x31));
}

#[test]
fn the_apic_timer_is_calibrated_against_the_pit() {
    let mut bench = Bench::new();
    bench.apic(0x32, 0x1_00ec);
    bench.apic(0x3e, 0x3);
    // Gate up, mode 0, 50 ms.
    bench.outs(&[(0x61, 0x01), (0x43, 0xb0), (0x42, 0x0b)]);
    bench.apic(0x38, u32::MAX);
    bench.outs(&[(0x42, 0xe9)]);
    while bench.inb(0x61) & 0x20 == 0 {
        bench.wait(1000);
    }
    let left = bench.chips.read_memory(bench.now, 0xfee0_0390, 4).unwrap();
    let hz = (u64::from(u32::MAX) - left) * 16 * 20;
    assert!((999_900_000..1_000_100_000).contains(&hz), "{hz}");
}

#[test]
fn x2apic_with_tsc_deadline() {
    let mut bench = Bench::new();
    let now = bench.now;
    let mut wrmsr = |number, value| bench.chips.write_msr(now, number, value);
    wrmsr(msr::APIC_BASE, 0xfee0_0d00).unwrap();
    wrmsr(0x832, 0x4_00ec).unwrap();
    wrmsr(msr::TSC_DEADLINE, 4 * MS).unwrap();
    assert_eq!(bench.chips.read_memory(now, 0xfee0_0020, 4), None);
    assert_eq!(bench.chips.deadline(), Some(GuestTime(4 * MS)));
    bench.wait(4 * MS);
    assert_eq!(bench.chips.pending().interrupt, Some(Source::Lapic(0xec)));
    bench.chips.set_cr8(0xe);
    assert_eq!(bench.chips.pending().interrupt, None);
    assert_eq!(bench.chips.read_msr(bench.now, 0x808), Ok(0xe0));
    bench.chips.set_cr8(0);
    assert_eq!(bench.chips.acknowledge(), Some(0xec));
    assert_eq!(bench.chips.acknowledge(), None);
    assert_eq!(bench.chips.write_msr(bench.now, 0x80b, 0), Ok(Effect::None));
    assert_eq!(
        bench.chips.write_msr(bench.now, 0x80b, 1),
        Err(GeneralProtection)
    );
    assert!(
        [0x1b, 0x6e0, 0x800, 0x8ff]
            .into_iter()
            .all(Chipset::has_msr)
    );
    assert!(![0x10, 0x7ff, 0x900].into_iter().any(Chipset::has_msr));
}

#[test]
fn a_key_interrupts_and_is_read() {
    let mut bench = Bench::new();
    // 8250 driver: FIFOs with level 8, OUT2, receive interrupts; edge at pin 4.
    bench.redirect(4, 0x24);
    bench.outs(&[
        (COM1 + 3, 3),
        (COM1 + 2, 0x81),
        (COM1 + 4, 0x0b),
        (COM1 + 1, 0x05),
    ]);
    assert_eq!(bench.chips.receive(bench.now, Serial::One, b"l"), 1);
    assert_eq!(bench.run(MS), [0x24]);
    assert_eq!(bench.inb(COM1 + 2), 0xcc);
    assert_eq!(bench.inb(COM1), b'l');
    assert_eq!(bench.inb(COM1 + 2), 0xc1);
    assert_eq!(bench.outb(COM1, b'$'), Effect::Console(Serial::One, b'$'));
    assert_eq!(bench.outb(0x2f8, b'!'), Effect::Console(Serial::Two, b'!'));
}

#[test]
fn a_line_written_by_interrupts() {
    let mut bench = Bench::new();
    bench.redirect(4, 0x24);
    bench.outs(&[(COM1 + 2, 0x01), (COM1 + 4, 0x0b), (COM1 + 1, 0x02)]);
    for byte in *b"hello" {
        assert_eq!(bench.run(1000), [0x24]);
        assert_eq!(bench.inb(COM1 + 2), 0xc2);
        assert_eq!(bench.outb(COM1, byte), Effect::Console(Serial::One, byte));
    }
    assert_eq!(bench.run(1000), [0x24]);
    bench.outs(&[(COM1 + 1, 0x00)]);
    assert_eq!(bench.run(1000), []);
}

#[test]
fn the_power_button_is_a_level_with_remote_irr() {
    let mut bench = Bench::new();
    bench.redirect(9, 0x8029);
    bench.outs(&[(0x603, 0x01)]);
    bench.chips.press_power_button(bench.now);
    assert_eq!(bench.chips.acknowledge(), Some(0x29));
    assert_eq!(bench.redirection(9), 0xc029);
    // Ended before it is served, it comes again.
    bench.apic(0x0b, 0);
    assert_eq!(bench.chips.acknowledge(), Some(0x29));
    bench.outs(&[(0x601, 0x01)]);
    bench.apic(0x0b, 0);
    assert_eq!(bench.redirection(9), 0x8029);
    assert_eq!(bench.chips.pending().interrupt, None);
}

#[test]
fn a_level_waits_for_an_apic_that_is_off() {
    let mut bench = Bench::new();
    bench.apic(0x0f, 0xff);
    bench.redirect(9, 0x8029);
    bench.outs(&[(0x603, 0x01)]);
    bench.chips.press_power_button(bench.now);
    assert_eq!(bench.chips.pending().interrupt, None);
    bench.apic(0x0f, 0x1ff);
    assert_eq!(bench.chips.pending().interrupt, Some(Source::Lapic(0x29)));
}

#[test]
fn the_clock_is_read_and_rings() {
    let mut bench = Bench::new();
    bench.redirect(8, 0x28);
    bench.outs(&[(0x70, 0x0b), (0x71, 0x12)]);
    assert_eq!(bench.run(1000 * MS), [0x28]);
    // The line stays up until register C is read: no second edge.
    assert_eq!(bench.run(3000 * MS), []);
    bench.outs(&[(0x70, 0x0c)]);
    assert_eq!(bench.inb(0x71), 0xd0);
    assert_eq!(bench.run(1000 * MS), [0x28]);
    bench.outs(&[(0x70, 0x00)]);
    assert_eq!(bench.inb(0x71), 0x25);
    assert_eq!(bench.inb(0x70), 0x00);
}

#[test]
fn the_nmi_button_respects_the_cmos_port() {
    let mut bench = Bench::new();
    bench.outs(&[(0x70, 0x80)]);
    bench.chips.press_nmi_button(bench.now);
    assert!(!bench.chips.pending().nmi);
    bench.outs(&[(0x70, 0x00)]);
    bench.chips.press_nmi_button(bench.now);
    assert!(bench.chips.pending().nmi);
    bench.chips.acknowledge_nmi();
    assert!(!bench.chips.pending().nmi);
}

#[test]
fn pci_interrupts_and_messages_arrive() {
    let mut bench = Bench::new();
    let mut function = pci::Function::new(&pci::Identity {
        vendor: 0x1af4,
        device: 0x1041,
        subsystem_vendor: 0,
        subsystem: 0,
        class: 0x02_0000,
        revision: 1,
    });
    function.set_interrupt_pin(1);
    bench.chips.pci_mut().plug(1, function);
    // Level, active low, as _PRT says.
    bench.redirect(17, 0xa061);
    assert_eq!(bench.chips.pending().interrupt, None);
    bench.chips.set_pci_interrupt(bench.now, 1, true);
    assert_eq!(bench.chips.acknowledge(), Some(0x61));
    // The guest switches the pin off in the command register, through the memory window.
    let command = pci::spec::ECAM + (1 << 15) + 4;
    assert_eq!(
        bench.chips.write_memory(bench.now, command, 2, 0x400),
        Some(Effect::None)
    );
    bench.apic(0x0b, 0);
    assert_eq!(bench.chips.pending().interrupt, None);
    assert!(bench.chips.signal(bench.now, 0xfee0_0000, 0x71));
    assert_eq!(bench.chips.acknowledge(), Some(0x71));
    assert!(!bench.chips.signal(bench.now, 0xfee0_1000, 0x72));
    assert!(!bench.chips.signal(bench.now, 0xfec0_0000, 0x72));
}

#[test]
fn ways_to_switch_off_and_to_start_over() {
    let mut bench = Bench::new();
    let off = bench.chips.write_port(bench.now, 0x604, 2, 0x3401);
    assert_eq!(off, Some(Effect::PowerOff));
    assert_eq!(bench.outb(0xcf9, 0x06), Effect::Reset);
    assert_eq!(bench.outb(0x64, 0xfe), Effect::Reset);
    assert_eq!(bench.outb(0x92, 0x01), Effect::Reset);
    assert_eq!(bench.apic(0x30, 0x4500), Effect::Reset);
}

#[test]
fn a_reset_leaves_the_clock_and_nothing_else() {
    let mut bench = Bench::new();
    bench.init_8259(0);
    bench.start_timer();
    bench.outs(&[(0x70, 0x40), (0x71, 0x77), (0x603, 0x01), (0x21, 0x12)]);
    bench.wait(60_000 * MS);
    bench.chips.press_power_button(bench.now);
    bench.chips.reset(bench.now);
    assert_eq!(bench.chips.read_port(bench.now, 0x600, 4), Some(0));
    assert_eq!(bench.chips.now(), bench.now);
    assert_eq!((bench.chips.deadline(), bench.inb(0x21)), (None, 0xff));
    bench.outs(&[(0x70, 0x40)]);
    assert_eq!(bench.inb(0x71), 0x77);
    bench.outs(&[(0x70, 0x02)]);
    assert_eq!(bench.inb(0x71), 0x50);
    let timer = bench.chips.read_port(bench.now, 0x608, 4);
    assert_eq!(timer, Some((60 * 315_000_000_u64 / 88) as u32));
}

#[test]
fn ports_of_nobody_and_ports_of_nothing() {
    let mut bench = Bench::new();
    for (port, size) in [(0x3e8, 1), (0x3e8, 4), (0x1f0, 2), (0x62, 1), (0x3bc, 4)] {
        assert_eq!(bench.chips.read_port(bench.now, port, size), None);
        assert_eq!(bench.chips.write_port(bench.now, port, size, 0), None);
    }
    for port in [0x60, 0x64, 0x80, 0xed, 0xcf8, 0xcfb] {
        assert_eq!(bench.inb(port), 0xff);
        assert_eq!(bench.outb(port, 0x01), Effect::None);
    }
    // A wide access is one per byte; where nothing answers, ones.
    assert_eq!(bench.chips.read_port(bench.now, 0x20, 4), Some(0xffff_ff00));
    assert_eq!(bench.chips.read_port(bench.now, COM1 + 5, 2), Some(0xb060));
    for address in [0xfee0_1000, 0xfec0_1000, 0xe010_0000, 0xfed0_0000, u64::MAX] {
        assert_eq!(bench.chips.read_memory(bench.now, address, 8), None);
        assert_eq!(bench.chips.write_memory(bench.now, address, 8, 0), None);
    }
    let without = Config {
        serial: [false, true],
        ..CONFIG
    };
    let mut chips = Chipset::new(&without);
    assert_eq!(chips.read_port(bench.now, COM1 + 5, 1), None);
    assert_eq!(chips.receive(bench.now, Serial::One, b"gone"), 4);
}

#[test]
fn time_that_goes_back_is_ignored() {
    let mut bench = Bench::new();
    bench.wait(50 * MS);
    let before = bench.chips.clone();
    bench.chips.advance(GuestTime(MS));
    assert_eq!(bench.chips, before);
    let timer = bench.chips.read_port(GuestTime(MS), 0x608, 4);
    assert_eq!(timer, Some((50 * 315_000 / 88) as u32));
}
