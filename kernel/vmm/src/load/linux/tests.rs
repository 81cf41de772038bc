//! Synthetic bzImages: what is loaded where, and what is refused.

use alloc::string::ToString;
use alloc::vec;

use arch::addr::{Gpa, Gva};
use arch::regs::{Paging, SegmentAttributes};
use proptest::prelude::*;

use super::*;
use crate::config::Image;
use crate::load;
use crate::testing::Ram;

struct Files(Vec<(&'static str, Vec<u8>)>);

impl GuestFiles for Files {
    fn file(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(n, _)| *n == name);
        found.map(|(_, bytes)| bytes.as_slice())
    }
}

const RAM_BYTES: usize = 8 << 20;
const LOAD_ADDRESS: u64 = 0x20_0000;
const INIT_SIZE: u64 = 0x10_0000;
const HEADER_END: usize = 0x26c;
const SETUP_BYTES: usize = 1024;
const PAYLOAD_BYTES: usize = 0x800;

fn set(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Protocol 2.15, relocatable, with a 64-bit entry: one setup sector behind the boot sector, then 2 KiB.
fn kernel() -> Vec<u8> {
    let mut file = vec![0xcc; SETUP_BYTES];
    file[spec::HEADER..HEADER_END].fill(0);
    file[spec::SETUP_SECTS] = 1;
    let paragraphs = (PAYLOAD_BYTES / 16) as u32;
    set(&mut file, spec::SYSSIZE, &paragraphs.to_le_bytes());
    set(&mut file, spec::BOOT_FLAG, &[0x55, 0xaa]);
    set(
        &mut file,
        spec::JUMP,
        &[0xeb, (HEADER_END - spec::MAGIC) as u8],
    );
    set(&mut file, spec::MAGIC, b"HdrS");
    set(&mut file, spec::VERSION, &[15, 2]);
    file[spec::LOADFLAGS] = 1;
    set(&mut file, spec::CODE32_START, &0x10_0000_u32.to_le_bytes());
    set(
        &mut file,
        spec::INITRD_ADDR_MAX,
        &0x7fff_ffff_u32.to_le_bytes(),
    );
    file[spec::RELOCATABLE_KERNEL] = 1;
    file[spec::XLOADFLAGS] = 1;
    set(&mut file, spec::CMDLINE_SIZE, &100_u32.to_le_bytes());
    set(&mut file, spec::PREF_ADDRESS, &LOAD_ADDRESS.to_le_bytes());
    set(
        &mut file,
        spec::INIT_SIZE,
        &(INIT_SIZE as u32).to_le_bytes(),
    );
    file.extend((0..PAYLOAD_BYTES).map(|i| i as u8 ^ 0x5a));
    file
}

fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = kernel();
    change(&mut file);
    file
}

fn start(file: Vec<u8>, ram: &mut Ram) -> Result<CpuState, Cause> {
    let files = Files(vec![("k", file)]);
    load("k", None, "a=b", &files, ram).map_err(|error| error.cause)
}

fn refused(file: Vec<u8>) -> Cause {
    start(file, &mut Ram::new(RAM_BYTES)).expect_err("is refused")
}

fn u32_at(ram: &Ram, at: u64) -> u32 {
    ram.read_u32(Gpa(at)).expect("RAM")
}

fn slice(ram: &Ram, at: u64, length: usize) -> &[u8] {
    &ram.0[at as usize..at as usize + length]
}

#[test]
fn a_configured_guest_is_loaded_with_all_it_needs() {
    let mut ram = Ram::new(RAM_BYTES);
    let initrd: Vec<u8> = (0..5000_u32).map(|i| i as u8).collect();
    let files = Files(vec![("vmlinuz", kernel()), ("initrd", initrd.clone())]);
    let image = Image::Linux {
        kernel: "vmlinuz".to_string(),
        initrd: Some("initrd".to_string()),
        cmdline: "console=ttyS0".to_string(),
    };
    let state = load::load(&image, &files, &mut ram).expect("loads");

    assert_eq!(
        slice(&ram, LOAD_ADDRESS, PAYLOAD_BYTES),
        &kernel()[SETUP_BYTES..]
    );
    assert_eq!(state.rip, LOAD_ADDRESS + 0x200);
    let params = state.gprs[Gpr::Rsi];
    assert_eq!(slice(&ram, params + 0x202, 4), b"HdrS");
    // What lies in front of the header is not copied: the sentinel at 0x1ef stays 0.
    assert_eq!(slice(&ram, params + 0x1ef, 3), [0, 0, 1]);
    assert_eq!(slice(&ram, params + 0x210, 1), [0xff]);
    assert_eq!(u32_at(&ram, params + 0x214), LOAD_ADDRESS as u32);

    let at = u64::from(u32_at(&ram, params + 0x218));
    assert_eq!(u32_at(&ram, params + 0x21c), 5000);
    assert_eq!(at, (RAM_BYTES as u64 - 5000) & !0xfff);
    assert_eq!(slice(&ram, at, 5000), initrd);
    let cmdline = u64::from(u32_at(&ram, params + 0x228));
    assert_eq!(slice(&ram, cmdline, 14), b"console=ttyS0\0");

    let rsdp = ram.read_u64(Gpa(params + 0x70)).expect("RAM");
    assert_eq!(slice(&ram, rsdp, 8), b"RSD PTR ");
    let whole = tables::at(rsdp).bytes;
    assert_eq!(slice(&ram, rsdp, whole.len()), whole);
}

#[test]
fn the_memory_map_is_ram_without_the_places_that_are_taken() {
    let mut ram = Ram::new(RAM_BYTES);
    let state = start(kernel(), &mut ram).expect("loads");
    let params = state.gprs[Gpr::Rsi];
    let entries = slice(&ram, params + 0x1e8, 1)[0];
    let map: Vec<_> = (0..u64::from(entries))
        .map(|i| {
            let at = params + 0x2d0 + 20 * i;
            let word = |offset| ram.read_u64(Gpa(at + offset)).expect("RAM");
            (word(0), word(8), u32_at(&ram, at + 16))
        })
        .collect();
    let expected = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x400, 2),
        (0xf_0000, 0x1_0000, 2),
        (0x10_0000, RAM_BYTES as u64 - 0x10_0000, 1),
        (0xe000_0000, 0x10_0000, 2),
    ];
    assert_eq!(map, expected);
}

