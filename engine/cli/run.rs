//! `qwenvl run`: one answer.

use std::cmp::Ordering;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use qwenvl::prompt::{ImagePart, Message, Part, SizeOptions, VideoInput, VideoPart, messages_from_json};
use qwenvl::{EngineOptions, Request, host};
use serde_json::{Value, json};

use super::model::{ModelArgs, PictureArgs, SamplingArgs, directory_of};
use super::output::Waiting;
use super::{boxes, input, output};

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
    #[arg(long, value_name = "N", requires = "video", conflicts_with = "nframes", value_parser = rate)]
    #[arg(allow_negative_numbers = true)]
    fps: Option<f64>,
    /// Number of frames to look at in a video file.
    #[arg(long, value_name = "N", requires = "video", value_parser = clap::value_parser!(u32).range(2..))]
    nframes: Option<u32>,
    /// Fewest frames that --fps may lead to [default: 4].
    #[arg(long, value_name = "N", requires = "video", conflicts_with = "nframes")]
    min_frames: Option<u32>,
    /// Most frames that --fps may lead to [default: 768].
    #[arg(long, value_name = "N", requires = "video", conflicts_with = "nframes")]
    max_frames: Option<u32>,
    /// Where to begin in a video file, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "video", value_parser = seconds, allow_negative_numbers = true)]
    video_start: Option<f64>,
    /// Where to end in a video file, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "video", value_parser = seconds, allow_negative_numbers = true)]
    video_end: Option<f64>,
    /// Most pixels of all frames of a video file together [default: 90316800].
    #[arg(long, value_name = "PIXELS", requires = "video", value_parser = clap::value_parser!(u64).range(1..))]
    total_pixels: Option<u64>,
    /// The frames of a video: a directory of pictures, taken in the order of their names (9 before 10), or
    /// paths separated by commas. May be repeated for several videos.
    #[arg(long, value_name = "DIR|PATH,PATH,...")]
    frames: Vec<String>,
    /// Make pictures and frames this high, rounded to a multiple of 28 pixels, whatever their own size.
    #[arg(long, value_name = "PIXELS", requires = "resized_width", value_parser = clap::value_parser!(u32).range(1..))]
    resized_height: Option<u32>,
    /// Make pictures and frames this wide.
    #[arg(long, value_name = "PIXELS", requires = "resized_height", value_parser = clap::value_parser!(u32).range(1..))]
    resized_width: Option<u32>,
    /// What the model is told to be.
    #[arg(long)]
    system: Option<String>,
    /// A JSON file with a whole conversation instead, in the Qwen or the OpenAI format: an array of
    /// messages, or an object as a line of a batch file; - for standard input. Its parts have their options
    /// beside them.
    #[arg(long, value_name = "FILE", conflicts_with_all = OF_THE_PROMPT)]
    messages: Option<PathBuf>,
    /// Number the pictures and videos in the prompt: "Picture 1: ".
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
    pictures: PictureArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Options that say what is asked, as a file of messages does.
const OF_THE_PROMPT: [&str; 14] = [
    "prompt",
    "image",
    "video",
    "fps",
    "nframes",
    "min_frames",
    "max_frames",
    "video_start",
    "video_end",
    "total_pixels",
    "frames",
    "resized_height",
    "resized_width",
    "system",
];

/// A number of `--fps`.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a number above 0".into())
}

