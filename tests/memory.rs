//! Memory: none is taken per token, and what the plan states is what is used.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::harness::{Harness, Input};
use common::samples::samples;
use common::{json, path};
use qwenvl::exec::{DecoderCall, Executor, Peaks, Phase, SampleRow, VisionCall, Watch};
use qwenvl::graph::{Device, Plan};
use qwenvl::{Checkpoint, Engine, EngineOptions, Event, Frontend, Request, Result};
use random_checkpoint::{Format, Size};
use serde_json::Value;

/// The system's allocator, counting the calls that take memory, of all threads.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests count and measure one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn decoding_takes_no_memory_but_for_the_text_of_each_token() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let story = samples().into_iter().find(|s| s.id == "12_text").unwrap().request;
    let drawn = Request {
        temperature: Some(0.2),
        top_k: Some(40),
        top_p: Some(0.95),
        repetition_penalty: Some(1.01),
        seed: Some(1),
        stop: vec!["|never|".into()],
        ..story.clone()
    };
    let bf16 = || Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap();
    for (checkpoint, requests) in [
        (Checkpoint::tiny().unwrap(), vec![&story]),
        (bf16(), vec![&story]),
        (Checkpoint::tiny().unwrap(), vec![&story, &drawn, &story]),
    ] {
        let options = EngineOptions {
            target: common::target(),
            context_tokens: Some(256),
            threads: Some(2),
            max_seqs: requests.len(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::load(checkpoint, &options).unwrap();
        for request in &requests {
            let prepared = engine.frontend().prepare(request).unwrap();
            engine.submit(prepared).unwrap();
        }
        let mut events = Vec::with_capacity(2 * requests.len());
        for token in 0..40 {
            let before = TAKEN.load(Ordering::Relaxed);
            engine.step(&mut events).unwrap();
            let taken = TAKEN.load(Ordering::Relaxed) - before;
            let mut texts = 0;
            for event in events.drain(..) {
                let Event::Token(_, token) = event else { panic!("{event:?}") };
                texts += usize::from(!token.text.is_empty());
            }
            if (10..30).contains(&token) {
                assert_eq!(taken, texts, "token {token} of {} at once", requests.len());
            }
        }
    }
}

/// An executor that notes what each call took.
struct Counted {
    executor: Box<dyn Executor>,
    calls: Arc<Mutex<Vec<(&'static str, usize)>>>,
}

impl Counted {
    fn count<T>(&mut self, name: &'static str, call: impl FnOnce(&mut dyn Executor) -> T) -> T {
        let before = TAKEN.load(Ordering::Relaxed);
        let result = call(self.executor.as_mut());
        let taken = TAKEN.load(Ordering::Relaxed) - before;
        self.calls.lock().unwrap().push((name, taken));
        result
    }
}

impl Executor for Counted {
    fn plan(&self) -> &Plan {
        self.executor.plan()
    }

    fn encode(&mut self, call: &VisionCall) -> Result<()> {
        self.count("encode", |executor| executor.encode(call))
    }

    fn forward(&mut self, phase: Phase, call: &DecoderCall) -> Result<()> {
        let name = if phase == Phase::Prefill { "prefill" } else { "decode" };
        self.count(name, |executor| executor.forward(phase, call))
    }

    fn sample(
        &mut self,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()> {
        self.executor.sample(rows, tokens)
    }

    fn logits(&mut self) -> Result<&[f32]> {
        self.executor.logits()
    }

    fn watch(&mut self, watch: Option<Watch>) {
        self.executor.watch(watch);
    }

    fn measure(&mut self) -> Peaks {
        self.executor.measure()
    }
}

#[test]
fn an_executor_takes_no_memory_after_it_is_bound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let samples: Vec<_> = samples().into_iter().take(4).collect();
    let bf16 = || Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap();
    // The first finds the functions of the driver, once in a process, as they are first called.
    for (checkpoint, counts) in
        [(Checkpoint::tiny().unwrap(), false), (Checkpoint::tiny().unwrap(), true), (bf16(), true)]
    {
        let checkpoint = Arc::new(checkpoint);
        let frontend = Frontend::new(&checkpoint).unwrap();
        let options = EngineOptions {
            context_tokens: Some(256),
            max_seqs: 4,
            max_visual_tokens: Some(512),
            ..EngineOptions::default()
        };
        let executor = common::harness::executor(checkpoint, &frontend, &options, |_| {});
        let calls = Arc::new(Mutex::new(Vec::new()));
        let counted = Counted { executor, calls: Arc::clone(&calls) };
        let mut harness = Harness::new(Box::new(counted), frontend.normalize());
        let prompts: Vec<_> = samples.iter().map(|s| frontend.prepare(&s.request).unwrap()).collect();
        let inputs: Vec<_> = prompts.iter().map(|prompt| Input { prompt, forced: &[7, 8, 9] }).collect();
        // The first time too, and calls of other sizes.
        for chunk in [512, 61] {
            harness.logits(&inputs, chunk);
        }
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        for name in ["encode", "prefill", "decode"] {
            assert!(calls.iter().any(|(call, _)| *call == name), "{name} runs");
        }
        assert!(!counts || calls.iter().all(|(_, taken)| *taken == 0), "{calls:?}");
    }
}

/// Writes a checkpoint with the widths of the 2B AWQ model but few layers and the words of the tiny
/// model, whose tokenizer is small.
fn narrow_2b_awq(dir: &Path) {
    let mut config = random_checkpoint::config_json(Size::B2, Format::Awq);
    let tiny: Value = json("engine/tiny_model/config.json");
    for (key, value) in tiny.as_object().unwrap() {
        if key.ends_with("token_id") || key == "vocab_size" {
            config[key] = value.clone();
        }
    }
    config["num_hidden_layers"] = 2.into();
    config["vision_config"]["depth"] = 2.into();
    random_checkpoint::write(dir, &config, &random_checkpoint::Options::default(), &mut |_| {}).unwrap();
    std::fs::copy(path("engine/tiny_model/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "only Linux says what is resident")]
fn a_run_holds_the_memory_that_its_plan_states() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    narrow_2b_awq(dir.path());
    // A picture of 16 x 16 tokens, and text.
    let picture = dir.path().join("picture.png");
    image::RgbImage::from_fn(448, 448, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]))
        .save(&picture)
        .unwrap();
    let answer = run(&[
        "--max-tokens=16".as_ref(),
        "--model".as_ref(),
        dir.path(),
        "--image".as_ref(),
        &picture,
        "a ".repeat(1770).as_ref(),
    ]);
    assert_eq!(answer["usage"]["prompt_tokens"], 2048);
    let memory = &answer["memory"];
    let bytes = |key: &str| memory[key].as_f64().unwrap();
    let (planned, mapped) = (bytes("plan_total_bytes"), bytes("plan_mapped_weights_bytes"));
    let parts = ["weights", "kv", "arena", "visual", "workspace"].map(|p| bytes(&format!("plan_{p}_bytes")));
    assert_eq!(parts.iter().sum::<f64>(), planned);
    // Pages of the program itself count as resident. With the embedded model there are no others.
    let program = run(&["Who are you?".as_ref()])["memory"]["resident_file_bytes"].as_f64().unwrap();
    for (what, planned, found, beside) in [
        ("in all", planned, bytes("resident_bytes"), program),
        ("at most", planned, bytes("resident_peak_bytes"), program),
        ("of its own", planned - mapped, bytes("resident_anonymous_bytes"), 0.0),
        ("of mapped files", mapped, bytes("resident_file_bytes"), program),
    ] {
        println!("{what}: planned {planned}, found {found}, of the program {beside}");
        assert!(
            found >= 0.95 * planned && found <= 1.05 * planned + beside,
            "resident {what}: planned {planned}, found {found}, of the program {beside}\n{memory:#}"
        );
    }
}

/// What `qwenvl run --json` prints.
fn run(args: &[&Path]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_qwenvl"))
        .args(["run", "--json", "--device=cpu", "--temperature=0", "--threads=2"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_engine_whose_context_is_not_said_has_the_longest_that_fits() {
    let checkpoint = Checkpoint::tiny().unwrap();
    let frontend = Frontend::new(&checkpoint).unwrap();
    let device = |memory_bytes| Device::cpu(1, memory_bytes, 0.0, 0.0);
    let plan = |options: &EngineOptions, bytes: u64| {
        let plan = options.plan(&checkpoint.config, &frontend, &device(bytes)).unwrap();
        (plan.options.context_tokens, plan.options.kv_pool_tokens, plan.memory.total_bytes())
    };
    let one = EngineOptions::default();
    let (longest, pool, bytes) = plan(&one, u64::MAX);
    assert_eq!((longest, pool), (checkpoint.config.text.max_position_embeddings, longest));
    assert_eq!(plan(&one, bytes).0, longest);
    let (shorter, _, fewer) = plan(&one, bytes - 1);
    assert!(shorter == longest / 2 && fewer < bytes);
    // A plan that does not fit says so itself.
    assert_eq!(plan(&one, 0).0, 4096);
    let many = EngineOptions { max_seqs: 20, ..one };
    assert_eq!(plan(&many, u64::MAX).1, 20 * 4096);
    let said = EngineOptions { context_tokens: Some(100), ..many };
    assert_eq!(plan(&said, u64::MAX).1, 20 * 128);
}
