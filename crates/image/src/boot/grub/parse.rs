//! GRUB's script language (GRUB manual, "Writing full configuration files directly"): text to commands.

use std::rc::Rc;

use super::GrubError;

/// Commands that run one after the other.
pub(super) type Block = Rc<Vec<Command>>;

/// One command and the line on which it starts.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) line: u32,
    pub(super) kind: CommandKind,
}

#[derive(Debug)]
pub(super) enum CommandKind {
    /// Words, and the block in braces that `menuentry` and `submenu` take.
    Simple { words: Vec<Word>, block: Option<Block> },
    /// Conditions with what they guard, and what is done when none holds.
    If { arms: Vec<(Block, Block)>, otherwise: Option<Block> },
    /// `for NAME in WORDS; do … done`.
    For { name: String, words: Vec<Word>, body: Block },
    /// `while … do … done`, or `until`.
    While { until: bool, condition: Block, body: Block },
    /// `function NAME { … }`.
    Function { name: String, body: Block },
}

/// What becomes one word, none or several when its variables are known.
pub(super) type Word = Vec<Part>;

#[derive(Debug)]
pub(super) enum Part {
    /// Text as it is. Quoted text makes a word even when it is empty.
    Text(String),
    /// A variable's value, split at spaces unless quoted.
    Variable { name: String, quoted: bool },
}

