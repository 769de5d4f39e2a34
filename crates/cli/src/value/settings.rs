//! Choices of the contract: as they are typed, and as they are shown.

use clap::ValueEnum;
use ec2vmm_rest_api::{Architecture, CreditMode, ShutdownBehavior, VolumeKind};

/// What a power-off from inside means.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ShutdownSetting {
    /// The instance is stopped
    Stop,
    /// The instance is terminated
    Terminate,
}

impl From<ShutdownSetting> for ShutdownBehavior {
    fn from(setting: ShutdownSetting) -> Self {
        match setting {
            ShutdownSetting::Stop => Self::Stop,
            ShutdownSetting::Terminate => Self::Terminate,
        }
    }
}

pub(crate) fn shutdown_behavior(behavior: ShutdownBehavior) -> &'static str {
    match behavior {
        ShutdownBehavior::Stop => "stop",
        ShutdownBehavior::Terminate => "terminate",
    }
}

/// How CPU credits are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum CreditSetting {
    /// No credits left: throttled to the baseline
    Standard,
    /// No credits left: goes on, and what was taken beyond is charged
    Unlimited,
}

impl From<CreditSetting> for CreditMode {
    fn from(setting: CreditSetting) -> Self {
        match setting {
            CreditSetting::Standard => Self::Standard,
            CreditSetting::Unlimited => Self::Unlimited,
        }
    }
}

pub(crate) fn credit_mode(mode: CreditMode) -> &'static str {
    match mode {
        CreditMode::Standard => "standard",
        CreditMode::Unlimited => "unlimited",
    }
}

/// How guest memory comes out of a snapshot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum MemorySetting {
    /// The full snapshot's file is mapped
    #[default]
    Mapped,
    /// Each page is read when it is first touched
    Userfaultfd,
}

/// Kinds of volumes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum VolumeSetting {
    Gp3,
    Gp2,
    Io1,
    Io2,
    St1,
    Sc1,
    Standard,
}

impl From<VolumeSetting> for VolumeKind {
    fn from(setting: VolumeSetting) -> Self {
        match setting {
            VolumeSetting::Gp3 => Self::Gp3,
            VolumeSetting::Gp2 => Self::Gp2,
            VolumeSetting::Io1 => Self::Io1,
            VolumeSetting::Io2 => Self::Io2,
            VolumeSetting::St1 => Self::St1,
            VolumeSetting::Sc1 => Self::Sc1,
            VolumeSetting::Standard => Self::Standard,
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl Switch {
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

pub(crate) fn architecture(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "x86_64",
        Architecture::Arm64 => "arm64",
        Architecture::X86_64Mac => "x86_64_mac",
        Architecture::Arm64Mac => "arm64_mac",
    }
}
