//! What the CUDA kernels need beyond the arena: the layout of weights, cuts of the work, and every byte of
//! workspace. The executor takes exactly what is stated here.

use std::ops::Range;

use crate::builder::{self, Graph, WeightId};
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
/// Bytes of a step of the kernel that runs all layers of the decoder for a few new tokens.
pub const DECODE_STEP_BYTES: usize = 288;
/// Most rows of that kernel.
pub const DECODE_LAYERS_ROWS: usize = 2;
/// Most groups of 128 inputs in a run of its layers.
pub const DECODE_LAYERS_GROUPS: usize = 72;
/// Where its lists of steps start, after a counter.
pub const DECODE_LAYERS_ALIGN: u64 = 16;
/// Bytes in which the sampler counts the ids of a row: two u64 for each of 1024 bins.
pub const SAMPLE_BINS_BYTES: usize = 16 * 1024;
/// Words of u32 of the parameters of a row of the sampler.
pub const SAMPLE_ROW_WORDS: usize = 8;
/// Most rows of the small-m linear kernels.
pub const SMALL_ROWS: usize = 64;
/// Keys of a split of decode attention, up to the most splits.
pub const DECODE_SPLIT_TOKENS: usize = 256;
/// Most splits of a sequence in decode attention.
pub const DECODE_SPLITS: usize = 64;
/// Least query rows of a tile of prefill or vision attention.
pub const ATTENTION_ROWS: usize = 32;
/// Words of u32 that describe a tile.
const TILE_WORDS: usize = 8;
/// Batch sizes that decode graphs are made for, up to the plan's own.
pub const BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Patches that run at a time through the row-by-row steps of the vision tower.
pub const TILE_PATCHES: usize = 8192;

/// How a matrix lies in records. Groups of inputs have a scale for each output, and but for [`WeightKind::Int8`] a zero
/// point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// 4 bits, groups of 128 inputs.
    Int4,
    /// 4 bits, groups of 64.
    Int4G64,
    /// 4 bits, groups of 32.
    Int4G32,
    /// 8 bits around 128, groups of 128.
    Int8,
    /// 8 bits, groups of 32.
    Int8G32,
    /// The type of the activations.
    Dense,
    /// The other 16-bit type, rounded to that of the activations when it is used: a head that is also the table.
    Cast,
}

impl WeightKind {
    /// Inputs of a scale.
    pub const fn group(self) -> usize {
        match self {
            WeightKind::Int4G32 | WeightKind::Int8G32 => 32,
            WeightKind::Int4G64 => 64,
            WeightKind::Int4 | WeightKind::Int8 | WeightKind::Dense | WeightKind::Cast => RECORD,
        }
    }

    /// Bits of a weight.
    pub const fn bits(self) -> u32 {
        match self {
            WeightKind::Int4 | WeightKind::Int4G64 | WeightKind::Int4G32 => 4,
            WeightKind::Int8 | WeightKind::Int8G32 => 8,
            WeightKind::Dense | WeightKind::Cast => 16,
        }
    }

    /// Bytes of a record of 128 x 128 weights.
    pub const fn record_bytes(self) -> usize {
        let groups = RECORD / self.group();
        match self {
            WeightKind::Int4 | WeightKind::Int4G64 | WeightKind::Int4G32 => 8192 + groups * (256 + 64),
            WeightKind::Int8 => 16384 + 256,
            WeightKind::Int8G32 => 16384 + groups * (256 + 128),
            WeightKind::Dense | WeightKind::Cast => 32768,
        }
    }

    /// Bytes of a matrix `[n, k]` in records.
    pub const fn matrix_bytes(self, n: usize, k: usize) -> usize {
        n.div_ceil(RECORD) * k.div_ceil(RECORD) * self.record_bytes()
    }

