//! The loop and a PC's chips: time, interrupts, waiting, power.

use alloc::string::ToString;
use alloc::vec::Vec;

use devices::acpi_pm::TimerWidth;
use devices::chipset;
use devices::virtio;

use super::tests::{CODE, at, faults, host_cpuid};
use super::*;
use crate::board::Kind;
use crate::config::Limits;
use crate::cpu::PortAccess;
use crate::machine::Operation;
use crate::nondet::{Door, Mode};
use crate::profile::{Level, Profile};
use crate::testing::{Ram, ScriptedVcpu, Step, TestHost};
use arch::msr;
use arch::regs::{CpuState, Gpr};

/// OUT of one byte.
fn out_byte(port: u16) -> Exit {
    Exit::Port(PortAccess {
        port,
        size: 1,
        write: true,
        string: false,
    })
}

/// A machine with the chips of a PC.
fn pc(script: &[Step], host: &mut TestHost) -> Machine<ScriptedVcpu> {
    let vcpu = ScriptedVcpu::new(CpuState::protected_mode(CODE), script);
    pc_of(vcpu, Door::new(host, Mode::Live))
}

/// The same with this processor and door.
pub(super) fn pc_of(vcpu: ScriptedVcpu, door: Door) -> Machine<ScriptedVcpu> {
    pc_with(vcpu, door, virtio::Config::default())
}

/// The same with these virtio devices.
pub(super) fn pc_with(
    vcpu: ScriptedVcpu,
    door: Door,
    virtio: virtio::Config,
) -> Machine<ScriptedVcpu> {
    let chips = chipset::Config {
        low_memory: 0x1_0000,
        high_memory: 0,
        clock_base: 0,
        serial: [true; 2],
        physical_address_bits: 40,
        timer_width: TimerWidth::Bits32,
        virtio,
    };
    Machine::new(
        "pc".to_string(),
        vcpu,
        Ram::new(0x1_0000),
        Profile::new(Level::V3, &host_cpuid)
            .unwrap()
            .with_local_apic(),
        &Kind::Pc {
            chips,
            serial: true,
            test_ports: true,
        },
        door,
        Limits::default(),
    )
}

/// Writes an MSR of a PC, one exit.
fn write_msr(m: &mut Machine<ScriptedVcpu>, host: &mut TestHost, number: u32, value: u64) {
    m.vcpu.state.gprs[Gpr::Rcx] = u64::from(number);
    m.vcpu.state.gprs[Gpr::Rax] = value & 0xffff_ffff;
    m.vcpu.state.gprs[Gpr::Rdx] = value >> 32;
    m.vcpu.script.push_back(at(0, Exit::WriteMsr));
    m.run(host, 1000);
    assert!(m.vcpu.script.is_empty());
}

/// A PC whose APIC is an x2APIC with its timer at vector 0x51, one shot, interrupts on, time at 1000 ns.
fn with_timer(host: &mut TestHost) -> Machine<ScriptedVcpu> {
    host.now_ns = 500;
    let mut m = pc(&[], host);
    host.now_ns = 1500;
    write_msr(&mut m, host, msr::APIC_BASE, 0xfee0_0d00);
    write_msr(&mut m, host, msr::X2APIC_BASE + 0xf, 0x1ff);
    write_msr(&mut m, host, msr::X2APIC_BASE + 0x3e, 0xb);
    write_msr(&mut m, host, msr::X2APIC_BASE + 0x32, 0x51);
    write_msr(&mut m, host, msr::X2APIC_BASE + 0x38, 4000);
    m.vcpu.state.rflags |= Rflags::IF;
    m
}

#[test]
fn a_timer_ends_a_run_and_its_interrupt_comes_when_time_has() {
    let mut host = TestHost::default();
    let mut m = with_timer(&mut host);
    host.now_ns = 5499;
    m.vcpu.script.push_back(at(10, Exit::HostWork));
    m.run(&mut host, 1_000_000);
    assert!(m.vcpu.delivered.is_empty());
    // What the processor was given is what was left.
    assert_eq!(m.vcpu.budgets.last(), Some(&1));
    host.now_ns = 5500;
    m.vcpu.script.push_back(at(10, Exit::HostWork));
    m.run(&mut host, 1_000_000);
    assert_eq!(m.vcpu.delivered, [(15, Event::interrupt(0x51))]);
    assert_eq!(m.vcpu.budgets.last(), Some(&1_000_000));
}

#[test]
fn a_waiting_pc_is_idle_until_its_timer() {
    let mut host = TestHost::default();
    let mut m = with_timer(&mut host);
    m.vcpu.script.push_back(at(0, Exit::Hlt));
    assert_eq!(m.run(&mut host, 1000), None);
    assert_eq!(m.idle_until(), Some(5500));
    let runs = m.vcpu.budgets.len();
    assert_eq!(m.run(&mut host, 1000), None);
    assert_eq!(m.vcpu.budgets.len(), runs, "not entered while it waits");
    host.now_ns = 6000;
    m.vcpu.script.push_back(at(1, Exit::Cpuid));
    m.run(&mut host, 1000);
    assert_eq!(m.idle_until(), None);
    assert_eq!(m.vcpu.delivered.len(), 1);
}

