//! The loop and the handlers against a scripted processor.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::*;
use crate::board::Kind;
use crate::config::Limits;
use crate::cpu::{NestedFault, PortAccess};
use crate::emulate::Bus;
use crate::nondet::Door;
use crate::profile::{Leaf, Level, Profile};
use crate::testing::{Ram, ScriptedVcpu, Step, TestHost};
use arch::addr::{Gpa, Gva};
use arch::msr;
use arch::regs::{CpuState, Cr0, Cr4, Efer, Gpr, SegmentAttributes, SegmentName, Shadow, Xcr0};
use devices::test_device::spec;

pub(super) const CODE: u32 = 0x4000;

pub(super) fn host_cpuid(leaf: u32, _: u32) -> Leaf {
    match leaf {
        0 => Leaf {
            eax: 0x20,
            ..Leaf::default()
        },
        0x8000_0000 => Leaf {
            eax: 0x8000_0008,
            ..Leaf::default()
        },
        0x8000_0008 => Leaf {
            eax: 0x3028,
            ..Leaf::default()
        },
        _ => Leaf {
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        },
    }
}

/// A machine in protected mode whose code is two-byte instructions (CPUID, over and over).
fn machine(script: &[Step]) -> Machine<ScriptedVcpu> {
    let mut ram = Ram::new(0x1_0000);
    for at in (CODE..CODE + 64).step_by(2) {
        ram.put(u64::from(at), &[0x0f, 0xa2]);
    }
    let vcpu = ScriptedVcpu::new(CpuState::protected_mode(CODE), script);
    Machine::new(
        "test".to_string(),
        vcpu,
        ram,
        Profile::new(Level::V3, &host_cpuid).unwrap(),
        &Kind::Test,
        Door::default(),
        Limits::default(),
    )
}

pub(super) fn at(retired: u64, exit: Exit) -> Step {
    Step { retired, exit }
}

/// Handles one exit with the general registers given, and returns the machine.
fn one(exit: Exit, set: &[(Gpr, u64)]) -> Machine<ScriptedVcpu> {
    let mut m = machine(&[at(0, exit)]);
    for (gpr, value) in set {
        m.vcpu.state.gprs[*gpr] = *value;
    }
    m.run(
        &mut TestHost {
            now_ns: 77,
            random: 0xabcd,
            ..TestHost::default()
        },
        1000,
    );
    m
}

pub(super) fn faults(m: &Machine<ScriptedVcpu>) -> Vec<u8> {
    m.vcpu
        .delivered
        .iter()
        .map(|(_, event)| event.vector)
        .collect()
}

fn out(port: u16, value: u32) -> (Exit, [(Gpr, u64); 1]) {
    let access = PortAccess {
        port,
        size: 4,
        write: true,
        string: false,
    };
    (Exit::Port(access), [(Gpr::Rax, u64::from(value))])
}

#[test]
fn an_instruction_is_answered_stepped_over_and_counted() {
    let m = one(Exit::Cpuid, &[(Gpr::Rax, 0x4000_0000)]);
    assert_eq!(m.vcpu.state.gprs[Gpr::Rbx].to_le_bytes()[..4], *b"Duet");
    assert_eq!(
        (m.vcpu.state.rip, m.vcpu.state.icount),
        (u64::from(CODE) + 2, 1)
    );
    let m = one(Exit::Rdtsc, &[(Gpr::Rax, u64::MAX), (Gpr::Rdx, u64::MAX)]);
    assert_eq!(
        (m.vcpu.state.gprs[Gpr::Rax], m.vcpu.state.gprs[Gpr::Rdx]),
        (77, 0)
    );
    let m = one(Exit::Hypercall, &[]);
    assert_eq!(m.vcpu.state.gprs[Gpr::Rax], u64::MAX);
}

#[test]
fn what_the_machine_does_not_have_faults_at_the_instruction() {
    for (exit, vector) in [
        (Exit::Monitor, vector::UD),
        (Exit::Mwait, vector::UD),
        (Exit::NoSuchInstruction, vector::UD),
        (Exit::Rdpmc, vector::GP),
    ] {
        let m = one(exit, &[]);
        assert_eq!(faults(&m), [vector], "{exit:?}");
        assert_eq!(
            (m.vcpu.state.rip, m.vcpu.state.icount),
            (u64::from(CODE), 0)
        );
    }
}

