//! One full memory file of a full one and differences, page by page the newest. What machines have mapped of it
//! they share, where what differences hold is each machine's own.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{
    bitmap::Bitmap,
    chain::check_chain,
    memory_file::{MemoryFileError, MemoryWriter, PAGE_BYTES, Tail, read_tail},
    state_file::Head,
};

/// There is no merged file.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// What is to be merged cannot be read, or does not belong together.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// The state speaks of more memory than a machine can have.
    #[error("the state is of a machine with impossibly much memory")]
    Size,
    /// The new file takes no more.
    #[error("writing the memory file")]
    Write(#[source] io::Error),
}

/// Merges the memory of the snapshot that `head` is of, the full file first, into a file whose content is lost. The
/// merged file bears the snapshot's own name: the state and working sets belong to it, and differences to it. How
/// many bytes of pages were written.
///
/// # Errors
/// See [`MergeError`]: what is in the file is then of no use.
pub fn merge(head: &Head, files: &[File], into: &File) -> Result<u64, MergeError> {
    let ram_bytes = head.ram_bytes().ok_or(MergeError::Size)?;
    let tails: Vec<Tail> = files
        .iter()
        .enumerate()
        .map(|(index, file)| read_tail(file, index, ram_bytes))
        .collect::<Result<_, _>>()?;
    check_chain(head.id, tails.iter())?;
    let ram_pages = ram_bytes / PAGE_BYTES;
    let mut all = Bitmap::new(ram_pages);
    tails.iter().for_each(|tail| all.add(&tail.pages));
    let mut writer = MemoryWriter::new(into, ram_bytes, None).map_err(MergeError::Write)?;
    let mut buffer = vec![0; usize::try_from(CHUNK_PAGES * PAGE_BYTES).unwrap_or(0)];
    let mut page = 0;
    while let Some(next) = all.next(page) {
        let first = next / CHUNK_PAGES * CHUNK_PAGES;
        let end = (first + CHUNK_PAGES).min(ram_pages);
        let len = usize::try_from((end - first) * PAGE_BYTES).unwrap_or(0);
        let chunk = buffer.get_mut(..len).unwrap_or_default();
        chunk.fill(0);
        for (index, (file, tail)) in files.iter().zip(&tails).enumerate() {
            lay_over(chunk, first, file, index, tail)?;
        }
        writer.put(first * PAGE_BYTES, chunk, |page| all.has(page)).map_err(MergeError::Write)?;
        page = end;
    }
    writer.finish(head.id).map_err(MergeError::Write)
}

/// Reads what a file has of the pages of a chunk over what is in it.
fn lay_over(
    chunk: &mut [u8],
    first: u64,
    file: &File,
    index: usize,
    tail: &Tail,
) -> Result<(), MemoryFileError> {
    let bytes = |pages: u64| usize::try_from(pages * PAGE_BYTES).unwrap_or(usize::MAX);
    let end = first + chunk.len() as u64 / PAGE_BYTES;
    let mut page = first;
    while let Some(start) = tail.pages.next(page).filter(|start| *start < end) {
        let count = (start..end).take_while(|page| tail.pages.has(*page)).count() as u64;
        let at = bytes(start - first);
        let piece = chunk.get_mut(at..at + bytes(count)).unwrap_or_default();
        file.read_exact_at(piece, start * PAGE_BYTES)
            .map_err(|source| MemoryFileError::Read { index, source })?;
        page = start + count;
    }
    Ok(())
}

