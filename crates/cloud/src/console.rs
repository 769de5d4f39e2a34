//! What instances' serial consoles show.

use ec2vmm_model::{Time, ids::InstanceId};

/// What a console has shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Whose.
    pub instance: InstanceId,
    /// When it was read.
    pub time: Time,
    /// The end of it.
    pub bytes: Vec<u8>,
}

impl crate::Cloud {
    /// `GetConsoleOutput`: stays until the instance is forgotten.
    pub async fn console_output(&self, id: &str) -> Result<Output, crate::Error> { todo!() }
    /// A line to the serial console of a machine that runs.
    pub async fn console_stream(&self, id: &str) -> Result<Box<dyn ec2vmm_host::host::Stream>, crate::Error> { todo!() }
}
