//! The CPU executor: a plan, bound to weights and memory, and run step by step.

mod bind;
mod repack_cache;
mod step;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bind::Weights;
use qwenvl_graph::config::{Quantization, VisionConfig};
use qwenvl_graph::kernel::KV_PAGE_TOKENS;
use qwenvl_graph::positions::vision_positions;
use qwenvl_graph::{DeviceKind, Epilogue, Op, Plan, Program, Segment};
pub use repack_cache::CacheUse;
use repack_cache::RepackCache;

use super::{DecoderCall, Executor, Peaks, Phase, SampleRow, VisionCall, Watch, Written};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::cpu::attention::KvPages;
use crate::kernels::cpu::linear::MAX_PARTS;
use crate::kernels::cpu::rope::RopeTable;
use crate::kernels::cpu::rounded::QuantizedRows;
use crate::kernels::cpu::{Aligned, Isa, Pool, peak};
use crate::sampler::Sampler;

/// Told what is being loaded: bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Runs a plan on the host's processor.
pub struct CpuExecutor {
    plan: Arc<Plan>,
    checkpoint: Arc<Checkpoint>,
    vision_weights: Weights,
    decoder_weights: Weights,
    memory: Memory,
    sampler: Sampler,
    /// Where the last call left its logits, in elements of the arena.
    logits: Range<usize>,
    cache: Option<CacheUse>,
    watch: Option<Watch>,
}

/// Everything that steps write.
struct Memory {
    isa: Isa,
    pool: Pool,
    /// Intermediate values, by the plan's offsets.
    arena: Aligned<f32>,
    /// `[max_visual_tokens, hidden]`.
    visual: Aligned<f32>,
    kv: KvPages,
    /// Of each thread.
    scratch: Vec<Aligned<f32>>,
    rounded: [QuantizedRows; MAX_PARTS],
    angles: RopeTable,
    /// Patches of each temporal slice of the vision call.
    slices: Vec<Range<usize>>,
    config: VisionConfig,
}

/// The inputs of the running call.
enum Call<'a> {
    Vision(&'a VisionCall<'a>),
    Decoder(&'a DecoderCall<'a>),
}

