//! Repacked weights kept on disk, so that a second start only maps them.
//!
//! A cache file is one checkpoint's: `MAGIC`, the length of a JSON header, a checksum of the header, the
//! header, and planes of numbers that start at multiples of [`ALIGN`]. It is used only if the header
//! names this layout and the very weight files of the checkpoint (names, lengths, times of change,
//! checksums of their headers), and if every plane has its checksum. Anything else is rebuilt.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::checkpoint::{Checkpoint, Mapping};
use crate::error::{Error, Result};
use crate::kernels::cpu::grouped::{Codes, GroupedMatrix, Planes};
use crate::kernels::cpu::order::InputOrder;
use crate::kernels::cpu::{Plane, Pool, SharedBytes};

/// First bytes of a cache file, and the version of everything after them: a change of a kernel's layout
/// changes it.
const MAGIC: &[u8; 8] = b"QVLREP01";
/// Planes start at multiples of this many bytes from the start of the file.
const ALIGN: u64 = 4096;
/// Longest header that is read.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Bytes of which one thread checks the sum at a time.
const CHUNK: usize = 8 << 20;

/// What became of a cache that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// The weights are mapped from it.
    Mapped(PathBuf),
    /// It was written, for the reason given.
    Written(PathBuf, String),
    /// The checkpoint has no weights that are repacked.
    NotNeeded,
    /// It could not be written, for the reason given. The weights are in memory all the same.
    Failed(String),
}

/// What a cache file is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    files: Vec<FileIdentity>,
    quantization: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    name: String,
    bytes: u64,
    changed_ns: u128,
    header_sum: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    identity: Identity,
    matrices: Vec<Entry>,
}

/// A matrix, and where its planes are from the start of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    n: usize,
    k: usize,
    group: usize,
    /// Inputs of an order, its groups, codes, scales and zero points.
    planes: [Extent; 5],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Extent {
    start: u64,
    bytes: u64,
    /// Checksums of each [`CHUNK`].
    sums: Vec<u64>,
}

/// The cache of one checkpoint: its place, and its contents if they can be used.
pub(super) struct RepackCache {
    path: PathBuf,
    identity: Identity,
    found: Option<Found>,
    /// Why it cannot be used.
    reason: String,
}

struct Found {
    bytes: SharedBytes,
    data_start: usize,
    matrices: Vec<Entry>,
    /// The next matrix to be asked for: they are written in the order of the graph.
    next: usize,
}

impl RepackCache {
    /// Looks for the cache of a checkpoint in `dir` and checks every byte of it.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be created or a weight file cannot be looked at.
    pub(super) fn open(dir: &Path, checkpoint: &Checkpoint, pool: &mut Pool) -> Result<RepackCache> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io {
            action: "create",
            path: dir.to_path_buf(),
            source,
        })?;
        let place = checkpoint.path().canonicalize().unwrap_or_else(|_| checkpoint.path().to_path_buf());
        let place = xxh3_64(place.as_os_str().as_encoded_bytes());
        let path = dir.join(format!("{}-{place:016x}.repack", checkpoint.name()));
        let identity = identity(checkpoint)?;
        let (found, reason) = match read(&path, &identity, pool) {
            Ok(found) => (Some(found), String::new()),
            Err(reason) => (None, reason),
        };
        Ok(RepackCache { path, identity, found, reason })
    }

    /// The matrix of a layer, if the file has it; after one that it has not, it is not used at all.
    pub(super) fn matrix<C: Codes>(
        &mut self,
        name: &str,
        (n, k, group): (usize, usize, usize),
    ) -> Option<GroupedMatrix<C>> {
        let found = self.found.as_mut()?;
        let matrix = found.matrix(name, (n, k, group));
        match matrix {
            Some(_) => found.next += 1,
            None => {
                self.found = None;
                self.reason = format!("it does not hold {name} as {n}x{k} in groups of {group}");
            }
        }
        matrix
    }

    /// Whether the matrices come from the file.
    pub(super) fn is_mapped(&self) -> bool {
        self.found.is_some()
    }

    /// What to report if nothing was written.
    pub(super) fn mapped(self) -> CacheUse {
        CacheUse::Mapped(self.path)
    }

    /// Writes a new file in place of the old one, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub(super) fn write(self, matrices: &[(&str, StoredPlanes)]) -> Result<CacheUse> {
        let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written =
            self.write_to(&temporary, matrices).and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(source) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(Error::Io { action: "write the repack cache", path: self.path, source });
        }
        Ok(CacheUse::Written(self.path, self.reason))
    }

    fn write_to(&self, path: &Path, matrices: &[(&str, StoredPlanes)]) -> std::io::Result<()> {
        let mut offset = 0;
        let entries = matrices.iter().map(|(name, stored)| {
            let planes = stored.planes.map(|bytes| {
                let sums = bytes.chunks(CHUNK).map(xxh3_64).collect();
                let extent = Extent { start: offset, bytes: bytes.len() as u64, sums };
                offset = (offset + extent.bytes).next_multiple_of(ALIGN);
                extent
            });
            let (n, k, group) = stored.shape;
            Entry { name: (*name).to_string(), n, k, group, planes }
        });
        let header = Header { matrices: entries.collect(), identity: self.identity.clone() };
        let header = serde_json::to_vec(&header)?;
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(MAGIC)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&xxh3_64(&header).to_le_bytes())?;
        file.write_all(&header)?;
        for bytes in matrices.iter().flat_map(|(_, stored)| stored.planes) {
            let at = file.stream_position()?;
            let padding = (at.next_multiple_of(ALIGN) - at) as usize;
            file.write_all(&[0; ALIGN as usize][..padding])?;
            file.write_all(bytes)?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }
}

