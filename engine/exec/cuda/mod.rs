//! The CUDA executor: a plan on one GPU.
//!
//! All device memory is taken at bind, as the plan states it. A prompt's chunk is launched step by step; a
//! decode step is one replay of a graph that was captured at bind, for the smallest bucket that holds the
//! batch: everything that changes from token to token is read from device memory. For one or two rows all
//! layers in it are one launch. The only wait inside a token is the one that reads it.

mod bind;
mod gpu;
mod inputs;
mod layers;
mod layout;
mod sampling;
mod self_test;
mod step;

use std::ops::Range;
use std::sync::Arc;

use bind::{Binder, Weights};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
pub use gpu::Gpu;
use gpu::{Block, Staging, is_of_kernel, waits_for_launches};
use inputs::Inputs;
use layers::Layers;
use layout::Layouts;
use qwenvl_graph::cuda::{self, Workspace};
use qwenvl_graph::positions::vision_positions;
use qwenvl_graph::{DType, DeviceKind, Epilogue, Grid, Op, Plan, Program};
use sampling::{Places, Sampling};
pub use self_test::{KernelTest, self_test};
use step::{Call, Steps};

use super::{DecoderCall, Executor, Peaks, Phase, SampleRow, VisionCall, Watch, Written};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::exec::cpu::Progress;
use crate::kernels::SeqRows;
use crate::kernels::cpu::rope::RopeTable;
use crate::kernels::cuda::attention::{Sequence, Tile, TileList, prefill_tile_rows, vision_tile_rows};
use crate::kernels::cuda::sample::{NO_TOKEN, best_len};
use crate::kernels::cuda::{self as cuda_kernels, Half, Kernels};
use crate::sampler::unusable;
use crate::vision::Normalize;

/// No visual row, no slot.
const NO_ROW: u32 = u32::MAX;

/// Runs a plan on a CUDA GPU.
pub struct CudaExecutor {
    plan: Arc<Plan>,
    gpu: Gpu,
    kernels: Kernels,
    staging: Staging,
    inputs: Inputs,
    lists: Lists,
    vision_weights: Weights,
    decoder_weights: Weights,
    addresses: Addresses,
    half: Half,
    multiprocessors: usize,
    /// Whether every step is waited for, without graphs.
    waits: bool,
    /// Decode graphs by bucket.
    graphs: Vec<(usize, Replay)>,
    /// Which normalisation the device's table holds.
    normalize: Option<Normalize>,
    /// Address and rows of the last logits.
    logits: (u64, usize),
    logits_host: Vec<f32>,
    sampling: Sampling,
    watch: Option<Watch>,
    _blocks: Vec<Block>,
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        // Kernels that still run must not lose their code, nor graphs their kernels. Nothing can be done about an error.
        let _ = self.gpu.stream.synchronize();
        self.graphs.clear();
    }
}

/// What is listed for a call, with room for the largest.
struct Lists {
    /// As words.
    slices: Vec<[u32; 8]>,
    sequences: Vec<Sequence>,
    tiles: TileList,
}

impl Lists {
    fn new(plan: &Plan, multiprocessors: usize) -> Lists {
        let (options, text, vision) = (&plan.options, &plan.config.text, &plan.config.vision);
        let slices = options.max_patches / vision.patches_per_token();
        let of_vision = (options.max_patches / cuda::ATTENTION_ROWS + slices) * vision.num_heads;
        let tokens = plan.prefill.bounds.tokens * text.num_attention_heads;
        let of_text = tokens / cuda::ATTENTION_ROWS + options.max_seqs * text.num_attention_heads;
        Lists {
            slices: Vec::with_capacity(slices),
            sequences: Vec::with_capacity(slices.max(options.max_seqs)),
            tiles: TileList::with_capacity(of_vision.max(of_text), multiprocessors),
        }
    }
}

/// A captured decode step.
struct Replay(CudaGraph);

// SAFETY: a graph's handles belong to a context, not to a thread, and it is used by one thread at a time.
unsafe impl Send for Replay {}

/// Where everything lies on the device.
struct Addresses {
    arena: u64,
    visual: u64,
    kv: u64,
    workspace: u64,
    layout: Workspace,
}

