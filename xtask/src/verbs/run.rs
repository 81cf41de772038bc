//! `cargo xtask run`: Duet in an emulator, its serial port on the terminal.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arch::nic::Mac;
use boot::{Firmware, GuestFile, Payload};

use super::image::{firmware, read_config};
use crate::artifacts::{Artifacts, seed};
use crate::debian::Debian;
use crate::emulator::{End, Machine, Nic, NicModel, Platform, Processor, interactive, qemu};
use crate::guests::{self, Guests};
use crate::linux::Linux;
use crate::needs::{self, Need};
use crate::wire::Wire;
use crate::wire::gateway::{self, Gateway};
use crate::{config, debian, workspace};

/// The guests that are made of Debian packages: a shell, and a server.
const LINUX: &str = "linux";
const REDIS: &str = "redis";
/// Where redis-server listens.
const REDIS_PORT: u16 = 6379;
/// Address of a guest's network card.
const GUEST_MAC: Mac = Mac([0x52, 0x54, 0x00, 0xd0, 0xe7, 0x01]);

/// Starts Duet in an emulator; Ctrl-A x ends it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Which machine.
    #[arg(long, value_enum, default_value_t = Platform::Qemu)]
    pub platform: Platform,
    /// By UEFI firmware instead of a BIOS (not in Bochs).
    #[arg(long)]
    pub uefi: bool,
    /// "linux" for Debian's kernel with a shell, "redis" for the same with redis-server and a network, or a test guest of
    /// tests/guests/guests.toml [default: linux].
    #[arg(long, value_name = "NAME")]
    pub guest: Option<String>,
    /// A bzImage instead of Debian's kernel; it runs without an initrd unless there is --initrd.
    #[arg(long, value_name = "FILE", conflicts_with = "guest")]
    pub kernel: Option<PathBuf>,
    /// An initrd instead of Debian's busybox.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The Linux guest's command line [default: what the Debian guest wants].
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// A configuration of your own instead of a guest; guest files are looked for beside it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "kernel", "initrd", "cmdline"])]
    pub config: Option<PathBuf>,
    /// Gives the Linux guest a network card and an address, and leads a port of localhost, which is printed, to each of its
    /// ports of --forward.
    #[arg(long, conflicts_with = "config")]
    pub net: bool,
    /// A TCP port of the guest that can be reached; implies --net. May be given several times.
    #[arg(long, value_name = "PORT", conflicts_with = "config")]
    pub forward: Vec<u16>,
    /// Memory of the machine in MiB; a Linux guest gets half of it.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub mem: u32,
}

/// Runs the verb.
///
/// # Errors
///
/// What is missing, or how the run failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let firmware = firmware(arguments.uefi);
    check_platform(arguments.platform, firmware)?;
    // A wrong configuration, name or file is cheaper to find than a missing package.
    let guest = Guest::choose(arguments)?;
    needs::ensure(&needs::BUILD)?;
    needs::ensure(&Need::of_platform(arguments.platform, arguments.uefi))?;

    let artifacts = Artifacts::build()?;
    let network = Network::of(arguments, &guest)?;
    let (config, files) = guest.files(arguments, network.as_ref())?;
    let payload = Payload {
        config,
        files,
        seed: Some(seed()?),
    };
    let disk = workspace::output("run")?.join("duet.img");
    artifacts.image(firmware, &payload, &disk)?;
    let end = interactive::run(&Machine {
        platform: arguments.platform,
        firmware,
        disk,
        memory_mib: arguments.mem,
        processor: Processor::Full,
        nics: Network::nics(network.as_ref()),
    })?;
    report(&end)
}

/// What runs.
#[derive(Debug)]
pub(super) enum Guest {
    /// A configuration and its files.
    Configured(String, Vec<GuestFile>),
    /// A test guest.
    Test(Box<guests::Guest>),
    /// Debian's kernel, or one of the user's own.
    Linux,
    /// Debian's kernel and redis-server.
    Redis,
}

impl Guest {
    pub(super) fn choose(arguments: &Arguments) -> Result<Self> {
        if let Some(path) = &arguments.config {
            let (text, files) = read_config(path)?;
            return Ok(Guest::Configured(text, files));
        }
        for file in [&arguments.kernel, &arguments.initrd].into_iter().flatten() {
            std::fs::metadata(file).with_context(|| file.display().to_string())?;
        }
        let for_linux = [
            ("--kernel", arguments.kernel.is_some()),
            ("--initrd", arguments.initrd.is_some()),
            ("--cmdline", arguments.cmdline.is_some()),
        ];
        let given = for_linux.iter().find(|(_, given)| *given);
        match (arguments.guest.as_deref(), given) {
            (None | Some(LINUX), _) => Ok(Guest::Linux),
            (Some(REDIS), _) => Ok(Guest::Redis),
            (Some(name), Some((option, _))) => {
                bail!("{option} is for --guest {LINUX}, not for the test guest {name:?}")
            }
            (Some(name), None) => {
                let guests = Guests::load()?;
                let guest = guests
                    .named(name)
                    .with_context(|| format!("neither {LINUX:?}, {REDIS:?} nor a test guest"))?;
                Ok(Guest::Test(Box::new(guest.clone())))
            }
        }
    }

