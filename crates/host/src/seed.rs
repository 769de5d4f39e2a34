//! A seed: the small read-only disk from which cloud-init in a stock image learns who may log in, what to
//! run and what the machine is called. It is cloud-init's NoCloud data source: a FAT file system with the
//! label `cidata` and the files `meta-data` and `user-data`. It exists in memory only.
//!
//! Where no instance id is given, it is a digest of the seed. cloud-init does its per-instance work once for each id, so the
//! same seed on a disk that was written to is the same machine started again, and another seed is a new one.

use std::{
    fs::File,
    io::{self, Cursor, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ec2vmm_model::ids::InstanceId;
use ec2vmm_vmm_api::{
    FailureKind,
    config::{Format, RateLimit},
};
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Explained,
    disks::{Disk, OpenLayer},
    files,
};

/// What a guest is told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seed {
    /// Who may log in as the image's default user.
    pub keys: Vec<PublicKey>,
    /// What the machine is called, if not what its image says.
    pub hostname: Option<Hostname>,
    /// The instance's id, if it has one of its own.
    pub instance_id: Option<InstanceId>,
    /// For cloud-init, as it is: a script, cloud-config, ... At most [`USER_DATA_BYTES_MAX`].
    pub user_data: Option<Vec<u8>>,
}

/// What makes no sense in a seed, or why it cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is of no use.
    #[error(transparent)]
    File(#[from] files::Error),
    /// More user data than a machine can have.
    #[error("user data {} is larger than {USER_DATA_BYTES_MAX} bytes", path.display())]
    UserDataTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A private key where a public one belongs.
    #[error("{} holds a private key", path.display())]
    PrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// A line is no public key.
    #[error("{}, line {line}: {reason}", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not one key in a file.
    #[error("{} holds no public key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Not a host name.
    #[error("`{name}` is not a host name")]
    Hostname {
        /// As given.
        name: String,
    },
    /// The host's system failed.
    #[error("cannot make the seed disk")]
    Make(#[from] io::Error),
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::File(error) => error.kind(),
            Self::UserDataTooLarge { .. }
            | Self::PrivateKey { .. }
            | Self::NotAKey { .. }
            | Self::NoKey { .. } => FailureKind::BadInput,
            Self::Hostname { .. } => FailureKind::Usage,
            Self::Make(_) => FailureKind::Other,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File(error) => return error.hint(),
            Self::UserDataTooLarge { .. } => {
                "EC2 has the same limit: have the user data fetch what does not fit, or compress it with gzip".into()
            }
            Self::PrivateKey { path } => format!(
                "private keys stay with you: give the public one, most likely {}.pub, or get it with \
                 `ssh-keygen -y -f {}`",
                path.display(),
                path.display()
            ),
            Self::NotAKey { .. } | Self::NoKey { .. } => {
                "a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one".into()
            }
            Self::Hostname { .. } => {
                "use letters, digits and hyphens, 63 to a label, 64 in all (RFC 1123), such as `web-1`".into()
            }
            Self::Make(_) => return None,
        })
    }
}

impl Seed {
    /// There is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads user data for [`Seed::user_data`].
    ///
    /// # Errors
    /// [`Error::UserDataTooLarge`], [`Error::File`].
    pub fn read_user_data(path: &Path) -> Result<Vec<u8>, Error> {
        files::read(path, USER_DATA_BYTES_MAX).map_err(|error| match error {
            files::Error::TooLarge { path, .. } => Error::UserDataTooLarge { path },
            error => Error::File(error),
        })
    }

