//! Starts that must fail, with a clear message and without a panic: damaged images, wrong configurations, machines
//! that lack something.

use anyhow::ensure;
use boot::{Firmware, Payload};
use vmm::container::{HEADER_BYTES, Header};
use xtask::config;
use xtask::emulator::{End, PANIC, Platform, Processor};
use xtask::guests::{self, Guests};

use crate::Lab;
use crate::run::{Judged, Specimen, explain, start};

/// A start that must fail.
pub struct BadStart {
    /// What is wrong.
    pub name: &'static str,
    /// Where it is tried: what does not depend on the processor is tried once.
    pub on: &'static [Platform],
    /// Texts of the message.
    expected: &'static [&'static str],
    wrong: Wrong,
}

enum Wrong {
    /// The configuration is this text.
    Config(&'static str),
    /// Something is done to the bytes of a good container.
    Container(fn(&mut Vec<u8>)),
    /// The machine is another.
    Machine(fn(&mut Specimen)),
}

const QEMU: &[Platform] = &[Platform::Qemu];
const BOTH: &[Platform] = &[Platform::Qemu, Platform::Bochs];

/// All of them.
pub const BAD_STARTS: &[BadStart] = &[
    BadStart {
        name: "truncated-archive",
        on: BOTH,
        expected: &["guest files", "partition"],
        wrong: Wrong::Container(|container| container.truncate(container.len() / 1024 * 512)),
    },
    BadStart {
        name: "corrupt-archive",
        on: QEMU,
        expected: &["archive is corrupt"],
        wrong: Wrong::Container(|container| {
            let middle = container.len() / 2;
            container[middle] ^= 1;
        }),
    },
    BadStart {
        name: "corrupt-header",
        on: QEMU,
        expected: &["header is corrupt"],
        wrong: Wrong::Container(|container| container[40] ^= 1),
    },
    BadStart {
        name: "no-container",
        on: QEMU,
        expected: &["no container"],
        wrong: Wrong::Container(|container| container.fill(0)),
    },
    BadStart {
        name: "archive-without-configuration",
        on: QEMU,
        expected: &["duet.toml"],
        wrong: Wrong::Container(|container| {
            // The same archive with its first entry renamed, sealed again.
            let name = &mut container[HEADER_BYTES..HEADER_BYTES + 9];
            name.copy_from_slice(b"duet.tomb");
            reseal(container);
        }),
    },
    BadStart {
        name: "malformed-configuration",
        on: BOTH,
        expected: &["duet.toml line 3"],
        wrong: Wrong::Config("[node]\nname = \"a\"\n[serial\n"),
    },
    BadStart {
        name: "unknown-key",
        on: QEMU,
        expected: &["duet.toml line 4", "colour"],
        wrong: Wrong::Config("[node]\nname = \"a\"\n[log]\ncolour = \"red\"\n"),
    },
    BadStart {
        name: "contradictory-guest",
        on: QEMU,
        expected: &["duet.toml line 8", "load_address"],
        wrong: Wrong::Config(concat!(
            "[node]\nname = \"a\"\n[[vm]]\nname = \"x\"\nmemory_mib = 16\nkernel = \"hello.elf\"\n",
            "format = \"multiboot\"\nload_address = 4096\n"
        )),
    },
    BadStart {
        name: "no-such-network-card",
        on: QEMU,
        expected: &[
            "nic \"lan\"",
            "no card with order = 0",
            "this host has none",
        ],
        wrong: Wrong::Config(concat!(
            "[node]\nname = \"a\"\n[[nic]]\nname = \"lan\"\nrole = \"service\"\norder = 0\ndhcp = true\n",
            "[[vm]]\nname = \"x\"\nmemory_mib = 16\nkernel = \"hello.elf\"\nformat = \"multiboot\"\n"
        )),
    },
    BadStart {
        name: "missing-guest-file",
        on: QEMU,
        expected: &["vm x", "nowhere.elf"],
        wrong: Wrong::Config(concat!(
            "[node]\nname = \"a\"\n[[vm]]\nname = \"x\"\nmemory_mib = 16\nkernel = \"nowhere.elf\"\n",
            "format = \"multiboot\"\n"
        )),
    },
    BadStart {
        name: "guest-larger-than-the-machine",
        on: QEMU,
        expected: &["vm x", "memory"],
        wrong: Wrong::Config(concat!(
            "[node]\nname = \"a\"\n[[vm]]\nname = \"x\"\nmemory_mib = 2048\nkernel = \"hello.elf\"\n",
            "format = \"multiboot\"\n"
        )),
    },
    BadStart {
        name: "log-without-a-counter",
        on: BOTH,
        expected: &["vm.points", "no instruction counter"],
        wrong: Wrong::Config(concat!(
            "[node]\nname = \"a\"\n[test]\ncounter_skew = 1\nreplays = 1\n[[vm]]\nname = \"x\"\nmemory_mib = 16\n",
            "kernel = \"hello.elf\"\nformat = \"multiboot\"\n"
        )),
    },
    BadStart {
        name: "no-virtualization",
        on: BOTH,
        expected: &["neither VT-x nor SVM"],
        wrong: Wrong::Machine(|machine| machine.processor = Processor::NoVirtualization),
    },
    BadStart {
        name: "no-nested-paging",
        on: QEMU,
        expected: &["SVM without nested page tables"],
        wrong: Wrong::Machine(|machine| machine.processor = Processor::NoNestedPaging),
    },
    BadStart {
        name: "first-generation-virtualization",
        on: &[Platform::Bochs],
        expected: &["VT-x: the processor lacks"],
        wrong: Wrong::Machine(|machine| machine.processor = Processor::NoNestedPaging),
    },
];

impl BadStart {
    /// Starts it and judges the failure.
    ///
    /// # Errors
    ///
    /// The host did not fail, or not so that one can see why.
    pub fn judge(&self, platform: Platform) -> Judged {
        let lab = Lab::get()?;
        let guests = Guests::load()?;
        let hello = guests.named("hello")?;
        let mut config = config::compose(platform, std::slice::from_ref(hello))?;
        if let Wrong::Config(text) = self.wrong {
            // How to end the emulator comes last, so that it does not move the lines.
            let exit = platform.emulator_exit();
            config = format!("{text}\n[host]\nemulator_exit = \"{exit}\"\n");
        }
        let payload = Payload {
            config,
            files: guests::files(&lab.images, [hello]),
            seed: None,
        };
        let mut container = payload.container()?;
        let mut machine = Specimen {
            platform,
            firmware: Firmware::Bios,
            memory_mib: 256,
            processor: Processor::Full,
            typist: None,
        };
        match self.wrong {
            Wrong::Config(_) => {}
            Wrong::Container(damage) => damage(&mut container),
            Wrong::Machine(change) => change(&mut machine),
        }
        let outcome = start(
            lab,
            &lab.artifacts,
            &format!("{platform}-bad-{}", self.name),
            machine,
            &container,
        )?;
        self.judge_failure(&outcome.end, &outcome.serial)
            .map_err(|error| explain(&outcome, &error))
    }

    fn judge_failure(&self, end: &End, said: &str) -> Judged {
        ensure!(!said.contains(PANIC), "the hypervisor panicked");
        let clear = |line: &str| self.expected.iter().all(|text| line.contains(text));
        ensure!(
            said.lines().any(clear),
            "no line of the log names {:?}",
            self.expected
        );
        match end {
            End::Failure => Ok(()),
            // Before it has read its configuration the host can only switch the machine off.
            End::Emulator(status) => {
                ensure!(status == "exit status: 0", "the emulator: {status}");
                Ok(())
            }
            other => anyhow::bail!("the host did not end with a failure: {other}"),
        }
    }
}

/// Gives a changed archive a header that fits it again.
fn reseal(container: &mut [u8]) {
    let (header, archive) = container.split_at_mut(HEADER_BYTES);
    // The name is part of what the tar header's own sum covers.
    let sum: u32 = archive[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.copy_from_slice(&Header::for_archive(archive, None).encode());
}