    /// The configuration and the guest files; compiles or downloads what is missing.
    pub(super) fn files(
        self,
        arguments: &Arguments,
        network: Option<&Network>,
    ) -> Result<(String, Vec<GuestFile>)> {
        let platform = arguments.platform;
        match self {
            Guest::Configured(text, files) => Ok((text, files)),
            Guest::Test(guest) => {
                let config = config::compose(platform, std::slice::from_ref(&guest))?;
                let images = guests::build(&Guests::load()?)?;
                Ok((config, guests::files(&images, [&*guest])))
            }
            Guest::Linux | Guest::Redis => {
                let (debian, cmdline): (fn() -> Result<Debian>, _) = match self {
                    Guest::Redis => (
                        debian::prepare_redis,
                        format!("{} duet.service=redis", debian::CMDLINE),
                    ),
                    _ => (debian::prepare, debian::CMDLINE.to_owned()),
                };
                let mut linux = linux(arguments, debian, &cmdline)?;
                if let Some(network) = network {
                    linux.mac = Some(network.nic.mac);
                    linux.cmdline = network.cmdline(&linux.cmdline);
                }
                Ok((config::compose_linux(platform, &linux)?, linux.files()))
            }
        }
    }
}

/// A network for a guest, as long as it runs.
pub(super) struct Network {
    nic: Nic,
    address: Ipv4Addr,
    _gateway: Gateway,
    _wire: Wire,
}

impl Network {
    /// The network of these arguments, if they ask for one; says how the guest is reached.
    pub(super) fn of(arguments: &Arguments, guest: &Guest) -> Result<Option<Self>> {
        let mut ports = arguments.forward.clone();
        match guest {
            Guest::Redis => ports.push(REDIS_PORT),
            Guest::Linux if arguments.net || !ports.is_empty() => {}
            Guest::Linux => return Ok(None),
            Guest::Configured(..) | Guest::Test(_) => {
                let asked = arguments.net || !ports.is_empty();
                ensure!(!asked, "--net and --forward are for guests that are Linux");
                return Ok(None);
            }
        }
        let wire = Wire::start(0)?;
        let gateway = Gateway::start(&wire)?;
        let address = gateway.reserve(GUEST_MAC)?;
        for port in ports {
            let here = gateway.forward(0, SocketAddrV4::new(address, port))?;
            println!("127.0.0.1:{here} leads to port {port} of the guest");
            if port == REDIS_PORT {
                println!("try: redis-cli -p {here} set a 1");
            }
        }
        let plug = wire.plug(arguments.platform, "guest")?;
        Ok(Some(Self {
            nic: Nic {
                mac: GUEST_MAC,
                model: NicModel::default(),
                plug,
            },
            address,
            _gateway: gateway,
            _wire: wire,
        }))
    }

    /// The machine's cards.
    pub(super) fn nics(network: Option<&Self>) -> Vec<Nic> {
        network.iter().map(|network| network.nic.clone()).collect()
    }

    /// A kernel's command line that says the guest's address, too.
    fn cmdline(&self, cmdline: &str) -> String {
        let address = self.address;
        format!(
            "{cmdline} duet.ip={address}/{} duet.gateway={}",
            gateway::PREFIX,
            gateway::ADDRESS
        )
    }
}

/// The Linux guest of these arguments; `debian` is asked only if its kernel is to be used.
fn linux(
    arguments: &Arguments,
    debian: impl FnOnce() -> Result<Debian>,
    cmdline: &str,
) -> Result<Linux> {
    let (kernel, initrd) = match &arguments.kernel {
        Some(kernel) => (kernel.clone(), arguments.initrd.clone()),
        None => {
            let Debian { kernel, initrd } = debian()?;
            (kernel, Some(arguments.initrd.clone().unwrap_or(initrd)))
        }
    };
    Ok(Linux {
        memory_mib: (arguments.mem / 2).min(vmm::config::MAX_MEMORY_MIB as u32),
        kernel,
        initrd,
        cmdline: arguments
            .cmdline
            .clone()
            .unwrap_or_else(|| cmdline.to_owned()),
        mac: None,
        instruction_limit: None,
    })
}

