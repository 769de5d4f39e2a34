//! What instances' serial consoles show.

use ec2vmm_host::host::{self, Stream};
use ec2vmm_model::{Time, ids::InstanceId};

use crate::{Cloud, Error, instances};

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

impl Cloud {
    /// `GetConsoleOutput`: stays until the instance is forgotten.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's; the host cannot read it.
    pub async fn console_output(&self, id: &str) -> Result<Output, Error> {
        let instance = instances::find(&self.inner.store, id)?;
        let bytes = self.inner.host.console_output(&instance.id).await?;
        Ok(Output { instance: instance.id.clone(), time: self.inner.now(), bytes })
    }

    /// A line to the serial console of a machine that runs.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's; no machine of it runs; the host cannot connect.
    pub async fn console_stream(&self, id: &str) -> Result<Box<dyn Stream>, Error> {
        let instance = instances::find(&self.inner.store, id)?;
        match self.inner.host.console_stream(&instance.id).await {
            Ok(stream) => Ok(stream),
            Err(host::Error::NotRunning(id)) => Err(Error::NoMachine(id)),
            Err(error) => Err(error.into()),
        }
    }
}
