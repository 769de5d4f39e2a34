//! The order of versions (UAPI.10, "Version Format Specification"), by which boot loaders put the newest
//! kernel first.

use std::cmp::Ordering;

/// Compares two versions: `6.1.0-18` is less than `6.1.0-100`, `6.2~rc1` is less than `6.2`.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_separators(left);
        right = skip_separators(right);
        let marks = mark(left).cmp(&mark(right));
        if marks != Ordering::Equal {
            return marks;
        }
        match (left.split_first(), right.split_first()) {
            (Some((&first, rest_left)), Some((_, rest_right))) if !first.is_ascii_alphanumeric() => {
                (left, right) = (rest_left, rest_right);
            }
            (Some(_), Some(_)) => {
                let numeric = starts_with_digit(left) || starts_with_digit(right);
                let (a, rest_left) = take_run(left, numeric);
                let (b, rest_right) = take_run(right, numeric);
                let runs = if numeric { compare_numbers(a, b) } else { a.cmp(b) };
                if runs != Ordering::Equal {
                    return runs;
                }
                (left, right) = (rest_left, rest_right);
            }
            _ => return Ordering::Equal,
        }
    }
}

/// Anything but letters, digits and the four marks only separates.
fn skip_separators(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|&c| c.is_ascii_alphanumeric() || b"~-^.".contains(&c));
    start.and_then(|start| text.get(start..)).unwrap_or_default()
}

/// `~` sorts before the end of the text, the end before `-`, then `^`, then `.`, then all else.
fn mark(text: &[u8]) -> u8 {
    match text.first() {
        Some(b'~') => 0,
        None => 1,
        Some(b'-') => 2,
        Some(b'^') => 3,
        Some(b'.') => 4,
        Some(_) => 5,
    }
}

fn starts_with_digit(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit)
}

fn take_run(text: &[u8], numeric: bool) -> (&[u8], &[u8]) {
    let ends = |c: &u8| if numeric { !c.is_ascii_digit() } else { !c.is_ascii_alphabetic() };
    text.split_at(text.iter().position(ends).unwrap_or(text.len()))
}

/// Numbers of any length; none at all counts as 0.
fn compare_numbers(left: &[u8], right: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| {
        let start = digits.iter().position(|&c| c != b'0').unwrap_or(digits.len());
        digits.get(start..).unwrap_or_default().to_vec()
    };
    let (left, right) = (strip(left), strip(right));
    left.len().cmp(&right.len()).then_with(|| left.cmp(&right))
}

#[cfg(test)]
mod tests {
    use super::compare;
    use std::cmp::Ordering;

    #[test]
    fn versions_sort_as_the_specification_says() {
        let ascending = [
            "122.1~rc1-1",
            "122.1",
            "122.1-1",
            "122.1^post1",
            "122.1.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{} < {}", pair[0], pair[1]);
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{} > {}", pair[1], pair[0]);
        }
        assert_eq!(compare("6.1.0-9", "6.1.0-10"), Ordering::Less);
        assert_eq!(compare("6.1_0", "6.1+0"), Ordering::Equal);
    }
}
