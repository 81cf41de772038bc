//! The configuration file: where to listen, where records are kept, which pairs there are.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ftlink::arbiter::datagram::{KEY_BYTES, Key};
use ftlink::ids::{NodeId, PairId};
use serde::Deserialize;

/// Pairs one witness keeps at most.
pub const MAX_PAIRS: usize = 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    listen: SocketAddr,
    http: Option<SocketAddr>,
    state_dir: Option<PathBuf>,
    etcd: Option<String>,
    #[serde(default)]
    pair: Vec<RawPair>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    name: String,
    id: String,
    nodes: [u64; 2],
    key_file: PathBuf,
}

/// The checked configuration.
#[derive(Debug)]
pub struct Config {
    /// UDP address for requests.
    pub listen: SocketAddr,
    /// HTTP address for status and metrics, if wanted.
    pub http: Option<SocketAddr>,
    /// Directory of the records, unless they are in etcd.
    pub state_dir: Option<PathBuf>,
    /// Base URL of etcd, if the records are kept there.
    pub etcd: Option<String>,
    /// The pairs.
    pub pairs: Vec<Pair>,
}

/// One pair of hosts.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Name for people.
    pub name: String,
    /// Id in requests.
    pub id: PairId,
    /// Its two nodes.
    pub nodes: [NodeId; 2],
    /// What its requests are sealed with.
    pub key: Key,
}

impl Config {
    /// Reads and checks a configuration file and the key files it names.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and any value that is wrong, by its name.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in configuration {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let raw: RawConfig = toml::from_str(text)?;
        ensure!(!raw.pair.is_empty(), "no [[pair]] is configured");
        ensure!(raw.pair.len() <= MAX_PAIRS, "more than {MAX_PAIRS} pairs");
        let mut pairs: Vec<Pair> = Vec::new();
        for pair in raw.pair {
            let name = pair.name.clone();
            let pair = Pair::check(pair).with_context(|| format!("pair {name:?}"))?;
            if pairs
                .iter()
                .any(|known| known.name == pair.name || known.id == pair.id)
            {
                bail!("pair {name:?}: name or id is used twice");
            }
            pairs.push(pair);
        }
        Ok(Self {
            listen: raw.listen,
            http: raw.http,
            state_dir: raw.state_dir,
            etcd: raw.etcd,
            pairs,
        })
    }

    /// The pair with this name.
    ///
    /// # Errors
    ///
    /// There is none; the message names those there are.
    pub fn pair(&self, name: &str) -> Result<&Pair> {
        let names: Vec<_> = self.pairs.iter().map(|pair| pair.name.as_str()).collect();
        self.pairs
            .iter()
            .find(|pair| pair.name == name)
            .with_context(|| format!("no pair {name:?}; configured: {}", names.join(", ")))
    }
}

impl Pair {
    fn check(raw: RawPair) -> Result<Self> {
        let named = !raw.name.is_empty()
            && raw.name.len() <= 64
            && raw
                .name
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter));
        ensure!(named, "name: 1 to 64 letters, digits, - or _");
        let id = (raw.id.len() == 32)
            .then(|| u128::from_str_radix(&raw.id, 16).ok())
            .flatten()
            .context("id: 32 hexadecimal digits")?;
        ensure!(raw.nodes[0] != raw.nodes[1], "nodes: the two are equal");
        Ok(Self {
            name: raw.name,
            id: PairId(id),
            nodes: raw.nodes.map(NodeId),
            key: Key::new(&read_key(&raw.key_file)?),
        })
    }
}

/// Reads a key: 64 hexadecimal digits.
fn read_key(path: &Path) -> Result<[u8; KEY_BYTES]> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read key_file {}", path.display()))?;
    let digits = text.trim();
    let mut key = [0; KEY_BYTES];
    ensure!(
        digits.len() == 2 * KEY_BYTES && digits.is_ascii(),
        "key_file {}: 64 hexadecimal digits",
        path.display()
    );
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16)
            .with_context(|| format!("key_file {}: 64 hexadecimal digits", path.display()))?;
    }
    ensure!(
        key != [0; KEY_BYTES],
        "key_file {}: all zero",
        path.display()
    );
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &Path, change: impl Fn(String) -> String) -> String {
        change(format!(
            "listen = \"127.0.0.1:0\"\nstate_dir = \"/nowhere\"\n[[pair]]\nname = \"web\"\n\
             id = \"000102030405060708090a0b0c0d0e0f\"\nnodes = [1, 2]\nkey_file = {key:?}\n"
        ))
    }

    #[test]
    fn a_configuration_is_read_and_each_mistake_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let key = dir.path().join("key");
        fs::write(&key, format!("{}\n", "5a".repeat(32))).expect("key written");
        let good = Config::parse(&text(&key, |text| text)).expect("good configuration");
        assert_eq!(good.pairs[0].nodes, [NodeId(1), NodeId(2)]);
        assert_eq!(
            good.pairs[0].id,
            PairId(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f)
        );
        let mistakes = [
            ("nodes = [1, 2]", "nodes = [1, 1]", "nodes"),
            ("0001", "xx", "id"),
            ("\"web\"", "\"we b\"", "name"),
            ("listen", "lsten", "lsten"),
        ];
        for (from, to, named) in mistakes {
            let refused = Config::parse(&text(&key, |text| text.replacen(from, to, 1)));
            let said = format!("{:#}", refused.expect_err(named));
            assert!(said.contains(named), "{said} names {named}");
        }
        fs::write(&key, "5a").expect("key written");
        let said = format!(
            "{:#}",
            Config::parse(&text(&key, |text| text)).expect_err("short key")
        );
        assert!(said.contains("key_file"), "{said}");
    }
}
