//! pointwise: launchers of the steps of a plan that was not fused.

use std::ffi::c_void;

use cudarc::driver::CudaStream;
use qwenvl_graph::Activation;

use super::linear::{Kv, Rope};
use super::{Address, Half, Kernels, Result, abi, check};

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
    /// Columns; even.
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
        check("pointwise", c.rows > 0 && c.cols % 2 == 0, || {
            format!("{} rows of {} columns", c.rows, c.cols)
        })?;
        let mut p = abi::QwenvlPointwise {
            x: c.x as *const c_void,
            out: c.out as *mut c_void,
            rows: c.rows as u32,
            cols: c.cols as u32,
            ..Default::default()
        };
        let half = c.half.name();
        let name = match c.op {
            PointwiseOp::Activate(activation) => {
                p.op = match activation {
                    Activation::QuickGelu => abi::QWENVL_QUICK_GELU,
                    Activation::Gelu => abi::QWENVL_GELU,
                };
                format!("activate_{half}")
            }
            PointwiseOp::SwiGlu { up } => {
                p.y = up as *const c_void;
                format!("swiglu_{half}")
            }
            PointwiseOp::Add { residual } => {
                p.y = residual as *const c_void;
                format!("add_{half}")
            }
            PointwiseOp::Rotate { rope, n_rotated } => {
                p.head_dim = 2 * rope.pairs.half() as u32;
                check("pointwise", c.cols % p.head_dim as usize == 0, || {
                    format!("{} columns of heads of {}", c.cols, p.head_dim)
                })?;
                p.rope = rope.abi();
                p.n_rotated = n_rotated as u32;
                format!("rotate_{half}")
            }
            PointwiseOp::WriteKv { values, kv, slots } => {
                check("pointwise", c.cols == kv.heads.n_kv_heads * kv.heads.head_dim, || {
                    format!("{} columns for {} heads of {}", c.cols, kv.heads.n_kv_heads, kv.heads.head_dim)
                })?;
                p.y = values as *const c_void;
                p.kv = kv.abi();
                p.index = slots as *const u32;
                "write_kv_16".into()
            }
            PointwiseOp::Gather { index } => {
                p.index = index as *const u32;
                "gather_f32".into()
            }
        };
        let blocks = (c.rows as u64 * (c.cols as u64 / 2)).div_ceil(256).min(u64::from(self.sm_count) * 8);
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, (blocks as u32, 1, 1), 256, &p) }
    }
}
