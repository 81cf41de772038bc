//! Writes the frames of a wire to a file for Wireshark or tcpdump.
//!
//! The format is pcapng (draft-ietf-opsawg-pcapng): unlike the older pcap it says for each frame at which port it was
//! seen and in which direction, and keeps nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_TIME_RESOLUTION: u16 = 9;

/// Which way a frame goes, as the port's card sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the card.
    Received = 1,
    /// From the card.
    Sent = 2,
}

/// A capture file under way. What goes wrong is reported at its end: the wire works on.
pub(super) struct Capture {
    file: BufWriter<File>,
    error: Option<io::Error>,
}

impl Capture {
    /// Starts a file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut capture = Self {
            file: BufWriter::new(File::create(path)?),
            error: None,
        };
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_le_bytes());
        body.extend(1u16.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        // The length of the section is not known.
        body.extend(u64::MAX.to_le_bytes());
        capture.block(SECTION_HEADER, &body);
        Ok(capture)
    }

    /// Names the next port; they are numbered from 0.
    pub(super) fn port(&mut self, name: &str) {
        let mut body = Vec::new();
        body.extend(LINKTYPE_ETHERNET.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        // Frames are written whole.
        body.extend(0u32.to_le_bytes());
        option(&mut body, OPTION_INTERFACE_NAME, name.as_bytes());
        option(&mut body, OPTION_TIME_RESOLUTION, &[9]);
        option(&mut body, OPTION_END, &[]);
        self.block(INTERFACE, &body);
    }

    /// A frame at `port`, `since_epoch` (1970).
    pub(super) fn frame(&mut self, port: usize, way: Way, since_epoch: Duration, frame: &[u8]) {
        let mut body = Vec::with_capacity(frame.len() + 48);
        let time = since_epoch.as_nanos() as u64;
        let length = frame.len() as u32;
        for word in [
            port as u32,
            (time >> 32) as u32,
            time as u32,
            length,
            length,
        ] {
            body.extend(word.to_le_bytes());
        }
        body.extend(frame);
        pad(&mut body);
        option(&mut body, OPTION_FLAGS, &(way as u32).to_le_bytes());
        option(&mut body, OPTION_END, &[]);
        self.block(PACKET, &body);
    }

    /// Writes out what is in memory, so that the file is of use even if this process is killed.
    pub(super) fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.file.flush().err();
        }
    }

    /// Completes the file.
    ///
    /// # Errors
    ///
    /// The first thing that could not be written; the file ends before it.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.error.map_or(Ok(()), Err)
    }

    fn block(&mut self, kind: u32, body: &[u8]) {
        let length = (body.len() as u32 + 12).to_le_bytes();
        let block = [&kind.to_le_bytes(), &length, body, &length].concat();
        if self.error.is_none() {
            self.error = self.file.write_all(&block).err();
        }
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

/// Everything in a block begins at a multiple of 4 bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}
