//! Weight files mapped into memory. The only `unsafe` of the checkpoint code is here.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

use crate::error::{Error, Result};

/// A whole file, read-only.
///
/// Nothing is read until it is touched, and what was read can be given back with
/// [`release`](Mapping::release), so a checkpoint may be larger than the memory.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// Maps a file. An empty file gives an empty mapping.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |action| move |source| Error::Io { action, path: path.to_path_buf(), source };
        // Opening a named pipe would block, so the kind is looked at first.
        if !path.metadata().map_err(fail("read"))?.is_file() {
            return Err(fail("map")(std::io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(fail("read"))?;
        // SAFETY: The contract of a mapping is that nobody changes or truncates the file while it
        // lives, and no code can enforce that on the file systems in use. We rely on checkpoints
        // being written once, then only read: the hub's client renames finished downloads into
        // place and never writes to them again. Whoever rewrites the weights under a running
        // engine gets wrong numbers, or SIGBUS if the file became shorter. What makes this
        // tolerable rather than proper:
        // the bytes are only ever read as numbers for which every bit pattern is valid, headers are
        // checked once and never read again, and no decision about memory safety depends on the
        // contents.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(fail("map"))?;
        Ok(Mapping { map })
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Asks the system to read a range soon. Advice only: failures are of no consequence.
    pub fn prefetch(&self, range: Range<usize>) {
        if range.start < range.end && range.end <= self.map.len() {
            let _ = self.map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Takes the pages that lie wholly inside a range out of the resident set. Reading them again
    /// is allowed and brings them back from the page cache or the disk.
    pub fn release(&self, range: Range<usize>) {
        if range.end > self.map.len() {
            return;
        }
        let page = page_size();
        let start = range.start.next_multiple_of(page);
        let end = range.end / page * page;
        if start >= end {
            return;
        }
        // SAFETY: `start..end` lies within the mapping (checked above) and on page boundaries, so
        // no byte outside the range is affected. The advice is "unchecked" because on private or
        // anonymous memory it would change contents under live borrows. This mapping is shared,
        // read-only and backed by a file that does not change (see `open`): a page that is dropped
        // and touched again has the same contents, so borrows of it stay valid.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions; an unknown name gives -1.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|s| s.is_power_of_two()).unwrap_or(1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident pages of the mapping of `path`, in KiB, from `/proc/self/smaps`.
    #[cfg(target_os = "linux")]
    fn resident_kib(path: &Path) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|l| !l.ends_with(path.to_str().unwrap()));
        let rss = lines.find_map(|l| l.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn release_takes_whole_pages_out_of_the_resident_set_and_keeps_the_contents() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i >> 8) as u8).collect();
        std::fs::write(file.path(), &data).unwrap();
        let map = Mapping::open(file.path()).unwrap();
        assert_eq!(map.bytes(), data);
        let before = resident_kib(file.path());
        map.release(100..data.len() - 100);
        let after = resident_kib(file.path());
        assert!(before >= 4096 && after <= 64, "{before} KiB, then {after} KiB");
        assert_eq!(map.bytes(), data);
        map.prefetch(0..data.len());
    }

    #[test]
    fn advice_on_odd_ranges_does_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 100]).unwrap();
        let map = Mapping::open(file.path()).unwrap();
        for range in [0..0, 0..100, 50..60, 0..101, 90..usize::MAX, 200..300] {
            map.release(range.clone());
            map.prefetch(range);
        }
        assert_eq!(map.bytes(), [7; 100]);
    }

    #[test]
    fn a_directory_cannot_be_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let message = Mapping::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("not a regular file"), "{message}");
    }
}
