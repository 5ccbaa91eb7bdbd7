//! Video files: from a path to the frames that the model looks at.
//!
//! Only the frames that [`sample()`] chooses are kept, resized at once: memory is that of the sampled frames in
//! the model's size and of a few whole ones for each thread, however long the film.
//! H.264 in MP4 is decoded in this program, everything else by the `ffmpeg` program if it is installed.
//!
//! Sampling and sizes are those of qwen-vl-utils 0.0.14. It resizes frames with torchvision; here it is
//! Pillow's filter, as for images: values differ by 1 or 2 levels. A rotation that the file asks for is
//! applied, as players do.

mod ffmpeg;
mod h264;
mod mp4;
mod sample;
mod yuv;

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::decode::{Rgb8, still_picture};
use super::resize::resize;
use super::source::Local;
use crate::error::{Error, Result};
pub(super) use h264::decoding_bytes;
use mp4::Problem;
pub use sample::{MAX_FRAME_PIXELS, MIN_FRAME_PIXELS, VideoOptions, frame_limits, sample};

/// Largest frame that is decoded, in pixels: that of H.264's highest level, a little over 8K.
pub const MAX_FRAME_AREA: u64 = 139_264 * 256;

/// Which frames of a file were looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// What decoded it: `built-in` or `ffmpeg`.
    pub decoder: &'static str,
    /// Frames of the file.
    pub total_frames: u64,
    /// Frames per second of the file, on average.
    pub fps: f64,
    /// The frames looked at, by number.
    pub frames: Vec<u64>,
    /// When each of them is shown, in seconds.
    pub seconds: Vec<f64>,
}

impl Eq for Sampling {}

/// The frames of a file, in the size in which the model sees them.
pub(super) struct Loaded {
    pub frames: Vec<Rgb8>,
    /// `(width, height)` of the film.
    pub original: (u32, u32),
    pub sampling: Sampling,
    pub decode: Duration,
    pub resize: Duration,
}

/// The `(height, width)` for `n` frames of a width and height.
pub(super) type SizeOf<'a> = &'a dyn Fn(usize, u32, u32) -> Result<(u32, u32)>;

/// How a picture is turned clockwise for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Not at all.
    None,
    /// By 90 degrees.
    Right,
    /// By 180 degrees.
    Half,
    /// By 270 degrees.
    Left,
}

impl Rotation {
    /// The size after the turn.
    fn size(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            Rotation::None | Rotation::Half => (width, height),
            Rotation::Right | Rotation::Left => (height, width),
        }
    }

    /// Turns pixels `[height, width, 3]`.
    fn apply(self, width: u32, height: u32, rgb: Vec<u8>) -> Rgb8 {
        let (w, h) = (width as usize, height as usize);
        let (out_width, out_height) = self.size(width, height);
        if self == Rotation::None {
            return Rgb8::trusted(width, height, rgb);
        }
        let mut out = Vec::with_capacity(rgb.len());
        for y in 0..out_height as usize {
            for x in 0..out_width as usize {
                let (from_x, from_y) = match self {
                    Rotation::Right => (y, h - 1 - x),
                    Rotation::Left => (w - 1 - y, x),
                    _ => (w - 1 - x, h - 1 - y),
                };
                let at = (from_y * w + from_x) * 3;
                out.extend_from_slice(&rgb[at..at + 3]);
            }
        }
        Rgb8::trusted(out_width, out_height, out)
    }
}

