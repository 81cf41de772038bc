//! The vendor choice: which back end runs the guests, and whether its instruction counter is proven.
//!
//! `vmx` and `svm` are the same file by file. Above this module nobody knows which one runs.

mod nested;
mod proof;
pub mod svm;
mod trial;
pub mod vmx;

use core::fmt;

use vmm::config::Test;
use vmm::cpu::{CounterKind, Exit, Icount, Vcpu};
use vmm::pmu::Skid;
use vmm::pmu::landing::Passed;
use vmm::{random_state, selftest};

use crate::guest_ram::GuestRam;

/// What a vendor's back end offers the rest of the host.
pub trait Backend {
    /// Its name in the log.
    const NAME: &'static str;
    /// Its virtual processor.
    type Vcpu: Vcpu<Memory = GuestRam>;
    /// Why a virtual processor could not be made.
    type NewError: fmt::Display;

    /// A virtual processor in the state after power-on.
    ///
    /// # Errors
    ///
    /// No memory, or the processor has no identifier left for it.
    fn new_vcpu(&self) -> Result<Self::Vcpu, Self::NewError>;

    /// Measures whether instructions can be counted in this way here. Virtual processors made from now on do so; without
    /// success they count exits, as before.
    ///
    /// # Errors
    ///
    /// Why they cannot.
    fn calibrate(&mut self, way: CounterKind) -> Result<(), Uncounted<Self::NewError>>;

    /// Virtual processors made from now on count exits instead of instructions.
    fn reject_counter(&mut self);

    /// Virtual processors made from now on stop early by this, and step the rest.
    fn set_skid(&mut self, skid: Option<Skid>);

    /// Makes the calibrated cost of an entry wrong by `ticks`, for the test that a wrong counter is
    /// noticed.
    fn skew_counter(&mut self, ticks: i64);
}

/// Why instructions cannot be counted in a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncounted<E> {
    /// A guest that was to be measured could not be made.
    New(E),
    /// The processor has no such counter, or it is not exact.
    Because(&'static str),
}

impl<E> From<E> for Uncounted<E> {
    fn from(error: E) -> Self {
        Self::New(error)
    }
}

impl<E: fmt::Display> fmt::Display for Uncounted<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(error) => error.fmt(f),
            Self::Because(reason) => f.write_str(reason),
        }
    }
}

/// The ways to count instructions, the best first, and their names in the log.
const WAYS: [(CounterKind, &str); 2] = [
    (CounterKind::Tsc, "time-stamp counter"),
    (CounterKind::Pmu, "performance counter"),
];

/// The back end of this processor.
pub enum Vendor {
    /// Intel.
    Vmx(vmx::Vmx),
    /// AMD.
    Svm(svm::Svm),
}

/// Why this host cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The processor has VT-x, but not as it is needed.
    Vmx(vmx::Unsupported),
    /// The processor has SVM, but not as it is needed.
    Svm(svm::Unsupported),
    /// The processor has neither.
    Neither,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(error) => error.fmt(f),
            Self::Svm(error) => error.fmt(f),
            Self::Neither => f.write_str("the processor has neither VT-x nor SVM"),
        }
    }
}

impl Vendor {
    /// Chooses the vendor and switches its extension on.
    ///
    /// # Errors
    ///
    /// What the processor lacks.
    pub fn enable() -> Result<Self, Unsupported> {
        match (vmx::Vmx::detect(), svm::Svm::detect()) {
            (Ok(_), _) => vmx::Vmx::enable().map(Self::Vmx).map_err(Unsupported::Vmx),
            (_, Ok(_)) => svm::Svm::enable().map(Self::Svm).map_err(Unsupported::Svm),
            (Err(vmx::Unsupported::NoVmx), Err(svm::Unsupported::NoSvm)) => {
                Err(Unsupported::Neither)
            }
            (Err(vmx::Unsupported::NoVmx), Err(error)) => Err(Unsupported::Svm(error)),
            (Err(error), _) => Err(Unsupported::Vmx(error)),
        }
    }
}

/// Tries the ways to count instructions, the best first, and lets each prove itself; takes it away if it cannot. `test`
/// can make it wrong on purpose, and landings stepped.
pub fn prove_counter<B: Backend>(backend: &mut B, test: &Test, seed: u64) {
    for (way, name) in WAYS {
        if let Err(reason) = backend.calibrate(way) {
            log::info!("counter: not the {name}: {reason}");
            continue;
        }
        backend.skew_counter(test.counter_skew);
        backend.set_skid(Skid::new(test.skid, seed));
        match proof(backend, seed) {
            Ok(proof) => {
                log::info!(
                    "counter: exact, proven on {} instructions with {} landings: the {name}",
                    proof.instructions,
                    proof.landings
                );
                return;
            }
            Err(reason) => {
                log::error!("counter: rejected by the self-test: the {name}: {reason}");
            }
        }
        backend.reject_counter();
    }
    backend.reject_counter();
    backend.set_skid(None);
    log::warn!("counter: none is exact; events are delivered at deterministic exits only");
}

/// The exit of a guest that a performance counter has let run past where it was to land.
#[cold]
fn passed_exit(Passed { target, at }: Passed) -> Exit {
    /// No reason of a processor's.
    const PASSED: u64 = 1 << 32;
    log::error!(
        "counter: passed {:?} and stopped at {:?}: this processor's margin is too small",
        Icount(target),
        Icount(at)
    );
    Exit::Unexpected {
        code: PASSED,
        qualification: at,
    }
}

fn proof<B: Backend>(backend: &B, seed: u64) -> Result<selftest::Proof, Failure<B::NewError>> {
    let mut memory = GuestRam::new(selftest::MEMORY_BYTES).map_err(|_| Failure::NoMemory)?;
    let mut vcpu = backend.new_vcpu().map_err(Failure::New)?;
    selftest::prove(&mut vcpu, &mut memory, &proof::programs(), seed).map_err(Failure::Rejected)
}

/// Runs a virtual processor in random states; that the host survives is the point.
pub fn try_random_states<B: Backend>(backend: &B, count: u64) {
    // Always the same states: a failure can be repeated.
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let (Ok(mut memory), Ok(mut vcpu)) = (
        GuestRam::new(random_state::MEMORY_BYTES),
        backend.new_vcpu(),
    ) else {
        log::error!("random states: no memory for them");
        return;
    };
    match random_state::try_states(&mut vcpu, &mut memory, count, SEED) {
        Ok(outcome) => log::info!(
            "random states: {} entered, {} refused, {} exits",
            outcome.entered,
            outcome.refused,
            outcome.exits
        ),
        Err(_) => log::error!("random states: too little memory"),
    }
}

/// Why a proof came to nothing.
enum Failure<E> {
    NoMemory,
    New(E),
    Rejected(selftest::Rejection),
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoMemory => f.write_str("no memory for it"),
            Failure::New(error) => error.fmt(f),
            Failure::Rejected(reason) => reason.fmt(f),
        }
    }
}
