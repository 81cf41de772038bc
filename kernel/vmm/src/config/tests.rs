//! What is accepted, and how each error names line and key.

use super::*;
use alloc::string::ToString;

const GOOD: &str = r#"
[node]
name = "duet-a"

[[vm]]
name = "hello"
memory_mib = 16
kernel = "hello.elf"
format = "multiboot"
cmdline = "a b"
modules = ["one x", "two"]

[[vm]]
name = "real"
memory_mib = 1
kernel = "real.bin"
format = "flat"
load_address = 0x7c00
"#;

fn error(text: &str) -> String {
    Config::parse(text).expect_err("is wrong").to_string()
}

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from));
    GOOD.replacen(from, to, 1)
}

#[test]
fn defaults_fill_what_is_not_said() {
    let config = Config::parse(GOOD).expect("is good");
    assert_eq!(
        config.serial,
        Serial {
            port: 0x3f8,
            baud: 115_200
        }
    );
    assert_eq!(config.log_level, log::LevelFilter::Info);
    assert_eq!(config.when_idle, WhenIdle::Poweroff);
    assert_eq!(config.guests.len(), 2);
    let files: Vec<_> = config.guests[0].image.files().collect();
    assert_eq!(files, ["hello.elf", "one", "two"]);
}

#[test]
fn one_guest_has_the_serial_port() {
    let vm = "\n[[vm]]\nname = \"NAME\"\nmemory_mib = 64\nkernel = \"k\"\nformat = \"linux\"\nconsole = \"serial\"\n";
    let node = "[node]\nname = \"a\"\n";
    let one = [node, &vm.replace("NAME", "one")].concat();
    let config = Config::parse(&one).expect("is good");
    assert_eq!(config.guests[0].console, Console::Serial);
    let two = [one.as_str(), &vm.replace("NAME", "two")].concat();
    assert_eq!(
        error(&two),
        "duet.toml line 16: vm.console: another guest has the serial port"
    );
    let test = [one.as_str(), "test_devices = true\n"].concat();
    assert!(error(&test).contains("vm.console: a guest with test devices"));
}

#[test]
fn errors_name_line_and_key() {
    assert_eq!(
        error(&with("memory_mib = 16", "memory_mib = 0")),
        "duet.toml line 7: vm.memory_mib: 0 is not 1 to 3072"
    );
    assert!(error(&with("memory_mib = 16", "memory = 16")).starts_with("duet.toml line 7: "));
    assert!(error(&with("memory_mib = 16", "memory = 16")).contains("memory"));
    assert!(
        error(&with("memory_mib = 16", "memory_mib = \"x\"")).starts_with("duet.toml line 7: ")
    );
    assert_eq!(
        error(&with("\"duet-a\"", "\"Duet A\"")),
        "duet.toml line 3: node.name: \"Duet A\" is not 1 to 32 of a-z, 0-9 and -"
    );
    assert!(error("node = ").starts_with("duet.toml line 1: "));
    assert!(error("").contains("node"));
}

#[test]
fn contradictions_are_refused() {
    assert!(error(&with("name = \"real\"", "name = \"hello\"")).contains("used twice"));
    assert!(error(&with("load_address = 0x7c00", "")).contains("vm.load_address: missing"));
    assert!(error(&with("load_address = 0x7c00", "load_address = 0x10000")).contains("0x500"));
    let both = with(
        "load_address = 0x7c00",
        "load_address = 0x7c00\ncmdline = \"x\"",
    );
    assert_eq!(
        error(&both),
        "duet.toml line 19: vm.cmdline: a flat image has no command line"
    );
    let address = with("cmdline = \"a b\"", "load_address = 1");
    assert!(error(&address).contains("says itself"));
    let baud = with("[[vm]]", "[serial]\nbaud = 9601\n[[vm]]");
    assert_eq!(
        error(&baud),
        "duet.toml line 6: serial.baud: 9601 does not divide 115200"
    );
}

#[test]
fn a_linux_guest_has_a_kernel_and_perhaps_an_initrd() {
    let to_linux = |keys: &str| {
        let text = with("\"multiboot\"\n", &["\"linux\"\n", keys].concat());
        text.replacen("modules = [\"one x\", \"two\"]\n", "", 1)
    };
    let config = Config::parse(&to_linux("initrd = \"initrd.gz\"\n")).expect("is good");
    let files: Vec<_> = config.guests[0].image.files().collect();
    assert_eq!(files, ["hello.elf", "initrd.gz"]);
    let Image::Linux { cmdline, .. } = &config.guests[0].image else {
        panic!("not linux: {:?}", config.guests[0].image);
    };
    assert_eq!(cmdline, "a b");
    let config = Config::parse(&to_linux("")).expect("is good");
    assert_eq!(config.guests[0].image.files().count(), 1);

    let spaced = error(&to_linux("initrd = \"a b\"\n"));
    assert!(spaced.starts_with("duet.toml line 10: vm.initrd: \"a b\""));
    assert!(error(&to_linux("load_address = 1\n")).contains("vm.load_address: a linux"));
    assert!(error(&to_linux("modules = [\"m\"]\n")).contains("vm.modules: a linux"));
    let initrd = with("modules =", "initrd = \"x\"\nmodules =");
    assert!(error(&initrd).contains("vm.initrd: a multiboot kernel"));
    let initrd = with("load_address =", "initrd = \"x\"\nload_address =");
    assert!(error(&initrd).contains("vm.initrd: a flat image"));
    let long = "x".repeat(MAX_CMDLINE + 1);
    assert!(error(&with("a b", &long)).contains("vm.cmdline: longer than 2048"));
}

