//! Runs a GRUB script as far as choosing and preparing a kernel needs it: variables, tests, menus. What
//! only concerns the screen, modules or other loaders does nothing and succeeds.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::parse::{Block, Command, CommandKind, Part, Word, parse};
use super::places::{Place, Places};
use super::{GrubError, Initrd, Linux, environment, loader_entries, search, test_command};

/// A script interpreter and all that it knows.
pub(super) struct Machine<'a> {
    pub(super) places: &'a dyn Places,
    pub(super) menu: Vec<MenuEntry>,
    pub(super) linux: Option<Linux>,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    positional: Vec<String>,
    succeeded: bool,
    budget: u64,
    depth: u32,
}

/// An entry of the menu; its block runs when it is chosen.
#[derive(Debug)]
pub(super) struct MenuEntry {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) is_submenu: bool,
    block: Block,
    arguments: Vec<String>,
}

/// How a block ended.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
    Return,
}

impl<'a> Machine<'a> {
    /// A machine that has just read its configuration file from `folder`.
    pub(super) fn new(places: &'a dyn Places, folder: &Place) -> Self {
        let mut variables = BTreeMap::new();
        let mut set = |name: &str, value: &str| variables.insert(name.to_owned(), value.to_owned());
        for (name, value) in PRESET {
            set(name, value);
        }
        set("root", &folder.device);
        set("prefix", &folder.to_string());
        set("cmdpath", &format!("({})", folder.device));
        Self {
            places,
            menu: Vec::new(),
            linux: None,
            variables,
            functions: BTreeMap::new(),
            positional: Vec::new(),
            succeeded: true,
            budget: STEPS_MAX,
            depth: 0,
        }
    }

    /// Runs a script.
    pub(super) fn run(&mut self, text: &str) -> Result<(), GrubError> {
        let block = parse(text)?;
        self.block(&block).map(|_| ())
    }

    /// Runs a menu entry, with the menu empty for what a submenu adds.
    pub(super) fn choose(&mut self, entry: &MenuEntry) -> Result<(), GrubError> {
        self.linux = None;
        self.variables.insert("chosen".to_owned(), entry.title.clone());
        self.positional.clone_from(&entry.arguments);
        self.block(&entry.block).map(|_| ())
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), GrubError> {
        let full = self.variables.len() >= VARIABLES_MAX && !self.variables.contains_key(name);
        if full || value.len() > VALUE_MAX || name.len() > VALUE_MAX {
            return Err(GrubError::Endless);
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    /// Where a word of a script points: `(device)/path`, or a path on `$root`.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let (device, path) = match name.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.get("root"), name),
        };
        let device = device.trim_matches(['(', ')']);
        path.starts_with('/').then(|| Place { device: device.to_owned(), path: path.to_owned() })
    }

    /// Adds an entry to the menu.
    pub(super) fn add_entry(&mut self, title: &str, id: &str, script: &str) -> Result<(), GrubError> {
        let (title, id) = (title.to_owned(), id.to_owned());
        let arguments = vec![title.clone()];
        self.push_entry(MenuEntry { title, id, is_submenu: false, block: parse(script)?, arguments })
    }

    fn push_entry(&mut self, entry: MenuEntry) -> Result<(), GrubError> {
        if self.menu.len() >= MENU_MAX {
            return Err(GrubError::Endless);
        }
        self.menu.push(entry);
        Ok(())
    }

