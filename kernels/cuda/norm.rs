//! norm, embed: launchers of RMSNorm, LayerNorm, the embedding and patchify.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::CudaStream;
use qwenvl_graph::DType;

use super::{Address, Half, Kernels, Result, abi, check, name};

/// Most columns of RMSNorm.
pub const MAX_RMS_COLS: usize = 8192;
/// Most columns of LayerNorm.
pub const MAX_LAYER_COLS: usize = 1280;

/// Which norm.
#[derive(Clone, Copy, Debug)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · weight`
    Rms,
    /// `(x − mean) / sqrt(var + eps) · weight + bias`, with the address of the bias `[cols]` f32.
    Layer(Address),
}

/// A norm over rows of f32; the result has the activations' type.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Type of `out`.
    pub half: Half,
    /// `[·, cols]` f32.
    pub x: Address,
    /// `[rows]` u32: rows of `x` to take; all in order if none.
    pub row_index: Option<Address>,
    /// `[cols]` f32.
    pub weight: Address,
    /// `[rows, cols]`.
    pub out: Address,
    /// Rows of `out`.
    pub rows: usize,
    /// Columns; a multiple of 4.
    pub cols: usize,
    /// Added under the root.
    pub eps: f64,
}

/// Rows of the embedding table, and visual rows where they are named.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// `[vocab, cols]`.
    pub table: Address,
    /// How it is stored.
    pub stored: Table,
    /// Its rows.
    pub vocab: usize,
    /// `[rows]` u32.
    pub tokens: Address,
    /// `[·, cols]` of the activations' type.
    pub visual: Address,
    /// `[rows]` u32: row of `visual`, or `u32::MAX` for the token's own.
    pub visual_index: Address,
    /// Type of `visual`.
    pub half: Half,
    /// `[rows, cols]` f32.
    pub out: Address,
    /// Rows.
    pub rows: usize,
    /// Columns; a multiple of 4.
    pub cols: usize,
}

/// How an embedding table is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Row by row, in this type.
    Rows(DType),
    /// As the dense records of a head that is tied to it, with rows in order, in this type.
    Records(Half),
}

/// One temporal slice of a picture on the device.
pub use super::abi::QwenvlFrames as Frames;

/// 8-bit frames to rows of patches.
#[derive(Clone, Copy, Debug)]
pub struct Patchify {
    /// `[n_slices]` of [`Frames`].
    pub slices: Address,
    /// How many.
    pub n_slices: usize,
    /// `[3, 256]` f32: the normalised value of each byte.
    pub table: Address,
    /// Type of `out`.
    pub half: Half,
    /// `[rows, 3 · 2 · patch²]`.
    pub out: Address,
    /// First patch of the call to write.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
    /// Pixels along a patch: 14.
    pub patch: usize,
    /// Patches along a block: 2.
    pub merge: usize,
}

impl Kernels {
    /// Launches a norm.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device as [`Norm`] says; row indices are in range.
    pub unsafe fn norm(&self, stream: &CudaStream, n: &Norm) -> Result<()> {
        // LayerNorm has a warp for each row, RMSNorm a block.
        let (name, bias, most, rows_per_block) = match n.kind {
            NormKind::Rms => ("rms_norm", ptr::null(), MAX_RMS_COLS, 1),
            NormKind::Layer(bias) => ("layer_norm", bias as *const f32, MAX_LAYER_COLS, 8),
        };
        check(name, n.rows > 0 && n.cols % 4 == 0 && (1..=most).contains(&n.cols), || {
            format!("{} rows of {} columns, expected a multiple of 4 up to {most}", n.rows, n.cols)
        })?;
        let p = abi::QwenvlNorm {
            x: n.x as *const f32,
            weight: n.weight as *const f32,
            bias,
            row_index: n.row_index.map_or(ptr::null(), |r| r as *const u32),
            out: n.out as *mut c_void,
            rows: n.rows as u32,
            cols: n.cols as u32,
            eps: n.eps as f32,
        };
        let name = name!("{name}_{}", n.half.name());
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, (n.rows.div_ceil(rows_per_block) as u32, 1, 1), 256, &p) }
    }

    /// Launches the embedding.
    ///
    /// # Errors
    /// As [`Kernels::norm`].
    ///
    /// # Safety
    /// Addresses name memory of this device as [`Embed`] says; visual rows are in range.
    pub unsafe fn embed(&self, stream: &CudaStream, e: &Embed) -> Result<()> {
        check("embed", e.rows > 0 && e.cols % 4 == 0, || format!("{} rows of {} columns", e.rows, e.cols))?;
        let p = abi::QwenvlEmbed {
            table: e.table as *const c_void,
            tokens: e.tokens as *const u32,
            visual: e.visual as *const c_void,
            visual_index: e.visual_index as *const u32,
            out: e.out as *mut f32,
            rows: e.rows as u32,
            cols: e.cols as u32,
            vocab: e.vocab as u32,
            table_kind: match e.stored {
                Table::Records(Half::BF16) => abi::QWENVL_RECORDS_BF16,
                Table::Records(Half::F16) => abi::QWENVL_RECORDS_F16,
                Table::Rows(DType::BF16) => abi::QWENVL_BF16,
                Table::Rows(DType::F16) => abi::QWENVL_F16,
                Table::Rows(DType::F32) => abi::QWENVL_F32,
                Table::Rows(DType::I32) => return check("embed", false, || "a table of i32".into()),
            },
        };
        let name = name!("embed_{}", e.half.name());
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, (e.rows as u32, 1, 1), 256, &p) }
    }

    /// Launches patchify.
    ///
    /// # Errors
    /// As [`Kernels::norm`].
    ///
    /// # Safety
    /// Addresses name memory of this device as [`Patchify`] and [`Frames`] say.
    pub unsafe fn patchify(&self, stream: &CudaStream, c: &Patchify) -> Result<()> {
        let (patch, merge) = (abi::QWENVL_PATCH as usize, abi::QWENVL_MERGE as usize);
        check("patchify", c.patch == patch && c.merge == merge, || {
            format!("patches of {} pixels merged by {}, expected {patch} and {merge}", c.patch, c.merge)
        })?;
        let block = merge * merge;
        check(
            "patchify",
            c.rows > 0 && c.n_slices > 0 && c.rows % block == 0 && c.first_row % block == 0,
            || {
                format!(
                    "{} rows from {} in {} slices, expected multiples of {block}",
                    c.rows, c.first_row, c.n_slices
                )
            },
        )?;
        let p = abi::QwenvlPatchify {
            slices: c.slices as *const Frames,
            table: c.table as *const f32,
            out: c.out as *mut c_void,
            n_slices: c.n_slices as u32,
            first_row: c.first_row as u32,
            rows: c.rows as u32,
        };
        let name = name!("patchify_{}", c.half.name());
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, ((c.rows / block) as u32, 1, 1), 210, &p) }
    }
}
