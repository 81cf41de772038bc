//! What the processor's VT-x can do, and the controls chosen from it (SDM 3 appendix A).

use core::fmt;

use crate::regs::{Cr0, Cr4};

use super::control::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls,
};

/// Numbers of the capability MSRs (SDM 3 appendix A).
#[allow(missing_docs)]
pub mod msr {
    pub const BASIC: u32 = 0x480;
    pub const PIN: u32 = 0x481;
    pub const PRIMARY: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED0: u32 = 0x486;
    pub const CR0_FIXED1: u32 = 0x487;
    pub const CR4_FIXED0: u32 = 0x488;
    pub const CR4_FIXED1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    pub const TRUE_PIN: u32 = 0x48d;
    pub const TRUE_PRIMARY: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
}

/// IA32_VMX_BASIC bit 55: the "true" MSRs exist and default-1 controls may be cleared.
const TRUE_CONTROLS: u64 = 1 << 55;

/// The capability MSRs as they read. A field whose MSR does not exist on the processor is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CapabilityMsrs {
    pub basic: u64,
    /// Of the true MSR where it exists, otherwise of the plain one; so the next three.
    pub pin: u64,
    pub primary: u64,
    pub exit: u64,
    pub entry: u64,
    pub secondary: u64,
    pub misc: u64,
    pub cr0_fixed0: u64,
    pub cr0_fixed1: u64,
    pub cr4_fixed0: u64,
    pub cr4_fixed1: u64,
    pub ept_vpid: u64,
}

impl CapabilityMsrs {
    /// Reads all of them through `read`, which is asked only for MSRs that exist.
    #[must_use]
    pub fn read(mut read: impl FnMut(u32) -> u64) -> Self {
        let basic = read(msr::BASIC);
        let exact = basic & TRUE_CONTROLS != 0;
        let pin = read(if exact { msr::TRUE_PIN } else { msr::PIN });
        let primary = read(if exact {
            msr::TRUE_PRIMARY
        } else {
            msr::PRIMARY
        });
        let exit = read(if exact { msr::TRUE_EXIT } else { msr::EXIT });
        let entry = read(if exact { msr::TRUE_ENTRY } else { msr::ENTRY });
        let secondary = if allows(primary, PrimaryControls::SECONDARY.bits()) {
            read(msr::SECONDARY)
        } else {
            0
        };
        let nested = SecondaryControls::EPT.union(SecondaryControls::VPID).bits();
        let ept_vpid = if (secondary >> 32) as u32 & nested != 0 {
            read(msr::EPT_VPID)
        } else {
            0
        };
        Self {
            basic,
            pin,
            primary,
            exit,
            entry,
            secondary,
            misc: read(msr::MISC),
            cr0_fixed0: read(msr::CR0_FIXED0),
            cr0_fixed1: read(msr::CR0_FIXED1),
            cr4_fixed0: read(msr::CR4_FIXED0),
            cr4_fixed1: read(msr::CR4_FIXED1),
            ept_vpid,
        }
    }
}

/// Whether all of `bits` may be 1.
const fn allows(msr: u64, bits: u32) -> bool {
    (msr >> 32) as u32 & bits == bits
}

/// A control word from its capability MSR: bits 31:0 of the MSR are the ones that must be 1, bits 63:32
/// those that may be (SDM 3 A.3.1).
///
/// # Errors
///
/// The bits of `required` that the processor does not allow.
pub const fn adjust(required: u32, optional: u32, msr: u64) -> Result<u32, u32> {
    let must = msr as u32;
    let may = (msr >> 32) as u32;
    let missing = required & !may;
    if missing != 0 {
        return Err(missing);
    }
    Ok((required | optional) & may | must)
}

/// A feature that Duet needs and the processor does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Instructions of the processor that decide which exits are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostInstructions {
    /// CPUID.1:ECX bit 30.
    pub rdrand: bool,
    /// CPUID.7.0:EBX bit 18.
    pub rdseed: bool,
}