#[test]
fn the_64_bit_entry_finds_4_gib_mapped_and_its_descriptors() {
    let mut ram = Ram::new(RAM_BYTES);
    let state = start(kernel(), &mut ram).expect("loads");
    assert_eq!(state.control.efer, Efer::LME | Efer::LMA);
    assert_eq!(state.control.cr0, Cr0::PE | Cr0::PG | Cr0::ET);
    assert_eq!(state.control.cr4, Cr4::PAE);
    assert!(!state.rflags.contains(arch::regs::Rflags::IF));
    // So that a read-only page would fault.
    let paging = Paging {
        cr0: state.control.cr0 | Cr0::WP,
        ..state.control.paging()
    };
    for gva in [0, 0x8123, 0x1234_5678, 0xc000_0000, 0xffff_ffff] {
        let access = crate::walk::Access {
            write: true,
            execute: false,
            user: false,
        };
        let walked = crate::walk::translate(&ram, &paging, Gva(gva), access);
        assert_eq!(walked.expect("is mapped"), Gpa(gva));
    }
    for (name, selector) in [(SegmentName::Cs, 0x10), (SegmentName::Ds, 0x18)] {
        let segment = state.segments[name];
        assert_eq!(segment.selector, selector);
        let descriptor = ram
            .read_u64(Gpa(state.gdtr.base + u64::from(selector)))
            .expect("RAM");
        // The hidden part says what the descriptor does (SDM 3 3.4.5).
        let attributes = (descriptor >> 40 & 0xf0ff) as u32;
        assert_eq!(
            segment.attributes,
            SegmentAttributes::from_bits_retain(attributes)
        );
    }
    assert_eq!(state.gdtr.limit, 31);
    assert_eq!(
        state.segments[SegmentName::Cs].attributes.bits() >> 12 & 0xf,
        0xa
    );
}

#[test]
fn without_a_64_bit_entry_the_kernel_starts_in_protected_mode() {
    for change in [(spec::XLOADFLAGS, 0), (spec::VERSION, 11)] {
        let mut ram = Ram::new(RAM_BYTES);
        let file = changed(|k| k[change.0] = change.1);
        let state = start(file, &mut ram).expect("loads");
        assert_eq!(state.rip, LOAD_ADDRESS);
        assert_eq!(state.control.cr0, Cr0::PE | Cr0::ET);
        assert_eq!(state.control.efer, Efer::empty());
        let code = state.segments[SegmentName::Cs];
        assert_eq!((code.selector, code.attributes.bits()), (0x10, 0xc09b));
        let descriptor = ram.read_u64(Gpa(state.gdtr.base + 0x10)).expect("RAM");
        assert_eq!(descriptor, CODE_32);
        assert_eq!(slice(&ram, state.gprs[Gpr::Rsi] + 0x202, 4), b"HdrS");
    }
}