#[test]
fn a_guest_has_the_best_processor_or_the_one_it_is_given() {
    let cpu = |word: &str| {
        let line = format!("\"multiboot\"\ncpu = {word}\n");
        Config::parse(&with("\"multiboot\"\n", &line)).map(|config| config.guests[0].cpu)
    };
    assert_eq!(
        Config::parse(GOOD).map(|config| config.guests[0].cpu),
        Ok(Cpu::Best)
    );
    assert_eq!(cpu("\"best\""), Ok(Cpu::Best));
    assert_eq!(cpu("\"x86-64-v2\""), Ok(Cpu::Level(Level::V2)));
    assert_eq!(cpu("\"x86-64-v3\""), Ok(Cpu::Level(Level::V3)));
    let error = |word| cpu(word).expect_err("is wrong").to_string();
    assert_eq!(
        error("\"x86-64-v4\""),
        "duet.toml line 10: vm.cpu: \"x86-64-v4\" is none of best, x86-64-v2, x86-64-v3"
    );
    assert!(error("3").starts_with("duet.toml line 10: "));
}

#[test]
fn an_unknown_word_is_refused() {
    assert!(error(&with("\"flat\"", "\"elf\"")).contains("vm.format"));
    let level = with("[[vm]]", "[log]\nlevel = \"loud\"\n[[vm]]");
    assert!(error(&level).contains("log.level"));
    let idle = with("[[vm]]", "[host]\nwhen_idle = \"sleep\"\n[[vm]]");
    assert!(error(&idle).starts_with("duet.toml line 6: "));
}

/// A configuration whose only guest has these lines too.
fn with_log(lines: &str) -> String {
    let vm = "[[vm]]\nname = \"x\"\nmemory_mib = 1\nkernel = \"k\"\nformat = \"linux\"\n";
    ["[node]\nname = \"a\"\n", vm, lines].concat()
}

#[test]
fn a_log_is_written_or_followed() {
    let log = |lines: &str| Config::parse(&with_log(lines)).map(|c| c.guests[0].log.clone());
    assert_eq!(log(""), Ok(Log::None));
    assert_eq!(
        log("record = \"batch\""),
        Ok(Log::Record { every_exit: false })
    );
    assert_eq!(
        log("record = \"exit\""),
        Ok(Log::Record { every_exit: true })
    );
    let replay = |stop_at| {
        Ok(Log::Replay {
            file: "f".to_owned(),
            stop_at,
        })
    };
    assert_eq!(log("replay = \"f\""), replay(None));
    let point = Point { exits: 3, after: 4 };
    assert_eq!(
        log("replay = \"f\"\nstop_at = \"3+4\""),
        replay(Some(point))
    );
}

#[test]
fn contradictory_logs_are_refused() {
    for (lines, line, key) in [
        ("record = \"batch\"\nreplay = \"f\"", 9, "vm.replay"),
        ("stop_at = \"3+4\"", 8, "vm.stop_at"),
        ("replay = \"f\"\nstop_at = \"3\"", 9, "vm.stop_at"),
        ("replay = \"\"", 8, "vm.replay"),
        ("record = \"now\"", 8, "batch"),
    ] {
        let error = error(&with_log(lines));
        let place = format!("line {line}:");
        assert!(error.contains(&place) && error.contains(key), "{error}");
    }
    let second = "record = \"batch\"\n[[vm]]\nname = \"y\"\nmemory_mib = 1\nkernel = \"k\"\nformat = \"linux\"\nrecord = \"exit\"";
    let error = error(&with_log(second));
    assert!(error.contains("line 14: vm.record"), "{error}");
}

#[test]
fn points_are_exact_unless_said_otherwise() {
    let points = |line: &str| {
        let text = with("memory_mib = 16", &["memory_mib = 16\n", line].concat());
        Config::parse(&text).map(|config| config.guests[0].points)
    };
    assert_eq!(points(""), Ok(Points::Exact));
    assert_eq!(points("points = \"exact\""), Ok(Points::Exact));
    assert_eq!(points("points = \"exits\""), Ok(Points::Exits));
    assert!(points("points = \"near\"").is_err());
}
