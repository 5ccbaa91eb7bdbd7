//! The engine: a checkpoint, its plan, and an executor that answers requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use qwenvl_graph::kernel::KV_PAGE_TOKENS;
use qwenvl_graph::{DType, Device, ModelConfig, Plan, PlanOptions};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::exec::cpu::{CacheUse, CpuExecutor, Progress};
use crate::exec::{Executor, Peaks, Watch};
use crate::frontend::{Frontend, Prepared, ms};
use crate::generate::{Event, RequestId, Scheduler, Work};
use crate::host;
use crate::request::{Answer, Request, Token};

/// What runs the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The host's processor.
    #[default]
    Cpu,
    /// A CUDA GPU, by its number. Needs a build with the feature `cuda`.
    Cuda(usize),
}

/// Bounds of an engine. What is `None` follows from the others or from the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// What runs the kernels.
    pub target: Target,
    /// Type of intermediate values and of the KV cache on a GPU: BF16 or F16.
    pub activation: DType,
    /// Threads that execute kernels on a CPU; the machine's processors if `None`.
    pub threads: Option<usize>,
    /// Most tokens of one sequence, prompt and answer together; as many as the model takes and the device holds if
    /// `None`, see [`EngineOptions::plan`].
    pub context_tokens: Option<usize>,
    /// Most sequences at once.
    pub max_seqs: usize,
    /// Tokens that the KV cache holds; enough for all sequences if `None`, or, without `context_tokens`, for one of
    /// them or 4,096 tokens of each.
    pub kv_pool_tokens: Option<usize>,
    /// Most prompt tokens in one call of the decoder.
    pub prefill_chunk_tokens: usize,
    /// Largest image or video frame, in pixels after the resize; the checkpoint's `max_pixels` if
    /// `None`, but no more than the context holds.
    pub max_pixels: Option<u64>,
    /// Most visual tokens that wait for their prefill; as many as the context holds if `None`.
    pub max_visual_tokens: Option<usize>,
    /// Whether to run the plan's fusion passes.
    pub fuse: bool,
    /// Directory that keeps repacked weights from one start to the next; none if `None`.
    pub repack_cache: Option<PathBuf>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            target: Target::Cpu,
            activation: DType::BF16,
            threads: None,
            context_tokens: None,
            max_seqs: 1,
            kv_pool_tokens: None,
            prefill_chunk_tokens: 512,
            max_pixels: None,
            max_visual_tokens: None,
            fuse: true,
            repack_cache: None,
        }
    }
}

/// The least context that an engine takes whose options do not say, and the cache's share of each sequence.
const LEAST_CONTEXT_TOKENS: usize = 4096;

impl EngineOptions {
    /// The bounds that one request needs and no more.
    pub fn exactly(frontend: &Frontend, request: &Prepared) -> EngineOptions {
        let patch = frontend.config().vision.patch_size as u64;
        EngineOptions {
            context_tokens: Some(request.context_tokens()),
            max_pixels: Some(request.largest_slice() as u64 * patch * patch),
            max_visual_tokens: Some(request.visual_tokens),
            ..EngineOptions::default()
        }
    }

    /// The plan for a model on a device. Where no context was asked for: with the model's longest, or the half of it
    /// that fits, and so on down to 4,096 tokens; sequences then share a cache of one context, or of 4,096 tokens each.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn plan(&self, config: &ModelConfig, frontend: &Frontend, device: &Device) -> Result<Plan> {
        let mut context = config.text.max_position_embeddings;
        loop {
            let plan = Plan::new(config, device, &self.plan_options(frontend, context))?;
            if self.context_tokens.is_some() || plan.fits() || context <= LEAST_CONTEXT_TOKENS {
                return Ok(plan);
            }
            context = (context / 2).max(LEAST_CONTEXT_TOKENS);
        }
    }

    fn plan_options(&self, frontend: &Frontend, most_context: usize) -> PlanOptions {
        let config = frontend.config();
        let context = self.context_tokens.unwrap_or(most_context);
        let area = (config.vision.pixel_factor() as u64).pow(2);
        let max_pixels = self
            .max_pixels
            .unwrap_or(frontend.max_pixels())
            .min((context as u64).saturating_mul(area))
            .max(area);
        // A sequence has whole pages.
        let pages = |tokens: usize| tokens.div_ceil(KV_PAGE_TOKENS).saturating_mul(KV_PAGE_TOKENS);
        let of_each = |tokens: usize| pages(tokens).saturating_mul(self.max_seqs.max(1));
        let pool = match self.context_tokens {
            Some(_) => of_each(context),
            None => pages(context).max(of_each(LEAST_CONTEXT_TOKENS.min(context))),
        };
        PlanOptions {
            max_seqs: self.max_seqs,
            kv_pool_tokens: self.kv_pool_tokens.unwrap_or(pool),
            prefill_chunk_tokens: self.prefill_chunk_tokens,
            max_visual_tokens: self.max_visual_tokens.unwrap_or(context),
            activation: self.activation,
            fuse: self.fuse,
            ..PlanOptions::new(config, context, max_pixels)
        }
    }
}

