//! The daemon `duet-witness`: its command line, its sockets and its end.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use ftlink::arbiter::Record;
use ftlink::arbiter::datagram::REQUEST_BYTES;
use ftlink::ids::Generation;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use witness::config::Config;
use witness::etcd::EtcdStore;
use witness::file::FileStore;
use witness::metrics::count;
use witness::service::Service;
use witness::store::{Store, StoreError};

/// Says which host of a pair may act.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, default_value = "/etc/duet/witness.toml")]
    config: PathBuf,
    /// Keep the records in the etcd cluster at this URL, whatever the configuration says.
    #[arg(long, value_name = "URL")]
    etcd: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Answer requests until told to stop.
    Run,
    /// Make the record of a pair.
    Init {
        /// Its name in the configuration.
        pair: String,
        /// Replace a lost, damaged or old record: the newest generation either host reports.
        #[arg(long, value_name = "G")]
        at: Option<u64>,
        /// With --at: neither host runs the guest, so a lone host may start it.
        #[arg(long, requires = "at")]
        stopped: bool,
    },
    /// Print the record of a pair.
    Show {
        /// Its name in the configuration.
        pair: String,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    let etcd = arguments.etcd.as_ref().or(config.etcd.as_ref());
    let store = match (etcd, &config.state_dir) {
        (Some(url), _) => Store::Etcd(EtcdStore::new(url)?),
        (None, Some(directory)) => Store::File(FileStore::new(directory)?),
        (None, None) => bail!("neither state_dir nor etcd is configured"),
    };
    match arguments.verb {
        Verb::Run => run(config, store).await,
        Verb::Init { pair, at, stopped } => init(&config, &store, &pair, at, stopped).await,
        Verb::Show { pair } => show(&config, &store, &pair).await,
    }
}

/// Makes a record. One that is there is replaced only by `--at`, and never by an older generation.
async fn init(
    config: &Config,
    store: &Store,
    name: &str,
    at: Option<u64>,
    stopped: bool,
) -> Result<()> {
    let pair = config.pair(name)?;
    let found = match store.load(pair.id).await {
        Ok(stored) => Some(stored.record),
        Err(StoreError::Missing) => None,
        Err(StoreError::Corrupt(error)) if at.is_some() => {
            eprintln!("replacing a corrupt record ({error})");
            None
        }
        Err(error) => return Err(error).context(format!("pair {name}")),
    };
    let mut record = match (at, found) {
        (None, None) => Record::empty(pair.id, pair.nodes),
        (None, Some(old)) => bail!(
            "pair {name} has a record, in generation {}; to replace it, give --at",
            old.generation
        ),
        (Some(at), Some(old)) if Generation(at) < old.generation => bail!(
            "pair {name} is in generation {} already, which is newer than {at}",
            old.generation
        ),
        (Some(at), _) => Record::restored(pair.id, pair.nodes, Generation(at), stopped),
    };
    record.sequence = found.map_or(0, |old| old.sequence.saturating_add(1));
    store.overwrite(&record).await?;
    println!(
        "pair {name}: generation {}, {:?}",
        record.generation, record.state
    );
    Ok(())
}

async fn show(config: &Config, store: &Store, name: &str) -> Result<()> {
    let pair = config.pair(name)?;
    let record = store
        .load(pair.id)
        .await
        .with_context(|| format!("pair {name}"))?
        .record;
    println!(
        "pair {name}: generation {}, {:?}",
        record.generation, record.state
    );
    for (what, member) in [("owner", record.owner), ("backup", record.backup)] {
        match member {
            Some(member) => println!("{what}: {member}"),
            None => println!("{what}: none"),
        }
    }
    Ok(())
}

async fn run(config: Config, store: Store) -> Result<()> {
    let socket = UdpSocket::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on udp {}", config.listen))?;
    eprintln!("listening on udp {}", socket.local_addr()?);
    let service = Arc::new(Service::new(config.pairs, store));
    for pair in service.pairs() {
        if let Err(error) = service.store().load(pair.id).await {
            eprintln!("pair {}: refusing: {error}", pair.name);
        }
    }
    if let Some(address) = config.http {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on tcp {address}"))?;
        eprintln!("listening on http {}", listener.local_addr()?);
        tokio::spawn(witness::http::serve(listener, Arc::clone(&service)));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = answer(&socket, &service) => ended,
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("no signals"),
    }
}

/// One request at a time: the record's write is what takes time, and it is one record.
async fn answer(socket: &UdpSocket, service: &Service) -> Result<()> {
    // One byte more than a request, so that a longer datagram is seen to be longer.
    let mut buffer = [0; REQUEST_BYTES + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error about an earlier reply: nothing was received.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error).context("cannot receive"),
        };
        if let Some(reply) = service.answer(&buffer[..length]).await
            && socket.send_to(&reply, from).await.is_err()
        {
            count(&service.metrics.send_errors);
        }
    }
}
