//! The Debian guest: an unmodified kernel, and an initrd of busybox and the kernel's virtio modules.
//!
//! Both are made of packages that `apt-get download` fetches and checks; it needs no privileges. What was fetched
//! and made is kept: later runs need neither the network nor Debian's tools.

mod initrd;
pub mod redis;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::needs::apt_get;
use crate::progress;
use crate::workspace::{output, output_of};

/// The package that depends on the kernel's.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
/// In the order in which they are loaded: each after those it needs.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
/// What kernel and initrd were made of.
const STAMP: &str = "made-of";
const INIT: &str = include_str!("debian/init.sh");

/// The command line that gives the guest its console, and leaves out of its start what takes long in an emulator:
///
/// * `quiet`, Debian's own default: each letter of the kernel's messages is two exits, 36 000 until there is a shell.
///   `dmesg` shows them.
/// * `no_timer_check`, as cloud images have it: the kernel's test whether the timer interrupts reads the time-stamp
///   counter for 16 ms, 36 000 exits.
/// * `cryptomgr.notests`: the kernel's self-tests of its ciphers would be half of what it executes until there is a
///   shell (0.75 of 1.5 thousand million instructions).
pub const CMDLINE: &str = "console=ttyS0 quiet no_timer_check cryptomgr.notests";

/// The guest's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debian {
    /// The kernel as it is in its package.
    pub kernel: PathBuf,
    /// What it starts.
    pub initrd: PathBuf,
}

/// Makes the guest's files if they are not there.
///
/// # Errors
///
/// Not a Debian system, no network, or packages that are not as expected.
pub fn prepare() -> Result<Debian> {
    prepare_in(&output("debian")?, fetch)
}

/// The same guest with Debian's redis-server.
///
/// # Errors
///
/// As [`prepare`]; or Debian's redis-server needs more than is known here.
pub fn prepare_redis() -> Result<Debian> {
    let base = prepare()?;
    let directory = output("debian")?;
    let lock = lock(&directory)?;
    let packages = redis_packages(&directory)?;
    let initrd = directory.join("initrd-redis");
    let stamp = directory.join("redis-made-of");
    let made_of = std::fs::read_to_string(directory.join(STAMP)).unwrap_or_default();
    let recipe = format!("{made_of}\n{packages:?}");
    let up_to_date = std::fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == recipe);
    if !up_to_date || !initrd.exists() {
        let mut bytes = std::fs::read(&base.initrd).context("the guest's initrd")?;
        bytes.extend(redis::archive(&packages)?);
        replace(&initrd, &bytes)?;
        replace(&stamp, recipe.as_bytes())?;
    }
    drop(lock);
    Ok(Debian { initrd, ..base })
}

/// Clients for that server, for this host.
///
/// # Errors
///
/// As [`prepare_redis`].
pub fn redis_tools() -> Result<redis::Tools> {
    let directory = output("debian")?;
    let lock = lock(&directory)?;
    let packages = redis_packages(&directory)?;
    let tools = redis::Tools::unpack(&packages, output("debian/redis-tools")?);
    drop(lock);
    tools
}

/// Until it is dropped, other runs wait: they will find everything made.
fn lock(directory: &Path) -> Result<File> {
    let lock = File::create(directory.join("lock")).context("cannot lock")?;
    lock.lock().context("cannot lock")?;
    Ok(lock)
}

/// The packages of the server; what is missing is downloaded.
fn redis_packages(directory: &Path) -> Result<Vec<PathBuf>> {
    let kept = directory.join("redis");
    let all = |packages: &Path| -> Result<Vec<PathBuf>> {
        let names = redis::PACKAGES.iter();
        names.map(|name| package(packages, name)).collect()
    };
    if let Ok(packages) = all(&kept) {
        return Ok(packages);
    }
    let fresh = tempfile::tempdir_in(directory)?;
    download(fresh.path(), || {
        Ok(redis::PACKAGES.map(str::to_owned).to_vec())
    })?;
    all(fresh.path())?;
    if kept.exists() {
        std::fs::remove_dir_all(&kept)?;
    }
    std::fs::rename(fresh.path(), &kept)
        .with_context(|| format!("cannot create {}", kept.display()))?;
    all(&kept)
}

/// The file of a package in `directory`.
fn package(directory: &Path, name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}_");
    for entry in std::fs::read_dir(directory).context("no packages")? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&prefix) {
            return Ok(path);
        }
    }
    bail!("no package {name}")
}