/// Answers requests with one model on one device.
///
/// ```
/// use qwenvl::prompt::{Message, Part};
/// use qwenvl::{Engine, EngineOptions, Request};
///
/// # fn main() -> qwenvl::Result<()> {
/// // The small model that is part of the library; `Checkpoint::open(dir)` for a real one.
/// let mut engine = Engine::load(qwenvl::Checkpoint::tiny()?, &EngineOptions::default())?;
/// let question = Message::user(vec![
///     Part::image("tests/data/samples/00_shape1.png"),
///     Part::text("Which shape is purple?"),
/// ]);
/// let mut answer = String::new();
/// for token in engine.generate(&Request::new(vec![question]))? {
///     answer.push_str(&token?.text);
/// }
/// assert_eq!(answer, "The square is purple.");
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    frontend: Arc<Frontend>,
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    load_ms: f64,
    cache: Option<CacheUse>,
}

impl Engine {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Those of [`Checkpoint::validate`], [`Frontend::new`], [`Plan::new`] and [`CpuExecutor::bind`]
    /// or its like.
    pub fn load(checkpoint: Checkpoint, options: &EngineOptions) -> Result<Engine> {
        let frontend = Frontend::new(&checkpoint)?;
        Engine::with_frontend(checkpoint, frontend, options, &mut |_, _| {})
    }

    /// As [`Engine::load`], with a frontend that has already prepared requests, and a callback that is told the bytes of
    /// weights bound so far and in all.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn with_frontend(
        checkpoint: Checkpoint,
        mut frontend: Frontend,
        options: &EngineOptions,
        progress: Progress,
    ) -> Result<Engine> {
        let start = Instant::now();
        checkpoint.validate()?;
        let mut config = checkpoint.config.clone();
        // The files decide, not what config.json says about them.
        config.dtype = checkpoint.dense_dtype("model.embed_tokens.weight");
        let mut cache = None;
        let executor: Box<dyn Executor> = match options.target {
            Target::Cpu => {
                let device = cpu(options.threads)?;
                let plan = options.plan(&config, &frontend, &device)?;
                let directory = options.repack_cache.as_deref();
                let executor = CpuExecutor::bind(plan, Arc::new(checkpoint), directory, progress)?;
                cache = executor.cache().cloned();
                Box::new(executor)
            }
            Target::Cuda(ordinal) => {
                let plan = &|device: &Device| options.plan(&config, &frontend, device);
                cuda(plan, ordinal, checkpoint, progress)?
            }
        };
        frontend.max_prompt_tokens = executor.plan().options.context_tokens;
        let scheduler = Scheduler::new(executor.as_ref(), frontend.eos_token_ids(), frontend.normalize());
        Ok(Engine { frontend: Arc::new(frontend), executor, scheduler, load_ms: ms(start.elapsed()), cache })
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        self.executor.plan()
    }

    /// What makes prompts: other threads may prepare requests with a clone while this one steps.
    pub fn frontend(&self) -> &Arc<Frontend> {
        &self.frontend
    }

    /// What makes prompts, to change what requests may take and name; `None` once others have it as well.
    pub fn frontend_mut(&mut self) -> Option<&mut Frontend> {
        Arc::get_mut(&mut self.frontend)
    }

    /// What became of the repack cache, if one was asked for.
    pub fn repack_cache(&self) -> Option<&CacheUse> {
        self.cache.as_ref()
    }

    /// Milliseconds that binding the weights took.
    pub fn load_ms(&self) -> f64 {
        self.load_ms
    }

    /// Bytes, FLOPs and seconds of everything that has run.
    pub fn work(&self) -> Work {
        self.scheduler.work
    }

    /// Memory bandwidth and arithmetic of the device, measured now.
    pub fn measure(&mut self) -> Peaks {
        self.executor.measure()
    }

    /// Has `watch` shown what every step writes from now on: see [`Executor::watch`].
    pub fn watch(&mut self, watch: Option<Watch>) {
        self.executor.watch(watch);
    }

    /// Starts an answer: an iterator of tokens. Dropping it before the end stops the answer. Requests
    /// that were submitted before run along, but what happens to them meanwhile is not told.
    ///
    /// # Errors
    /// Those of [`Frontend::prepare`], and [`Error::Context`] if the request does not fit.
    pub fn generate(&mut self, request: &Request) -> Result<Generation<'_>> {
        let prepared = self.frontend.prepare(request)?;
        self.generate_prepared(prepared)
    }

    /// As [`Engine::generate`], for a request that was prepared before.
    ///
    /// # Errors
    /// [`Error::Context`] if the request does not fit.
    pub fn generate_prepared(&mut self, prepared: Prepared) -> Result<Generation<'_>> {
        let id = self.submit(prepared)?;
        Ok(Generation { engine: self, id, events: Vec::new(), done: false, answer: None })
    }

    /// The whole answer at once.
    ///
    /// # Errors
    /// Those of [`Engine::generate`] and of the device.
    pub fn answer(&mut self, request: &Request) -> Result<Answer> {
        self.generate(request)?.finish()
    }

    /// Adds a request to those that [`Engine::step`] works on.
    ///
    /// # Errors
    /// [`Error::Context`] or [`Error::Request`] if the plan's bounds can never hold it.
    pub fn submit(&mut self, prepared: Prepared) -> Result<RequestId> {
        self.scheduler.submit(self.executor.as_ref(), prepared)
    }

    /// One step of all requests; appends what happened to `events`.
    ///
    /// # Errors
    /// Those of the device: then all requests that had begun are forgotten, without an event. Errors of
    /// single requests are events.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.scheduler.step(self.executor.as_mut(), events)
    }

    /// Whether every request is answered.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }
}

