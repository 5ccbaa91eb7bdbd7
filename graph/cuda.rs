//! What the CUDA kernels need beyond the arena: the layout of weights, cuts of the work, and every byte of
//! workspace. The executor takes exactly what is stated here.

use std::ops::Range;

use crate::builder::{Graph, WeightId, WeightKind};
use crate::config::{ModelConfig, Quantization};
use crate::dtype::DType;
use crate::op::Op;
use crate::plan::PlanOptions;
use crate::weights::WeightFormat;

/// Outputs and inputs of a record, the unit of the weight layout (`kernels/cuda/linear.cuh`).
pub const RECORD: usize = 128;
/// Outputs of a strip: what a block of threads works on.
pub const STRIP: usize = 256;
/// Logits that a block of the sampler looks at.
pub const SAMPLE_SLICE: usize = 1024;
/// Words of u32 of the parameters of a row of the sampler.
pub const SAMPLE_ROW_WORDS: usize = 8;
/// Most rows of the small-m linear kernels.
pub const SMALL_ROWS: usize = 64;
/// Least keys of a split of decode attention.
pub const DECODE_SPLIT_TOKENS: usize = 256;
/// Most splits of a sequence in decode attention.
pub const DECODE_SPLITS: usize = 64;
/// Query rows of a prefill or vision attention task.
pub const ATTENTION_ROWS: usize = 128;
/// Batch sizes that decode graphs are made for, up to the plan's own.
pub const BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Patches that run at a time through the row-by-row steps of the vision tower.
pub const TILE_PATCHES: usize = 8192;

/// Bytes of a matrix on the device: whole records.
pub fn matrix_bytes(n: usize, k: usize, format: WeightFormat) -> u64 {
    let record = match format {
        WeightFormat::Int4 { .. } => 8512,
        WeightFormat::Int8 { .. } => 16640,
        WeightFormat::Dense(_) => 32768,
    };
    (n.div_ceil(RECORD) * k.div_ceil(RECORD)) as u64 * record
}

/// Equal runs of (strip, record along k) units that a linear layer is cut into: one for each
/// multiprocessor, fixed for the device so that sums do not depend on the batch.
pub fn n_runs(n: usize, k: usize, multiprocessors: usize) -> usize {
    multiprocessors.min(n.div_ceil(STRIP) * k.div_ceil(RECORD))
}

/// Splits of a long sequence in decode attention: one sequence fills the device with two blocks for each
/// multiprocessor. Part of the numeric contract.
pub fn decode_splits(kv_heads: usize, multiprocessors: usize) -> usize {
    (2 * multiprocessors / kv_heads).clamp(1, DECODE_SPLITS)
}

/// Whether the norm at `step` can be the prologue of the linear layer after it: only that reads the norm, and what
/// the norm reads lives on.
pub fn is_prologue(graph: &Graph, step: usize) -> bool {
    let (norm, Some(next)) = (&graph.nodes[step], graph.nodes.get(step + 1)) else { return false };
    let (Op::RmsNorm { .. }, Op::Linear { .. }, Some(output)) = (&norm.op, &next.op, norm.output) else {
        return false;
    };
    let is_read = |id| graph.nodes[step + 2..].iter().any(|node| node.inputs.contains(&id));
    next.inputs[0] == output && !is_read(output) && is_read(norm.inputs[0])
}

