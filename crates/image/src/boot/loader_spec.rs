//! Boot Loader Specification (UAPI.1), type #1 entries: `loader/entries/*.conf`.

use std::cmp::Ordering;

use super::grub::{Place, Places};
use super::version;
use crate::ext4::FilesError;

/// Where entries lie on a boot partition, and on a root file system.
pub(super) const FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// One entry file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct EntryFile {
    /// The file's name without `.conf` and without the boot counter.
    pub(super) id: String,
    /// All attempts to boot it failed.
    bad: bool,
    fields: Vec<(String, String)>,
}

impl EntryFile {
    fn parse(name: &str, text: &str) -> Option<Self> {
        let name = name.strip_suffix(".conf")?;
        let (id, bad) = match name.rsplit_once('+') {
            Some((id, counter)) if is_counter(counter) => (id, counter == "0" || counter.starts_with("0-")),
            _ => (name, false),
        };
        let fields = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once([' ', '\t']))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        Some(Self { id: id.to_owned(), bad, fields })
    }

    /// The last value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All values of a key, in order.
    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn title(&self) -> String {
        match (self.get("title"), self.get("version")) {
            (Some(title), _) => title.to_owned(),
            (None, Some(version)) => version.to_owned(),
            (None, None) => self.id.clone(),
        }
    }

    /// Whether it starts a Linux kernel on x86-64.
    fn is_ours(&self) -> bool {
        let ours = self.get("architecture").is_none_or(|name| name.eq_ignore_ascii_case("x64"));
        ours && self.get("linux").is_some()
    }
}

/// The entries in a folder that start a Linux kernel on x86-64.
pub(super) fn read_folder(places: &dyn Places, folder: &Place) -> Result<Vec<EntryFile>, FilesError> {
    let mut names = places.list(folder, NAMES_MAX)?;
    names.retain(|name| name.ends_with(".conf"));
    names.sort();
    names.truncate(ENTRIES_MAX);
    let mut entries = Vec::new();
    for name in names {
        let place = Place { device: folder.device.clone(), path: format!("{}/{name}", folder.path) };
        if let Some(bytes) = places.read(&place, ENTRY_BYTES_MAX)? {
            entries.extend(EntryFile::parse(&name, &String::from_utf8_lossy(&bytes)));
        }
    }
    entries.retain(EntryFile::is_ours);
    Ok(entries)
}

/// The entry that the specification puts first, or that `loader.conf` names by a pattern.
pub(super) fn default_entry(entries: &[EntryFile], loader_conf: Option<&str>) -> Option<EntryFile> {
    let mut sorted: Vec<&EntryFile> = entries.iter().collect();
    sorted.sort_by(|a, b| compare(a, b));
    let pattern = loader_conf.and_then(|text| {
        text.lines()
            .filter_map(|line| line.trim().split_once([' ', '\t']))
            .rfind(|(key, _)| *key == "default")
    });
    let named = pattern.and_then(|(_, pattern)| {
        let pattern = pattern.trim();
        let pattern = pattern.strip_suffix(".conf").unwrap_or(pattern);
        sorted.iter().find(|entry| matches(pattern.as_bytes(), entry.id.as_bytes()))
    });
    named.or(sorted.first()).map(|entry| (*entry).clone())
}

/// The order of the specification: what was found bad last; by sort key; the newest first.
fn compare(a: &EntryFile, b: &EntryFile) -> Ordering {
    let sort_keys = || match (a.get("sort-key"), b.get("sort-key")) {
        (Some(left), Some(right)) => left
            .cmp(right)
            .then_with(|| a.get("machine-id").cmp(&b.get("machine-id")))
            .then_with(|| version::compare(b.get("version").unwrap_or(""), a.get("version").unwrap_or(""))),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    a.bad.cmp(&b.bad).then_with(sort_keys).then_with(|| compare_names(&b.id, &a.id))
}

/// Compares two entry names as versions.
pub(super) fn compare_names(a: &str, b: &str) -> Ordering {
    version::compare(a, b)
}

/// `LEFT` or `LEFT-DONE`: attempts left and done.
fn is_counter(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    match text.split_once('-') {
        Some((left, done)) => number(left) && number(done),
        None => number(text),
    }
}

/// Shell patterns with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // The place of the last star, and how much of the name it has taken.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || Some(&c) == name.get(n) => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|&c| c == b'*'))
}