/// Loads the sampled frames of a video file. `name` is for messages.
pub(super) fn load(local: &Local, name: &str, options: &VideoOptions, size_of: SizeOf) -> Result<Loaded> {
    let (mut file, input, length) = open(local, name)?;
    if length == 0 {
        return Err(error(name, "it has no bytes", "check where it comes from"));
    }
    let found = match mp4::read(&mut file, length) {
        Ok(track) if matches!(&track.codec, b"avc1" | b"avc3") => match h264::Video::open(file, track) {
            Ok(video) => match built_in(video, name, options, size_of) {
                Ok(result) => return result,
                Err(problem) => problem,
            },
            Err(problem) => problem,
        },
        Ok(track) => Problem::Unsupported(format!("a video in {}", codec_name(&track.codec))),
        Err(Problem::Foreign) => match start(&mut file).as_deref().and_then(still_picture) {
            Some(format) => {
                let problem = format!("it is a picture ({format})");
                return Err(error(name, problem, "give it as an image, in a part of type image"));
            }
            None => Problem::Foreign,
        },
        Err(problem) => problem,
    };
    let what = match found {
        Problem::Bad(problem) => {
            return Err(error(name, problem, "the file is damaged or no video; export or download it again"));
        }
        Problem::Unsupported(what) => what,
        Problem::Foreign => "no MP4".into(),
    };
    match ffmpeg::Tools::find() {
        Some(tools) => by_ffmpeg(&tools, input, name, options, size_of),
        None => Err(error(
            name,
            format!("it is {what}, which takes the programs ffmpeg and ffprobe, and they are not in PATH"),
            "install ffmpeg, or convert the file to H.264 in MP4",
        )),
    }
}

/// The file, as another program can have it, and its length.
fn open<'a>(local: &'a Local, name: &str) -> Result<(File, ffmpeg::Input<'a>, u64)> {
    let path = match local {
        Local::File(path) => path.as_path(),
        #[cfg(unix)]
        Local::Temporary(file) => {
            let io = |source| Error::Io { action: "read", path: std::env::temp_dir(), source };
            let length = file.metadata().map_err(io)?.len();
            return Ok((file.try_clone().map_err(io)?, ffmpeg::Input::Open(file), length));
        }
        #[cfg(not(unix))]
        Local::Temporary(file) => file.path(),
    };
    let io = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
    // Asked before opening: opening a pipe waits for a writer.
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(error(name, "it is not a regular file", "give the path of a video file"));
    }
    Ok((File::open(path).map_err(io)?, ffmpeg::Input::Path(path), metadata.len()))
}

/// The first bytes of a file.
fn start(file: &mut File) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind().ok()?;
    file.take(64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

pub(super) fn error(name: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
    Error::Video { name: name.to_string(), problem: problem.into(), help: help.into() }
}

fn codec_name(codec: &[u8; 4]) -> String {
    match codec {
        b"hvc1" | b"hev1" => "HEVC".into(),
        b"av01" => "AV1".into(),
        b"vp08" => "VP8".into(),
        b"vp09" => "VP9".into(),
        b"mp4v" => "MPEG-4 part 2".into(),
        b"encv" => "encrypted form".into(),
        other => format!("the codec {}", String::from_utf8_lossy(other)),
    }
}

/// The sampled frames as they come, each resized at once.
struct Kept<'a> {
    frames: Vec<Option<Rgb8>>,
    numbers: &'a [u64],
    /// `(height, width)` of the result.
    target: (u32, u32),
    resize: Duration,
}

impl Kept<'_> {
    fn new(numbers: &[u64], target: (u32, u32)) -> Kept<'_> {
        Kept { frames: vec![None; numbers.len()], numbers, target, resize: Duration::ZERO }
    }

    fn keep(&mut self, number: u64, rgb: Rgb8) {
        let start = Instant::now();
        let (height, width) = self.target;
        let resized = resize(rgb, width, height);
        self.resize += start.elapsed();
        let first = self.numbers.partition_point(|&n| n < number);
        // A frame may be sampled twice.
        for (slot, _) in
            self.frames[first..].iter_mut().zip(&self.numbers[first..]).take_while(|(_, n)| **n == number)
        {
            *slot = Some(resized.clone());
        }
    }
}

