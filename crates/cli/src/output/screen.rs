//! What output is printed on, and so how: colour and width are for terminals only.

use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};
use ec2vmm_rest_api::InstanceState;

/// What standard output is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Screen {
    /// Columns of the terminal; nothing where it is none, or does not say.
    pub(crate) width: Option<usize>,
    /// Colours are seen as such.
    pub(crate) colour: bool,
}

impl Screen {
    /// Standard output. `plain` as the environment wants it.
    pub(crate) fn stdout(plain: bool) -> Self {
        if !io::stdout().is_terminal() {
            return Self::default();
        }
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0);
        Self { width, colour: !plain }
    }
}

/// Rows of the terminal that standard output is, if it says so.
pub(crate) fn height() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some(usize::from(size.ws_row)).filter(|&rows| rows > 0)
}

/// How a state looks.
pub(crate) fn state_style(state: InstanceState) -> Style {
    let colour = match state {
        InstanceState::Running => AnsiColor::Green,
        InstanceState::Pending | InstanceState::Stopping | InstanceState::ShuttingDown => AnsiColor::Yellow,
        InstanceState::Stopped => AnsiColor::Blue,
        InstanceState::Terminated => return Style::new().dimmed(),
    };
    Style::new().fg_color(Some(colour.into()))
}
