//! `cargo xtask bench net`: how fast a guest's network is compared with the same Linux without Duet, and what a frame costs.
//!
//! The guest is Debian with redis-server; the client is here, behind a port of localhost that the wire's gateway forwards.
//! Duet and the emulator alone do the same work one after the other, in several rounds. Seconds are those of the machine this
//! runs on, so only their ratios say something, and it should have nothing else to do. What a frame costs is counted by the
//! host in instructions: it is what a start with work needs more than one without, divided by the frames.

mod client;
mod cost;

use std::fmt::Write;
use std::fs::File;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use arch::nic::Mac;
use boot::{Firmware, Payload};
use wait_timeout::ChildExt;

use self::client::Work;
use self::cost::Counters;
use super::run::check_platform;
use crate::artifacts::{Artifacts, seed};
use crate::debian::{self, Debian};
use crate::emulator::{Machine, Nic, NicModel, Platform, Processor, batch, qemu};
use crate::linux::Linux;
use crate::needs::{self, Need};
use crate::wire::Wire;
use crate::wire::gateway::{self, Gateway};
use crate::{config, progress, serial, workspace};

const MEMORY_MIB: u32 = 256;
const ROUNDS: usize = 3;
const REDIS_PORT: u16 = 6379;
const GUEST_MAC: Mac = Mac([0x52, 0x54, 0x00, 0xd0, 0xe7, 0x01]);
/// For one start of Linux, its work, and its end.
const TIMEOUT: Duration = Duration::from_secs(300);
/// What the guest does until its client has pushed to the list `done`.
const SCRIPT: &str =
    "until redis-cli ping >/dev/null 2>&1; do sleep 1; done; redis-cli blpop done 0 >/dev/null";

/// A comparison: its name, the work, what Duet aims at: at least so much of the speed, in hundredths.
struct Compared(&'static str, Work, u32);

const COMPARED: [Compared; 3] = [
    Compared("TCP to the guest, MB/s", Work::ToGuest, 70),
    Compared("TCP from the guest, MB/s", Work::FromGuest, 70),
    // 1.5 × the time.
    Compared("requests in turn, 1/s", Work::Requests, 67),
];

/// Measures on `platform`, whose card is a `card`.
///
/// # Errors
///
/// What is missing, or a run failed.
pub fn run(platform: Platform, card: NicModel) -> Result<()> {
    check_platform(platform, Firmware::Bios)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(platform, false))?;
    let bench = Bench {
        platform,
        card,
        files: debian::prepare_redis()?,
        artifacts: Artifacts::build()?,
    };
    let (_, without) = bench.on_duet(None)?;
    let mut measured = Measured::default();
    for _ in 0..ROUNDS {
        for (number, Compared(_, work, _)) in COMPARED.iter().enumerate() {
            let (speed, counters) = bench.on_duet(Some(*work))?;
            measured.duet[number].push(speed);
            measured.counters[number].push(counters.since(without));
            // Bochs starts nothing without a boot loader, so there is nothing to compare with.
            if platform == Platform::Qemu {
                measured.bare[number].push(bench.directly(*work)?);
            }
        }
    }
    print!("{}", measured.table()?);
    Ok(())
}

/// What all runs of the bench have in common.
struct Bench {
    platform: Platform,
    card: NicModel,
    files: Debian,
    artifacts: Artifacts,
}

/// A wire with the client's way to the guest.
struct Network {
    nic: Nic,
    cmdline: String,
    port: u16,
    _gateway: Gateway,
    _wire: Wire,
}

impl Network {
    fn start(platform: Platform, model: NicModel) -> Result<Self> {
        let wire = Wire::start(0)?;
        let gateway = Gateway::start(&wire)?;
        let address = gateway.reserve(GUEST_MAC)?;
        let port = gateway.forward(0, SocketAddrV4::new(address, REDIS_PORT))?;
        let plug = wire.plug(platform, "guest")?;
        Ok(Self {
            nic: Nic {
                mac: GUEST_MAC,
                model,
                plug,
            },
            cmdline: format!(
                "{} duet.service=redis duet.ip={address}/{}",
                debian::cmdline_running(SCRIPT)?,
                gateway::PREFIX
            ),
            port,
            _gateway: gateway,
            _wire: wire,
        })
    }
}

impl Bench {
    /// Does `work` with Linux on Duet. Returns how fast it was, if there was any, and what the host counted.
    fn on_duet(&self, work: Option<Work>) -> Result<(f64, Counters)> {
        let directory = workspace::output("bench")?;
        let log = directory.join(format!("{}-net-{}.log", self.platform, client::name(work)));
        let network = Network::start(self.platform, self.card)?;
        let guest = Linux {
            memory_mib: MEMORY_MIB,
            kernel: self.files.kernel.clone(),
            initrd: Some(self.files.initrd.clone()),
            cmdline: network.cmdline.clone(),
            mac: Some(GUEST_MAC),
            instruction_limit: None,
        };
        let payload = Payload {
            config: config::compose_linux(self.platform, &guest)?,
            files: guest.files(),
            seed: Some(seed()?),
        };
        let disk = log.with_extension("img");
        self.artifacts.image(Firmware::Bios, &payload, &disk)?;
        let machine = Machine {
            platform: self.platform,
            firmware: Firmware::Bios,
            disk,
            memory_mib: 2 * MEMORY_MIB,
            processor: Processor::Full,
            nics: vec![network.nic.clone()],
        };
        let title = format!("{} on Duet", client::name(work));
        let (outcome, speed) = progress::step(&title, || {
            meanwhile(
                || batch::run(&machine, &log, TIMEOUT),
                |ended| client::work(network.port, work, ended),
            )
        })?;
        ensure!(
            serial::stop_reason(&outcome.serial, "linux") == Some("power off"),
            "{}\n{}",
            outcome.end,
            serial::tail(&outcome.serial, 30)
        );
        Ok((speed, Counters::of(&outcome.serial)?))
    }

