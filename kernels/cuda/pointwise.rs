//! pointwise: launchers of pointwise, rope and select_rows: steps of a plan that was not fused.

use std::ffi::c_void;

use cudarc::driver::CudaStream;
use qwenvl_graph::Activation;

use super::linear::{Kv, Rope};
use super::{Address, Half, Kernels, Result, abi, check, name};

/// What to do with `x`, `[rows, cols]` of the activations' type unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub enum PointwiseOp {
    /// `out = activation(x)`
    Activate(Activation),
    /// `out = silu(x) · up`
    SwiGlu {
        /// As `x`.
        up: Address,
    },
    /// `out = residual + x`; residual and out are f32 and may be the same.
    Add {
        /// f32.
        residual: Address,
    },
    /// Rotates the heads of the first columns.
    Rotate {
        /// Angles.
        rope: Rope,
        /// Columns to rotate; the rest is copied.
        n_rotated: usize,
    },
    /// Writes keys `x` and `values` to the slots (page · 64 + offset) of the rows. No `out`.
    WriteKv {
        /// As `x`.
        values: Address,
        /// The layer.
        kv: Kv,
        /// `[rows]` u32.
        slots: Address,
    },
    /// `out[:, i] = x[:, index[i]]`, or 0 for [`super::repack::NO_INPUT`].
    Columns {
        /// `[cols]` u32.
        index: Address,
        /// Columns of `x`.
        ldx: usize,
    },
    /// `out[i] = x[index[i]]`, both f32.
    Gather {
        /// `[rows]` u32.
        index: Address,
    },
}

/// A pointwise step.
#[derive(Clone, Copy, Debug)]
pub struct Pointwise {
    /// What to do.
    pub op: PointwiseOp,
    /// The activations' type.
    pub half: Half,
    /// See [`PointwiseOp`].
    pub x: Address,
    /// See [`PointwiseOp`].
    pub out: Address,
    /// Rows.
    pub rows: usize,
    /// Columns; a multiple of 8.
    pub cols: usize,
}

impl Kernels {
    /// Launches a pointwise step.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device as [`Pointwise`] says; indices are in range.
    pub unsafe fn pointwise(&self, stream: &CudaStream, c: &Pointwise) -> Result<()> {
        let (rows, cols) = (c.rows as u32, c.cols as u32);
        check("pointwise", c.rows > 0 && c.cols % 8 == 0, || {
            format!("{} rows of {} columns, expected a multiple of 8", c.rows, c.cols)
        })?;
        let blocks = |per_thread: u64| (c.rows as u64 * c.cols as u64).div_ceil(256 * per_thread) as u32;
        let p = |y: Address| abi::QwenvlPointwise {
            x: c.x as *const c_void,
            y: y as *const c_void,
            out: c.out as *mut c_void,
            rows,
            cols,
            ldx: cols,
        };
        let half = c.half.name();
        // SAFETY, of each launch: the caller's promise.
        match c.op {
            PointwiseOp::Activate(activation) => {
                let name = match activation {
                    Activation::QuickGelu => "quick_gelu",
                    Activation::Gelu => "gelu",
                };
                // SAFETY: see above.
                unsafe { self.launch(stream, &name!("{name}_{half}"), (blocks(8), 1, 1), 256, &p(0)) }
            }
            PointwiseOp::SwiGlu { up } => {
                // SAFETY: see above.
                unsafe { self.launch(stream, &name!("swiglu_{half}"), (blocks(8), 1, 1), 256, &p(up)) }
            }
            PointwiseOp::Add { residual } => {
                // SAFETY: see above.
                unsafe { self.launch(stream, &name!("add_{half}"), (blocks(4), 1, 1), 256, &p(residual)) }
            }
            PointwiseOp::Columns { index, ldx } => {
                let p = abi::QwenvlPointwise { ldx: ldx as u32, ..p(index) };
                // SAFETY: see above.
                unsafe { self.launch(stream, "select_columns", (rows, 1, 1), 256, &p) }
            }
            PointwiseOp::Gather { index } => {
                // SAFETY: see above.
                unsafe { self.launch(stream, "select_rows", (rows, 1, 1), 256, &p(index)) }
            }
            PointwiseOp::Rotate { rope, n_rotated } => {
                let head_dim = 2 * rope.pairs.half();
                let fits = c.cols % head_dim == 0 && n_rotated % head_dim == 0 && n_rotated <= c.cols;
                rope.check("rope")?;
                check("rope", fits && head_dim % 8 == 0, || {
                    format!("{n_rotated} of {} columns of heads of {head_dim}", c.cols)
                })?;
                let p = abi::QwenvlRotate {
                    x: c.x as *const c_void,
                    out: c.out as *mut c_void,
                    rows,
                    cols,
                    n_rotated: n_rotated as u32,
                    head_dim: head_dim as u32,
                    rope: rope.abi(),
                };
                // SAFETY: see above.
                unsafe { self.launch(stream, &name!("rope_{half}"), (rows, 1, 1), 256, &p) }
            }
            PointwiseOp::WriteKv { values, kv, slots } => {
                let heads = kv.heads;
                check(
                    "kv_write",
                    c.cols == heads.n_kv_heads * heads.head_dim && heads.head_dim % 8 == 0,
                    || format!("{} columns for {} heads of {}", c.cols, heads.n_kv_heads, heads.head_dim),
                )?;
                let p = abi::QwenvlKvWrite {
                    k: c.x as *const c_void,
                    v: values as *const c_void,
                    slots: slots as *const u32,
                    kv: kv.abi(),
                    rows,
                };
                // SAFETY: see above.
                unsafe { self.launch(stream, "kv_write", (rows, 1, 1), 256, &p) }
            }
        }
    }
}
