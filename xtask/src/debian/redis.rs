//! Debian's `redis-server` for the guest: a real server with real libraries, as an archive behind the initrd.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{initrd, unpack};

/// The packages that the server and its libraries come from.
pub(super) const PACKAGES: [&str; 16] = [
    "redis-tools",
    "libatomic1",
    "libc6",
    "libcap2",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libjemalloc2",
    "liblz4-1",
    "liblzf1",
    "liblzma5",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
];

/// What the server loads, and what that loads.
const LIBRARIES: [&str; 18] = [
    "ld-linux-x86-64.so.2",
    "libatomic.so.1",
    "libc.so.6",
    "libcap.so.2",
    "libcrypto.so.3",
    "libgcc_s.so.1",
    "libgcrypt.so.20",
    "libgpg-error.so.0",
    "libjemalloc.so.2",
    "liblz4.so.1",
    "liblzf.so.1",
    "liblzma.so.5",
    "libm.so.6",
    "libssl.so.3",
    "libstdc++.so.6",
    "libsystemd.so.0",
    "libz.so.1",
    "libzstd.so.1",
];

/// The server is the same program as the tool that checks its files; it goes by the name it is called by.
const PROGRAMS: [(&str, &str); 2] = [
    ("usr/bin/redis-check-rdb", "bin/redis-server"),
    ("usr/bin/redis-cli", "bin/redis-cli"),
];

/// Where a file of a package goes in the guest; `None`: it is not needed.
fn place(path: &str) -> Option<String> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let program = PROGRAMS.iter().find(|(from, _)| *from == path);
    if let Some((_, to)) = program {
        return Some((*to).to_owned());
    }
    let name = Path::new(path).file_name()?.to_str()?;
    let inside = path.starts_with("lib/") || path.starts_with("usr/lib/");
    // A library's file has its whole version in its name, or only that of its interface.
    let library = LIBRARIES.iter().find(|library| {
        let rest = name.strip_prefix(**library);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    let library = library.filter(|_| inside && !path.contains("/gconv/"))?;
    Some(match *library {
        loader @ "ld-linux-x86-64.so.2" => format!("lib64/{loader}"),
        library => format!("lib/{library}"),
    })
}

/// Programs of Redis for this host, a Debian too: clients that talk to the guest's server.
#[derive(Clone, Debug)]
pub struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// Unpacks them into `directory`, with the libraries that a system need not have.
    pub(super) fn unpack(packages: &[PathBuf], directory: PathBuf) -> Result<Self> {
        for package in packages {
            for (path, bytes) in unpack(package, place_on_host)? {
                let path = directory.join(path);
                if !path.exists() {
                    super::replace(&path, &bytes)?;
                    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                }
            }
        }
        Ok(Self { directory })
    }

    /// Such a program.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        command.env("LD_LIBRARY_PATH", &self.directory);
        command
    }
}

/// The name of a file that [`Tools`] consist of.
fn place_on_host(path: &str) -> Option<String> {
    let name = Path::new(path).file_name()?.to_str()?;
    if path.contains("usr/bin/redis-") {
        return Some(name.to_owned());
    }
    // The C library and its loader are this system's.
    const OWN: [&str; 3] = ["ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6"];
    let place = place(path)?;
    let library = Path::new(&place).file_name()?.to_str()?;
    (!OWN.contains(&library)).then(|| library.to_owned())
}

/// The archive, made of the packages at these paths.
///
/// # Errors
///
/// Something that the server needs is in none of them.
pub(super) fn archive(packages: &[PathBuf]) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    for package in packages {
        files.extend(unpack(package, place)?);
    }
    let wanted = PROGRAMS.map(|(from, _)| from);
    for path in wanted
        .into_iter()
        .map(str::to_owned)
        .chain(LIBRARIES.map(|library| format!("usr/lib/{library}")))
    {
        let place = place(&path).unwrap_or_default();
        files
            .contains_key(&place)
            .then_some(())
            .with_context(|| format!("{path}, which redis-server needs, is in no package"))?;
    }
    initrd::programs(&files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_libraries_get_their_places() {
        let of = |path| place(path).unwrap_or_default();
        assert_eq!(of("./usr/bin/redis-check-rdb"), "bin/redis-server");
        assert_eq!(
            of("./usr/lib/x86_64-linux-gnu/libzstd.so.1.5.4"),
            "lib/libzstd.so.1"
        );
        assert_eq!(of("./lib/x86_64-linux-gnu/libc.so.6"), "lib/libc.so.6");
        assert_eq!(
            of("./lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
            "lib64/ld-linux-x86-64.so.2"
        );
        let on_host = |path| place_on_host(path).unwrap_or_default();
        assert_eq!(on_host("./usr/bin/redis-cli"), "redis-cli");
        assert_eq!(
            on_host("./usr/lib/x86_64-linux-gnu/libssl.so.3"),
            "libssl.so.3"
        );
        assert_eq!(place_on_host("./lib/x86_64-linux-gnu/libc.so.6"), None);
        for other in [
            "./usr/share/doc/libc.so.6",
            "./usr/lib/x86_64-linux-gnu/libzstd.so.10",
            "./usr/bin/redis-benchmark",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = archive(&[]).unwrap_err();
        assert!(error.to_string().contains("redis-check-rdb"), "{error}");
    }
}
