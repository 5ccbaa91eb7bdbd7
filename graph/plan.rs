//! The static plan: which kernels run in which order, on which bytes of one arena.
//!
//! A plan is data. It is made from `config.json` alone, states every byte before a weight is read,
//! and is what an executor binds and runs.

use std::ops::Range;

use crate::builder::{Graph, Node, ValueId, Weight, WeightKind};
use crate::config::{ModelConfig, Quantization};
use crate::cost::{self, Cost};
use crate::cuda::{self, Workspace};
use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::fuse::fuse;
use crate::kernel::{self, KV_PAGE_TOKENS, Kernel};
use crate::memory::{self, Placement};
use crate::op::Op;
use crate::shape::{Rows, Sizes};
use crate::weights::WeightFormat;
use crate::{decoder, merger, vit};

/// Patches that run at a time through the steps of the vision tower that work row by row. Bounds
/// the memory of wide intermediates; a multiple of the patches per token.
const TILE_PATCHES: usize = 1024;

/// Most tokens that a KV cache can be planned for.
pub const MAX_KV_POOL_TOKENS: usize = 1 << 30;

/// Upper bounds on what will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Most tokens in one sequence, prompt and answer together.
    pub context_tokens: usize,
    /// Tokens that the KV cache holds for all sequences together; rounded up to whole pages.
    pub kv_pool_tokens: usize,
    /// Most sequences that decode at once.
    pub max_seqs: usize,
    /// Most prompt tokens in one prefill call.
    pub prefill_chunk_tokens: usize,
    /// Most patches in one call of the vision tower. At least those of the largest image, or of one
    /// frame pair of a video: attention never crosses those.
    pub max_patches: usize,
    /// Most visual tokens that wait for their prefill.
    pub max_visual_tokens: usize,
    /// Type of intermediate values and of the KV cache on a GPU: BF16 or F16.
    pub activation: DType,
    /// Whether to run the fusion passes. Off, the plan runs the plain graph: slower, same numbers.
    pub fuse: bool,
}

impl PlanOptions {
    /// Bounds for one sequence at a time of `context_tokens`, with pictures of up to `max_pixels`.
    pub fn new(config: &ModelConfig, context_tokens: usize, max_pixels: u64) -> PlanOptions {
        let patch_area = (config.vision.patch_size * config.vision.patch_size) as u64;
        let per_token = config.vision.patches_per_token();
        let max_patches = (max_pixels / patch_area).min(1 << 32) as usize;
        PlanOptions {
            context_tokens,
            kv_pool_tokens: context_tokens,
            max_seqs: 1,
            prefill_chunk_tokens: 512,
            max_patches: max_patches.next_multiple_of(per_token),
            max_visual_tokens: context_tokens,
            activation: DType::BF16,
            fuse: true,
        }
    }
}

/// A run of steps. With a tile, the steps run again for every so many patches, and the values that
/// only live inside hold one tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Indices of the steps.
    pub steps: Range<usize>,
    /// Patches per round.
    pub tile_rows: Option<usize>,
}

impl Segment {
    /// Whether `value` is written and read by this segment only, one row at a time.
    pub fn is_interior(&self, graph: &Graph, value: ValueId) -> bool {
        let nodes = &graph.nodes[self.steps.clone()];
        let made_here = nodes[..nodes.len() - 1].iter().any(|n| n.output == Some(value));
        made_here && graph.result != Some(value)
    }
}

/// One sub-graph made ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// `vision`, `prefill` or `decode`.
    pub name: &'static str,
    /// Nodes, values and weights. Node `i` is step `i`.
    pub graph: Graph,
    /// Upper bounds of the symbolic sizes.
    pub bounds: Sizes,
    /// The steps in runs.
    pub segments: Vec<Segment>,
    /// The kernel of each step.
    pub kernels: Vec<Kernel>,
    /// Where each value lives; `None` for values that fusion removed, and for the visual rows, which
    /// live outside the arena until their prefill.
    pub placements: Vec<Option<Placement>>,
    /// Arena this program needs.
    pub arena_bytes: u64,
    kv_size_bytes: u64,
}

impl Program {
    /// Cost of one step at the given sizes.
    pub fn step_cost(&self, step: usize, sizes: &Sizes) -> Cost {
        cost::cost(&self.graph, &self.graph.nodes[step], sizes, self.kv_size_bytes)
    }

    /// Cost of all steps at the given sizes.
    pub fn cost(&self, sizes: &Sizes) -> Cost {
        (0..self.graph.nodes.len()).fold(Cost::default(), |sum, at| sum.plus(self.step_cost(at, sizes)))
    }

    /// Bytes of all weights this program reads, once loaded.
    pub fn weights_bytes(&self) -> u64 {
        self.graph.weights.iter().map(Weight::bytes).sum()
    }
}

