//! Pressing the power button, by the machine's control socket.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use ec2vmm_host::sockets::Dialer;
use ec2vmm_vmm_api::control::{PowerAction, PowerRequest};

/// A request on its way.
#[derive(Debug)]
pub(crate) struct PowerButton {
    stream: UnixStream,
    answer: Vec<u8>,
}

impl PowerButton {
    /// Asks. The request is short enough never to wait for the machine.
    pub(crate) fn press(control: &Dialer) -> io::Result<Self> {
        let body = serde_json::to_string(&PowerRequest::from(PowerAction::PowerButton))?;
        let mut stream = control.connect()?;
        stream.set_nonblocking(true)?;
        write!(
            stream,
            "PUT /machine/power HTTP/1.1\r\nHost: ec2vmm\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Reads the answer; nothing while it has not come.
    pub(crate) fn answer(&mut self) -> Option<Result<(), String>> {
        let mut buffer = [0; 512];
        match self.stream.read(&mut buffer) {
            Ok(read) => self.answer.extend(buffer.iter().take(read)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return None;
            }
            Err(error) => return Some(Err(error.to_string())),
        }
        let text = String::from_utf8_lossy(&self.answer);
        match text.split_once("\r\n") {
            Some((status, _)) if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) => {
                Some(Ok(()))
            }
            Some((status, _)) => Some(Err(status.to_owned())),
            None => Some(Err(format!("it answered `{text}`"))),
        }
    }
}

impl AsFd for PowerButton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
