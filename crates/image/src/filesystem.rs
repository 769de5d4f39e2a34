//! Which file system a partition holds, by its magic number, and what it calls itself.

use std::io;

use serde::Serialize;
use uuid::Uuid;

use crate::bytes::{array, le32, text};
use crate::window::Window;

/// What a partition holds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Filesystem {
    /// Which file system, or what else.
    pub kind: FilesystemKind,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// Its UUID as Linux prints it (for FAT its serial number), if it has one.
    pub uuid: Option<String>,
}

/// File systems, and other things that fill partitions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesystemKind {
    /// ext2, ext3 or ext4: the ones whose files can be read.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// ISO 9660.
    Iso9660,
    /// SquashFS.
    Squashfs,
    /// F2FS.
    F2fs,
    /// EROFS.
    Erofs,
    /// NTFS.
    Ntfs,
    /// Swap space.
    Swap,
    /// LUKS: encrypted.
    Luks,
    /// An LVM physical volume.
    Lvm,
}

impl FilesystemKind {
    /// The name that `blkid` and `mount` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Iso9660 => "iso9660",
            Self::Squashfs => "squashfs",
            Self::F2fs => "f2fs",
            Self::Erofs => "erofs",
            Self::Ntfs => "ntfs",
            Self::Swap => "swap",
            Self::Luks => "LUKS",
            Self::Lvm => "LVM",
        }
    }
}

/// Looks for magic numbers; `None` for what is unknown or empty.
pub(crate) fn recognise(window: &Window) -> io::Result<Option<Filesystem>> {
    let len = window.size().min(HEAD_BYTES);
    let head = window.read_vec(0, usize::try_from(len).unwrap_or_default())?;
    Ok(recognise_head(&head))
}

fn recognise_head(head: &[u8]) -> Option<Filesystem> {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|tail| tail.starts_with(magic));
    let made = |kind, label: String, uuid: Option<String>| {
        Some(Filesystem { kind, label: Some(label).filter(|label| !label.is_empty()), uuid })
    };
    let uuid_at = |at| array(head, at).map(|bytes| Uuid::from_bytes(bytes).to_string());
    let plain = |kind| made(kind, String::new(), None);
    if has(0, b"XFSB") {
        return made(FilesystemKind::Xfs, text(head, 108, 12), uuid_at(32));
    }
    if has(0, b"LUKS\xba\xbe") {
        return made(FilesystemKind::Luks, String::new(), Some(text(head, 168, 40)));
    }
    if has(512, b"LABELONE") {
        return plain(FilesystemKind::Lvm);
    }
    if has(0x438, b"\x53\xef") {
        return made(FilesystemKind::Ext4, text(head, 0x478, 16), uuid_at(0x468));
    }
    if has(0x10040, b"_BHRfS_M") {
        return made(FilesystemKind::Btrfs, text(head, 0x1012b, 256), uuid_at(0x10020));
    }
    if has(4086, b"SWAPSPACE2") {
        return made(FilesystemKind::Swap, text(head, 1052, 16), uuid_at(1036));
    }
    if has(0x8001, b"CD001") {
        return made(FilesystemKind::Iso9660, text(head, 0x8028, 32).trim_end().to_owned(), None);
    }
    let magics: [(usize, &[u8], FilesystemKind); 4] = [
        (0, b"hsqs", FilesystemKind::Squashfs),
        (1024, b"\x10\x20\xf5\xf2", FilesystemKind::F2fs),
        (1024, b"\xe2\xe1\xf5\xe0", FilesystemKind::Erofs),
        (3, b"NTFS    ", FilesystemKind::Ntfs),
    ];
    if let Some((.., kind)) = magics.into_iter().find(|(at, magic, _)| has(*at, magic)) {
        return plain(kind);
    }
    // FAT has no magic number of its own: the signature of a boot sector and a text that is only a hint.
    if has(510, b"\x55\xaa") && (has(0x52, b"FAT32") || has(0x36, b"FAT1")) {
        let at = if has(0x52, b"FAT32") { 0x43 } else { 0x27 };
        let serial = le32(head, at).map(|id| format!("{:04X}-{:04X}", id >> 16, id & 0xffff));
        let label = text(head, at + 4, 11).trim_end().to_owned();
        return made(FilesystemKind::Vfat, if label == "NO NAME" { String::new() } else { label }, serial);
    }
    None
}

/// Up to and with btrfs's superblock.
const HEAD_BYTES: u64 = 0x10000 + 4096;

#[cfg(test)]
mod tests {
    use super::{Filesystem, FilesystemKind, recognise_head};

    #[track_caller]
    fn check(pieces: &[(usize, &[u8])], kind: FilesystemKind, label: Option<&str>, uuid: Option<&str>) {
        let mut head = vec![0; 0x11000];
        for (at, bytes) in pieces {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let (label, uuid) = (label.map(str::to_owned), uuid.map(str::to_owned));
        assert_eq!(recognise_head(&head), Some(Filesystem { kind, label, uuid }));
    }

    #[test]
    fn file_systems_are_known_by_their_magic_numbers() {
        let id: &[u8] = &[0x11; 16];
        let uuid = Some("11111111-1111-1111-1111-111111111111");
        check(
            &[(0x438, b"\x53\xef"), (0x468, id), (0x478, b"root")],
            FilesystemKind::Ext4,
            Some("root"),
            uuid,
        );
        check(&[(0, b"XFSB"), (32, id), (108, b"data")], FilesystemKind::Xfs, Some("data"), uuid);
        check(&[(0x10040, b"_BHRfS_M"), (0x10020, id)], FilesystemKind::Btrfs, None, uuid);
        check(&[(4086, b"SWAPSPACE2"), (1036, id)], FilesystemKind::Swap, None, uuid);
        let fat: [(usize, &[u8]); 4] =
            [(510, b"\x55\xaa"), (0x52, b"FAT32   "), (0x43, b"\xcd\xab\x34\x12"), (0x47, b"EFI        ")];
        check(&fat, FilesystemKind::Vfat, Some("EFI"), Some("1234-ABCD"));
        check(&[(0, b"LUKS\xba\xbe"), (168, b"some-uuid")], FilesystemKind::Luks, None, Some("some-uuid"));
        check(&[(512, b"LABELONE")], FilesystemKind::Lvm, None, None);
        check(&[(0x8001, b"CD001"), (0x8028, b"cidata    ")], FilesystemKind::Iso9660, Some("cidata"), None);
        check(&[(0, b"hsqs")], FilesystemKind::Squashfs, None, None);
        assert_eq!(recognise_head(&[0; 0x11000]), None);
        assert_eq!(recognise_head(b"XF"), None);
    }
}
