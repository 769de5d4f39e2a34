//! Volumes: files named by their id, whose endings record how they hold the disk.
//!
//! Invariant: under its name a volume is whole. It is made under another name, brought to stable storage,
//! and only then called a volume; what was half made is removed at the next start.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ec2vmm_image::Format;
use ec2vmm_model::ids::{InstanceId, VolumeId};
use ec2vmm_vmm_api::config;
use rustix::fs::FlockOperation;

use super::{
    error::{explain, other, system},
    images::{self, Images},
};
use crate::{
    disks::{self, Disk, Wanted, Writes},
    host::{Error, VolumePlan},
};

/// The pool's folder of volumes.
#[derive(Clone, Debug)]
pub(super) struct Volumes {
    folder: PathBuf,
    images: Images,
    /// How long a volume may be in use that should not be.
    patience: Duration,
}

impl Volumes {
    /// Removes what was half made when the last daemon ended.
    pub(super) fn start(folder: PathBuf, images: Images) -> Result<Self, Error> {
        for name in names(&folder)?.iter().filter(|name| name.ends_with(NEW)) {
            remove(&folder.join(name))?;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        remove_old(&folder.join(ASIDE), now)?;
        Ok(Self { folder, images, patience: PATIENCE })
    }

    /// Makes a volume, if it is not there.
    pub(super) fn create(&self, plan: &VolumePlan) -> Result<(), Error> {
        if self.find(&plan.id)?.is_some() {
            return Ok(());
        }
        let size = u64::from(plan.size_gib) << 30;
        let (ending, backing) = match &plan.image {
            None => (RAW, None),
            Some(image) => {
                let beneath = self.images.open(image)?.size();
                if beneath > size {
                    return Err(Error::Image {
                        message: format!(
                            "a volume of {} GiB is smaller than the image {}, which has {beneath} bytes",
                            plan.size_gib,
                            image.file.display()
                        ),
                        hint: Some(format!("give it {} GiB or more", beneath.div_ceil(1 << 30))),
                    });
                }
                (QCOW2, Some((self.images.path(image)?, image.format)))
            }
        };
        let named = self.folder.join(format!("{}{ending}", plan.id));
        let new = self.folder.join(format!("{}{ending}{NEW}", plan.id));
        let failed = || system(format!("making volume {}", plan.id));
        let made = make(&new, size, backing.as_ref()).and_then(|()| fs::rename(&new, &named));
        made.and_then(|()| File::open(&self.folder)?.sync_all()).map_err(|error| {
            // What is left of it is removed at the next start, if not here.
            let _ = fs::remove_file(&new);
            failed()(error)
        })
    }

    /// Removes a volume, if it is there.
    pub(super) fn delete(&self, id: &VolumeId) -> Result<(), Error> {
        let Some((path, _)) = self.find(id)? else { return Ok(()) };
        self.wait_until_free(id, &path)?;
        remove(&path)
    }

    /// Takes a volume out of the pool, if it is there, and keeps its file for a while.
    pub(super) fn set_aside(&self, id: &VolumeId) -> Result<(), Error> {
        let Some((path, _)) = self.find(id)? else { return Ok(()) };
        self.wait_until_free(id, &path)?;
        let failed = || system(format!("setting volume {id} aside"));
        let aside = self.folder.join(ASIDE);
        fs::create_dir_all(&aside).map_err(failed())?;
        let named = path.file_name().unwrap_or_default();
        fs::rename(&path, aside.join(named)).map_err(failed())
    }

    /// Returns when no machine has the volume.
    fn wait_until_free(&self, id: &VolumeId, path: &Path) -> Result<(), Error> {
        // A machine that has it open would go on writing to a file that nobody sees. What lies beneath it
        // may be gone already.
        let failed = || system(format!("taking volume {id} away"));
        let file = File::open(path).map_err(failed())?;
        let free = disks::once_free(self.patience, || {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(())),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(failed()(error.into())),
            }
        });
        free?.ok_or_else(|| other(format!("volume {id} is in use by a machine")))
    }

    /// Opens a volume for a machine: locked for it alone.
    pub(super) fn open(&self, id: &VolumeId) -> Result<Disk, Error> {
        let found = self.find(id)?;
        let (path, format) = found.ok_or_else(|| other(format!("the file of volume {id} is gone")))?;
        let disk = self.open_file(id, &path, format)?;
        // The image may have been replaced since it was looked at.
        match disk.layers.len() {
            ..=LAYERS_MAX => Ok(disk),
            _ => Err(other(format!("the image beneath volume {id} is a layer over another file"))),
        }
    }

    /// An instance store: a disk that is gone with its machine.
    pub(super) fn instance_store(&self, instance: &InstanceId, gb: u64) -> Result<Disk, Error> {
        let size = gb.saturating_mul(1_000_000_000).next_multiple_of(SECTOR_BYTES);
        // As EC2's say, which begin so: 20 characters is what a disk can say.
        let serial = format!("AWS{}", instance.as_str().trim_start_matches("i-"));
        disks::fleeting(&self.folder, size, serial).map_err(|error| explain(&error))
    }

    /// Those that there are.
    pub(super) fn list(&self) -> Result<Vec<VolumeId>, Error> {
        let names = names(&self.folder)?;
        let id = |name: &String| name.strip_suffix(RAW).or(name.strip_suffix(QCOW2))?.parse().ok();
        Ok(names.iter().filter_map(id).collect())
    }

    fn find(&self, id: &VolumeId) -> Result<Option<(PathBuf, Format)>, Error> {
        for (ending, format) in [(QCOW2, Format::Qcow2), (RAW, Format::Raw)] {
            let path = self.folder.join(format!("{id}{ending}"));
            if path.try_exists().map_err(system(format!("looking for volume {id}")))? {
                return Ok(Some((path, format)));
            }
        }
        Ok(None)
    }

    fn open_file(&self, id: &VolumeId, path: &Path, format: Format) -> Result<Disk, Error> {
        let wanted = Wanted {
            path: path.to_owned(),
            // As recorded: what a guest has written to it never says so.
            format: Some(match format {
                Format::Raw => config::Format::Raw,
                Format::Qcow2 => config::Format::Qcow2,
            }),
            writes: Writes::Kept,
            // As on EC2, where the guest's NVMe disks say so too.
            serial: id.as_str().replace('-', ""),
            queues: None,
            rate_limit: config::RateLimit::default(),
        };
        let opened = disks::once_free(self.patience, || match disks::open(&wanted, &self.folder) {
            Ok(disk) => Ok(Some(disk)),
            Err(disks::Error::InUse { .. }) => Ok(None),
            Err(error) => Err(match explain(&error) {
                // Of a volume, which is ours, and not of an image that somebody brought.
                Error::Image { message, hint } => Error::Other { message, hint },
                error => error,
            }),
        });
        opened?.ok_or_else(|| Error::Other {
            message: format!("volume {id} or the image beneath it is in use"),
            hint: Some(format!("`lslocks` shows who has {}", path.display())),
        })
    }
}

