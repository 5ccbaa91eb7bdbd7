//! What a process of its own shows: faults of the driver are errors that say where, leak nothing and leave the
//! process able to go on; and the device holds what the plan states.
#![cfg(feature = "cuda")]

mod common;

use std::process::Command;

use common::samples::samples;
use cudarc::driver::CudaContext;
use qwenvl::graph::DType;
use qwenvl::{Checkpoint, Engine, EngineOptions, Request, Result, Target};
use random_checkpoint::{Format, Size};
use serde_json::{Value, json};

/// Times that a child tries to load and answer.
const TRIES: usize = 60;

fn options() -> EngineOptions {
    EngineOptions { target: Target::Cuda(0), context_tokens: Some(192), ..EngineOptions::default() }
}

/// A picture and a question, the answer drawn, with a penalty.
fn request() -> Request {
    let sample = samples().remove(0);
    Request { max_tokens: Some(3), temperature: Some(0.5), repetition_penalty: Some(1.1), ..sample.request }
}

fn load_and_answer() -> Result<String> {
    let mut engine = Engine::load(Checkpoint::tiny()?, &options())?;
    Ok(engine.answer(&request())?.text)
}

/// Runs a test of this file, one that is ignored otherwise, in a process where the simulated driver fails as
/// `faults` says. The lines that it printed for us.
fn child(test: &str, faults: &str) -> Vec<String> {
    child_with(test, faults, "0")
}

fn child_with(test: &str, faults: &str, blocking: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("CUDASIM_FAIL", faults)
        .env("CUDA_LAUNCH_BLOCKING", blocking)
        .env("CUDASIM_COUNTERS", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{faults}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    // The name of the test stands before the first line.
    text.lines().filter_map(|l| l.split_once("@ ")).map(|(_, line)| line.to_string()).collect()
}

/// A real device has no faults to order.
fn is_real() -> bool {
    std::env::var("QWENVL_TEST_GPU").is_ok_and(|v| v == "1")
}

#[test]
#[ignore = "a child of the tests here"]
fn tries_until_it_answers() {
    let context = CudaContext::new(0).unwrap();
    let free = || context.mem_get_info().unwrap().0;
    for _ in 0..TRIES {
        let before = free();
        match load_and_answer() {
            Ok(text) => {
                println!("@ answered: {text}");
                println!("@ leaked {}", before - free());
                return;
            }
            Err(error) => println!("@ failed: {error}"),
        }
        println!("@ leaked {}", before - free());
    }
}

#[test]
#[ignore = "a child of the tests here"]
fn tries_again_after_a_lost_context() {
    for _ in 0..2 {
        match load_and_answer() {
            Ok(text) => println!("@ answered: {text}"),
            Err(error) => println!("@ failed: {error}"),
        }
    }
}

/// What failed, without what came after.
fn failures(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|l| l.strip_prefix("failed: ")).collect()
}

#[test]
fn a_refused_call_is_an_error_with_its_step_and_the_next_load_answers() {
    if is_real() {
        return;
    }
    let whole = child("tries_until_it_answers", "");
    let answer = whole.iter().find(|l| l.starts_with("answered")).expect("answers without faults");
    // Each try gets further than the one before, until one comes to its end.
    for (kind, step, steps) in [
        ("alloc", 9, ["allocating pinned memory", "for the KV cache", "sending"]),
        ("copy", 7, ["loading kernels", "sending model.", "sampling|sending inputs"]),
        ("launch", 14, ["repacking", "prefill step", "replayed as a graph"]),
        ("module", 2, ["loading", "loading", "loading"]),
    ] {
        let places = [1, 3].into_iter().chain((1..TRIES).map(|n| 4 + n * (n + 1) / 2 * step));
        let faults: Vec<String> = places.map(|n| format!("{kind}:{n}")).collect();
        let lines = child("tries_until_it_answers", &faults.join(","));
        println!("{kind}: {lines:#?}");
        let failed = failures(&lines);
        assert!(failed.len() >= 4, "{kind}: {lines:?}");
        for error in &failed {
            assert!(error.starts_with("CUDA: "), "{kind}: {error}");
        }
        for step in steps {
            let at = |e: &&str| step.split('|').any(|step| e.contains(step));
            assert!(failed.iter().any(at), "{kind}: none at {step}: {failed:#?}");
        }
        assert!(lines.contains(answer), "{kind}: {lines:?}");
        assert!(
            lines.iter().filter(|l| l.starts_with("leaked")).all(|l| l == "leaked 0"),
            "{kind}: {lines:?}"
        );
    }
}