#[test]
fn what_cannot_be_moved_goes_to_1_mib() {
    let mut ram = Ram::new(RAM_BYTES);
    let fixed = |k: &mut Vec<u8>| {
        k[spec::RELOCATABLE_KERNEL] = 0;
        k[spec::XLOADFLAGS] = 0;
        set(k, spec::CODE32_START, &0x10_0100_u32.to_le_bytes());
    };
    let state = start(changed(fixed), &mut ram).expect("loads");
    assert_eq!(state.rip, 0x10_0100);
    assert_eq!(
        slice(&ram, 0x10_0000, PAYLOAD_BYTES),
        &kernel()[SETUP_BYTES..]
    );

    let outside = |k: &mut Vec<u8>| {
        fixed(k);
        set(k, spec::CODE32_START, &0x20_0000_u32.to_le_bytes());
    };
    assert_eq!(refused(changed(outside)), Cause::Contradictory);
}

#[test]
fn other_files_and_old_kernels_are_named() {
    assert_eq!(refused(vec![0; 4096]), Cause::NotBzImage);
    assert_eq!(
        refused(changed(|k| k[spec::MAGIC] = b'h')),
        Cause::NotBzImage
    );
    assert_eq!(
        refused(changed(|k| k[spec::BOOT_FLAG] = 0)),
        Cause::NotBzImage
    );
    // A zImage, which is loaded low.
    assert_eq!(
        refused(changed(|k| k[spec::LOADFLAGS] = 0)),
        Cause::NotBzImage
    );
    let too_old = refused(changed(|k| k[spec::VERSION] = 9));
    assert_eq!(too_old, Cause::TooOld(0x209));
    assert_eq!(
        named("k", too_old).to_string(),
        "guest file \"k\": its boot protocol 2.9 is older than 2.10"
    );
    // Headers that end before `init_size` or reach into the memory map.
    for length in [0x61, 0x8f] {
        assert_eq!(refused(changed(|k| k[0x201] = length)), Cause::NotBzImage);
    }
    let empty = |k: &mut Vec<u8>| set(k, spec::SYSSIZE, &[0; 4]);
    assert_eq!(refused(changed(empty)), Cause::NotBzImage);
    let files = Files(vec![("k", kernel())]);
    let mut ram = Ram::new(RAM_BYTES);
    let missing = load("k", Some("i"), "", &files, &mut ram);
    assert_eq!(missing, Err(named("i", Cause::Missing)));
    let missing = load("j", None, "", &files, &mut ram);
    assert_eq!(missing, Err(named("j", Cause::Missing)));
}

#[test]
fn addresses_are_checked_against_memory() {
    let low = |k: &mut Vec<u8>| set(k, spec::PREF_ADDRESS, &0xf_f000_u64.to_le_bytes());
    assert_eq!(refused(changed(low)), Cause::Contradictory);
    let wraps = |k: &mut Vec<u8>| set(k, spec::PREF_ADDRESS, &u64::MAX.to_le_bytes());
    assert_eq!(refused(changed(wraps)), Cause::Contradictory);
    let memory = RAM_BYTES as u64;
    let high = |k: &mut Vec<u8>| set(k, spec::PREF_ADDRESS, &(memory - 0x1000).to_le_bytes());
    let end = memory - 0x1000 + INIT_SIZE;
    assert_eq!(refused(changed(high)), Cause::DoesNotFit { end, memory });

    // The runtime size counts, not the file's; an exact fit is one.
    let end = LOAD_ADDRESS + INIT_SIZE;
    assert!(start(kernel(), &mut Ram::new(end as usize)).is_ok());
    let memory = end - 1;
    let small = start(kernel(), &mut Ram::new(memory as usize));
    assert_eq!(small, Err(Cause::DoesNotFit { end, memory }));
}

/// RAM that is large and holds nothing.
struct Huge(u64);

impl GuestMemory for Huge {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, from: Gpa, _: &mut [u8]) -> Result<(), NotRam> {
        Err(NotRam(from))
    }

    fn write(&mut self, _: Gpa, _: &[u8]) -> Result<(), NotRam> {
        Ok(())
    }
}

#[test]
fn ram_ends_where_devices_begin() {
    let files = Files(vec![("k", kernel())]);
    assert!(load("k", None, "", &files, &mut Huge(0xc000_0000)).is_ok());
    let more = load("k", None, "", &files, &mut Huge(0xc020_0000));
    assert_eq!(
        more.expect_err("is refused").to_string(),
        "guest file \"k\": 0xc0200000 bytes of RAM, at most 0xc0000000 fit below the devices"
    );
}