    fn block(&mut self, block: &Block) -> Result<Flow, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(GrubError::Endless);
        }
        let mut flow = Flow::Next;
        for command in block.iter() {
            flow = self.command(command)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn command(&mut self, command: &Command) -> Result<Flow, GrubError> {
        self.spend(1)?;
        match &command.kind {
            CommandKind::Simple { words, block } => {
                let words = self.expand(words)?;
                self.simple(&words, block.as_ref()).map_err(|error| error.at(command.line))
            }
            CommandKind::If { arms, otherwise } => {
                for (condition, body) in arms {
                    if self.holds(condition)? {
                        return self.block(body);
                    }
                }
                match otherwise {
                    Some(body) => self.block(body),
                    None => Ok(Flow::Next),
                }
            }
            CommandKind::For { name, words, body } => {
                for word in self.expand(words)? {
                    self.set(name, word)?;
                    if let Some(flow) = self.turn(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            CommandKind::While { until, condition, body } => {
                while self.holds(condition)? != *until {
                    self.spend(1)?;
                    if let Some(flow) = self.turn(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            CommandKind::Function { name, body } => {
                if self.functions.len() >= VARIABLES_MAX {
                    return Err(GrubError::Endless);
                }
                self.functions.insert(name.clone(), Rc::clone(body));
                Ok(Flow::Next)
            }
        }
    }

    /// One turn of a loop; a flow when the loop is over.
    fn turn(&mut self, body: &Block) -> Result<Option<Flow>, GrubError> {
        Ok(match self.block(body)? {
            Flow::Next | Flow::Continue => None,
            Flow::Break => Some(Flow::Next),
            Flow::Return => Some(Flow::Return),
        })
    }

    fn holds(&mut self, condition: &Block) -> Result<bool, GrubError> {
        self.block(condition)?;
        Ok(self.succeeded)
    }

    fn simple(&mut self, words: &[String], block: Option<&Block>) -> Result<Flow, GrubError> {
        let Some((name, arguments)) = words.split_first() else { return Ok(Flow::Next) };
        if let ("menuentry" | "submenu", Some(block)) = (name.as_str(), block) {
            return self.menu_entry(name == "submenu", arguments, block);
        }
        if let Some(function) = self.functions.get(name).cloned() {
            let outer = std::mem::replace(&mut self.positional, arguments.to_vec());
            let flow = self.block(&function);
            self.positional = outer;
            return flow.map(|_| Flow::Next);
        }
        self.succeeded = match name.as_str() {
            "break" => return Ok(Flow::Break),
            "continue" => return Ok(Flow::Continue),
            "return" => {
                self.succeeded = arguments.first().is_none_or(|status| status == "0");
                return Ok(Flow::Return);
            }
            "!" => {
                let flow = self.simple(arguments, None)?;
                self.succeeded = !self.succeeded;
                return Ok(flow);
            }
            "eval" => {
                self.run_text(&arguments.join(" "))?;
                self.succeeded
            }
            "[" => {
                let words = arguments.strip_suffix(&["]".to_owned()]).unwrap_or(arguments);
                test_command::evaluate(words, self.places, &|name| self.place(name))?
            }
            "test" => test_command::evaluate(arguments, self.places, &|name| self.place(name))?,
            "set" => self.set_words(arguments)?,
            "unset" => {
                self.variables.retain(|name, _| !arguments.contains(name));
                true
            }
            "setparams" => {
                self.positional = arguments.to_vec();
                true
            }
            "shift" => {
                self.positional.drain(..1.min(self.positional.len()));
                true
            }
            "source" | "." | "configfile" | "normal" => self.source(arguments)?,
            "load_env" => self.load_env(arguments)?,
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                search::search(self, name, arguments)?
            }
            "probe" => search::probe(self, arguments)?,
            "linux" | "linux16" | "linuxefi" => self.linux(arguments)?,
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments)?,
            "blscfg" => loader_entries::add(self)?,
            _ => match name.split_once('=') {
                Some((variable, value)) if is_name(variable) => {
                    self.set(variable, value.to_owned())?;
                    true
                }
                _ => SUCCEED.contains(&name.as_str()),
            },
        };
        Ok(Flow::Next)
    }

    fn set_words(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        for argument in arguments {
            if let Some((name, value)) = argument.split_once('=') {
                self.set(name, value.to_owned())?;
            }
        }
        Ok(true)
    }

    fn menu_entry(&mut self, is_submenu: bool, words: &[String], block: &Block) -> Result<Flow, GrubError> {
        let (mut id, mut arguments) = (None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                option if option.starts_with("--") => {
                    id = option.strip_prefix("--id=").map(str::to_owned).or(id);
                }
                _ => arguments.push(word.clone()),
            }
        }
        let title = arguments.first().cloned().unwrap_or_default();
        let id = id.unwrap_or_else(|| title.clone());
        self.push_entry(MenuEntry { title, id, is_submenu, block: Rc::clone(block), arguments })?;
        self.succeeded = true;
        Ok(Flow::Next)
    }

    fn source(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let Some(place) = arguments.first().and_then(|name| self.place(name)) else { return Ok(false) };
        let Some(bytes) = self.places.read(&place, super::CONFIG_BYTES_MAX)? else { return Ok(false) };
        self.run_text(&String::from_utf8_lossy(&bytes))?;
        Ok(self.succeeded)
    }

    fn run_text(&mut self, text: &str) -> Result<(), GrubError> {
        self.spend(text.len() as u64 / 2)?;
        let block = parse(text)?;
        self.block(&block).map(|_| ())
    }

    fn load_env(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let mut file = format!("{}/grubenv", self.get("prefix"));
        let mut wanted = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned().unwrap_or_default(),
                "-s" | "--skip-sig" => {}
                other => match other.strip_prefix("--file=") {
                    Some(name) => file = name.to_owned(),
                    None => wanted.push(other.to_owned()),
                },
            }
        }
        let Some(place) = self.place(&file) else { return Ok(false) };
        let Some(block) = self.places.read(&place, ENVIRONMENT_BYTES_MAX)? else { return Ok(false) };
        self.spend(block.len() as u64)?;
        for (name, value) in environment::variables(&block) {
            if wanted.is_empty() || wanted.contains(&name) {
                self.set(&name, value)?;
            }
        }
        Ok(true)
    }

    /// `linux FILE WORDS…`: the file name as written starts the command line, as GRUB does it.
    fn linux(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let Some((file, words)) = arguments.split_first() else { return Ok(false) };
        let Some(kernel) = self.place(file) else { return Err(GrubError::Path(file.clone())) };
        let mut cmdline = format!("BOOT_IMAGE={}", quoted(file));
        for word in words {
            cmdline.push(' ');
            cmdline.push_str(&quoted(word));
        }
        self.linux = Some(Linux { kernel, cmdline, initrds: Vec::new() });
        Ok(true)
    }

    fn initrd(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let mut initrds = Vec::new();
        for file in arguments {
            if file.starts_with("newc:") || initrds.len() == INITRDS_MAX {
                return Err(GrubError::Initrd(file.clone()));
            }
            match self.place(file) {
                Some(place) => initrds.push(Initrd(place)),
                None => return Err(GrubError::Path(file.clone())),
            }
        }
        let Some(linux) = &mut self.linux else { return Ok(false) };
        linux.initrds = initrds;
        Ok(true)
    }

    /// The words after variables were put in: unquoted values fall apart at spaces, and vanish if empty.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded = Vec::with_capacity(words.len());
        for word in words {
            let mut current: Option<String> = None;
            for part in word {
                match part {
                    Part::Text(text) => current.get_or_insert_default().push_str(text),
                    Part::Variable { name, quoted: true } => {
                        current.get_or_insert_default().push_str(&self.value(name));
                    }
                    Part::Variable { name, quoted: false } => {
                        self.split_value(name, &mut current, &mut expanded);
                    }
                }
                let len = current.as_ref().map_or(0, String::len);
                if len > VALUE_MAX || expanded.len() > WORDS_MAX {
                    return Err(GrubError::Endless);
                }
            }
            expanded.extend(current);
        }
        let bytes: usize = expanded.iter().map(String::len).sum();
        self.spend(bytes as u64 / 64 + expanded.len() as u64)?;
        Ok(expanded)
    }

    fn split_value(&self, name: &str, current: &mut Option<String>, expanded: &mut Vec<String>) {
        let value = self.value(name);
        for (index, piece) in value.split([' ', '\t', '\n']).enumerate() {
            if index > 0 {
                expanded.extend(current.take());
            }
            if !piece.is_empty() {
                current.get_or_insert_default().push_str(piece);
            }
        }
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => if self.succeeded { "0" } else { "1" }.to_owned(),
            "#" => self.positional.len().to_string(),
            "@" | "*" => self.positional.join(" "),
            "0" => self.get("0").to_owned(),
            digits if digits.bytes().all(|c| c.is_ascii_digit()) => {
                let index = digits.parse::<usize>().unwrap_or_default();
                index.checked_sub(1).and_then(|index| self.positional.get(index)).cloned().unwrap_or_default()
            }
            name => self.get(name).to_owned(),
        }
    }

    fn spend(&mut self, steps: u64) -> Result<(), GrubError> {
        self.budget = self.budget.checked_sub(steps).ok_or(GrubError::Endless)?;
        Ok(())
    }
}