impl CpuExecutor {
    /// Binds a plan made for the CPU to a validated checkpoint: repacks quantised weights, takes all
    /// memory. Dense weights stay in their mapping. With a directory `repack_cache`, repacked weights are
    /// mapped from a file in it, which is written if it is not there or not right.
    ///
    /// # Errors
    /// [`Error::Memory`] if the plan does not fit, [`Error::Tensor`] if a tensor cannot be used, and
    /// [`Error::Io`] if threads cannot be started or the cache cannot be written.
    pub fn bind(
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        repack_cache: Option<&Path>,
        progress: Progress,
    ) -> Result<CpuExecutor> {
        let DeviceKind::Cpu { threads } = plan.device.kind else {
            return Err(Error::Unsupported {
                what: format!("running a plan for {} on the CPU", plan.device.name),
                help: "plan for device cpu".into(),
            });
        };
        if !plan.fits() {
            let help = match plan.remedies()?.first() {
                Some(r) => format!("{} would need {} bytes", r.change, r.total_bytes),
                None => "no smaller context or image would fit: use a smaller or quantised model".into(),
            };
            return Err(Error::Memory {
                needed_bytes: plan.memory.total_bytes(),
                available_bytes: plan.device.memory_bytes,
                device: plan.device.name.clone(),
                help,
            });
        }
        let mut pool = Pool::new(threads).map_err(|source| Error::Io {
            action: "start threads for",
            path: plan.device.name.clone().into(),
            source,
        })?;
        let total = plan.memory.weights_bytes;
        let mut done = 0;
        let mut advance = |bytes: u64| {
            done += bytes;
            progress(done.min(total), total);
        };
        let vision_weights = Weights::bind(&plan.vision.graph, &checkpoint, &mut pool, None, &mut advance)?;
        let (decoder_weights, cache) = {
            let graph = &plan.prefill.graph;
            let quantised = plan.config.quantization != Quantization::None;
            let mut cache = match repack_cache.filter(|_| quantised) {
                Some(dir) => Some(RepackCache::open(dir, &checkpoint, &mut pool)?),
                None => None,
            };
            let weights = Weights::bind(graph, &checkpoint, &mut pool, cache.as_mut(), &mut advance)?;
            let used = match cache {
                Some(cache) if cache.is_mapped() => Some(cache.mapped()),
                Some(cache) => {
                    let written = cache.write(&weights.repacked(graph));
                    Some(written.unwrap_or_else(|error| CacheUse::Failed(error.to_string())))
                }
                None => repack_cache.map(|_| CacheUse::NotNeeded),
            };
            (weights, used)
        };

        let mut rounded = <[QuantizedRows; MAX_PARTS]>::default();
        for program in [&plan.prefill, &plan.decode] {
            let m = program.bounds.tokens;
            decoder_weights.reserve_rounded(&program.graph, &checkpoint, m, &mut rounded);
        }

        let text = &plan.config.text;
        let kernels = || plan.programs().into_iter().flat_map(|p| &p.kernels);
        let thread_bytes = kernels().map(|k| k.thread_bytes).max().unwrap_or(0);
        let memory = Memory {
            isa: Isa::detect(),
            arena: zeros(plan.memory.arena_bytes),
            visual: zeros(plan.memory.visual_bytes),
            kv: KvPages::new(plan.kv_pages(), text.num_hidden_layers, heads(&plan)),
            scratch: (0..pool.threads()).map(|_| zeros(thread_bytes)).collect(),
            rounded,
            angles: RopeTable::with_capacity(
                plan.prefill.bounds.tokens.max(plan.options.max_seqs),
                text.head_dim(),
            ),
            slices: Vec::with_capacity(plan.options.max_patches / plan.config.vision.patches_per_token()),
            config: plan.config.vision.clone(),
            pool,
        };
        Ok(CpuExecutor {
            sampler: Sampler::new(text.vocab_size),
            logits: 0..0,
            plan: Arc::new(plan),
            checkpoint,
            vision_weights,
            decoder_weights,
            memory,
            cache,
            watch: None,
        })
    }

    /// Overwrites all memory that no step has written with NaN, for tests.
    pub fn poison(&mut self) {
        self.memory.arena.fill(f32::NAN);
        self.memory.visual.fill(f32::NAN);
        self.memory.kv.fill(f32::NAN);
        self.memory.scratch.iter_mut().for_each(|s| s.fill(f32::NAN));
    }

    /// What became of the repack cache, if one was asked for.
    pub fn cache(&self) -> Option<&CacheUse> {
        self.cache.as_ref()
    }

    /// The instruction set its kernels run on.
    pub fn instruction_set(&self) -> &'static str {
        self.memory.isa.name()
    }
}

fn zeros(bytes: u64) -> Aligned<f32> {
    Aligned::zeroed(bytes as usize / 4)
}

fn heads(plan: &Plan) -> qwenvl_graph::op::Heads {
    let t = &plan.config.text;
    qwenvl_graph::op::Heads {
        n_heads: t.num_attention_heads,
        n_kv_heads: t.num_key_value_heads,
        head_dim: t.head_dim(),
    }
}

impl Executor for CpuExecutor {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn encode(&mut self, call: &VisionCall) -> Result<()> {
        let v = &self.plan.config.vision;
        let memory = &mut self.memory;
        memory.slices.clear();
        let mut patches = 0;
        for slice in call.slices {
            let next = patches + slice.visual.grid.patches_per_slice();
            memory.slices.push(patches..next);
            patches = next;
        }
        assert!(patches <= self.plan.options.max_patches, "{patches} patches in one vision call");
        let last_row = call.first_row + patches / v.patches_per_token();
        assert!(last_row <= self.plan.options.max_visual_tokens, "{last_row} visual rows");
        let positions = call.slices.iter().flat_map(|s| {
            let grid = qwenvl_graph::Grid { t: 1, ..s.visual.grid };
            vision_positions(grid, v.spatial_merge_size)
        });
        memory.angles.fill_vision(v.head_dim(), positions);
        let weights = (&self.vision_weights, self.checkpoint.as_ref());
        run(&self.plan.vision, patches, weights, memory, &Call::Vision(call), &mut self.watch);
        Ok(())
    }

