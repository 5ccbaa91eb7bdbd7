//! Which kernel runs a step, in which blocks, and the scratch memory it needs.

use crate::builder::{Graph, Node, ValueId, WeightKind};
use crate::config::Quantization;
use crate::cuda;
use crate::device::{Device, DeviceKind};
use crate::op::{Epilogue, Op};
use crate::shape::Sizes;
use crate::weights::WeightFormat;

/// Tokens in a page of the KV cache.
pub const KV_PAGE_TOKENS: usize = 64;
/// Keys that attention on the CPU handles at a time.
pub const ATTENTION_KEYS: usize = KV_PAGE_TOKENS;
/// Query rows that attention on the CPU handles at a time.
pub const ATTENTION_ROWS: usize = 96;
/// Inputs after which a dense dot product on the CPU folds its partial sums. Part of the numeric
/// contract: changing it changes the bits of every result.
pub const DENSE_K_BLOCK: usize = 256;
/// Most outputs whose weights a dense linear layer on the CPU packs together.
pub const DENSE_PANEL: usize = 8;
/// Rows of a tile of a linear layer on the CPU.
const BLOCK_M: usize = 192;
/// Outputs of a tile of a linear layer on the CPU, unless the epilogue needs whole heads: wide where that
/// leaves every thread enough tiles, since each tile packs its rows again.
const BLOCK_N: [usize; 2] = [128, 64];
/// Tiles of a narrow layer that a thread should have.
const TILES_PER_THREAD: usize = 16;

/// The kernel of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name, also that of its file.
    pub name: &'static str,
    /// Rows per tile; 0 where the kernel has no tiles.
    pub block_m: usize,
    /// Outputs per tile; 0 where the kernel has no tiles. With a SwiGLU, of each of the two parts.
    pub block_n: usize,
    /// Scratch memory all threads share, in bytes, at the planned sizes.
    pub shared_bytes: u64,
    /// Scratch memory of each thread, in bytes.
    pub thread_bytes: u64,
}

/// The kernel for `node` of a program that `decodes` or not. On a GPU only the name is known until kernels are tuned there.
pub(crate) fn choose(
    graph: &Graph,
    node: &Node,
    sizes: &Sizes,
    device: &Device,
    quantization: Quantization,
    decodes: bool,
) -> Kernel {
    let sorts = match (&node.op, device.kind) {
        (Op::Linear { parts, k, .. }, DeviceKind::Cuda { .. }) => {
            matrix_format(graph, parts[0].weight).group().is_some() && cuda::sorts_inputs(quantization, *k)
        }
        _ => matches!(quantization, Quantization::Gptq { desc_act: true, .. }),
    };
    let mut kernel =
        Kernel { name: name(graph, node, sorts), block_m: 0, block_n: 0, shared_bytes: 0, thread_bytes: 0 };
    let DeviceKind::Cpu { threads } = device.kind else {
        if matches!(node.op, Op::PagedAttention { .. }) && !decodes {
            kernel.name = "paged_prefill";
        }
        return kernel;
    };
    match &node.op {
        Op::Linear { parts, k, epilogue } => {
            kernel.block_m = BLOCK_M;
            let n: usize = parts.iter().map(|p| p.n).sum();
            let block_n = BLOCK_N[usize::from(n < BLOCK_N[0] * TILES_PER_THREAD * threads)];
            kernel.block_n = match epilogue {
                Epilogue::VisionRope(rope) => block_n.next_multiple_of(rope.head_dim),
                Epilogue::RopeWriteKv { heads, .. } => block_n.next_multiple_of(heads.head_dim),
                _ => block_n,
            };
            let tiles = if *epilogue == Epilogue::SwiGlu { 2 } else { 1 };
            let tile_bytes = (tiles * kernel.block_m * kernel.block_n * 4) as u64;
            let m = rows(graph, node.inputs[0], *k, sizes) as u64;
            match matrix_format(graph, parts[0].weight) {
                // Converted weights of a block of inputs.
                WeightFormat::Dense(_) => {
                    let floats = kernel.block_n.next_multiple_of(DENSE_PANEL) * DENSE_K_BLOCK;
                    kernel.thread_bytes = tile_bytes + 4 * floats as u64;
                }
                WeightFormat::Int4 { group } | WeightFormat::Int8 { group } => {
                    // One unpacked strip of 16 outputs per thread; the quantised input for all, in the
                    // order of each part if they have their own.
                    kernel.thread_bytes = tile_bytes + (16 * group * 2) as u64;
                    let groups = k.div_ceil(group) as u64;
                    let orders = if sorts { parts.len() as u64 } else { 1 };
                    kernel.shared_bytes = orders * (m * groups * (2 * group as u64 + 8) + 64);
                }
            }
        }
        Op::VisionAttention { head_dim, .. } => {
            kernel.thread_bytes =
                attention_bytes(ATTENTION_ROWS, *head_dim) + 4 * (head_dim * ATTENTION_KEYS) as u64;
        }
        Op::PagedAttention { heads, .. } => {
            kernel.thread_bytes =
                attention_bytes(ATTENTION_ROWS.max(heads.n_heads / heads.n_kv_heads), heads.head_dim);
        }
        _ => {}
    }
    kernel
}

/// Scratch of one attention task: scaled queries, transposed keys, scores, outputs, row statistics.
/// Vision attention also packs a tile of values.
fn attention_bytes(rows: usize, head_dim: usize) -> u64 {
    let floats = 2 * rows * head_dim + head_dim * ATTENTION_KEYS + rows * ATTENTION_KEYS + 2 * rows;
    4 * floats as u64
}

/// Rows of a linear layer with `k` inputs over `x`.
fn rows(graph: &Graph, x: ValueId, k: usize, sizes: &Sizes) -> usize {
    let shape = graph.value(x).shape;
    (sizes.rows(shape.rows) * shape.cols).div_ceil(k)
}

fn matrix_format(graph: &Graph, weight: crate::builder::WeightId) -> WeightFormat {
    match graph.weight(weight).kind {
        WeightKind::Matrix { format, .. } => format,
        WeightKind::Vector { .. } => unreachable!("a linear part is a matrix"),
    }
}

/// `sorts`: quantised layers sort their inputs by group first.
fn name(graph: &Graph, node: &Node, sorts: bool) -> &'static str {
    match &node.op {
        Op::Linear { parts, .. } => match matrix_format(graph, parts[0].weight) {
            WeightFormat::Dense(_) => "dense_gemm",
            WeightFormat::Int4 { .. } if sorts => "sort+int4_gemm",
            WeightFormat::Int4 { .. } => "int4_gemm",
            WeightFormat::Int8 { .. } if sorts => "sort+int8_gemm",
            WeightFormat::Int8 { .. } => "int8_gemm",
        },
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => "norm",
        Op::VisionAttention { .. } => "flash_attn",
        Op::PagedAttention { .. } => "paged_attn",
        Op::RotateVision(_) | Op::Rotate(_) => "rope",
        Op::WriteKv { .. } => "kv_write",
        Op::Patchify => "patchify",
        Op::Embed { .. } | Op::SelectRows => "embed",
        Op::Activate(_) | Op::SwiGlu | Op::Add => "pointwise",
        Op::MergeRows { .. } => "view",
    }
}
