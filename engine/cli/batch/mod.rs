//! `qwenvl batch`: many requests from a file.

mod answers;
mod requests;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use qwenvl::{Engine, EngineOptions, Event, RequestId};
use serde_json::Value;

use self::answers::{Done, InOrder, Job, OutputFile, put_in_order};
use self::requests::{Key, PREPARERS, Preparers, Requests};
use super::model::{ModelArgs, PictureArgs};
use super::output;

/// Answers that may wait behind a slow one, for each request that is worked on.
const WAITING_PER_REQUEST: usize = 4;

/// Arguments of `qwenvl batch`.
#[derive(clap::Args)]
#[command(after_help = FORMAT)]
pub struct Args {
    /// A file with one JSON object per line; - for standard input.
    requests: PathBuf,
    /// Write the answers to this file instead of standard output. One that holds something is refused, unless
    /// --resume or --overwrite says what to do with it.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with an output file that an earlier run left: requests that it answers, errors included, are
    /// not asked again. They must be the same as then.
    #[arg(long, requires = "output", conflicts_with = "overwrite")]
    resume: bool,
    /// Ask requests again that failed in the earlier run. These may have been changed since.
    #[arg(long, requires = "resume")]
    retry_errors: bool,
    /// Begin anew, whatever the output file holds.
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Requests to work on at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel: u16,
    /// Room for this many tokens in each request, prompt and answer together [default: the model's longest context, if
    /// that fits].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    pictures: PictureArgs,
}

const FORMAT: &str = "\
A line:
  {\"custom_id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": [
     {\"type\": \"image\", \"image\": \"cat.jpg\"}, {\"type\": \"text\", \"text\": \"What is this?\"}]}],
   \"max_tokens\": 64, \"temperature\": 0}
Also: top_k, top_p, repetition_penalty, seed, stop, add_vision_id, keep_special_tokens.
Relative paths start at the directory of the file. Answers come in the order of the lines:
  {\"custom_id\", \"request\", \"text\", \"token_ids\", \"finish_reason\", \"usage\", \"timings\", \"visuals\"}
where request has the number of the line, blank ones not counted, and a hash of it for --resume.
A line that fails gives {\"custom_id\", \"request\", \"error\"}, the others go on, and the exit code is 1.

Parts of a message, in the Qwen or the OpenAI format:
  {\"type\": \"text\", \"text\": ...}
  {\"type\": \"image\", \"image\": PATH|URL|data:}   also min_pixels, max_pixels, resized_height and
  {\"type\": \"image_url\", \"image_url\": {\"url\": ...}}   resized_width, exif_orientation
  {\"type\": \"video\", \"video\": PATH|URL|data: or [frames]}   also fps or nframes, min_frames,
  {\"type\": \"video_url\", \"video_url\": {\"url\": ...}}   max_frames, video_start, video_end, total_pixels";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (checkpoint, mut frontend) = args.model.open()?;
    args.pictures.apply(frontend.processor_mut())?;
    let (file, done) = match &args.output {
        Some(path) => {
            let (file, done) =
                OutputFile::find(path, &args).with_context(|| format!("--output {}", path.display()))?;
            (Some(file), done)
        }
        None => (None, Done::default()),
    };
    let kept_errors = if args.retry_errors { 0 } else { done.failed() };
    let sort = args.retry_errors || done.disordered;
    let (requests, base_dir) = Requests::open(&args.requests, done, args.retry_errors)?;
    let mut requests = requests.peekable();
    // Requests that are not those of the output are told before the engine loads, most of them.
    if let Some(Err(error)) = requests.next_if(Result::is_err) {
        return Err(error);
    }
    if kept_errors > 0 {
        output::note(format_args!(
            "note: {kept_errors} requests failed before and are not asked again, see --retry-errors"
        ));
    }
    let parallel = usize::from(args.parallel);
    let engine = match requests.peek() {
        Some(_) => {
            let options = EngineOptions {
                context_tokens: args.context,
                max_seqs: parallel,
                ..EngineOptions::default()
            };
            Some(args.model.load(checkpoint, frontend, options)?)
        }
        None => None,
    };
    let out: Box<dyn Write> = match file {
        Some(file) => Box::new(file.open()?),
        None => Box::new(output::stdout()),
    };
    let mut results = InOrder::new(out, args.output.clone());
    if let Some(mut engine) = engine {
        answer_all(&mut engine, requests, &base_dir, parallel, &mut results)?;
    }
    if let Some(path) = args.output.filter(|_| sort) {
        put_in_order(&path).with_context(|| format!("cannot put {} in order", path.display()))?;
    }
    Ok(if results.failed + kept_errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Keeps the engine supplied with `parallel` requests until there are no more.
fn answer_all(
    engine: &mut Engine,
    mut requests: impl Iterator<Item = anyhow::Result<(Key, Result<String, String>)>>,
    base_dir: &Path,
    parallel: usize,
    results: &mut InOrder,
) -> anyhow::Result<()> {
    let mut preparers = Preparers::start(engine.frontend(), base_dir);
    let mut running: HashMap<RequestId, Job> = HashMap::new();
    let (mut events, mut is_over) = (Vec::new(), false);
    loop {
        while !is_over
            && running.len() + preparers.under_way < parallel + PREPARERS
            && results.waiting.len() < WAITING_PER_REQUEST * parallel
        {
            let Some((key, text)) = requests.next().transpose()? else {
                is_over = true;
                break;
            };
            let parsed = text.map_err(|problem| anyhow!(problem)).and_then(|text| {
                serde_json::from_str(&text).map_err(|error| anyhow!("the line is not JSON: {error}"))
            });
            match parsed {
                Ok(value) => preparers.send(results.begin(key, output::custom_id(&value)), value),
                Err(error) => {
                    let job = results.begin(key, Value::Null);
                    results.fail(job, &output::describe(&error))?;
                }
            }
        }
        while running.len() < parallel
            && let Some((job, prepared)) = preparers.next(running.is_empty())
        {
            match prepared.and_then(|p| Ok(engine.submit(p)?)) {
                Ok(id) => {
                    running.insert(id, job);
                }
                Err(error) => results.fail(job, &output::describe(&error))?,
            }
        }
        if running.is_empty() {
            if is_over && preparers.under_way == 0 {
                return Ok(());
            }
            continue; // whatever was ready has failed
        }
        engine.step(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Token(..) => {}
                Event::Done(id, _, answer) => {
                    let Some(job) = running.remove(&id) else { continue };
                    results.put(job, output::answer(&answer))?;
                }
                Event::Failed(id, error) => {
                    let Some(job) = running.remove(&id) else { continue };
                    results.fail(job, &error.to_string())?;
                }
            }
        }
    }
}