/// Bits of IA32_VMX_EPT_VPID_CAP (SDM 3 A.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptVpid(pub u64);

impl EptVpid {
    const fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 != 0
    }
    /// Four-level EPT walks.
    #[must_use]
    pub const fn four_levels(self) -> bool {
        self.bit(6)
    }
    /// EPT tables in write-back memory.
    #[must_use]
    pub const fn write_back(self) -> bool {
        self.bit(14)
    }
    /// 2 MiB pages.
    #[must_use]
    pub const fn large_pages(self) -> bool {
        self.bit(16)
    }
    /// Accessed and dirty flags.
    #[must_use]
    pub const fn accessed_dirty(self) -> bool {
        self.bit(21)
    }
    /// INVEPT of one context.
    #[must_use]
    pub const fn invept_single(self) -> bool {
        self.bit(20) && self.bit(25)
    }
    /// INVEPT of all contexts.
    #[must_use]
    pub const fn invept_all(self) -> bool {
        self.bit(20) && self.bit(26)
    }
    /// INVVPID of one address.
    #[must_use]
    pub const fn invvpid_address(self) -> bool {
        self.bit(32) && self.bit(40)
    }
    /// INVVPID of one context.
    #[must_use]
    pub const fn invvpid_single(self) -> bool {
        self.bit(32) && self.bit(41)
    }
    /// INVVPID of all contexts.
    #[must_use]
    pub const fn invvpid_all(self) -> bool {
        self.bit(32) && self.bit(42)
    }
}

/// The controls a guest runs with, and what else the back end has to know of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: PinControls,
    /// Primary controls, the two windows closed.
    pub primary: PrimaryControls,
    /// Secondary controls.
    pub secondary: SecondaryControls,
    /// Exit controls.
    pub exit: ExitControls,
    /// Entry controls for a guest outside of IA-32e mode.
    pub entry: EntryControls,
    /// PERF_GLOBAL_CTRL can be exchanged at entries and exits, and there is a monitor trap.
    pub can_count: bool,
    /// The preemption timer counts down when this bit of the TSC changes.
    pub timer_shift: u32,
    /// EPT and VPID capabilities.
    pub ept_vpid: EptVpid,
    /// Bits of CR0 that must be 1 under a guest; PE and PG are free (unrestricted guest).
    pub cr0_ones: u64,
    /// Bits of CR0 that may be 1.
    pub cr0_allowed: u64,
    /// Bits of CR4 that must be 1 under a guest.
    pub cr4_ones: u64,
    /// Bits of CR4 that may be 1.
    pub cr4_allowed: u64,
}

const PIN: &[(PinControls, &str)] = &[
    (
        PinControls::EXTERNAL_INTERRUPT_EXITING,
        "external-interrupt exiting",
    ),
    (PinControls::NMI_EXITING, "NMI exiting"),
    (PinControls::VIRTUAL_NMIS, "virtual NMIs"),
    (PinControls::PREEMPTION_TIMER, "VMX-preemption timer"),
];

const PRIMARY: &[(PrimaryControls, &str)] = &[
    (
        PrimaryControls::INTERRUPT_WINDOW_EXITING,
        "interrupt-window exiting",
    ),
    (PrimaryControls::HLT_EXITING, "HLT exiting"),
    (PrimaryControls::INVLPG_EXITING, "INVLPG exiting"),
    (PrimaryControls::MWAIT_EXITING, "MWAIT exiting"),
    (PrimaryControls::RDPMC_EXITING, "RDPMC exiting"),
    (PrimaryControls::RDTSC_EXITING, "RDTSC exiting"),
    (PrimaryControls::CR8_LOAD_EXITING, "CR8-load exiting"),
    (PrimaryControls::CR8_STORE_EXITING, "CR8-store exiting"),
    (PrimaryControls::NMI_WINDOW_EXITING, "NMI-window exiting"),
    (PrimaryControls::MOV_DR_EXITING, "MOV-DR exiting"),
    (
        PrimaryControls::UNCONDITIONAL_IO_EXITING,
        "unconditional I/O exiting",
    ),
    (PrimaryControls::MSR_BITMAPS, "MSR bitmaps"),
    (PrimaryControls::MONITOR_EXITING, "MONITOR exiting"),
    (PrimaryControls::SECONDARY, "secondary controls"),
];

