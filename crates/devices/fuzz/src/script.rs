//! What a driver may do, as the input says.

use arbitrary::{Arbitrary, Unstructured};

/// A whole life of a device: how its driver sets it up, and what then happens. `M` is what the device's
/// requests look like, `A` what can happen behind it.
#[derive(Arbitrary, Debug)]
pub struct Script<M, A> {
    pub setup: Setup,
    pub steps: Vec<Step<M, A>>,
}

/// How a driver sets a device up.
#[derive(Arbitrary, Clone, Debug)]
pub struct Setup {
    pub features: u64,
    pub event_idx: bool,
    /// Queues that are left out, as bits.
    pub left_out: Rare<u8>,
    /// Sizes, as powers of two, instead of the largest.
    pub sizes: Rare<[u8; 3]>,
    /// The rings lie on each other.
    pub overlap: Rare<Overlap>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Overlap {
    UsedOnAvailable(u8),
    UsedOnDescriptors(u8),
    AvailableOnDescriptors(u8),
}

#[derive(Arbitrary, Debug)]
pub enum Step<M, A> {
    /// A chain: the message cut into pieces for the device to read, and room for it to write.
    Offer {
        queue: u8,
        message: Mostly<M>,
        cuts: Vec<u8>,
        room: Vec<Room>,
        knob: Knob,
        kick: bool,
    },
    /// As many times the chain that was offered last.
    Repeat {
        queue: u8,
        times: u8,
    },
    Kick(u8),
    /// A source of the device, woken though nothing may have happened.
    Source(u8),
    /// Something happens behind the device.
    Act(A),
    /// The event loop goes on until nothing is left to do.
    Settle,
    Reset(Rare<Setup>),
    /// The driver wants to hear of nothing, or of everything, or at a number of its own.
    Wish {
        queue: u8,
        flags: u16,
        event: u16,
    },
    /// The available ring's index jumps.
    Jump {
        queue: u8,
        by: Rare<u16>,
    },
    Poke {
        at: u16,
        value: u16,
    },
}

/// Bytes for the device to write.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Room {
    Byte,
    Small(u8),
    Sectors(u8),
    Page,
    Large(u16),
}

impl Room {
    pub fn len(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Small(len) => len.into(),
            Self::Sectors(count) => u32::from(count % 16) * 512,
            Self::Page => 4096,
            Self::Large(len) => len.into(),
        }
    }
}

/// What is wrong with a chain: mostly nothing.
#[derive(Clone, Copy, Debug)]
pub enum Knob {
    Sound,
    /// All but the first descriptor's worth lies in an indirect table.
    Indirect,
    Address {
        which: u8,
        address: Address,
    },
    Length {
        which: u8,
        len: u32,
    },
    /// A descriptor's next one is this.
    Next {
        which: u8,
        next: u16,
    },
    Flags {
        which: u8,
        flags: u16,
    },
    /// The chain begins at this descriptor instead.
    Head(u16),
    /// An indirect table of this length, wherever the chain is.
    TableLength(u32),
    /// An indirect table that lies here.
    TableAt(Address),
    /// An indirect table in which each descriptor follows itself, as long as can be.
    TableOfOne,
    /// What can be written comes first.
    Backwards,
}

/// An address of interest.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// In the first region, where the rings are too.
    Low(u16),
    /// Around the border of two regions.
    Border(i8),
    /// Around the end of all low memory.
    End(i8),
    /// Around the last region's ends.
    High(i8),
    HighEnd(i8),
    /// Around the end of all addresses.
    Wrap(i8),
    Any(u64),
}

impl Address {
    pub fn number(self) -> u64 {
        let near = |at: u64, by: i8| at.wrapping_add_signed(by.into());
        match self {
            Self::Low(at) => at.into(),
            Self::Border(by) => near(0x1_0000, by),
            Self::End(by) => near(0x1_4000, by),
            Self::High(by) => near(0x8000_0000, by),
            Self::HighEnd(by) => near(0x8000_4000, by),
            Self::Wrap(by) => near(0, by),
            Self::Any(address) => address,
        }
    }
}

impl<'a> Arbitrary<'a> for Knob {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=31_u8)? {
            0 | 1 => Self::Indirect,
            2 | 3 => Self::Address { which: u.arbitrary()?, address: u.arbitrary()? },
            4 | 5 => Self::Length { which: u.arbitrary()?, len: u.arbitrary()? },
            6 => Self::Next { which: u.arbitrary()?, next: u.arbitrary()? },
            7 => Self::Flags { which: u.arbitrary()?, flags: u.arbitrary()? },
            8 => Self::Head(u.arbitrary()?),
            9 => Self::TableLength(u.arbitrary()?),
            10 => Self::TableAt(u.arbitrary()?),
            11 => Self::TableOfOne,
            12 => Self::Backwards,
            _ => Self::Sound,
        })
    }
}

/// Once in a while.
#[derive(Clone, Debug)]
pub struct Rare<T>(pub Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Rare<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let now = u.ratio(1, 16)?;
        Ok(Self(now.then(|| u.arbitrary()).transpose()?))
    }
}

/// Nearly always.
#[derive(Clone, Debug)]
pub struct Mostly<T>(pub Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Mostly<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let now = !u.ratio(1, 16)?;
        Ok(Self(now.then(|| u.arbitrary()).transpose()?))
    }
}
