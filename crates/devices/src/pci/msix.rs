//! MSI-X (PCI Local Bus 3.0 section 6.8.2): a table of messages, each of which can be masked.
//!
//! A vector fires by a write to its eventfd: one atomic step, whatever the guest does to the table at
//! that moment. Whoever owns KVM attaches the eventfd (irqfd) while the vector has a message to send
//! and detaches it while it has none. The eventfd's counter is therefore the pending bit:
//!
//! * fired while masked: nobody reads the counter, so it stays above zero and the pending bit reads 1;
//! * unmasked: the table takes the counter, has the eventfd attached, and fires again if there was
//!   something in it. A vector that fires between the two steps is found by KVM, which looks at the
//!   counter when it attaches;
//! * fired while it is being masked: before it is detached it is delivered, afterwards it is kept.
//!
//! Nothing is lost; in the worst race an interrupt comes twice, which every driver bears.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::state::{BadState, Hex};

/// What a message-signalled interrupt writes, and where to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MsiMessage {
    /// Address, on x86 from 0xfee0_0000.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// The table, and what was made of it.
#[derive(Debug)]
pub struct MsixTable {
    eventfds: Arc<[EventFd]>,
    state: State,
}

/// The table in a snapshot. Whether it is on is in configuration space.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Saved {
    /// 16 bytes a vector.
    table: Hex,
    /// Vectors that had fired and could not be sent.
    pending: Vec<u16>,
}

#[derive(Debug)]
struct State {
    /// 16 bytes a vector: address, data, control.
    table: Vec<u8>,
    enabled: bool,
    all_masked: bool,
    /// What every vector sends now, as last told to the wiring.
    sent: Vec<Option<MsiMessage>>,
}

impl State {
    fn new(vectors: usize) -> Self {
        let masked = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, MASKED, 0, 0, 0];
        Self { table: masked.repeat(vectors), enabled: false, all_masked: false, sent: vec![None; vectors] }
    }
}

impl MsixTable {
    /// One vector for each eventfd, at most 256, all masked.
    pub fn new(eventfds: Arc<[EventFd]>) -> Self {
        let state = State::new(eventfds.len());
        Self { eventfds, state }
    }

    /// The capability's body: the table and the pending bits at these offsets of BAR 0. The second
    /// array is what the guest may write.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let last = u16::try_from(self.eventfds.len().saturating_sub(1)).unwrap_or(u16::MAX) & CONTROL_SIZE;
        let mut body = [0; 10];
        let fields = last.to_le_bytes().into_iter().chain(table.to_le_bytes()).chain(pending.to_le_bytes());
        body.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let [low, high] = (CONTROL_ENABLE | CONTROL_MASK).to_le_bytes();
        (body, [low, high, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Whether the guest has turned MSI-X on.
    pub fn enabled(&self) -> bool {
        self.state.enabled
    }

    /// The guest reads the table.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.state.table.iter().skip(from)) {
            *to = *from;
        }
    }