/// Device memory beside the arena, the KV cache and the visual rows, as byte ranges of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Cosines and sines of the decoder, `[context][head_dim / 2]` pairs of f32.
    pub mrope: Range<u64>,
    /// Of the vision tower, `[side][head_dim / 4]`.
    pub vision_rope: Range<u64>,
    /// Normalised value of each byte, `[3][256]` f32.
    pub normalize: Range<u64>,
    /// 8-bit frames of a vision call.
    pub frames: Range<u64>,
    /// What the host sends for a call: ids, positions, tables.
    pub inputs: Range<u64>,
    /// Sums of runs that share a strip, f32.
    pub partials: Range<u64>,
    /// Partial results of decode attention, f32.
    pub attention: Range<u64>,
    /// Arrival counters, u32.
    pub arrivals: Range<u64>,
    /// What the host sends to the sampler: parameters of rows, and histories.
    pub sampling: Range<u64>,
    /// Scores of the sampler, f32.
    pub scores: Range<u64>,
    /// The best of each slice of the vocabulary, u64.
    pub best: Range<u64>,
    /// Tokens picked, u32.
    pub tokens: Range<u64>,
    /// Inputs of a layer in the order of its groups, 16-bit; none unless a checkpoint may have others.
    pub sorted: Range<u64>,
    /// All of it.
    pub total_bytes: u64,
}

/// Words of u32 with a bit for each id of a vocabulary, an even number.
pub fn history_words(vocab: usize) -> usize {
    2 * vocab.div_ceil(64)
}

/// Longest side of a picture in patches, for the largest aspect ratio.
pub fn max_side_patches(max_patches: usize) -> usize {
    ((max_patches as f64 * 200.0).sqrt() as usize + 2).min(max_patches + 1)
}

/// Words of u32 that the host sends with a decoder call of `tokens` tokens and `seqs` sequences.
pub fn decoder_input_words(options: &PlanOptions, tokens: usize, seqs: usize, heads: usize) -> usize {
    let pages = options.context_tokens.div_ceil(crate::kernel::KV_PAGE_TOKENS);
    // Each key head has a tile for so many queries of its group, and one more where a sequence ends.
    let tiles = (tokens * heads).div_ceil(ATTENTION_ROWS) + seqs * heads;
    // Ids, positions, visual rows, slots; sequences; page tables; rows of logits; tiles; gaps between them.
    6 * tokens + 4 * seqs + pages * seqs + seqs + 3 * tiles + 64
}

impl Workspace {
    /// The workspace of a model under `options` on a device with so many multiprocessors.
    pub fn new(
        config: &ModelConfig,
        options: &PlanOptions,
        graphs: [&Graph; 2],
        multiprocessors: usize,
    ) -> Workspace {
        let (t, v) = (&config.text, &config.vision);
        let (heads, kv_heads) = (t.num_attention_heads, t.num_key_value_heads);
        let rows = options.max_seqs.min(SMALL_ROWS);
        let mut at = 0u64;
        let mut take = |bytes: usize| {
            let start = at;
            at = (at + bytes as u64).next_multiple_of(crate::memory::ALIGN_BYTES);
            start..start + bytes as u64
        };
        let chunk = options.prefill_chunk_tokens.min(options.context_tokens);
        let words = decoder_input_words(options, chunk.max(options.max_seqs), options.max_seqs, heads);
        let slices = options.max_patches / v.patches_per_token();
        // Positions of patches; slices as sequences, frames and tiles.
        let vision_words = 2 * options.max_patches
            + slices * (4 + 8)
            + 3 * (options.max_patches / ATTENTION_ROWS + slices) * v.num_heads
            + 64;
        let splits = options.context_tokens.div_ceil(DECODE_SPLIT_TOKENS);
        let splits = splits.min(decode_splits(kv_heads, multiprocessors));
        let strips = graphs.iter().flat_map(|g| &g.nodes).filter_map(|node| match &node.op {
            Op::Linear { parts, .. } => Some(parts.iter().map(|p| p.n).sum::<usize>().div_ceil(STRIP)),
            _ => None,
        });
        let strips = strips.max().unwrap_or(0);
        let sorts = sorts_inputs(config.quantization);
        let largest_k = graphs[1].nodes.iter().filter_map(|node| match &node.op {
            Op::Linear { k, .. } => Some(*k),
            _ => None,
        });
        let largest_k = largest_k.max().unwrap_or(0);
        Workspace {
            mrope: take(options.context_tokens * t.head_dim() / 2 * 8),
            vision_rope: take(max_side_patches(options.max_patches) * v.head_dim() / 4 * 8),
            normalize: take(3 * 256 * 4),
            frames: take(
                options.max_patches * v.patch_size * v.patch_size * v.in_channels * v.temporal_patch_size,
            ),
            inputs: take(4 * words.max(vision_words)),
            // A run has at most two parts of strips that others share.
            partials: take(2 * multiprocessors * rows.next_power_of_two().max(8) * STRIP * 4),
            attention: take(options.max_seqs * heads * splits * (t.head_dim() + 2) * 4),
            arrivals: take(4 * strips.max(options.max_seqs * kv_heads)),
            sampling: take(options.max_seqs * (SAMPLE_ROW_WORDS + history_words(t.vocab_size)) * 4),
            scores: take(options.max_seqs * t.vocab_size * 4),
            best: take(options.max_seqs * (t.vocab_size.div_ceil(SAMPLE_SLICE) + 1) * 8),
            tokens: take(options.max_seqs * 4),
            sorted: take(if sorts { chunk.max(options.max_seqs) * largest_k * 2 } else { 0 }),
            total_bytes: at,
        }
    }
}