/// The same in `directory`; `fetch` downloads the packages into the directory it is given.
fn prepare_in(directory: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<Debian> {
    let _lock = lock(directory)?;
    let kept = directory.join("packages");
    let from_kept = find_packages(&kept).and_then(|packages| make(directory, &packages));
    if from_kept.is_ok() {
        return from_kept;
    }
    // Missing, or damaged.
    let fresh = tempfile::tempdir_in(directory)?;
    fetch(fresh.path())?;
    if kept.exists() {
        std::fs::remove_dir_all(&kept)?;
    }
    std::fs::rename(fresh.path(), &kept)
        .with_context(|| format!("cannot create {}", kept.display()))?;
    make(directory, &find_packages(&kept)?)
}

/// The command line that runs `command` in the guest's shell and switches it off.
///
/// # Errors
///
/// The command has a double quote, which a kernel's command line cannot pass on.
pub fn cmdline_running(command: &str) -> Result<String> {
    if command.contains('"') {
        bail!("a command with a double quote cannot be passed to the guest: {command}");
    }
    Ok(format!("{CMDLINE} duet.run=\"{command}\""))
}

/// The two packages.
#[derive(Debug, PartialEq, Eq)]
struct Packages {
    kernel: PathBuf,
    busybox: PathBuf,
}

fn find_packages(directory: &Path) -> Result<Packages> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).context("no packages")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        found.insert(name.into_owned(), path);
    }
    let of = |prefix: &str| {
        let mut matching = found.iter().filter(|(name, _)| name.starts_with(prefix));
        let (_, path) = matching
            .next()
            .with_context(|| format!("no {prefix} package"))?;
        Ok::<_, anyhow::Error>(path.clone())
    };
    Ok(Packages {
        kernel: of("linux-image-")?,
        busybox: of(BUSYBOX)?,
    })
}

/// Downloads kernel and busybox.
fn fetch(into: &Path) -> Result<()> {
    download(into, || {
        let kernel = kernel_package(&output_of(
            Command::new("apt-cache").args(["depends", METAPACKAGE]),
        )?)?;
        Ok(vec![kernel, BUSYBOX.to_owned()])
    })
}

/// Downloads packages, whose names may depend on Debian's lists.
fn download(into: &Path, names: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    for tool in ["/usr/bin/apt-get", "/usr/bin/dpkg-deb"] {
        if !Path::new(tool).exists() {
            bail!(
                "{tool} is missing: the Debian guest is made of Debian packages. Elsewhere, give --kernel and --initrd"
            );
        }
    }
    let download = || {
        let names = names()?;
        progress::quietly(
            &format!("downloading {}", names.join(", ")),
            apt_get().current_dir(into).arg("download").args(&names),
        )
    };
    // The lists may be missing or old; only root can fetch them.
    let hint = "cannot download the Debian guest's packages. Is there a network? Are the package lists \
         fresh (apt-get update)? Or give --kernel and --initrd";
    if let Err(error) = download() {
        if !rustix::process::geteuid().is_root() {
            return Err(error).context(hint);
        }
        progress::quietly("apt-get update", apt_get().arg("update"))
            .and_then(|()| download())
            .context(hint)?;
    }
    Ok(())
}

/// The package of the kernel among what `apt-cache depends` says of the metapackage.
fn kernel_package(depends: &str) -> Result<String> {
    let mut names = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{METAPACKAGE} depends on no kernel:\n{depends}"))
}

/// Makes kernel and initrd, unless those there are were made of the same.
fn make(directory: &Path, packages: &Packages) -> Result<Debian> {
    let debian = Debian {
        kernel: directory.join("vmlinuz"),
        initrd: directory.join("initrd"),
    };
    let stamp = directory.join(STAMP);
    let recipe = format!("{packages:?}\n{MODULES:?}\n{INIT}");
    let up_to_date = std::fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == recipe);
    if up_to_date && debian.kernel.exists() && debian.initrd.exists() {
        return Ok(debian);
    }
    progress::step("unpacking the Debian guest's packages", || {
        let mut kernel = unpack(&packages.kernel, |path| {
            let name = path.rsplit('/').next()?;
            let module = name.split(".ko").next().filter(|_| name.contains(".ko"));
            match module {
                Some(module) if MODULES.contains(&module) => Some(name.to_owned()),
                None if name.starts_with("vmlinuz-") => Some("vmlinuz".to_owned()),
                _ => None,
            }
        })?;
        let vmlinuz = kernel
            .remove("vmlinuz")
            .with_context(|| format!("no vmlinuz in {}", packages.kernel.display()))?;
        let mut busybox = unpack(&packages.busybox, |path| {
            path.ends_with("bin/busybox").then(|| "busybox".to_owned())
        })?;
        let busybox = busybox
            .remove("busybox")
            .with_context(|| format!("no busybox in {}", packages.busybox.display()))?;
        let mut modules = Vec::new();
        for module in MODULES {
            let bytes = plain_module(&mut kernel, module)
                .with_context(|| format!("module {module} of {}", packages.kernel.display()))?;
            modules.push((module, bytes));
        }
        let initrd = initrd::build(INIT, &busybox, &modules)?;
        replace(&debian.kernel, &vmlinuz)?;
        replace(&debian.initrd, &initrd)?;
        // Last, so that an interrupted run is repeated.
        replace(&stamp, recipe.as_bytes())
    })?;
    Ok(debian)
}