fn built_in(
    video: h264::Video,
    name: &str,
    options: &VideoOptions,
    size_of: SizeOf,
) -> Result<Result<Loaded>, Problem> {
    let start = Instant::now();
    let (width, height) = video.size();
    let numbers = match sample(video.frames(), video.fps(), options) {
        Ok(numbers) => numbers,
        Err(e) => return Ok(Err(named(name, e))),
    };
    let target = match size_of(numbers.len(), width, height) {
        Ok(target) => target,
        Err(e) => return Ok(Err(e)),
    };
    let mut unique = numbers.clone();
    unique.dedup();
    let mut kept = Kept::new(&numbers, target);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    if let Err(e) = video.decode(&unique, threads, &mut |number, rgb| {
        kept.keep(number, rgb);
        Ok(())
    })? {
        return Ok(Err(e));
    }
    let (frames, resize) = (kept.frames, kept.resize);
    let sampling = Sampling {
        decoder: "built-in",
        total_frames: video.frames(),
        fps: video.fps(),
        seconds: numbers.iter().map(|&n| video.time(n)).collect(),
        frames: numbers,
    };
    let frames: Option<Vec<Rgb8>> = frames.into_iter().collect();
    let frames = frames.ok_or_else(|| Problem::Bad("a frame does not decode".into()))?;
    let decode = start.elapsed().saturating_sub(resize);
    Ok(Ok(Loaded { frames, original: (width, height), sampling, decode, resize }))
}

fn by_ffmpeg(
    tools: &ffmpeg::Tools,
    file: ffmpeg::Input,
    name: &str,
    options: &VideoOptions,
    size_of: SizeOf,
) -> Result<Loaded> {
    let start = Instant::now();
    let probe = tools.probe(file, name)?;
    let total = probe.times.len() as u64;
    let numbers = sample(total, probe.fps, options).map_err(|e| named(name, e))?;
    let mut unique = numbers.clone();
    unique.dedup();
    let mut kept: Option<Kept> = None;
    let mut original = (0, 0);
    tools.decode(file, name, &unique, &mut |number, rgb| {
        let kept = match &mut kept {
            Some(kept) => kept,
            None => {
                original = (rgb.width(), rgb.height());
                kept.insert(Kept::new(&numbers, size_of(numbers.len(), rgb.width(), rgb.height())?))
            }
        };
        kept.keep(number, rgb);
        Ok(())
    })?;
    let (frames, resize) = kept.map_or((Vec::new(), Duration::ZERO), |k| (k.frames, k.resize));
    let decoded = frames.iter().flatten().count();
    let sampling = Sampling {
        decoder: "ffmpeg",
        total_frames: total,
        fps: probe.fps,
        seconds: numbers.iter().map(|&n| probe.times[n as usize] - probe.times[0]).collect(),
        frames: numbers.clone(),
    };
    let frames: Option<Vec<Rgb8>> = frames.into_iter().collect();
    let Some(frames) = frames.filter(|f| f.len() == numbers.len()) else {
        let problem =
            format!("{decoded} of the {} sampled frames decode, of {total} that it announces", numbers.len());
        return Err(error(name, problem, "the file is damaged; repair it by encoding it anew"));
    };
    Ok(Loaded { frames, original, sampling, decode: start.elapsed().saturating_sub(resize), resize })
}

/// Says of which video an error about a request is.
fn named(name: &str, e: Error) -> Error {
    match e {
        Error::Request { field, found, expected } => {
            Error::Request { field: format!("{field} of {name}"), found, expected }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_picture_has_its_corners_where_they_belong() {
        // 2 wide, 3 high: a b / c d / e f.
        let pixels: Vec<u8> = b"abcdef".iter().flat_map(|c| [*c; 3]).collect();
        for (rotation, size, expected) in [
            (Rotation::None, (2, 3), "abcdef"),
            (Rotation::Right, (3, 2), "ecafdb"),
            (Rotation::Half, (2, 3), "fedcba"),
            (Rotation::Left, (3, 2), "bdface"),
        ] {
            let turned = rotation.apply(2, 3, pixels.clone());
            let found: String = turned.data().chunks(3).map(|p| char::from(p[0])).collect();
            assert_eq!(((turned.width(), turned.height()), found.as_str()), (size, expected), "{rotation:?}");
        }
    }
}