/// Every byte the plan needs on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights, once loaded.
    pub weights_bytes: u64,
    /// Those of them that stay in their mapped files: memory that the system can take back. On the CPU
    /// these are the matrices that are not quantised.
    pub mapped_weights_bytes: u64,
    /// KV cache of one token.
    pub kv_bytes_per_token: u64,
    /// KV cache in all.
    pub kv_bytes: u64,
    /// Intermediate values of the vision tower and the decoder, which share one arena.
    pub arena_bytes: u64,
    /// Rows of pictures that wait for their prefill.
    pub visual_bytes: u64,
    /// Scratch memory of kernels.
    pub workspace_bytes: u64,
}

impl MemoryUse {
    /// The sum.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_bytes + self.arena_bytes + self.visual_bytes + self.workspace_bytes
    }
}

/// The static plan of one model on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The model.
    pub config: ModelConfig,
    /// The device.
    pub device: Device,
    /// The bounds.
    pub options: PlanOptions,
    /// Type of intermediate values. The residual stream and the logits are always f32.
    pub activation: DType,
    /// Type of cached keys and values.
    pub kv_dtype: DType,
    /// ViT and merger: pictures to visual rows.
    pub vision: Program,
    /// The decoder over chunks of prompts.
    pub prefill: Program,
    /// The decoder over one new token per sequence.
    pub decode: Program,
    /// Every byte.
    pub memory: MemoryUse,
}

impl Plan {
    /// Plans `config` on `device` within `options`.
    ///
    /// # Errors
    /// [`Error::PlanOption`] for bounds out of range, [`Error::Config`] if the sizes do not admit the
    /// quantisation. A plan that does not fit the device's memory is not an error: see [`Plan::fits`].
    pub fn new(config: &ModelConfig, device: &Device, options: &PlanOptions) -> Result<Plan> {
        check(config, options)?;
        let (activation, kv_dtype) = match device.kind {
            DeviceKind::Cpu { .. } => (DType::F32, DType::F32),
            DeviceKind::Cuda { .. } => (options.activation, options.activation),
        };
        let mut vision_graph = Graph::default();
        let x = vit::build(&mut vision_graph, config, activation)?;
        vision_graph.result = Some(merger::build(&mut vision_graph, config, x, activation)?);
        let mut decoder_graph = Graph::default();
        decoder_graph.result = Some(decoder::build(&mut decoder_graph, config, activation)?);
        if options.fuse {
            fuse(&mut vision_graph);
            fuse(&mut decoder_graph);
        }
        let chunk = options.prefill_chunk_tokens.min(options.context_tokens);
        let prefill_bounds =
            Sizes { logit_rows: options.max_seqs, ..Sizes::prefill(chunk, options.context_tokens - chunk) };
        let make = |name, graph, bounds| program(name, graph, bounds, device, kv_dtype, config.quantization);
        let vision = make("vision", vision_graph, Sizes::vision(options.max_patches, 1));
        let prefill = make("prefill", decoder_graph.clone(), prefill_bounds);
        let decode = make("decode", decoder_graph, Sizes::decode(options.max_seqs, options.context_tokens));
        let memory = memory_use(config, device, options, [&vision, &prefill, &decode], activation, kv_dtype);
        Ok(Plan {
            config: config.clone(),
            device: device.clone(),
            options: options.clone(),
            activation,
            kv_dtype,
            vision,
            prefill,
            decode,
            memory,
        })
    }

    /// The three programs in the order in which a request meets them.
    pub fn programs(&self) -> [&Program; 3] {
        [&self.vision, &self.prefill, &self.decode]
    }

    /// Whether the device has the memory.
    pub fn fits(&self) -> bool {
        self.memory.total_bytes() <= self.device.memory_bytes
    }

    /// Pages of the KV cache.
    pub fn kv_pages(&self) -> usize {
        self.options.kv_pool_tokens.div_ceil(KV_PAGE_TOKENS)
    }
}

fn check(config: &ModelConfig, options: &PlanOptions) -> Result<()> {
    let range = |option, found: usize, min: usize, max: usize| {
        if (min..=max).contains(&found) {
            return Ok(());
        }
        Err(Error::PlanOption { option, found: found.to_string(), expected: format!("{min}..={max}") })
    };
    let per_token = config.vision.patches_per_token();
    range("context", options.context_tokens, 1, 1 << 24)?;
    range("max_seqs", options.max_seqs, 1, 1 << 16)?;
    range("prefill_chunk", options.prefill_chunk_tokens, 1, 1 << 20)?;
    range("kv_pool", options.kv_pool_tokens, options.context_tokens, MAX_KV_POOL_TOKENS)?;
    range("max_patches", options.max_patches, per_token, 1 << 24)?;
    range("max_visual_tokens", options.max_visual_tokens, 0, 1 << 24)
}

