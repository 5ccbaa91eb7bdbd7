//! Sequences on an executor, directly, for their logits: any number together, prompts in chunks of
//! any size, answers forced. What the scheduler does, without its choices.

use std::sync::Arc;

use qwenvl::exec::cpu::CpuExecutor;
use qwenvl::exec::{DecoderCall, Executor, Phase, Slice, VisionCall};
use qwenvl::graph::{Device, ModelConfig};
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cpu::embed::NO_VISUAL_ROW;
use qwenvl::kv_cache::{PageAllocator, PageTable};
use qwenvl::vision::Normalize;
use qwenvl::{Checkpoint, EngineOptions, Frontend, Prepared};

/// A prompt and the tokens that follow it, whatever the model would have said.
pub struct Input<'a> {
    pub prompt: &'a Prepared,
    pub forced: &'a [u32],
}

/// An executor and the pages of its cache.
pub struct Harness {
    executor: Box<dyn Executor>,
    pages: PageAllocator,
    normalize: Normalize,
}

/// The executor that tests are for, on a device with all the memory in the world. `edit` may change the model:
/// fewer layers, for instance, to see where two executors part. That of the CPU has its memory poisoned, so that what it
/// reads before writing shows.
pub fn executor(
    checkpoint: Arc<Checkpoint>,
    frontend: &Frontend,
    options: &EngineOptions,
    edit: impl FnOnce(&mut ModelConfig),
) -> Box<dyn Executor> {
    let mut config = checkpoint.config.clone();
    config.dtype = checkpoint.dense_dtype("model.embed_tokens.weight");
    edit(&mut config);
    let plan = |device: Device| {
        let device = Device { memory_bytes: u64::MAX, ..device };
        options.plan(&config, frontend, &device).unwrap()
    };
    #[cfg(feature = "cuda")]
    if super::target() != qwenvl::Target::Cpu {
        let gpu = qwenvl::exec::cuda::Gpu::open(0).unwrap();
        let plan = plan(gpu.device().unwrap());
        let bound = qwenvl::exec::cuda::CudaExecutor::bind(plan, checkpoint, gpu, &mut |_, _| {});
        return Box::new(bound.unwrap());
    }
    let plan = plan(Device::cpu(2, 0, 0.0, 0.0));
    let mut executor = CpuExecutor::bind(plan, checkpoint, None, &mut |_, _| {}).unwrap();
    executor.poison();
    Box::new(executor)
}

impl Harness {
    pub fn new(executor: Box<dyn Executor>, normalize: Normalize) -> Harness {
        let pages = PageAllocator::new(executor.plan().kv_pages());
        Harness { executor, pages, normalize }
    }

    /// Runs all inputs together, at most `chunk` prompt tokens in a call, or as many as
    /// the plan allows. For each input, the logits
    /// after its prompt and after each forced token.
    pub fn logits(&mut self, inputs: &[Input], chunk: usize) -> Vec<Vec<Vec<f32>>> {
        let mut running: Vec<Running> =
            inputs.iter().map(|input| Running::new(input, &mut self.pages)).collect();
        self.encode(&mut running);
        while self.prefill(&mut running, chunk) {}
        while self.decode(&mut running) {}
        running
            .into_iter()
            .map(|r| {
                self.pages.release(r.pages);
                r.logits
            })
            .collect()
    }

    /// As many slices at a time as the plan allows, the rows of one input after those of the other.
    fn encode(&mut self, running: &mut [Running]) {
        let plan = self.executor.plan();
        let (most, per_token) = (plan.options.max_patches, plan.config.vision.patches_per_token());
        let mut row = 0;
        for r in running.iter_mut() {
            r.next_row = row;
            let visuals = &r.input.prompt.visuals;
            let all: Vec<Slice> = visuals
                .iter()
                .flat_map(|visual| (0..visual.grid.t).map(move |t| Slice { visual, t }))
                .collect();
            let patches = |slices: &[Slice]| -> usize {
                slices.iter().map(|s| s.visual.grid.patches_per_slice()).sum()
            };
            let mut rest = all.as_slice();
            while !rest.is_empty() {
                let n = (1..=rest.len()).rev().find(|&n| patches(&rest[..n]) <= most).expect("a slice fits");
                let (slices, later) = rest.split_at(n);
                self.executor
                    .encode(&VisionCall { slices, normalize: &self.normalize, first_row: row })
                    .unwrap();
                (row, rest) = (row + patches(slices) / per_token, later);
            }
        }
    }

