//! The walk through the guest's own page tables: linear to guest physical.
//!
//! For instruction fetches of what the guest has just executed and for operands of emulated
//! instructions. Accessed and dirty bits are not set here: a walk on behalf of an emulated access
//! follows one the processor made itself, or will make when the access is retried.

use arch::addr::{Gpa, Gva};
use arch::regs::{Cr0, Cr4, Efer, Paging};

use crate::memory::GuestMemory;

/// What the access wants to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
    /// It is made at privilege level 3.
    pub user: bool,
}

/// Why an address does not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets #PF with this error code (SDM 3 5.7) and CR2 = `gva`.
    PageFault {
        /// The faulting address.
        gva: Gva,
        /// P, W/R, U/S, RSVD, I/D.
        error_code: u32,
    },
    /// The address is not canonical: #GP(0), or #SS(0) for stack accesses.
    NotCanonical,
    /// A page table lies outside of RAM; a processor would read all ones or device contents there.
    TableNotInRam(Gpa),
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const CODE_PRESENT: u32 = 1 << 0;
const CODE_WRITE: u32 = 1 << 1;
const CODE_USER: u32 = 1 << 2;
const CODE_FETCH: u32 = 1 << 4;

/// Translates one linear address.
///
/// Rights are checked as the processor does, but for protection keys, which this machine does not
/// have, and SMAP: an emulated access is one the processor has checked itself before it faulted.
///
/// # Errors
///
/// What the guest would get instead.
#[inline]
pub fn translate<M: GuestMemory>(
    memory: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    if !paging.cr0.contains(Cr0::PG) {
        return Ok(Gpa(gva.0 & 0xffff_ffff));
    }
    if paging.efer.contains(Efer::LMA) {
        four_level(memory, paging, gva, access)
    } else if paging.cr4.contains(Cr4::PAE) {
        pae(memory, paging, Gva(gva.0 & 0xffff_ffff), access)
    } else {
        two_level(memory, paging, Gva(gva.0 & 0xffff_ffff), access)
    }
}

fn fault(paging: &Paging, gva: Gva, access: Access, present: bool) -> WalkError {
    let mut error_code = 0;
    if present {
        error_code |= CODE_PRESENT;
    }
    if access.write {
        error_code |= CODE_WRITE;
    }
    if access.user {
        error_code |= CODE_USER;
    }
    let nx = paging.efer.contains(Efer::NXE) && paging.cr4.contains(Cr4::PAE);
    if access.execute && (nx || paging.cr4.contains(Cr4::SMEP)) {
        error_code |= CODE_FETCH;
    }
    WalkError::PageFault { gva, error_code }
}

/// Rights accumulated on the way down (SDM 3 5.6).
struct Rights(u64);

impl Rights {
    fn allow(&self, paging: &Paging, access: Access) -> bool {
        let user_page = self.0 & USER != 0;
        if access.user && !user_page {
            return false;
        }
        if access.write && self.0 & WRITABLE == 0 && (access.user || paging.cr0.contains(Cr0::WP)) {
            return false;
        }
        if access.execute {
            if self.0 & NO_EXECUTE != 0 && paging.efer.contains(Efer::NXE) {
                return false;
            }
            if !access.user && user_page && paging.cr4.contains(Cr4::SMEP) {
                return false;
            }
        }
        true
    }

    /// Both levels have to grant W and U; either can take X.
    fn narrow(self, entry: u64) -> Self {
        Self((self.0 & entry & (WRITABLE | USER)) | ((self.0 | entry) & NO_EXECUTE))
    }
}

const ALL_RIGHTS: Rights = Rights(WRITABLE | USER);

fn entry<M: GuestMemory>(memory: &M, at: Gpa) -> Result<u64, WalkError> {
    memory
        .read_u64(at)
        .map_err(|_| WalkError::TableNotInRam(at))
}

fn four_level<M: GuestMemory>(
    memory: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    if ((gva.0 << 16) as i64 >> 16) as u64 != gva.0 {
        return Err(WalkError::NotCanonical);
    }
    long_levels(memory, paging, gva, access, paging.cr3 & ADDRESS, 39)
}

