//! Every command through the program itself.

mod common;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::samples::samples;
use common::{ints, json, path};
use proptest::prelude::*;
use qwenvl::{Checkpoint, Frontend, Request};
use random_checkpoint::{Format, Size};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a run of the program gave.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        let run = Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        };
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        run
    }
}

impl Run {
    /// The output of a run that went well.
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    fn json(self) -> Value {
        let stdout = self.ok();
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
    }

    /// The lines of the output, each a JSON object.
    fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwenvl"));
    command.args(args).current_dir(path("tests/data/samples"));
    command
}

fn qwenvl<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Run {
    command(args).stdin(Stdio::null()).output().unwrap().into()
}

fn with_input<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> Run {
    let mut command = command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.into()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with a file of requests beside a picture in a directory of its own.
fn batch_dir(lines: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pictures")).unwrap();
    std::fs::copy(path("tests/data/samples/13_chat.png"), dir.path().join("pictures/a.png")).unwrap();
    let file = dir.path().join("requests.jsonl");
    std::fs::write(&file, lines).unwrap();
    (dir, file)
}

fn question(id: &str, text: &str) -> Value {
    json!({"custom_id": id, "messages": [{"role": "user", "content": text}], "temperature": 0})
}

/// What is printed for each request, with or without pictures.
fn assert_is_answer(object: &Value) {
    for key in ["custom_id", "text", "token_ids", "finish_reason", "usage", "timings", "visuals"] {
        assert!(object.get(key).is_some(), "{key} in {object}");
    }
    let tokens = object["token_ids"].as_array().unwrap().len();
    assert_eq!(object["usage"]["completion_tokens"], tokens);
    assert!(object["usage"]["prompt_tokens"].as_u64() >= object["usage"]["visual_tokens"].as_u64());
    for key in [
        "image_fetch_ms",
        "image_decode_ms",
        "image_resize_ms",
        "prompt_ms",
        "vit_ms",
        "prefill_ms",
        "decode_ms",
        "first_token_ms",
    ] {
        assert!(object["timings"][key].as_f64().is_some_and(|ms| ms >= 0.0), "{key} in {object}");
    }
}

#[test]
fn run_gives_the_texts_of_the_reference() {
    for sample in samples() {
        let answer = sample.value["answer_awq"].as_str().unwrap();
        let messages = sample.value["messages"].as_array().unwrap();
        let mut args: Vec<String> = vec!["run".into()];
        let one = messages[0]["content"].as_array().filter(|_| messages.len() == 1);
        let Some(parts) = one else {
            // A conversation is given as a file, here standard input.
            let input = sample.value["messages"].to_string();
            assert_eq!(with_input(&["run", "--messages", "-"], input.as_bytes()).ok(), format!("{answer}\n"));
            continue;
        };
        for part in parts {
            match part["type"].as_str().unwrap() {
                "image" => args.extend(["--image".into(), part["image"].as_str().unwrap().into()]),
                "video" => {
                    let frames = part.get("frames").unwrap_or(&part["video"]).as_array().unwrap();
                    let frames: Vec<&str> = frames.iter().map(|f| f.as_str().unwrap()).collect();
                    args.extend(["--frames".into(), frames.join(",")]);
                }
                _ => args.push(part["text"].as_str().unwrap().into()),
            }
        }
        assert_eq!(qwenvl(&args).ok(), format!("{answer}\n"), "{args:?}");
    }
}

#[test]
fn run_takes_the_frames_of_a_directory_in_the_order_of_their_names() {
    let sample = samples().into_iter().find(|s| s.id == "09_video").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for frame in sample.value["messages"][0]["content"][0]["video"].as_array().unwrap().iter().rev() {
        let name = frame.as_str().unwrap();
        std::fs::copy(path("tests/data/samples").join(name), dir.path().join(name)).unwrap();
    }
    let run = qwenvl(&["run", "--frames", text(dir.path()), "Describe this video."]);
    assert_eq!(run.ok().trim(), sample.value["answer_awq"].as_str().unwrap());
}

#[test]
fn run_json_has_the_answer_its_rates_and_its_memory() {
    let sample = &samples()[0];
    let args = ["run", "--json", "--image", "00_shape1.png", "Which shape is purple?"];
    let object = qwenvl(&args).json();
    assert_is_answer(&object);
    assert_eq!(object["text"], sample.value["answer_awq"]);
    assert_eq!(object["token_ids"], sample.value["generated_ids_awq"]);
    assert_eq!(object["finish_reason"], "stop");
    let prompt: Vec<u32> = ints(&sample.value["input_ids"]);
    assert_eq!(object["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(object["visuals"][0]["grid_thw"], sample.value["image_grid_thw"][0]);
    assert!(object["load_ms"].as_f64().unwrap() > 0.0);
    for key in ["read_gb_s", "fma_gflop_s", "decode_gb_s", "prefill_gflop_s", "vit_gflop_s"] {
        assert!(object["rates"][key].as_f64().is_some_and(|r| r > 0.0), "{key} in {object}");
    }
    for key in ["decode_of_read", "prefill_of_fma", "vit_of_fma"] {
        assert!(object["rates"][key].as_f64().is_some_and(|r| r > 0.0), "{key} in {object}");
    }
    let total = object["memory"]["plan_total_bytes"].as_u64().unwrap();
    let parts = ["weights", "kv", "arena", "visual", "workspace"];
    let sum =
        parts.iter().map(|p| object["memory"][format!("plan_{p}_bytes")].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum, total);
}

#[test]
fn run_obeys_its_sampling_options() {
    let story = ["run", "--json", "Tell me a short story."];
    let run = |more: &[&str]| qwenvl(&[&story[..], more].concat()).json();
    let whole = run(&[]);
    let cut = run(&["--max-tokens", "5"]);
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["token_ids"].as_array().unwrap()[..], whole["token_ids"].as_array().unwrap()[..5]);
    let stopped = run(&["--stop", " circle"]);
    assert_eq!(
        (&stopped["text"], &stopped["finish_reason"]),
        (&json!("Once upon a time a small red"), &json!("stop"))
    );
    let drawn = |seed: &str| {
        run(&["--temperature", "3", "--top-k", "0", "--top-p", "1", "--max-tokens", "20", "--seed", seed])
    };
    assert_eq!(drawn("1")["token_ids"], drawn("1")["token_ids"]);
    assert_ne!(drawn("1")["token_ids"], drawn("2")["token_ids"]);
    let system = qwenvl(&["run", "--json", "--system", "Be brief.", "Who are you?"]).json();
    let plain = qwenvl(&["run", "--json", "Who are you?"]).json();
    assert_ne!(system["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
}

#[test]
fn batch_answers_in_order_and_resolves_paths_against_its_file() {
    let color = json!({"custom_id": "first", "messages": [{"role": "user", "content": [
        {"type": "image", "image": "pictures/a.png"},
        {"type": "text", "text": "What color is the square?"},
    ]}], "max_tokens": 64, "temperature": 0});
    let story = question("the longest", "Tell me a short story.");
    let short =
        json!({"custom_id": 7, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2});
    let who = question("fourth", "Who are you?");
    let input = format!("{story}\n\n{color}\n  \n{short}\r\n{who}");
    let (dir, file) = batch_dir(input.as_bytes());
    let run = qwenvl(&["batch", text(&file)]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let lines = run.lines();
    lines.iter().for_each(assert_is_answer);
    let ids: Vec<&Value> = lines.iter().map(|l| &l["custom_id"]).collect();
    assert_eq!(ids, [&json!("the longest"), &json!("first"), &json!(7), &json!("fourth")]);
    assert!(lines[0]["text"].as_str().unwrap().starts_with("Once upon a time"));
    assert_eq!(lines[1]["text"], "The square is yellow.");
    assert_eq!((&lines[2]["text"], &lines[2]["finish_reason"]), (&json!("I am"), &json!("length")));
    assert_eq!(lines[3]["text"], "I am a tiny vision language model.");

    // One at a time, and to a file.
    let output = dir.path().join("answers.jsonl");
    let run = qwenvl(&["batch", "--parallel", "1", text(&file), "--output", text(&output)]);
    assert_eq!(run.ok(), "");
    let written = std::fs::read_to_string(&output).unwrap();
    for (a, b) in lines.iter().zip(written.lines()) {
        let b: Value = serde_json::from_str(b).unwrap();
        assert_eq!((&a["custom_id"], &a["token_ids"]), (&b["custom_id"], &b["token_ids"]));
    }
    assert_eq!(written.lines().count(), 4);

    // From standard input, paths start at the working directory.
    let input = color.to_string().replace("pictures/a.png", "13_chat.png");
    let run = with_input(&["batch", "-"], input.as_bytes());
    assert_eq!(run.lines()[0]["text"], "The square is yellow.");
}

#[test]
fn a_line_of_a_batch_that_fails_does_not_stop_the_others() {
    let who = question("good", "Who are you?").to_string();
    let bad: [(&[u8], Value, &str); 11] = [
        (b"not JSON", Value::Null, "not JSON"),
        (b"\xff\xfe{}", Value::Null, "not UTF-8"),
        (b"{\"custom_id\": \"cut\", \"messages\": [", Value::Null, "not JSON"),
        (b"[1, 2]", Value::Null, "a JSON object"),
        (b"{\"custom_id\": \"a\"}", json!("a"), "messages"),
        (b"{\"custom_id\": \"b\", \"messages\": []}", json!("b"), "non-empty"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"stream\": true}", Value::Null, "stream"),
        (
            b"{\"custom_id\": [1], \"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"temperature\": -1}",
            json!([1]),
            "temperature",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"max_tokens\": 4096}",
            Value::Null,
            "the context of 4096",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"none.png\"}]}]}",
            Value::Null,
            "none.png",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"http://127.0.0.1:1/a\"}]}]}",
            Value::Null,
            "http://127.0.0.1:1/a",
        ),
    ];
    let mut input = Vec::new();
    for (line, ..) in &bad {
        input.extend([who.as_bytes(), b"\n", line, b"\n"].concat());
    }
    let (_dir, file) = batch_dir(&input);
    let run = qwenvl(&["batch", "--parallel", "3", text(&file)]);
    assert_eq!(run.code, Some(1));
    let lines = run.lines();
    assert_eq!(lines.len(), 2 * bad.len());
    for (pair, (line, id, message)) in lines.chunks(2).zip(bad) {
        assert_eq!(pair[0]["text"], "I am a tiny vision language model.");
        assert_eq!(pair[1]["custom_id"], id);
        let error = pair[1]["error"].as_str().unwrap_or_else(|| panic!("{}", pair[1]));
        assert!(error.contains(message), "{}: {error}", String::from_utf8_lossy(line));
        assert!(run.stderr.contains(error), "{error}");
        let again = error.matches("os error").count();
        assert!(again <= 1, "the reason is told once: {error}");
    }
    assert!(run.stderr.contains("error: request 2: the line is not JSON"), "{}", run.stderr);
}

#[test]
fn chat_remembers_and_goes_on_after_a_question_that_failed() {
    let sample = samples().into_iter().find(|s| s.id == "13_chat").unwrap();
    let input =
        "/image 13_chat.png\nIs the square large or small?\nWhat color is the square?\n/exit\nWho are you?\n";
    let answers = with_input(&["chat"], input.as_bytes()).ok();
    let last = sample.value["answer_awq"].as_str().unwrap();
    assert_eq!(answers, format!("The square is small.\n{last}\n"));

    let input =
        b"Who are you?\n\n/image none.png\nWhat is this?\n/what\nWho\xff are you?\n/help\nWho are you?\n";
    let run = with_input(&["chat"], input);
    assert_eq!(run.code, Some(1), "a question failed");
    assert_eq!(run.stdout, "I am a tiny vision language model.\n".repeat(2));
    for message in ["none.png", "unknown command /what", "not UTF-8", "/clear"] {
        assert!(run.stderr.contains(message), "{message} in {}", run.stderr);
    }

    let run = with_input(&["chat", "--context", "60"], "Who are you?\n".repeat(4).as_bytes());
    assert!(run.code == Some(1) && run.stderr.contains("the context of 60"), "{}", run.stderr);
    let run = with_input(&["chat"], b"Who are you?\n/clear\nWho are you?");
    assert_eq!(run.ok(), "I am a tiny vision language model.\n".repeat(2));
}

/// Writes only the `config.json` of a model.
fn config_file(dir: &Path, size: Size, format: Format) -> (PathBuf, Value) {
    let config = random_checkpoint::config_json(size, format);
    let file = dir.join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    (file, config)
}

#[test]
fn plan_states_the_memory_of_every_size_and_format_from_config_json_alone() {
    let dir = tempfile::tempdir().unwrap();
    for size in [Size::B2, Size::B7, Size::B72] {
        for format in [Format::Bf16, Format::Awq, Format::GptqInt4, Format::GptqInt8] {
            let (file, config) = config_file(dir.path(), size, format);
            // The directory and the file are the same.
            let model = if format == Format::Awq { text(dir.path()) } else { text(&file) };
            let args = ["plan", "--json", "--device", "h200-141g", "--context", "32768", "--model", model];
            let plan = qwenvl(&args).json();
            let bytes = |key: &str| plan[key].as_u64().unwrap_or_else(|| panic!("{key}"));
            let parts = ["weights_bytes", "kv_bytes", "arena_bytes", "visual_bytes", "workspace_bytes"];
            assert_eq!(parts.map(bytes).iter().sum::<u64>(), bytes("total_bytes"), "{size:?} {format:?}");
            assert_eq!(bytes("kv_bytes"), 32768 * bytes("kv_bytes_per_token"));
            assert_eq!(plan["fits"], bytes("total_bytes") <= bytes("device_bytes"));
            let model = qwenvl::graph::ModelConfig::from_json(&config.to_string()).unwrap();
            let stored: u64 = random_checkpoint::tensors(&model).unwrap().iter().map(|t| t.bytes()).sum();
            let off = (bytes("weights_bytes") as f64 / stored as f64 - 1.0).abs();
            assert!(off < 0.01, "{size:?} {format:?}: {} planned, {stored} stored", bytes("weights_bytes"));
            let rows = plan["bound_tokens_per_s"].as_array().unwrap();
            let inputs: Vec<u32> = rows.iter().map(|r| r["input_tokens"].as_u64().unwrap() as u32).collect();
            assert_eq!(inputs, [1, 6144, 14336, 30720]);
            assert!(rows.iter().all(|r| r["tokens_per_s"].as_f64().unwrap() > 0.0));
        }
    }
}

#[test]
fn plan_tells_what_fits_an_a100_and_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let args = |file: &str| {
        ["plan", "--device", "a100-80g", "--context", "32768", "--model", file].map(str::to_string).to_vec()
    };
    let (file, _) = config_file(dir.path(), Size::B72, Format::Awq);
    let json = [args(text(&file)), vec!["--json".into()]].concat();
    let plan = qwenvl(&json).json();
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["weights_bytes"], 42_994_232_320u64);
    assert_eq!(plan["kv_bytes_per_token"], 327_680);
    assert!(plan["largest_context_tokens"].as_u64().unwrap() >= 32768);
    assert_eq!(plan["would_fit"], json!([]));
    assert_eq!(plan["simulated_token"].as_array().unwrap().len(), 4);
    assert_eq!(plan["card_tokens_per_s"], json!([12.0, 8.33, 5.72, 3.39]));
    let table = qwenvl(&args(text(&file))).ok();
    assert!(
        table.contains("42994232320") && table.contains("fits a100-80g") && table.contains("30720"),
        "{table}"
    );
    // Where the time goes, beside physics and the card.
    for line in ["linear+residual down_proj", "physical bound", "simulated over the card's"] {
        assert!(table.contains(line), "{table}");
    }

    let (file, _) = config_file(dir.path(), Size::B72, Format::Bf16);
    let plan = qwenvl(&json).json();
    assert_eq!(plan["fits"], false);
    let changes: Vec<&str> =
        plan["would_fit"].as_array().unwrap().iter().map(|r| r["change"].as_str().unwrap()).collect();
    assert!(changes.iter().any(|c| c.contains("AWQ")), "{changes:?}");
    let page = dir.path().join("plan.html");
    let table = qwenvl(&[args(text(&file)), vec!["--html".into(), text(&page).into()]].concat()).ok();
    assert!(table.contains("does NOT fit") && table.contains("the AWQ checkpoint"), "{table}");
    let html = std::fs::read_to_string(page).unwrap();
    assert!(
        html.starts_with("<!doctype html>")
            && html.contains("does not fit")
            && html.trim().ends_with("</html>")
    );
    assert!(!html.contains("http"), "the page needs nothing else");

    // A device that is too small for any context.
    let small = ["plan", "--device", "rtx4090", "--model", text(&file), "--json"];
    let plan = qwenvl(&small).json();
    assert_eq!((&plan["fits"], &plan["largest_context_tokens"]), (&json!(false), &Value::Null));
}

#[test]
fn plan_without_a_model_is_of_the_embedded_one_on_this_machine() {
    let plan = qwenvl(&["plan", "--json", "--threads", "1", "--context", "512"]).json();
    assert_eq!((&plan["device"], &plan["fits"]), (&json!("cpu"), &json!(true)));
    assert!(plan["bound_tokens_per_s"].is_array());
}

#[test]
fn check_says_what_this_build_runs_on() {
    let report = qwenvl(&["check", "--json"]).json();
    assert_eq!(report["passed"], true, "{report:#}");
    assert!(report["cpu"]["threads"].as_u64().unwrap() > 0);
    assert_eq!(report["cuda"].is_null(), cfg!(not(feature = "cuda")));
    let text = qwenvl(&["check"]).ok();
    assert!(text.contains("cpu ") && text.contains("CUDA ") && !text.contains("FAIL"), "{text}");
}

/// Writes a picture that is no good.
fn bad_picture(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join(name);
    match name {
        "cut.png" => {
            let good = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
            std::fs::write(&file, &good[..300]).unwrap();
        }
        "text.png" => std::fs::write(&file, "this is no picture").unwrap(),
        "empty.png" => std::fs::write(&file, "").unwrap(),
        "long.png" => image::RgbImage::new(2, 402).save(&file).unwrap(),
        other => panic!("{other}"),
    }
    file
}

/// What a machine without a GPU is told.
const NO_CUDA: &str = if cfg!(feature = "cuda") { "no CUDA driver" } else { "no CUDA executor" };

#[test]
fn bad_input_ends_with_a_message_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let picture = |name| bad_picture(dir.path(), name).to_str().unwrap().to_string();
    let [cut, no_picture, empty, long] = ["cut.png", "text.png", "empty.png", "long.png"].map(picture);
    let missing = dir.path().join("missing").to_str().unwrap().to_string();
    let bare = dir.path().to_str().unwrap().to_string();
    let broken_json = dir.path().join("broken.json").to_str().unwrap().to_string();
    std::fs::write(&broken_json, "{").unwrap();
    let broken_config = dir.path().join("broken");
    std::fs::create_dir(&broken_config).unwrap();
    std::fs::write(broken_config.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let broken_config = broken_config.to_str().unwrap().to_string();
    let (_batch, requests) = batch_dir(question("a", "Who are you?").to_string().as_bytes());
    let requests = requests.to_str().unwrap().to_string();
    let long_prompt = "word ".repeat(300);
    let many_tokens = usize::MAX.to_string();

    let cases: &[(i32, &[&str], &[&str])] = &[
        (2, &[], &["Usage"]),
        (2, &["fly"], &["unrecognized subcommand", "fly"]),
        (2, &["run"], &["<PROMPT>"]),
        (2, &["run", "--colour", "hi"], &["--colour"]),
        (2, &["run", "--threads", "0", "hi"], &["--threads", "1..=1024"]),
        (2, &["run", "--max-tokens", "many", "hi"], &["--max-tokens", "many"]),
        (2, &["run", "--messages", "a.json", "hi"], &["--messages"]),
        (2, &["batch", "--parallel", "0", &requests], &["--parallel"]),
        (1, &["run", "--device", "tpu", "hi"], &["tpu", "auto, cpu, cuda"]),
        (1, &["run", "--device", "a100-80g", "hi"], &["a100-80g", "qwenvl plan"]),
        (1, &["run", "--device", "cuda", "hi"], &["cuda", NO_CUDA, "--device cpu"]),
        (1, &["chat", "--device", "cuda:1"], &["cuda:1", NO_CUDA]),
        (1, &["plan", "--device", "tpu"], &["tpu", "a100-80g"]),
        (1, &["run", "--model", &missing, "hi"], &[&missing, "no such directory"]),
        (1, &["run", "--model", &bare, "hi"], &["config.json"]),
        (1, &["run", "--model", &broken_config, "hi"], &["model_type", "llama"]),
        (1, &["plan", "--model", &missing], &[&missing]),
        (1, &["plan", "--model", &broken_json], &["JSON"]),
        (1, &["plan", "--context", "0"], &["context = 0"]),
        (1, &["plan", "--max-seqs", "0"], &["max_seqs = 0"]),
        (1, &["plan", "--prefill-chunk", "0"], &["prefill_chunk = 0"]),
        (1, &["plan", "--max-pixels", "0"], &["max_patches"]),
        (1, &["plan", "--context", &many_tokens, "--max-seqs", &many_tokens], &["context"]),
        (1, &["plan", "--html", "/none/plan.html"], &["/none/plan.html"]),
        (1, &["run", "--image", &missing, "hi"], &["cannot read", &missing]),
        (1, &["run", "--image", &bare, "hi"], &["it is a directory"]),
        (1, &["run", "--image", "", "hi"], &["the source is empty"]),
        (1, &["run", "--image", &cut, "hi"], &["cut.png", "cut short"]),
        (1, &["run", "--image", &no_picture, "hi"], &["text.png", "no known picture format"]),
        (1, &["run", "--image", &empty, "hi"], &["empty.png"]),
        (1, &["run", "--image", &long, "hi"], &["2x402", "200"]),
        (
            1,
            &["run", "--image", "http://127.0.0.1:1/a.png", "hi"],
            &["http://127.0.0.1:1/a.png", "download failed"],
        ),
        (1, &["run", "--image", "ftp://127.0.0.1/a.png", "hi"], &["ftp"]),
        (1, &["run", "--image", "data:image/png;base64,####", "hi"], &["base64"]),
        (1, &["run", "--image", "13_chat.png", "--max-pixels", "1", "hi"], &["max_pixels 1"]),
        (1, &["run", "--image", "13_chat.png", "--min-pixels", "0", "hi"], &["min_pixels 0"]),
        (1, &["run", "--frames", &missing, "hi"], &[&missing]),
        (1, &["run", "--frames", "13_chat.png,00_shape1.png", "hi"], &["frames of one size"]),
        (1, &["run", "--messages", &missing], &[&missing]),
        (1, &["run", "--messages", &broken_json], &["broken.json is not JSON"]),
        (1, &["run", "--context", "100", &long_prompt], &["the context of 100", "shorten the prompt"]),
        (1, &["run", "--context", "64", "--max-tokens", "64", "hi"], &["the context of 64", "lower"]),
        (1, &["run", "--max-tokens", "0", "hi"], &["max_tokens", "at least 1"]),
        (1, &["run", "--max-tokens", &many_tokens, "hi"], &["context", "1..=16777216"]),
        (1, &["run", "--context", &many_tokens, "hi"], &["context", "1..=16777216"]),
        (1, &["run", "--temperature", "-1", "hi"], &["temperature", "-1"]),
        (1, &["run", "--temperature", "nan", "hi"], &["temperature", "NaN"]),
        (1, &["run", "--top-p", "2", "hi"], &["top_p"]),
        (1, &["run", "--repetition-penalty", "0", "hi"], &["repetition_penalty"]),
        (1, &["run", "--stop", "", "hi"], &["stop[0]"]),
        (1, &["batch", &missing], &["cannot read", &missing]),
        (1, &["batch", &bare], &["cannot read", &bare]),
        (1, &["batch", &requests, "--output", "/none/answers"], &["cannot write /none/answers"]),
        (1, &["batch", &requests, "--output", &requests], &["these are the requests"]),
        // 4.4 TB of cache.
        (
            1,
            &["batch", "--parallel", "64", "--context", "16777216", &requests],
            &["are available on cpu", "--context", "would need"],
        ),
    ];
    for (code, args, messages) in cases {
        let run = qwenvl(args);
        assert_eq!((run.code, run.stdout.as_str()), (Some(*code), ""), "{args:?}: {}", run.stderr);
        for message in *messages {
            assert!(run.stderr.contains(message), "{args:?}: {message:?} is not in {}", run.stderr);
        }
        assert!(run.stderr.matches("os error").count() <= 1, "{}", run.stderr);
    }
    assert_ne!(std::fs::read_to_string(&requests).unwrap(), "", "the requests are untouched");
}

/// The tiny BF16 checkpoint in a directory of its own, to be damaged.
fn damaged(damage: impl FnOnce(&Path)) -> Run {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path("tests/data/tiny-bf16")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    damage(dir.path());
    qwenvl(&["run", "--model", text(dir.path()), "Who are you?"])
}

#[test]
fn a_damaged_checkpoint_is_told_before_it_runs() {
    assert_eq!(damaged(|_| {}).ok(), "I am a tiny vision language model.\n");
    type Damage = fn(&Path);
    let cases: [(Damage, &str); 5] = [
        (|d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), "safetensors"),
        (|d| std::fs::remove_file(d.join("tokenizer.json")).unwrap(), "tokenizer.json"),
        (
            |d| {
                let file = std::fs::File::options().write(true).open(d.join("model.safetensors")).unwrap();
                file.set_len(1 << 20).unwrap();
            },
            "model.safetensors",
        ),
        (
            |d| {
                let mut config = json("tests/data/tiny-bf16/config.json");
                config["num_hidden_layers"] = 5.into();
                std::fs::write(d.join("config.json"), config.to_string()).unwrap();
            },
            "layers.4",
        ),
        (
            |d| {
                std::fs::write(d.join("chat_template.json"), json!({"chat_template": ""}).to_string())
                    .unwrap()
            },
            "empty prompt",
        ),
    ];
    for (damage, message) in cases {
        let run = damaged(damage);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{message}: {}", run.stderr);
        assert!(run.stderr.contains(message), "{message} is not in {}", run.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_ends_every_command_quietly() {
    let many = (question("a", "Tell me a short story.").to_string() + "\n").repeat(300);
    let (_dir, requests) = batch_dir(many.as_bytes());
    let questions = "Tell me a short story.\n".repeat(300);
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = config_file(dir.path(), Size::B72, Format::Awq);
    let plan = ["plan", "--device", "a100-80g", "--model", text(&config)];
    let commands: [&[&str]; 5] = [
        &["run", "Tell me a short story."],
        &["batch", text(&requests)],
        &["chat"],
        &plan,
        &[&plan[..], &["--json"]].concat(),
    ];
    for args in commands {
        let mut command = command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let questions = questions.clone();
        let writer = std::thread::spawn(move || drop(stdin.write_all(questions.as_bytes())));
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(stdout);
        let run: Run = child.wait_with_output().unwrap().into();
        writer.join().unwrap();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let (_dir, requests) = batch_dir(question("a", "Who are you?").to_string().as_bytes());
    let commands: [&[&str]; 5] = [
        &["run", "Who are you?"],
        &["run", "--json", "Who are you?"],
        &["batch", text(&requests)],
        &["plan", "--threads", "1"],
        &["plan", "--threads", "1", "--json"],
    ];
    for args in commands {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run: Run = command(args).stdout(full).stderr(Stdio::piped()).output().unwrap().into();
        assert_eq!(run.code, Some(1), "{args:?}: {}", run.stderr);
        assert_eq!(run.stderr.matches("cannot write").count(), 1, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("No space left"), "{args:?}: {}", run.stderr);
    }
    // Nor does it matter whether anybody can be told.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = command(&["run", "--device", "tpu", "hi"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn help_names_every_command_and_the_format_of_batch_files() {
    let help = qwenvl(&["--help"]).ok();
    for name in ["run", "chat", "batch", "plan"] {
        assert!(help.contains(&format!("  {name} ")), "{help}");
    }
    let batch = qwenvl(&["batch", "--help"]).ok();
    for key in ["custom_id", "messages", "max_tokens", "temperature", "token_ids", "finish_reason", "usage"] {
        assert!(batch.contains(key), "{key} in {batch}");
    }
    assert!(qwenvl(&["--version"]).ok().starts_with("qwenvl "));
}

/// Lines that are nearly requests: a valid one with some bytes replaced, removed or put in.
fn mutated_lines() -> impl Strategy<Value = Vec<u8>> {
    let valid = [
        json!({"custom_id": 1, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}).to_string(),
        json!({"custom_id": "p", "max_tokens": 2, "messages": [{"role": "user", "content": [
            {"type": "image", "image": "pictures/a.png", "max_pixels": 50176},
            {"type": "text", "text": "What color is the square?"}]}], "stop": ["."], "seed": 5, "top_p": 0.5})
        .to_string(),
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "video", "video": ["pictures/a.png", "pictures/a.png"], "resized_height": 56, "resized_width": 56},
            {"type": "text", "text": "What is it?"}]}], "max_tokens": 1, "repetition_penalty": 1.5})
        .to_string(),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url":
            "data:image/png;base64,iVBORw0KGgo="}}]}], "max_tokens": 1, "top_k": 3, "temperature": 0.5})
        .to_string(),
    ];
    let edit = (
        any::<prop::sample::Index>(),
        0usize..4,
        prop_oneof![any::<u8>(), Just(b'"'), Just(b'0'), Just(b'-')],
    );
    (prop::sample::select(valid.to_vec()), prop::collection::vec(edit, 0..4)).prop_map(|(line, edits)| {
        let mut bytes = line.into_bytes();
        for (at, kind, byte) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                // A piece twice.
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the lines hold, each gets one line in its place, and nothing panics.
    #[test]
    fn any_batch_file_gives_a_line_for_each_of_its_lines(
        lines in prop::collection::vec(
            prop_oneof![4 => mutated_lines(), 1 => prop::collection::vec(any::<u8>(), 0..60)], 60,
        ),
    ) {
        let input = lines.join(&b'\n');
        let is_blank = |l: &&[u8]| std::str::from_utf8(l).is_ok_and(|l| l.trim().is_empty());
        let expected = input.split(|b| *b == b'\n').filter(|l| !is_blank(l)).count();
        let (_dir, file) = batch_dir(&input);
        let run = qwenvl(&["batch", "--context", "512", text(&file)]);
        prop_assert!(run.code == Some(0) || run.code == Some(1), "{:?}: {}", run.code, run.stderr);
        let lines = run.lines();
        prop_assert_eq!(lines.len(), expected);
        let failed = lines.iter().filter(|l| l.get("error").is_some()).count();
        prop_assert_eq!(run.code, Some(i32::from(failed > 0)));
        for line in lines.iter().filter(|l| l.get("error").is_none()) {
            assert_is_answer(line);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Requests from any bytes are prepared or refused.
    #[test]
    fn any_bytes_are_a_request_or_an_error(line in mutated_lines()) {
        thread_local! {
            static FRONTEND: Frontend = Frontend::new(&Checkpoint::tiny().unwrap()).unwrap();
            static DIR: TempDir = batch_dir(b"").0;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&line) else { return Ok(()) };
        let base_dir = DIR.with(|d| d.path().to_path_buf());
        if let Ok(request) = Request::from_json(&value, base_dir) {
            match FRONTEND.with(|f| f.prepare(&request)) {
                Ok(prepared) => prop_assert_eq!(prepared.tokens.len(), prepared.positions.len()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