/// Reads a whole script.
pub(super) fn parse(text: &str) -> Result<Block, GrubError> {
    let mut parser = Parser { rest: text, line: 1, depth: 0 };
    let block = parser.block(&[])?;
    match parser.peek_token()? {
        Token::End => Ok(block),
        _ => Err(parser.wrong("a word or brace that ends nothing")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: u32,
    depth: u32,
}

enum Token {
    Word(Word),
    Separator,
    Open,
    Close,
    End,
}

impl Parser<'_> {
    /// Commands up to one of the words in `ends`, a closing brace, or the end; that is left unread.
    fn block(&mut self, ends: &[&str]) -> Result<Block, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.wrong("too many blocks within each other"));
        }
        let mut commands = Vec::new();
        loop {
            let before = (self.rest, self.line);
            let word = match self.token()? {
                Token::Separator => continue,
                Token::Word(word) => word,
                Token::Open => return Err(self.wrong("a brace where a command should be")),
                Token::Close | Token::End => {
                    (self.rest, self.line) = before;
                    break;
                }
            };
            if keyword(&word).is_some_and(|name| ends.contains(&name)) {
                (self.rest, self.line) = before;
                break;
            }
            let line = self.line;
            let kind = self.command(word)?;
            commands.push(Command { line, kind });
        }
        self.depth -= 1;
        Ok(Rc::new(commands))
    }

    fn command(&mut self, first: Word) -> Result<CommandKind, GrubError> {
        match keyword(&first) {
            Some("if") => self.conditional(),
            Some("for") => self.for_loop(),
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                let condition = self.block(&["do"])?;
                let body = self.do_block()?;
                Ok(CommandKind::While { until, condition, body })
            }
            Some("function") => {
                let name = self.name()?;
                self.skip_separators()?;
                match self.token()? {
                    Token::Open => Ok(CommandKind::Function { name, body: self.braced()? }),
                    _ => Err(self.wrong("a function without a body")),
                }
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done" | "in") => {
                Err(self.wrong("a keyword out of place"))
            }
            _ => self.simple(first),
        }
    }

    fn simple(&mut self, first: Word) -> Result<CommandKind, GrubError> {
        let mut words = vec![first];
        loop {
            let before = (self.rest, self.line);
            match self.token()? {
                Token::Word(word) => words.push(word),
                Token::Open => {
                    let block = Some(self.braced()?);
                    return Ok(CommandKind::Simple { words, block });
                }
                Token::Separator => return Ok(CommandKind::Simple { words, block: None }),
                Token::Close | Token::End => {
                    (self.rest, self.line) = before;
                    return Ok(CommandKind::Simple { words, block: None });
                }
            }
        }
    }

    fn conditional(&mut self) -> Result<CommandKind, GrubError> {
        let mut arms = Vec::new();
        let mut otherwise = None;
        loop {
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            match self.name()?.as_str() {
                "elif" => {}
                "else" => {
                    otherwise = Some(self.block(&["fi"])?);
                    self.expect("fi")?;
                    break;
                }
                _ => break,
            }
        }
        Ok(CommandKind::If { arms, otherwise })
    }

    fn for_loop(&mut self) -> Result<CommandKind, GrubError> {
        let name = self.name()?;
        self.expect("in")?;
        let mut words = Vec::new();
        while let Token::Word(word) = self.token()? {
            words.push(word);
        }
        let body = self.do_block()?;
        Ok(CommandKind::For { name, words, body })
    }

    fn do_block(&mut self) -> Result<Block, GrubError> {
        self.skip_separators()?;
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    /// The rest of a block whose opening brace was read.
    fn braced(&mut self) -> Result<Block, GrubError> {
        let block = self.block(&[])?;
        match self.token()? {
            Token::Close => Ok(block),
            _ => Err(self.wrong("a block without an end")),
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<(), GrubError> {
        match self.token()? {
            Token::Word(word) if keyword(&word) == Some(wanted) => Ok(()),
            _ => Err(self.wrong(&format!("{wanted:?} is missing"))),
        }
    }

    fn name(&mut self) -> Result<String, GrubError> {
        match self.token()? {
            Token::Word(word) => {
                keyword(&word).map(str::to_owned).ok_or_else(|| self.wrong("a name that is not plain text"))
            }
            _ => Err(self.wrong("a name is missing")),
        }
    }

    fn skip_separators(&mut self) -> Result<(), GrubError> {
        loop {
            let before = (self.rest, self.line);
            if !matches!(self.token()?, Token::Separator) {
                (self.rest, self.line) = before;
                return Ok(());
            }
        }
    }

    fn peek_token(&mut self) -> Result<Token, GrubError> {
        let before = (self.rest, self.line);
        let token = self.token();
        (self.rest, self.line) = before;
        token
    }

    fn token(&mut self) -> Result<Token, GrubError> {
        loop {
            match self.rest.chars().next() {
                None => return Ok(Token::End),
                Some(' ' | '\t' | '\r') => self.skip(1),
                Some('\\') if self.rest.starts_with("\\\n") => self.skip(2),
                Some('#') => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.skip(end);
                }
                Some('\n' | ';') => {
                    self.skip(1);
                    return Ok(Token::Separator);
                }
                Some('{') => {
                    self.skip(1);
                    return Ok(Token::Open);
                }
                Some('}') => {
                    self.skip(1);
                    return Ok(Token::Close);
                }
                Some(_) => return self.word().map(Token::Word),
            }
        }
    }

    /// A word, up to a space or separator outside quotes.
    fn word(&mut self) -> Result<Word, GrubError> {
        let mut word = Word::new();
        while let Some(c) = self.rest.chars().next() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                '\'' => {
                    self.skip(1);
                    let Some(end) = self.rest.find('\'') else {
                        return Err(self.wrong("a quote without an end"));
                    };
                    let quoted = self.rest.get(..end).unwrap_or_default().to_owned();
                    self.skip(end + 1);
                    word.push(Part::Text(quoted));
                }
                '"' => {
                    self.skip(1);
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.skip(1);
                    if let Some(escaped) = self.rest.chars().next() {
                        if escaped != '\n' {
                            push_char(&mut word, escaped);
                        }
                        self.skip(escaped.len_utf8());
                    }
                }
                '$' => self.variable(&mut word, false)?,
                other => {
                    push_char(&mut word, other);
                    self.skip(other.len_utf8());
                }
            }
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), GrubError> {
        word.push(Part::Text(String::new()));
        while let Some(c) = self.rest.chars().next() {
            match c {
                '"' => {
                    self.skip(1);
                    // What follows the quote must not be taken for part of it.
                    return Ok(());
                }
                '$' => self.variable(word, true)?,
                '\\' => {
                    self.skip(1);
                    match self.rest.chars().next() {
                        Some(escaped @ ('"' | '\\' | '$')) => {
                            push_char(word, escaped);
                            self.skip(1);
                        }
                        Some('\n') => self.skip(1),
                        _ => push_char(word, '\\'),
                    }
                }
                other => {
                    push_char(word, other);
                    self.skip(other.len_utf8());
                }
            }
        }
        Err(self.wrong("a quote without an end"))
    }

    /// `$name`, `${name}`, `$1`, `$?`, `$#`, `$@`, `$*`; any other dollar is itself.
    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), GrubError> {
        self.skip(1);
        let braced = self.rest.starts_with('{');
        if braced {
            self.skip(1);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let len = match self.rest.chars().next() {
            Some('?' | '#' | '@' | '*') => 1,
            Some(c) if c.is_ascii_digit() && !braced => 1,
            _ => self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len()),
        };
        let name = self.rest.get(..len).unwrap_or_default().to_owned();
        self.skip(len);
        if braced {
            if !self.rest.starts_with('}') {
                return Err(self.wrong("a variable without a closing brace"));
            }
            self.skip(1);
        }
        match name.is_empty() {
            true => push_char(word, '$'),
            false => word.push(Part::Variable { name, quoted }),
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        let (skipped, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        let lines = skipped.bytes().filter(|&c| c == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.rest = rest;
    }

    fn wrong(&self, what: &str) -> GrubError {
        GrubError::Syntax { line: self.line, what: what.to_owned() }
    }
}

/// The word as plain text, if it holds no variable.
fn keyword(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Part::Text(text)] => Some(text),
        _ => None,
    }
}

fn push_char(word: &mut Word, c: char) {
    match word.last_mut() {
        Some(Part::Text(text)) => text.push(c),
        _ => word.push(Part::Text(c.to_string())),
    }
}

const DEPTH_MAX: u32 = 64;