#[test]
fn random_numbers_come_through_the_door() {
    let m = one(
        Exit::Rdrand {
            register: Gpr::R8,
            size: 2,
        },
        &[(Gpr::R8, u64::MAX)],
    );
    assert_eq!(m.vcpu.state.gprs[Gpr::R8], 0xffff_ffff_ffff_abcd);
    assert!(m.vcpu.state.rflags.contains(Rflags::CF));
}

#[test]
fn msrs() {
    let m = one(Exit::ReadMsr, &[(Gpr::Rcx, u64::from(msr::TSC))]);
    assert_eq!(m.vcpu.state.gprs[Gpr::Rax], 77);
    let m = one(Exit::ReadMsr, &[(Gpr::Rcx, 0x1234)]);
    assert_eq!(faults(&m), [vector::GP]);
    assert_eq!(m.unknown_msrs, 1);
    let write = |number: u32, value: u64| {
        one(
            Exit::WriteMsr,
            &[
                (Gpr::Rcx, u64::from(number)),
                (Gpr::Rax, value & 0xffff_ffff),
                (Gpr::Rdx, value >> 32),
            ],
        )
    };
    assert_eq!(
        write(msr::LSTAR, 0xffff_8000_0000_1000)
            .vcpu
            .state
            .msrs
            .lstar,
        0xffff_8000_0000_1000
    );
    assert_eq!(faults(&write(msr::LSTAR, 0x8000_0000_0000)), [vector::GP]);
    assert_eq!(
        write(msr::EFER, 0x901).vcpu.state.control.efer,
        Efer::from_bits_retain(0x901)
    );
    assert_eq!(
        faults(&write(msr::EFER, 0x1000)),
        [vector::GP],
        "SVME is not the guest's"
    );
    assert_eq!(faults(&write(msr::PAT, 2)), [vector::GP]);
    assert_eq!(write(msr::TSC_AUX, 9).tsc_aux, 9);
    assert_eq!(faults(&write(msr::TSC_AUX, 1 << 32)), [vector::GP]);
    assert_eq!(faults(&write(0x4321, 0)), [vector::GP]);
    assert_eq!(write(msr::TSC_ADJUST, 9).door.time_stamp_offset(), 9);
    assert_eq!(write(msr::TSC, 76).door.time_stamp_offset(), u64::MAX);
    // This host is not Intel's.
    assert_eq!(faults(&write(msr::MISC_ENABLE, 0)), [vector::GP]);
    let number = u64::from(msr::AMD_INTERRUPT_PENDING);
    assert!(faults(&one(Exit::ReadMsr, &[(Gpr::Rcx, number)])).is_empty());
    // Nor has the test guests' machine a local APIC.
    assert_eq!(faults(&write(msr::APIC_BASE, 0xfee0_0900)), [vector::GP]);
}

#[test]
fn control_registers_keep_to_the_rules() {
    let write = |cr, value| one(Exit::WriteCr { cr, value }, &[]);
    let m = write(0, 0x21);
    assert_eq!(
        m.vcpu.state.control.cr0,
        Cr0::PE | Cr0::NE | Cr0::ET,
        "ET is hardwired"
    );
    assert_eq!(
        faults(&write(0, 0x8000_0000)),
        [vector::GP],
        "paging without protection"
    );
    assert_eq!(faults(&write(0, 1 << 32)), [vector::GP]);
    assert_eq!(
        faults(&write(0, 0x2000_0001)),
        [vector::GP],
        "NW without CD"
    );
    assert_eq!(faults(&write(4, Cr4::VMXE.bits())), [vector::GP]);
    assert_eq!(write(4, 0x620).vcpu.state.control.cr4.bits(), 0x620);
    assert_eq!(write(8, 5).board.task_priority(), 5);
    assert_eq!(faults(&write(8, 16)), [vector::GP]);
    assert_eq!(faults(&write(2, 0)), [vector::UD]);
}

#[test]
fn entering_long_mode_sets_lma_and_needs_pae() {
    let mut m = machine(&[at(
        0,
        Exit::WriteCr {
            cr: 0,
            value: 0x8000_0001,
        },
    )]);
    m.vcpu.state.control.efer = Efer::LME;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(faults(&m), [vector::GP]);
    let mut m = machine(&[at(
        0,
        Exit::WriteCr {
            cr: 0,
            value: 0x8000_0001,
        },
    )]);
    m.vcpu.state.control.efer = Efer::LME;
    m.vcpu.state.control.cr4 = Cr4::PAE;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(m.vcpu.state.control.efer, Efer::LME | Efer::LMA);
}

