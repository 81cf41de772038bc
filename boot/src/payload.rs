//! The payload of an image: configuration, guest files and seed, as a container's bytes.

use std::path::PathBuf;

use vmm::container::{HEADER_BYTES, Header, MAX_TAR_BYTES, Seed};

use crate::ImageError;

/// The name of the configuration inside the archive.
pub const CONFIG_NAME: &str = "duet.toml";

/// Bytes that a name in a ustar archive may have.
const MAX_NAME_BYTES: usize = 100;

/// A file for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Its name in `duet.toml`.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
}

/// What an image carries besides loader and kernel.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The text of `duet.toml`; not checked here.
    pub config: String,
    /// The guest files.
    pub files: Vec<GuestFile>,
    /// Randomness for one start; `None` in an image that is started more than once.
    pub seed: Option<Seed>,
}

impl Payload {
    /// The container: header, then the archive padded to whole sectors. The same input gives the same bytes.
    ///
    /// # Errors
    ///
    /// A file cannot be read, a name does not fit, or all together are too large.
    pub fn container(&self) -> Result<Vec<u8>, ImageError> {
        let archive = self.archive()?;
        let header = Header::for_archive(&archive, self.seed.clone());
        let mut container = header.encode().to_vec();
        container.extend_from_slice(&archive);
        container.resize(container.len().next_multiple_of(HEADER_BYTES), 0);
        Ok(container)
    }

    fn archive(&self) -> Result<Vec<u8>, ImageError> {
        self.check_names()?;
        self.check_sizes()?;
        let mut builder = tar::Builder::new(Vec::new());
        append(&mut builder, CONFIG_NAME, self.config.as_bytes())?;
        for file in &self.files {
            let bytes =
                std::fs::read(&file.path).map_err(ImageError::file("guest file", &file.path))?;
            append(&mut builder, &file.name, &bytes)?;
        }
        builder.into_inner().map_err(in_memory)
    }

    fn check_names(&self) -> Result<(), ImageError> {
        let mut seen = vec![CONFIG_NAME];
        for GuestFile { name, .. } in &self.files {
            let refuse = |reason| ImageError::Name {
                name: name.clone(),
                reason,
            };
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(refuse("must have 1 to 100 bytes"));
            }
            if name.starts_with('/') || name.split('/').any(|part| part == ".." || part.is_empty())
            {
                return Err(refuse("must be a plain relative path"));
            }
            if seen.contains(&name.as_str()) {
                return Err(refuse("comes twice"));
            }
            seen.push(name);
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        // One sector of header per file, contents in whole sectors, two sectors of end mark.
        let entry = |bytes: u64| 512 + bytes.next_multiple_of(512);
        let mut total = 1024 + entry(self.config.len() as u64);
        let mut largest = (0, CONFIG_NAME);
        for file in &self.files {
            let metadata = std::fs::metadata(&file.path)
                .map_err(ImageError::file("guest file", &file.path))?;
            total += entry(metadata.len());
            largest = largest.max((metadata.len(), &file.name));
        }
        if total > MAX_TAR_BYTES {
            return Err(ImageError::TooLarge {
                bytes: total,
                limit: MAX_TAR_BYTES,
                largest: largest.1.to_owned(),
                largest_bytes: largest.0,
            });
        }
        Ok(())
    }
}

fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, bytes)
        .map_err(in_memory)
}

/// Writing to memory fails only for a name the archive format refuses.
fn in_memory(error: std::io::Error) -> ImageError {
    ImageError::File {
        what: "guest archive",
        path: PathBuf::from("(in memory)"),
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: Vec<GuestFile>) -> Payload {
        Payload {
            config: "[node]\nname = \"a\"\n".to_owned(),
            files,
            seed: None,
        }
    }

    fn named(name: &str) -> GuestFile {
        GuestFile {
            name: name.to_owned(),
            path: PathBuf::from("/dev/null"),
        }
    }

    #[test]
    fn container_holds_configuration_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, b"guest bytes").unwrap();
        let mut payload = payload(vec![GuestFile {
            name: "hello.elf".to_owned(),
            path,
        }]);
        payload.seed = Some(Seed([7; 32]));
        let container = payload.container().unwrap();
        assert_eq!(container.len() % 512, 0);
        let header = Header::decode(&container).unwrap();
        assert_eq!(header.seed, Some(Seed([7; 32])));
        let archive = header.check_archive(&container[HEADER_BYTES..]).unwrap();
        let mut names = Vec::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            names.push((name, text));
        }
        assert_eq!(names[0], (CONFIG_NAME.to_owned(), payload.config.clone()));
        assert_eq!(names[1], ("hello.elf".to_owned(), "guest bytes".to_owned()));
        assert_eq!(names.len(), 2);
        assert_eq!(container, payload.container().unwrap(), "reproducible");
    }

    #[test]
    fn names_are_checked() {
        for name in [
            "",
            "/etc/x",
            "a/../b",
            "a//b",
            "duet.toml",
            &"x".repeat(101),
        ] {
            let error = payload(vec![named(name)]).container().unwrap_err();
            assert!(matches!(error, ImageError::Name { .. }), "{name}: {error}");
        }
        let twice = payload(vec![named("a"), named("a")]);
        assert!(twice.container().unwrap_err().to_string().contains("twice"));
        assert!(payload(vec![named(&"x".repeat(100))]).container().is_ok());
    }

    #[test]
    fn a_missing_guest_file_is_named() {
        let file = GuestFile {
            name: "k".to_owned(),
            path: PathBuf::from("/nonexistent/kernel.elf"),
        };
        let error = payload(vec![file]).container().unwrap_err().to_string();
        assert!(
            error.contains("guest file /nonexistent/kernel.elf"),
            "{error}"
        );
    }

    #[test]
    fn too_much_is_refused_and_the_largest_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_TAR_BYTES - 2560).unwrap();
        let files = vec![GuestFile {
            name: "big.img".to_owned(),
            path,
        }];
        // Exactly full: two headers, one sector of configuration, the end mark.
        assert!(payload(files.clone()).check_sizes().is_ok());
        file.set_len(MAX_TAR_BYTES - 2559).unwrap();
        let error = payload(files).container().unwrap_err().to_string();
        assert!(error.contains("big.img"), "{error}");
    }
}
