//! `qwenvl run`: one answer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use qwenvl::prompt::{Message, Part, VideoInput, VideoPart, messages_from_json};
use qwenvl::{EngineOptions, Request, host};
use serde_json::json;

use super::model::{ModelArgs, SamplingArgs, directory_of};
use super::{boxes, output};

/// Arguments of `qwenvl run`.
#[derive(clap::Args)]
pub struct Args {
    /// The question.
    #[arg(required_unless_present = "messages")]
    prompt: Option<String>,
    /// A picture: a path, a URL, or a data: URI. May be repeated; pictures come before the question.
    #[arg(long, value_name = "PATH|URL|data:")]
    image: Vec<String>,
    /// A video file: H.264 in MP4; any other with the ffmpeg program installed. May be repeated.
    #[arg(long, value_name = "PATH|URL|data:")]
    video: Vec<String>,
    /// Frames to look at in each second of a video file [default: 2].
    #[arg(long, value_name = "N", requires = "video", conflicts_with = "nframes")]
    fps: Option<f64>,
    /// Number of frames to look at in a video file.
    #[arg(long, value_name = "N", requires = "video")]
    nframes: Option<u32>,
    /// Where to begin in a video file, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "video")]
    video_start: Option<f64>,
    /// Where to end in a video file, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "video")]
    video_end: Option<f64>,
    /// The frames of a video: a directory of pictures, taken in the order of their names, or paths
    /// separated by commas. May be repeated for several videos.
    #[arg(long, value_name = "DIR|PATH,PATH,...")]
    frames: Vec<String>,
    /// What the model is told to be.
    #[arg(long)]
    system: Option<String>,
    /// A JSON file with a whole conversation instead, in the Qwen or the OpenAI format: an array of
    /// messages, or an object as a line of a batch file; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "image", "video", "frames", "system"])]
    messages: Option<PathBuf>,
    /// Number the pictures in the prompt: "Picture 1: ".
    #[arg(long)]
    add_vision_id: bool,
    /// Draw the boxes of the answer into the first picture and write it to this file, as PNG. Ask for
    /// them, for instance: "Detect the bounding box of the cat".
    #[arg(long, value_name = "FILE")]
    draw_boxes: Option<PathBuf>,
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
    let canvas = match &args.draw_boxes {
        Some(file) => Some((file, boxes::Canvas::first_picture(&request, args.model.exif_orientation)?)),
        None => None,
    };
    let (checkpoint, frontend) = args.model.open()?;
    let prepared = frontend.prepare(&request)?;
    for notice in &prepared.notices {
        eprintln!("note: {notice}");
    }
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
    if let Some((file, canvas)) = canvas {
        canvas.draw(&answer.text, file)?;
    }
    if !args.json {
        writeln!(stdout)?;
        return Ok(ExitCode::SUCCESS);
    }
    let resident = host::resident();
    let peaks = engine.measure();
    let mut object = output::answer(&answer);
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
            let value: serde_json::Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            if value.is_object() {
                let mut request = Request::from_json(&value, directory_of(file))?;
                request.add_vision_id |= args.add_vision_id;
                request.keep_special_tokens |= args.draw_boxes.is_some();
                args.sampling.apply_given(&mut request);
                return Ok(request);
            }
            let mut request = Request::new(messages_from_json(&value, "messages")?);
            request.base_dir = directory_of(file);
            request
        }
        None => {
            let mut parts: Vec<Part> = args.image.iter().map(|i| Part::image(i.as_str())).collect();
            for video in &args.video {
                let options = VideoPart {
                    fps: args.fps,
                    nframes: args.nframes,
                    video_start: args.video_start,
                    video_end: args.video_end,
                    ..VideoPart::new(VideoInput::File(video.clone()))
                };
                parts.push(Part::Video(options));
            }
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
    request.keep_special_tokens |= args.draw_boxes.is_some();
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