/// A place in a video.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0);
    seconds.ok_or_else(|| "expected a number of seconds, 0 or more".into())
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut request, custom_id) = request(&args)?;
    let (checkpoint, mut frontend) = args.model.open()?;
    args.pictures.apply(frontend.processor_mut())?;
    let waiting = Waiting::on("reading pictures and videos");
    let canvas = match &args.draw_boxes {
        Some(file) => {
            output::writable(file)
                .with_context(|| format!("--draw-boxes {}: cannot write it", file.display()))?;
            Some((file, boxes::Canvas::first_picture(&mut request, args.pictures.exif_orientation)?))
        }
        None => None,
    };
    // Where the context is not said it is what the request needs.
    frontend.max_prompt_tokens = args.context.unwrap_or(frontend.max_prompt_tokens);
    let prepared = frontend.prepare(&request)?;
    drop(waiting);
    for notice in &prepared.notices {
        output::note(format_args!("note: {notice}"));
    }
    let mut options = EngineOptions::exactly(&frontend, &prepared);
    options.context_tokens = args.context.or(options.context_tokens);
    let mut engine = args.model.load(checkpoint, frontend, options)?;

    let mut waiting = Some(Waiting::on(if args.json { "answering" } else { "reading the prompt" }));
    let mut generation = engine.generate_prepared(prepared)?;
    let mut stdout = output::stdout();
    for token in &mut generation {
        let token = token?;
        if !args.json {
            drop(waiting.take());
            stdout.write_all(token.text.as_bytes())?;
            stdout.flush()?;
        }
    }
    let answer = generation.answer().cloned();
    drop(generation);
    drop(waiting);
    let Some(answer) = answer else { bail!("the answer ended without a result") };
    if args.json {
        let resident = host::resident();
        let peaks = engine.measure();
        let mut object = output::answer(&answer);
        object["custom_id"] = custom_id;
        object["device"] = json!(engine.plan().device.name);
        object["load_ms"] = json!(engine.load_ms());
        object["rates"] = output::rates(&engine, peaks);
        object["memory"] = output::memory(engine.plan(), resident);
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(stdout)?;
        output::tell_cut(&answer, request.max_tokens, "--context N makes more room");
    }
    stdout.flush()?;
    if let Some((file, canvas)) = canvas {
        canvas.draw(&answer.text, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The request, and its `custom_id` if it comes from a file that has one.
fn request(args: &Args) -> anyhow::Result<(Request, Value)> {
    let mut custom_id = Value::Null;
    let mut request = match &args.messages {
        Some(file) => {
            let value = read_json(file)?;
            custom_id = output::custom_id(&value);
            if value.is_object() {
                let mut request = Request::from_json(&value, directory_of(file))?;
                request.add_vision_id |= args.add_vision_id;
                request.keep_special_tokens |= args.draw_boxes.is_some();
                args.sampling.apply_given(&mut request);
                return Ok((request, custom_id));
            }
            let mut request = Request::new(messages_from_json(&value, "messages")?);
            request.base_dir = directory_of(file);
            request
        }
        None => {
            let size = SizeOptions {
                resized: args.resized_height.zip(args.resized_width),
                ..SizeOptions::default()
            };
            let mut parts = Vec::new();
            for image in &args.image {
                parts.push(Part::Image(ImagePart { size, ..ImagePart::new(image.as_str()) }));
            }
            for video in &args.video {
                let options = VideoPart {
                    size,
                    fps: args.fps,
                    nframes: args.nframes,
                    min_frames: args.min_frames,
                    max_frames: args.max_frames,
                    video_start: args.video_start,
                    video_end: args.video_end,
                    total_pixels: args.total_pixels,
                    ..VideoPart::new(VideoInput::File(video.clone()))
                };
                parts.push(Part::Video(options));
            }
            for list in &args.frames {
                let frames = frames(list)?.into_iter().map(Into::into).collect();
                parts.push(Part::Video(VideoPart { size, ..VideoPart::new(VideoInput::Frames(frames)) }));
            }
            parts.push(Part::text(args.prompt.as_deref().unwrap_or_default()));
            let system = args.system.as_deref().map(Message::system);
            Request::new(system.into_iter().chain([Message::user(parts)]).collect())
        }
    };
    request.add_vision_id = args.add_vision_id;
    args.sampling.apply(&mut request);
    request.keep_special_tokens |= args.draw_boxes.is_some();
    Ok((request, custom_id))
}

/// A file, or standard input for `-`.
fn read_json(file: &Path) -> anyhow::Result<Value> {
    let (name, text) = if file.as_os_str() == "-" {
        ("standard input".to_string(), input::text(std::io::stdin()))
    } else {
        (file.display().to_string(), std::fs::File::open(file).and_then(input::text))
    };
    let text = text.with_context(|| format!("cannot read {name}"))?;
    serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))
}

/// The frames that `--frames` names.
fn frames(list: &str) -> anyhow::Result<Vec<String>> {
    if !Path::new(list).is_dir() {
        return Ok(list.split(',').map(str::to_string).collect());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(list).with_context(|| list.to_string())? {
        let entry = entry.with_context(|| list.to_string())?;
        let (path, hidden) = (entry.path(), entry.file_name().as_encoded_bytes().starts_with(b"."));
        if path.is_file() && !hidden {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    if files.is_empty() {
        bail!("--frames {list}: found no files in this directory, expected the pictures of a video");
    }
    files.sort_by(|a, b| by_number(a, b));
    Ok(files)
}

/// Compares names with their digits read as numbers: `9.png` comes before `10.png`.
fn by_number(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (x, y) = (piece(&mut left), piece(&mut right));
        let is_number = |piece: &str| piece.starts_with(|c: char| c.is_ascii_digit());
        let order = if is_number(x) && is_number(y) {
            // Of numbers without leading zeros, the longer is greater.
            let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            x.len().cmp(&y.len()).then(x.cmp(y))
        } else {
            x.cmp(y)
        };
        if order.is_ne() || x.is_empty() {
            return order.then(a.cmp(b));
        }
    }
}

/// Takes what a name begins with: a number, or what precedes the next one.
fn piece<'a>(name: &mut &'a str) -> &'a str {
    let is_digit = |c: char| c.is_ascii_digit();
    let number = name.starts_with(is_digit);
    let end = name.find(|c: char| is_digit(c) != number).unwrap_or(name.len());
    let (piece, rest) = name.split_at(end);
    *name = rest;
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let long = format!("a{}", "9".repeat(40));
        let names =
            ["", "1", "a", "a1", "a01", "a1b2", "a1b10", "a2", "a10", "a010b", &long, "b", "b1", "é2", "é10"];
        let mut sorted = names;
        sorted.reverse();
        sorted.sort_by(|a, b| by_number(a, b));
        assert_eq!(
            sorted,
            ["", "1", "a", "a01", "a1", "a1b2", "a1b10", "a2", "a10", "a010b", &long, "b", "b1", "é2", "é10"]
        );
    }
}
