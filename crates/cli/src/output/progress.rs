//! What is waited for, on standard error: lines that move on a terminal, plain lines elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::printable;

/// A display of instances on their way.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    display: Display,
}

#[derive(Debug)]
enum Display {
    /// Each on a line of its own.
    Each(BTreeMap<String, ProgressBar>),
    /// Too many for that: how many are there yet.
    Together(ProgressBar),
    Plain,
}

impl Progress {
    /// Of these instances.
    pub(crate) fn new(ids: &[String], plain: bool) -> Self {
        let display = match (io::stderr().is_terminal() && !plain, ids.len()) {
            (false, _) => Display::Plain,
            (true, ..=LINES_MAX) => Display::each(ids),
            (true, count) => Display::together(count),
        };
        Self { begun: Instant::now(), display }
    }

    /// An instance has come this far.
    pub(crate) fn moves(&self, id: &str, how: &'static str) {
        match &self.display {
            Display::Each(bars) => {
                if let Some(bar) = bars.get(id) {
                    bar.set_message(how);
                }
            }
            Display::Together(_) => {}
            Display::Plain => say(&format!("{id}: {how} after {}", self.elapsed())),
        }
    }

    /// An instance is where it shall be, or will never be.
    pub(crate) fn ends(&self, id: &str, how: &str) {
        match &self.display {
            Display::Each(bars) => {
                if let Some(bar) = bars.get(id) {
                    bar.finish_with_message(format!("{} after {}", printable(how), self.elapsed()));
                }
            }
            Display::Together(bar) => bar.inc(1),
            Display::Plain => {}
        }
    }

    /// The daemon is away.
    pub(crate) fn waits_for_daemon(&self) {
        match &self.display {
            Display::Each(bars) => {
                for bar in bars.values().filter(|bar| !bar.is_finished()) {
                    bar.set_message("waiting for the daemon to come back");
                }
            }
            Display::Together(bar) => bar.set_message("waiting for the daemon to come back"),
            Display::Plain => say("ec2vmm: the daemon is away; waiting for it to come back"),
        }
    }

    fn elapsed(&self) -> String {
        format!("{:.1} s", self.begun.elapsed().as_secs_f64())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &self.display {
            Display::Each(bars) => {
                bars.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
            }
            Display::Together(bar) if !bar.is_finished() => bar.abandon(),
            Display::Together(_) | Display::Plain => {}
        }
    }
}

impl Display {
    fn each(ids: &[String]) -> Self {
        let lines = MultiProgress::new();
        let bars = ids.iter().map(|id| {
            let bar = lines.add(ProgressBar::new_spinner().with_prefix(id.clone()));
            bar.set_style(style("{spinner} {prefix}  {msg}"));
            bar.enable_steady_tick(TICK);
            (id.clone(), bar)
        });
        Self::Each(bars.collect())
    }

    fn together(count: usize) -> Self {
        let bar = ProgressBar::new(count as u64);
        bar.set_style(style("{bar:30} {pos}/{len} instances  {elapsed}  {msg}"));
        bar.enable_steady_tick(TICK);
        Self::Together(bar)
    }
}

/// A template of ours, or the library's own where that one is wrong.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn say(line: &str) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", printable(line));
}

const LINES_MAX: usize = 10;
const TICK: Duration = Duration::from_millis(100);
