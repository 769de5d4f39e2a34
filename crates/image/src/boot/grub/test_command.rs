//! GRUB's `test` command, also written `[ … ]`.

use super::GrubError;
use super::places::{At, Place, Places};

/// Evaluates the words of a test, without the brackets.
pub(super) fn evaluate(
    words: &[String],
    places: &dyn Places,
    place: &dyn Fn(&str) -> Option<Place>,
) -> Result<bool, GrubError> {
    let mut test = Test { words, places, place, depth: 0 };
    test.any()
}

struct Test<'a> {
    words: &'a [String],
    places: &'a dyn Places,
    place: &'a dyn Fn(&str) -> Option<Place>,
    depth: u32,
}

impl Test<'_> {
    fn any(&mut self) -> Result<bool, GrubError> {
        let mut result = self.all()?;
        while self.take("-o") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, GrubError> {
        let mut result = self.one()?;
        loop {
            if self.take("-a") {
                result &= self.one()?;
            } else if self.words.is_empty()
                || self.words.first().is_some_and(|word| word == "-o" || word == ")")
            {
                return Ok(result);
            } else {
                // Words without an operator between them: as GRUB does, all of them count.
                result &= self.one()?;
            }
        }
    }

    fn one(&mut self) -> Result<bool, GrubError> {
        let [first, rest @ ..] = self.words else { return Ok(false) };
        if let [operator, right, after @ ..] = rest
            && let Some(result) = compare(first, operator, right)
        {
            self.words = after;
            return Ok(result);
        }
        self.words = rest;
        if let ("-d" | "-e" | "-f" | "-s" | "-n" | "-z", [operand, after @ ..]) = (first.as_str(), rest) {
            self.words = after;
            return self.unary(first, operand);
        }
        if matches!(first.as_str(), "!" | "(") && self.depth < DEPTH_MAX {
            self.depth += 1;
            let result = if first == "!" {
                !self.one()?
            } else {
                let result = self.any()?;
                self.take(")");
                result
            };
            self.depth -= 1;
            return Ok(result);
        }
        Ok(!first.is_empty())
    }

    fn unary(&self, operator: &str, operand: &str) -> Result<bool, GrubError> {
        let at = match operator {
            "-n" => return Ok(!operand.is_empty()),
            "-z" => return Ok(operand.is_empty()),
            _ => match (self.place)(operand) {
                Some(place) => self.places.at(&place)?,
                None => None,
            },
        };
        Ok(match operator {
            "-d" => at == Some(At::Folder),
            "-f" => matches!(at, Some(At::File { .. })),
            "-s" => matches!(at, Some(At::File { size }) if size > 0),
            _ => at.is_some(),
        })
    }

    fn take(&mut self, wanted: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if first == wanted => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }
}

/// `None` if `operator` is none.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or_default();
    let suffix = |text: &str| number(text.trim_start_matches(|c: char| !c.is_ascii_digit()));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => number(left) == number(right),
        "-ne" => number(left) != number(right),
        "-lt" => number(left) < number(right),
        "-le" => number(left) <= number(right),
        "-gt" => number(left) > number(right),
        "-ge" => number(left) >= number(right),
        "-pgt" => suffix(left) > suffix(right),
        "-plt" => suffix(left) < suffix(right),
        // Times of change are not kept apart: no file is newer than another.
        "-nt" | "-ot" => false,
        _ => return None,
    })
}

const DEPTH_MAX: u32 = 32;
