//! What requests and news make of an instance's record. The states are decided in [`crate::lifecycle`];
//! here is what goes with them: generation, reasons, times.
//!
//! Invariant: a request that is refused changes nothing. Whoever stores the record opens and closes the
//! ledger's entries by the [`Transition`] in the same transaction.

use crate::{
    instances::Instance,
    lifecycle::{self, AfterLoss, Circumstances, End, News, Request, State, Verdict},
    reasons::{StateReason, TransitionReason},
    time::Time,
};

/// From where to where. EC2 answers requests with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transition {
    /// `previousState`.
    pub from: State,
    /// `currentState`.
    pub to: State,
    /// The record is another one now, even where the state is the same: it must be stored.
    pub changed: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// `IncorrectInstanceState`.
    #[error("the instance is {0}")]
    IncorrectState(State),
    /// `OperationNotPermitted`, because of `disableApiTermination`.
    #[error("the instance is protected from termination")]
    TerminationProtected,
    /// `OperationNotPermitted`, because of `disableApiStop`, which protects from termination as well.
    #[error("the instance is protected from stopping")]
    StopProtected,
}

impl Instance {
    /// Records what somebody asks for.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn ask(&mut self, request: Request, now: Time) -> Result<Transition, Refusal> {
        let from = self.state;
        let to = match lifecycle::decide(from, request) {
            Verdict::Refuse => return Err(Refusal::IncorrectState(from)),
            Verdict::AlreadySo => return Ok(Transition { from, to: from, changed: false }),
            Verdict::Become(to) => to,
        };
        self.check_protection(request)?;
        if to != from {
            self.enter(to, now);
            self.generation += 1;
        }
        match request {
            Request::Start => self.begin_start(now),
            Request::Reboot => self.reboot_requested = self.reboot_requested.or(Some(now)),
            Request::Stop | Request::Terminate => self.blame_user(now),
            Request::ForceStop | Request::ForceTerminate => {
                self.forced = true;
                self.blame_user(now);
            }
        }
        Ok(Transition { from, to, changed: true })
    }

    /// Records what became of its machine: of the machine that its state speaks of, as
    /// [`crate::plan::next_step`] sees to.
    pub fn hear(&mut self, news: &News, after_loss: AfterLoss, now: Time) -> Transition {
        let before = self.clone();
        let circumstances = Circumstances {
            first_launch: self.first_launch,
            on_guest_shutdown: self.protection.on_guest_shutdown,
            after_loss,
        };
        let to = lifecycle::hear(self.state, news, circumstances);
        if *news == News::Rebooted {
            self.reboot_requested = None;
        }
        if to != self.state {
            let from = self.state;
            self.enter(to, now);
            match to {
                State::Running => self.state_reason = None,
                State::Terminated => self.terminated = Some(now),
                State::Pending => {
                    self.generation += 1;
                    self.begin_start(now);
                }
                // The way out of it is a request's or was taken before: that reason stays.
                State::Stopped if from == State::Stopping => {}
                State::Stopped | State::ShuttingDown => self.blame(news),
                State::Stopping => {}
            }
            // Whatever came after pending, the launch is over, and there may be data to lose.
            self.first_launch &= to == State::Pending;
        }
        Transition { from: before.state, to, changed: *self != before }
    }

    fn check_protection(&self, request: Request) -> Result<(), Refusal> {
        let protection = self.protection;
        match request {
            Request::Terminate | Request::ForceTerminate if protection.disable_api_termination => {
                Err(Refusal::TerminationProtected)
            }
            Request::Terminate | Request::ForceTerminate | Request::Stop | Request::ForceStop
                if protection.disable_api_stop =>
            {
                Err(Refusal::StopProtected)
            }
            Request::Start
            | Request::Reboot
            | Request::Stop
            | Request::ForceStop
            | Request::Terminate
            | Request::ForceTerminate => Ok(()),
        }
    }

    fn enter(&mut self, state: State, now: Time) {
        self.state = state;
        self.state_since = now;
        if state != State::Running {
            self.reboot_requested = None;
        }
    }

    fn begin_start(&mut self, now: Time) {
        self.launched = now;
        self.forced = false;
        self.state_reason = Some(StateReason::pending());
        self.transition_reason = None;
    }

    fn blame_user(&mut self, now: Time) {
        self.state_reason = Some(StateReason::user_initiated_shutdown());
        self.transition_reason = Some(TransitionReason::user_initiated(now));
    }

    fn blame(&mut self, news: &News) {
        let reason = match news {
            News::StartFailed(failure) => StateReason::start_failed(failure),
            News::Ended(End::PoweredOff) => StateReason::instance_initiated_shutdown(),
            News::Ended(End::Failed { detail }) => StateReason::failed(detail),
            News::Ended(End::Killed) => StateReason::killed(),
            News::Ended(End::Vanished) => StateReason::host_went_down(),
            News::Started | News::Rebooted | News::Cleared => return,
        };
        // EC2 puts the bare code here.
        self.transition_reason = Some(TransitionReason(reason.code.clone()));
        self.state_reason = Some(reason);
    }
}
