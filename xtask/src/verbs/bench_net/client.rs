//! The client: as much of redis's protocol (RESP) as the measurements need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a value, and how many of them go each way.
const VALUE: usize = 256 << 10;
const VALUES: usize = 64;
/// Values that warm up both sides.
const WARM: usize = 4;
/// Requests that are measured, one after the other.
const REQUESTS: usize = 500;
/// For the guest to answer its first request.
const START: Duration = Duration::from_secs(200);
/// For one answer of a guest that is not up yet; the next attempt is a new connection.
const ATTEMPT: Duration = Duration::from_secs(1);
/// For any answer of a guest that is.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Large values are set.
    ToGuest,
    /// Large values are read.
    FromGuest,
    /// Small requests, each when the last one was answered.
    Requests,
}

/// What it is called.
pub(super) fn name(work: Option<Work>) -> &'static str {
    match work {
        None => "nothing",
        Some(Work::ToGuest) => "to-guest",
        Some(Work::FromGuest) => "from-guest",
        Some(Work::Requests) => "requests",
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the client is outside the machines"
)]
fn now() -> Instant {
    Instant::now()
}

/// Waits for the guest behind `port`, does the work, and lets the guest switch itself off. Returns how fast it was: millions
/// of bytes a second, or requests a second by the median of their times; 0 without work.
pub(super) fn work(port: u16, work: Option<Work>, ended: &AtomicBool) -> Result<f64> {
    let mut client = Client::reach(port, ended)?;
    let speed = match work {
        None => 0.0,
        Some(Work::ToGuest) => {
            client.set(WARM)?;
            let start = now();
            client.set(VALUES)?;
            megabytes_per_second(start)
        }
        Some(Work::FromGuest) => {
            client.set(1)?;
            client.get(WARM)?;
            let start = now();
            client.get(VALUES)?;
            megabytes_per_second(start)
        }
        Some(Work::Requests) => 1.0 / client.request(REQUESTS)?.as_secs_f64(),
    };
    client.send(&[b"RPUSH", b"done", b"1"])?;
    client.expect(":1")?;
    Ok(speed)
}

fn megabytes_per_second(start: Instant) -> f64 {
    (VALUE * VALUES) as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// A connection to a redis-server.
struct Client {
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Client {
    /// Tries until the server answers.
    fn reach(port: u16, ended: &AtomicBool) -> Result<Self> {
        let start = now();
        loop {
            let reached = Self::connect(port, ATTEMPT).and_then(|mut client| {
                client.request(1)?;
                Ok(client)
            });
            match reached {
                Ok(client) => {
                    client.to.set_read_timeout(Some(PATIENCE))?;
                    return Ok(client);
                }
                Err(error) if start.elapsed() > START || ended.load(Ordering::Relaxed) => {
                    return Err(error).context("the guest's redis-server does not answer");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn connect(port: u16, patience: Duration) -> Result<Self> {
        let to = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        to.set_nodelay(true)?;
        to.set_read_timeout(Some(patience))?;
        to.set_write_timeout(Some(PATIENCE))?;
        let from = BufReader::with_capacity(1 << 16, to.try_clone()?);
        Ok(Self { to, from })
    }

    /// Sends a command: an array of strings.
    fn send(&mut self, words: &[&[u8]]) -> Result<()> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(*word);
            bytes.extend(b"\r\n");
        }
        self.to.write_all(&bytes).context("a command")
    }

    /// Takes a line of an answer, which must be this one.
    fn expect(&mut self, line: &str) -> Result<()> {
        let mut said = Vec::new();
        // No line that is expected is longer; a server that says no says why.
        let mut limited = (&mut self.from).take(256);
        limited.read_until(b'\n', &mut said).context("an answer")?;
        let said = String::from_utf8_lossy(&said);
        ensure!(
            said.trim_end() == line,
            "the guest's redis-server answers {said:?} instead of {line:?}"
        );
        Ok(())
    }

    /// Sets a large value so many times. All that may be under way is.
    fn set(&mut self, times: usize) -> Result<()> {
        let value = value();
        for _ in 0..times {
            self.send(&[b"SET", b"value", &value])?;
        }
        for _ in 0..times {
            self.expect("+OK")?;
        }
        Ok(())
    }

    /// Reads the large value so many times.
    fn get(&mut self, times: usize) -> Result<()> {
        let value = value();
        for _ in 0..times {
            self.send(&[b"GET", b"value"])?;
        }
        let mut said = vec![0; VALUE];
        for _ in 0..times {
            self.expect(&format!("${VALUE}"))?;
            self.from.read_exact(&mut said).context("a value")?;
            if said != value {
                bail!("another value than the one that was set");
            }
            self.expect("")?;
        }
        Ok(())
    }

    /// Sends so many requests, each when the last was answered; the median of their times.
    fn request(&mut self, times: usize) -> Result<Duration> {
        let mut took = Vec::with_capacity(times);
        for _ in 0..times {
            let start = now();
            self.send(&[b"PING"])?;
            self.expect("+PONG")?;
            took.push(start.elapsed());
        }
        took.sort();
        took.get(times / 2).copied().context("no request")
    }
}

/// Bytes that are not all the same, so that missing or exchanged ones show.
fn value() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..))
        .take(VALUE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that says these bytes to whoever comes, and what it heard until the client went.
    fn server(says: Vec<u8>) -> (u16, std::thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&says).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            heard
        });
        (port, heard)
    }

    fn connected(says: &[u8]) -> (Client, std::thread::JoinHandle<Vec<u8>>) {
        let (port, heard) = server(says.to_vec());
        (Client::connect(port, PATIENCE).unwrap(), heard)
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let (mut client, heard) = connected(b"+PONG\r\n");
        client.request(1).unwrap();
        drop(client);
        assert_eq!(heard.join().unwrap(), b"*1\r\n$4\r\nPING\r\n");
    }

    #[test]
    fn values_are_set_and_read_whole() {
        let mut says = b"+OK\r\n+OK\r\n".to_vec();
        says.extend(format!("${VALUE}\r\n").into_bytes());
        says.extend(value());
        says.extend(b"\r\n");
        let (mut client, heard) = connected(&says);
        client.set(2).unwrap();
        client.get(1).unwrap();
        drop(client);
        assert!(heard.join().unwrap().len() > 2 * VALUE);
    }

    #[test]
    fn a_wrong_answer_is_quoted() {
        let (mut client, _heard) = connected(b"-ERR out of memory\r\n");
        let error = client.request(1).unwrap_err().to_string();
        assert!(error.contains("ERR out of memory"), "{error}");
        let mut says = format!("${VALUE}\r\n").into_bytes();
        says.extend(vec![0; VALUE]);
        let (mut client, _heard) = connected(&says);
        let error = client.get(1).unwrap_err().to_string();
        assert!(error.contains("another value"), "{error}");
    }

    #[test]
    fn a_machine_that_has_ended_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = work(port, None, &AtomicBool::new(true)).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
