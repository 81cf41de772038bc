//! Wakes a thread that waits for sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

/// The side that wakes.
#[derive(Debug)]
pub(super) struct Waker(UnixDatagram);

/// The side that is woken.
#[derive(Debug)]
pub(super) struct Woken(UnixDatagram);

/// Both sides.
pub(super) fn pair() -> io::Result<(Waker, Woken)> {
    let (waker, woken) = UnixDatagram::pair()?;
    waker.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    Ok((Waker(waker), Woken(woken)))
}

impl Waker {
    /// Wakes the other side. If that fails, it has been woken often enough already, or is gone.
    pub(super) fn wake(&self) {
        self.0.send(&[0]).ok();
    }
}

impl Woken {
    /// Forgets that it was woken.
    pub(super) fn clear(&self) {
        while self.0.recv(&mut [0]).is_ok() {}
    }
}

impl AsFd for Woken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `sockets` is ready, or `until`; being interrupted is being woken.
pub(super) fn wait(sockets: &mut [PollFd<'_>], now: Instant, until: Option<Instant>) {
    let timeout = until.map(|until| {
        let rest = until.saturating_duration_since(now);
        // Rounded up: what is due is due then.
        timespec(rest + Duration::from_nanos(1))
    });
    poll(sockets, timeout.as_ref()).ok();
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}