#[test]
fn a_pc_that_waits_with_interrupts_off_is_halted() {
    let mut host = TestHost::default();
    let mut m = with_timer(&mut host);
    m.vcpu.state.rflags -= Rflags::IF;
    m.vcpu.script.push_back(at(0, Exit::Hlt));
    assert_eq!(m.run(&mut host, 1000), Some(Stop::Halted));
}

#[test]
fn com1_speaks_and_hears() {
    let mut host = TestHost::default();
    let mut m = pc(&[], &mut host);
    host.typed.extend(b"ls");
    m.vcpu.state.gprs[Gpr::Rax] = u64::from(b'$');
    m.vcpu.script.push_back(at(0, out_byte(0x3f8)));
    m.run(&mut host, 1000);
    assert_eq!(host.said, b"$");
    let read = Exit::Port(PortAccess {
        port: 0x3f8,
        size: 1,
        write: false,
        string: false,
    });
    let mut heard = Vec::new();
    for _ in 0..2 {
        m.vcpu.script.push_back(at(0, read));
        m.run(&mut host, 1000);
        heard.push(m.vcpu.state.gprs[Gpr::Rax] as u8);
    }
    assert_eq!(heard, b"ls");
}

#[test]
fn a_reset_starts_again_from_the_loaded_state_and_counts_on() {
    let mut host = TestHost::default();
    let mut m = with_timer(&mut host);
    m.vcpu.state.gprs[Gpr::Rax] = 0xfe;
    m.vcpu.script.push_back(at(7, out_byte(0x64)));
    assert_eq!(m.run(&mut host, 1000), Some(Stop::Reset));
    let before = m.vcpu.icount();
    m.restart(&CpuState::protected_mode(CODE));
    assert_eq!(
        (m.stop, m.vcpu.icount(), m.vcpu.rip()),
        (None, before, CODE.into())
    );
    // The APIC is as at power-on: no timer, no x2APIC.
    assert_eq!(m.board.deadline(), None);
    m.vcpu.state.gprs[Gpr::Rcx] = u64::from(msr::X2APIC_BASE + 2);
    m.vcpu.script.push_back(at(0, Exit::ReadMsr));
    m.run(&mut host, 1000);
    assert_eq!(faults(&m), [vector::GP]);
}

#[test]
fn a_pc_is_switched_off_by_acpi() {
    let mut host = TestHost::default();
    let mut m = pc(&[], &mut host);
    m.vcpu.state.gprs[Gpr::Rax] = 1 << 13 | 5 << 10;
    let access = PortAccess {
        port: 0x604,
        size: 2,
        write: true,
        string: false,
    };
    m.vcpu.script.push_back(at(0, Exit::Port(access)));
    assert_eq!(m.run(&mut host, 1000), Some(Stop::PowerOff));
    assert!(Stop::PowerOff.is_success());
}

#[test]
fn the_host_can_press_the_buttons() {
    let mut host = TestHost::default();
    let mut m = with_timer(&mut host);
    // As at power-on LINT1 is the NMI's.
    m.operate(Operation::Nmi);
    m.vcpu.script.push_back(at(0, Exit::Cpuid));
    m.run(&mut host, 1000);
    assert_eq!(m.vcpu.delivered, [(5, Event::nmi())]);

    let status = |m: &mut Machine<ScriptedVcpu>, host: &mut TestHost| {
        let access = PortAccess {
            port: 0x600,
            size: 2,
            write: false,
            string: false,
        };
        m.vcpu.script.push_back(at(0, Exit::Port(access)));
        m.run(host, 1000);
        m.vcpu.state.gprs[Gpr::Rax] & 1 << 8
    };
    assert_eq!(status(&mut m, &mut host), 0);
    m.operate(Operation::PowerButton);
    assert_ne!(status(&mut m, &mut host), 0);

    m.operate(Operation::Stop);
    assert_eq!(m.run(&mut host, 1000), Some(Stop::SwitchedOff));
    m.operate(Operation::Reset);
    assert_eq!(m.stopped(), Some(Stop::SwitchedOff), "it is off");
}

#[test]
fn a_pc_can_have_the_ports_of_test_guests() {
    let mut host = TestHost::default();
    let mut m = pc(&[], &mut host);
    for byte in *b"hi\n" {
        m.vcpu.state.gprs[Gpr::Rax] = byte.into();
        m.vcpu.script.push_back(at(0, out_byte(0xe9)));
        m.run(&mut host, 1000);
    }
    assert_eq!(host.lines, ["pc| hi"]);
    m.vcpu.state.gprs[Gpr::Rax] = 3;
    m.vcpu.script.push_back(at(0, out_byte(0xf4)));
    assert_eq!(m.run(&mut host, 1000), Some(Stop::ExitStatus(3)));
}
