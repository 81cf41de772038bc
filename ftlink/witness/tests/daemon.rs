//! The daemon as a process: `init`, requests over UDP, restarts, damaged state, HTTP, and etcd. Ports
//! are the kernel's choice, everything is on loopback, and each child is stopped by its own handle.

#![allow(
    clippy::disallowed_methods,
    reason = "the test waits for processes by the development host's clock"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ftlink::arbiter::datagram::{Key, Nonces, REPLY_BYTES, open_reply, seal_request};
use ftlink::arbiter::{Ask, Denial, Member, Outcome, Refusal, Reply, Request, Verdict};
use ftlink::ids::{BootId, Generation, NodeId, PairId, RequestId};

const PAIR: PairId = PairId(0xd0e7);
const KEY: [u8; 32] = [0x5a; 32];
const A: Member = Member {
    node: NodeId(1),
    boot: BootId(0xa),
};
const B: Member = Member {
    node: NodeId(2),
    boot: BootId(0xb),
};

/// Ends a child process when the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            eprintln!("a child did not end: {error}");
        }
    }
}

struct Site {
    directory: tempfile::TempDir,
    store: String,
}

struct Witness {
    _child: Running,
    udp: SocketAddr,
    http: SocketAddr,
}

impl Site {
    fn new(store: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(directory.path().join("state")).expect("state directory");
        fs::write(directory.path().join("key"), "5a".repeat(32)).expect("key written");
        let store = match store {
            Some(url) => format!("etcd = {url:?}"),
            None => format!("state_dir = {:?}", directory.path().join("state")),
        };
        Self { directory, store }
    }

    fn record(&self) -> PathBuf {
        self.directory.path().join(format!("state/{PAIR}.record"))
    }

