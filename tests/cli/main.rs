//! Every command through the program itself.

#[path = "../common/mod.rs"]
mod common;

mod batch;
mod bench;
mod errors;
mod plan;
mod run;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::samples::samples;
use common::{ints, json, path};
use proptest::prelude::*;
use qwenvl::{Checkpoint, Frontend, Request, Target};
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
    let runs = args
        .first()
        .is_some_and(|a| ["run", "chat", "batch", "bench"].map(AsRef::as_ref).contains(&a.as_ref()));
    if runs && common::target() != Target::Cpu && args.iter().all(|a| a.as_ref() != "--device") {
        command.args(["--device", "cuda"]);
    }
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

/// Writes only the `config.json` of a model.
fn config_file(dir: &Path, size: Size, format: Format) -> (PathBuf, Value) {
    let config = random_checkpoint::config_json(size, format);
    let file = dir.join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    (file, config)
}
