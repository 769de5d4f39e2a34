//! Whether a guest that has got to know one processor can go on with another: it uses whatever CPUID has
//! promised it, and does not look again.

use super::state::CpuidEntry;

/// Why it cannot.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CpuMismatch {
    /// Guests choose their work-arounds by who made the processor.
    #[error("the guest knows a processor of {then}, and this host's is of {here}")]
    Vendor {
        /// Whose it was.
        then: String,
        /// Whose it is.
        here: String,
    },
    /// Something that was promised is not there.
    #[error("this host's processor lacks what the guest uses: {}", .0.join(", "))]
    Missing(Vec<String>),
}

/// Compares what a guest was told with what one would be told here.
///
/// # Errors
/// [`CpuMismatch`], with all that is missing.
pub fn check(then: &[CpuidEntry], here: &[CpuidEntry]) -> Result<(), CpuMismatch> {
    let (then_vendor, here_vendor) = (vendor(then), vendor(here));
    if then_vendor != here_vendor {
        return Err(CpuMismatch::Vendor { then: then_vendor, here: here_vendor });
    }
    let mut missing = Vec::new();
    for word in WORDS {
        let lost = word.of(then) & !word.of(here) & !word.changing;
        missing.extend((0..32).filter(|bit| lost >> bit & 1 == 1).map(|bit| word.name(bit)));
    }
    if missing.is_empty() { Ok(()) } else { Err(CpuMismatch::Missing(missing)) }
}

fn vendor(entries: &[CpuidEntry]) -> String {
    let Some([_, _, _, _, ebx, ecx, edx]) = find(entries, 0, 0) else { return "nobody".into() };
    let bytes = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<CpuidEntry> {
    entries.iter().find(|[function, index, ..]| (*function, *index) == (leaf, subleaf)).copied()
}

/// One register of CPUID that is made of feature bits.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that the guest or the number of vCPUs changes.
    changing: u32,
    names: &'static [(u32, &'static str)],
}

#[derive(Clone, Copy, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Word {
    const fn new(leaf: u32, subleaf: u32, register: Register, names: &'static [(u32, &'static str)]) -> Self {
        Self { leaf, subleaf, register, changing: 0, names }
    }

    const fn but(mut self, changing: u32) -> Self {
        self.changing = changing;
        self
    }

    fn of(&self, entries: &[CpuidEntry]) -> u32 {
        let Some([_, _, _, eax, ebx, ecx, edx]) = find(entries, self.leaf, self.subleaf) else { return 0 };
        match self.register {
            Register::Eax => eax,
            Register::Ebx => ebx,
            Register::Ecx => ecx,
            Register::Edx => edx,
        }
    }

    /// As Linux calls it, or its place.
    fn name(&self, bit: u32) -> String {
        match self.names.iter().find(|(named, _)| *named == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => {
                let register = format!("{:?}", self.register).to_uppercase();
                format!("CPUID {:#x}.{} {register} bit {bit}", self.leaf, self.subleaf)
            }
        }
    }
}

use Register::{Eax, Ebx, Ecx, Edx};

// MONITOR and OSXSAVE; APIC and HTT; OSPKE.
const CHANGING_1_ECX: u32 = 1 << 3 | 1 << 27;
const CHANGING_1_EDX: u32 = 1 << 9 | 1 << 28;
const CHANGING_7_ECX: u32 = 1 << 4;

/// Intel SDM volume 2A "CPUID"; AMD APM volume 3 appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.
static WORDS: &[Word] = &[
    Word::new(
        0x1,
        0,
        Ecx,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (5, "vmx"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    )
    .but(CHANGING_1_ECX),
    Word::new(0x1, 0, Edx, &[(4, "tsc"), (25, "sse"), (26, "sse2")]).but(CHANGING_1_EDX),
    Word::new(0x6, 0, Eax, &[(2, "arat")]),
    Word::new(
        0x7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    Word::new(
        0x7,
        0,
        Ecx,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
        ],
    )
    .but(CHANGING_7_ECX),
    Word::new(
        0x7,
        0,
        Edx,
        &[
            (4, "fsrm"),
            (10, "md_clear"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "spec_ctrl"),
            (29, "arch_capabilities"),
            (31, "ssbd"),
        ],
    ),
    Word::new(0x7, 1, Eax, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    Word::new(0x7, 1, Edx, &[]),
    Word::new(0x7, 2, Edx, &[]),
    // Components of the XSAVE area, low and high, and what XSAVE can do.
    Word::new(
        0xd,
        0,
        Eax,
        &[
            (2, "the AVX state"),
            (5, "the AVX-512 masks"),
            (6, "the AVX-512 state"),
            (7, "the AVX-512 registers 16 to 31"),
            (9, "the PKRU state"),
            (17, "the AMX configuration"),
            (18, "the AMX tiles"),
        ],
    ),
    Word::new(0xd, 0, Edx, &[]),
    Word::new(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    Word::new(0xd, 1, Ecx, &[]),
    Word::new(0x4000_0001, 0, Eax, &[(0, "kvmclock"), (3, "kvmclock (new)"), (4, "async page faults")]),
    Word::new(0x8000_0001, 0, Ecx, &[(2, "svm"), (5, "abm"), (6, "sse4a"), (16, "fma4"), (22, "topoext")]),
    Word::new(
        0x8000_0001,
        0,
        Edx,
        &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")],
    ),
    Word::new(0x8000_0007, 0, Edx, &[(8, "invariant tsc")]),
    Word::new(0x8000_0008, 0, Ebx, &[(0, "clzero"), (12, "ibpb"), (14, "ibrs"), (15, "stibp")]),
    Word::new(0x8000_0021, 0, Eax, &[]),
];

#[cfg(test)]
mod tests {
    use super::{CpuMismatch, check};
    use crate::x86_64::state::CpuidEntry;

    fn processor(vendor: &[u8; 12], words: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        [&[[0, 0, 0, 0x1f, word(0), word(8), word(4)]], words].concat()
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let then = processor(
            b"GenuineIntel",
            &[[7, 0, 1, 0, 1 << 16 | 1 << 5 | 1 << 4, 0, 0], [0xd, 0, 1, 0xe7, 0, 0, 0]],
        );
        let here = processor(b"GenuineIntel", &[[7, 0, 1, 0, 1 << 5, 0, 0], [0xd, 0, 1, 0x7, 0, 0, 0]]);
        check(&then, &then).unwrap();
        check(&here, &then).unwrap();
        let error = check(&then, &here).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this host's processor lacks what the guest uses: CPUID 0x7.0 EBX bit 4, avx512f, \
             the AVX-512 masks, the AVX-512 state, the AVX-512 registers 16 to 31"
        );
    }

    #[test]
    fn what_the_guest_itself_turns_on_and_off_counts_for_nothing() {
        let then = processor(
            b"GenuineIntel",
            &[[1, 0, 0, 0, 0, 1 << 27 | 1 << 3, 1 << 28], [7, 0, 1, 0, 0, 1 << 4, 0]],
        );
        check(&then, &processor(b"GenuineIntel", &[])).unwrap();
    }

    #[test]
    fn another_makers_processor_is_another() {
        let [intel, amd] = [b"GenuineIntel", b"AuthenticAMD"].map(|vendor| processor(vendor, &[]));
        let error = check(&intel, &amd).unwrap_err();
        let (then, here) = ("GenuineIntel".into(), "AuthenticAMD".into());
        assert_eq!(error, CpuMismatch::Vendor { then, here });
        assert!(matches!(check(&[], &amd), Err(CpuMismatch::Vendor { .. })));
    }
}
