//! Log lines on the serial port: `[    0.123456] INFO  text`.
//!
//! A line is put together in memory and written at once, so lines never mix.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use crate::{serial, time};

/// A guest's console has left the terminal in the middle of a line.
static MIDDLE: AtomicBool = AtomicBool::new(false);

/// Longest line in bytes; the rest is cut off and marked.
const LINE_LIMIT: usize = 400;

/// A line under construction.
pub struct Line {
    bytes: [u8; LINE_LIMIT + 5],
    length: usize,
    cut: bool,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            bytes: [0; LINE_LIMIT + 5],
            length: 0,
            cut: false,
        }
    }

    /// The line with its end.
    pub fn finish(&mut self) -> &[u8] {
        let end: &[u8] = if self.cut { b"...\r\n" } else { b"\r\n" };
        if let Some(room) = self.bytes.get_mut(self.length..self.length + end.len()) {
            room.copy_from_slice(end);
            self.length += end.len();
        }
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // One record is one line; other control characters could confuse a terminal.
            let byte = if byte < b' ' && byte != b'\t' {
                b' '
            } else {
                byte
            };
            match self.bytes.get_mut(self.length) {
                Some(slot) if self.length < LINE_LIMIT => {
                    *slot = byte;
                    self.length += 1;
                }
                _ => self.cut = true,
            }
        }
        Ok(())
    }
}

struct Serial;

impl Log for Serial {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = time::now_ns() / 1000;
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        let mut line = Line::new();
        let written = write!(
            line,
            "[{seconds:5}.{micros:06}] {:5} {}",
            record.level(),
            record.args()
        );
        if written.is_err() {
            line.cut = true;
        }
        write_line(&mut line);
    }

    fn flush(&self) {
        serial::drain();
    }
}

/// Makes `log` write to the serial port, at level "info".
pub fn init() {
    static LOGGER: Serial = Serial;
    // A second call would find the same logger in place.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Changes what is logged.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Writes one line without time and level: output of a guest, or a report.
pub fn plain(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    if line.write_fmt(text).is_err() {
        line.cut = true;
    }
    write_line(&mut line);
}

fn write_line(line: &mut Line) {
    if MIDDLE.swap(false, Ordering::Relaxed) {
        serial::write(b"\r\n");
    }
    serial::write(line.finish());
}

/// Sends a byte of the guest that has the serial port, when there is room. What is logged next begins on a line of
/// its own.
pub fn console(byte: u8) {
    MIDDLE.store(!matches!(byte, b'\r' | b'\n'), Ordering::Relaxed);
    serial::queue(byte);
}