impl Addresses {
    /// Start of a part of the workspace.
    fn of(&self, part: impl Fn(&Workspace) -> &Range<u64>) -> u64 {
        self.workspace + part(&self.layout).start
    }

    fn range(&self, part: impl Fn(&Workspace) -> &Range<u64>) -> Range<u64> {
        let range = part(&self.layout);
        self.workspace + range.start..self.workspace + range.end
    }
}

/// How many GPUs the driver has, and the CUDA version it is for.
///
/// # Errors
/// [`Error::Unsupported`] without a driver, [`Error::Cuda`] if it does not answer.
pub fn driver() -> Result<(usize, (u32, u32))> {
    gpu::find_driver("CUDA")?;
    let step = "asking the driver";
    let n = gpu::device_count(step)?;
    let version = cuda_kernels::driver_version()
        .map_err(|e| Error::Cuda { step: step.into(), problem: e.to_string() })?;
    Ok((n, version))
}

/// Whether there is a GPU `ordinal`, as far as can be told without opening it.
///
/// # Errors
/// [`Error::Unsupported`] if this build's kernels do not run on it or need a newer driver, [`Error::Cuda`] if the driver
/// does not answer.
pub fn is_usable(ordinal: usize) -> Result<bool> {
    gpu::is_usable(ordinal)
}

impl CudaExecutor {
    /// Binds a plan for [`Gpu::device`] to a validated checkpoint: takes all memory, uploads and repacks the weights,
    /// captures the decode graphs.
    ///
    /// # Errors
    /// [`Error::Memory`] if the plan does not fit, [`Error::Tensor`] if a tensor cannot be used,
    /// [`Error::Cuda`] with the step at which the driver failed.
    pub fn bind(
        mut plan: Plan,
        checkpoint: Arc<Checkpoint>,
        gpu: Gpu,
        progress: Progress,
    ) -> Result<CudaExecutor> {
        let DeviceKind::Cuda { multiprocessors } = plan.device.kind else {
            return Err(Error::Unsupported {
                what: format!("running a plan for {} on a GPU", plan.device.name),
                help: "plan for device cuda".into(),
            });
        };
        plan_fits(&plan)?;
        let kernels = Kernels::load(&gpu.context).map_err(|e| gpu.kernel_error("loading kernels", e))?;
        let half = match plan.activation {
            DType::F16 => Half::F16,
            _ => Half::BF16,
        };
        let mut staging = Staging::new(&gpu)?;
        let planned_bytes = plan.memory.weights_bytes;
        let graphs = [&plan.vision.graph, &plan.prefill.graph];
        let weights_bytes = cuda::weights_bytes(graphs, plan.config.quantization);
        let mut layout = Workspace::new(&plan.config, &plan.options, graphs, multiprocessors);
        let layouts = layout::layouts(&checkpoint, &mut plan, &mut layout)?;
        plan_fits(&plan)?;

        let weights = gpu.block("weights", weights_bytes + plan.memory.weights_bytes - planned_bytes)?;
        let (total, mut done) = (plan.memory.weights_bytes, 0);
        let mut advance = |bytes: u64| {
            done += bytes;
            progress(done.min(total), total);
        };
        let mut binder = Binder {
            gpu: &gpu,
            kernels: &kernels,
            staging: &mut staging,
            checkpoint: &checkpoint,
            half,
            at: weights.address(),
            end: weights.address() + weights.bytes(),
            advance: &mut advance,
        };
        let vision_weights = binder.bind(&plan.vision.graph, &Layouts::new())?;
        let decoder_weights = binder.bind(&plan.prefill.graph, &layouts)?;

        let arena = gpu.block("the arena", plan.memory.arena_bytes)?;
        let visual = gpu.block("visual rows", plan.memory.visual_bytes)?;
        let kv = gpu.block("the KV cache", plan.memory.kv_bytes)?;
        let workspace = gpu.block("the workspace", layout.total_bytes)?;
        let taken: u64 = [&weights, &arena, &visual, &kv, &workspace].iter().map(|block| block.bytes()).sum();
        assert_eq!(taken, plan.memory.total_bytes(), "the plan states every byte");
        let addresses = Addresses {
            arena: arena.address(),
            visual: visual.address(),
            kv: kv.address(),
            workspace: workspace.address(),
            layout,
        };
        let inputs = Inputs::new(addresses.range(|w| &w.inputs));
        let (vocab, max_seqs) = (plan.config.text.vocab_size, plan.options.max_seqs);
        let best = addresses.range(|w| &w.best);
        assert_eq!(best.end - best.start, 8 * best_len(max_seqs, vocab) as u64, "slices of the sampler");
        let places = Places {
            inputs: addresses.range(|w| &w.sampling),
            scores: addresses.of(|w| &w.scores),
            best: best.start,
            bins: addresses.of(|w| &w.bins),
            arrivals: addresses.of(|w| &w.arrivals),
            picked: addresses.of(|w| &w.tokens),
        };
        let sampling = Sampling::new(&gpu, places, max_seqs, vocab)?;
        let mut executor = CudaExecutor {
            lists: Lists::new(&plan, multiprocessors),
            waits: waits_for_launches(),
            logits_host: vec![0.0; max_seqs * vocab],
            sampling,
            watch: None,
            plan: Arc::new(plan),
            gpu,
            kernels,
            staging,
            inputs,
            vision_weights,
            decoder_weights,
            addresses,
            half,
            multiprocessors,
            graphs: Vec::new(),
            normalize: None,
            logits: (0, 0),
            _blocks: vec![weights, arena, visual, kv, workspace],
        };
        executor.fill_tables()?;
        executor.capture()?;
        Ok(executor)
    }

