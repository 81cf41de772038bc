//! What a frame costs, of the host's own counters.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::{COMPARED, missed};
use crate::serial;

/// The most host instructions for a frame that Duet aims at.
const INSTRUCTIONS: f64 = 4000.0;
/// The exits for a frame that it aims at staying below.
const EXITS: f64 = 1.0;

/// What a host has counted until its guest was off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    /// Frames that its card has received.
    received: f64,
    /// Frames that it has sent.
    sent: f64,
    /// Exits of the guest.
    exits: f64,
    /// Instructions of the host: what was neither the guest's nor spent waiting.
    host: f64,
    /// Frames lost at the card, in either direction.
    dropped: f64,
}

impl Counters {
    /// Finds them in what the host has said.
    pub(super) fn of(said: &str) -> Result<Self> {
        let card = |key| value(said, "nic", key);
        let exits = said
            .lines()
            .filter_map(|line| serial::field(line, "exits", "count"))
            .map(|count| {
                count
                    .parse::<f64>()
                    .with_context(|| format!("count={count}"))
            })
            .sum::<Result<f64>>()?;
        let guest = value(said, "guest", "instructions")?;
        Ok(Self {
            received: card("received")?,
            sent: card("sent")?,
            exits,
            host: value(said, "network", "ticks")? - value(said, "network", "waited")? - guest,
            dropped: card("receive_drops")? + card("transmit_drops")?,
        })
    }

    fn map(self, other: Self, with: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            received: with(self.received, other.received),
            sent: with(self.sent, other.sent),
            exits: with(self.exits, other.exits),
            host: with(self.host, other.host),
            dropped: with(self.dropped, other.dropped),
        }
    }

    /// What these are more than those of a start without work.
    pub(super) fn since(self, without: Self) -> Self {
        self.map(without, |with, without| with - without)
    }

    fn frames(self) -> f64 {
        self.received + self.sent
    }
}

/// The value of `key` in the only line of this kind.
fn value(said: &str, kind: &str, key: &str) -> Result<f64> {
    let text = said
        .lines()
        .find_map(|line| serial::field(line, kind, key))
        .with_context(|| format!("the host does not say {kind}| {key}="))?;
    text.parse()
        .with_context(|| format!("{kind}| {key}={text}"))
}

/// The round in the middle, by what the host did.
pub(super) fn median(rounds: &[Counters]) -> Counters {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.host.total_cmp(&b.host));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The cost of a received and of a sent frame, of two loads with different shares of them; `None` if the shares are too much
/// alike.
fn each(load: Counters, other: Counters) -> Option<(f64, f64)> {
    let determinant = load.received * other.sent - load.sent * other.received;
    let scale = load.frames() * other.frames();
    (determinant.abs() > scale / 20.0).then(|| {
        (
            (load.host * other.sent - load.sent * other.host) / determinant,
            (load.received * other.host - load.host * other.received) / determinant,
        )
    })
}

/// A table of the loads of [`COMPARED`], each without what a start costs.
pub(super) fn table(loads: &[Counters; COMPARED.len()]) -> Result<String> {
    let mut out = format!(
        "\n{:<28}{:>10}{:>10}{:>14}{:>12}{:>7}\n",
        "", "received", "sent", "instructions", "exits", "lost"
    );
    writeln!(
        out,
        "{:<28}{:>10}{:>10}{:>14}{:>12}",
        "", "frames", "frames", "per frame", "per frame"
    )?;
    for (load, super::Compared(name, ..)) in loads.iter().zip(&COMPARED) {
        let frames = load.frames().max(1.0);
        let name = name.split(',').next().unwrap_or(name);
        writeln!(
            out,
            "{name:<28}{:>10}{:>10}{:>14.0}{:>12.2}{:>7}",
            load.received,
            load.sent,
            load.host / frames,
            load.exits / frames,
            load.dropped
        )?;
    }
    let [to, from, _] = loads;
    let frame = each(*to, *from);
    for (name, cost) in [
        ("received", frame.map(|(received, _)| received)),
        ("sent", frame.map(|(_, sent)| sent)),
    ] {
        match cost {
            Some(cost) => writeln!(
                out,
                "host instructions for a frame that is {name}: {cost:.0} (aim {INSTRUCTIONS}){}",
                missed(cost > INSTRUCTIONS)
            )?,
            None => writeln!(out, "host instructions for a frame that is {name}: –")?,
        }
    }
    for (way, load) in [("to", to), ("from", from)] {
        let exits = load.exits / load.frames().max(1.0);
        writeln!(
            out,
            "exits for a frame under load {way} the guest: {exits:.2} (aim below {EXITS}){}",
            missed(exits >= EXITS)
        )?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "[    1.0] INFO  exits| vm=linux reason=hlt count=100 ticks=5\r\n\
        [    1.0] INFO  exits| vm=linux reason=mmio-write count=50 ticks=5\r\n\
        [    1.0] INFO  guest| vm=linux instructions=7000 entries=150 host_interrupts=0\r\n\
        [    1.0] INFO  network| ticks=10000 waited=1000\r\n\
        [    1.0] INFO  nic| guest received=40 sent=20 receive_drops=1 transmit_drops=2\r\n";

    #[test]
    fn counters_are_found_and_subtracted() {
        let counters = Counters::of(SAID).unwrap();
        let expected = Counters {
            received: 40.0,
            sent: 20.0,
            exits: 150.0,
            host: 2000.0,
            dropped: 3.0,
        };
        assert_eq!(counters, expected);
        assert_eq!(counters.since(counters), Counters::default());
        assert_eq!(counters.since(Counters::default()), counters);
    }

    #[test]
    fn what_the_host_did_not_say_is_named() {
        let error = Counters::of(&SAID.replace("network|", "x|")).unwrap_err();
        assert!(error.to_string().contains("network| ticks"), "{error}");
        assert!(Counters::of(&SAID.replace("count=50", "count=many")).is_err());
    }

    fn load(received: f64, sent: f64, received_cost: f64, sent_cost: f64) -> Counters {
        Counters {
            received,
            sent,
            exits: (received + sent) / 2.0,
            host: received * received_cost + sent * sent_cost,
            dropped: 0.0,
        }
    }

    #[test]
    fn two_loads_give_the_cost_of_each_way() {
        let (to, from) = (
            load(1000.0, 500.0, 3000.0, 5000.0),
            load(300.0, 900.0, 3000.0, 5000.0),
        );
        let (received, sent) = each(to, from).unwrap();
        assert!((received - 3000.0).abs() < 1e-6 && (sent - 5000.0).abs() < 1e-6);
        assert_eq!(each(to, to), None, "the same share says nothing");
        assert_eq!(each(Counters::default(), to), None);
        let table = table(&[to, from, to]).unwrap();
        assert!(table.contains("received: 3000 (aim 4000)\n"), "{table}");
        assert!(table.contains("sent: 5000 (aim 4000)  missed\n"), "{table}");
        assert!(
            table.contains("from the guest: 0.50 (aim below 1)\n"),
            "{table}"
        );
    }

    #[test]
    fn the_round_in_the_middle_counts() {
        let rounds = [3.0, 1.0, 2.0].map(|cost| load(1.0, 1.0, cost, cost));
        assert_eq!(median(&rounds), rounds[2]);
        assert_eq!(median(&[]), Counters::default());
    }
}