fn make(
    path: &Path,
    size: u64,
    backing: Option<&(PathBuf, ec2vmm_model::images::DiskFormat)>,
) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    match backing {
        None => file.set_len(size)?,
        Some((image, format)) => {
            let name = image
                .to_str()
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the image's path is not text"))?;
            let format = match images::spell(*format) {
                config::Format::Raw => Format::Raw,
                config::Format::Qcow2 => Format::Qcow2,
            };
            ec2vmm_image::create_overlay_over(file.try_clone()?, size, name, format)?;
        }
    }
    file.sync_all()
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    entries.map_err(system(format!("reading the folder {}", folder.display())))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(system(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Removes what was set aside long ago, `now` being counted from 1970.
fn remove_old(aside: &Path, now: Duration) -> Result<(), Error> {
    if !aside.try_exists().map_err(system(format!("looking for {}", aside.display())))? {
        return Ok(());
    }
    for name in names(aside)? {
        let path = aside.join(name);
        let failed = || system(format!("looking at {}", path.display()));
        // Being moved changes a file's inode, whatever was written to it before.
        let moved_s = fs::symlink_metadata(&path).map_err(failed())?.ctime();
        if now.as_secs().saturating_sub(u64::try_from(moved_s).unwrap_or(0)) > ASIDE_S {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The folder of volumes of which there is no record.
const ASIDE: &str = "orphaned";
/// How long they are kept: a week.
const ASIDE_S: u64 = 7 * 24 * 60 * 60;
/// A volume's own file, and its image's.
const LAYERS_MAX: usize = 2;
const SECTOR_BYTES: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(3);
const RAW: &str = ".raw";
const QCOW2: &str = ".qcow2";
const NEW: &str = ".new";

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::MetadataExt,
        process::Command,
        time::{Duration, SystemTime},
    };

    use ec2vmm_model::{ids::InstanceId, images::DiskFormat};

    use super::{Images, Volumes};
    use crate::host::{Error, ImageFile, VolumePlan};

    struct Pool {
        folder: tempfile::TempDir,
        volumes: Volumes,
    }

    impl Pool {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["images", "volumes"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            let images = Images::new(folder.path().join("images"), folder.path().join("volumes"));
            let volumes = Volumes::start(folder.path().join("volumes"), images).unwrap();
            // Not a multiple of a cluster, smaller than the volume, and something in it.
            let mut content = vec![0; (3 << 20) + 512];
            content[..4].copy_from_slice(b"here");
            content[(3 << 20)..].fill(b'x');
            fs::write(folder.path().join("images/image.raw"), content).unwrap();
            Self { folder, volumes }
        }

        fn plan(number: u128, image: Option<&str>) -> VolumePlan {
            let image = image.map(|file| ImageFile { file: file.into(), format: DiskFormat::Raw });
            VolumePlan { id: ec2vmm_model::ids::VolumeId::from_random(number), size_gib: 8, image }
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
    fn a_root_volume_shows_its_image_and_is_larger() {
        let pool = Pool::new();
        let plan = Pool::plan(1, Some("image.raw"));
        pool.volumes.create(&plan).unwrap();
        pool.volumes.create(&plan).unwrap();
        assert_eq!(pool.volumes.list().unwrap(), std::slice::from_ref(&plan.id));
        let path = pool.folder.path().join(format!("volumes/{}.qcow2", plan.id));
        assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20);
        let open = || {
            let disk = pool.volumes.open(&plan.id).unwrap();
            assert_eq!(disk.serial, "vol00000000000000001");
            let layers = disk.layers.into_iter().map(|layer| ec2vmm_image::Layer {
                file: layer.file,
                format: match layer.format {
                    super::config::Format::Raw => ec2vmm_image::Format::Raw,
                    super::config::Format::Qcow2 => ec2vmm_image::Format::Qcow2,
                },
            });
            ec2vmm_image::Disk::open(layers.collect(), true).unwrap()
        };
        let disk = open();
        assert_eq!(disk.size(), 8 << 30);
        let mut start = [0; 4];
        disk.read_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"here");
        let mut end = [1; 1024];
        disk.read_at(&mut end, 3 << 20).unwrap();
        assert!(end[..512].iter().all(|&byte| byte == b'x') && end[512..].iter().all(|&byte| byte == 0));
        disk.write_at(b"last", (8 << 30) - 512).unwrap();
        disk.flush().unwrap();
        // In use, it stays; it is free when whoever has it lets go.
        let impatient = Volumes { patience: Duration::ZERO, ..pool.volumes.clone() };
        assert!(matches!(impatient.delete(&plan.id), Err(Error::Other { .. })));
        assert!(matches!(impatient.open(&plan.id), Err(Error::Other { .. })));
        let holder = std::thread::spawn(move || drop(disk));
        drop(pool.volumes.open(&plan.id).unwrap());
        holder.join().unwrap();
        match Command::new("qemu-img").arg("check").arg(&path).output() {
            Ok(seen) => assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr)),
            Err(error) => eprintln!("SKIPPED: qemu-img is not here: {error}"),
        }
        drop(open());
        fs::remove_file(pool.folder.path().join("images/image.raw")).unwrap();
        pool.volumes.open(&plan.id).unwrap_err();
        pool.volumes.delete(&plan.id).unwrap();
        pool.volumes.delete(&plan.id).unwrap();
        assert_eq!(pool.volumes.list().unwrap(), []);
        assert!(matches!(pool.volumes.open(&plan.id), Err(Error::Other { .. })));
    }

    #[test]
    fn what_has_no_record_is_kept_for_a_week() {
        let pool = Pool::new();
        let plan = Pool::plan(5, None);
        pool.volumes.create(&plan).unwrap();
        pool.volumes.set_aside(&plan.id).unwrap();
        pool.volumes.set_aside(&plan.id).unwrap();
        assert_eq!(pool.volumes.list().unwrap(), []);
        let folder = pool.folder.path().join("volumes");
        Volumes::start(folder.clone(), pool.volumes.images.clone()).unwrap();
        let aside = folder.join(super::ASIDE);
        assert_eq!(super::names(&aside).unwrap(), [format!("{}.raw", plan.id)]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        super::remove_old(&aside, now + Duration::from_secs(super::ASIDE_S + 60)).unwrap();
        assert_eq!(super::names(&aside).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_instance_store_has_no_name() {
        let pool = Pool::new();
        let disk = pool.volumes.instance_store(&InstanceId::from_random(9), 75).unwrap();
        assert_eq!(disk.serial, "AWS00000000000000009");
        assert!(disk.scratch && !disk.read_only);
        let file = disk.layers[0].file.metadata().unwrap();
        assert_eq!((file.len(), file.blocks(), file.nlink()), (75_000_000_000, 0, 0));
        assert_eq!(super::names(&pool.folder.path().join("volumes")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_empty_volume_takes_no_room() {
        let pool = Pool::new();
        let plan = Pool::plan(2, None);
        pool.volumes.create(&plan).unwrap();
        let file = pool.folder.path().join(format!("volumes/{}.raw", plan.id)).metadata().unwrap();
        assert_eq!((file.len(), file.blocks()), (8 << 30, 0));
        drop(pool.volumes.open(&plan.id).unwrap());
    }

    #[test]
    fn what_was_half_made_is_swept() {
        let pool = Pool::new();
        let plan = Pool::plan(3, Some("none.raw"));
        assert!(matches!(pool.volumes.create(&plan), Err(Error::Image { .. })));
        let folder = pool.folder.path().join("volumes");
        fs::write(folder.join(format!("{}.qcow2.new", plan.id)), "half").unwrap();
        fs::write(folder.join("notes.txt"), "not ours").unwrap();
        assert_eq!(pool.volumes.list().unwrap(), []);
        let again = Volumes::start(folder.clone(), pool.volumes.images.clone()).unwrap();
        assert_eq!(again.list().unwrap(), []);
        assert_eq!(super::names(&folder).unwrap(), ["notes.txt"]);
    }

    #[test]
    fn a_volume_is_not_smaller_than_its_image() {
        let pool = Pool::new();
        let large = pool.folder.path().join("images/large.raw");
        fs::File::create(&large).unwrap().set_len(9 << 30).unwrap();
        let error = pool.volumes.create(&Pool::plan(4, Some("large.raw"))).unwrap_err();
        let Error::Image { hint: Some(hint), .. } = error else { panic!("{error:?}") };
        assert_eq!(hint, "give it 9 GiB or more");
    }
}
