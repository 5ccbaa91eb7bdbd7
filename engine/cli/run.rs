//! `qwenvl run`: one answer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use qwenvl::prompt::{Message, Part, messages_from_json};
use qwenvl::{EngineOptions, Request, host};
use serde_json::json;

use super::model::{ModelArgs, SamplingArgs, directory_of};
use super::output;

/// Arguments of `qwenvl run`.
#[derive(clap::Args)]
pub struct Args {
    /// The question.
    #[arg(required_unless_present = "messages")]
    prompt: Option<String>,
    /// A picture: a path, a URL, or a data: URI. May be repeated; pictures come before the question.
    #[arg(long, value_name = "PATH|URL|data:")]
    image: Vec<String>,
    /// The frames of a video: a directory of pictures, taken in the order of their names, or paths
    /// separated by commas. May be repeated for several videos.
    #[arg(long, value_name = "DIR|PATH,PATH,...")]
    frames: Vec<String>,
    /// What the model is told to be.
    #[arg(long)]
    system: Option<String>,
    /// A JSON file with a whole conversation in the Qwen format instead; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "image", "frames", "system"])]
    messages: Option<PathBuf>,
    /// Number the pictures in the prompt: "Picture 1: ".
    #[arg(long)]
    add_vision_id: bool,
    /// Print one JSON object: text, token ids, usage, timings, and the rates reached.
    #[arg(long)]
    json: bool,
    /// Room for this many tokens, prompt and answer together [default: as many as are needed].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let request = request(&args)?;
    let (checkpoint, frontend) = args.model.open()?;
    let prepared = frontend.prepare(&request)?;
    let mut options = EngineOptions::exactly(&frontend, &prepared);
    options.context_tokens = args.context.or(options.context_tokens);
    let mut engine = args.model.load(checkpoint, frontend, options)?;

    let mut generation = engine.generate_prepared(prepared)?;
    let mut stdout = output::stdout();
    for token in &mut generation {
        let token = token?;
        if !args.json {
            stdout.write_all(token.text.as_bytes())?;
            stdout.flush()?;
        }
    }
    let answer = generation.answer().cloned();
    drop(generation);
    let Some(answer) = answer else { bail!("the answer ended without a result") };
    if !args.json {
        writeln!(stdout)?;
        return Ok(ExitCode::SUCCESS);
    }
    let resident = host::resident();
    let peaks = engine.measure();
    let mut object = output::answer(None, &answer);
    object["load_ms"] = json!(engine.load_ms());
    object["rates"] = output::rates(&engine, peaks);
    object["memory"] = output::memory(engine.plan(), resident);
    writeln!(stdout, "{object}")?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &Args) -> anyhow::Result<Request> {
    let mut request = match &args.messages {
        Some(file) => {
            let text = if file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin()).context("standard input")?
            } else {
                std::fs::read_to_string(file).with_context(|| file.display().to_string())?
            };
            let value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            let mut request = Request::new(messages_from_json(&value, "messages")?);
            request.base_dir = directory_of(file);
            request
        }
        None => {
            let mut parts: Vec<Part> = args.image.iter().map(|i| Part::image(i.as_str())).collect();
            for list in &args.frames {
                parts.push(Part::video_frames(frames(list)?.iter().map(String::as_str)));
            }
            parts.push(Part::text(args.prompt.as_deref().unwrap_or_default()));
            let system = args.system.as_deref().map(Message::system);
            Request::new(system.into_iter().chain([Message::user(parts)]).collect())
        }
    };
    request.add_vision_id = args.add_vision_id;
    args.sampling.apply(&mut request);
    Ok(request)
}

fn frames(list: &str) -> anyhow::Result<Vec<String>> {
    if !Path::new(list).is_dir() {
        return Ok(list.split(',').map(str::to_string).collect());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(list).with_context(|| list.to_string())? {
        let path = entry.with_context(|| list.to_string())?.path();
        if path.is_file() {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(files)
}