const SECONDARY: &[(SecondaryControls, &str)] = &[
    (SecondaryControls::EPT, "extended page tables (EPT)"),
    (SecondaryControls::UNRESTRICTED_GUEST, "unrestricted guest"),
    (SecondaryControls::WBINVD_EXITING, "WBINVD exiting"),
];

const EXIT: &[(ExitControls, &str)] = &[
    (ExitControls::SAVE_DEBUG, "saving debug controls at exits"),
    (ExitControls::HOST_64_BIT, "64-bit host"),
    (ExitControls::LOAD_PAT, "loading IA32_PAT at exits"),
    (ExitControls::SAVE_EFER, "saving IA32_EFER at exits"),
    (ExitControls::LOAD_EFER, "loading IA32_EFER at exits"),
];

const ENTRY: &[(EntryControls, &str)] = &[
    (EntryControls::LOAD_DEBUG, "loading debug controls at entry"),
    (EntryControls::LOAD_PAT, "loading IA32_PAT at entry"),
    (EntryControls::LOAD_EFER, "loading IA32_EFER at entry"),
];

/// Adjusts a control word and names the first required bit that is missing.
macro_rules! choose {
    ($type:ident, $table:expr, $optional:expr, $msr:expr) => {{
        let required = $table
            .iter()
            .fold($type::empty(), |all, (bit, _)| all.union(*bit));
        match adjust(required.bits(), $optional.bits(), $msr) {
            Ok(value) => $type::from_bits_retain(value),
            Err(missing) => {
                let name = $table
                    .iter()
                    .find(|(bit, _)| bit.bits() & missing != 0)
                    .map_or("a control", |(_, name)| name);
                return Err(Missing(name));
            }
        }
    }};
}

impl Capabilities {
    /// Chooses the controls for this processor.
    ///
    /// # Errors
    ///
    /// The first feature that is needed and missing.
    pub fn choose(msrs: &CapabilityMsrs, host: HostInstructions) -> Result<Self, Missing> {
        const MEMORY_TYPE_WRITE_BACK: u64 = 6;
        if msrs.basic >> 50 & 0xf != MEMORY_TYPE_WRITE_BACK {
            return Err(Missing("VMCS in write-back memory"));
        }
        let ept_vpid = EptVpid(msrs.ept_vpid);
        let pin = choose!(PinControls, PIN, PinControls::empty(), msrs.pin);
        let primary = choose!(
            PrimaryControls,
            PRIMARY,
            PrimaryControls::empty(),
            msrs.primary
        );
        let secondary = Self::choose_secondary(msrs, ept_vpid, host)?;
        let exit = choose!(ExitControls, EXIT, ExitControls::empty(), msrs.exit);
        let entry = choose!(EntryControls, ENTRY, EntryControls::empty(), msrs.entry);
        for (present, name) in [
            (ept_vpid.four_levels(), "EPT with four levels"),
            (ept_vpid.write_back(), "EPT in write-back memory"),
            (ept_vpid.large_pages(), "EPT with 2 MiB pages"),
            (ept_vpid.invept_single() || ept_vpid.invept_all(), "INVEPT"),
        ] {
            if !present {
                return Err(Missing(name));
            }
        }
        let free = Cr0::PE.union(Cr0::PG).bits();
        Ok(Self {
            revision: msrs.basic as u32 & 0x7fff_ffff,
            pin,
            primary: primary
                - PrimaryControls::INTERRUPT_WINDOW_EXITING
                - PrimaryControls::NMI_WINDOW_EXITING,
            secondary,
            exit,
            entry,
            can_count: allows(msrs.exit, ExitControls::LOAD_PERF_GLOBAL.bits())
                && allows(msrs.entry, EntryControls::LOAD_PERF_GLOBAL.bits())
                && allows(msrs.primary, PrimaryControls::MONITOR_TRAP.bits()),
            timer_shift: (msrs.misc & 0x1f) as u32,
            ept_vpid,
            cr0_ones: msrs.cr0_fixed0 & !free | Cr0::NE.bits(),
            cr0_allowed: msrs.cr0_fixed1,
            cr4_ones: msrs.cr4_fixed0 | Cr4::VMXE.bits(),
            cr4_allowed: msrs.cr4_fixed1,
        })
    }