    /// One call; whether there was something to do.
    fn prefill(&mut self, running: &mut [Running], chunk: usize) -> bool {
        let plan = self.executor.plan();
        let (config, chunk) = (&plan.config, chunk.min(plan.prefill.bounds.tokens));
        let placeholders = [config.image_token_id, config.video_token_id];
        let mut call = Call::default();
        for (owner, r) in running.iter_mut().enumerate() {
            let prompt = r.input.prompt;
            let n = (prompt.tokens.len() - r.cached.min(prompt.tokens.len())).min(chunk - call.tokens.len());
            if n == 0 {
                continue;
            }
            let past = r.cached;
            for at in past..past + n {
                let token = prompt.tokens[at];
                let mut visual = NO_VISUAL_ROW;
                if placeholders.contains(&token) {
                    visual = r.next_row as u32;
                    r.next_row += 1;
                }
                call.push(token, prompt.positions[at], visual, r.pages.slot(at));
            }
            r.cached += n;
            call.end(owner, n, past, &r.pages, r.cached == prompt.tokens.len());
        }
        self.run(Phase::Prefill, call, running)
    }

    /// One call; whether there was something to do.
    fn decode(&mut self, running: &mut [Running]) -> bool {
        let mut call = Call::default();
        for (owner, r) in running.iter_mut().enumerate() {
            let (past, prompt) = (r.cached, r.input.prompt);
            let Some(token) = r.input.forced.get(past - prompt.tokens.len()) else { continue };
            let position = u32::try_from(past as i64 + prompt.delta).expect("a position");
            call.push(*token, [position; 3], NO_VISUAL_ROW, r.pages.slot(past));
            r.cached += 1;
            call.end(owner, 1, past, &r.pages, true);
        }
        self.run(Phase::Decode, call, running)
    }

    fn run(&mut self, phase: Phase, call: Call, running: &mut [Running]) -> bool {
        if call.tokens.is_empty() {
            return false;
        }
        let vocab = self.executor.plan().config.text.vocab_size;
        let decoder = DecoderCall {
            tokens: &call.tokens,
            positions: &call.positions,
            visual_index: &call.visual_index,
            slots: &call.slots,
            seqs: &call.seqs,
            page_table: &call.page_table,
            logit_rows: &call.logit_rows,
        };
        self.executor.forward(phase, &decoder).unwrap();
        let logits = self.executor.logits().unwrap();
        assert_eq!(logits.len(), call.owners.len() * vocab);
        for (row, owner) in logits.chunks_exact(vocab).zip(call.owners) {
            running[owner].logits.push(row.to_vec());
        }
        true
    }
}

struct Running<'a> {
    input: &'a Input<'a>,
    pages: PageTable,
    cached: usize,
    next_row: usize,
    logits: Vec<Vec<f32>>,
}

impl<'a> Running<'a> {
    fn new(input: &'a Input<'a>, pages: &mut PageAllocator) -> Running<'a> {
        let tokens = input.prompt.tokens.len() + input.forced.len();
        let pages = pages.allocate(tokens).expect("the cache holds all inputs");
        Running { input, pages, cached: 0, next_row: 0, logits: Vec::new() }
    }
}

/// The slices of a call.
#[derive(Default)]
struct Call {
    tokens: Vec<u32>,
    positions: Vec<[u32; 3]>,
    visual_index: Vec<u32>,
    slots: Vec<u32>,
    seqs: Vec<SeqRows>,
    page_table: Vec<u32>,
    logit_rows: Vec<u32>,
    /// Which input each row of logits belongs to.
    owners: Vec<usize>,
}

impl Call {
    fn push(&mut self, token: u32, position: [u32; 3], visual: u32, slot: u32) {
        self.tokens.push(token);
        self.positions.push(position);
        self.visual_index.push(visual);
        self.slots.push(slot);
    }

    /// Ends the rows of a sequence, the last `n` of the call.
    fn end(&mut self, owner: usize, n: usize, past: usize, pages: &PageTable, wants_logits: bool) {
        let first_page = self.page_table.len();
        self.page_table.extend_from_slice(pages.pages());
        let tokens = self.tokens.len() - n..self.tokens.len();
        if wants_logits {
            self.logit_rows.push(tokens.end as u32 - 1);
            self.owners.push(owner);
        }
        self.seqs.push(SeqRows { tokens, past, pages: first_page..self.page_table.len() });
    }
}
