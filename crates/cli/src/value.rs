//! Values that are typed in an option, each with its own grammar.

pub(crate) mod balloon;
pub(crate) mod count;
pub(crate) mod disk;
pub(crate) mod duration;
pub(crate) mod filter;
pub(crate) mod gib;
pub(crate) mod mac;
pub(crate) mod moment;
pub(crate) mod net;
pub(crate) mod queues;
pub(crate) mod rate;
pub(crate) mod settings;
pub(crate) mod size;
pub(crate) mod tag;

/// Splits `FILE,key=value,flag` at single commas; two commas are one in a value.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}