#[test]
fn entering_pae_paging_loads_four_entries_and_checks_them() {
    for (entry, good) in [(0x5001, true), (0x5003, false), (0, true)] {
        let mut m = machine(&[at(
            0,
            Exit::WriteCr {
                cr: 0,
                value: 0x8000_0001,
            },
        )]);
        m.vcpu.state.control.cr4 = Cr4::PAE;
        m.vcpu.state.control.cr3 = 0x3020;
        m.memory.put_u64(0x3028, entry);
        m.run(&mut TestHost::default(), 1000);
        assert_eq!(faults(&m).is_empty(), good);
        if good {
            assert_eq!(m.vcpu.state.control.pdptes, [0, entry, 0, 0]);
        }
    }
}

#[test]
fn xcr0() {
    let set = |low: u64| one(Exit::Xsetbv, &[(Gpr::Rcx, 0), (Gpr::Rax, low)]);
    assert_eq!(
        set(7).vcpu.state.control.xcr0,
        Xcr0::X87 | Xcr0::SSE | Xcr0::AVX
    );
    assert_eq!(faults(&set(5)), [vector::GP], "AVX without SSE");
    assert_eq!(faults(&set(6)), [vector::GP], "without x87");
    assert_eq!(faults(&set(0xff)), [vector::GP]);
    assert_eq!(
        faults(&one(Exit::Xsetbv, &[(Gpr::Rcx, 1), (Gpr::Rax, 7)])),
        [vector::GP]
    );
}

#[test]
fn debug_registers() {
    let m = one(
        Exit::WriteDr {
            dr: 7,
            register: Gpr::Rax,
        },
        &[(Gpr::Rax, 0xffff_ffff)],
    );
    assert_eq!(m.vcpu.state.debug.dr7, 0xffff_2fff);
    let m = one(
        Exit::WriteDr {
            dr: 4,
            register: Gpr::Rax,
        },
        &[(Gpr::Rax, 0)],
    );
    assert_eq!(m.vcpu.state.debug.dr6, 0xffff_0ff0, "DR4 is DR6");
    let mut m = machine(&[at(
        0,
        Exit::ReadDr {
            dr: 5,
            register: Gpr::Rax,
        },
    )]);
    m.vcpu.state.control.cr4 = Cr4::DE;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(faults(&m), [vector::UD]);
    let mut m = machine(&[at(
        0,
        Exit::ReadDr {
            dr: 0,
            register: Gpr::Rax,
        },
    )]);
    m.vcpu.state.debug.dr7 = 0x2400;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(faults(&m), [vector::DB], "general detect");
    assert_eq!(
        (m.vcpu.state.debug.dr6 >> 13 & 1, m.vcpu.state.debug.dr7),
        (1, 0x400)
    );
}

#[test]
fn user_code_cannot_reach_debug_registers_or_xcr0() {
    for exit in [
        Exit::ReadDr {
            dr: 0,
            register: Gpr::Rax,
        },
        Exit::WriteDr {
            dr: 7,
            register: Gpr::Rax,
        },
        Exit::Xsetbv,
    ] {
        let mut m = machine(&[at(0, exit)]);
        m.vcpu.state.segments[SegmentName::Ss].attributes =
            SegmentAttributes::from_bits_retain(0xc0f3);
        m.vcpu.state.gprs[Gpr::Rax] = 7;
        let before = m.vcpu.state;
        m.run(&mut TestHost::default(), 1000);
        assert_eq!(faults(&m), [vector::GP], "{exit:?}");
        assert_eq!(
            (m.vcpu.state.debug, m.vcpu.state.control),
            (before.debug, before.control)
        );
    }
}

#[test]
fn a_single_step_traps_behind_an_emulated_instruction() {
    let mut m = machine(&[at(0, Exit::Cpuid)]);
    m.vcpu.state.rflags |= Rflags::TF;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(faults(&m), [vector::DB]);
    assert_eq!(m.vcpu.state.rip, u64::from(CODE) + 2);
    assert_ne!(m.vcpu.state.debug.dr6 & DR6_SINGLE_STEP, 0);
}

