//! What the host asks of a device while the machine runs, by its control socket.
//!
//! A closed list: who holds a device as `dyn VirtioDevice` need not know which one it is. A device answers
//! what it is able to, at once, and refuses the rest.

use std::io;

use super::GuestFault;
use crate::rate_limit::RateLimit;

/// Something that the host wants of a device, whether its driver is active or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceCommand {
    /// Block, entropy: limit all requests together. Answered by [`DeviceAnswer::Done`].
    LimitRequests(RateLimit),
    /// Net: limit the frames of each direction. Answered by [`DeviceAnswer::Done`].
    LimitFrames {
        /// To the guest.
        receive: RateLimit,
        /// From the guest.
        transmit: RateLimit,
    },
    /// Block: the disk gets as large as this, in bytes, a multiple of 512, and the driver is told. It can
    /// only grow. Answered by [`DeviceAnswer::Done`].
    Resize {
        /// The new size, bytes.
        bytes: u64,
    },
    /// Balloon: the guest shall give back this many bytes, whole pages of 4 KiB, in its own time. Answered
    /// by [`DeviceAnswer::Balloon`].
    SetBalloonTarget {
        /// Bytes; zero gives all memory to the guest.
        bytes: u64,
    },
    /// Balloon: what is known. Answered by [`DeviceAnswer::Balloon`], with the statistics that the guest
    /// gave last.
    ReadBalloon,
    /// Balloon: ask the guest for fresh statistics. Answered by [`DeviceAnswer::Balloon`] at once; the
    /// statistics are fresh when their [`BalloonState::statistics_count`] has gone up.
    RefreshBalloonStatistics,
    /// Net: the driver shall make itself known to the network again, as after a move to another host.
    /// Answered by [`DeviceAnswer::Done`].
    Announce,
    /// Vsock: the driver's streams have ended, because the machine goes on from a snapshot. Answered by
    /// [`DeviceAnswer::Done`].
    ResetTransport,
}

/// What a device answers.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceAnswer {
    /// It is so.
    Done,
    /// The state of the balloon.
    Balloon(BalloonState),
}

/// The state of a balloon.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BalloonState {
    /// What the guest shall give back, bytes.
    pub target_bytes: u64,
    /// What the guest says that it has given back, bytes.
    pub actual_bytes: u64,
    /// How often the guest has given statistics since it started its driver; zero if it never has.
    pub statistics_count: u64,
    /// How old the statistics are, milliseconds. None if there are none.
    pub statistics_age_ms: Option<u64>,
    /// The statistics, by name: `guest_free_bytes` and others (virtio 1.2 section 5.5.6.4). The guest
    /// says what it likes.
    pub statistics: Vec<(&'static str, u64)>,
}

/// Why a device does not do what it is asked. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// This kind of device, or this driver, cannot.
    #[error("the device cannot do that")]
    Unsupported,
    /// A value is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The driver has broken its queues: it has to reset the device.
    #[error("the guest's driver broke the rules")]
    Guest(#[from] GuestFault),
    /// The host failed.
    #[error("the host failed")]
    Host(#[from] io::Error),
}
