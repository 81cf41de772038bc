//! An unmodified Debian kernel: it works, starts again, and switches its machine off; and replayed it does the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boot::{Firmware, Payload};
use xtask::artifacts::seed;
use xtask::emulator::batch::Typist;
use xtask::emulator::{End, PANIC, Platform, Processor};
use xtask::linux::Linux;
use xtask::{config, debian, serial};

use crate::Lab;
use crate::run::{Judged, Specimen, explain, judge_replays, start};

/// Memory of the guest in MiB.
const MEMORY_MIB: u32 = 192;
/// Memory of the machine besides the guest's.
const HOST_MEMORY_MIB: u32 = 256;

/// What the guest does, without double quotes. The clock, which a reset leaves alone, tells the second start from the
/// first.
const SCRIPT: &str = r#"
if [ $(date +%Y) = 2031 ]; then echo started again; exit 7; fi;
stty -echo; echo quiet;
s=$(cut -d. -f1 /proc/uptime); sleep 5; e=$(cut -d. -f1 /proc/uptime); echo slept $((e-s));
n=0; for i in $(seq 20); do n=$((n+$(echo $i))); done; echo sum $n;
echo hash $(dd if=/dev/zero bs=64k count=8 2>/dev/null | sha256sum);
dd if=/dev/urandom of=/tmp/a bs=64k count=4 2>/dev/null; gzip -1 -c /tmp/a | gunzip | cmp - /tmp/a && echo same;
timeout 1 sh -c 'while :; do :; done'; echo loop ended $?;
echo clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource);
grep -c 'IO-APIC.*ttyS0' /proc/interrupts;
dmesg | grep -iE 'unstable|skew|lockup|firmware bug|unchecked|(apic|acpi|tsc|pci|timer).*(error|warn|fail|bug)' | grep -v 'and report a bug';
echo no more complaints;
date -s 2031-05-06 >/dev/null; hwclock -w -u; reboot -f; sleep 99
"#;

/// Somebody types while it sleeps and works, which it does not show.
const TYPIST: Typist = Typist {
    behind: "quiet",
    text: b"typed",
    times: 100,
    pause: Duration::from_millis(30),
};

/// What follows its kernel's complaints.
const NO_COMPLAINTS: &str = "no more complaints";

/// Which clock its kernel trusts. Without QEMU's instruction counter an exit can take a millisecond there, and the kernel
/// finds no clock to measure the time-stamp counter by.
const CLOCK: &str = "clock tsc";

/// What the guest has to say, in this order.
const SAYS: [&str; 10] = [
    "slept 5",
    "sum 210",
    // SHA-256 of 512 KiB of zeros.
    "hash 07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541 -",
    "same",
    "loop ended 143",
    CLOCK,
    "1",
    NO_COMPLAINTS,
    "started again",
    "duet.run: exit status 7",
];

/// Runs the guest on `platform` and judges what it said. It is recorded, and then replayed so many times by the same host,
/// each time cut at random by another seed.
///
/// # Errors
///
/// The guest cannot be prepared, or did something else.
pub fn judge_linux(platform: Platform, firmware: Firmware, replays: usize) -> Judged {
    let lab = Lab::get()?;
    let files = debian::prepare()?;
    let guest = Linux {
        memory_mib: MEMORY_MIB,
        kernel: files.kernel,
        initrd: Some(files.initrd),
        cmdline: debian::cmdline_running(&one_line(SCRIPT))?,
        mac: None,
        instruction_limit: None,
    };
    let tables = format!("\n[test]\nreplays = {replays}\nslices = 11\n");
    let payload = Payload {
        config: config::compose_linux(platform, &guest)? + &tables,
        files: guest.files(),
        seed: Some(seed()?),
    };
    let uefi = if firmware == Firmware::Uefi {
        "-uefi"
    } else {
        ""
    };
    let specimen = Specimen {
        platform,
        firmware,
        memory_mib: HOST_MEMORY_MIB + MEMORY_MIB,
        processor: Processor::Full,
        typist: Some(TYPIST),
    };
    let name = format!("{platform}{uefi}-linux");
    let outcome = start(lab, &lab.artifacts, &name, specimen, &payload.container()?)?;
    judge(&outcome.serial, &outcome.end, replays != 0)
        .and_then(|()| judge_replays(&outcome.serial, "linux", replays))
        .map_err(|error| explain(&outcome, &error))
}

/// The kernel's command line is one line.
fn one_line(script: &str) -> String {
    let lines: Vec<_> = script.lines().map(str::trim).collect();
    lines.join(" ").trim().to_owned()
}

/// `exact`: the machine counts instructions.
fn judge(said: &str, end: &End, exact: bool) -> Result<()> {
    ensure!(!said.contains(PANIC), "the hypervisor panicked");
    let mut lines = said.lines().map(|line| line.trim_end().replace("  ", " "));
    for expected in SAYS.into_iter().filter(|said| exact || *said != CLOCK) {
        let mut skipped = Vec::new();
        loop {
            let line = lines
                .next()
                .with_context(|| format!("the guest did not say {expected:?}, but {skipped:#?}"))?;
            if line == expected {
                break;
            }
            skipped.push(line);
        }
        ensure!(
            expected != NO_COMPLAINTS || skipped.is_empty() || !exact,
            "the guest's kernel complains: {skipped:#?}"
        );
    }
    let reason = serial::stop_reason(said, "linux");
    ensure!(reason == Some("power off"), "it stopped with {reason:?}");
    ensure!(said.contains("vm linux: reset"), "the host saw no reset");
    ensure!(matches!(end, End::Success), "{end}");
    Ok(())
}
