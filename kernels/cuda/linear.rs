//! linear: what linear layers and attention share: rotary angles and the KV cache.

use std::ffi::c_void;

use qwenvl_graph::op::{Heads, MRope, VisionRope};

use super::{Address, abi};

/// Where the rotary angles of rows come from: the table, and the positions of each row.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// `[positions, columns]` of (cos, sin) f32.
    pub angles: Address,
    /// `[rows, axes]` u32.
    pub positions: Address,
    /// Which pairs follow which axis.
    pub pairs: RopePairs,
}

/// Which pairs of channels follow which axis of the position, and which column of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopePairs {
    /// Three axes; a column for each pair.
    MRope(MRope),
    /// Two axes with half the pairs each; both start at the first column.
    Vision(VisionRope),
}

impl RopePairs {
    /// Columns of the table of angles.
    pub fn columns(&self) -> usize {
        match self {
            RopePairs::MRope(rope) => rope.head_dim / 2,
            RopePairs::Vision(rope) => rope.head_dim / 4,
        }
    }

    /// Half a head.
    pub fn half(&self) -> usize {
        match self {
            RopePairs::MRope(rope) => rope.head_dim / 2,
            RopePairs::Vision(rope) => rope.head_dim / 2,
        }
    }
}

impl Rope {
    pub(super) fn abi(&self) -> abi::QwenvlRope {
        let (axes, axis_end, restart) = match self.pairs {
            RopePairs::MRope(rope) => {
                let [t, h, w] = rope.sections.map(|s| s as u32);
                (3, [t, t + h, t + h + w], 0)
            }
            RopePairs::Vision(rope) => {
                let quarter = rope.head_dim as u32 / 4;
                (2, [quarter, 2 * quarter, 2 * quarter], 1)
            }
        };
        abi::QwenvlRope {
            angles: self.angles as *const f32,
            positions: self.positions as *const u32,
            axes,
            axis_end,
            columns: self.pairs.columns() as u32,
            restart,
        }
    }
}

/// One layer of the KV cache: pages of `[2 (k, v), kv_heads, 64 tokens, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// The layer's part of page 0.
    pub pages: Address,
    /// Elements from a page to the next.
    pub page_stride: u64,
    /// Heads.
    pub heads: Heads,
}

impl Kv {
    pub(super) fn abi(&self) -> abi::QwenvlKv {
        abi::QwenvlKv {
            pages: self.pages as *mut c_void,
            page_stride: self.page_stride,
            kv_heads: self.heads.n_kv_heads as u32,
            head_dim: self.heads.head_dim as u32,
        }
    }
}