    /// Does `work` with the same kernel started by QEMU itself, with the same processor, counted the same way. Returns how
    /// fast it was.
    fn directly(&self, work: Work) -> Result<f64> {
        let log = format!("without-net-{}.log", client::name(Some(work)));
        let log = workspace::output("bench")?.join(log);
        let network = Network::start(Platform::Qemu, NicModel::Virtio)?;
        let memory = MEMORY_MIB.to_string();
        let mut command = Command::new(qemu::PROGRAM);
        command
            .args(["-accel", "tcg", "-icount", "shift=0,sleep=on"])
            .args(["-cpu", "max,-rdrand,-rdseed,-cx16", "-m", &memory])
            .args(["-no-reboot", "-nodefaults", "-display", "none"])
            .args(["-serial", "stdio", "-kernel"])
            .arg(&self.files.kernel)
            .arg("-initrd")
            .arg(&self.files.initrd)
            .args(["-append", &network.cmdline])
            .args(qemu::card(0, &network.nic))
            .stdin(Stdio::null())
            .stdout(File::create(&log).with_context(|| log.display().to_string())?);
        let title = format!("{} without Duet", client::name(Some(work)));
        let ((), speed) = progress::step(&title, || {
            meanwhile(
                || wait(command.spawn().context(qemu::PROGRAM)?, &log),
                |ended| client::work(network.port, Some(work), ended),
            )
        })?;
        Ok(speed)
    }
}

/// Waits for the end of an emulator, at most [`TIMEOUT`].
fn wait(mut child: Child, log: &Path) -> Result<()> {
    let status = child.wait_timeout(TIMEOUT)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    ensure!(
        status.is_some_and(|status| status.success()),
        "the emulator ended with {status:?}\n{}",
        serial::tail(&std::fs::read_to_string(log).unwrap_or_default(), 30)
    );
    Ok(())
}

/// Lets a machine run while a client works; the client is told when the machine has ended. What the machine has to say
/// about a failure says more than what the client saw of it.
fn meanwhile<M: Send, C>(
    machine: impl FnOnce() -> Result<M> + Send,
    client: impl FnOnce(&AtomicBool) -> Result<C>,
) -> Result<(M, C)> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| {
            let result = machine();
            ended.store(true, Ordering::Relaxed);
            result
        });
        let worked = client(&ended);
        let machine = machine
            .join()
            .map_err(|_| anyhow!("the machine's thread panicked"))?;
        Ok((machine?, worked?))
    })
}

/// Everything measured, for each of [`COMPARED`].
#[derive(Debug, Default)]
struct Measured {
    duet: [Vec<f64>; COMPARED.len()],
    bare: [Vec<f64>; COMPARED.len()],
    counters: [Vec<Counters>; COMPARED.len()],
}

impl Measured {
    fn table(&self) -> Result<String> {
        let mut out = format!(
            "{:<28}{:>10}{:>10}{:>8}{:>7}\n",
            "", "on Duet", "without", "ratio", "aim"
        );
        for (number, Compared(name, _, aim)) in COMPARED.iter().enumerate() {
            let (duet, bare) = (median(&self.duet[number]), median(&self.bare[number]));
            let ratio = duet / bare;
            let aim = f64::from(*aim) / 100.0;
            writeln!(
                out,
                "{name:<28}{duet:>10.2}{bare:>10.2}{ratio:>8.2}{aim:>7.2}{}",
                missed(ratio < aim)
            )?;
        }
        let counters = self.counters.each_ref().map(|rounds| cost::median(rounds));
        Ok(out + &cost::table(&counters)?)
    }
}

/// What is written behind a figure.
fn missed(is: bool) -> &'static str {
    if is { "  missed" } else { "" }
}

/// The middle of some figures; not a number without any.
fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_with_aims() {
        let measured = Measured {
            duet: [vec![1.0, 9.0, 7.0], vec![6.9; 3], vec![6.7; 3]],
            bare: [vec![10.0, 11.0, 1.0], vec![10.0; 3], vec![10.0; 3]],
            ..Measured::default()
        };
        let table = measured.table().unwrap();
        let row = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap();
        let to = row("TCP to");
        assert!(to.ends_with("7.00     10.00    0.70   0.70"), "{table}");
        assert!(row("TCP from").ends_with("0.69   0.70  missed"), "{table}");
        assert!(row("requests").ends_with("0.67   0.67"), "{table}");
        // Nothing was counted, and nothing is made of it.
        assert!(table.contains("a frame that is sent: –"), "{table}");
    }

    #[test]
    fn a_machine_that_fails_says_why() {
        let machine = || -> Result<()> { Err(anyhow!("no image")) };
        let client = |ended: &AtomicBool| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Err(anyhow!("no answer"))
        };
        let error = meanwhile(machine, client).unwrap_err();
        assert_eq!(error.to_string(), "no image");
    }

    #[test]
    fn the_configuration_takes_the_command_line() {
        let network = Network::start(Platform::Qemu, NicModel::Virtio).unwrap();
        assert!(network.cmdline.len() < vmm::config::MAX_CMDLINE);
        assert!(network.cmdline.contains("duet.ip=10.0.2.15/24"));
    }
}
