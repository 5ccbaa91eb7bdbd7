//! The CUDA executor beside the CPU's: on a GPU, or on the simulated one of `cudasim env`.
#![cfg(feature = "cuda")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::samples::{Sample, samples};
use common::{path, tiny_gptq};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use qwenvl::exec::compare::compare;
use qwenvl::exec::{DecoderCall, Executor, Phase, SampleRow};
use qwenvl::graph::{DType, Plan};
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cuda::capturing;
use qwenvl::sampler::{Sampler, SamplingParams, TokenSet};
use qwenvl::{Checkpoint, Engine, EngineOptions, Event, Frontend, Result, Target};
use random_checkpoint::{Format, Size};
use serde_json::Value;
use tempfile::TempDir;

fn options(target: Target) -> EngineOptions {
    EngineOptions {
        target,
        context_tokens: Some(256),
        threads: Some(2),
        max_seqs: 4,
        ..EngineOptions::default()
    }
}

/// Runs all samples together, three tokens each.
fn run(engine: &mut Engine, samples: &[Sample]) -> Result<()> {
    for sample in samples {
        let mut prepared = engine.frontend().prepare(&sample.request)?;
        prepared.max_tokens = Some(3);
        engine.submit(prepared)?;
    }
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events)?;
    }
    assert!(events.iter().all(|e| !matches!(e, Event::Failed(..))));
    Ok(())
}

/// Compares every step of a checkpoint on both executors.
fn check(name: &str, open: &dyn Fn() -> Checkpoint, activation: DType, fuse: bool, samples: &[Sample]) {
    let load = |target| {
        // Chunks that cut prompts, or do not.
        let prefill_chunk_tokens = if activation == DType::BF16 { 512 } else { 29 };
        let options = EngineOptions { activation, fuse, prefill_chunk_tokens, ..options(target) };
        Engine::load(open(), &options).unwrap()
    };
    let (mut cpu, mut device) = (load(Target::Cpu), load(Target::Cuda(0)));
    let differences = compare(&mut cpu, &mut device, &mut |e| run(e, samples)).unwrap();
    let mut most = BTreeMap::<(&str, &str), f64>::new();
    for d in &differences {
        let most = most.entry((d.op, d.kernel)).or_default();
        *most = most.max(d.worst);
    }
    println!("{name} {activation} {}: {most:.3?}", if fuse { "fused" } else { "plain" });
    for d in &differences {
        assert!(d.worst <= 1.0, "{name} {activation}, fused {fuse}: {d:?}");
    }
}

#[test]
fn every_step_gives_what_the_cpu_gives_within_the_roundings_of_its_type() {
    let (int4, int8) = (tiny_gptq(4), tiny_gptq(8));
    type Open<'a> = (&'a str, &'a dyn Fn() -> Checkpoint);
    let checkpoints: [Open; 4] = [
        ("bf16", &|| Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap()),
        ("awq", &|| Checkpoint::tiny().unwrap()),
        ("gptq int4", &|| Checkpoint::open(int4.path()).unwrap()),
        ("gptq int8", &|| Checkpoint::open(int8.path()).unwrap()),
    ];
    let samples: Vec<_> = samples().into_iter().take(5).collect();
    for (name, open) in checkpoints {
        check(name, open, DType::BF16, true, &samples);
        check(name, open, DType::F16, true, &samples);
    }
    check("awq", checkpoints[1].1, DType::BF16, false, &samples);
}

