//! Bochs: its configuration, and starting it on a pseudo-terminal that it insists on.

use std::fs::File;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Machine, Processor, command};
use crate::wire::At;

/// The program, from Debian's `bochs`.
pub const PROGRAM: &str = "bochs";

/// The configuration file of one run. The first serial port connects to `serial_port` on this host.
///
/// `count=1` makes counting exact (Debian's extension of the processor option). The speaker and a real sound
/// driver would block a machine without sound; `sync=none` lets idle time pass at once, which a machine with somebody
/// on its wire must not do.
#[must_use]
pub fn configuration(machine: &Machine, serial_port: u16, directory: &Path) -> String {
    // Bochs cannot take features from a model: these lack what the tests want to be missing.
    let model = match machine.processor {
        Processor::Full => "corei7_skylake_x",
        Processor::NoVirtualization => "athlon64_clawhammer",
        Processor::NoNestedPaging => "core2_penryn_t9600",
    };
    let sync = if machine.nics.is_empty() {
        "none"
    } else {
        "slowdown"
    };
    let (slots, cards) = cards(machine);
    format!(
        "\
display_library: term
megs: {memory}
cpu: model={model}, count=1, ips=100000000, reset_on_triple_fault=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/vgabios/vgabios.bin
pci: enabled=1, chipset=i440fx{slots}
{cards}ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, mode=flat, path=\"{disk}\"
boot: disk
com1: enabled=1, mode=socket-client, dev=localhost:{serial_port}
clock: sync={sync}, time0=1000000000
plugin_ctrl: speaker=0, gameport=0, parallel=0
sound: driver=dummy
port_e9_hack: enabled=1
log: \"{log}\"
panic: action=fatal, term=report
error: action=report
info: action=report
debug: action=ignore
",
        memory = machine.memory_mib,
        disk = machine.disk.display(),
        log = directory.join("bochs.log").display(),
    )
}

/// The network cards: what is added to the option `pci`, and lines of their own. A card takes one frame in each
/// millisecond of the machine's time.
fn cards(machine: &Machine) -> (String, String) {
    let (mut slots, mut cards) = (String::new(), String::new());
    for (number, nic) in machine.nics.iter().enumerate() {
        // Others are refused by `Machine::check_nics`.
        if let At::Udp(port) = nic.plug.at {
            slots += &format!(", slot{}=e1000", number + 1);
            cards += &format!(
                "e1000: card={number}, enabled=1, mac={}, ethmod=socket, ethdev={port}\n",
                nic.mac
            );
        }
    }
    (slots, cards)
}

/// A started Bochs.
pub struct Bochs {
    /// The process.
    pub child: Child,
    /// Its serial port, before it has connected.
    pub serial: SerialListener,
}

/// Starts Bochs with its files in `directory`.
///
/// # Errors
///
/// Bochs does not have the machine's network cards, a file cannot be written, there is no pseudo-terminal, or Bochs
/// does not start.
pub fn start(machine: &Machine, directory: &Path) -> Result<Bochs> {
    machine.check_nics()?;
    let serial = SerialListener::new()?;
    let port = serial.listener.local_addr()?.port();
    let configuration_file = directory.join("bochsrc");
    std::fs::write(&configuration_file, configuration(machine, port, directory))
        .with_context(|| configuration_file.display().to_string())?;
    // Debian's Bochs is the debugger build: "c" starts the machine, "q" ends Bochs when it stops.
    let debugger_file = directory.join("debugger.rc");
    std::fs::write(&debugger_file, "c\nq\n")
        .with_context(|| debugger_file.display().to_string())?;

    let (screen, terminal) = pseudo_terminal().context("cannot open a pseudo-terminal")?;
    let child = command(PROGRAM)
        .args(["-q", "-unlock", "-f"])
        .arg(&configuration_file)
        .arg("-rc")
        .arg(&debugger_file)
        .env("TERM", "xterm")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .process_group(0)
        .spawn()
        .context("cannot start bochs")?;
    // The screen is of no interest, but Bochs stops when nobody takes it; it ends with the child.
    std::thread::spawn(move || drain(screen));
    Ok(Bochs { child, serial })
}

fn drain(mut screen: File) {
    let mut buffer = [0; 4096];
    while matches!(screen.read(&mut buffer), Ok(bytes) if bytes > 0) {}
}

fn pseudo_terminal() -> Result<(File, File)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().context("name of the pseudo-terminal")?)?;
    Ok((File::from(master), slave))
}

/// Waits for Bochs to connect its serial port.
pub struct SerialListener {
    listener: TcpListener,
    ended: Arc<AtomicBool>,
}

impl SerialListener {
    fn new() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            ended: Arc::new(AtomicBool::new(false)),
        })
    }

    /// A flag to be set when Bochs has ended, so that nobody waits for it in vain.
    #[must_use]
    pub fn ended(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ended)
    }

    /// The connection; `None` if Bochs ended without making one.
    ///
    /// # Errors
    ///
    /// The socket fails.
    pub fn accept(&self) -> io::Result<Option<TcpStream>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(Some(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.ended.load(Ordering::Relaxed) {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::{Nic, NicModel, Platform};
    use crate::wire::Plug;
    use arch::nic::Mac;
    use boot::Firmware;

    #[test]
    fn the_configuration_names_this_run() {
        let machine = Machine {
            platform: Platform::Bochs,
            firmware: Firmware::Bios,
            disk: "/disks/x.img".into(),
            memory_mib: 640,
            processor: Processor::Full,
            nics: Vec::new(),
        };
        let text = configuration(&machine, 4711, Path::new("/run/y"));
        for line in [
            "megs: 640",
            "ata0-master: type=disk, mode=flat, path=\"/disks/x.img\"",
            "com1: enabled=1, mode=socket-client, dev=localhost:4711",
            "log: \"/run/y/bochs.log\"",
            "pci: enabled=1, chipset=i440fx",
            "clock: sync=none, time0=1000000000",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing:\n{text}"
            );
        }
        assert!(text.contains("count=1"), "counting is exact only so");
    }

    #[test]
    fn cards_lead_to_their_ports_and_time_does_not_run_away() {
        let wire = crate::wire::Wire::start(0).unwrap();
        let nic = |last, udp| Nic {
            mac: Mac([2, 0, 0, 0, 0, last]),
            model: NicModel::E1000,
            plug: Plug {
                port: wire.endpoint("x").unwrap().port(),
                at: At::Udp(udp),
            },
        };
        let machine = Machine {
            platform: Platform::Bochs,
            firmware: Firmware::Bios,
            disk: "x".into(),
            memory_mib: 640,
            processor: Processor::Full,
            nics: vec![nic(1, 20_000), nic(2, 20_002)],
        };
        let text = configuration(&machine, 4711, Path::new("/run/y"));
        for line in [
            "pci: enabled=1, chipset=i440fx, slot1=e1000, slot2=e1000",
            "e1000: card=0, enabled=1, mac=02:00:00:00:00:01, ethmod=socket, ethdev=20000",
            "e1000: card=1, enabled=1, mac=02:00:00:00:00:02, ethmod=socket, ethdev=20002",
            "clock: sync=slowdown, time0=1000000000",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing:\n{text}"
            );
        }
    }

    #[test]
    fn nobody_waits_for_a_bochs_that_has_ended() {
        let serial = SerialListener::new().unwrap();
        serial.ended().store(true, Ordering::Relaxed);
        assert!(serial.accept().unwrap().is_none());
    }
}