/// Read and written at once.
const CHUNK_PAGES: u64 = 64;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs::File,
        os::unix::fs::{FileExt, MetadataExt},
    };

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{MergeError, merge};
    use crate::{Head, MemoryFileError, MemoryWriter, PAGE_BYTES, read_head, read_tail};

    const MIB: u64 = 1;
    const RAM: u64 = MIB << 20;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn head(number: u128, mib: u64) -> Head {
        read_head(format!(r#"{{"id":"{}","shape":{{"memory_mib":{mib}}}}}"#, id(number)).as_bytes()).unwrap()
    }

    /// A memory file with pages that are filled with a byte each.
    fn file(pages: &BTreeMap<u64, u8>, number: u128, parent: Option<u128>) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = MemoryWriter::new(&file, RAM, parent.map(id)).unwrap();
        for (page, byte) in pages {
            writer.put(page * PAGE_BYTES, &[*byte; 4096], |_| true).unwrap();
        }
        writer.finish(id(number)).unwrap();
        file
    }

    fn chain(all: &[BTreeMap<u64, u8>]) -> Vec<File> {
        let numbered = (1..).zip(all);
        numbered
            .map(|(number, pages)| file(pages, number, number.checked_sub(1).filter(|n| *n > 0)))
            .collect()
    }

    proptest! {
        // Each makes files of a MiB.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_page_is_the_newest(
            all in prop::collection::vec(prop::collection::btree_map(0..RAM / PAGE_BYTES, 0..3_u8, 0..60), 1..5),
        ) {
            let files = chain(&all);
            let (last, into) = (all.len() as u128, tempfile::tempfile().unwrap());
            into.write_all_at(&[0xff; 9999], 0).unwrap();
            let written = merge(&head(last, MIB), &files, &into).unwrap();
            let mut model = BTreeMap::new();
            all.into_iter().for_each(|pages| model.extend(pages));
            model.retain(|_, byte| *byte != 0);
            prop_assert_eq!(written, model.len() as u64 * PAGE_BYTES);
            let tail = read_tail(&into, 0, RAM).unwrap();
            prop_assert_eq!((tail.id, tail.parent), (id(last), None));
            for page in 0..RAM / PAGE_BYTES {
                let mut content = [0xee; 4096];
                into.read_exact_at(&mut content, page * PAGE_BYTES).unwrap();
                let expected = model.get(&page).copied().unwrap_or(0);
                prop_assert!(content.iter().all(|byte| *byte == expected), "page {}", page);
                prop_assert_eq!(tail.pages.has(page), expected != 0);
            }
        }
    }

    #[test]
    fn what_is_zero_is_a_hole() {
        let before = BTreeMap::from_iter((0..256).map(|page| (page, 1)));
        let after = BTreeMap::from_iter((1..256).map(|page| (page, 0)));
        let into = tempfile::tempfile().unwrap();
        assert_eq!(merge(&head(2, MIB), &chain(&[before, after]), &into).unwrap(), PAGE_BYTES);
        // The page, and the tail.
        assert!(into.metadata().unwrap().blocks() * 512 <= 64 * 1024);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let pages = BTreeMap::from([(1, 1)]);
        let (full, one, two) = (file(&pages, 1, None), file(&pages, 2, Some(1)), file(&pages, 3, Some(2)));
        let into = tempfile::tempfile().unwrap();
        let copy = |file: &File| file.try_clone().unwrap();
        let refused = |files: &[&File], number| {
            let files: Vec<File> = files.iter().map(|file| copy(file)).collect();
            merge(&head(number, MIB), &files, &into).unwrap_err().to_string()
        };
        assert!(refused(&[&full, &two], 3).contains("another snapshot's"));
        assert!(refused(&[&one, &two], 3).contains("first memory file is a difference"));
        assert!(refused(&[&full, &full], 1).contains("second memory file is a full one"));
        assert!(refused(&[&full, &one], 3).contains("than the state"));
        assert!(refused(&[], 3).contains("than the state"));
        let size = merge(&head(1, 2), &[copy(&full)], &into);
        assert!(matches!(size, Err(MergeError::Memory(MemoryFileError::Magic { index: 0 }))));
        assert!(matches!(merge(&head(1, u64::MAX), &[copy(&full)], &into), Err(MergeError::Size)));
        let unwritable = File::open("/dev/null").unwrap();
        assert!(matches!(merge(&head(1, MIB), &[full], &unwritable), Err(MergeError::Write(_))));
    }
}