    /// The kind and the places along k in which groups of inputs, as many as `groups` says in each, take the fewest
    /// bytes. Each group starts at a multiple of [`WeightKind::group`].
    pub fn of_groups(
        bits: u32,
        is_symmetric: bool,
        groups: impl Iterator<Item = usize> + Clone,
    ) -> (WeightKind, usize) {
        let kinds: &[WeightKind] = match (bits, is_symmetric) {
            (4, _) => &[WeightKind::Int4, WeightKind::Int4G64, WeightKind::Int4G32],
            (_, true) => &[WeightKind::Int8, WeightKind::Int8G32],
            (_, false) => &[WeightKind::Int8G32],
        };
        let places = |kind: WeightKind| {
            let end = groups.clone().fold(0usize, |at, inputs| at.next_multiple_of(kind.group()) + inputs);
            (kind, end.next_multiple_of(8))
        };
        let laid_out = kinds.iter().map(|kind| places(*kind));
        laid_out.min_by_key(|(kind, places)| kind.matrix_bytes(1, *places)).expect("a kind for every width")
    }

    /// The kind and the places of a quantised layer with `k` inputs, as the configuration has it.
    pub fn planned(quantization: Quantization, k: usize) -> (WeightKind, usize) {
        let (bits, is_symmetric) = match quantization {
            Quantization::Gptq { bits, sym, .. } => (bits, sym),
            Quantization::Awq { .. } | Quantization::None => (4, false),
        };
        let group = quantization.group(k);
        WeightKind::of_groups(bits, is_symmetric, (0..k).step_by(group).map(|first| group.min(k - first)))
    }
}

/// Equal runs of (strip, record along k) units that a linear layer is cut into: one for each
/// multiprocessor, fixed for the device so that sums do not depend on the batch.
pub fn n_runs(n: usize, k: usize, multiprocessors: usize) -> usize {
    multiprocessors.min(n.div_ceil(STRIP) * k.div_ceil(RECORD))
}

/// Bytes of sums that the blocks of a linear layer leave for others, f32: of a run at most two parts of strips that other
/// runs share; of a tile of a prompt that two blocks share no more.
pub fn linear_partials_bytes(multiprocessors: usize) -> usize {
    2 * multiprocessors * SMALL_ROWS * STRIP * 4
}

/// Words of u32 in which the blocks of a linear layer of so many outputs say that their sums are there: one for each strip
/// or block.
pub fn linear_arrivals(outputs: usize, multiprocessors: usize) -> usize {
    outputs.div_ceil(STRIP).max(2 * multiprocessors)
}