/// Refuses combinations that do not exist and a KVM that cannot run Duet.
///
/// # Errors
///
/// What is not possible, and what is instead.
pub fn check_platform(platform: Platform, firmware: Firmware) -> Result<()> {
    match (platform, firmware) {
        (Platform::Bochs, Firmware::Uefi) => {
            bail!("bochs has no UEFI firmware: leave out --uefi, or take --platform qemu")
        }
        (Platform::Kvm, _) => qemu::check_kvm(Path::new("/")),
        (Platform::Qemu | Platform::Bochs, _) => Ok(()),
    }
}

pub(super) fn report(end: &End) -> Result<()> {
    match end {
        End::Success => Ok(()),
        // Ctrl-A x, or a host that was told to switch off.
        End::Emulator(status) if status.ends_with(": 0") => Ok(()),
        end => bail!("{end}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(options: &[&str]) -> Arguments {
        let words = std::iter::once("run").chain(options.iter().copied());
        Command::try_parse_from(words).unwrap().arguments
    }

    fn error(options: &[&str]) -> String {
        format!("{:#}", Guest::choose(&arguments(options)).unwrap_err())
    }

    #[test]
    fn the_guest_follows_from_the_options() {
        let choose = |options: &[&str]| Guest::choose(&arguments(options)).unwrap();
        assert!(matches!(choose(&[]), Guest::Linux));
        assert!(matches!(choose(&["--guest", "long"]), Guest::Test(guest) if guest.name == "long"));
        assert!(matches!(choose(&["--guest", "linux"]), Guest::Linux));
        assert!(matches!(choose(&["--guest", "redis"]), Guest::Redis));
        assert!(matches!(choose(&["--cmdline", "x"]), Guest::Linux));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(matches!(choose(&["--kernel", path]), Guest::Linux));
    }

    #[test]
    fn contradictory_options_are_named() {
        assert!(error(&["--kernel", "/no/such/kernel"]).contains("/no/such/kernel"));
        let other = error(&["--guest", "hello", "--cmdline", "x"]);
        assert!(
            other.contains("--cmdline") && other.contains("hello"),
            "{other}"
        );
        let unknown = error(&["--guest", "nobody"]);
        assert!(
            unknown.contains("nobody") && unknown.contains("linux"),
            "{unknown}"
        );
        let both = Command::try_parse_from(["run", "--config", "a", "--kernel", "b"]);
        assert!(both.is_err());
    }

    #[test]
    fn a_network_is_for_guests_that_are_linux() {
        let of = |options: &[&str]| {
            let arguments = arguments(options);
            Network::of(&arguments, &Guest::choose(&arguments).unwrap())
        };
        assert!(of(&[]).unwrap().is_none());
        let error = of(&["--guest", "hello", "--net"]).err().unwrap();
        assert!(error.to_string().contains("--net"), "{error}");
        assert!(of(&["--guest", "hello", "--forward", "80"]).is_err());
        for options in [&["--net"][..], &["--forward=80"], &["--guest", "redis"]] {
            let network = of(options).unwrap().unwrap();
            let words = network.cmdline("quiet");
            assert_eq!(words, "quiet duet.ip=10.0.2.15/24 duet.gateway=10.0.2.2");
            assert_eq!(Network::nics(Some(&network)).len(), 1);
        }
        assert!(Network::nics(None).is_empty());
    }

    #[test]
    fn files_of_the_users_own_replace_debians() {
        let debian = || {
            Ok(Debian {
                kernel: "debian/vmlinuz".into(),
                initrd: "debian/initrd".into(),
            })
        };
        let of = |options: &[&str]| linux(&arguments(options), debian, debian::CMDLINE).unwrap();
        let paths = |linux: Linux| (linux.kernel, linux.initrd);
        let path = PathBuf::from;
        let default = of(&["--guest", "linux"]);
        assert_eq!(
            (default.memory_mib, default.cmdline.as_str()),
            (256, debian::CMDLINE)
        );
        assert_eq!(
            paths(default),
            (path("debian/vmlinuz"), Some(path("debian/initrd")))
        );
        let mine = of(&["--initrd", "i", "--cmdline", "quiet", "--mem", "9000"]);
        assert_eq!((mine.memory_mib, mine.cmdline.as_str()), (3072, "quiet"));
        assert_eq!(paths(mine), (path("debian/vmlinuz"), Some(path("i"))));

        let never = || -> Result<Debian> { bail!("not needed") };
        let own = linux(&arguments(&["--kernel", "k"]), never, "").unwrap();
        assert_eq!(paths(own), (path("k"), None));
    }
}