    /// Cosines and sines, and counters at zero.
    fn fill_tables(&mut self) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let rope = plan.prefill.graph.nodes.iter().find_map(|node| match &node.op {
            Op::Linear { epilogue: Epilogue::RopeWriteKv { rope, .. }, .. } | Op::Rotate(rope) => Some(*rope),
            _ => None,
        });
        let rope = rope.expect("a decoder rotates");
        let context = plan.options.context_tokens as u32;
        let step = "sending tables";
        let mrope = RopeTable::by_position(rope.head_dim / 2, rope.theta, context);
        let at = self.addresses.of(|w| &w.mrope);
        self.staging.upload(&self.gpu, step, at, bytemuck::cast_slice(&mrope))?;
        let sides = cuda::max_side_patches(plan.options.max_patches) as u32;
        let vision = RopeTable::by_position(plan.config.vision.head_dim() / 4, 10_000.0, sides);
        let at = self.addresses.of(|w| &w.vision_rope);
        self.staging.upload(&self.gpu, step, at, bytemuck::cast_slice(&vision))?;
        let layout = &self.addresses.layout;
        for part in [&layout.arrivals, &layout.bins, &layout.layers] {
            let counters = self.addresses.workspace + part.start..self.addresses.workspace + part.end;
            self.gpu.zero(step, counters.start, counters.end - counters.start)?;
        }
        self.gpu.wait(step)
    }

    /// Records the launches of a decode step for each bucket.
    fn capture(&mut self) -> Result<()> {
        if self.waits {
            return Ok(());
        }
        let _alone = cuda_kernels::capturing();
        let most = self.plan.options.max_seqs;
        // The arena has rows for the plan's sequences, no more.
        let smaller = cuda::BUCKETS.into_iter().filter(|&b| b < most);
        for bucket in smaller.chain([most]) {
            let call = self.prepare(Phase::Decode, &DecoderCall::default(), bucket);
            let layers = self.send_layers(&call)?;
            let step = "capturing a decode step";
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            self.gpu.stream.begin_capture(mode).map_err(self.gpu.failed(step))?;
            let steps = Steps { layers: layers.as_ref(), ..self.steps() };
            let launched = steps.run(&self.plan.decode, &self.decoder_weights, &call, &mut |_, _| Ok(()));
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = self.gpu.stream.end_capture(flags).map_err(self.gpu.failed(step));
            launched?;
            let graph =
                graph?.ok_or_else(|| Error::Cuda { step: step.into(), problem: "no graph".into() })?;
            self.gpu.idle();
            // Now, not at the first launch: after bind nothing is allocated.
            graph.upload().map_err(self.gpu.failed(step))?;
            self.graphs.push((bucket, Replay(graph)));
        }
        self.gpu.wait("sending decode graphs")
    }

    /// Tells the device of the layers of a decode call with so few rows that they run in one launch.
    fn send_layers(&mut self, call: &Call) -> Result<Option<Layers>> {
        if call.rows > cuda::DECODE_LAYERS_ROWS {
            return Ok(None);
        }
        // A list for each number of rows, after the counter.
        let place = self.addresses.range(|w| &w.layers);
        let lists = place.start + cuda::DECODE_LAYERS_ALIGN;
        let bytes_each = (place.end - lists) / cuda::DECODE_LAYERS_ROWS as u64;
        let address = lists + (call.rows as u64 - 1) * bytes_each;
        let program = &self.plan.decode;
        let found = self.steps().layers(program, &self.decoder_weights, call, address, place.start)?;
        let Some((layers, bytes)) = found else { return Ok(None) };
        assert!(bytes.len() as u64 <= bytes_each, "{} bytes of steps", bytes.len());
        let step = "sending the list of layers";
        self.staging.upload(&self.gpu, step, address, &bytes)?;
        self.gpu.wait(step)?;
        Ok(Some(layers))
    }

    /// Runs a decode step as the graph `at`. If the driver refuses that, the steps run one at a time, to find which of
    /// them it does not take.
    fn replay(&mut self, at: usize, program: &Program, call: &Call) -> Result<()> {
        let (rows, graph) = &self.graphs[at];
        let last = program.graph.nodes.len() - 1;
        self.gpu.launched(program.name, Some(0));
        self.gpu.launched(program.name, Some(last));
        let Err(error) = graph.0.launch() else { return Ok(()) };
        let step = format!("{} steps 0 to {last}, replayed as a graph for {rows} rows", program.name);
        if is_of_kernel(error) {
            return Err(self.gpu.failed(&step)(error));
        }
        let waits = std::mem::replace(&mut self.waits, true);
        let launched = self.launch(program, call);
        self.waits = waits;
        launched?;
        Err(Error::Cuda { step, problem: format!("{error}; one at a time they all ran") })
    }

    /// Launches every step of a program, and shows what each wrote if somebody watches.
    fn launch(&mut self, program: &Program, call: &Call) -> Result<()> {
        let mut watch = self.watch.take();
        let steps = Steps { shows_norms: watch.is_some(), ..self.steps() };
        let weights = match call.phase {
            Some(_) => &self.decoder_weights,
            None => &self.vision_weights,
        };
        let result = match &mut watch {
            None => steps.run(program, weights, call, &mut |_, _| Ok(())),
            Some(watch) => steps.run(program, weights, call, &mut |round, step| {
                if let Some(mut values) = steps.read_output(round, step)? {
                    watch(Written { program, step, values: &mut values });
                }
                Ok(())
            }),
        };
        self.watch = watch;
        result
    }

    fn steps(&self) -> Steps<'_> {
        Steps {
            gpu: &self.gpu,
            kernels: &self.kernels,
            plan: &self.plan,
            half: self.half,
            addresses: &self.addresses,
            multiprocessors: self.multiprocessors,
            shows_norms: false,
            waits: self.waits,
            layers: None,
        }
    }

    /// Lays out the inputs of a decoder call with room for `rows` tokens: what is missing computes nothing
    /// that is kept. Offsets depend on `rows` and the phase only, for decode calls.
    fn prepare(&mut self, phase: Phase, call: &DecoderCall, rows: usize) -> Call {
        let pages = self.plan.options.context_tokens.div_ceil(qwenvl_graph::kernel::KV_PAGE_TOKENS);
        let text = &self.plan.config.text;
        let (heads, kv_heads) = (text.num_attention_heads, text.num_key_value_heads);
        let decodes = phase == Phase::Decode;
        let (seqs, logit_rows) =
            if decodes { (rows, rows) } else { (call.seqs.len(), call.logit_rows.len()) };
        let inputs = &mut self.inputs;
        inputs.clear();
        let tokens = inputs.padded(call.tokens.iter().copied(), 0, rows);
        let positions = inputs.padded(call.positions.iter().flatten().copied(), 0, 3 * rows);
        let visual_index = inputs.padded(call.visual_index.iter().copied(), NO_ROW, rows);
        let slots = inputs.padded(call.slots.iter().copied(), NO_ROW, rows);
        let described = || {
            call.seqs.iter().enumerate().map(|(i, s)| Sequence {
                first: s.tokens.start as u32,
                rows: s.tokens.len() as u32,
                past: s.past as u32,
                pages: (i * pages) as u32,
            })
        };
        let sequences = inputs.padded(described().flat_map(|s| words_of(&s)), 0, 4 * seqs);
        let page_row = |s: &SeqRows| {
            let owned = &call.page_table[s.pages.clone()];
            owned.iter().copied().chain(std::iter::repeat_n(0, pages - owned.len()))
        };
        let page_table = inputs.padded(call.seqs.iter().flat_map(page_row), 0, pages * seqs);
        let logit_index = inputs.padded(call.logit_rows.iter().copied(), 0, logit_rows);
        let Lists { sequences: listed, tiles: work, .. } = &mut self.lists;
        listed.clear();
        if phase == Phase::Prefill {
            listed.extend(described());
        }
        let group = heads / kv_heads;
        let tile_rows = prefill_tile_rows(listed, kv_heads, group, self.multiprocessors);
        work.list(listed, kv_heads, group, tile_rows);
        work.link(group, self.multiprocessors);
        let tiles = inputs.push(work.tiles.iter().flat_map(words_of_tile));
        Call {
            rows,
            logit_rows,
            phase: Some(phase),
            positions,
            tokens,
            visual_index,
            slots,
            sequences,
            n_sequences: seqs,
            tiles,
            n_tiles: work.tiles.len(),
            tile_rows,
            page_table,
            logit_index,
            ..Call::default()
        }
    }

    /// Sends the table of normalised bytes if it is not the one already there.
    fn send_normalize(&mut self, normalize: &Normalize) -> Result<()> {
        if self.normalize.as_ref() != Some(normalize) {
            let table = normalize.table();
            let at = self.addresses.of(|w| &w.normalize);
            self.staging.upload(&self.gpu, "sending the table of bytes", at, bytemuck::cast_slice(&table))?;
            self.normalize = Some(*normalize);
        }
        Ok(())
    }
}

