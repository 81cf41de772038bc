//! VMCS fields, each with its width in its type (SDM 3 appendix B).
//!
//! The encoding says the width (bits 14:13) and the group (bits 11:10) of a field (SDM 3 26.11.2,
//! table 26-21). Only fields that this hypervisor uses are named.

/// A 16-bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field16(pub u32);
/// A 32-bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field32(pub u32);
/// A 64-bit field, by its full-access encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field64(pub u32);
/// A field of natural width: 64 bits on every processor this hypervisor runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldNatural(pub u32);

/// Any field: what an instruction wants to know, and which Rust type holds the value.
pub trait Field: Copy {
    /// The type of the value.
    type Value: Copy;
    /// The encoding, as VMREAD and VMWRITE take it.
    fn encoding(self) -> u32;
    /// The value out of a 64-bit register; unused high bits are dropped.
    fn from_register(raw: u64) -> Self::Value;
    /// The value in a 64-bit register.
    fn to_register(value: Self::Value) -> u64;
}

macro_rules! width {
    ($field:ident, $value:ty) => {
        impl Field for $field {
            type Value = $value;
            #[inline]
            fn encoding(self) -> u32 {
                self.0
            }
            #[inline]
            fn from_register(raw: u64) -> $value {
                raw as $value
            }
            #[inline]
            fn to_register(value: $value) -> u64 {
                u64::from(value)
            }
        }
    };
}

width!(Field16, u16);
width!(Field32, u32);
width!(Field64, u64);
width!(FieldNatural, u64);

macro_rules! fields {
    ($type:ident: $($name:ident = $encoding:literal,)*) => {
        $(#[allow(missing_docs)] pub const $name: $type = $type($encoding);)*
        impl $type {
            /// All fields of this width with their names, for dumps.
            pub const ALL: &[(&str, $type)] = &[$((stringify!($name), $name),)*];
        }
    };
}

fields!(Field16:
    VPID = 0x0000,
    GUEST_ES_SELECTOR = 0x0800,
    GUEST_CS_SELECTOR = 0x0802,
    GUEST_SS_SELECTOR = 0x0804,
    GUEST_DS_SELECTOR = 0x0806,
    GUEST_FS_SELECTOR = 0x0808,
    GUEST_GS_SELECTOR = 0x080a,
    GUEST_LDTR_SELECTOR = 0x080c,
    GUEST_TR_SELECTOR = 0x080e,
    HOST_ES_SELECTOR = 0x0c00,
    HOST_CS_SELECTOR = 0x0c02,
    HOST_SS_SELECTOR = 0x0c04,
    HOST_DS_SELECTOR = 0x0c06,
    HOST_FS_SELECTOR = 0x0c08,
    HOST_GS_SELECTOR = 0x0c0a,
    HOST_TR_SELECTOR = 0x0c0c,
);

fields!(Field64:
    MSR_BITMAP = 0x2004,
    EXIT_MSR_STORE_ADDRESS = 0x2006,
    ENTRY_MSR_LOAD_ADDRESS = 0x200a,
    EPT_POINTER = 0x201a,
    GUEST_PHYSICAL_ADDRESS = 0x2400,
    VMCS_LINK_POINTER = 0x2800,
    GUEST_DEBUGCTL = 0x2802,
    GUEST_PAT = 0x2804,
    GUEST_EFER = 0x2806,
    GUEST_PERF_GLOBAL_CTRL = 0x2808,
    GUEST_PDPTE0 = 0x280a,
    GUEST_PDPTE1 = 0x280c,
    GUEST_PDPTE2 = 0x280e,
    GUEST_PDPTE3 = 0x2810,
    HOST_PAT = 0x2c00,
    HOST_EFER = 0x2c02,
    HOST_PERF_GLOBAL_CTRL = 0x2c04,
);

fields!(Field32:
    PIN_BASED_CONTROLS = 0x4000,
    PRIMARY_CONTROLS = 0x4002,
    EXCEPTION_BITMAP = 0x4004,
    PAGE_FAULT_ERROR_CODE_MASK = 0x4006,
    PAGE_FAULT_ERROR_CODE_MATCH = 0x4008,
    CR3_TARGET_COUNT = 0x400a,
    EXIT_CONTROLS = 0x400c,
    EXIT_MSR_STORE_COUNT = 0x400e,
    EXIT_MSR_LOAD_COUNT = 0x4010,
    ENTRY_CONTROLS = 0x4012,
    ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_INTERRUPTION_INFO = 0x4016,
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
    ENTRY_INSTRUCTION_LENGTH = 0x401a,
    SECONDARY_CONTROLS = 0x401e,
    INSTRUCTION_ERROR = 0x4400,
    EXIT_REASON = 0x4402,
    EXIT_INTERRUPTION_INFO = 0x4404,
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406,
    IDT_VECTORING_INFO = 0x4408,
    IDT_VECTORING_ERROR_CODE = 0x440a,
    EXIT_INSTRUCTION_LENGTH = 0x440c,
    EXIT_INSTRUCTION_INFO = 0x440e,
    GUEST_ES_LIMIT = 0x4800,
    GUEST_CS_LIMIT = 0x4802,
    GUEST_SS_LIMIT = 0x4804,
    GUEST_DS_LIMIT = 0x4806,
    GUEST_FS_LIMIT = 0x4808,
    GUEST_GS_LIMIT = 0x480a,
    GUEST_LDTR_LIMIT = 0x480c,
    GUEST_TR_LIMIT = 0x480e,
    GUEST_GDTR_LIMIT = 0x4810,
    GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ES_ATTRIBUTES = 0x4814,
    GUEST_CS_ATTRIBUTES = 0x4816,
    GUEST_SS_ATTRIBUTES = 0x4818,
    GUEST_DS_ATTRIBUTES = 0x481a,
    GUEST_FS_ATTRIBUTES = 0x481c,
    GUEST_GS_ATTRIBUTES = 0x481e,
    GUEST_LDTR_ATTRIBUTES = 0x4820,
    GUEST_TR_ATTRIBUTES = 0x4822,
    GUEST_INTERRUPTIBILITY = 0x4824,
    GUEST_ACTIVITY = 0x4826,
    GUEST_SYSENTER_CS = 0x482a,
    PREEMPTION_TIMER = 0x482e,
    HOST_SYSENTER_CS = 0x4c00,
);

fields!(FieldNatural:
    CR0_MASK = 0x6000,
    CR4_MASK = 0x6002,
    CR0_SHADOW = 0x6004,
    CR4_SHADOW = 0x6006,
    EXIT_QUALIFICATION = 0x6400,
    GUEST_LINEAR_ADDRESS = 0x640a,
    GUEST_CR0 = 0x6800,
    GUEST_CR3 = 0x6802,
    GUEST_CR4 = 0x6804,
    GUEST_ES_BASE = 0x6806,
    GUEST_CS_BASE = 0x6808,
    GUEST_SS_BASE = 0x680a,
    GUEST_DS_BASE = 0x680c,
    GUEST_FS_BASE = 0x680e,
    GUEST_GS_BASE = 0x6810,
    GUEST_LDTR_BASE = 0x6812,
    GUEST_TR_BASE = 0x6814,
    GUEST_GDTR_BASE = 0x6816,
    GUEST_IDTR_BASE = 0x6818,
    GUEST_DR7 = 0x681a,
    GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e,
    GUEST_RFLAGS = 0x6820,
    GUEST_PENDING_DEBUG = 0x6822,
    GUEST_SYSENTER_ESP = 0x6824,
    GUEST_SYSENTER_EIP = 0x6826,
    HOST_CR0 = 0x6c00,
    HOST_CR3 = 0x6c02,
    HOST_CR4 = 0x6c04,
    HOST_FS_BASE = 0x6c06,
    HOST_GS_BASE = 0x6c08,
    HOST_TR_BASE = 0x6c0a,
    HOST_GDTR_BASE = 0x6c0c,
    HOST_IDTR_BASE = 0x6c0e,
    HOST_SYSENTER_ESP = 0x6c10,
    HOST_SYSENTER_EIP = 0x6c12,
    HOST_RSP = 0x6c14,
    HOST_RIP = 0x6c16,
);

/// The four fields of one guest segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field16,
    /// Base address.
    pub base: FieldNatural,
    /// Limit in bytes.
    pub limit: Field32,
    /// Access rights.
    pub attributes: Field32,
}

