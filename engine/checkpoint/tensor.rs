//! One tensor of a checkpoint, and reading it as numbers.

use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;
use half::{bf16, f16};
use qwenvl_graph::DType;

use crate::error::{Error, Result};

/// A tensor in its file. Nothing is copied; `bytes` may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// The name in the published spelling, see [`names`](super::names).
    pub name: &'a str,
    /// Type of the elements.
    pub dtype: DType,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// The elements, row-major, little-endian.
    pub bytes: &'a [u8],
    /// The file that holds it.
    pub file: &'a Path,
    /// Which file of the checkpoint that is, and where `bytes` starts in it.
    pub(super) position: (usize, usize),
}

/// Where a tensor's elements are: what to keep instead of a borrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHandle {
    pub(super) file: usize,
    pub(super) range: Range<usize>,
}

impl<'a> TensorRef<'a> {
    /// Where the elements are, for [`Checkpoint::bytes`](super::Checkpoint::bytes).
    pub fn handle(&self) -> TensorHandle {
        let (file, start) = self.position;
        TensorHandle { file, range: start..start + self.bytes.len() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An error about this tensor.
    pub(super) fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Tensor {
            path: self.file.to_path_buf(),
            tensor: self.name.to_string(),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// The engine's type for a stored one; `None` for types no Qwen2-VL checkpoint uses.
pub(super) fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::I32 => Some(DType::I32),
        _ => None,
    }
}

/// The elements of a float tensor as f32. Every F16 and BF16 value converts exactly. Meant for
/// small tensors such as norms and biases; matrices are converted by whoever packs them.
///
/// # Errors
/// [`Error::Tensor`] if the elements are integers.
pub fn to_f32_vec(tensor: &TensorRef) -> Result<Vec<f32>> {
    let halves = |convert: fn(u16) -> f32| {
        let (chunks, _) = tensor.bytes.as_chunks::<2>();
        chunks.iter().map(|c| convert(u16::from_le_bytes(*c))).collect()
    };
    match tensor.dtype {
        DType::F32 => Ok(tensor.bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect()),
        DType::F16 => Ok(halves(|bits| f16::from_bits(bits).to_f32())),
        DType::BF16 => Ok(halves(|bits| bf16::from_bits(bits).to_f32())),
        DType::I32 => Err(tensor.error("I32", "F32, F16 or BF16")),
    }
}

/// Refuses a float tensor that holds NaN or infinity. Integer tensors pass.
///
/// # Errors
/// [`Error::Tensor`] with the index of the first such element.
pub fn check_finite(tensor: &TensorRef) -> Result<()> {
    // A float is NaN or infinite if and only if its exponent bits are all ones.
    let first_half = |exponent: u16| {
        let bad = |c: &[u8; 2]| u16::from_le_bytes(*c) & exponent == exponent;
        first_in_chunks(tensor.bytes.as_chunks::<2>().0, bad)
    };
    let index = match tensor.dtype {
        DType::F16 => first_half(0x7c00),
        DType::BF16 => first_half(0x7f80),
        DType::F32 => {
            let bad = |c: &[u8; 4]| !f32::from_le_bytes(*c).is_finite();
            first_in_chunks(tensor.bytes.as_chunks::<4>().0, bad)
        }
        DType::I32 => None,
    };
    let Some(index) = index else { return Ok(()) };
    let (mut rest, mut coordinates) = (index, Vec::new());
    for &dim in tensor.shape.iter().rev() {
        coordinates.push(rest % dim);
        rest /= dim;
    }
    coordinates.reverse();
    Err(tensor.error(format!("NaN or infinity at index {coordinates:?}"), "finite numbers"))
}

/// Index of the first element that is `bad`. Tests blocks without branches so that the common
/// case, nothing found, runs at the speed of memory.
fn first_in_chunks<const N: usize>(elements: &[[u8; N]], bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let block = elements.chunks(BLOCK).position(|b| b.iter().fold(false, |any, e| any | bad(e)))?;
    let within = elements[block * BLOCK..].iter().position(bad)?;
    Some(block * BLOCK + within)
}
