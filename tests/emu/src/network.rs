//! A guest on the network: a real server, real clients, strangers and faults; and its recorded run replayed.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use arch::nic::Mac;
use boot::{Firmware, Payload};
use xtask::artifacts::seed;
use xtask::emulator::{Machine, Nic, NicModel, Platform, Processor, qemu};
use xtask::linux::Linux;
use xtask::wire::gateway::{self, Gateway};
use xtask::wire::{Faults, Wire};
use xtask::{config, debian, serial};

use crate::Lab;
use crate::run::{Judged, explain, judge_replays};

/// Memory of the guest in MiB.
const MEMORY_MIB: u32 = 192;
/// Memory of the machine besides the guest's.
const HOST_MEMORY_MIB: u32 = 192;
const MAC: Mac = Mac([0x52, 0x54, 0x00, 0xd0, 0xe7, 0x02]);
/// Where redis-server listens.
const PORT: u16 = 6379;
/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(400);
/// How much of everything.
#[derive(Clone, Copy)]
struct Load {
    /// Requests of a client.
    requests: u32,
    /// Bytes of a value that takes many frames.
    large: usize,
    /// Frames of a flood.
    flood: usize,
}

impl Load {
    /// Bochs moves one frame in each millisecond.
    const fn on(platform: Platform) -> Self {
        match platform {
            Platform::Bochs => Self {
                requests: 12,
                large: 60_000,
                flood: 300,
            },
            Platform::Qemu | Platform::Kvm => Self {
                requests: 200,
                large: 300_000,
                flood: 2_000,
            },
        }
    }
}

/// The guest's part: it serves until it is told that all is done, or nobody tells it.
const SCRIPT: &str = "n=0; until [ 1$(redis-cli get done) = 1yes ] || [ $n -gt 500 ]; do sleep 1; n=$((n+1)); done; \
     echo pulled $(cat /sys/class/net/eth0/carrier_down_count); exit 3";

/// A connection to the server, in its own protocol (RESP2).
struct Client(TcpStream);

impl Client {
    fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Waits for the guest to have started its server: the machine may have to wait for its turn.
    fn wait_for(port: u16, over: &AtomicBool) -> Result<Self> {
        loop {
            let answer = Self::connect(port).and_then(|mut client| {
                let answer = client.ask(&[b"PING"])?;
                Ok((client, answer))
            });
            match answer {
                Ok((client, answer)) if answer == b"PONG" => return Ok(client),
                _ if over.load(Ordering::Relaxed) => bail!("the guest's server did not answer"),
                _ => sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Asks and returns the answer.
    fn ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend(*word);
            request.extend(b"\r\n");
        }
        self.0.write_all(&request)?;
        let line = self.line()?;
        match line.split_first() {
            Some((b'+' | b':', rest)) => Ok(rest.to_vec()),
            Some((b'$', length)) => {
                let length: usize = std::str::from_utf8(length)?.parse()?;
                let mut answer = vec![0; length + 2];
                self.0.read_exact(&mut answer)?;
                answer.truncate(length);
                Ok(answer)
            }
            _ => bail!("the server answers {:?}", String::from_utf8_lossy(&line)),
        }
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }

    /// Adds one to a number, again and again: every answer has to be the next number.
    fn count(&mut self, key: &str, to: u32) -> Result<()> {
        for number in 1..=to {
            let answer = self.ask(&[b"INCR", key.as_bytes()])?;
            ensure!(
                answer == number.to_string().into_bytes(),
                "{key}: {answer:?} for {number}"
            );
        }
        Ok(())
    }

    /// Stores a large value and reads it back.
    fn large(&mut self, key: &str, bytes: usize) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(7);
        let value: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        self.ask(&[b"SET", key.as_bytes(), &value])?;
        let answer = self.ask(&[b"GET", key.as_bytes()])?;
        ensure!(
            answer == value,
            "{key}: {} other bytes came back",
            answer.len()
        );
        Ok(())
    }
}

/// What is done to the guest.
struct Clients {
    platform: Platform,
    wire: Wire,
    gateway: Gateway,
    nic: Nic,
    port: u16,
}

impl Clients {
    fn new(platform: Platform) -> Result<Self> {
        let wire = Wire::start(1)?;
        let gateway = Gateway::start(&wire)?;
        let address = gateway.reserve(MAC)?;
        let port = gateway.forward(0, SocketAddrV4::new(address, PORT))?;
        let plug = wire.plug(platform, "guest")?;
        let model = NicModel::default();
        Ok(Self {
            platform,
            nic: Nic {
                mac: MAC,
                model,
                plug,
            },
            wire,
            gateway,
            port,
        })
    }

    fn cmdline(&self) -> Result<String> {
        let words = debian::cmdline_running(SCRIPT)?;
        let address = self.gateway.reserve(MAC)?;
        let (prefix, router) = (gateway::PREFIX, gateway::ADDRESS);
        Ok(format!(
            "{words} duet.service=redis duet.ip={address}/{prefix} duet.gateway={router}"
        ))
    }

    fn run(&self, load: Load, over: &AtomicBool) -> Judged {
        let mut first = Client::wait_for(self.port, over)?;
        let address = self.gateway.reserve(MAC)?;
        ensure!(self.gateway.ping(address, PATIENCE)?, "no answer to a ping");
        first.count("alone", load.requests)?;
        first.large("large", load.large)?;
        self.several_clients(load.requests)?;
        self.benchmark(load.requests)?;
        self.strangers(&mut first, load.flood)?;
        self.bad_wire(&mut first, load.requests / 4)?;
        self.pulled_cable(&mut first)?;
        first.ask(&[b"SET", b"done", b"yes"])?;
        Ok(())
    }