    fn choose_secondary(
        msrs: &CapabilityMsrs,
        ept_vpid: EptVpid,
        host: HostInstructions,
    ) -> Result<SecondaryControls, Missing> {
        // Without the RDTSCP control the instruction is #UD in the guest although CPUID shows it.
        let mut optional = SecondaryControls::RDTSCP;
        if ept_vpid.invvpid_single() || ept_vpid.invvpid_all() {
            optional |= SecondaryControls::VPID;
        }
        for (wanted, bit, name) in [
            (
                host.rdrand,
                SecondaryControls::RDRAND_EXITING,
                "RDRAND exiting",
            ),
            (
                host.rdseed,
                SecondaryControls::RDSEED_EXITING,
                "RDSEED exiting",
            ),
        ] {
            if wanted {
                if !allows(msrs.secondary, bit.bits()) {
                    return Err(Missing(name));
                }
                optional |= bit;
            }
        }
        Ok(choose!(
            SecondaryControls,
            SECONDARY,
            optional,
            msrs.secondary
        ))
    }

    /// Whether translations are tagged, so that entries and exits do not flush them.
    #[must_use]
    pub const fn has_vpid(&self) -> bool {
        self.secondary.contains(SecondaryControls::VPID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0xffff_ffff_0000_0000;
    const HOST: HostInstructions = HostInstructions {
        rdrand: true,
        rdseed: true,
    };

    /// A processor that allows everything and insists on nothing but the fixed CR bits.
    fn generous() -> CapabilityMsrs {
        CapabilityMsrs {
            basic: 6 << 50 | 1 << 55 | 0x1234,
            pin: ALL | 0x16,
            primary: ALL | 0x0401_e172 & !0x1_8000,
            exit: ALL | 0x3_6dff & !0x204,
            entry: ALL | 0x11ff & !0x204,
            secondary: ALL,
            misc: 5,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x0077_27ff,
            ept_vpid: 0x0f01_0633_4141,
        }
    }

    fn without(msr: u64, bit: u32) -> u64 {
        msr & !(u64::from(bit) << 32)
    }

    #[test]
    fn counting_needs_three_controls_that_running_does_not() {
        let of = |msrs| Capabilities::choose(&msrs, HOST).map(|c| c.can_count);
        assert_eq!(of(generous()), Ok(true));
        let mut msrs = generous();
        msrs.exit = without(msrs.exit, ExitControls::LOAD_PERF_GLOBAL.bits());
        assert_eq!(of(msrs), Ok(false));
        let mut msrs = generous();
        msrs.entry = without(msrs.entry, EntryControls::LOAD_PERF_GLOBAL.bits());
        assert_eq!(of(msrs), Ok(false));
        let mut msrs = generous();
        msrs.primary = without(msrs.primary, PrimaryControls::MONITOR_TRAP.bits());
        assert_eq!(of(msrs), Ok(false));
    }

    #[test]
    fn adjust_keeps_forced_bits_and_drops_forbidden_options() {
        let msr = 0b0111_u64 << 32 | 0b0100;
        assert_eq!(adjust(0b0001, 0b1010, msr), Ok(0b0111));
        assert_eq!(adjust(0b1001, 0, msr), Err(0b1000));
    }

    #[test]
    fn a_full_processor_gets_all_exits() {
        let chosen = Capabilities::choose(&generous(), HOST).expect("nothing is missing");
        assert_eq!(chosen.revision, 0x1234);
        assert_eq!(chosen.timer_shift, 5);
        assert!(chosen.has_vpid());
        assert!(chosen.secondary.contains(
            SecondaryControls::EPT
                | SecondaryControls::UNRESTRICTED_GUEST
                | SecondaryControls::RDRAND_EXITING
                | SecondaryControls::RDSEED_EXITING
        ));
        // Instructions that must be #UD in a guest stay off.
        assert!(!chosen.secondary.intersects(
            SecondaryControls::INVPCID | SecondaryControls::VMFUNC | SecondaryControls::XSAVES
        ));
        assert!(!chosen.primary.intersects(
            PrimaryControls::CR3_LOAD_EXITING
                | PrimaryControls::CR3_STORE_EXITING
                | PrimaryControls::TSC_OFFSETTING
                | PrimaryControls::INTERRUPT_WINDOW_EXITING
                | PrimaryControls::NMI_WINDOW_EXITING
        ));
        assert_eq!(
            chosen.cr0_ones & 0x8000_0001,
            0,
            "PE and PG are the guest's"
        );
        assert_ne!(chosen.cr0_ones & 0x20, 0, "NE stays on");
    }

    #[test]
    fn the_missing_feature_is_named() {
        type Case = (&'static str, fn(&mut CapabilityMsrs));
        let cases: [Case; 7] = [
            ("extended page tables (EPT)", |m| {
                m.secondary = without(m.secondary, 1 << 1)
            }),
            ("unrestricted guest", |m| {
                m.secondary = without(m.secondary, 1 << 7)
            }),
            ("RDSEED exiting", |m| {
                m.secondary = without(m.secondary, 1 << 16)
            }),
            ("VMX-preemption timer", |m| m.pin = without(m.pin, 1 << 6)),
            ("secondary controls", |m| {
                m.primary = without(m.primary, 1 << 31)
            }),
            ("EPT with 2 MiB pages", |m| m.ept_vpid &= !(1 << 16)),
            ("loading IA32_EFER at entry", |m| {
                m.entry = without(m.entry, 1 << 15)
            }),
        ];
        for (name, spoil) in cases {
            let mut msrs = generous();
            spoil(&mut msrs);
            assert_eq!(Capabilities::choose(&msrs, HOST), Err(Missing(name)));
        }
    }

    #[test]
    fn random_number_exits_are_needed_only_with_the_instructions() {
        let mut msrs = generous();
        msrs.secondary = without(msrs.secondary, 1 << 11 | 1 << 16);
        let old = HostInstructions {
            rdrand: false,
            rdseed: false,
        };
        assert!(Capabilities::choose(&msrs, old).is_ok());
    }

    #[test]
    fn no_vpid_without_a_way_to_flush_it() {
        let mut msrs = generous();
        msrs.ept_vpid &= !(1 << 41 | 1 << 42);
        let chosen = Capabilities::choose(&msrs, HOST).expect("VPID is optional");
        assert!(!chosen.has_vpid());
    }

    #[test]
    fn plain_msrs_are_read_on_processors_without_true_ones() {
        let mut asked = [false; 0x20];
        let msrs = CapabilityMsrs::read(|number| {
            asked[(number - msr::BASIC) as usize] = true;
            if number == msr::BASIC { 6 << 50 } else { 0 }
        });
        assert_eq!(msrs.secondary, 0);
        assert!(
            asked[1] && !asked[0xd],
            "IA32_VMX_PINBASED_CTLS, not the true one"
        );
        assert!(!asked[0xb], "no secondary controls, no MSR for them");
    }
}
