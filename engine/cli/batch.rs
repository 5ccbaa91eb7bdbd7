//! `qwenvl batch`: many requests from a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use qwenvl::{Engine, EngineOptions, Event, Prepared, Request, RequestId};
use serde_json::{Value, json};

use super::input::{Lines, MAX_LINE_BYTES};
use super::model::{ModelArgs, directory_of};
use super::output;

/// Arguments of `qwenvl batch`.
#[derive(clap::Args)]
#[command(after_help = FORMAT)]
pub struct Args {
    /// A file with one JSON object per line; - for standard input.
    requests: PathBuf,
    /// Write the answers to this file instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with an output file that an earlier run left: requests that it answers, errors included, are
    /// not asked again. The requests must be the same.
    #[arg(long, requires = "output")]
    resume: bool,
    /// Requests to work on at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel: u16,
    /// Room for this many tokens in each request, prompt and answer together [default: the model's longest context, if
    /// that fits].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
}

const FORMAT: &str = "\
A line:
  {\"custom_id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": [
     {\"type\": \"image\", \"image\": \"cat.jpg\"}, {\"type\": \"text\", \"text\": \"What is this?\"}]}],
   \"max_tokens\": 64, \"temperature\": 0}
Also: top_k, top_p, repetition_penalty, seed, stop, add_vision_id, keep_special_tokens.
Relative paths start at the directory of the file. Answers come in the order of the lines:
  {\"custom_id\", \"text\", \"token_ids\", \"finish_reason\", \"usage\", \"timings\", \"visuals\"}
A line that fails gives {\"custom_id\", \"error\"}, the others go on, and the exit code is 1.

Parts of a message, in the Qwen or the OpenAI format:
  {\"type\": \"text\", \"text\": ...}
  {\"type\": \"image\", \"image\": PATH|URL|data:}   also min_pixels, max_pixels, resized_height and
  {\"type\": \"image_url\", \"image_url\": {\"url\": ...}}   resized_width, exif_orientation
  {\"type\": \"video\", \"video\": PATH|URL|data: or [frames]}   also fps or nframes, min_frames,
  {\"type\": \"video_url\", \"video_url\": {\"url\": ...}}   max_frames, video_start, video_end, total_pixels";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, frontend) = args.model.open()?;
    let mut requests = Requests::open(&args.requests)?;
    let mut done = Done::default();
    let out: Box<dyn Write> = match &args.output {
        Some(path) => {
            if path.canonicalize().is_ok_and(|out| args.requests.canonicalize().is_ok_and(|r| r == out)) {
                bail!("--output {}: these are the requests; name another file", path.display());
            }
            if args.resume && path.exists() {
                let (file, found) = Done::read(path).with_context(|| path.display().to_string())?;
                done = found;
                Box::new(file)
            } else {
                Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
            }
        }
        None => Box::new(output::stdout()),
    };
    done.skip(&mut requests)?;
    let parallel = usize::from(args.parallel);
    let options =
        EngineOptions { context_tokens: args.context, max_seqs: parallel, ..EngineOptions::default() };
    let mut engine = args.model.load(checkpoint, frontend, options)?;
    let mut results =
        InOrder { out, file: args.output, next: done.ids.len(), ready: BTreeMap::new(), failed: done.failed };
    answer_all(&mut engine, requests, parallel, &mut results)?;
    Ok(if results.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Keeps the engine supplied with `parallel` requests until there are no more.
fn answer_all(
    engine: &mut Engine,
    mut lines: Requests,
    parallel: usize,
    results: &mut InOrder,
) -> anyhow::Result<()> {
    let mut running: HashMap<RequestId, (usize, Value)> = HashMap::new();
    let mut events = Vec::new();
    loop {
        while running.len() < parallel {
            let Some((line, text)) = lines.next()? else { break };
            let (custom_id, prepared) = match text {
                Ok(text) => prepare(engine, &text, &lines.base_dir),
                Err(problem) => (Value::Null, Err(anyhow!(problem))),
            };
            match prepared.and_then(|p| Ok(engine.submit(p)?)) {
                Ok(id) => {
                    running.insert(id, (line, custom_id));
                }
                Err(error) => results.fail(line, &custom_id, &output::describe(&error))?,
            }
        }
        if running.is_empty() {
            return Ok(());
        }
        engine.step(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Token(..) => {}
                Event::Done(id, _, answer) => {
                    let Some((line, custom_id)) = running.remove(&id) else { continue };
                    let mut object = output::answer(None, &answer);
                    object["custom_id"] = custom_id;
                    results.put(line, object)?;
                }
                Event::Failed(id, error) => {
                    let Some((line, custom_id)) = running.remove(&id) else { continue };
                    results.fail(line, &custom_id, &error.to_string())?;
                }
            }
        }
    }
}

fn prepare(engine: &Engine, text: &str, base_dir: &Path) -> (Value, anyhow::Result<Prepared>) {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return (Value::Null, Err(anyhow!("the line is not JSON: {error}"))),
    };
    let custom_id = value.get("custom_id").cloned().unwrap_or(Value::Null);
    let request = Request::from_json(&value, base_dir.to_path_buf());
    (custom_id, request.and_then(|r| engine.frontend().prepare(&r)).map_err(Into::into))
}

/// Lines of the request file, blank ones skipped.
struct Requests {
    lines: Lines,
    name: String,
    base_dir: PathBuf,
    next: usize,
}

impl Requests {
    fn open(path: &Path) -> anyhow::Result<Requests> {
        let (lines, name, base_dir) = if path.as_os_str() == "-" {
            (Lines::new(BufReader::new(std::io::stdin())), "standard input".into(), PathBuf::new())
        } else {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            (Lines::new(BufReader::new(file)), path.display().to_string(), directory_of(path))
        };
        Ok(Requests { lines, name, base_dir, next: 0 })
    }

    /// The next line, or what is wrong with it, with its number among those that are not blank.
    fn next(&mut self) -> anyhow::Result<Option<(usize, Result<String, String>)>> {
        loop {
            let line = self.lines.next().with_context(|| format!("cannot read {}", self.name))?;
            let Some(line) = line else { return Ok(None) };
            if line.as_ref().is_ok_and(|l| l.trim().is_empty()) {
                continue;
            }
            self.next += 1;
            return Ok(Some((self.next - 1, line)));
        }
    }
}

/// What an earlier run has answered, in the order of the requests.
#[derive(Default)]
struct Done {
    ids: Vec<Value>,
    failed: usize,
}

impl Done {
    /// Reads an output file and opens it for what is missing; a line that was cut short is removed.
    fn read(path: &Path) -> anyhow::Result<(File, Done)> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let (mut done, mut whole) = (Done::default(), 0);
        let mut reader = BufReader::new(&mut file);
        loop {
            let mut line = String::new();
            let n = std::io::Read::take(&mut reader, MAX_LINE_BYTES).read_line(&mut line)?;
            if !line.ends_with('\n') {
                break;
            }
            let answer: Value = serde_json::from_str(&line)
                .ok()
                .filter(|v: &Value| v.get("text").or(v.get("error")).is_some())
                .with_context(|| {
                    format!(
                        "line {} is no answer of this command: give another --output, or no --resume",
                        done.ids.len() + 1
                    )
                })?;
            done.failed += usize::from(answer.get("error").is_some());
            done.ids.push(answer.get("custom_id").cloned().unwrap_or(Value::Null));
            whole += n as u64;
        }
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        Ok((file, done))
    }

    /// Passes over the requests that are answered, after checking that they are the ones.
    fn skip(&self, requests: &mut Requests) -> anyhow::Result<()> {
        for (i, expected) in self.ids.iter().enumerate() {
            let Some((_, text)) = requests.next()? else {
                bail!(
                    "the output has {} answers but there are {i} requests: they are not the same",
                    self.ids.len()
                );
            };
            let id = text
                .ok()
                .and_then(|t| serde_json::from_str::<Value>(&t).ok())
                .and_then(|v| v.get("custom_id").cloned());
            let id = id.unwrap_or(Value::Null);
            if id != *expected {
                bail!("request {} is {id} but the output answers {expected}: they are not the same", i + 1);
            }
        }
        Ok(())
    }
}

/// Writes results in the order of the lines, each as soon as those before it are written.
struct InOrder {
    out: Box<dyn Write>,
    /// What `out` is, unless it is standard output.
    file: Option<PathBuf>,
    next: usize,
    ready: BTreeMap<usize, Value>,
    failed: usize,
}

impl InOrder {
    fn put(&mut self, line: usize, object: Value) -> anyhow::Result<()> {
        self.ready.insert(line, object);
        let written = self.write_ready();
        match &self.file {
            Some(path) => written.with_context(|| format!("cannot write {}", path.display())),
            None => Ok(written?),
        }
    }

    fn write_ready(&mut self) -> std::io::Result<()> {
        while let Some(object) = self.ready.remove(&self.next) {
            writeln!(self.out, "{object}")?;
            self.next += 1;
        }
        self.out.flush()
    }

    fn fail(&mut self, line: usize, custom_id: &Value, error: &str) -> anyhow::Result<()> {
        self.failed += 1;
        output::note(format_args!("error: request {}: {error}", line + 1));
        self.put(line, json!({ "custom_id": custom_id, "error": error }))
    }
}