#[test]
fn a_single_step_traps_behind_each_element_of_an_emulated_repeat() {
    let access = PortAccess {
        port: 0x60,
        size: 1,
        write: false,
        string: true,
    };
    let mut m = machine(&[at(0, Exit::Port(access)), at(0, Exit::Port(access))]);
    m.memory.put(u64::from(CODE), &[0xf3, 0x6c]); // rep insb
    m.vcpu.state.rflags |= Rflags::TF;
    m.vcpu.state.gprs[Gpr::Rdi] = 0x6000;
    m.vcpu.state.gprs[Gpr::Rcx] = 2;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(faults(&m), [vector::DB, vector::DB]);
    // The second iteration ends the instruction.
    assert_eq!(
        (m.vcpu.state.rip, m.vcpu.state.icount),
        (u64::from(CODE) + 2, 1)
    );
    assert_eq!(m.vcpu.state.gprs[Gpr::Rcx], 0);
}

#[test]
fn breakpoints_on_ports_trap_behind_the_access() {
    for (port, size, de, hits) in [
        (0x80, 1, true, 1),
        (0x7f, 2, true, 1),
        (0x81, 1, true, 0),
        (0x80, 1, false, 0),
    ] {
        let access = PortAccess {
            port,
            size,
            write: true,
            string: false,
        };
        let set = Exit::WriteDr {
            dr: 7,
            register: Gpr::Rbx,
        };
        let mut m = machine(&[at(0, set), at(0, Exit::Port(access))]);
        m.vcpu.state.gprs[Gpr::Rbx] = 0x0002_0001; // DR0, one byte, I/O
        m.vcpu.state.debug.dr[0] = 0x80;
        m.vcpu.state.control.cr4.set(Cr4::DE, de);
        m.run(&mut TestHost::default(), 1000);
        assert_eq!(
            m.vcpu.state.debug.dr6 & 0xf,
            hits,
            "port {port:#x}, DE {de}"
        );
        assert_eq!(faults(&m).len() as u64, hits);
        assert_eq!(m.vcpu.state.icount, 2);
    }
}

#[test]
fn intercepted_exceptions_are_reflected() {
    let event = Event::exception_with_code(vector::AC, 0);
    let m = one(Exit::Exception { event, dr6: 0 }, &[]);
    assert_eq!(m.vcpu.delivered, [(0, event)]);
    let m = one(
        Exit::Exception {
            event: Event::exception(vector::DB),
            dr6: 0x4001,
        },
        &[],
    );
    assert_eq!(m.vcpu.state.debug.dr6, 0xffff_4ff1);
}

#[test]
fn ports_where_nothing_is_read_ones_and_are_counted() {
    let access = PortAccess {
        port: 0x80,
        size: 2,
        write: false,
        string: false,
    };
    let m = one(Exit::Port(access), &[(Gpr::Rax, 0x1111_1111)]);
    assert_eq!(m.vcpu.state.gprs[Gpr::Rax], 0x1111_ffff);
    assert_eq!(m.board.unclaimed(), 1);
}

#[test]
fn a_raised_interrupt_is_delivered_exactly_at_its_point() {
    let (delay, set_delay) = out(spec::DELAY_PORT, 10);
    let (raise, set_raise) = out(spec::EVENT_PORT, 0x41);
    let mut m = machine(&[at(3, delay), at(0, raise), at(100, Exit::Hlt)]);
    m.vcpu.state.rflags |= Rflags::IF;
    let mut host = TestHost::default();
    // The script has no instructions that load EAX, so the test does between the exits.
    m.vcpu.state.gprs[Gpr::Rax] = set_delay[0].1;
    let rest: Vec<_> = m.vcpu.script.drain(1..).collect();
    m.run(&mut host, 1000);
    m.vcpu.state.gprs[Gpr::Rax] = set_raise[0].1;
    m.vcpu.script.extend(rest);
    assert_eq!(m.run(&mut host, 1000), Some(Stop::Halted));
    // 3 instructions, two OUTs, then ten more.
    assert_eq!(m.vcpu.delivered, [(15, Event::interrupt(0x41))]);
    assert_eq!(m.stats.count(Reason::Landed), 1);
}

