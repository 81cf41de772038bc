//! Frequencies of the time-stamp counter and the LAPIC timer from measurements against known clocks.
//!
//! Several clocks are measured where there are several; one that disagrees with the others is found out.

use core::fmt;

/// A clock of known frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// High precision event timer (IA-PC HPET specification 1.0a, 2.3.7).
    Hpet,
    /// ACPI power management timer (ACPI 6.4, 4.8.3.3).
    PmTimer,
    /// Channel 2 of the 8254 timer.
    Pit,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reference::Hpet => "HPET",
            Reference::PmTimer => "PM timer",
            Reference::Pit => "PIT",
        })
    }
}

/// Frequency of the PM timer, in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Frequency of the 8254, in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Slowest and fastest credible time-stamp counter, in Hz; an emulator's may be slow.
const TSC_HZ: core::ops::RangeInclusive<u64> = 1_000_000..=10_000_000_000;

/// How far two clocks may disagree before it is worth a warning, in parts per million.
pub const TOLERANCE_PPM: u64 = 10_000;

/// Ticks counted while a reference clock ran for a known time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Which clock.
    pub reference: Reference,
    /// Time by that clock, in nanoseconds.
    pub elapsed_ns: u64,
    /// Time-stamp counter ticks.
    pub tsc: u64,
    /// LAPIC timer ticks at divide 1.
    pub lapic: u64,
}

impl Measurement {
    fn per_second(&self, ticks: u64) -> u64 {
        if self.elapsed_ns == 0 {
            return 0;
        }
        let exact = u128::from(ticks) * 1_000_000_000 / u128::from(self.elapsed_ns);
        u64::try_from(exact).unwrap_or(u64::MAX)
    }

    /// Time-stamp counter ticks per second.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        self.per_second(self.tsc)
    }

    /// LAPIC timer ticks per second.
    #[must_use]
    pub fn lapic_hz(&self) -> u64 {
        self.per_second(self.lapic)
    }
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The clock believed.
    pub reference: Reference,
    /// Time-stamp counter ticks per second.
    pub tsc_hz: u64,
    /// LAPIC timer ticks per second.
    pub lapic_hz: u64,
    /// Largest disagreement of another clock, in parts per million.
    pub spread_ppm: u64,
}

/// No clock gave a usable measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoReference;

/// Chooses among measurements given in order of preference: the first, or with three or more the one whose
/// TSC frequency is the median.
///
/// # Errors
///
/// None is credible.
pub fn choose(measurements: &[Measurement]) -> Result<Calibration, NoReference> {
    let mut credible = [None; 4];
    let usable = |m: &&Measurement| TSC_HZ.contains(&m.tsc_hz()) && m.lapic != 0;
    let mut count = 0;
    for (slot, found) in credible.iter_mut().zip(measurements.iter().filter(usable)) {
        *slot = Some(*found);
        count += 1;
    }
    let found = || credible.iter().flatten();
    let rank = |m: &Measurement| found().filter(|other| other.tsc_hz() < m.tsc_hz()).count();
    let median = found().find(|m| count >= 3 && rank(m) == count / 2);
    let chosen = median.or_else(|| found().next()).ok_or(NoReference)?;
    let difference = |m: &Measurement| m.tsc_hz().abs_diff(chosen.tsc_hz());
    let spread = found().map(difference).max().unwrap_or(0);
    Ok(Calibration {
        reference: chosen.reference,
        tsc_hz: chosen.tsc_hz(),
        lapic_hz: chosen.lapic_hz(),
        spread_ppm: spread.saturating_mul(1_000_000) / chosen.tsc_hz(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(reference: Reference, tsc: u64) -> Measurement {
        Measurement {
            reference,
            elapsed_ns: 10_000_000,
            tsc,
            lapic: 1_000_000,
        }
    }

    #[test]
    fn one_clock_is_believed() {
        let result = choose(&[measured(Reference::Pit, 24_000_000)]).unwrap();
        assert_eq!(result.tsc_hz, 2_400_000_000);
        assert_eq!(result.lapic_hz, 100_000_000);
        assert_eq!(result.spread_ppm, 0);
    }

    #[test]
    fn of_three_clocks_the_wrong_one_is_outvoted_and_reported() {
        let result = choose(&[
            measured(Reference::Hpet, 48_000_000),
            measured(Reference::PmTimer, 24_001_000),
            measured(Reference::Pit, 24_000_000),
        ])
        .unwrap();
        assert_eq!(result.reference, Reference::PmTimer);
        assert!(result.spread_ppm > TOLERANCE_PPM);
    }

    #[test]
    fn of_two_clocks_the_preferred_one_is_taken() {
        let pair = [
            measured(Reference::Hpet, 24_000_000),
            measured(Reference::Pit, 24_012_000),
        ];
        let result = choose(&pair).unwrap();
        assert_eq!(result.reference, Reference::Hpet);
        assert_eq!(result.spread_ppm, 500);
    }

    #[test]
    fn standing_and_racing_counters_are_not_credible() {
        let mut broken = measured(Reference::Hpet, 0);
        assert_eq!(choose(&[broken]), Err(NoReference));
        broken.tsc = u64::MAX;
        assert_eq!(choose(&[broken]), Err(NoReference));
        broken.tsc = 24_000_000;
        broken.lapic = 0;
        assert_eq!(choose(&[broken]), Err(NoReference));
        broken.elapsed_ns = 0;
        assert_eq!(choose(&[broken, broken]), Err(NoReference));
        let good = measured(Reference::Pit, 24_000_000);
        assert_eq!(choose(&[broken, good]).unwrap().reference, Reference::Pit);
    }
}
