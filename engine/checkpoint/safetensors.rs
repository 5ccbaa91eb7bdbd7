//! Headers of safetensors files, read and checked.
//!
//! The `safetensors` crate parses; the checks around it exist to say precisely what is wrong with
//! a file it refuses, because by far the most common cause is an incomplete download.

use std::ops::Range;
use std::path::Path;

use ::safetensors::tensor::{Metadata, SafeTensorError};
use ::safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};

/// Longest header the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

const DOWNLOAD_AGAIN: &str = "the download is incomplete or damaged, resume it or download the file again";

/// One tensor as the header of its file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name in the file.
    pub name: String,
    /// The element type; not necessarily one the engine reads.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Where the elements are, in bytes from the start of the file.
    pub range: Range<usize>,
}

/// Reads the header of a safetensors file. `bytes` is the whole file, `path` only names it.
///
/// In the result every range lies within the file, ranges do not overlap, and the length of each
/// is what type and shape ask for.
///
/// # Errors
/// [`Error::Checkpoint`] saying what is wrong, and how many bytes are missing if the file is short.
pub fn read_header(bytes: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let bad = |problem: String, help: &str| Error::Checkpoint {
        path: path.to_path_buf(),
        problem,
        help: help.to_string(),
    };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(bad(
            "this is a Git LFS pointer, not the weights".into(),
            "run `git lfs pull` in the repository, or download it with the hub's client",
        ));
    }
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(bad(format!("the file has {} bytes, not even a header", bytes.len()), DOWNLOAD_AGAIN));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(bad(
            format!("the header claims {length} bytes, more than the {MAX_HEADER_BYTES} the format allows"),
            "this is not a safetensors file, or it is damaged; download it again",
        ));
    }
    let data_start = 8 + length as usize;
    let Some(header) = bytes.get(8..data_start) else {
        return Err(bad(
            format!("the header needs {length} bytes but only {} follow", bytes.len() - 8),
            DOWNLOAD_AGAIN,
        ));
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| bad(describe(&e, header, bytes.len() - data_start), DOWNLOAD_AGAIN))?;
    Ok(metadata
        .offset_keys()
        .into_iter()
        .filter_map(|name| {
            let info = metadata.info(&name)?;
            let (start, end) = info.data_offsets;
            let range = data_start + start..data_start + end;
            Some(Entry { dtype: info.dtype, shape: info.shape.clone(), range, name })
        })
        .collect())
}

/// What is wrong with a header that the crate refused; `data_bytes` follow it in the file.
fn describe(error: &SafeTensorError, header: &[u8], data_bytes: usize) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            let expected = serde_json::from_slice::<Metadata>(header).map_or(0, |m| m.data_len());
            if expected > data_bytes {
                format!(
                    "the tensors need {expected} bytes but the file holds {data_bytes}: {} bytes are missing",
                    expected - data_bytes
                )
            } else {
                format!("{} bytes follow the last tensor", data_bytes - expected)
            }
        }
        SafeTensorError::InvalidHeader(e) => format!("the header is not UTF-8 text: {e}"),
        SafeTensorError::InvalidHeaderDeserialization(e) => {
            format!("the header is not the JSON of a safetensors file: {e}")
        }
        SafeTensorError::InvalidOffset(name) => {
            layout_problem(header).unwrap_or_else(|| format!("tensor {name} has impossible offsets"))
        }
        other => layout_problem(header).unwrap_or_else(|| format!("the header is inconsistent: {other}")),
    }
}

/// The first tensor, in file order, whose extent is impossible: a gap or overlap before it, or a
/// length that does not follow from its type and shape.
fn layout_problem(header: &[u8]) -> Option<String> {
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).ok()?;
    let offset = |v: &Value, i: usize| v.get("data_offsets")?.get(i)?.as_u64();
    let mut tensors: Vec<(u64, u64, &str, &Value)> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, v)| Some((offset(v, 0)?, offset(v, 1)?, name.as_str(), v)))
        .collect::<Option<_>>()?;
    tensors.sort_unstable_by_key(|t| (t.0, t.1));
    let (mut previous_end, mut previous) = (0, "the header");
    for (start, end, name, value) in tensors {
        if start > end {
            return Some(format!("tensor {name} ends at byte {end}, before its start {start}"));
        }
        if start < previous_end {
            return Some(format!(
                "tensor {name} starts at byte {start} and overlaps {previous}, which ends at {previous_end}"
            ));
        }
        if start > previous_end {
            return Some(format!("{} unused bytes lie between {previous} and {name}", start - previous_end));
        }
        let dtype: Dtype = serde_json::from_value(value.get("dtype")?.clone()).ok()?;
        let shape: Vec<usize> = serde_json::from_value(value.get("shape")?.clone()).ok()?;
        let bits = shape.iter().try_fold(dtype.bitsize(), |product, &dim| product.checked_mul(dim));
        if bits.map(|b| (b / 8) as u64) != Some(end - start) {
            return Some(format!(
                "tensor {name} of type {dtype} and shape {shape:?} is given {} bytes",
                end - start
            ));
        }
        (previous_end, previous) = (end, name);
    }
    None
}