#[test]
fn a_lost_context_or_device_is_an_error_with_its_step() {
    if is_real() {
        return;
    }
    for (fault, recovers) in
        [("sticky:2", true), ("sticky:70", true), ("sticky:112", true), ("device-lost:300", false)]
    {
        let lines = child("tries_again_after_a_lost_context", fault);
        println!("{fault}: {lines:#?}");
        let failed = failures(&lines);
        assert_eq!(failed.len(), if recovers { 1 } else { 2 }, "{fault}: {lines:?}");
        assert!(failed.iter().all(|e| e.starts_with("CUDA: ")), "{fault}: {lines:?}");
        assert_eq!(lines.iter().any(|l| l.starts_with("answered")), recovers, "{fault}: {lines:?}");
    }
}

/// The first failure of a child at each of the launches around the first decode steps.
fn first_failures(kind: &str, suffix: &str, blocking: &str) -> Vec<String> {
    let first = |n: usize| {
        let lines = child_with("tries_again_after_a_lost_context", &format!("{kind}:{n}{suffix}"), blocking);
        failures(&lines).first().map(|e| e.to_string())
    };
    let found: Vec<String> = (95..125).step_by(3).filter_map(first).collect();
    println!("{kind}{suffix}, blocking {blocking}: {found:#?}");
    assert!(found.iter().all(|e| e.starts_with("CUDA: ")));
    found
}

#[test]
fn a_failure_in_a_decode_graph_names_the_step() {
    if is_real() {
        return;
    }
    let some = |found: &[String], parts: &[&str]| {
        let all = |e: &String| parts.iter().all(|part| e.contains(part));
        assert!(found.iter().any(all), "none with {parts:?}: {found:#?}");
    };
    // Refused for good: the steps run one at a time up to the first that is refused.
    some(&first_failures("launch", "+", "0"), &["decode step 0, embed", "launching embed"]);
    // Refused once.
    some(&first_failures("launch", "", "0"), &["decode steps 0 to", "one at a time they all ran"]);
    // A kernel that fails behind the calls: one of those under way, or with the user's help the one.
    let under_way = ["hit by one of the steps", "decode step 0 to", "CUDA_LAUNCH_BLOCKING=1"];
    some(&first_failures("sticky", "", "0"), &under_way);
    let named = first_failures("sticky", "", "1");
    for error in &named {
        let (_, fault) = error.split_once("hit by ").expect("whose fault it was");
        let (step, advice) = fault.split_once(": ").expect("what to do");
        assert!(advice.contains("start it anew"), "{error}");
        assert!(error.starts_with(&format!("CUDA: {step}")), "one step: {error}");
    }
    some(&named, &["decode step"]);
}

/// Changes groups and zero points of a checkpoint of 8 bits.
fn uneven_groups(dir: &std::path::Path) {
    let path = dir.join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let parsed: Value = serde_json::from_slice(&file[8..header]).unwrap();
    for (name, tensor) in parsed.as_object().unwrap() {
        let at = |i: usize| header + tensor["data_offsets"][i].as_u64().unwrap_or(0) as usize;
        if name.ends_with(".qzeros") {
            file[at(0)] = 3;
        } else if name.ends_with(".g_idx") {
            let words = file[at(0)..at(1)].as_chunks_mut::<4>().0;
            words.iter_mut().enumerate().for_each(|(i, word)| *word = u32::from(i % 5 == 0).to_le_bytes());
        }
    }
    std::fs::write(&path, file).unwrap();
}

/// What a real driver takes for itself: code of kernels, graphs. The simulated one takes nothing.
fn kept_by_driver(bytes: u64) -> u64 {
    if is_real() { bytes } else { 0 }
}

