//! The time-stamp counter in all its forms.
//!
//! Broken by: time that goes backwards between RDTSC, RDTSCP and MSR 0x10, a counter that stands still, values
//! whose upper halves are wrong, TSD ignored.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use guests::check::{self, Group};
use guests::cpu::{self, msr};
use guests::state::{RAX, RDX, State};
use guests::{idt, snippet, user};

snippet!(rdtsc, rdtsc_at, [], ["rdtsc"]);
snippet!(user_rdtsc, user_rdtsc_at, [], ["rdtsc", "int 0x80"]);

fn run() {
    let has_rdtscp = cpu::has_extended_d(27);
    // TCG alone reads 0 from the MSR.
    let has_msr = cpu::on_duet() || !cpu::is_tcg();
    let mut group = Group::new("the counter moves forward");
    let mut last = cpu::rdtsc();
    for round in 0..2000 {
        let now = match round % 4 {
            1 if has_rdtscp => cpu::rdtscp().0,
            2 if has_msr => cpu::rdmsr(msr::TSC),
            _ => cpu::rdtsc(),
        };
        group.that(round, now > last, format_args!("{now:#x} behind {last:#x}"));
        last = now;
        if round % 7 == 0 {
            cpu::cpuid(0, 0);
        }
    }
    group.done();
    let mut state = State {
        gprs: [!0; 16],
        rflags: 2,
    };
    // SAFETY: RDTSC and RET.
    unsafe { state.run(rdtsc as *const () as u64) };
    check::equal(
        "upper halves are cleared",
        (state.gprs[RAX] | state.gprs[RDX]) >> 32,
        0,
    );
    if has_rdtscp {
        let mut group = Group::new("TSC_AUX");
        for value in [0, 7, 0xffff_ffff] {
            // SAFETY: a number for RDTSCP only.
            unsafe { cpu::wrmsr(msr::TSC_AUX, value) };
            group.equal("rdtscp", u64::from(cpu::rdtscp().1), value);
            group.equal("rdmsr", cpu::rdmsr(msr::TSC_AUX), value);
        }
        group.done();
        // SAFETY: refused, or the upper half is dropped (processors differ).
        let got = idt::catch(|| unsafe { cpu::wrmsr(msr::TSC_AUX, 1 << 32) });
        check::that("TSC_AUX bit 32", got.is_none_or(|f| f.vector == 13), got);
    } else {
        check::skip("RDTSCP", "not offered");
        let got = idt::catch(|| {
            cpu::rdtscp();
        });
        check::that(
            "RDTSCP is #UD",
            !cpu::on_duet() || got.is_some_and(|f| f.vector == 6),
            got,
        );
    }
    time_stamp_disable();
}

/// CR4.TSD: ring 3 may not read the counter.
fn time_stamp_disable() {
    let entry = user_rdtsc as *const () as u64;
    check::that("ring 3 reads the counter", user::run(entry, 0).is_ok(), ());
    let cr4 = cpu::cr4();
    // SAFETY: concerns ring 3 only.
    unsafe { cpu::set_cr4(cr4 | 4) };
    let got = user::run(entry, 0).err();
    check::fault(
        "RDTSC in ring 3 with TSD",
        got,
        13,
        0,
        user_rdtsc_at as *const () as u64,
    );
    let now = cpu::rdtsc();
    check::that("RDTSC in ring 0 with TSD", now > 0, now);
    // SAFETY: as it was.
    unsafe { cpu::set_cr4(cr4) };
}

guests::main!(run);
