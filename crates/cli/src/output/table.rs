//! Tables for people: columns padded to their widest cell, cut to fit the terminal where they are not ids.
//!
//! Invariant: what strangers wrote (names, tags) never drives the terminal.

use anstyle::Style;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{printable, screen::Screen};

/// A table under construction.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// A column.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Never cut: people copy it.
    Whole,
    /// May be cut.
    Text,
    /// Aligned to the right.
    Number,
}

/// What people copy: ids, addresses.
pub(crate) const fn whole(name: &'static str) -> Column {
    Column { name, kind: Kind::Whole }
}

/// What may be cut where the terminal is narrow.
pub(crate) const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

/// What is compared down the column.
pub(crate) const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

/// What is in one place of a table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::new() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Nothing is shown as `-`.
impl<T: Into<String>> From<Option<T>> for Cell {
    fn from(text: Option<T>) -> Self {
        text.map_or_else(|| "-".into(), |text| text.into().into())
    }
}

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let mut cells = cells.into();
        for cell in &mut cells {
            cell.text = printable(&cell.text);
        }
        self.rows.push(cells);
    }

    /// The whole of it.
    pub(crate) fn render(&self, screen: Screen) -> String {
        let widths = self.widths(screen.width);
        let bold = Style::new().bold();
        let head: Vec<Cell> = self.columns.iter().map(|column| Cell::styled(column.name, bold)).collect();
        std::iter::once(&head).chain(&self.rows).map(|row| self.line(row, &widths, screen.colour)).collect()
    }

    fn line(&self, cells: &[Cell], widths: &[usize], colour: bool) -> String {
        let last = self.columns.len().saturating_sub(1);
        let mut line = String::new();
        for (at, ((cell, column), &width)) in cells.iter().zip(&self.columns).zip(widths).enumerate() {
            let text = cut(&cell.text, width);
            let padding = " ".repeat(width.saturating_sub(text.width()));
            let (before, after) = match column.kind {
                Kind::Number => (padding.as_str(), ""),
                Kind::Whole | Kind::Text if at == last => ("", ""),
                Kind::Whole | Kind::Text => ("", padding.as_str()),
            };
            let text = match colour && cell.style != Style::new() {
                true => format!("{}{text}{}", cell.style.render(), cell.style.render_reset()),
                false => text,
            };
            let gap = if at == 0 { "" } else { GAP };
            line += &format!("{gap}{before}{text}{after}");
        }
        line.trim_end().to_owned() + "\n"
    }

    /// As wide as the widest cell; then, for a terminal, the widest text gives way first.
    fn widths(&self, screen: Option<usize>) -> Vec<usize> {
        let widest = |at: usize, column: &Column| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text.width());
            cells.chain([column.name.width()]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(at, column)| widest(at, column)).collect();
        let gaps = GAP.len() * self.columns.len().saturating_sub(1);
        let Some(screen) = screen else { return widths };
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(screen);
        while excess > 0 {
            let texts = widths.iter_mut().zip(&self.columns).filter(|(width, column)| {
                column.kind == Kind::Text && **width > TEXT_WIDTH_MIN.max(column.name.width())
            });
            // What is left does not fit; the terminal wraps it.
            let Some((width, _)) = texts.max_by_key(|(width, _)| **width) else { break };
            *width -= 1;
            excess -= 1;
        }
        widths
    }
}

/// A text that fits, with an ellipsis where something was cut off.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut room = width.saturating_sub(1);
    for letter in text.chars() {
        let columns = letter.width().unwrap_or(0);
        if columns > room {
            break;
        }
        room -= columns;
        kept.push(letter);
    }
    kept + "…"
}

const GAP: &str = "  ";
const TEXT_WIDTH_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop_assert, proptest};
    use unicode_width::UnicodeWidthStr;

    use super::{Cell, Screen, Table, number, text, whole};
    use crate::output::screen::state_style;

    fn example() -> Table {
        let mut table = Table::new([whole("ID"), text("NAME"), number("COST"), text("STATE")]);
        let running = Cell::styled("running", state_style(ec2vmm_rest_api::InstanceState::Running));
        table.row(["i-0123456789abcdef0".into(), "the\u{1b}[2J web server".into(), "1.25".into(), running]);
        table.row(["i-1".into(), "数据库 database".into(), "100.00".into(), "stopped".into()]);
        table.row(["i-2".into(), Cell::from(None::<String>), "-".into(), "".into()]);
        table
    }

    #[test]
    fn columns_line_up() {
        check(
            Screen::default(),
            &expect![[r#"
                ID                   NAME                       COST  STATE
                i-0123456789abcdef0  the\u{1b}[2J web server    1.25  running
                i-1                  数据库 database          100.00  stopped
                i-2                  -                             -
            "#]],
        );
    }

    #[test]
    fn names_give_way_to_a_narrow_terminal() {
        check(
            Screen { width: Some(52), colour: false },
            &expect![[r#"
            ID                   NAME              COST  STATE
            i-0123456789abcdef0  the\u{1b}[2J …    1.25  running
            i-1                  数据库 databa…  100.00  stopped
            i-2                  -                    -
        "#]],
        );
        check(
            Screen { width: Some(10), colour: false },
            &expect![[r#"
            ID                   NAME      COST  STATE
            i-0123456789abcdef0  the\u…    1.25  runni…
            i-1                  数据…   100.00  stopp…
            i-2                  -            -
        "#]],
        );
    }

    #[test]
    fn colours() {
        let mut table = Table::new([text("STATE"), text("NAME")]);
        let style = state_style(ec2vmm_rest_api::InstanceState::Terminated);
        table.row([Cell::styled("terminated", style), "x".into()]);
        let shown = table.render(Screen { width: None, colour: true }).replace('\u{1b}', "^");
        expect![[r#"
            ^[1mSTATE^[0m       ^[1mNAME^[0m
            ^[2mterminated^[0m  x
        "#]]
        .assert_eq(&shown);
    }

    fn check(screen: Screen, expect: &Expect) {
        expect.assert_eq(&example().render(screen));
    }

    proptest! {
        #[test]
        fn any_text_fits(cell in any::<String>(), width in 1..60usize) {
            let mut table = Table::new([text("A"), text("B")]);
            table.row([cell.as_str().into(), cell.as_str().into()]);
            let shown = table.render(Screen { width: Some(width.max(16)), colour: false });
            prop_assert!(shown.lines().all(|line| line.width() <= width.max(16)), "{shown}");
        }
    }
}