    fn config(&self) -> PathBuf {
        let path = self.directory.path().join("witness.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n{}\n[[pair]]\nname = \"web\"\n\
             id = \"{PAIR}\"\nnodes = [1, 2]\nkey_file = {:?}\n",
            self.store,
            self.directory.path().join("key"),
        );
        fs::write(&path, text).expect("configuration written");
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duet-witness"));
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// Runs a verb to its end: whether it succeeded, and everything it said.
    fn verb(&self, arguments: &[&str]) -> (bool, String) {
        let done = self.command(arguments).output().expect("witness runs");
        let said = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn run(&self) -> Witness {
        let mut child = self
            .command(&["run"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("witness starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let child = Running(child);
        let (mut udp, mut http) = (None, None);
        let mut lines = BufReader::new(stderr).lines();
        while udp.is_none() || http.is_none() {
            let line = lines
                .next()
                .expect("witness listens")
                .expect("readable line");
            if let Some(address) = line.strip_prefix("listening on udp ") {
                udp = address.parse().ok();
            } else if let Some(address) = line.strip_prefix("listening on http ") {
                http = address.parse().ok();
            }
        }
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| eprintln!("{line}"))
        });
        Witness {
            _child: child,
            udp: udp.expect("udp address"),
            http: http.expect("http address"),
        }
    }
}

fn request(from: Member, id: u64, generation: u64, ask: Ask) -> Request {
    Request {
        id: RequestId(id),
        from,
        generation: Generation(generation),
        ask,
    }
}

impl Witness {
    fn ask(&self, request: &Request) -> Reply {
        let key = Key::new(&KEY);
        let mut nonces = Nonces::new(request.from.boot.0 ^ (u128::from(request.id.0) << 64));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout set");
        for _ in 0..10 {
            let datagram = seal_request(&key, nonces.take(), PAIR, request);
            socket.send_to(&datagram, self.udp).expect("sent");
            let mut answer = [0; REPLY_BYTES + 1];
            if let Ok(length) = socket.recv(&mut answer) {
                let (pair, reply) = open_reply(&key, &answer[..length]).expect("authentic reply");
                assert_eq!((pair, reply.id, reply.to), (PAIR, request.id, request.from));
                return reply;
            }
        }
        panic!("no answer to {request:?}");
    }

    fn outcome(&self, request: &Request) -> Outcome {
        self.ask(request).outcome
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("connected");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }
}

fn granted(generation: u64) -> Outcome {
    Outcome::Verdict(Verdict::Granted(Generation(generation)))
}

fn denied(denial: Denial) -> Outcome {
    Outcome::Verdict(Verdict::Denied(denial))
}

/// What every kind of store must do, up to generation 2 with owner B.
fn takes_part(site: &Site) {
    let (done, said) = site.verb(&["init", "web"]);
    assert!(done, "{said}");
    let (again, said) = site.verb(&["init", "web"]);
    assert!(!again && said.contains("--at"), "{said}");
    let start = request(A, 1, 0, Ask::Start { peer: None });
    {
        let witness = site.run();
        assert_eq!(witness.outcome(&start), granted(1));
        assert_eq!(
            witness.outcome(&request(B, 1, 1, Ask::Claim)),
            denied(Denial::NotMember)
        );
        assert_eq!(
            witness.outcome(&request(A, 2, 1, Ask::Admit(B))),
            granted(1)
        );
        assert_eq!(witness.outcome(&request(B, 2, 1, Ask::Claim)), granted(2));
        assert_eq!(
            witness.outcome(&request(A, 3, 1, Ask::Claim)),
            denied(Denial::Superseded)
        );
    }
    let witness = site.run();
    // A retry after a restart gets the answer it got; the first denial stays one.
    assert_eq!(witness.outcome(&request(B, 2, 1, Ask::Claim)), granted(2));
    assert_eq!(
        witness.outcome(&request(A, 3, 1, Ask::Claim)),
        denied(Denial::Superseded)
    );
    assert_eq!(
        witness.outcome(&request(B, 1, 1, Ask::Claim)),
        Outcome::Refused(Refusal::Stale)
    );
    let status = witness.get("/status");
    assert!(status.contains("\"generation\":2"), "{status}");
    let metrics = witness.get("/metrics");
    assert!(
        metrics.contains("duet_witness_generation{pair=\"web\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("duet_witness_refused_total 1"),
        "{metrics}"
    );
    assert!(witness.get("/health").contains("200 OK"));
}

#[test]
fn a_record_in_a_file_outlives_the_daemon() {
    takes_part(&Site::new(None));
}

#[test]
fn what_is_not_authentic_gets_no_answer_and_is_counted() {
    let site = Site::new(None);
    assert!(site.verb(&["init", "web"]).0);
    let witness = site.run();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let wanted = request(A, 1, 0, Ask::Start { peer: None });
    let forged = seal_request(&Key::new(&[1; 32]), [3; 24], PAIR, &wanted);
    let foreign = seal_request(&Key::new(&KEY), [4; 24], PairId(1), &wanted);
    for datagram in [&forged[..], &foreign[..], &forged[..40], b"hello"] {
        socket.send_to(datagram, witness.udp).expect("sent");
    }
    // Answered in order: when this is, the others were looked at.
    assert_eq!(
        witness.outcome(&request(A, 1, 0, Ask::Query)),
        Outcome::Known
    );
    let metrics = witness.get("/metrics");
    for line in [
        "unauthenticated_total 1",
        "unknown_pair_total 1",
        "malformed_total 2",
        "writes_total 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn missing_corrupt_or_unwritable_state_is_refused_and_said() {
    let site = Site::new(None);
    let witness = site.run();
    let start = request(A, 1, 0, Ask::Start { peer: None });
    assert_eq!(witness.outcome(&start), Outcome::Refused(Refusal::NoRecord));
    assert!(witness.get("/health").contains("init"));
    assert!(site.verb(&["init", "web"]).0);
    assert_eq!(witness.outcome(&start), granted(1));

    let good = fs::read(site.record()).expect("record");
    let mut bad = good.clone();
    bad[40] ^= 1;
    fs::write(site.record(), &bad).expect("damaged");
    let claim = request(A, 2, 1, Ask::Claim);
    assert_eq!(witness.outcome(&claim), Outcome::Refused(Refusal::Storage));
    assert!(witness.get("/status").contains("corrupt"));
    assert!(witness.get("/health").contains("503"));
    let (done, said) = site.verb(&["init", "web"]);
    assert!(!done && said.contains("--at"), "{said}");
    fs::write(site.record(), &good).expect("repaired");

    // A directory where the new record would be written: no write can succeed.
    let beside = site.record().with_extension("new");
    fs::create_dir(&beside).expect("obstacle");
    assert_eq!(witness.outcome(&claim), Outcome::Refused(Refusal::Storage));
    assert_eq!(fs::read(site.record()).expect("record"), good);
    fs::remove_dir(&beside).expect("obstacle removed");
    assert_eq!(witness.outcome(&claim), granted(2));
}

#[test]
fn a_witness_behind_the_hosts_refuses_until_it_is_initialised_anew() {
    let site = Site::new(None);
    assert!(site.verb(&["init", "web"]).0);
    let witness = site.run();
    let claim = request(A, 1, 7, Ask::Claim);
    assert_eq!(witness.outcome(&claim), Outcome::Refused(Refusal::Behind));
    assert!(site.verb(&["init", "web", "--at", "7"]).0);
    // Nobody is a member yet: only the running owner fills the record in.
    assert_eq!(
        witness.outcome(&claim),
        Outcome::Refused(Refusal::NoMembers)
    );
    let lone = request(B, 1, 7, Ask::Start { peer: None });
    assert_eq!(witness.outcome(&lone), denied(Denial::StillRunning));
    let adopt = request(A, 2, 7, Ask::Adopt { backup: Some(B) });
    assert_eq!(witness.outcome(&adopt), granted(7));
    assert_eq!(witness.outcome(&request(B, 2, 7, Ask::Claim)), granted(8));
    let (done, said) = site.verb(&["init", "web", "--at", "7"]);
    assert!(!done && said.contains("newer"), "{said}");
    let (done, said) = site.verb(&["show", "web"]);
    assert!(done && said.contains("generation 8"), "{said}");
}

/// A free port of loopback; somebody else may take it before its user does, who then says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("address").port()
}

fn start_etcd(directory: &Path) -> (Running, String) {
    let client = format!("http://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let log = fs::File::create(directory.join("etcd.log")).expect("log file");
    let child = Command::new("etcd")
        .args(["--name", "w", "--data-dir"])
        .arg(directory.join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("w={peer}")])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd starts; it is in Debian's etcd-server");
    let child = Running(child);
    let address = client.trim_start_matches("http://").to_string();
    let begun = Instant::now();
    loop {
        let healthy = TcpStream::connect(&address).ok().and_then(|mut stream| {
            write!(
                stream,
                "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            .ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.contains("\"true\"").then_some(())
        });
        if healthy.is_some() {
            return (child, client);
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "etcd is not healthy"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_record_in_etcd_is_changed_by_compare_and_swap() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (etcd, url) = start_etcd(directory.path());
    let site = Site::new(Some(&url));
    takes_part(&site);

    // Two witnesses in front of one etcd: of two claims in one generation, one is granted.
    let (one, other) = (site.run(), site.run());
    assert_eq!(one.outcome(&request(B, 3, 2, Ask::Admit(A))), granted(2));
    let outcomes = std::thread::scope(|scope| {
        let first = scope.spawn(|| one.outcome(&request(A, 4, 2, Ask::Claim)));
        let second = scope.spawn(|| other.outcome(&request(B, 4, 2, Ask::Claim)));
        [first.join().expect("asked"), second.join().expect("asked")]
    });
    assert!(outcomes.contains(&granted(3)), "{outcomes:?}");
    assert!(
        outcomes.contains(&denied(Denial::Superseded)),
        "{outcomes:?}"
    );

    drop(etcd);
    let later = one.outcome(&request(A, 5, 3, Ask::Claim));
    assert_eq!(later, Outcome::Refused(Refusal::Storage));
}