    /// Makes the disk: an unnamed, sealed file, open for reading.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub fn build(&self) -> Result<File, Error> {
        let user_data = self.user_data.as_deref().unwrap_or(NO_USER_DATA);
        let meta_data = match &self.instance_id {
            Some(id) => self.meta_data(id.as_str()),
            None => {
                let digested = [self.meta_data("").as_bytes(), b"\0", user_data].concat();
                let id = Uuid::new_v5(&INSTANCES, &digested);
                self.meta_data(&format!("i-{}", id.simple()))
            }
        };
        let disk = file_system(&[("meta-data", meta_data.as_bytes()), ("user-data", user_data)])?;
        Ok(unnamed_file(&disk)?)
    }

    /// The disk, for a machine.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub fn disk(&self) -> Result<Disk, Error> {
        let layers = vec![OpenLayer { file: self.build()?, format: Format::Raw }];
        Ok(Disk {
            layers,
            read_only: true,
            scratch: false,
            serial: SERIAL.to_owned(),
            // It is read once.
            queues: Some(1),
            rate_limit: RateLimit::default(),
        })
    }

    /// JSON, which is YAML.
    fn meta_data(&self, instance_id: &str) -> String {
        let mut meta_data = json!({ "instance-id": instance_id });
        if let Some(fields) = meta_data.as_object_mut() {
            if let Some(Hostname(name)) = &self.hostname {
                fields.insert("local-hostname".into(), json!(name));
            }
            if !self.keys.is_empty() {
                let keys: Vec<&str> = self.keys.iter().map(|key| key.0.as_str()).collect();
                fields.insert("public-keys".into(), json!(keys));
            }
        }
        format!("{meta_data:#}\n")
    }
}

/// A public key as OpenSSH writes it: type, base64, comment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicKey(String);

impl PublicKey {
    /// Reads the keys in a file: one a line; empty lines and those that start with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::PrivateKey`], [`Error::NotAKey`], [`Error::NoKey`], [`Error::File`].
    pub fn read(path: &Path) -> Result<Vec<Self>, Error> {
        let content = files::read(path, KEY_FILE_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&content);
        if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
            return Err(Error::PrivateKey { path: path.to_owned() });
        }
        let mut keys = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let not_a_key =
                |reason| Error::NotAKey { path: path.to_owned(), line: index.saturating_add(1), reason };
            keys.push(Self::parse(line).map_err(not_a_key)?);
        }
        match keys.is_empty() {
            true => Err(Error::NoKey { path: path.to_owned() }),
            false => Ok(keys),
        }
    }

    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self, &'static str> {
        if line.chars().any(char::is_control) {
            return Err("a public key is text");
        }
        let mut words = line.split_ascii_whitespace();
        let name =
            words.next().filter(|name| KEY_TYPES.contains(name)).ok_or("not a known type of public key")?;
        let blob = words.next().ok_or("the key itself is missing")?;
        let blob = BASE64_STANDARD.decode(blob).map_err(|_| "the key is not base64: cut off or mistyped")?;
        // RFC 4253, 6.6: the blob starts with its own type, as a string with a 32-bit length.
        let length = u32::try_from(name.len()).map_err(|_| "the type is too long")?;
        let says = [&length.to_be_bytes(), name.as_bytes()].concat();
        match blob.strip_prefix(says.as_slice()) {
            Some(rest) if !rest.is_empty() => Ok(Self(line.to_owned())),
            _ => Err("the key is not of the type that it says"),
        }
    }
}

/// A host name as RFC 1123 has it, no longer than Linux takes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hostname(String);

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let sound = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match name.len() <= HOSTNAME_BYTES_MAX && name.split('.').all(sound) {
            true => Ok(Self(name.to_owned())),
            false => Err(Error::Hostname { name: name.to_owned() }),
        }
    }
}

/// A FAT file system just large enough for these files.
fn file_system(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, content)| content.len().next_multiple_of(SECTOR_BYTES)).sum();
    let size = SIZE_MIN_BYTES.saturating_add(content).next_multiple_of(SIZE_MIN_BYTES);
    let mut disk = Cursor::new(vec![0; size]);
    // The host's clock stays out of it, so that the same seed is the same bytes.
    let options = fatfs::FormatVolumeOptions::new().volume_label(LABEL).volume_id(VOLUME_ID);
    fatfs::format_volume(&mut disk, options)?;
    let file_system = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new())?;
    for (name, content) in files {
        file_system.root_dir().create_file(name)?.write_all(content)?;
    }
    file_system.unmount()?;
    Ok(disk.into_inner())
}