fn pae<M: GuestMemory>(
    memory: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    let at = Gpa((paging.cr3 & 0xffff_ffe0) + (gva.0 >> 30) * 8);
    let pdpte = entry(memory, at)?;
    if pdpte & PRESENT == 0 {
        return Err(fault(paging, gva, access, false));
    }
    long_levels(memory, paging, gva, access, pdpte & ADDRESS, 21)
}

/// The levels with 512 entries of eight bytes, from the one whose index starts at bit `shift` down.
#[inline]
fn long_levels<M: GuestMemory>(
    memory: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
    mut table: u64,
    mut shift: u32,
) -> Result<Gpa, WalkError> {
    let mut rights = ALL_RIGHTS;
    loop {
        let e = entry(memory, Gpa(table | (gva.0 >> shift & 0x1ff) << 3))?;
        if e & PRESENT == 0 {
            return Err(fault(paging, gva, access, false));
        }
        rights = rights.narrow(e);
        let leaf = shift == 12 || (e & LARGE != 0 && shift <= 30);
        if leaf {
            if !rights.allow(paging, access) {
                return Err(fault(paging, gva, access, true));
            }
            let within = (1 << shift) - 1;
            return Ok(Gpa((e & ADDRESS & !within) | (gva.0 & within)));
        }
        table = e & ADDRESS;
        shift -= 9;
    }
}

