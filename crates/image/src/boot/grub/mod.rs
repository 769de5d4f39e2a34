//! What GRUB 2 would boot: its configuration, run, and the default entry of the menu that this makes.

mod environment;
mod loader_entries;
#[cfg(any(test, fuzzing))]
pub(super) mod memory;
mod parse;
mod places;
mod run;
mod search;
mod test_command;
#[cfg(test)]
mod tests;

use crate::ext4::FilesError;

pub(super) use places::{At, Device, Place, Places};
use run::{Machine, MenuEntry};

/// What the default entry of a menu starts.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) title: String,
    pub(super) linux: Linux,
}

/// A kernel to start.
#[derive(Debug)]
pub(super) struct Linux {
    pub(super) kernel: Place,
    pub(super) cmdline: String,
    pub(super) initrds: Vec<Initrd>,
}

/// One of the files that make the initial RAM disk.
#[derive(Debug)]
pub(super) struct Initrd(pub(super) Place);

/// Why a GRUB configuration chooses nothing.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// The configuration is not in GRUB's language.
    #[error("line {line}: {what}")]
    Syntax {
        /// Which line, from 1.
        line: u32,
        /// What is wrong there.
        what: String,
    },
    /// The configuration does more than any menu needs.
    #[error("gave up: it does more than any menu needs")]
    Endless,
    /// A kernel or initrd whose path makes no sense.
    #[error("{0:?} is no path of a file")]
    Path(String),
    /// An initrd that is given in a way that is not supported.
    #[error("initrd {0:?} is not supported")]
    Initrd(String),
    /// A command went wrong.
    #[error("line {line}")]
    Command {
        /// Which line, from 1.
        line: u32,
        /// What went wrong.
        #[source]
        source: Box<GrubError>,
    },
    /// The default entry starts no Linux.
    #[error("the default entry {title:?} starts no Linux kernel")]
    NoLinux {
        /// The entry's title.
        title: String,
    },
    /// The menu is empty.
    #[error("its menu has no entries")]
    NoEntries,
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl GrubError {
    fn at(self, line: u32) -> Self {
        match self {
            Self::Path(_) | Self::Initrd(_) => Self::Command { line, source: Box::new(self) },
            other => other,
        }
    }
}

/// Runs the configuration `text` that was read from `folder`, and its default entry.
pub(super) fn choose(places: &dyn Places, folder: &Place, text: &str) -> Result<Choice, GrubError> {
    let mut machine = Machine::new(places, folder);
    machine.run(text)?;
    let mut path = machine.get("default").to_owned();
    let mut title = String::new();
    for _ in 0..MENU_DEPTH_MAX {
        // A configuration may start a kernel without any menu.
        if machine.menu.is_empty() && title.is_empty() && machine.linux.is_some() {
            break;
        }
        let menu = std::mem::take(&mut machine.menu);
        let (head, rest) = split_path(&path);
        let entry = pick(&menu, &head).ok_or(GrubError::NoEntries)?;
        title.clone_from(&entry.title);
        machine.choose(entry)?;
        if !entry.is_submenu {
            break;
        }
        path = rest;
    }
    match machine.linux {
        Some(linux) => Ok(Choice { title, linux }),
        None => Err(GrubError::NoLinux { title }),
    }
}

/// The entry that a number, title or id names, else the first.
fn pick<'a>(menu: &'a [MenuEntry], name: &str) -> Option<&'a MenuEntry> {
    let by_number = name.parse::<usize>().ok().and_then(|index| menu.get(index));
    let by_name = || menu.iter().find(|entry| entry.title == name || entry.id == name);
    by_number.or_else(by_name).or_else(|| menu.first())
}

/// `a>b` is entry `b` of submenu `a`; `>>` stands for a `>` in a name.
fn split_path(path: &str) -> (String, String) {
    let mut head = String::new();
    let mut chars = path.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '>' && chars.next_if(|&(_, next)| next == '>').is_none() {
            return (head, path.get(at + 1..).unwrap_or_default().to_owned());
        }
        head.push(c);
    }
    (head, String::new())
}

/// The longest configuration file that is read.
pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;
const MENU_DEPTH_MAX: usize = 8;
