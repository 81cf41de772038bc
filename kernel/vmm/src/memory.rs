//! Guest physical memory as the guest machine sees it.

use arch::addr::Gpa;

/// A guest physical range that is not all RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam(pub Gpa);

/// Checked access to guest RAM, which is one range from guest physical address 0 up (a machine with holes
/// refuses accesses to them). Every access is checked; contents change only through this and by the guest.
pub trait GuestMemory {
    /// Bytes of RAM, from address 0 up.
    fn size(&self) -> u64;

    /// Whether the 2 MiB from `at` on, which is a multiple of 2 MiB, are known to be all zero: neither the guest nor
    /// anybody else has written to them since power-on.
    fn is_untouched(&self, _at: Gpa) -> bool {
        false
    }

    /// Fills `to` from guest memory. May cross pages.
    ///
    /// # Errors
    ///
    /// A part of the range is not RAM; `to` may be partly filled.
    fn read(&self, from: Gpa, to: &mut [u8]) -> Result<(), NotRam>;

    /// Writes `from` to guest memory. May cross pages.
    ///
    /// # Errors
    ///
    /// A part of the range is not RAM; nothing was written.
    fn write(&mut self, to: Gpa, from: &[u8]) -> Result<(), NotRam>;

    /// Reads an aligned little-endian 64-bit word, as a page walk does.
    ///
    /// # Errors
    ///
    /// It is not RAM.
    fn read_u64(&self, from: Gpa) -> Result<u64, NotRam> {
        let mut bytes = [0; 8];
        self.read(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads 16 bytes of one page, little endian, as an instruction fetch does.
    ///
    /// # Errors
    ///
    /// They are not RAM.
    fn read_u128(&self, from: Gpa) -> Result<u128, NotRam> {
        let mut bytes = [0; 16];
        self.read(from, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Reads an aligned little-endian 32-bit word, as a page walk does.
    ///
    /// # Errors
    ///
    /// It is not RAM.
    fn read_u32(&self, from: Gpa) -> Result<u32, NotRam> {
        let mut bytes = [0; 4];
        self.read(from, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}
