//! What the daemon counts, and the Prometheus text of it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Datagrams received.
    pub received: AtomicU64,
    /// Datagrams that are no request of this version.
    pub malformed: AtomicU64,
    /// Requests for a pair that is not configured.
    pub unknown_pair: AtomicU64,
    /// Requests that did not open with their pair's key.
    pub unauthenticated: AtomicU64,
    /// Queries answered.
    pub known: AtomicU64,
    /// Requests granted, repeated answers included.
    pub granted: AtomicU64,
    /// Requests denied, repeated answers included.
    pub denied: AtomicU64,
    /// Requests without a verdict.
    pub refused: AtomicU64,
    /// Failures to read or write a record.
    pub store_errors: AtomicU64,
    /// Records written.
    pub writes: AtomicU64,
    /// Replies that could not be sent.
    pub send_errors: AtomicU64,
}

/// Counts one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    /// The counters as Prometheus text.
    #[must_use]
    pub fn text(&self) -> String {
        let Metrics {
            received,
            malformed,
            unknown_pair,
            unauthenticated,
            known,
            granted,
            denied,
            refused,
            store_errors,
            writes,
            send_errors,
        } = self;
        let mut text = String::new();
        let counters = [
            ("received", "Datagrams received.", received),
            ("malformed", "Datagrams that are no request.", malformed),
            (
                "unknown_pair",
                "Requests for an unknown pair.",
                unknown_pair,
            ),
            (
                "unauthenticated",
                "Requests that did not open.",
                unauthenticated,
            ),
            ("queries", "Queries answered.", known),
            ("granted", "Requests granted.", granted),
            ("denied", "Requests denied.", denied),
            ("refused", "Requests without a verdict.", refused),
            ("store_errors", "Failures of the store.", store_errors),
            ("writes", "Records written.", writes),
            ("send_errors", "Replies not sent.", send_errors),
        ];
        for (name, help, counter) in counters {
            let value = counter.load(Ordering::Relaxed);
            let full = format!("duet_witness_{name}_total");
            let written = writeln!(
                text,
                "# HELP {full} {help}\n# TYPE {full} counter\n{full} {value}"
            );
            debug_assert!(written.is_ok(), "a string takes everything");
        }
        text
    }
}