fn program(
    name: &'static str,
    graph: Graph,
    bounds: Sizes,
    device: &Device,
    kv_dtype: DType,
    quantization: Quantization,
) -> Program {
    let segments = segments(&graph, device);
    let kernels = segments
        .iter()
        .flat_map(|segment| {
            let sizes = match segment.tile_rows {
                Some(tile) => Sizes { patches: bounds.patches.min(tile), ..bounds },
                None => bounds,
            };
            let graph = &graph;
            segment.steps.clone().map(move |at| {
                kernel::choose(graph, &graph.nodes[at], &sizes, device, quantization, name == "decode")
            })
        })
        .collect();
    // The vision tower writes its rows where they wait for the decoder.
    let (placements, arena_bytes) = memory::place(&graph, &segments, &bounds, name == "vision");
    Program {
        name,
        graph,
        bounds,
        segments,
        kernels,
        placements,
        arena_bytes,
        kv_size_bytes: kv_dtype.size_bytes(),
    }
}

/// Cuts the steps into runs. A step joins the run before it if it works row by row over patches and
/// is the only reader of the value just written. On a GPU attention runs over all rows at once.
fn segments(graph: &Graph, device: &Device) -> Vec<Segment> {
    let (tile, attention_tile) = match device.kind {
        DeviceKind::Cpu { .. } => (TILE_PATCHES, Some(TILE_PATCHES)),
        DeviceKind::Cuda { .. } => (cuda::TILE_PATCHES, None),
    };
    let mut out: Vec<Segment> = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let tiled = is_over_patches(graph, node);
        if let Some(run) = out.last_mut()
            && tiled
            && run.tile_rows.is_some()
            && joins(graph, at)
        {
            run.steps.end = at + 1;
            continue;
        }
        let tile_rows = match node.op {
            Op::VisionAttention { .. } => attention_tile,
            _ => tiled.then_some(tile),
        };
        out.push(Segment { steps: at..at + 1, tile_rows });
    }
    out
}

fn is_over_patches(graph: &Graph, node: &Node) -> bool {
    let rows = node.output.map(|v| graph.value(v).shape.rows);
    matches!(rows, Some(Rows::Patches | Rows::MergedPatches(_)))
}

fn joins(graph: &Graph, at: usize) -> bool {
    let node = &graph.nodes[at];
    // Attention reads all rows of its input.
    if matches!(node.op, Op::VisionAttention { .. }) {
        return false;
    }
    let before = graph.nodes[at - 1].output;
    let readers = graph.nodes.iter().flat_map(|n| &n.inputs).filter(|v| Some(**v) == before).count();
    before.is_some() && node.inputs.first() == before.as_ref() && readers == 1
}

fn memory_use(
    config: &ModelConfig,
    device: &Device,
    options: &PlanOptions,
    programs: [&Program; 3],
    activation: DType,
    kv_dtype: DType,
) -> MemoryUse {
    let t = &config.text;
    let kv_bytes_per_token = 2 * (t.num_hidden_layers * t.kv_dim()) as u64 * kv_dtype.size_bytes();
    let pages = options.kv_pool_tokens.div_ceil(KV_PAGE_TOKENS) as u64;
    let mut weights_bytes = programs[0].weights_bytes() + programs[1].weights_bytes();
    let workspace_bytes = match device.kind {
        DeviceKind::Cpu { threads } => {
            let kernels = || programs.iter().flat_map(|p| &p.kernels);
            let shared = kernels().map(|k| k.shared_bytes).max().unwrap_or(0);
            let per_thread = kernels().map(|k| k.thread_bytes).max().unwrap_or(0);
            shared + threads as u64 * per_thread
        }
        DeviceKind::Cuda { multiprocessors } => {
            let graphs = [&programs[0].graph, &programs[1].graph];
            // What the device's layout adds to the weights of the files, whole records, or saves: zero points of 8 bits.
            let on_device = cuda::weights_bytes(graphs, config.quantization);
            weights_bytes = weights_bytes.min(on_device);
            let padding = on_device - weights_bytes;
            padding + Workspace::new(config, options, graphs, multiprocessors).total_bytes
        }
    };
    let is_dense = |w: &&Weight| matches!(w.kind, WeightKind::Matrix { format: WeightFormat::Dense(_), .. });
    let dense = |p: &Program| p.graph.weights.iter().filter(is_dense).map(Weight::bytes).sum::<u64>();
    MemoryUse {
        weights_bytes,
        mapped_weights_bytes: match device.kind {
            DeviceKind::Cpu { .. } => dense(programs[0]) + dense(programs[1]),
            DeviceKind::Cuda { .. } => 0,
        },
        kv_bytes_per_token,
        kv_bytes: pages * KV_PAGE_TOKENS as u64 * kv_bytes_per_token,
        arena_bytes: programs.iter().map(|p| p.arena_bytes).max().unwrap_or(0),
        visual_bytes: (options.max_visual_tokens * t.hidden_size) as u64 * activation.size_bytes(),
        workspace_bytes,
    }
}
