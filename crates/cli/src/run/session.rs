//! A machine and its owner, from the first instruction to the last byte printed: one poll loop between the
//! machine process, the terminal, signals and the clock.
//!
//! ```text
//! Running ─key, signal, timeout, output closed→ Released ─process ended→ Draining ─all told→ over
//! Running ─process ended→ Draining               Released ─signal, patience at an end→ killed
//! ```
//!
//! Invariants: nothing waits but the poll. The machine process never outlives the session. Every byte that
//! the guest printed before it ended is passed on, unless nobody reads it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    process::ExitStatus,
    time::{Duration, Instant},
};

use ec2vmm_host::violation;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio::stdin,
};

use super::{
    ending::{Cause, Ending, conclude},
    events::{End, Heard, Lines, hear},
    launch::{Launched, launch},
    plan::{Console, Plan},
    power_button::PowerButton,
};
use crate::{
    console::{
        input::Input,
        keys::{HELP, Key},
        signals::{HANG_UP, Signals},
        stream::{State, Stream, timespec},
    },
    error::{Error, failed_to},
    output::printable,
};

/// Starts a machine and stays with it. Says when it was born.
pub(crate) fn run(plan: &Plan, born: &mut Instant) -> Result<Ending, Error> {
    // From here on a signal is an ending with everything put away.
    let signals = Signals::catch()?;
    let mut session = Session::begin(plan, signals, launch(plan, born)?)?;
    while !session.is_over() {
        session.step()?;
    }
    session.end(plan)
}

#[derive(Debug)]
struct Session {
    // Given at birth.
    launched: Launched,
    signals: Signals,
    stdout: Stream,
    stderr: Stream,
    input: Input,
    console: Console,
    events: bool,
    deadline: Option<Instant>,
    // In the middle of.
    event_lines: Lines,
    log_lines: Lines,
    power_button: Option<PowerButton>,
    /// What the machine process has no more to say on.
    silent: Silent,
    // How it ends.
    cause: Option<Cause>,
    /// Until when what has been asked for may take.
    patience: Option<Instant>,
    killed: bool,
    status: Option<ExitStatus>,
    told: Option<End>,
}

/// The outputs of the machine process that are at their end.
#[derive(Clone, Copy, Debug, Default)]
struct Silent {
    console: bool,
    events: bool,
    log: bool,
}

/// Everything that can happen, but for the time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Signals,
    Process,
    Console,
    Events,
    Log,
    Input,
    Stdout,
    Stderr,
    PowerButton,
}

impl Session {
    fn begin(plan: &Plan, signals: Signals, mut launched: Launched) -> Result<Self, Error> {
        let stdout = Stream::stdout().map_err(failed_to("use standard output"))?;
        let stderr = Stream::stderr().map_err(failed_to("use standard error"))?;
        let seen_on_terminal = match &plan.console {
            Console::Stdout => stdout.is_terminal(),
            Console::Stderr => stderr.is_terminal(),
            Console::File(_) => false,
        };
        let notes = std::mem::take(&mut launched.notes);
        let mut session = Self {
            launched,
            signals,
            stdout,
            stderr,
            input: Input::open(seen_on_terminal),
            console: plan.console.clone(),
            events: plan.events,
            deadline: plan.timeout.and_then(|timeout| Instant::now().checked_add(timeout.0)),
            event_lines: Lines::default(),
            log_lines: Lines::default(),
            power_button: None,
            silent: Silent::default(),
            cause: None,
            patience: None,
            killed: false,
            status: None,
            told: None,
        };
        for note in notes {
            session.remark(&format!("ec2vmm: note: {note}"))?;
        }
        Ok(session)
    }

    /// The process has ended and everything that it said is told, or there is no more time to tell it.
    fn is_over(&self) -> bool {
        let heard = self.silent.console && self.silent.events && self.silent.log;
        let told = self.stdout.is_flushed() && self.stderr.is_flushed();
        let given_up = self.patience.is_some_and(|patience| Instant::now() >= patience);
        self.status.is_some() && (given_up || (heard && told))
    }