/// The files of a package for which `wanted` has a name, by that name.
fn unpack(
    package: &Path,
    wanted: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = child.stdout.take().context("dpkg-deb without output")?;
    let files = select(stream, wanted);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", package.display(), text.trim());
    }
    files.with_context(|| package.display().to_string())
}

fn select(
    stream: impl Read,
    wanted: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = tar::Archive::new(stream);
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let Some(name) = wanted(&path).filter(|_| entry.header().entry_type().is_file()) else {
            continue;
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.insert(name, bytes);
    }
    Ok(files)
}

/// A module's bytes; later releases of Debian compress them, and busybox loads only plain ones.
fn plain_module(files: &mut BTreeMap<String, Vec<u8>>, module: &str) -> Result<Vec<u8>> {
    if let Some(plain) = files.remove(&format!("{module}.ko")) {
        return Ok(plain);
    }
    let compressed = files
        .remove(&format!("{module}.ko.xz"))
        .context("it is not there")?;
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, &compressed)?;
    let output = Command::new("xz")
        .args(["--decompress", "--stdout", "--format=xz"])
        .arg(file.path())
        .output()
        .context("cannot start xz")?;
    if !output.status.success() {
        bail!("xz: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Writes a file that another run may be reading or writing.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        let name = kernel_package(text).unwrap();
        assert_eq!(name, "linux-image-6.1.0-56-cloud-amd64");
        assert!(kernel_package("linux-image-cloud-amd64\n").is_err());
        let other = "x\n  Depends: linux-base\n  Depends: linux-image-7-cloud-amd64\n";
        assert_eq!(kernel_package(other).unwrap(), "linux-image-7-cloud-amd64");
    }

    #[test]
    fn only_a_complete_set_of_packages_counts() {
        let directory = tempfile::tempdir().unwrap();
        assert!(find_packages(&directory.path().join("none")).is_err());
        let kernel = directory.path().join("linux-image-6_6_amd64.deb");
        std::fs::write(&kernel, "").unwrap();
        assert!(find_packages(directory.path()).is_err());
        let busybox = directory.path().join("busybox-static_1_amd64.deb");
        std::fs::write(&busybox, "").unwrap();
        let found = find_packages(directory.path()).unwrap();
        assert_eq!(found, Packages { kernel, busybox });
    }

    #[test]
    fn damaged_packages_are_downloaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("packages");
        std::fs::create_dir(&kept).unwrap();
        for name in ["linux-image-6_amd64.deb", "busybox-static_1_amd64.deb"] {
            std::fs::write(kept.join(name), "no package").unwrap();
        }
        let no_network = |_: &Path| -> Result<()> { bail!("no network") };
        let error = prepare_in(directory.path(), no_network).unwrap_err();
        assert_eq!(error.to_string(), "no network");
        assert!(kept.exists(), "kept until there is something better");
        let incomplete = |into: &Path| Ok(std::fs::write(into.join("other.deb"), "")?);
        let error = prepare_in(directory.path(), incomplete).unwrap_err();
        assert_eq!(error.to_string(), "no linux-image- package");
    }

    #[test]
    fn wanted_files_are_taken_out_of_an_archive() {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in [("./boot/vmlinuz-6", "kernel"), ("./boot/config-6", "text")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, path, bytes.as_bytes())
                .unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let wanted = |path: &str| path.contains("vmlinuz").then(|| "k".to_owned());
        let files = select(bytes.as_slice(), wanted).unwrap();
        assert_eq!(
            files,
            BTreeMap::from([("k".to_owned(), b"kernel".to_vec())])
        );
        assert!(select(&bytes[..700], wanted).is_err());
    }

    #[test]
    fn modules_are_taken_plain_or_decompressed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "module").unwrap();
        let compressed = Command::new("xz")
            .arg("--stdout")
            .arg(file.path())
            .output()
            .unwrap();
        let mut files = BTreeMap::from([
            ("a.ko".to_owned(), b"plain".to_vec()),
            ("b.ko.xz".to_owned(), compressed.stdout),
            ("c.ko.xz".to_owned(), b"not xz".to_vec()),
        ]);
        assert_eq!(plain_module(&mut files, "a").unwrap(), b"plain");
        assert_eq!(plain_module(&mut files, "b").unwrap(), b"module");
        assert!(plain_module(&mut files, "c").is_err());
        assert!(plain_module(&mut files, "d").is_err());
    }

    #[test]
    fn the_init_script_is_one() {
        let output = Command::new("sh")
            .args(["-n", "-c", INIT])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(INIT.starts_with("#!/bin/busybox sh\n"));
    }

    #[test]
    fn commands_reach_the_guest_in_quotes() {
        let cmdline = cmdline_running("echo a; sleep 5").unwrap();
        assert_eq!(cmdline, format!("{CMDLINE} duet.run=\"echo a; sleep 5\""));
        assert!(cmdline_running("echo \"a\"").is_err());
    }
}