fn words_of(s: &Sequence) -> [u32; 4] {
    [s.first, s.rows, s.past, s.pages]
}

/// A [`crate::kernels::cuda::norm::Frames`].
fn words_of_frames([a, b]: [u64; 2], first_patch: u32, (h, w): (u32, u32)) -> [u32; 8] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32, first_patch, h, w, 0]
}

fn words_of_tile(t: &Tile) -> [u32; 8] {
    let [first, rows, past, pages] = words_of(&t.sequence);
    [first, rows, past, pages, t.head, t.first_row, t.next, 0]
}

/// Refuses a plan that does not fit, with what would.
pub(super) fn plan_fits(plan: &Plan) -> Result<()> {
    if plan.fits() {
        return Ok(());
    }
    let help = match plan.remedies()?.first() {
        Some(r) => format!("{} would need {} bytes", r.change, r.total_bytes),
        None => "no smaller context or image would fit: use a smaller or quantised model".into(),
    };
    Err(Error::Memory {
        needed_bytes: plan.memory.total_bytes(),
        available_bytes: plan.device.memory_bytes,
        device: plan.device.name.clone(),
        help,
    })
}

impl Executor for CudaExecutor {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn encode(&mut self, call: &VisionCall) -> Result<()> {
        self.send_normalize(call.normalize)?;
        let plan = Arc::clone(&self.plan);
        let v = &plan.config.vision;
        let frames_at = self.addresses.range(|w| &w.frames);
        let step = "sending frames";
        let (mut patches, mut frame_at) = (0usize, frames_at.start);
        let Lists { slices, sequences, tiles: work } = &mut self.lists;
        slices.clear();
        sequences.clear();
        for slice in call.slices {
            let grid = slice.visual.grid;
            let frames = &slice.visual.frames;
            // The last frame stands in for those that the last slice lacks.
            let frame = |j: usize| (slice.t * v.temporal_patch_size + j).min(frames.len() - 1);
            let mut addresses = [0u64; 2];
            for j in 0..2 {
                if j > 0 && frame(j) == frame(j - 1) {
                    addresses[j] = addresses[j - 1];
                    continue;
                }
                let bytes = frames[frame(j)].data();
                addresses[j] = frame_at;
                self.staging.upload(&self.gpu, step, frame_at, bytes)?;
                frame_at += bytes.len() as u64;
            }
            let n = grid.patches_per_slice();
            slices.push(words_of_frames(addresses, patches as u32, (grid.h as u32, grid.w as u32)));
            sequences.push(Sequence { first: patches as u32, rows: n as u32, past: 0, pages: 0 });
            patches += n;
        }
        assert!(frame_at <= frames_at.end, "frames of {} bytes", frame_at - frames_at.start);
        assert!(patches <= plan.options.max_patches, "{patches} patches in one vision call");
        let last_row = call.first_row + patches / v.patches_per_token();
        assert!(last_row <= plan.options.max_visual_tokens, "{last_row} visual rows");
        let tile_rows = vision_tile_rows(sequences, v.num_heads, self.multiprocessors);
        work.list(sequences, v.num_heads, 1, tile_rows);
        let positions = call
            .slices
            .iter()
            .flat_map(|s| vision_positions(Grid { t: 1, ..s.visual.grid }, v.spatial_merge_size));
        let inputs = &mut self.inputs;
        inputs.clear();
        let device_call = Call {
            rows: patches,
            first_visual_row: call.first_row,
            positions: inputs.push(positions.flatten()),
            slices: inputs.push(slices.iter().flatten().copied()),
            n_slices: slices.len(),
            n_tiles: work.tiles.len(),
            tile_rows,
            tiles: inputs.push(work.tiles.iter().flat_map(words_of_tile)),
            ..Call::default()
        };
        self.inputs.send(&self.gpu, &mut self.staging)?;
        self.launch(&plan.vision, &device_call)?;
        // So that its time and its errors are its own.
        self.gpu.wait(plan.vision.name)
    }

