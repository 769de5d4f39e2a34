//! `deflate-on-oom=SWITCH,free-page-reporting=SWITCH`: how the guest gives memory back.

use std::str::FromStr;

use super::split_commas;

/// The balloon as typed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Balloon(pub(crate) ec2vmm_vmm_api::config::Balloon);

impl FromStr for Balloon {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut balloon = Self::default();
        for part in split_commas(text) {
            let (flag, switch) = match part.split_once('=') {
                Some(("deflate-on-oom", switch)) => (&mut balloon.0.deflate_on_oom, switch),
                Some(("free-page-reporting", switch)) => (&mut balloon.0.free_page_reporting, switch),
                _ => {
                    return Err(format!(
                        "`{part}` is not understood: deflate-on-oom=on|off and free-page-reporting=on|off are"
                    ));
                }
            };
            *flag = match switch {
                "on" => true,
                "off" => false,
                _ => return Err(format!("`{switch}` is neither on nor off")),
            };
        }
        Ok(balloon)
    }
}

#[cfg(test)]
mod tests {
    use super::Balloon;

    #[test]
    fn flags() {
        let flags = |text: &str| {
            let Balloon(balloon) = text.parse().unwrap();
            (balloon.deflate_on_oom, balloon.free_page_reporting)
        };
        assert_eq!(flags("deflate-on-oom=off"), (false, true));
        assert_eq!(flags("deflate-on-oom=on,free-page-reporting=off"), (true, false));
        for text in ["", "off", "deflate-on-oom", "deflate-on-oom=no", "size=3"] {
            assert!(text.parse::<Balloon>().is_err(), "{text}");
        }
    }
}
