//! The setup header of a bzImage as a checked view (Linux 6.12, Documentation/arch/x86/boot.rst).

use super::super::Cause;
use super::spec;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The 64-bit boot protocol.
    Long,
    /// The 32-bit boot protocol.
    Protected,
}

/// A bzImage whose header was checked: what a loader has to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BzImage<'a> {
    /// The setup header, which belongs into `boot_params` at [`spec::HEADER`].
    pub(super) header: &'a [u8],
    /// What is loaded: everything behind the real-mode code.
    pub(super) payload: &'a [u8],
    /// How it is entered.
    pub(super) entry: Entry,
    /// Where the payload goes.
    pub(super) load_address: u64,
    /// Where it is entered.
    pub(super) entry_address: u64,
    /// First byte behind all memory the kernel takes before it looks at the memory map.
    pub(super) runtime_end: u64,
    /// Last address that an initrd may take.
    pub(super) initrd_limit: u32,
    /// Longest command line in bytes, without its NUL.
    pub(super) cmdline_limit: u32,
}

/// Fields at constant offsets of the file.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], Cause> {
        let field = self.0.get(at..).and_then(<[u8]>::first_chunk::<N>);
        field.copied().ok_or(Cause::Truncated)
    }

    fn u8(&self, at: usize) -> Result<u8, Cause> {
        self.bytes::<1>(at).map(|b| b[0])
    }

    fn u16(&self, at: usize) -> Result<u16, Cause> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Cause> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Cause> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    /// The whole setup header. Its length is in the jump instruction in front of its magic.
    fn header(&self) -> Result<&'a [u8], Cause> {
        let end = spec::MAGIC + usize::from(self.u8(spec::JUMP + 1)?);
        if !(spec::SHORTEST_HEADER_END..=spec::LONGEST_HEADER_END).contains(&end) {
            return Err(Cause::NotBzImage);
        }
        self.0.get(spec::HEADER..end).ok_or(Cause::Truncated)
    }

    /// What follows the setup sectors, without what may be appended behind it (a signature).
    fn payload(&self) -> Result<&'a [u8], Cause> {
        let sectors = match self.u8(spec::SETUP_SECTS)? {
            0 => spec::DEFAULT_SETUP_SECTS,
            n => usize::from(n),
        };
        let bytes = usize::try_from(self.u32(spec::SYSSIZE)?)
            .ok()
            .and_then(|paragraphs| paragraphs.checked_mul(spec::PARAGRAPH))
            .filter(|bytes| *bytes != 0)
            .ok_or(Cause::NotBzImage)?;
        let start = (1 + sectors) * spec::SECTOR;
        let rest = self.0.get(start..).ok_or(Cause::Truncated)?;
        // The size is in whole paragraphs: the last may be shorter.
        if rest.len() + spec::PARAGRAPH <= bytes {
            return Err(Cause::Truncated);
        }
        Ok(rest.get(..bytes).unwrap_or(rest))
    }
}

impl<'a> BzImage<'a> {
    /// Checks the header of `file`.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, Cause> {
        let fields = Fields(file);
        if fields.u16(spec::BOOT_FLAG)? != spec::BOOT_FLAG_VALUE
            || fields.bytes(spec::MAGIC)? != *spec::MAGIC_VALUE
        {
            return Err(Cause::NotBzImage);
        }
        let version = fields.u16(spec::VERSION)?;
        if version < spec::OLDEST {
            return Err(Cause::TooOld(version));
        }
        if fields.u8(spec::LOADFLAGS)? & spec::LOADED_HIGH == 0 {
            return Err(Cause::NotBzImage);
        }
        let header = fields.header()?;
        let payload = fields.payload()?;
        let preferred = fields.u64(spec::PREF_ADDRESS)?;
        let (load_address, start_address) = if fields.u8(spec::RELOCATABLE_KERNEL)? != 0 {
            (preferred, preferred)
        } else {
            let start = fields.u32(spec::CODE32_START)?;
            (spec::DEFAULT_LOAD_ADDRESS, u64::from(start))
        };
        let is_long = version >= spec::FIRST_WITH_XLOADFLAGS
            && fields.u16(spec::XLOADFLAGS)? & spec::XLF_KERNEL_64 != 0;
        let (entry, entry_address) = if is_long {
            (
                Entry::Long,
                load_address.wrapping_add(spec::LONG_ENTRY_OFFSET),
            )
        } else {
            (Entry::Protected, start_address)
        };
        let payload_end = load_address.checked_add(payload.len() as u64);
        let run_end = preferred.checked_add(u64::from(fields.u32(spec::INIT_SIZE)?));
        let (Some(payload_end), Some(run_end)) = (payload_end, run_end) else {
            return Err(Cause::Contradictory);
        };
        if load_address < spec::DEFAULT_LOAD_ADDRESS
            || !(load_address..payload_end).contains(&entry_address)
        {
            return Err(Cause::Contradictory);
        }
        Ok(Self {
            header,
            payload,
            entry,
            load_address,
            entry_address,
            runtime_end: payload_end.max(run_end),
            initrd_limit: fields.u32(spec::INITRD_ADDR_MAX)?,
            cmdline_limit: fields.u32(spec::CMDLINE_SIZE)?,
        })
    }
}