    fn forward(&mut self, phase: Phase, call: &DecoderCall) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let program = if phase == Phase::Prefill { &plan.prefill } else { &plan.decode };
        let n = call.tokens.len();
        assert!(
            n <= program.bounds.tokens && call.logit_rows.len() <= program.bounds.logit_rows,
            "{n} tokens"
        );
        assert!([call.positions.len(), call.visual_index.len(), call.slots.len()] == [n; 3]);
        let graph = match phase {
            Phase::Decode if self.watch.is_none() => self.graphs.iter().position(|(bucket, _)| *bucket >= n),
            Phase::Decode | Phase::Prefill => None,
        };
        let rows = graph.map_or(n, |at| self.graphs[at].0);
        let device_call = self.prepare(phase, call, rows);
        self.inputs.send(&self.gpu, &mut self.staging)?;
        match graph {
            Some(at) => self.replay(at, program, &device_call)?,
            None => self.launch(program, &device_call)?,
        }
        let result = program.graph.result.expect("a program has a result");
        let place = program.placements[result.0].expect("logits are in the arena");
        self.logits = (self.addresses.arena + place.offset_bytes, call.logit_rows.len());
        Ok(())
    }

    fn sample(
        &mut self,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()> {
        let (logits, n) = self.logits;
        assert_eq!(rows.len(), n, "rows to sample");
        if n == 0 {
            return Ok(());
        }
        let first = tokens.len();
        let on = (&self.gpu, &self.kernels, &mut self.staging);
        self.sampling.sample(on, logits, rows, tokens)?;
        if tokens[first..].iter().any(|t| matches!(t, Ok(NO_TOKEN))) {
            // What is wrong with them is said by the logits themselves.
            let vocab = self.plan.config.text.vocab_size;
            self.logits()?;
            for (at, token) in tokens[first..].iter_mut().enumerate() {
                if matches!(token, Ok(NO_TOKEN)) {
                    let row = &self.logits_host[at * vocab..][..vocab];
                    *token = Err(unusable(row, self.sampling.position(at)));
                }
            }
        }
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32]> {
        let (address, rows) = self.logits;
        let host = &mut self.logits_host[..rows * self.plan.config.text.vocab_size];
        self.gpu.read("reading logits", address, host)?;
        Ok(host)
    }

    fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    fn measure(&mut self) -> Peaks {
        Peaks {
            read_bytes_per_s: self.plan.device.read_bytes_per_s,
            fma_flops_per_s: self.plan.device.flops_per_s,
        }
    }
}