#[test]
fn a_masked_interrupt_waits_for_its_window() {
    let (raise, set) = out(spec::EVENT_PORT, 0x41);
    let mut m = machine(&[at(0, raise)]);
    m.vcpu.state.gprs[Gpr::Rax] = set[0].1;
    let mut host = TestHost::default();
    m.run(&mut host, 1000);
    assert_eq!(m.vcpu.wanted, [Window::Interrupt]);
    assert!(m.vcpu.delivered.is_empty());
    m.vcpu.state.rflags |= Rflags::IF;
    m.vcpu.script.push_back(at(5, Exit::Cpuid));
    m.run(&mut host, 1000);
    assert_eq!(m.vcpu.delivered, [(1, Event::interrupt(0x41))]);
    assert!(m.vcpu.wanted.is_empty());
    assert_eq!(m.board.pending(Icount(100)), Pending::default());
}

#[test]
fn a_window_that_nothing_waits_for_any_more_is_withdrawn() {
    let (raise, set) = out(spec::EVENT_PORT, spec::EVENT_NMI);
    let mut m = machine(&[at(0, raise)]);
    m.vcpu.state.gprs[Gpr::Rax] = set[0].1;
    m.vcpu.state.shadow = Shadow::NMI;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(m.vcpu.wanted, [Window::Nmi]);
    // An interrupt takes the place of the NMI, ...
    m.vcpu.state.gprs[Gpr::Rax] = 0x41;
    m.vcpu.script.push_back(at(0, raise));
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(m.vcpu.wanted, [Window::Interrupt]);
    // ... and then something that lies far ahead.
    let (delay, _) = out(spec::DELAY_PORT, 0);
    m.vcpu.state.gprs[Gpr::Rax] = 1000;
    m.vcpu.script.extend([at(0, delay), at(0, raise)]);
    m.run(&mut TestHost::default(), 1000);
    assert!(m.vcpu.wanted.is_empty());
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let (raise, set) = out(spec::EVENT_PORT, 0x41);
    let mut m = machine(&[at(0, raise), at(0, Exit::Cpuid)]);
    m.vcpu.state.gprs[Gpr::Rax] = set[0].1;
    m.vcpu.state.rflags |= Rflags::IF;
    m.board.set_task_priority(4);
    m.run(&mut TestHost::default(), 1000);
    assert!(m.vcpu.delivered.is_empty());
    m.board.set_task_priority(3);
    m.vcpu.script.push_back(at(0, Exit::Cpuid));
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(m.vcpu.delivered.len(), 1);
}

#[test]
fn halt_without_anything_to_wait_for_ends_the_guest() {
    let m = one(Exit::Hlt, &[]);
    assert_eq!(m.stop, Some(Stop::Halted));
}

#[test]
fn halt_is_left_by_an_interrupt_but_not_with_interrupts_off() {
    let (raise, set) = out(spec::EVENT_PORT, 0x41);
    for enabled in [true, false] {
        let mut m = machine(&[at(0, raise), at(0, Exit::Hlt), at(0, Exit::Cpuid)]);
        m.vcpu.state.gprs[Gpr::Rax] = set[0].1;
        let rest: Vec<_> = m.vcpu.script.drain(1..).collect();
        m.run(&mut TestHost::default(), 1000);
        m.vcpu.script.extend(rest);
        m.vcpu.state.rflags.set(Rflags::IF, enabled);
        // With interrupts on it is delivered before HLT; give HLT another one to wait for.
        m.run(&mut TestHost::default(), 1000);
        let expected = Some(Stop::Halted);
        assert_eq!(m.stop, expected);
        assert_eq!(m.vcpu.delivered.len(), usize::from(enabled));
    }
}

#[test]
fn device_memory_and_what_lies_outside() {
    let fault = |gpa: u64, write, execute, in_page_walk| {
        Exit::NestedFault(NestedFault {
            gpa: Gpa(gpa),
            write,
            execute,
            in_page_walk,
        })
    };
    let mut m = machine(&[at(0, fault(spec::SCRATCH + 4, true, false, false))]);
    m.memory.put(u64::from(CODE), &[0x89, 0x43, 0x04]); // mov [ebx+4], eax
    m.vcpu.state.gprs[Gpr::Rbx] = spec::SCRATCH;
    m.vcpu.state.gprs[Gpr::Rax] = 0x1234;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(
        m.board
            .bus(&mut TestHost::default(), &mut Door::default(), Icount(0))
            .read(Gpa(spec::SCRATCH + 4), 4),
        0x1234
    );
    assert_eq!(
        (m.vcpu.state.rip, m.vcpu.state.icount),
        (u64::from(CODE) + 3, 1)
    );
    let m = one(fault(0xe000_0000, false, true, false), &[]);
    assert_eq!(faults(&m), [vector::UD], "fetching from nothing");
    let m = one(fault(0xe000_0000, false, false, true), &[]);
    assert_eq!(m.stop, Some(Stop::TableNotInRam(Gpa(0xe000_0000))));
}