/// Whether layers may take their inputs in another order: that of their groups.
pub fn sorts_inputs(quantization: Quantization) -> bool {
    matches!(quantization, Quantization::Gptq { desc_act: true, .. })
}

/// Whether the head's records serve as the embedding table: where both are one matrix, and the file has it in
/// the activations' type, so that no embedding is rounded.
pub fn shares_table(graph: &Graph, table: WeightId, activation: DType) -> bool {
    let is_same =
        |op: &Op| matches!(op, Op::Linear { parts, .. } if parts.len() == 1 && parts[0].weight == table);
    let WeightKind::Matrix { format, .. } = graph.weight(table).kind else { return false };
    format == WeightFormat::Dense(activation) && graph.nodes.iter().any(|node| is_same(&node.op))
}

/// Bytes of all weights of `graphs` on the device: matrices in records, vectors in f32, the embedding table by rows
/// unless [`shares_table`] holds, where [`sorts_inputs`] the order of inputs, and room for biases that files of GPTQ
/// may have beside the model's.
pub fn weights_bytes(graphs: [&Graph; 2], activation: DType, quantization: Quantization) -> u64 {
    graphs.iter().map(|graph| graph_bytes(graph, activation, quantization)).sum()
}

fn graph_bytes(graph: &Graph, activation: DType, quantization: Quantization) -> u64 {
    let weight = |id: WeightId| graph.weight(id).kind;
    let matrices = graph.nodes.iter().map(|node| match &node.op {
        Op::Linear { parts, k, .. } => {
            let n: usize = parts.iter().map(|p| p.n).sum();
            match weight(parts[0].weight) {
                WeightKind::Matrix { format: format @ WeightFormat::Dense(_), .. } => {
                    matrix_bytes(n, *k, format)
                }
                WeightKind::Matrix { format, .. } => {
                    let words = |n: usize| (4 * n as u64).next_multiple_of(16);
                    let order = if sorts_inputs(quantization) { words(*k) } else { 0 };
                    // Files of GPTQ may have biases that the model does not.
                    let is_gptq = matches!(quantization, Quantization::Gptq { .. });
                    matrix_bytes(n, *k, format) + order + if is_gptq { words(n) } else { 0 }
                }
                WeightKind::Vector { .. } => 0,
            }
        }
        Op::Embed { table } if !shares_table(graph, *table, activation) => graph.weight(*table).bytes(),
        _ => 0,
    });
    let vectors = graph.weights.iter().map(|w| match w.kind {
        WeightKind::Vector { len, .. } => (4 * len as u64).next_multiple_of(16),
        WeightKind::Matrix { .. } => 0,
    });
    matrices.chain(vectors).sum()
}
