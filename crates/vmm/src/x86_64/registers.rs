//! The state in which a vCPU executes its first guest instruction.
//!
//! Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst) wants long mode with what is
//! loaded mapped to itself; PVH (Xen's docs/misc/pvh.pandoc) wants 32-bit protected mode without paging.

use ec2vmm_devices::Memory;
use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{boot::Entry, layout};

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Segment access bits as in a GDT entry's bits 40-47 and 52-55 (Intel SDM 3A section 3.4.5).
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TSS: u16 = 0x808b;

const PAGE_PRESENT_WRITABLE: u64 = 0x3;
const PAGE_LARGE: u64 = 0x80;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, and all memory write-back, as firmware would leave it.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// General registers for this way of booting.
pub fn general(entry: &Entry) -> kvm_regs {
    const RESERVED: u64 = 0x2;
    match *entry {
        Entry::Linux64 { rip } => kvm_regs {
            rflags: RESERVED,
            rip,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..Default::default()
        },
        Entry::Pvh { eip } => kvm_regs {
            rflags: RESERVED,
            rip: u64::from(eip),
            rbx: layout::PVH_START_INFO,
            ..Default::default()
        },
    }
}

/// System registers for this way of booting, from those a new vCPU has.
pub fn system(entry: &Entry, new: kvm_sregs) -> kvm_sregs {
    let mut sregs = new;
    let (code, long) = match entry {
        Entry::Linux64 { .. } => (CODE_64, true),
        Entry::Pvh { .. } => (CODE_32, false),
    };
    sregs.cs = segment(CODE_INDEX, code);
    let data = segment(DATA_INDEX, DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, g: 0, ..segment(TSS_INDEX, TSS) };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = GDT_BYTES - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 |= CR0_PE;
    if long {
        sregs.cr3 = layout::BOOT_PAGE_TABLES;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    sregs
}

/// Model-specific registers as firmware would leave them.
pub fn model_specific() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    vec![
        entry(MSR_IA32_MISC_ENABLE, MSR_IA32_MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ]
}

/// Writes what the registers point to: the GDT, and page tables that map the first 4 GiB to themselves.
///
/// # Errors
/// Guest memory is smaller than the layout's low area.
pub fn write_tables(entry: &Entry, memory: &Memory) -> Result<(), GuestMemoryError> {
    let code = if matches!(entry, Entry::Linux64 { .. }) { CODE_64 } else { CODE_32 };
    for (index, access) in [(CODE_INDEX, code), (DATA_INDEX, DATA), (TSS_INDEX, TSS)] {
        memory.write_obj(descriptor(access), GuestAddress(layout::GDT + u64::from(index) * 8))?;
    }
    let [pml4, pdpt, directories] = [0, 0x1000, 0x2000].map(|offset| layout::BOOT_PAGE_TABLES + offset);
    memory.write_obj(pdpt | PAGE_PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..MAPPED_GIB {
        let directory = directories + gib * PAGE_BYTES;
        memory.write_obj(directory | PAGE_PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        let mut entries = [0_u8; 4096];
        for (page, entry) in (gib << 9..).zip(entries.chunks_exact_mut(8)) {
            entry.copy_from_slice(&(page << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE).to_le_bytes());
        }
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

/// RAM below the hole and the devices in it.
const MAPPED_GIB: u64 = 4;
const PAGE_BYTES: u64 = 4096;
const GDT_BYTES: u16 = (TSS_INDEX + 1) * 8;

// Entries of the GDT. Linux wants the selectors 0x10 and 0x18 for code and data; PVH wants none.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TSS_INDEX: u16 = 4;

/// A flat 4 GiB segment as a GDT entry.
fn descriptor(access: u16) -> u64 {
    let access = u64::from(access);
    0xffff | (access & 0xff) << 40 | 0xf << 48 | (access >> 12 & 0xf) << 52
}

/// The same segment as KVM holds it.
fn segment(index: u16, access: u16) -> kvm_segment {
    let bit = |n: u16| u8::from(access >> n & 1 == 1);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: (access & 0xf) as u8,
        s: bit(4),
        dpl: (access >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_sregs;
    use vm_memory::{Bytes, GuestAddress};

    use super::{CODE_32, CODE_64, DATA, descriptor, segment, system, write_tables};
    use crate::{
        memory,
        x86_64::{boot::Entry, layout},
    };

    #[test]
    fn linux_begins_with_the_selectors_that_its_boot_protocol_wants() {
        let entry = Entry::Linux64 { rip: 0x10_0200 };
        let sregs = system(&entry, kvm_sregs::default());
        assert_eq!(sregs.cs.selector, 0x10);
        for data in [sregs.ds, sregs.es, sregs.ss] {
            assert_eq!(data.selector, 0x18);
        }
        let memory = memory::map(32).unwrap();
        write_tables(&entry, &memory).unwrap();
        for (selector, access) in [(0x10, CODE_64), (0x18, DATA)] {
            assert!(selector + 8 <= u64::from(sregs.gdt.limit) + 1);
            let found: u64 = memory.read_obj(GuestAddress(layout::GDT + selector)).unwrap();
            assert_eq!(found, descriptor(access));
        }
    }

    #[test]
    fn descriptors_are_the_usual_flat_ones() {
        assert_eq!(descriptor(CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE_32), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_segment_says_what_the_descriptor_says() {
        let code = segment(1, CODE_64);
        assert_eq!(
            (code.selector, code.type_, code.s, code.present, code.l, code.db, code.g),
            (8, 0xb, 1, 1, 1, 0, 1)
        );
    }
}
