//! One line per check, and the count of failures.

use core::fmt::{Debug, LowerHex};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::idt::Fault;
use crate::{console, println};

static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Number of checks that failed so far.
pub fn failures() -> u32 {
    FAILURES.load(Relaxed)
}

/// Ends the guest; the status is the number of failures.
pub fn finish() -> ! {
    let failures = failures();
    if failures == 0 {
        println!("all checks passed");
    } else {
        println!("{failures} checks failed");
    }
    console::exit(failures)
}

/// Counts and reports a failure in free words.
pub fn fail(name: &str, what: core::fmt::Arguments<'_>) {
    FAILURES.fetch_add(1, Relaxed);
    println!("FAIL {name}: {what}");
}

/// Reports a check that this machine cannot be asked.
pub fn skip(name: &str, why: &str) {
    println!("skip {name}: {why}");
}

/// Compares two values.
pub fn equal<T: PartialEq + LowerHex>(name: &str, got: T, want: T) {
    if got == want {
        println!("ok {name}");
    } else {
        fail(name, format_args!("got {got:#x} want {want:#x}"));
    }
}

/// A condition; `got` is shown when it does not hold.
pub fn that<T: Debug>(name: &str, holds: bool, got: T) {
    if holds {
        println!("ok {name}");
    } else {
        fail(name, format_args!("got {got:x?}"));
    }
}

/// No fault was expected.
pub fn no_fault(name: &str, got: Option<Fault>) {
    match got {
        None => println!("ok {name}"),
        Some(fault) => fail(name, format_args!("got {fault} want no fault")),
    }
}

/// A fault with this vector and error code (0 for exceptions that have none) at this RIP.
pub fn fault(name: &str, got: Option<Fault>, vector: u8, error: u64, rip: u64) {
    match got {
        Some(f) if f.vector == vector && f.error == error && f.rip == rip => println!("ok {name}"),
        Some(f) => fail(
            name,
            format_args!("got {f} want vector {vector} error {error:#x} rip {rip:#x}"),
        ),
        None => fail(name, format_args!("got no fault want vector {vector}")),
    }
}

/// A fault with this vector and error code, wherever it happened.
pub fn fault_anywhere(name: &str, got: Option<Fault>, vector: u8, error: u64) {
    let rip = got.map_or(0, |f| f.rip);
    fault(name, got, vector, error, rip);
}

/// As [`fault`], for a check that QEMU's TCG is known not to make: there, anything else makes the line
/// say `skip`.
pub fn fault_unless_tcg(name: &str, got: Option<Fault>, vector: u8, error: u64, rip: u64) {
    let expected = got.is_some_and(|f| f.vector == vector);
    if !expected && crate::cpu::is_tcg() {
        skip(name, "TCG does otherwise");
    } else {
        fault(name, got, vector, error, rip);
    }
}

/// Many comparisons that share one line; the first mismatch is shown.
pub struct Group {
    name: &'static str,
    count: u32,
    failed: u32,
}

impl Group {
    /// A group of this name.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            count: 0,
            failed: 0,
        }
    }

    /// Compares two values; `what` says which.
    pub fn equal<W: Debug, T: PartialEq + LowerHex>(&mut self, what: W, got: T, want: T) {
        self.that(
            what,
            got == want,
            format_args!("got {got:#x} want {want:#x}"),
        );
    }

    /// A condition; `detail` is shown when it does not hold.
    pub fn that<W: Debug, D: core::fmt::Display>(&mut self, what: W, holds: bool, detail: D) {
        self.count += 1;
        if !holds {
            self.failed += 1;
            if self.failed <= 3 {
                println!("  {} {what:?}: {detail}", self.name);
            }
        }
    }

    /// Prints the group's line.
    pub fn done(self) {
        if self.failed == 0 {
            println!("ok {} ({} cases)", self.name, self.count);
        } else {
            fail(
                self.name,
                format_args!("{} of {} cases differ", self.failed, self.count),
            );
        }
    }
}