const ENTRIES_MAX: usize = 256;
const NAMES_MAX: usize = 4096;
const ENTRY_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::{EntryFile, default_entry, matches, read_folder};
    use crate::boot::grub::{Place, memory::Memory};

    fn entries(files: &[(&str, &str)]) -> Vec<EntryFile> {
        let mut disk = Memory::default().device("hd0", "", "");
        for (name, text) in files {
            disk = disk.file(&format!("(hd0)/loader/entries/{name}"), text);
        }
        let folder = Place { device: "hd0".to_owned(), path: "/loader/entries".to_owned() };
        read_folder(&disk, &folder).unwrap()
    }

    fn chosen(files: &[(&str, &str)], config: Option<&str>) -> String {
        default_entry(&entries(files), config).map_or("none".to_owned(), |entry| entry.id)
    }

    #[test]
    fn an_entry_is_read_line_by_line() {
        let text = "# comment\ntitle   Debian 12\nversion\t6.1.0-18\nlinux /vmlinuz\ninitrd /ucode.img\n\
                    initrd /initrd.img\noptions ro\n  options quiet  \n\nnonsense\n";
        let entry = entries(&[("debian+3-1.conf", text)]).remove(0);
        assert_eq!(entry.id, "debian");
        assert_eq!(entry.title(), "Debian 12");
        assert_eq!(entry.all("initrd").collect::<Vec<_>>(), ["/ucode.img", "/initrd.img"]);
        assert_eq!(entry.all("options").collect::<Vec<_>>(), ["ro", "quiet"]);
        assert_eq!(entry.get("version"), Some("6.1.0-18"));
    }

    #[test]
    fn what_is_for_others_is_left_out() {
        let files = [
            ("arm.conf", "linux /k\narchitecture aa64\n"),
            ("uki.conf", "efi /EFI/Linux/a.efi\n"),
            ("notes.txt", "linux /k\n"),
            ("x64.conf", "linux /k\narchitecture X64\n"),
        ];
        assert_eq!(entries(&files).iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["x64"]);
        assert_eq!(chosen(&[], None), "none");
    }

    #[test]
    fn the_newest_good_entry_of_the_first_system_is_chosen() {
        let keyed = |key: &str, version: &str| format!("linux /k\nsort-key {key}\nversion {version}\n");
        let (old, new, other) =
            (keyed("debian", "6.1.0-9"), keyed("debian", "6.1.0-10"), keyed("ubuntu", "6.8"));
        let plain = "linux /k\n".to_owned();
        let files = [("a.conf", &*old), ("b.conf", &*new), ("c.conf", &*other), ("z-99.conf", &*plain)];
        assert_eq!(chosen(&files, None), "b");
        assert_eq!(chosen(&[("b+0-3.conf", &*new), ("a+1.conf", &*old)], None), "a");
        assert_eq!(chosen(&[("k-6.9.conf", &*plain), ("k-6.10.conf", &*plain)], None), "k-6.10");
    }

    #[test]
    fn the_configuration_names_the_default_by_a_pattern() {
        let files = [("k-1.conf", "linux /k\n"), ("k-2.conf", "linux /k\n"), ("rescue.conf", "linux /k\n")];
        assert_eq!(chosen(&files, Some("timeout 3\ndefault k-1.conf\n")), "k-1");
        assert_eq!(chosen(&files, Some("default k-*\n")), "k-2");
        assert_eq!(chosen(&files, Some("default nothing-*\n")), "rescue");
    }

    #[test]
    fn patterns_match_as_a_shell_does() {
        for (pattern, name) in [("*", ""), ("a*c", "abbc"), ("?b*", "ab"), ("*a*a*", "banana"), ("", "")] {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "b"), ("a*c", "abb"), ("?", ""), ("*a", "ab"), ("", "a")] {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }
}