fn is_name(word: &str) -> bool {
    let mut chars = word.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A word as GRUB puts it into the kernel's command line.
fn quoted(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    for c in word.chars() {
        if matches!(c, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(c);
    }
    if word.contains(' ') { format!("\"{text}\"") } else { text }
}

/// What GRUB 2 sets on a PC before it reads its configuration.
const PRESET: [(&str, &str); 12] = [
    ("grub_platform", "pc"),
    ("grub_cpu", "i386"),
    ("feature_200_final", "y"),
    ("feature_all_video_module", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_default_font_path", "y"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_nativedisk_cmd", "y"),
    ("feature_ntldr", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_timeout_style", "y"),
];

/// Commands that succeed without any effect that matters here. All others, such as `loadfont`,
/// `background_image` and `hwmatch`, fail, which scripts take for "not available".
const SUCCEED: [&str; 24] = [
    "true",
    "boot",
    "cat",
    "clear",
    "cpuid",
    "date",
    "decrement",
    "devicetree",
    "echo",
    "export",
    "increment",
    "insmod",
    "ls",
    "nativedisk",
    "password",
    "password_pbkdf2",
    "play",
    "rmmod",
    "save_env",
    "serial",
    "sleep",
    "terminal_input",
    "terminal_output",
    "terminfo",
];

const STEPS_MAX: u64 = 1_000_000;
const DEPTH_MAX: u32 = 100;
const VARIABLES_MAX: usize = 1024;
const VALUE_MAX: usize = 16 * 1024;
const WORDS_MAX: usize = 4096;
const MENU_MAX: usize = 1024;
const INITRDS_MAX: usize = 16;
const ENVIRONMENT_BYTES_MAX: u64 = 64 * 1024;
