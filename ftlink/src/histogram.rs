//! Distributions of what is measured all the time, in fixed memory: buckets of at most an eighth of
//! their value.

/// Buckets of equal width in each doubling.
const STEPS: u64 = 8;
const STEP_BITS: u32 = 3;
/// Values from here on share the last bucket.
const LARGEST_BITS: u32 = 40;
const BUCKETS: usize = (STEPS as usize) * (LARGEST_BITS - STEP_BITS + 1) as usize;

/// What is shown of a distribution. Quantiles are at most an eighth too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figure {
    /// The value measured last.
    pub current: u64,
    /// Half of the values are no larger.
    pub p50: u64,
    /// 99 of 100 values are no larger.
    pub p99: u64,
    /// The largest value, exactly.
    pub max: u64,
    /// Values measured.
    pub count: u64,
}

/// A distribution of values.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    count: u64,
    current: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            count: 0,
            current: 0,
            max: 0,
        }
    }
}

const fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    let index = STEPS * (shift as u64 + 1) + ((value >> shift) & (STEPS - 1));
    if index < BUCKETS as u64 {
        index as usize
    } else {
        BUCKETS - 1
    }
}

/// The largest value of a bucket.
const fn largest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((STEPS + bucket % STEPS + 1) << shift) - 1
}

impl Histogram {
    /// A value was measured.
    pub fn record(&mut self, value: u64) {
        let count = &mut self.counts[bucket(value)];
        *count = count.saturating_add(1);
        self.count += 1;
        self.current = value;
        self.max = self.max.max(value);
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// What is shown of it; all zero if nothing was measured.
    #[must_use]
    pub fn figure(&self) -> Figure {
        Figure {
            current: self.current,
            p50: self.quantile(50),
            p99: self.quantile(99),
            max: self.max,
            count: self.count,
        }
    }

    /// The value that `percent` of 100 do not exceed.
    fn quantile(&self, percent: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(percent)).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank && seen > 0 {
                return largest(index).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn every_value_falls_into_the_bucket_that_ends_above_it() {
        for index in 1..BUCKETS - 1 {
            assert_eq!(bucket(largest(index)), index);
            assert_eq!(bucket(largest(index - 1) + 1), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(Histogram::default().figure(), Figure::default());
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_values_and_at_most_an_eighth_above(
            values in prop::collection::vec(0u64..1 << 36, 1..300), shift in 0u32..30,
        ) {
            let values: Vec<u64> = values.into_iter().map(|value| value >> shift).collect();
            let mut histogram = Histogram::default();
            for value in &values {
                histogram.record(*value);
            }
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let figure = histogram.figure();
            prop_assert_eq!(Some(&figure.max), sorted.last());
            prop_assert_eq!(Some(&figure.current), values.last());
            for (percent, shown) in [(50, figure.p50), (99, figure.p99)] {
                let exact = sorted[(sorted.len() * percent).div_ceil(100) - 1];
                prop_assert!(shown >= exact && shown <= exact + exact / 8, "{} {}", shown, exact);
            }
        }
    }
}