/// A file in memory that nobody can change any more. Pages of zeroes take no memory.
fn unnamed_file(content: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let written: File = rustix::fs::memfd_create("ec2vmm-seed", flags)?.into();
    written.set_len(content.len() as u64)?;
    for (index, page) in content.chunks(PAGE_BYTES).enumerate() {
        if page.iter().any(|&byte| byte != 0) {
            written.write_all_at(page, index.saturating_mul(PAGE_BYTES) as u64)?;
        }
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&written, seals)?;
    File::open(format!("/proc/self/fd/{}", written.as_raw_fd()))
}

/// EC2's limit, before base64.
pub const USER_DATA_BYTES_MAX: u64 = 16 * 1024;

const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The kernel's `__NEW_UTS_LEN`.
const HOSTNAME_BYTES_MAX: usize = 64;
const NO_USER_DATA: &[u8] = b"#cloud-config\n{}\n";
const SERIAL: &str = "seed";
const LABEL: [u8; 11] = *b"cidata     ";
const VOLUME_ID: u32 = 0xec2;
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;
/// Room for the tables, and large enough for every FAT driver.
const SIZE_MIN_BYTES: usize = 1024 * 1024;
/// The name space of instance ids.
const INSTANCES: Uuid = Uuid::from_u128(0x6f1d_9a52_0c1e_4a87_9b0e_5d3c_71e4_a2d9);
/// What OpenSSH 9 and later accept by default.
const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek},
    };

    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{Hostname, PublicKey, Seed};
    use crate::Explained;

    #[test]
    fn cloud_init_finds_what_it_looks_for() {
        let seed = Seed {
            keys: vec![PublicKey::parse(KEY).unwrap()],
            hostname: Some("web-1".parse().unwrap()),
            instance_id: None,
            user_data: Some(b"#!/bin/sh\necho hello\n".to_vec()),
        };
        let mut disk = seed.build().unwrap();
        let file_system = fatfs::FileSystem::new(Copied::of(&mut disk), fatfs::FsOptions::new()).unwrap();
        assert_eq!(file_system.volume_label(), "cidata");
        assert_eq!(file_system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("cidata"));
        assert_eq!(read(&file_system, "user-data"), "#!/bin/sh\necho hello\n");
        expect![[r#"
            {
              "instance-id": "i-ID",
              "local-hostname": "web-1",
              "public-keys": [
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3E me@here"
              ]
            }
        "#]]
        .assert_eq(&without_id(&read(&file_system, "meta-data")));
    }

    #[test]
    fn an_instance_keeps_its_id_whatever_it_is_told() {
        let instance_id = Some("i-0123456789abcdef0".parse().unwrap());
        for user_data in [None, Some(b"#!/bin/sh".to_vec())] {
            let seed = Seed { instance_id: instance_id.clone(), user_data, ..Seed::default() };
            let mut disk = seed.build().unwrap();
            let file_system = fatfs::FileSystem::new(Copied::of(&mut disk), fatfs::FsOptions::new()).unwrap();
            let meta_data = read(&file_system, "meta-data");
            assert!(meta_data.contains("\"instance-id\": \"i-0123456789abcdef0\""), "{meta_data}");
        }
    }

    #[test]
    fn the_same_seed_is_the_same_machine() {
        let seed = Seed { hostname: Some("a".parse().unwrap()), ..Seed::default() };
        let other = Seed { hostname: Some("b".parse().unwrap()), ..Seed::default() };
        assert_eq!(bytes(&seed), bytes(&seed));
        let [one, two] = [&seed, &other].map(|seed| {
            let mut disk = seed.build().unwrap();
            let file_system = fatfs::FileSystem::new(Copied::of(&mut disk), fatfs::FsOptions::new()).unwrap();
            let meta_data: serde_json::Value =
                serde_json::from_str(&read(&file_system, "meta-data")).unwrap();
            meta_data["instance-id"].as_str().unwrap().to_owned()
        });
        assert_ne!(one, two);
    }

    #[test]
    fn nobody_can_change_it() {
        let disk = Seed::default().build().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&disk));
        let again = File::options().write(true).open(path).unwrap();
        assert!(std::os::unix::fs::FileExt::write_at(&again, b"x", 0).is_err());
        assert!(again.set_len(0).is_err());
    }

    #[test]
    fn keys_that_are_none() {
        check_key(&format!("# mine\n\n{KEY}\n{KEY}\n"), &expect!["2 keys"]);
        check_key(
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbg==\n-----END OPENSSH PRIVATE KEY-----\n",
            &expect![[r#"
                DIR/key.pub holds a private key
                private keys stay with you: give the public one, most likely DIR/key.pub.pub, or get it with `ssh-keygen -y -f DIR/key.pub`"#]],
        );
        check_key(
            "ssh-dss AAAA\n",
            &expect![[r#"
            DIR/key.pub, line 1: not a known type of public key
            a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            "ssh-ed25519\n",
            &expect![[r#"
            DIR/key.pub, line 1: the key itself is missing
            a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3 cut\n",
            &expect![[r#"
                DIR/key.pub, line 1: the key is not base64: cut off or mistyped
                a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3E\n",
            &expect![[r#"
                DIR/key.pub, line 1: the key is not of the type that it says
                a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            "# nothing\n",
            &expect![[r#"
            DIR/key.pub holds no public key
            a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            "\u{1b}[2J\n",
            &expect![[r#"
            DIR/key.pub, line 1: a public key is text
            a public key is a line like `ssh-ed25519 AAAA... you@host`; `ssh-keygen -t ed25519` makes one"#]],
        );
        check_key(
            &"x".repeat(100_000),
            &expect![[r#"
            DIR/key.pub is larger than 65536 bytes
        "#]],
        );
    }

    #[test]
    fn host_names() {
        for name in ["a", "web-1", "web-1.example.org", "1a", &"x".repeat(63)] {
            assert!(name.parse::<Hostname>().is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", ".a", "a.", "a_b", "a b", "ä", "a\nb", &"x".repeat(64)] {
            assert!(name.parse::<Hostname>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in any::<String>()) {
            let _ = PublicKey::parse(&line);
        }

        #[test]
        fn any_user_data_arrives(user_data in proptest::collection::vec(any::<u8>(), 0..=16 * 1024)) {
            let seed = Seed { user_data: Some(user_data.clone()), ..Seed::default() };
            let mut disk = seed.build().unwrap();
            prop_assert!(disk.metadata().unwrap().len().is_multiple_of(512));
            let file_system = fatfs::FileSystem::new(Copied::of(&mut disk), fatfs::FsOptions::new()).unwrap();
            let mut found = Vec::new();
            file_system.root_dir().open_file("user-data").unwrap().read_to_end(&mut found).unwrap();
            prop_assert_eq!(found, user_data);
        }
    }

    fn check_key(content: &str, expect: &Expect) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pub");
        std::fs::write(&path, content).unwrap();
        let seen = match PublicKey::read(&path) {
            Ok(keys) => format!("{} keys", keys.len()),
            Err(error) => format!("{error}\n{}", error.hint().unwrap_or_default()),
        };
        expect.assert_eq(&seen.replace(folder.path().to_str().unwrap(), "DIR"));
    }

    fn without_id(meta_data: &str) -> String {
        let id = meta_data.split("\"i-").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(id.len(), 32);
        meta_data.replace(id, "ID")
    }

    fn bytes(seed: &Seed) -> Vec<u8> {
        Copied::of(&mut seed.build().unwrap()).into_inner()
    }

    fn read(file_system: &fatfs::FileSystem<Copied>, name: &str) -> String {
        let mut content = String::new();
        file_system.root_dir().open_file(name).unwrap().read_to_string(&mut content).unwrap();
        content
    }

    /// A copy that can be written to, which `fatfs` asks for even where it only reads.
    type Copied = std::io::Cursor<Vec<u8>>;

    trait Of {
        fn of(file: &mut File) -> Self;
    }

    impl Of for Copied {
        fn of(file: &mut File) -> Self {
            let mut content = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut content).unwrap();
            Self::new(content)
        }
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3E me@here";
}
