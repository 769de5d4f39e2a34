//! Waiting until instances are in a state.
//!
//! Invariant: nothing falls between looking and listening: the stream of events is open before the first
//! look, and after each event, or a while without any, there is another look. What the daemon says of an
//! instance is what counts; events only say when to look. A daemon that goes away and comes back, which it
//! may do to be upgraded, only costs time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use ec2vmm_rest_api::{Event, Instance, InstanceList, InstanceState};

use crate::{
    client::{Call, Came, Client, Error as ClientError},
    error::{Error, Trouble},
    output::{progress::Progress, state_name},
    value::duration::Span,
};

/// What is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Goal {
    /// It runs
    Running,
    /// It runs; it was started just now, so that to stand still is to have failed
    #[value(skip)]
    Started,
    /// It stands still
    Stopped,
    /// It is gone
    Terminated,
    /// No reboot is to be done any more
    #[value(skip)]
    Rebooted,
}

/// How far an instance has come.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    Arrived,
    OnItsWay,
    /// It will not get there by itself, and why.
    Astray(String),
}

/// Waits until all are there, and shows them as they are then. One that will not get there ends the wait.
pub(crate) fn wait(
    client: &Client,
    ids: &[String],
    goal: Goal,
    timeout: Option<Span>,
    plain: bool,
) -> Result<Vec<Instance>, Error> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout.0));
    let mut wait = Wait {
        client,
        goal,
        open: ids.to_vec(),
        seen: BTreeMap::new(),
        progress: Progress::new(ids, plain),
        timeout,
        deadline,
    };
    let mut absent_since: Option<Instant> = None;
    loop {
        match wait.watch(&mut absent_since) {
            Ok(()) => break,
            Err(Error::Daemon(error)) if error.is_absence() => {
                // One that was never there is another matter than one that is away.
                if wait.seen.is_empty() && matches!(error, ClientError::NoDaemon { .. }) {
                    return Err(error.into());
                }
                if absent_since.is_none() {
                    wait.progress.waits_for_daemon();
                }
                let since = *absent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > ABSENCE_MAX {
                    return Err(error.into());
                }
                wait.check_time()?;
                client.pause(ABSENCE_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ids.iter().filter_map(|id| wait.seen.remove(id)).collect())
}

struct Wait<'a> {
    client: &'a Client,
    goal: Goal,
    /// Those that are not there yet.
    open: Vec<String>,
    /// As they were last.
    seen: BTreeMap<String, Instance>,
    progress: Progress,
    timeout: Option<Span>,
    deadline: Option<Instant>,
}

impl Wait<'_> {
    /// Watches with one stream of events.
    fn watch(&mut self, absent_since: &mut Option<Instant>) -> Result<(), Error> {
        let mut events = self.client.events(&Call::get(&["v1", "events", "stream"]))?;
        *absent_since = None;
        loop {
            self.look()?;
            if self.open.is_empty() {
                return Ok(());
            }
            let mut patience = LOOK_EVERY;
            loop {
                self.check_time()?;
                let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                match events.next(Some(left.map_or(patience, |left| left.min(patience))))? {
                    Came::Message(message) if self.concerns(&message.data) => {
                        // There may be more of them at once.
                        patience = Duration::from_millis(5);
                    }
                    Came::Message(_) => {}
                    Came::Nothing => break,
                    Came::End => return Err(ClientError::Gone(None).into()),
                }
            }
        }
    }

    fn concerns(&self, data: &str) -> bool {
        let event = serde_json::from_str::<Event>(data).ok();
        event.and_then(|event| event.instance_id).is_some_and(|id| self.open.contains(&id))
    }

    fn check_time(&self) -> Result<(), Error> {
        match self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            true => Err(self.timed_out()),
            false => Ok(()),
        }
    }

    fn timed_out(&self) -> Error {
        let show = |id: &String| match self.seen.get(id) {
            Some(instance) => format!("{id} is {}", state_name(instance.state)),
            None => id.clone(),
        };
        let shown: Vec<String> = self.open.iter().take(SHOWN_MAX).map(show).collect();
        let more = self.open.len().saturating_sub(SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let time = self.timeout.map(|timeout| format!(" after {timeout}")).unwrap_or_default();
        Error::astray(Trouble::Timeout, format!("still waiting{time}: {}{more}", shown.join(", ")))
            .hint("what was asked for goes on; `ec2vmm wait` waits for it again")
    }

    /// Looks at all that are not there yet.
    fn look(&mut self) -> Result<(), Error> {
        let mut open = Vec::new();
        for piece in self.open.clone().chunks(IDS_MAX) {
            let found = self.describe(piece)?;
            for id in piece {
                match found.get(id) {
                    Some(instance) if self.has_arrived(instance)? => {}
                    Some(_) => open.push(id.clone()),
                    // Shown for an hour after its end, and not any longer.
                    None if self.goal == Goal::Terminated => self.progress.ends(id, "terminated"),
                    None => {
                        let message = format!("{id} was terminated, and is not shown any more");
                        return Err(Error::astray(Trouble::State, message));
                    }
                }
            }
        }
        self.open = open;
        Ok(())
    }

    fn has_arrived(&mut self, instance: &Instance) -> Result<bool, Error> {
        let id = &instance.instance_id;
        let before = self.seen.insert(id.clone(), instance.clone());
        let now = word(self.goal, instance);
        if before.as_ref().is_none_or(|before| word(self.goal, before) != now) {
            self.progress.moves(id, now);
        }
        match verdict(self.goal, before.as_ref(), instance) {
            Verdict::Arrived => {
                self.progress.ends(id, now);
                Ok(true)
            }
            Verdict::OnItsWay => Ok(false),
            Verdict::Astray(why) => {
                self.progress.ends(id, now);
                Err(Error::astray(Trouble::State, why)
                    .hint(format!("`ec2vmm events {id}` and `ec2vmm console {id}` tell more")))
            }
        }
    }

    /// These instances; those that are not shown any more are left out.
    fn describe(&self, ids: &[String]) -> Result<BTreeMap<String, Instance>, Error> {
        let call = ids.iter().fold(Call::get(&["v1", "instances"]), |call, id| call.with("id", id));
        let found = match self.client.ask::<InstanceList>(&call) {
            Ok(list) => list.instances,
            Err(ClientError::Refused(problem)) if problem.code.ends_with(".NotFound") => {
                self.describe_each(ids)?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(found.into_iter().map(|instance| (instance.instance_id.clone(), instance)).collect())
    }

    /// One that was seen before and is not there now has gone; one that never was is an error.
    fn describe_each(&self, ids: &[String]) -> Result<Vec<Instance>, Error> {
        let mut found = Vec::new();
        for id in ids {
            match self.client.ask::<Instance>(&Call::get(&["v1", "instances", id])) {
                Ok(instance) => found.push(instance),
                Err(ClientError::Refused(problem))
                    if problem.code.ends_with(".NotFound") && self.seen.contains_key(id) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }
}

/// What an instance's state means for what is waited for.
fn verdict(goal: Goal, before: Option<&Instance>, now: &Instance) -> Verdict {
    use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
    // One that was on its way up and has turned round.
    let fell = goal == Goal::Started || matches!(before.map(|before| before.state), Some(Pending | Running));
    match (goal, now.state) {
        (Goal::Running | Goal::Started, Running)
        | (Goal::Stopped, Stopped)
        | (Goal::Terminated, Terminated) => Verdict::Arrived,
        (Goal::Rebooted, Running) if now.reboot_requested_time.is_none() => Verdict::Arrived,
        (Goal::Rebooted, Running | Pending) => Verdict::OnItsWay,
        (Goal::Running | Goal::Started, Stopping | Stopped) if fell => Verdict::Astray(astray(goal, now)),
        (Goal::Running | Goal::Started | Goal::Stopped, ShuttingDown | Terminated) | (Goal::Rebooted, _) => {
            Verdict::Astray(astray(goal, now))
        }
        (Goal::Running | Goal::Started, Pending | Stopping | Stopped)
        | (Goal::Stopped, Pending | Running | Stopping)
        | (Goal::Terminated, _) => Verdict::OnItsWay,
    }
}

/// How far it is, for people.
fn word(goal: Goal, now: &Instance) -> &'static str {
    match (goal, now.state, now.reboot_requested_time) {
        (Goal::Rebooted, InstanceState::Running, Some(_)) => "rebooting",
        (Goal::Rebooted, InstanceState::Running, None) => "rebooted",
        (_, state, _) => state_name(state),
    }
}

fn astray(goal: Goal, now: &Instance) -> String {
    let wanted = match goal {
        Goal::Running | Goal::Started => "running",
        Goal::Stopped => "stopped",
        Goal::Terminated => "terminated",
        Goal::Rebooted => "rebooted",
    };
    let why = now.state_reason.as_ref().map(|reason| format!(" ({})", reason.message)).unwrap_or_default();
    format!("{} is {}{why} and will not be {wanted}", now.instance_id, state_name(now.state))
}

/// Also without an event, in case that one was missed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const ABSENCE_MAX: Duration = Duration::from_secs(60);
const ABSENCE_PAUSE: Duration = Duration::from_millis(250);
const IDS_MAX: usize = 100;
const SHOWN_MAX: usize = 5;