#[test]
fn what_cannot_go_on_stops_with_its_reason() {
    for (exit, stop) in [
        (Exit::TripleFault, Stop::TripleFault),
        (
            Exit::TaskSwitch { selector: 8 },
            Stop::TaskSwitch { selector: 8 },
        ),
        (Exit::EntryRefused { reason: "x" }, Stop::EntryRefused("x")),
        (
            Exit::Unexpected {
                code: 1,
                qualification: 2,
            },
            Stop::Unexpected {
                code: 1,
                qualification: 2,
            },
        ),
    ] {
        let m = one(exit, &[]);
        assert_eq!(m.stop, Some(stop));
        assert!(stop.wants_dump());
    }
}

#[test]
fn the_exit_port_ends_the_guest_and_flushes_its_line() {
    let (exit, set) = out(spec::EXIT_PORT, 3);
    let console = PortAccess {
        port: 0xe9,
        size: 1,
        write: true,
        string: false,
    };
    let mut m = machine(&[at(0, Exit::Port(console))]);
    m.vcpu.state.gprs[Gpr::Rax] = u64::from(b'x');
    let mut host = TestHost::default();
    m.run(&mut host, 1000);
    m.vcpu.state.gprs[Gpr::Rax] = set[0].1;
    m.vcpu.script.push_back(at(0, exit));
    assert_eq!(m.run(&mut host, 1000), Some(Stop::ExitStatus(3)));
    assert_eq!(host.lines, ["test| x"]);
    assert!(!Stop::ExitStatus(3).is_success());
}

#[test]
fn the_instruction_limit_is_a_point_like_any_other() {
    let mut m = machine(&[at(1_000_000, Exit::Cpuid)]);
    m.limit = Icount(1234);
    assert_eq!(
        m.run(&mut TestHost::default(), 1000),
        Some(Stop::InstructionLimit)
    );
    assert_eq!(m.vcpu.state.icount, 1234);
}

#[test]
fn a_circle_of_exceptions_reaches_the_limit_of_exits_without_an_instruction() {
    let event = Event::exception_with_code(vector::AC, 0);
    let circle = at(0, Exit::Exception { event, dr6: 0 });
    let mut m = machine(&[circle; 3 * MAX_EXITS_PER_SLICE as usize]);
    m.exit_limit = 5000;
    let mut host = TestHost::default();
    let slices = (0..).find(|_| m.run(&mut host, 1000).is_some());
    assert_eq!((m.stop, slices), (Some(Stop::ExitLimit), Some(2)));
    assert_eq!(m.vcpu.state.icount, 0);
}

#[test]
fn a_page_fault_of_an_emulated_instruction_sets_cr2() {
    let access = PortAccess {
        port: 0x60,
        size: 1,
        write: false,
        string: true,
    };
    let mut m = machine(&[at(0, Exit::Port(access))]);
    m.vcpu.state.control.cr0 |= Cr0::PG;
    m.vcpu.state.control.cr3 = 0x1000;
    m.vcpu.state.control.cr4 = Cr4::PSE;
    m.memory.put_u32(0x1000, 0x83);
    m.memory.put(u64::from(CODE), &[0x6c]); // insb
    m.vcpu.state.gprs[Gpr::Rdi] = 0x40_0123;
    m.run(&mut TestHost::default(), 1000);
    assert_eq!(m.vcpu.state.control.cr2, 0x40_0123);
    assert_eq!(
        m.vcpu.delivered,
        [(0, Event::exception_with_code(vector::PF, 2))]
    );
    assert_eq!(m.vcpu.state.icount, 0);
}

#[test]
fn invlpg_reaches_the_processor() {
    let m = one(Exit::Invlpg { gva: Gva(0x5000) }, &[]);
    assert_eq!(m.vcpu.invalidated, [Gva(0x5000)]);
    assert_eq!(m.vcpu.state.segments[SegmentName::Cs].selector, 8);
}