    /// Waits for something to happen, and does what is to be done about it.
    fn step(&mut self) -> Result<(), Error> {
        for (source, ready) in self.wait()? {
            self.serve(source, ready)?;
        }
        self.look_at_the_clock()?;
        if self.status.is_some() {
            // All that will ever come is there already, so that what has nothing to read is at its end.
            self.hear_console()?;
            self.hear_events()?;
            self.hear_log()?;
        }
        if self.cause.is_none() {
            match self.output() {
                State::Open => {}
                State::Closed => self.release(Cause::OutputClosed),
                State::HungUp => self.release(Cause::Signal(HANG_UP)),
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Error> {
        let interests = self.interests();
        let mut descriptors: Vec<PollFd<'_>> = interests
            .iter()
            .map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags))
            .collect();
        let timeout = self.time_to_wait().and_then(timespec);
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(failed_to("wait for the machine")(errno.into())),
        }
        let happened = interests.iter().zip(&descriptors);
        Ok(happened
            .map(|((source, ..), descriptor)| (*source, descriptor.revents()))
            .filter(|(_, ready)| !ready.is_empty())
            .collect())
    }

    /// What to wait for. Whatever is at its end is left out, because it would be ready for ever.
    fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let machine = &self.launched.machine;
        let mut interests = vec![(Source::Signals, self.signals.as_fd(), PollFlags::IN)];
        let mut add = |wanted: bool, source, descriptor, flags| {
            if wanted {
                interests.push((source, descriptor, flags));
            }
        };
        add(self.status.is_none(), Source::Process, machine.as_ended(), PollFlags::IN);
        let mut console = PollFlags::empty();
        console.set(PollFlags::IN, self.console_has_room());
        console.set(PollFlags::OUT, !self.input.pending().is_empty());
        let talks = !self.silent.console && !console.is_empty();
        add(talks, Source::Console, machine.console.as_fd(), console);
        let reports = !self.silent.events && self.stdout.has_room();
        add(reports, Source::Events, machine.events.as_fd(), PollFlags::IN);
        let logs = !self.silent.log && self.stderr.has_room();
        add(logs, Source::Log, machine.log.as_fd(), PollFlags::IN);
        let types = self.cause.is_none() && self.status.is_none() && self.input.wants_more();
        add(types, Source::Input, stdin(), PollFlags::IN);
        let read = self.stdout.state() == State::Open;
        add(read, Source::Stdout, self.stdout.as_fd(), self.stdout.interest());
        let read = self.stderr.state() == State::Open;
        add(read, Source::Stderr, self.stderr.as_fd(), self.stderr.interest());
        if let Some(power_button) = &self.power_button {
            add(true, Source::PowerButton, power_button.as_fd(), PollFlags::IN);
        }
        interests
    }

    /// How long nothing may happen; nothing is for ever.
    fn time_to_wait(&self) -> Option<Duration> {
        let to_read = |silent: bool, room: bool| !silent && room;
        let more_to_read = to_read(self.silent.console, self.console_has_room())
            || to_read(self.silent.events, self.stdout.has_room())
            || to_read(self.silent.log, self.stderr.has_room());
        if self.status.is_some() && more_to_read {
            return Some(Duration::ZERO);
        }
        let deadline = self.deadline.filter(|_| self.cause.is_none() && self.status.is_none());
        let patience = self.patience.filter(|_| !self.killed || self.status.is_some());
        let next = deadline.into_iter().chain(patience).min();
        next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    fn serve(&mut self, source: Source, ready: PollFlags) -> Result<(), Error> {
        match source {
            Source::Signals => self.hear_signals(),
            Source::Process => {
                self.status = self.launched.machine.try_wait().map_err(failed_to("wait for the machine"))?;
                Ok(())
            }
            Source::Console => {
                self.send_input();
                self.hear_console()
            }
            Source::Events => self.hear_events(),
            Source::Log => self.hear_log(),
            Source::Input => self.read_input(),
            Source::Stdout => self.stdout.notice(ready).map_err(failed_to("write to standard output")),
            Source::Stderr => self.stderr.notice(ready).map_err(failed_to("write to standard error")),
            Source::PowerButton => self.hear_power_button(),
        }
    }

    fn look_at_the_clock(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let passed = |time: Option<Instant>| time.is_some_and(|time| now >= time);
        if self.cause.is_none() && self.status.is_none() && passed(self.deadline) {
            self.release(Cause::TimedOut);
        }
        if self.status.is_none() && !self.killed && passed(self.patience) {
            self.kill()?;
        }
        Ok(())
    }

    /// Has the machine process write back what it must, and end.
    fn release(&mut self, cause: Cause) {
        self.cause = Some(cause);
        self.patience = Instant::now().checked_add(PATIENCE);
        self.launched.machine.release();
    }

    fn kill(&mut self) -> Result<(), Error> {
        self.killed = true;
        self.launched.machine.kill().map_err(failed_to("end the machine process"))
    }

    fn hear_signals(&mut self) -> Result<(), Error> {
        let came = self.signals.take();
        if came.continued {
            self.input.resume();
        }
        match (came.ending, self.cause) {
            (Some(signal), None) => self.release(Cause::Signal(signal)),
            // A terminal that hangs up tells by itself and by signal, in whichever order: one wish, not two.
            (Some(HANG_UP), Some(Cause::Signal(HANG_UP))) => {}
            (Some(_), Some(_)) => {
                self.patience = Some(Instant::now());
                if self.status.is_none() {
                    self.kill()?;
                }
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn read_input(&mut self) -> Result<(), Error> {
        let typed = self.input.read();
        if typed.hung_up && self.cause.is_none() {
            self.release(Cause::Signal(HANG_UP));
        }
        for key in typed.keys {
            match key {
                Key::Leave if self.cause.is_none() => self.release(Cause::Left),
                Key::Help => {
                    self.stderr.write(HELP.as_bytes()).map_err(failed_to("write to standard error"))?
                }
                Key::PowerButton => match PowerButton::press(&self.launched.control) {
                    Ok(power_button) => self.power_button = Some(power_button),
                    Err(error) => self.remark(&format!("ec2vmm: cannot press the power button: {error}"))?,
                },
                Key::Leave | Key::Send(_) | Key::Nothing => {}
            }
        }
        self.send_input();
        Ok(())
    }

    fn send_input(&mut self) {
        while !self.input.pending().is_empty() {
            match rustix::io::write(&self.launched.machine.console, self.input.pending()) {
                Ok(sent) => self.input.sent(sent),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return,
                // The machine process has let go of its console, or has ended.
                Err(_) => self.input.discard(),
            }
        }
    }

    fn hear_power_button(&mut self) -> Result<(), Error> {
        let Some(answer) = self.power_button.as_mut().and_then(PowerButton::answer) else { return Ok(()) };
        self.power_button = None;
        match answer {
            Ok(()) => Ok(()),
            Err(why) => self.remark(&format!("ec2vmm: the power button does not work: {why}")),
        }
    }

    fn hear_console(&mut self) -> Result<(), Error> {
        if self.silent.console || !self.console_has_room() {
            return Ok(());
        }
        let mut buffer = vec![0; PIECE_BYTES];
        let heard = listen(self.launched.machine.console.as_fd(), &mut buffer, self.status.is_some());
        self.silent.console = heard.at_end;
        match (&self.console, &mut self.launched.console_file) {
            (Console::File(path), Some(file)) => {
                file.write(heard.bytes).map_err(failed_to(&format!("write to {}", path.display())))
            }
            (Console::Stderr, _) => {
                self.stderr.write(heard.bytes).map_err(failed_to("write to standard error"))
            }
            _ => self.stdout.write(heard.bytes).map_err(failed_to("write to standard output")),
        }
    }

    fn hear_events(&mut self) -> Result<(), Error> {
        if self.silent.events || !self.stdout.has_room() {
            return Ok(());
        }
        let mut buffer = vec![0; PIECE_BYTES];
        let heard = listen(self.launched.machine.events.as_fd(), &mut buffer, self.status.is_some());
        self.silent.events = heard.at_end;
        for line in self.event_lines.take(heard.bytes) {
            match hear(&line) {
                Heard::End(end) => self.told = Some(end),
                Heard::Event if self.events => {
                    let line = [line.as_slice(), b"\n"].concat();
                    self.stdout.write(&line).map_err(failed_to("write to standard output"))?;
                }
                Heard::Event => {}
                Heard::Noise(why) => self.remark(&format!("ec2vmm: {why}"))?,
            }
        }
        Ok(())
    }

    fn hear_log(&mut self) -> Result<(), Error> {
        if self.silent.log || !self.stderr.has_room() {
            return Ok(());
        }
        let mut buffer = vec![0; PIECE_BYTES];
        let heard = listen(self.launched.machine.log.as_fd(), &mut buffer, self.status.is_some());
        self.silent.log = heard.at_end;
        let mut lines = self.log_lines.take(heard.bytes);
        if heard.at_end {
            lines.extend(self.log_lines.rest());
        }
        for line in lines {
            self.remark(&printable(String::from_utf8_lossy(&line).trim_end()))?;
        }
        Ok(())
    }

    /// A line of our own on standard error.
    fn remark(&mut self, line: &str) -> Result<(), Error> {
        let end = if self.input.is_raw() { "\r\n" } else { "\n" };
        self.stderr.write(format!("{line}{end}").as_bytes()).map_err(failed_to("write to standard error"))
    }

    fn console_has_room(&self) -> bool {
        match self.console {
            Console::Stdout => self.stdout.has_room(),
            Console::Stderr => self.stderr.has_room(),
            Console::File(_) => true,
        }
    }

    /// Whether anybody will ever see what this command is run for.
    fn output(&self) -> State {
        let stdout = self.events || self.console == Console::Stdout;
        let stderr = self.console == Console::Stderr;
        let wanted = [(stdout, &self.stdout), (stderr, &self.stderr)];
        let states = wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| stream.state());
        states.max().unwrap_or(State::Open)
    }

    /// Gives everything back, and says how it ended.
    fn end(mut self, plan: &Plan) -> Result<Ending, Error> {
        self.input.close();
        let console = match self.console {
            Console::Stdout => Some(&mut self.stdout),
            Console::Stderr => Some(&mut self.stderr),
            Console::File(_) => None,
        };
        // So that the shell's prompt, or our own last words, start a line.
        if let Some(console) = console.filter(|console| console.is_terminal() && console.is_within_line()) {
            console.write(b"\r\n").map_err(failed_to("write to the terminal"))?;
        }
        let pid = self.launched.machine.pid();
        let killed = self.status.and_then(|status| violation::failure(pid, status));
        let killed = killed.or_else(|| self.launched.machine.out_of_memory());
        conclude(self.cause, killed, self.status, self.told, plan.timeout)
    }
}

/// What one read came to.
struct Listened<'a> {
    bytes: &'a [u8],
    at_end: bool,
}

/// Reads once. Where `all_is_there`, to find nothing is to be at the end.
fn listen<'a>(descriptor: BorrowedFd<'_>, buffer: &'a mut [u8], all_is_there: bool) -> Listened<'a> {
    match rustix::io::read(descriptor, &mut *buffer) {
        Ok(read) => Listened { bytes: buffer.get(..read).unwrap_or_default(), at_end: read == 0 },
        Err(Errno::INTR) => Listened { bytes: &[], at_end: false },
        Err(Errno::WOULDBLOCK) => Listened { bytes: &[], at_end: all_is_there },
        // The other end is gone, in whichever way.
        Err(_) => Listened { bytes: &[], at_end: true },
    }
}

/// How long the machine process may take to write back and end before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);
const PIECE_BYTES: usize = 64 * 1024;
