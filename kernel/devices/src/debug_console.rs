//! The debug console of Bochs and QEMU: one port, each byte written is a character.

/// Facts of the device.
pub mod spec {
    /// The port.
    pub const PORT: u16 = 0xe9;
    /// What reading it returns: guests probe for the device so.
    pub const SIGNATURE: u8 = 0xe9;
}

/// Longest line that is passed on whole, in bytes.
pub const LINE_BYTES: usize = 256;

/// Collects characters into lines.
#[derive(Clone, Debug)]
pub struct DebugConsole {
    line: [u8; LINE_BYTES],
    length: usize,
}

impl Default for DebugConsole {
    fn default() -> Self {
        Self {
            line: [0; LINE_BYTES],
            length: 0,
        }
    }
}

impl DebugConsole {
    /// Takes one character. Returns a whole line, without its line feed, when one is complete or the
    /// buffer is full.
    pub fn write(&mut self, byte: u8) -> Option<&[u8]> {
        if byte == b'\n' {
            return Some(self.take());
        }
        if let Some(place) = self.line.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
        (self.length == LINE_BYTES).then(|| self.take())
    }

    /// The characters of the line that has not ended yet; it starts anew.
    pub fn take(&mut self) -> &[u8] {
        let length = core::mem::take(&mut self.length);
        self.line.get(..length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole() {
        let mut console = DebugConsole::default();
        assert_eq!(console.write(b'a'), None);
        assert_eq!(console.write(b'b'), None);
        assert_eq!(console.write(b'\n'), Some(&b"ab"[..]));
        assert_eq!(console.write(b'\n'), Some(&b""[..]));
        console.write(b'c');
        assert_eq!(console.take(), b"c");
        assert_eq!(console.take(), b"");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut console = DebugConsole::default();
        let whole = (0..LINE_BYTES * 3)
            .filter(|_| console.write(b'x').is_some())
            .count();
        assert_eq!(whole, 3);
    }
}