    fn several_clients(&self, requests: u32) -> Judged {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|n| {
                    scope.spawn(move || {
                        Client::connect(self.port)?.count(&format!("client-{n}"), requests)
                    })
                })
                .collect();
            for client in clients {
                client.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            Ok(())
        })
    }

    /// Redis's own benchmark has nothing to complain of.
    fn benchmark(&self, requests: u32) -> Judged {
        let tools = debian::redis_tools()?;
        let output = tools
            .command("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-n", &requests.to_string()])
            .args(["-c", "8", "-t", "set,get,lpush", "--csv"])
            .output()
            .context("redis-benchmark")?;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "redis-benchmark: {said}");
        for test in ["\"SET\"", "\"GET\"", "\"LPUSH"] {
            ensure!(
                said.contains(test),
                "redis-benchmark without {test}: {said}"
            );
        }
        ensure!(
            !said.to_lowercase().contains("error"),
            "redis-benchmark: {said}"
        );
        Ok(())
    }

    /// Frames that make no sense, more than anybody can take, do not harm the connection.
    fn strangers(&self, client: &mut Client, frames: usize) -> Judged {
        let stranger = self.wire.endpoint("stranger")?;
        let mut random = fastrand::Rng::with_seed(3);
        for number in 0..frames {
            let mut frame: Vec<u8> = (0..random.usize(1..1500)).map(|_| random.u8(..)).collect();
            let destination = if number % 3 == 0 { [0xff; 6] } else { MAC.0 };
            for (place, byte) in frame.iter_mut().zip(destination) {
                *place = byte;
            }
            stranger.send(&frame);
        }
        client.count("behind-the-flood", 10)
    }

    /// A wire that loses, doubles and mixes up frames, and then nothing for a while: TCP gets over it.
    fn bad_wire(&self, client: &mut Client, requests: u32) -> Judged {
        let port = self.nic.plug.port;
        let bad = Faults {
            drop: 0.02,
            duplicate: 0.02,
            reorder: 0.02,
            ..Faults::default()
        };
        self.wire.set_faults_both_ways(port, bad);
        client.count("bad-wire", requests)?;
        self.wire.set_faults_both_ways(port, Faults::cut());
        sleep(Duration::from_secs(2));
        self.wire.set_faults_both_ways(port, Faults::default());
        client.count("behind-the-cut", 10)
    }
}

impl Clients {
    /// The host's cable is pulled and plugged in again; the guest is told. Bochs's card has no cable.
    fn pulled_cable(&self, client: &mut Client) -> Judged {
        if self.platform == Platform::Bochs {
            return Ok(());
        }
        let nics = std::slice::from_ref(&self.nic);
        qemu::set_link(nics, 0, false)?;
        sleep(Duration::from_secs(2));
        qemu::set_link(nics, 0, true)?;
        client.count("behind-the-pull", 10)
    }
}

/// Runs the guest on `platform` with a network, recorded, and then replays it.
///
/// # Errors
///
/// What a client or the replay found wrong, with the end of the log.
pub fn judge_network(platform: Platform) -> Judged {
    let lab = Lab::get()?;
    let files = debian::prepare_redis()?;
    let clients = Clients::new(platform)?;
    let guest = Linux {
        memory_mib: MEMORY_MIB,
        kernel: files.kernel,
        initrd: Some(files.initrd),
        cmdline: clients.cmdline()?,
        mac: Some(MAC),
        instruction_limit: None,
    };
    let payload = Payload {
        config: config::compose_linux(platform, &guest)? + "\n[test]\nreplays = 1\nslices = 5\n",
        files: guest.files(),
        seed: Some(seed()?),
    };
    let name = format!("{platform}-network");
    let disk = lab.disk(&name);
    lab.artifacts.image(Firmware::Bios, &payload, &disk)?;
    let machine = Machine {
        platform,
        firmware: Firmware::Bios,
        disk,
        memory_mib: HOST_MEMORY_MIB + MEMORY_MIB,
        processor: Processor::Full,
        nics: vec![clients.nic.clone()],
    };
    let over = AtomicBool::new(false);
    let (outcome, served) = std::thread::scope(|scope| {
        let served = scope.spawn(|| clients.run(Load::on(platform), &over));
        let outcome = lab.run(&name, &machine, None);
        over.store(true, Ordering::Relaxed);
        (
            outcome,
            served.join().map_err(|_| anyhow!("the clients panicked")),
        )
    });
    let outcome = outcome?;
    served
        .and_then(|served| served)
        .and_then(|()| judge(platform, &outcome.serial))
        .map_err(|error| explain(&outcome, &error))?;
    std::fs::remove_file(&machine.disk)?;
    Ok(())
}

fn judge(platform: Platform, said: &str) -> Judged {
    // The driver counts one at its start.
    let pulled = 1 + usize::from(platform != Platform::Bochs);
    let pulled = format!("pulled {pulled}");
    ensure!(said.contains(&pulled), "the guest does not say {pulled:?}");
    ensure!(
        said.contains("duet.run: exit status 3"),
        "the guest did not end as it was to"
    );
    judge_replays(said, "linux", 1)?;
    let inputs = said
        .lines()
        .find_map(|line| {
            serial::field(line, "log", "kind")
                .filter(|kind| *kind == "inputs")
                .map(|_| line)
        })
        .and_then(|line| serial::field(line, "log", "entries")?.parse::<u64>().ok())
        .context("no inputs in the log")?;
    ensure!(inputs > 500, "only {inputs} inputs: the guest was not busy");
    Ok(())
}
