//! The host's serial port: bytes out, with bounded waiting.
//!
//! One lock makes a write atomic. The panic path writes without it.

use alloc::collections::VecDeque;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

/// The first serial port of a PC.
pub const COM1: u16 = 0x3f8;

/// Polls of the line status register before the port is taken to be stuck: about 100 ms on hardware, where
/// one poll takes a microsecond and 16 bytes at 115 200 baud take 1.4 ms.
const POLL_LIMIT: u32 = 100_000;

/// Most bytes that wait for the port; more replace the oldest.
const QUEUE_LIMIT: usize = 64 << 10;

static PORT: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
/// What a guest has written and the port had no room for yet: a guest must not wait for a line of 11 KB/s.
static QUEUE: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());
/// Set while the port does not drain, so that a dead line costs one long wait and not one per byte.
static STUCK: AtomicBool = AtomicBool::new(false);
/// Bytes that were not sent.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Why a serial port cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialError {
    /// No 16550 answers at this port.
    NotPresent(u16),
    /// The rate cannot be set exactly.
    BadRate(u32),
}

impl fmt::Display for SerialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SerialError::NotPresent(port) => write!(f, "serial: no 16550 at port {port:#x}"),
            SerialError::BadRate(baud) => write!(f, "serial: {baud} baud cannot be set"),
        }
    }
}

fn open(port: u16, baud: u32) -> Result<Uart16550<PioBackend>, SerialError> {
    // SAFETY: the port is a serial port's by configuration or by PC convention, and this module is
    // the only user.
    let uart = unsafe { Uart16550::new_port(port) };
    let mut uart = uart.map_err(|_| SerialError::NotPresent(port))?;
    let config = Config {
        baud_rate: BaudRate::from_integer(baud),
        check_cts_before_sending: false,
        ..Config::DEFAULT
    };
    uart.init(config).map_err(|error| match error {
        uart_16550::InitError::InvalidBaudRate(_) => SerialError::BadRate(baud),
        _ => SerialError::NotPresent(port),
    })?;
    Ok(uart)
}

/// Opens the port, or closes the old one and opens another. On an error the old one stays.
///
/// # Errors
///
/// Nothing answers at `port`, or `baud` is impossible.
pub fn reconfigure(port: u16, baud: u32) -> Result<(), SerialError> {
    drain();
    let uart = open(port, baud)?;
    *PORT.lock() = Some(uart);
    STUCK.store(false, Ordering::Relaxed);
    Ok(())
}

/// Stops using the port: everything written is lost.
pub fn close() {
    *PORT.lock() = None;
}

fn send(uart: &mut Uart16550<PioBackend>, mut bytes: &[u8]) {
    let limit = if STUCK.load(Ordering::Relaxed) {
        1
    } else {
        POLL_LIMIT
    };
    let mut polls = 0;
    while !bytes.is_empty() {
        let sent = uart.send_bytes(bytes);
        if sent > 0 {
            bytes = bytes.get(sent..).unwrap_or(&[]);
            polls = 0;
            STUCK.store(false, Ordering::Relaxed);
        } else {
            polls += 1;
            if polls >= limit {
                STUCK.store(true, Ordering::Relaxed);
                DROPPED.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return;
            }
            core::hint::spin_loop();
        }
    }
}

/// Writes all of `bytes` behind what is queued, or drops the rest when the port does not drain.
pub fn write(bytes: &[u8]) {
    if let Some(uart) = PORT.lock().as_mut() {
        if let Some(mut queue) = QUEUE.try_lock() {
            send(uart, queue.make_contiguous());
            queue.clear();
        }
        send(uart, bytes);
    }
}

/// Sends a byte as soon as there is room for it, without waiting. See [`pump`].
pub fn queue(byte: u8) {
    let mut queue = QUEUE.lock();
    if queue.len() == QUEUE_LIMIT {
        queue.pop_front();
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
    queue.push_back(byte);
    drop(queue);
    pump();
}

/// Sends of what is queued as much as there is room for. Returns whether some is left.
pub fn pump() -> bool {
    let mut queue = QUEUE.lock();
    if queue.is_empty() {
        return false;
    }
    if let Some(uart) = PORT.lock().as_mut() {
        let (next, _) = queue.as_slices();
        let sent = uart.send_bytes(next);
        queue.drain(..sent);
    }
    !queue.is_empty()
}

/// The next byte that was received.
pub fn read() -> Option<u8> {
    let mut byte = [0];
    let received = PORT.lock().as_mut()?.receive_bytes(&mut byte);
    (received == 1).then_some(byte[0])
}

/// Writes without waiting for the lock's owner, which will never run again.
pub fn write_in_panic(bytes: &[u8]) {
    if PORT.try_lock().is_none() {
        // SAFETY: this node is stopping: no other context will use the port again, and a register
        // protocol cut off in the middle is completed by the next whole byte.
        unsafe { PORT.force_unlock() };
    }
    write(bytes);
}

/// Waits, bounded, until the last byte has left the shift register.
pub fn drain() {
    if let Some(mut port) = PORT.try_lock()
        && let Some(uart) = port.as_mut()
    {
        for _ in 0..POLL_LIMIT {
            if uart
                .lsr()
                .contains(uart_16550::spec::registers::LSR::TRANSMITTER_EMPTY)
            {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

/// Bytes that were dropped because the port did not drain.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}