    /// The guest writes the table. [`Self::apply`] follows.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((at, byte), new) in self.state.table.iter_mut().enumerate().skip(from).zip(data) {
            *byte = match at % ENTRY_LEN {
                // Addresses are multiples of four.
                0 => new & !3,
                CONTROL => new & MASKED,
                13..ENTRY_LEN => 0,
                _ => *new,
            };
        }
    }

    /// The guest reads the pending bits: a vector that has fired while it could not be sent.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            for bit in 0..8 {
                let vector = at.saturating_mul(8).saturating_add(bit);
                let vector = usize::try_from(vector).unwrap_or(usize::MAX);
                *byte |= u8::from(self.pending(vector)) << bit;
            }
        }
    }

    /// The guest has written message control. [`Self::apply`] follows.
    pub fn set_control(&mut self, control: u16) {
        self.state.enabled = control & CONTROL_ENABLE != 0;
        self.state.all_masked = control & CONTROL_MASK != 0;
    }

    /// Tells the wiring (`route`) of every vector that now sends something else.
    ///
    /// # Errors
    /// The first error of the wiring. Those vectors are told again with the next change.
    pub fn apply(
        &mut self,
        mut route: impl FnMut(u16, Option<MsiMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut result = Ok(());
        let State { table, enabled, all_masked, sent } = &mut self.state;
        let on = *enabled && !*all_masked;
        let entries = table.chunks_exact(ENTRY_LEN).map(|entry| message(entry).filter(|_| on));
        for (((vector, eventfd), sent), now) in (0u16..).zip(self.eventfds.iter()).zip(sent).zip(entries) {
            if *sent != now {
                result = result.and(switch(eventfd, sent, now, |message| route(vector, message)));
            }
        }
        result
    }

    /// As born: off, all masked, nothing pending.
    ///
    /// # Errors
    /// As for [`Self::apply`]. The table is as born all the same.
    pub fn reset(&mut self, route: impl FnMut(u16, Option<MsiMessage>) -> io::Result<()>) -> io::Result<()> {
        self.state.enabled = false;
        let result = self.apply(route);
        let Self { eventfds, state } = self;
        *state = State::new(eventfds.len());
        for eventfd in eventfds.iter() {
            take(eventfd);
        }
        result
    }

    /// For a snapshot.
    pub fn save(&self) -> Saved {
        let pending = (0u16..).take(self.eventfds.len()).filter(|&vector| self.pending(vector.into()));
        Saved { table: Hex(self.state.table.clone()), pending: pending.collect() }
    }

    /// The table as it was; what was pending has fired. [`Self::set_control`] and [`Self::apply`] follow.
    ///
    /// # Errors
    /// It is of another number of vectors.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), BadState> {
        if saved.table.0.len() != self.state.table.len() {
            return Err(BadState("it has another number of interrupt vectors"));
        }
        self.write(0, &saved.table.0);
        for &vector in &saved.pending {
            fire(self.eventfds.get(usize::from(vector)).ok_or(BadState("a vector that is not there fired"))?);
        }
        Ok(())
    }

    fn pending(&self, vector: usize) -> bool {
        let Some((eventfd, None)) = self.eventfds.get(vector).zip(self.state.sent.get(vector)) else {
            return false;
        };
        // Nobody else takes from a detached eventfd, so that what is put back is what was there.
        let pending = take(eventfd);
        if pending {
            fire(eventfd);
        }
        pending
    }
}

/// Makes a vector send something else. What fires meanwhile is kept in its eventfd.
fn switch(
    eventfd: &EventFd,
    sent: &mut Option<MsiMessage>,
    now: Option<MsiMessage>,
    mut route: impl FnMut(Option<MsiMessage>) -> io::Result<()>,
) -> io::Result<()> {
    if sent.is_some() {
        route(None)?;
        *sent = None;
    }
    if now.is_some() {
        let kept = take(eventfd);
        let routed = route(now);
        if routed.is_ok() {
            *sent = now;
        }
        if kept {
            fire(eventfd);
        }
        return routed;
    }
    Ok(())
}

/// Fires a vector.
pub(super) fn fire(eventfd: &EventFd) {
    // The only failure is a full counter: then the vector has fired.
    let _ = eventfd.write(1);
}

/// Takes the counter: whether it was above zero.
fn take(eventfd: &EventFd) -> bool {
    eventfd.read().is_ok()
}

/// What an entry of the table sends unless it is masked.
fn message(entry: &[u8]) -> Option<MsiMessage> {
    let (address, rest) = entry.split_first_chunk::<8>()?;
    let (data, rest) = rest.split_first_chunk::<4>()?;
    let (control, _) = rest.split_first()?;
    let message = MsiMessage { address: u64::from_le_bytes(*address), data: u32::from_le_bytes(*data) };
    (control & MASKED == 0).then_some(message)
}

/// The most vectors that fit into a page of the table.
pub(super) const VECTORS_MAX: usize = 256;
/// Capability id of MSI-X.
pub(super) const CAPABILITY: u8 = 0x11;
const ENTRY_LEN: usize = 16;
/// Offset of an entry's control byte.
const CONTROL: usize = 12;
/// Bit of an entry's control byte.
const MASKED: u8 = 1;
const CONTROL_SIZE: u16 = 0x7ff;
const CONTROL_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