/// A checkpoint of the tiny model's shape with random weights, edited.
fn random(format: Format, edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = random_checkpoint::config_json(Size::Tiny, format);
    edit(&mut config);
    random_checkpoint::write(dir.path(), &config, &random_checkpoint::Options::default(), &mut |_| {})
        .unwrap();
    std::fs::copy(path("engine/tiny_model/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    dir
}

#[test]
fn a_tied_table_is_on_the_device_once() {
    let samples: Vec<_> = samples().into_iter().take(2).collect();
    let [tied, untied] = [true, false].map(|tied| {
        random(Format::Bf16, |c| {
            c["tie_word_embeddings"] = tied.into();
            // A last strip that is not whole.
            c["vocab_size"] = 1288.into();
        })
    });
    let open = || Checkpoint::open(tied.path()).unwrap();
    check("tied", &open, DType::BF16, true, &samples);
    // The table is not rounded to another type: the head does that as it runs.
    check("tied", &open, DType::F16, true, &samples);
    let bytes = |dir: &TempDir, activation| {
        let options = EngineOptions { activation, ..options(Target::Cuda(0)) };
        let engine = Engine::load(Checkpoint::open(dir.path()).unwrap(), &options).unwrap();
        engine.plan().memory.total_bytes()
    };
    let table = 2 * 1288 * 256;
    for activation in [DType::BF16, DType::F16] {
        assert_eq!(bytes(&untied, activation) - bytes(&tied, activation), table, "{activation}");
    }
    // As the published 2B in AWQ.
    let awq = random(Format::Awq, |c| c["tie_word_embeddings"] = true.into());
    check("tied AWQ", &|| Checkpoint::open(awq.path()).unwrap(), DType::BF16, true, &samples);
}

#[test]
fn groups_of_every_size_give_what_the_cpu_gives() {
    let samples: Vec<_> = samples().into_iter().take(2).collect();
    for (format, group) in [
        (Format::Awq, 32),
        (Format::Awq, 64),
        (Format::Awq, 256),
        (Format::Awq, -1),
        (Format::GptqInt4, 32),
        (Format::GptqInt4, -1),
        (Format::GptqInt8, 64),
        (Format::GptqInt8, -1),
    ] {
        let dir = random(format, |c| c["quantization_config"]["group_size"] = group.into());
        let open = || Checkpoint::open(dir.path()).unwrap();
        check(&format!("{format:?}, groups of {group}"), &open, DType::BF16, true, &samples);
    }
    // No multiple of 32: groups get room of their own. The last has fewer inputs.
    let dir = random(Format::GptqInt4, |c| {
        c["quantization_config"]["group_size"] = 40.into();
        c["intermediate_size"] = 672.into();
    });
    check("groups of 40", &|| Checkpoint::open(dir.path()).unwrap(), DType::F16, true, &samples);
}

/// A CUDA executor for the tiny model.
fn executor(max_seqs: usize) -> Box<dyn Executor> {
    let checkpoint = Checkpoint::tiny().unwrap();
    let frontend = Frontend::new(&checkpoint).unwrap();
    let options = EngineOptions { max_seqs, ..options(Target::Cuda(0)) };
    let gpu = qwenvl::exec::cuda::Gpu::open(0).unwrap();
    let plan =
        Plan::new(&checkpoint.config, &gpu.device().unwrap(), &options.plan_options(&frontend)).unwrap();
    Box::new(qwenvl::exec::cuda::CudaExecutor::bind(plan, checkpoint.into(), gpu, &mut |_, _| {}).unwrap())
}

#[test]
fn the_device_picks_from_its_logits_what_the_host_would() {
    let mut executor = executor(5);
    let vocab = executor.plan().config.text.vocab_size;
    let none = SamplingParams::default();
    let drawn = SamplingParams { do_sample: true, temperature: 0.8, top_k: 0, ..none };
    let rows = [
        none,
        SamplingParams { repetition_penalty: 1.7, ..none },
        drawn,
        SamplingParams { top_k: 40, top_p: 0.9, repetition_penalty: 1.2, ..drawn },
        SamplingParams { temperature: f32::NAN, ..drawn },
    ];
    // Five sequences of one token, each in a page of its own.
    let tokens = [7u32, 300, 301, 302, 303];
    let positions = [[0u32; 3]; 5];
    let seqs: Vec<SeqRows> = (0..5).map(|i| SeqRows { tokens: i..i + 1, past: 0, pages: i..i + 1 }).collect();
    let call = DecoderCall {
        tokens: &tokens,
        positions: &positions,
        visual_index: &[u32::MAX; 5],
        slots: &[0, 64, 128, 192, 256],
        seqs: &seqs,
        page_table: &[0, 1, 2, 3, 4],
        logit_rows: &[0, 1, 2, 3, 4],
    };
    let mut sampler = Sampler::new(vocab);
    for phase in [Phase::Prefill, Phase::Decode] {
        for seed in 0..40 {
            // As often without penalties: then histories stay at home.
            let params: Vec<SamplingParams> = rows
                .iter()
                .map(|p| {
                    let penalty = if seed % 2 == 0 { p.repetition_penalty } else { 1.0 };
                    SamplingParams { seed, repetition_penalty: penalty, ..*p }
                })
                .collect();
            executor.forward(phase, &call).unwrap();
            let logits = executor.logits().unwrap().to_vec();
            let mut history = TokenSet::new(vocab);
            history.extend(&[1, 2, 3, 1279]);
            // What the penalty of the second row is about.
            let best = (0..vocab as u32)
                .max_by(|a, b| logits[vocab + *a as usize].total_cmp(&logits[vocab + *b as usize]));
            history.insert(best.unwrap());
            let rows =
                || params.iter().map(|params| SampleRow { params, history: &history, position: 9 + seed });
            let mut found = Vec::new();
            executor.sample(&mut rows().collect::<Vec<_>>().into_iter(), &mut found).unwrap();
            assert_eq!(found.len(), 5);
            for (at, (row, found)) in rows().zip(found).enumerate() {
                let expected =
                    sampler.sample(&logits[at * vocab..][..vocab], row.history, row.params, row.position);
                match (found, expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found, expected, "row {at}, seed {seed}"),
                    (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
                    (found, expected) => panic!("row {at}: {found:?}, expected {expected:?}"),
                }
            }
        }
    }
}

#[test]
fn engines_share_a_device_and_a_process() {
    let load = |checkpoint: Checkpoint| Engine::load(checkpoint, &options(Target::Cuda(0))).unwrap();
    let bf16 = || Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap();
    let samples: Vec<_> = samples().into_iter().take(3).collect();
    let texts = |engines: &mut [Engine; 2]| -> Vec<Vec<String>> {
        let mut ids = Vec::new();
        for sample in &samples {
            for (i, engine) in engines.iter_mut().enumerate() {
                let prepared = engine.frontend().prepare(&sample.request).unwrap();
                ids.push((i, engine.submit(prepared).unwrap()));
            }
        }
        // A step of each in turn.
        let mut events = [Vec::new(), Vec::new()];
        while engines.iter().any(|e| !e.is_idle()) {
            for (engine, events) in engines.iter_mut().zip(&mut events) {
                engine.step(events).unwrap();
            }
        }
        let text = |e: &Event| match e {
            Event::Done(_, _, answer) => Some(answer.text.clone()),
            _ => None,
        };
        events.map(|e| e.iter().filter_map(text).collect()).into()
    };
    let together = texts(&mut [load(Checkpoint::tiny().unwrap()), load(bf16())]);
    let mut first = load(Checkpoint::tiny().unwrap());
    let mut second = std::thread::spawn(move || load(bf16())).join().unwrap();
    for (engine, texts) in [&mut first, &mut second].into_iter().zip(&together) {
        let mut alone: Vec<String> =
            samples.iter().map(|s| engine.answer(&s.request).unwrap().text).collect();
        let mut texts = texts.clone();
        // They end in the order of their lengths.
        alone.sort();
        texts.sort();
        assert_eq!(alone, texts);
    }
}

#[test]
fn an_engine_that_goes_leaves_the_captures_of_others_alone() {
    let engine = Engine::load(Checkpoint::tiny().unwrap(), &options(Target::Cuda(0))).unwrap();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: nothing runs on the stream. With tracking a new stream waits for all others.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let alone = capturing();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let going = std::thread::spawn(move || drop(engine));
    std::thread::sleep(Duration::from_millis(300));
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    assert!(stream.end_capture(flags).is_ok());
    drop(alone);
    going.join().unwrap();
}
