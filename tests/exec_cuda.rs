//! The CUDA executor beside the CPU's: on a GPU, or on the simulated one of `cudasim env`.
#![cfg(feature = "cuda")]

mod common;

use std::collections::BTreeMap;

use common::samples::{Sample, samples};
use common::{path, tiny_gptq};
use qwenvl::exec::compare::compare;
use qwenvl::graph::DType;
use qwenvl::{Checkpoint, Engine, EngineOptions, Event, Result, Target};

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
        for (activation, fuse) in [(DType::BF16, true), (DType::F16, true), (DType::BF16, false)] {
            if !fuse && name != "awq" {
                continue;
            }
            let load = |target| {
                // Chunks that cut prompts.
                let prefill_chunk_tokens = if activation == DType::BF16 { 512 } else { 29 };
                let options = EngineOptions { activation, fuse, prefill_chunk_tokens, ..options(target) };
                Engine::load(open(), &options).unwrap()
            };
            let (mut cpu, mut device) = (load(Target::Cpu), load(Target::Cuda(0)));
            let differences = compare(&mut cpu, &mut device, &mut |e| run(e, &samples)).unwrap();
            let mut most = BTreeMap::<(&str, &str, &str), f64>::new();
            for d in &differences {
                let most = most.entry((d.program, d.op, d.kernel)).or_default();
                *most = most.max(d.worst);
            }
            println!("{name} {activation} {}: {most:.3?}", if fuse { "fused" } else { "plain" });
            for d in &differences {
                assert!(d.worst <= 1.0, "{name} {activation}, fused {fuse}: {d:?}");
            }
        }
    }
}