#[test]
#[ignore = "a child of the tests here"]
fn holds_what_its_plan_states() {
    let context = CudaContext::new(0).unwrap();
    let free = || {
        context.synchronize().unwrap();
        context.mem_get_info().unwrap().0 as u64
    };
    let random = |format, key: &str, value: Value| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = random_checkpoint::config_json(Size::Tiny, format);
        config["tie_word_embeddings"] = true.into();
        if format != Format::Bf16 {
            config["quantization_config"][key] = value;
        }
        random_checkpoint::write(dir.path(), &config, &random_checkpoint::Options::default(), &mut |_| {})
            .unwrap();
        std::fs::copy(common::path("engine/tiny_model/tokenizer.json"), dir.path().join("tokenizer.json"))
            .unwrap();
        dir
    };
    let dirs = [
        random(Format::Bf16, "", Value::Null),
        random(Format::Awq, "group_size", 32.into()),
        random(Format::GptqInt4, "group_size", 24.into()),
        random(Format::GptqInt8, "sym", false.into()),
    ];
    // Says that groups are even and zero points in the middle, but they are not.
    let uneven = random(Format::GptqInt8, "desc_act", true.into());
    uneven_groups(uneven.path());
    let [bf16, awq, gptq4, gptq8] = &dirs.each_ref().map(|dir| || Checkpoint::open(dir.path()).unwrap());
    let uneven = || Checkpoint::open(uneven.path()).unwrap();
    let cases: [(&dyn Fn() -> Checkpoint, EngineOptions); 7] = [
        (&|| Checkpoint::tiny().unwrap(), options()),
        (&|| Checkpoint::tiny().unwrap(), EngineOptions { max_seqs: 9, activation: DType::F16, ..options() }),
        (bf16, EngineOptions { context_tokens: Some(1000), ..options() }),
        (awq, options()),
        (gptq4, options()),
        (gptq8, options()),
        (&uneven, options()),
    ];
    for (open, options) in cases {
        let before = free();
        let mut engine = Engine::load(open(), &options).unwrap();
        let loaded = free();
        engine.answer(&request()).unwrap();
        println!("@ {} {} {}", engine.plan().memory.total_bytes(), before - loaded, before - free());
        drop(engine);
        assert!(
            before.saturating_sub(free()) <= kept_by_driver(64 << 20),
            "an engine takes its memory with it"
        );
    }
}

#[test]
fn the_device_holds_what_the_plan_states() {
    let lines = child("holds_what_its_plan_states", "");
    assert_eq!(lines.len(), 7);
    for line in lines {
        println!("planned, held after load, after an answer: {line}");
        let bytes: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        let [planned, loaded, answered] = bytes[..] else { panic!("{line}") };
        // Five blocks, rounded to the allocator's pages.
        let most = planned + 5 * (2 << 20) + kept_by_driver(512 << 20);
        assert!(loaded >= planned && loaded <= most, "{line}");
        assert!(answered.abs_diff(loaded) <= kept_by_driver(64 << 20), "an answer takes nothing: {line}");
    }
}

/// What a command of `qwenvl` says as JSON, and its exit code, with the simulated driver set up so.
fn command(args: &[&str], (name, value): (&str, &str)) -> (Value, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_qwenvl"))
        .args(args)
        .env("CUDASIM_COUNTERS", "0")
        .env(name, value)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {text}")), output.status.code())
}

fn check(faults: &str) -> (Value, Option<i32>) {
    command(&["check", "--json"], ("CUDASIM_FAIL", faults))
}

#[test]
fn a_machine_without_a_gpu_that_runs_the_kernels_uses_its_processor() {
    if is_real() {
        return;
    }
    let (report, code) = command(&["check", "--json"], ("CUDASIM_DEVICES", "0"));
    assert_eq!((&report["passed"], code), (&true.into(), Some(0)), "no GPU is no failure: {report:#}");
    assert_eq!(report["cuda"]["devices"], json!([]));
    for (name, value) in [("CUDASIM_DEVICES", "0"), ("CUDASIM_DRIVER", "11.8")] {
        let (answer, code) = command(&["run", "--json", "--max-tokens", "2", "Who are you?"], (name, value));
        assert_eq!(code, Some(0), "{answer:#}");
        assert_eq!(answer["device"], "cpu", "{name}={value}: {answer:#}");
    }
    let (report, code) = command(&["check", "--json"], ("CUDASIM_DRIVER", "11.8"));
    assert_eq!((&report["passed"], code), (&false.into(), Some(1)), "{report:#}");
    let error = report["cuda"]["devices"][0]["error"].as_str().unwrap();
    assert!(error.contains("CUDA 11.8") && error.contains("driver 525"), "{error}");
}

#[test]
fn check_tests_every_kernel_on_every_device() {
    let (report, code) = check("");
    assert_eq!((&report["passed"], code), (&true.into(), Some(0)), "{report:#}");
    let device = &report["cuda"]["devices"][0];
    let tests = device["tests"].as_array().unwrap();
    for kernel in [
        "dense_gemm",
        "embed",
        "flash_attn",
        "int4_gemm",
        "int8_gemm",
        "norm",
        "paged_attn",
        "paged_prefill",
        "patchify",
        "pointwise",
        "rope",
        "sample",
    ] {
        assert!(tests.iter().any(|t| t["kernel"] == kernel), "{kernel}: {tests:#?}");
    }
    assert!(tests.iter().all(|t| t["passed"] == true && t["worst"].as_f64().unwrap() <= 1.0));
    if is_real() {
        return;
    }
    let (report, code) = check("sticky:200");
    assert_eq!((&report["passed"], code), (&false.into(), Some(1)), "{report:#}");
    let error = report["cuda"]["devices"][0]["error"].as_str().unwrap();
    assert!(error.starts_with("CUDA: "), "{error}");
}