/// Splits of a long sequence in decode attention: one sequence has a block for each multiprocessor. Part of the numeric
/// contract.
pub fn decode_splits(kv_heads: usize, multiprocessors: usize) -> usize {
    (multiprocessors / kv_heads).clamp(1, DECODE_SPLITS)
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

/// The steps of a decoder between its embedding and its last rows that one kernel can run for a few new tokens: linear
/// layers, norms that are their prologues, attention.
pub fn layer_steps(graph: &Graph) -> Range<usize> {
    let start =
        graph.nodes.iter().position(|node| matches!(node.op, Op::Embed { .. })).map_or(0, |at| at + 1);
    let is_of_layer = |at: &usize| match graph.nodes[*at].op {
        Op::Linear { .. } | Op::PagedAttention { .. } => true,
        Op::RmsNorm { .. } => is_prologue(graph, *at),
        _ => false,
    };
    let all = (start..graph.nodes.len()).take_while(is_of_layer);
    let last = all.filter(|at| matches!(graph.nodes[*at].op, Op::Linear { .. })).last();
    start..last.map_or(start, |at| at + 1)
}

/// Whether [`layer_steps`] run in one kernel for so many rows on a device with so many multiprocessors, as far as a
/// configuration says: one format with a kernel for it, inputs in order, and runs short enough.
pub fn runs_in_one_kernel(
    graph: &Graph,
    quantization: Quantization,
    rows: usize,
    multiprocessors: usize,
) -> bool {
    let linears = layer_steps(graph).filter_map(|at| match &graph.nodes[at].op {
        Op::Linear { parts, k, .. } => {
            let is_dense = !is_quantised(graph, parts[0].weight);
            let kind = if is_dense { WeightKind::Dense } else { WeightKind::planned(quantization, *k).0 };
            Some((
                parts.iter().map(|p| p.n).sum::<usize>(),
                *k,
                kind,
                !is_dense && sorts_inputs(quantization, *k),
            ))
        }
        _ => None,
    });
    let linears: Vec<_> = linears.collect();
    let Some(&(_, _, kind, _)) = linears.first() else { return false };
    let fits = |&(n, k, of, sorts): &(usize, usize, WeightKind, bool)| {
        let groups = k.div_ceil(RECORD);
        let in_run = (n.div_ceil(STRIP) * groups).div_ceil(n_runs(n, k, multiprocessors));
        of == kind && !sorts && in_run.min(groups) <= DECODE_LAYERS_GROUPS
    };
    rows <= DECODE_LAYERS_ROWS
        && matches!(kind, WeightKind::Int4 | WeightKind::Int8 | WeightKind::Dense)
        && linears.iter().all(fits)
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
    /// Sums of linear layers that blocks leave for others, f32.
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
    /// Ids of a row counted by their scores.
    pub bins: Range<u64>,
    /// Tokens picked, u32.
    pub tokens: Range<u64>,
    /// Of the kernel of all layers: a counter, and for each number of rows a list of steps.
    pub layers: Range<u64>,
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
    6 * tokens + 4 * seqs + pages * seqs + seqs + TILE_WORDS * tiles + 64
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
        let chunk = options.prefill_chunk_tokens.min(options.context_tokens);
        let mut at = 0u64;
        let mut take = |bytes: usize| {
            let start = at;
            at = (at + bytes as u64).next_multiple_of(crate::memory::ALIGN_BYTES);
            start..start + bytes as u64
        };
        let words = decoder_input_words(options, chunk.max(options.max_seqs), options.max_seqs, heads);
        let slices = options.max_patches / v.patches_per_token();
        // Positions of patches; slices as frames and tiles.
        let vision_words = 2 * options.max_patches
            + slices * 8
            + TILE_WORDS * (options.max_patches / ATTENTION_ROWS + slices) * v.num_heads
            + 64;
        let splits = options.context_tokens.div_ceil(DECODE_SPLIT_TOKENS);
        let splits = splits.min(decode_splits(kv_heads, multiprocessors));
        let outputs = graphs.iter().flat_map(|g| &g.nodes).filter_map(|node| match &node.op {
            Op::Linear { parts, .. } => Some(parts.iter().map(|p| p.n).sum::<usize>()),
            _ => None,
        });
        let outputs = outputs.max().unwrap_or(0);
        let n_linears = graphs[1].nodes.iter().filter(|node| matches!(node.op, Op::Linear { .. })).count();
        let places = graphs[1].nodes.iter().filter_map(|node| match &node.op {
            Op::Linear { parts, k, .. } if is_quantised(graphs[1], parts[0].weight) => {
                let sorts = sorts_inputs(config.quantization, *k);
                sorts.then(|| WeightKind::planned(config.quantization, *k).1)
            }
            _ => None,
        });
        Workspace {
            mrope: take(options.context_tokens * t.head_dim() / 2 * 8),
            vision_rope: take(max_side_patches(options.max_patches) * v.head_dim() / 4 * 8),
            normalize: take(3 * 256 * 4),
            frames: take(
                options.max_patches * v.patch_size * v.patch_size * v.in_channels * v.temporal_patch_size,
            ),
            inputs: take(4 * words.max(vision_words)),
            partials: take(linear_partials_bytes(multiprocessors)),
            attention: take(options.max_seqs * heads * splits * (t.head_dim() + 2) * 4),
            arrivals: take(4 * linear_arrivals(outputs, multiprocessors).max(options.max_seqs * kv_heads)),
            sampling: take(options.max_seqs * (SAMPLE_ROW_WORDS + history_words(t.vocab_size)) * 4),
            scores: take(options.max_seqs * t.vocab_size * 4),
            best: take(options.max_seqs * (t.vocab_size.div_ceil(SAMPLE_SLICE) + 1) * 8),
            bins: take(options.max_seqs * SAMPLE_BINS_BYTES),
            tokens: take(options.max_seqs * 4),
            layers: take(DECODE_LAYERS_ALIGN as usize + DECODE_LAYERS_ROWS * n_linears * DECODE_STEP_BYTES),
            sorted: take(Workspace::sorted_bytes(options, places.max().unwrap_or(0))),
            total_bytes: at,
        }
    }

    /// Bytes of the sorted inputs of a layer with so many places.
    fn sorted_bytes(options: &PlanOptions, places: usize) -> usize {
        options.prefill_chunk_tokens.min(options.context_tokens).max(options.max_seqs) * places * 2
    }

    /// Makes room for the sorted inputs of a layer with so many places. Returns the bytes that are added.
    pub fn widen_sorted(&mut self, options: &PlanOptions, places: usize) -> u64 {
        let (before, bytes) = (self.total_bytes, Workspace::sorted_bytes(options, places) as u64);
        // The last part.
        self.sorted.end = self.sorted.end.max(self.sorted.start + bytes);
        self.total_bytes = before.max(self.sorted.end.next_multiple_of(crate::memory::ALIGN_BYTES));
        self.total_bytes - before
    }
}