impl SegmentFields {
    /// The fields of a guest segment register.
    #[must_use]
    #[inline]
    pub const fn of(name: crate::regs::SegmentName) -> Self {
        // Both orders are ES, CS, SS, DS, FS, GS, LDTR, TR; encodings of neighbours differ by two.
        let step = name as u32 * 2;
        Self {
            selector: Field16(GUEST_ES_SELECTOR.0 + step),
            base: FieldNatural(GUEST_ES_BASE.0 + step),
            limit: Field32(GUEST_ES_LIMIT.0 + step),
            attributes: Field32(GUEST_ES_ATTRIBUTES.0 + step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::SegmentName;

    fn width_of(encoding: u32) -> u32 {
        encoding >> 13 & 3
    }

    #[test]
    fn every_encoding_says_the_width_of_its_type() {
        for (name, field) in Field16::ALL {
            assert_eq!(width_of(field.0), 0, "{name}");
        }
        for (name, field) in Field64::ALL {
            assert_eq!(width_of(field.0), 1, "{name}");
        }
        for (name, field) in Field32::ALL {
            assert_eq!(width_of(field.0), 2, "{name}");
        }
        for (name, field) in FieldNatural::ALL {
            assert_eq!(width_of(field.0), 3, "{name}");
        }
    }

    #[test]
    fn no_encoding_uses_reserved_bits_or_the_high_half() {
        let all = Field16::ALL.iter().map(|(n, f)| (n, f.0));
        let all = all.chain(Field32::ALL.iter().map(|(n, f)| (n, f.0)));
        let all = all.chain(Field64::ALL.iter().map(|(n, f)| (n, f.0)));
        let all = all.chain(FieldNatural::ALL.iter().map(|(n, f)| (n, f.0)));
        for (name, encoding) in all {
            assert_eq!(encoding & !0x6ffe, 0, "{name}");
        }
    }

    #[test]
    fn group_of_an_encoding_fits_its_name() {
        for (name, field) in FieldNatural::ALL {
            let group = field.0 >> 10 & 3;
            if name.starts_with("HOST_") {
                assert_eq!(group, 3, "{name}");
            }
            if name.starts_with("GUEST_") && *name != "GUEST_LINEAR_ADDRESS" {
                assert_eq!(group, 2, "{name}");
            }
        }
    }

    #[test]
    fn segment_fields_follow_the_register_encoding() {
        let tr = SegmentFields::of(SegmentName::Tr);
        assert_eq!(tr.selector, GUEST_TR_SELECTOR);
        assert_eq!(tr.base, GUEST_TR_BASE);
        assert_eq!(tr.limit, GUEST_TR_LIMIT);
        assert_eq!(tr.attributes, GUEST_TR_ATTRIBUTES);
        assert_eq!(SegmentFields::of(SegmentName::Cs).base, GUEST_CS_BASE);
    }
}