/// The host's processor with so many threads.
fn cpu(threads: Option<usize>) -> Result<Device> {
    let threads = threads.unwrap_or_else(host::threads);
    if threads == 0 || threads > 1024 {
        return Err(Error::Request {
            field: "threads".into(),
            found: threads.to_string(),
            expected: "1..=1024".into(),
        });
    }
    Ok(Device::cpu(threads, host::available_memory_bytes(), 0.0, 0.0))
}

#[cfg(feature = "cuda")]
fn cuda(
    plan: &dyn Fn(&Device) -> Result<Plan>,
    ordinal: usize,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Result<Box<dyn Executor>> {
    let gpu = crate::exec::cuda::Gpu::open(ordinal)?;
    let plan = plan(&gpu.device()?)?;
    Ok(Box::new(crate::exec::cuda::CudaExecutor::bind(plan, Arc::new(checkpoint), gpu, progress)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda(
    _: &dyn Fn(&Device) -> Result<Plan>,
    ordinal: usize,
    _: Checkpoint,
    _: Progress,
) -> Result<Box<dyn Executor>> {
    Err(Error::Unsupported {
        what: format!("device cuda:{ordinal}"),
        help: "this build has no CUDA executor: build with --features cuda, or use the CPU".into(),
    })
}

/// The tokens of one answer as they come.
pub struct Generation<'e> {
    engine: &'e mut Engine,
    id: RequestId,
    events: Vec<Event>,
    done: bool,
    answer: Option<Answer>,
}

impl Generation<'_> {
    /// Runs to the end and returns the whole answer.
    ///
    /// # Errors
    /// Those of the device, or that of the request.
    pub fn finish(mut self) -> Result<Answer> {
        for token in &mut self {
            token?;
        }
        Ok(self.answer.take().expect("an answer that did not fail is complete"))
    }

    /// The whole answer, once the iterator has ended.
    pub fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    /// The next token. Text that was held back for a stop string comes with a last, repeated one.
    fn next(&mut self) -> Option<Result<Token>> {
        loop {
            if self.events.is_empty() {
                if self.done {
                    return None;
                }
                if let Err(error) = self.engine.step(&mut self.events) {
                    self.done = true;
                    return Some(Err(error));
                }
                continue;
            }
            match self.events.remove(0) {
                Event::Token(id, token) if id == self.id => return Some(Ok(token)),
                Event::Done(id, tail, answer) if id == self.id => {
                    self.done = true;
                    let last = answer.token_ids.last().copied();
                    self.answer = Some(*answer);
                    if let (Some(id), false) = (last, tail.is_empty()) {
                        return Some(Ok(Token { id, text: tail }));
                    }
                }
                Event::Failed(id, error) if id == self.id => {
                    self.done = true;
                    return Some(Err(error));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        // Of no effect on an answer that is complete.
        self.engine.scheduler.abort(self.id);
    }
}
