//! Bytes and floating-point operations of every op: what the physical bounds are made of.

use crate::builder::{Graph, Node, ValueId};
use crate::op::Op;
use crate::shape::Sizes;

/// What one step moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Weights read, each byte once.
    pub weight_bytes: u64,
    /// Activations and KV entries read and written, each byte once.
    pub activation_bytes: u64,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
}

impl Cost {
    /// All bytes moved.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes
    }

    /// The sum of two costs.
    pub fn plus(self, other: Cost) -> Cost {
        Cost {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            activation_bytes: self.activation_bytes + other.activation_bytes,
            flops: self.flops + other.flops,
        }
    }
}

/// The cost of `node` at the given sizes. `kv_size_bytes` is the size of one cached number.
pub fn cost(graph: &Graph, node: &Node, sizes: &Sizes, kv_size_bytes: u64) -> Cost {
    let elements = |id: ValueId| {
        let v = graph.value(id);
        sizes.rows(v.shape.rows) as u64 * v.shape.cols as u64
    };
    let bytes = |id: ValueId| elements(id) * graph.value(id).dtype.size_bytes();
    let written: u64 = node.output.iter().map(|v| bytes(*v)).sum();
    let read: u64 = node.inputs.iter().map(|v| bytes(*v)).sum();
    let moved = Cost { activation_bytes: read + written, ..Cost::default() };
    let out = node.output.map_or(0, elements);
    match &node.op {
        Op::Linear { parts, k, .. } => {
            let x = graph.value(node.inputs[0]);
            let m = elements(node.inputs[0]) / *k as u64;
            debug_assert!(*k >= x.shape.cols);
            let n: u64 = parts.iter().map(|p| p.n as u64).sum();
            let weights = parts.iter().flat_map(|p| [Some(p.weight), p.bias]).flatten();
            let weight_bytes = weights.map(|w| graph.weight(w).bytes()).sum();
            let kv_bytes = match node.op {
                Op::Linear { epilogue: crate::op::Epilogue::RopeWriteKv { heads, .. }, .. } => {
                    m * 2 * (heads.n_kv_heads * heads.head_dim) as u64 * kv_size_bytes
                }
                _ => 0,
            };
            Cost {
                weight_bytes,
                activation_bytes: moved.activation_bytes + kv_bytes,
                flops: 2 * m * n * *k as u64,
            }
        }
        Op::VisionAttention { n_heads, head_dim } => {
            Cost { flops: 4 * sizes.patch_pairs * (n_heads * head_dim) as u64, ..moved }
        }
        Op::PagedAttention { heads, .. } => {
            let kv = 2 * sizes.kv_tokens * (heads.n_kv_heads * heads.head_dim) as u64 * kv_size_bytes;
            Cost {
                activation_bytes: moved.activation_bytes + kv,
                flops: 4 * sizes.token_pairs * (heads.n_heads * heads.head_dim) as u64,
                ..moved
            }
        }
        Op::LayerNorm { weight, bias, .. } => Cost {
            weight_bytes: graph.weight(*weight).bytes() + graph.weight(*bias).bytes(),
            flops: 8 * out,
            ..moved
        },
        Op::RmsNorm { weight, .. } => {
            Cost { weight_bytes: graph.weight(*weight).bytes(), flops: 4 * out, ..moved }
        }
        Op::Embed { table } => {
            let row = match graph.weight(*table).kind {
                crate::builder::WeightKind::Matrix { n, k, format } => {
                    format.matrix_bytes(n, k) / n.max(1) as u64
                }
                crate::builder::WeightKind::Vector { .. } => 0,
            };
            Cost { weight_bytes: row * sizes.tokens as u64, ..moved }
        }
        Op::WriteKv { .. } => {
            let kv: u64 = node.inputs.iter().map(|v| elements(*v) * kv_size_bytes).sum();
            Cost { activation_bytes: moved.activation_bytes + kv, ..moved }
        }
        // Reads each 8-bit pixel once.
        Op::Patchify => Cost { activation_bytes: written + out, flops: 2 * out, ..moved },
        Op::Activate(_) | Op::SwiGlu => Cost { flops: 8 * out, ..moved },
        Op::RotateVision(_) | Op::Rotate(_) => Cost { flops: 3 * out, ..moved },
        Op::Add => Cost { flops: out, ..moved },
        Op::SelectRows => Cost { activation_bytes: 2 * written, ..moved },
        // A change of view.
        Op::MergeRows { .. } => Cost::default(),
    }
}