    fn forward(&mut self, phase: Phase, call: &DecoderCall) -> Result<()> {
        let program = match phase {
            Phase::Prefill => &self.plan.prefill,
            Phase::Decode => &self.plan.decode,
        };
        let n = call.tokens.len();
        assert!(
            n <= program.bounds.tokens && call.logit_rows.len() <= program.bounds.logit_rows,
            "{n} tokens"
        );
        assert!([call.positions.len(), call.visual_index.len(), call.slots.len()] == [n; 3]);
        debug_assert!(call.page_table.iter().all(|p| (*p as usize) < self.plan.kv_pages()));
        debug_assert!(call.slots.iter().all(|s| *s as usize / KV_PAGE_TOKENS < self.plan.kv_pages()));
        let memory = &mut self.memory;
        let rope = program.graph.nodes.iter().find_map(|node| match &node.op {
            Op::Linear { epilogue: Epilogue::RopeWriteKv { rope, .. }, .. } | Op::Rotate(rope) => Some(*rope),
            _ => None,
        });
        memory.angles.fill_mrope(&rope.expect("a decoder rotates"), call.positions);
        let weights = (&self.decoder_weights, self.checkpoint.as_ref());
        run(program, 0, weights, memory, &Call::Decoder(call), &mut self.watch);
        let result = program.graph.result.expect("a program has a result");
        let start = program.placements[result.0].expect("logits are in the arena").offset_bytes as usize / 4;
        self.logits = start..start + call.logit_rows.len() * self.plan.config.text.vocab_size;
        Ok(())
    }

    fn sample(
        &mut self,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()> {
        let vocab = self.plan.config.text.vocab_size;
        let logits = &self.memory.arena[self.logits.clone()];
        assert_eq!(rows.len() * vocab, logits.len(), "rows to sample");
        tokens.extend(
            rows.zip(logits.chunks_exact(vocab))
                .map(|(row, logits)| self.sampler.sample(logits, row.history, row.params, row.position)),
        );
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32]> {
        Ok(&self.memory.arena[self.logits.clone()])
    }

    fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    fn measure(&mut self) -> Peaks {
        let budget = Duration::from_millis(60);
        // The weights are what decoding reads; for a model that fits in cache, take other memory.
        let largest = self.decoder_weights.largest_bytes(&self.checkpoint);
        let spare;
        let data = if largest.len() >= 64 << 20 {
            &largest[..largest.len().min(512 << 20)]
        } else {
            spare = vec![1u8; 128 << 20];
            &spare
        };
        let memory = &mut self.memory;
        Peaks {
            read_bytes_per_s: peak::read_bandwidth(memory.isa, &mut memory.pool, data, budget),
            fma_flops_per_s: peak::fma_flops(memory.isa, &mut memory.pool, budget),
        }
    }
}

/// Runs every step, tiled segments tile by tile.
fn run(
    program: &Program,
    patches: usize,
    (weights, checkpoint): (&Weights, &Checkpoint),
    memory: &mut Memory,
    call: &Call,
    watch: &mut Option<Watch>,
) {
    for Segment { steps, tile_rows } in &program.segments {
        let rounds = match tile_rows {
            Some(tile) => patches.div_ceil(*tile),
            None => 1,
        };
        for round in 0..rounds {
            let rows = match tile_rows {
                Some(tile) => round * tile..((round + 1) * tile).min(patches),
                None => 0..patches,
            };
            for at in steps.clone() {
                step::run(program, at, rows.clone(), weights, checkpoint, memory, call);
                if let Some(watch) = watch
                    && let Some(values) = step::written(program, at, &rows, memory, call)
                {
                    watch(Written { program, step: at, values });
                }
            }
        }
    }
}
