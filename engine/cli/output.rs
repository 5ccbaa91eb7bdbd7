//! What the commands print: answers as JSON, and errors.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::ProgressBar;

use qwenvl::exec::Peaks;
use qwenvl::graph::Plan;
use qwenvl::host::Resident;
use qwenvl::{Answer, DEFAULT_MAX_TOKENS, Engine, FinishReason, grounding};
use serde_json::{Value, json};

/// The object that `batch` writes for each line, and `run --json` prints. Whose answer it is, is for them to say.
pub fn answer(answer: &Answer) -> Value {
    let mut object = json!({
        "custom_id": null,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "timings": answer.timings,
        "visuals": answer.visuals,
    });
    let boxes = grounding::boxes(&answer.text);
    if !boxes.is_empty() {
        // Which of several pictures is meant, only the text can tell.
        let size = match answer.visuals.as_slice() {
            [only] => Some((only.width, only.height)),
            _ => None,
        };
        let boxes = boxes.iter().map(|b| {
            json!({
                "label": b.label,
                "thousandths": b.thousandths,
                "pixels": size.map(|(width, height)| b.pixels(width, height)),
            })
        });
        object["boxes"] = boxes.collect();
    }
    if !answer.notices.is_empty() {
        object["notices"] = json!(answer.notices);
    }
    object
}

/// Tells that an answer was cut, and what gives it more room: `context` is the advice where `max_tokens`, or its
/// default, was not reached.
pub fn tell_cut(answer: &Answer, max_tokens: Option<usize>, context: &str) {
    if answer.finish_reason != FinishReason::Length {
        return;
    }
    let tokens = answer.usage.completion_tokens;
    if tokens < max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) {
        note(format_args!("note: cut at {tokens} tokens: the context is full, {context}"));
    } else {
        note(format_args!("note: cut at {tokens} tokens, see --max-tokens"));
    }
}

/// What a request is called, `null` if nothing.
pub fn custom_id(request: &Value) -> Value {
    request.get("custom_id").cloned().unwrap_or_default()
}

/// What was reached, beside what this machine reached at the same time when nothing else limits it.
pub fn rates(engine: &Engine, peaks: Peaks) -> Value {
    let w = engine.work();
    let rate = |amount: u64, seconds: f64| if seconds > 0.0 { amount as f64 / seconds / 1e9 } else { 0.0 };
    let decode = rate(w.decode_bytes, w.decode_s);
    let prefill = rate(w.prefill_flops, w.prefill_s);
    let vit = rate(w.vision_flops, w.vision_s);
    let (read, fma) = (peaks.read_bytes_per_s / 1e9, peaks.fma_flops_per_s / 1e9);
    json!({
        "read_gb_s": read,
        "fma_gflop_s": fma,
        "decode_gb_s": decode,
        "decode_of_read": decode / read,
        "prefill_gflop_s": prefill,
        "prefill_of_fma": prefill / fma,
        "vit_gflop_s": vit,
        "vit_of_fma": vit / fma,
    })
}

/// What the plan states, part by part, beside what the process holds. On the CPU, the plan's
/// total without its mapped weights is memory of the process's own, and the mapped weights are mapped
/// files.
pub fn memory(plan: &Plan, resident: Option<Resident>) -> Value {
    let m = &plan.memory;
    json!({
        "plan_total_bytes": m.total_bytes(),
        "plan_weights_bytes": m.weights_bytes,
        "plan_mapped_weights_bytes": m.mapped_weights_bytes,
        "plan_kv_bytes": m.kv_bytes,
        "plan_arena_bytes": m.arena_bytes,
        "plan_visual_bytes": m.visual_bytes,
        "plan_workspace_bytes": m.workspace_bytes,
        "resident_bytes": resident.map(|r| r.total_bytes),
        "resident_anonymous_bytes": resident.map(|r| r.anonymous_bytes),
        "resident_file_bytes": resident.map(|r| r.file_bytes),
        "resident_peak_bytes": resident.map(|r| r.peak_bytes),
    })
}

/// Makes sure that a file can be written, long before it is. One that exists is opened and keeps what it holds; for
/// one that does not, its directory is tried.
pub fn writable(path: &Path) -> io::Result<Option<File>> {
    match File::options().write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !directory.is_dir() {
                return Err(error);
            }
            tempfile::tempfile_in(directory)?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Standard output. When its reader goes away, as `head` does, writing fails with [`Closed`].
pub struct Stdout(StdoutLock<'static>);

/// Nobody reads the output any more: a reason to stop, not to complain.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Standard output, locked.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl Stdout {
    fn checked<T>(result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, Closed),
            kind => io::Error::new(kind, format!("cannot write to standard output: {e}")),
        })
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Stdout::checked(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Stdout::checked(self.0.flush())
    }
}

/// Whether an error is that nobody reads the output any more.
pub fn is_closed(error: &anyhow::Error) -> bool {
    let closed = |e: &io::Error| e.get_ref().is_some_and(|inner| inner.is::<Closed>());
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(closed))
}

/// An error with its causes, each said once: many messages end with that of their cause.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Prints a line for the person at the terminal. If that fails there is nobody to tell.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Shows a person at a terminal what goes on, if it takes longer than a second; until it is dropped.
pub struct Waiting(Option<(Sender<()>, JoinHandle<()>)>);

impl Waiting {
    /// Begins to wait for `what`.
    pub fn on(what: &'static str) -> Waiting {
        if !io::stderr().is_terminal() {
            return Waiting(None);
        }
        let (end, ended) = mpsc::channel::<()>();
        let goes_on =
            move |ms| ended.recv_timeout(Duration::from_millis(ms)) == Err(RecvTimeoutError::Timeout);
        let show = move || {
            if goes_on(1000) {
                let bar = ProgressBar::new_spinner().with_message(what);
                bar.tick();
                while goes_on(100) {
                    bar.tick();
                }
                bar.finish_and_clear();
            }
        };
        Waiting(thread::Builder::new().spawn(show).ok().map(|shown| (end, shown)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((end, shown)) = self.0.take() {
            drop(end);
            // Its line is cleared before others are printed.
            let _ = shown.join();
        }
    }
}