fn two_level<M: GuestMemory>(
    memory: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    let read = |at: u64| {
        memory
            .read_u32(Gpa(at))
            .map(u64::from)
            .map_err(|_| WalkError::TableNotInRam(Gpa(at)))
    };
    let pde = read((paging.cr3 & 0xffff_f000) | (gva.0 >> 22) << 2)?;
    if pde & PRESENT == 0 {
        return Err(fault(paging, gva, access, false));
    }
    let rights = ALL_RIGHTS.narrow(pde);
    if pde & LARGE != 0 && paging.cr4.contains(Cr4::PSE) {
        if !rights.allow(paging, access) {
            return Err(fault(paging, gva, access, true));
        }
        // PSE-36: bits 20:13 of the entry are address bits 39:32 (SDM 3 5.3).
        let base = (pde & 0xffc0_0000) | (pde >> 13 & 0xff) << 32;
        return Ok(Gpa(base | (gva.0 & 0x3f_ffff)));
    }
    let pte = read((pde & 0xffff_f000) | (gva.0 >> 12 & 0x3ff) << 2)?;
    if pte & PRESENT == 0 {
        return Err(fault(paging, gva, access, false));
    }
    if !rights.narrow(pte).allow(paging, access) {
        return Err(fault(paging, gva, access, true));
    }
    Ok(Gpa((pte & 0xffff_f000) | (gva.0 & 0xfff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ram, control_long, control_protected};

    const READ: Access = Access {
        write: false,
        execute: false,
        user: false,
    };
    const WRITE: Access = Access {
        write: true,
        execute: false,
        user: false,
    };
    const USER_READ: Access = Access {
        write: false,
        execute: false,
        user: true,
    };
    const FETCH: Access = Access {
        write: false,
        execute: true,
        user: false,
    };

    fn long() -> (Ram, Paging) {
        let mut ram = Ram::new(0x10_0000);
        ram.put_u64(0x1000, 0x2000 | 7);
        ram.put_u64(0x2000, 0x3000 | 7);
        ram.put_u64(0x2008, 0x4000_0000 | LARGE | 7); // 1 GiB page
        ram.put_u64(0x3000, 0x4000 | 7);
        ram.put_u64(0x3008, 0x20_0000 | LARGE | 5); // 2 MiB page, read-only
        ram.put_u64(0x4000, 0x9000 | 3); // supervisor
        ram.put_u64(0x4008, 0xa000 | 7 | NO_EXECUTE);
        let mut paging = control_long(0x1000).paging();
        paging.cr0 |= Cr0::WP;
        paging.efer |= Efer::NXE;
        (ram, paging)
    }

    #[test]
    fn long_mode_pages_of_every_size() {
        let (ram, paging) = long();
        let t = |gva| translate(&ram, &paging, Gva(gva), READ);
        assert_eq!(t(0x123), Ok(Gpa(0x9123)));
        assert_eq!(t(0x1fff), Ok(Gpa(0xafff)));
        assert_eq!(t(0x20_1234), Ok(Gpa(0x20_1234)));
        assert_eq!(t(0x4012_3456), Ok(Gpa(0x4012_3456)));
        assert_eq!(t(0x8000_0000_0000), Err(WalkError::NotCanonical));
    }

    #[test]
    fn error_codes_say_what_was_missing() {
        let (ram, paging) = long();
        let code = |gva, access| match translate(&ram, &paging, Gva(gva), access) {
            Err(WalkError::PageFault { error_code, .. }) => Some(error_code),
            _ => None,
        };
        assert_eq!(code(0x2000, READ), Some(0));
        assert_eq!(code(0x2000, WRITE), Some(CODE_WRITE));
        assert_eq!(code(0x20_0000, WRITE), Some(CODE_PRESENT | CODE_WRITE));
        assert_eq!(code(0, USER_READ), Some(CODE_PRESENT | CODE_USER));
        assert_eq!(code(0x1000, FETCH), Some(CODE_PRESENT | CODE_FETCH));
        assert_eq!(code(0, FETCH), None);
    }

    #[test]
    fn write_protection_binds_the_kernel_only_with_wp() {
        let (ram, mut paging) = long();
        paging.cr0 -= Cr0::WP;
        assert_eq!(
            translate(&ram, &paging, Gva(0x20_0000), WRITE),
            Ok(Gpa(0x20_0000))
        );
    }

    #[test]
    fn smep_keeps_the_kernel_out_of_user_pages() {
        let (mut ram, mut paging) = long();
        ram.put_u64(0x4008, 0xa000 | 7);
        assert!(translate(&ram, &paging, Gva(0x1000), FETCH).is_ok());
        paging.cr4 |= Cr4::SMEP;
        assert!(translate(&ram, &paging, Gva(0x1000), FETCH).is_err());
    }

    #[test]
    fn a_table_outside_of_ram_is_named() {
        let (mut ram, paging) = long();
        ram.put_u64(0x1008, 0x7000_0000 | 7);
        assert_eq!(
            translate(&ram, &paging, Gva(1 << 39), READ),
            Err(WalkError::TableNotInRam(Gpa(0x7000_0000)))
        );
    }

    #[test]
    fn two_level_and_pse() {
        let mut ram = Ram::new(0x10_0000);
        let mut paging = control_protected().paging();
        assert_eq!(translate(&ram, &paging, Gva(0x1234), READ), Ok(Gpa(0x1234)));
        paging.cr0 |= Cr0::PG;
        paging.cr3 = 0x1000;
        paging.cr4 = Cr4::PSE;
        ram.put_u32(0x1000, 0x2000 | 7);
        ram.put_u32(0x1004, 0x40_0000 | 0x87);
        ram.put_u32(0x2004, 0x5000 | 7);
        assert_eq!(translate(&ram, &paging, Gva(0x1678), READ), Ok(Gpa(0x5678)));
        assert_eq!(
            translate(&ram, &paging, Gva(0x41_2345), READ),
            Ok(Gpa(0x41_2345))
        );
        assert!(translate(&ram, &paging, Gva(0x2000), READ).is_err());
    }

    #[test]
    fn pae_starts_at_four_entries() {
        let mut ram = Ram::new(0x10_0000);
        let mut paging = control_protected().paging();
        paging.cr0 |= Cr0::PG;
        paging.cr3 = 0x1020;
        paging.cr4 = Cr4::PAE;
        ram.put_u64(0x1020 + 3 * 8, 0x2000 | 1);
        ram.put_u64(0x2000, 0x3000 | 7);
        ram.put_u64(0x3000 + 8, 0x7000 | 7);
        assert_eq!(
            translate(&ram, &paging, Gva(0xc000_1004), READ),
            Ok(Gpa(0x7004))
        );
        assert!(translate(&ram, &paging, Gva(0x1000), READ).is_err());
    }
}