/// Whether layers with `k` inputs take them in another order: that of their groups, or with gaps between them.
pub fn sorts_inputs(quantization: Quantization, k: usize) -> bool {
    let is_ordered = !matches!(quantization, Quantization::Gptq { desc_act: true, .. });
    !is_ordered || WeightKind::planned(quantization, k).1 != k
}

fn is_quantised(graph: &Graph, weight: WeightId) -> bool {
    let kind = graph.weight(weight).kind;
    !matches!(kind, builder::WeightKind::Matrix { format: WeightFormat::Dense(_), .. })
}

/// Whether the head's records serve as the embedding table: where both are one matrix of a 16-bit type. They keep
/// that type, so that no embedding is rounded.
pub fn shares_table(graph: &Graph, table: WeightId) -> bool {
    let is_same =
        |op: &Op| matches!(op, Op::Linear { parts, .. } if parts.len() == 1 && parts[0].weight == table);
    let builder::WeightKind::Matrix { format, .. } = graph.weight(table).kind else { return false };
    matches!(format, WeightFormat::Dense(DType::BF16 | DType::F16))
        && graph.nodes.iter().any(|node| is_same(&node.op))
}

/// Bytes of a quantised layer with `n` outputs and the order of its inputs, if it is sorted.
pub fn layer_bytes(kind: WeightKind, n: usize, places: usize, is_sorted: bool) -> u64 {
    kind.matrix_bytes(n, places) as u64 + if is_sorted { words_bytes(places) } else { 0 }
}

/// Bytes of so many words, up to where the next tensor may start.
fn words_bytes(n: usize) -> u64 {
    (4 * n as u64).next_multiple_of(16)
}

/// Bytes of all weights of `graphs` on the device: matrices in records, vectors in f32, the embedding table by rows
/// unless [`shares_table`] holds, where [`sorts_inputs`] the order of inputs, and room for biases that files of GPTQ
/// may have beside the model's.
pub fn weights_bytes(graphs: [&Graph; 2], quantization: Quantization) -> u64 {
    graphs.iter().map(|graph| graph_bytes(graph, quantization)).sum()
}

fn graph_bytes(graph: &Graph, quantization: Quantization) -> u64 {
    let matrices = graph.nodes.iter().map(|node| match &node.op {
        Op::Linear { parts, k, .. } => {
            let n: usize = parts.iter().map(|p| p.n).sum();
            if !is_quantised(graph, parts[0].weight) {
                return WeightKind::Dense.matrix_bytes(n, *k) as u64;
            }
            let (kind, places) = WeightKind::planned(quantization, *k);
            // Files of GPTQ may have biases that the model does not.
            let is_gptq = matches!(quantization, Quantization::Gptq { .. });
            layer_bytes(kind, n, places, sorts_inputs(quantization, *k))
                + if is_gptq { words_bytes(n) } else { 0 }
        }
        Op::Embed { table } if !shares_table(graph, *table) => graph.weight(*table).bytes(),
        _ => 0,
    });
    let vectors = graph.weights.iter().map(|w| match w.kind {
        builder::WeightKind::Vector { len, .. } => words_bytes(len),
        builder::WeightKind::Matrix { .. } => 0,
    });
    matrices.chain(vectors).sum()
}