/// The planes of a matrix as bytes: inputs of an order, its groups, codes, scales and zero points.
pub(super) struct StoredPlanes<'a> {
    shape: (usize, usize, usize),
    planes: [&'a [u8]; 5],
}

impl<'a, C: Codes> From<&'a GroupedMatrix<C>> for StoredPlanes<'a> {
    fn from(matrix: &'a GroupedMatrix<C>) -> StoredPlanes<'a> {
        let Planes { codes, scales, zeros } = matrix.planes();
        let (inputs, groups): (&[u32], &[u32]) = match matrix.order() {
            Some(order) => (order.inputs(), order.groups()),
            None => (&[], &[]),
        };
        StoredPlanes {
            shape: (matrix.n(), matrix.k(), matrix.group()),
            planes: [
                bytemuck::cast_slice(inputs),
                bytemuck::cast_slice(groups),
                bytemuck::cast_slice(codes),
                bytemuck::cast_slice(scales),
                bytemuck::cast_slice(zeros),
            ],
        }
    }
}

impl Found {
    fn matrix<C: Codes>(&self, name: &str, shape: (usize, usize, usize)) -> Option<GroupedMatrix<C>> {
        let entry = self.matrices.get(self.next)?;
        let (n, k, group) = shape;
        if entry.name != name || (entry.n, entry.k, entry.group) != shape {
            return None;
        }
        let [inputs, groups, codes, scales, zeros] = &entry.planes;
        let range = |e: &Extent| -> Option<Range<usize>> {
            let start = self.data_start.checked_add(usize::try_from(e.start).ok()?)?;
            Some(start..start.checked_add(usize::try_from(e.bytes).ok()?)?)
        };
        let order = if inputs.bytes == 0 {
            None
        } else {
            let inputs = Plane::<u32>::shared(&self.bytes, range(inputs)?)?;
            let groups = Plane::<u32>::shared(&self.bytes, range(groups)?)?;
            Some(Arc::new(InputOrder::from_parts(inputs.to_vec(), groups.to_vec(), group, k)?))
        };
        let codes = Plane::shared(&self.bytes, range(codes)?)?;
        let scales = Plane::shared(&self.bytes, range(scales)?)?;
        let zeros = Plane::shared(&self.bytes, range(zeros)?)?;
        GroupedMatrix::from_planes((n, k, group), order, codes, scales, zeros)
    }
}

fn identity(checkpoint: &Checkpoint) -> Result<Identity> {
    let files = checkpoint.weight_files().map(|(path, bytes)| {
        let metadata = path.metadata().and_then(|m| Ok((m.len(), m.modified()?)));
        let (len, changed) =
            metadata.map_err(|source| Error::Io { action: "look at", path: path.to_path_buf(), source })?;
        // Opening checked that the header is there.
        let length = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n)) as usize;
        let mut sum = Xxh3::new();
        sum.update(&bytes[..bytes.len().min(length.saturating_add(8))]);
        Ok(FileIdentity {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: len,
            changed_ns: changed.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos()),
            header_sum: sum.digest(),
        })
    });
    let quantization = format!("{:?}", checkpoint.config.quantization);
    Ok(Identity { files: files.collect::<Result<_>>()?, quantization })
}

/// Maps and checks a file; the error says why it cannot be used.
fn read(path: &Path, identity: &Identity, pool: &mut Pool) -> Result<Found, String> {
    if !path.exists() {
        return Err("there was none".into());
    }
    let mapping = Mapping::open(path).map_err(|e| e.to_string())?;
    let bytes = mapping.bytes();
    let damaged = |what: &str| format!("it was damaged: {what}");
    let Some((fixed, rest)) = bytes.split_first_chunk::<24>() else { return Err(damaged("no header")) };
    if &fixed[..8] != MAGIC {
        return Err("it has another layout".into());
    }
    let number = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
    let length = number(8);
    let header = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER_BYTES);
    let Some(header) = header.and_then(|n| rest.get(..n)) else {
        return Err(damaged("its header is cut short"));
    };
    if xxh3_64(header) != number(16) {
        return Err(damaged("the checksum of its header"));
    }
    let parsed: Header = serde_json::from_slice(header).map_err(|e| damaged(&e.to_string()))?;
    if parsed.identity != *identity {
        return Err("it was made from other weight files".into());
    }
    let data_start = (24 + header.len()).next_multiple_of(ALIGN as usize);
    let data = bytes.get(data_start..).unwrap_or(&[]);
    let mut chunks: Vec<(&[u8], u64)> = Vec::new();
    for extent in parsed.matrices.iter().flat_map(|m| &m.planes) {
        let start = usize::try_from(extent.start).unwrap_or(usize::MAX);
        let length = usize::try_from(extent.bytes).unwrap_or(usize::MAX);
        let Some(plane) = data.get(start.min(data.len())..).and_then(|d| d.get(..length)) else {
            return Err(damaged("it is cut short"));
        };
        if plane.chunks(CHUNK).len() != extent.sums.len() {
            return Err(damaged("checksums are missing"));
        }
        chunks.extend(plane.chunks(CHUNK).zip(extent.sums.iter().copied()));
    }
    let right = AtomicBool::new(true);
    pool.run(chunks.len(), |i, _| {
        let (chunk, sum) = chunks[i];
        if xxh3_64(chunk) != sum {
            right.store(false, Ordering::Relaxed);
        }
    });
    if !right.into_inner() {
        return Err(damaged("the checksum of its weights"));
    }
    Ok(Found { bytes: Arc::new(mapping), data_start, matrices: parsed.matrices, next: 0 })
}