#[test]
fn an_initrd_ends_where_the_kernel_can_see_it_and_begins_behind_the_kernel() {
    let place = |bytes: usize, limit: u32| {
        let kernel = changed(|k| set(k, spec::INITRD_ADDR_MAX, &limit.to_le_bytes()));
        let files = Files(vec![("k", kernel), ("i", vec![7; bytes])]);
        let mut ram = Ram::new(RAM_BYTES);
        let state = load("k", Some("i"), "", &files, &mut ram)?;
        let at = u32_at(&ram, state.gprs[Gpr::Rsi] + 0x218);
        assert_eq!(slice(&ram, u64::from(at), bytes), vec![7; bytes]);
        Ok::<u32, LoadError>(at)
    };
    assert_eq!(place(0x1000, u32::MAX), Ok(0x7f_f000));
    assert_eq!(place(0x1000, 0x3f_ffff), Ok(0x3f_f000));
    assert_eq!(place(0x1001, 0x3f_ffff), Ok(0x3f_e000));
    // The kernel takes everything up to 0x300000.
    assert_eq!(place(0x10_0000, 0x3f_ffff), Ok(0x30_0000));
    let bytes = 0x10_0001;
    let cause = Cause::NoRoom {
        bytes: bytes as u64,
        from: 0x30_0000,
        to: 0x40_0000,
    };
    assert_eq!(place(bytes, 0x3f_ffff), Err(named("i", cause)));
    let larger_than_memory = place(RAM_BYTES + 1, u32::MAX).map_err(|e| e.cause);
    assert!(matches!(larger_than_memory, Err(Cause::NoRoom { .. })));
}

#[test]
fn the_command_line_is_at_most_what_the_kernel_takes() {
    let start = |length: usize, limit: u32| {
        let kernel = changed(|k| set(k, spec::CMDLINE_SIZE, &limit.to_le_bytes()));
        let files = Files(vec![("k", kernel)]);
        let cmdline = "x".repeat(length);
        load("k", None, &cmdline, &files, &mut Ram::new(RAM_BYTES)).map(|_| ())
    };
    assert_eq!(start(100, 100), Ok(()));
    let long = start(101, 100).expect_err("is refused");
    assert_eq!(
        long.to_string(),
        "guest file \"k\": takes a command line of 100 bytes, vm.cmdline has 101"
    );
    // A limit of its own keeps the NUL inside of the page.
    assert_eq!(start(4095, u32::MAX), Ok(()));
    assert!(start(4096, u32::MAX).is_err());
}

#[test]
fn every_truncation_is_refused() {
    let whole = kernel();
    // The last paragraph may be incomplete.
    for length in 1..=whole.len() - 16 {
        let cause = refused(whole[..length].to_vec());
        assert_eq!(cause, Cause::Truncated, "{length} bytes");
    }
    let length = whole.len() - 15;
    assert!(start(whole[..length].to_vec(), &mut Ram::new(RAM_BYTES)).is_ok());
}

#[test]
fn what_is_appended_to_the_kernel_is_not_loaded() {
    let mut ram = Ram::new(RAM_BYTES);
    let signed = changed(|k| k.extend([0xee; 100]));
    start(signed, &mut ram).expect("loads");
    assert_eq!(
        slice(&ram, LOAD_ADDRESS + PAYLOAD_BYTES as u64, 100),
        [0; 100]
    );
}

#[test]
fn a_kernel_gets_a_seed_if_there_is_one() {
    let mut ram = Ram::new(RAM_BYTES);
    let state = start(kernel(), &mut ram).expect("loads");
    let pointer = state.gprs[Gpr::Rsi] + 0x250;
    let image = Image::Linux {
        kernel: "k".into(),
        initrd: None,
        cmdline: "".into(),
    };
    super::super::seed(&image, &mut ram, || 0).expect("RAM");
    assert_eq!(u32_at(&ram, pointer), 0, "no seed");
    let mut next = 0;
    super::super::seed(&image, &mut ram, || {
        next += 1;
        next
    })
    .expect("RAM");
    let at = u64::from(u32_at(&ram, pointer));
    // struct setup_data: next, type, length, data.
    let words = [0, 8, 12, 16, 24, 32, 40].map(|offset| u32_at(&ram, at + offset));
    assert_eq!(words, [0, 9, 32, 1, 2, 3, 4]);
}

proptest! {
    #[test]
    fn any_header_is_survived(
        changes in proptest::collection::vec((0x1f1_usize..HEADER_END, any::<u8>()), 1..6),
        initrd in 1_usize..10_000,
    ) {
        let mut file = kernel();
        for (at, value) in changes {
            file[at] = value;
        }
        let files = Files(vec![("k", file), ("i", vec![1; initrd])]);
        let mut ram = Ram::new(RAM_BYTES);
        if let Ok(state) = load("k", Some("i"), "x", &files, &mut ram) {
            prop_assert!(state.rip >= 0x10_0000);
            let at = u32_at(&ram, state.gprs[Gpr::Rsi] + 0x218);
            prop_assert_eq!(slice(&ram, u64::from(at), initrd), vec![1; initrd]);
        }
    }
}
