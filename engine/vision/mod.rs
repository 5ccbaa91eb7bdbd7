//! Pictures and videos: from a path or URL to the rows that the vision tower reads.
//!
//! [`source`] finds the bytes, [`decode`] makes pixels of them, [`Processor`] chooses the size,
//! [`mod@resize`] resizes, [`patchify`] normalises and reorders. A picture is resized once, to the
//! size that qwen-vl-utils would give it. [`video`] does the same for the sampled frames of a file.

mod access;
pub mod decode;
pub mod patchify;
pub mod resize;
pub mod source;
pub mod video;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qwenvl_graph::config::VisionConfig;
use qwenvl_graph::{Grid, PixelLimits, smart_resize};
use serde::Deserialize;

pub use access::{FetchLimits, FileAccess, UrlAccess};
pub use decode::{MAX_PIXELS, Rgb8};
pub use patchify::Normalize;
pub use source::ImageSource;
pub use video::{Sampling, VideoOptions};

use crate::error::{Error, Result};

/// The keys beside a picture in a message that say how large it should become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageOptions {
    /// Least area after the resize, in pixels; the processor's if absent.
    pub min_pixels: Option<u64>,
    /// Largest area after the resize, in pixels; the processor's if absent.
    pub max_pixels: Option<u64>,
    /// Height to aim at, in pixels. Only with `resized_width`, and then the limits above are ignored.
    pub resized_height: Option<u32>,
    /// Width to aim at, in pixels.
    pub resized_width: Option<u32>,
    /// Whether to turn the picture as its EXIF data say; the processor's choice if absent.
    pub exif_orientation: Option<bool>,
}

/// Whether frames are one picture or a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisualKind {
    /// One picture.
    Image,
    /// Frames in order of time.
    Video,
}

/// Where the time of loading went. Of several frames it is the sum, although they load in parallel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Reading files and downloading.
    pub fetch: Duration,
    /// From encoded bytes to pixels.
    pub decode: Duration,
    /// From pixels to the size of the model's choice.
    pub resize: Duration,
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Timings) {
        self.fetch += other.fetch;
        self.decode += other.decode;
        self.resize += other.resize;
    }
}

/// A picture or video that is to be loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct VisualRequest {
    /// What the frames are.
    pub kind: VisualKind,
    /// One source for an image or a video file, one for each frame of a video given as a list.
    pub sources: Vec<ImageSource>,
    /// The size to give them.
    pub options: ImageOptions,
    /// Says that the source is a video file, and which of its frames to take.
    pub file: Option<VideoOptions>,
}

/// A picture or video in the size in which the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visual {
    /// Image or video.
    pub kind: VisualKind,
    /// Its patches.
    pub grid: Grid,
    /// The resized frames, all of the same size; an image has one.
    pub frames: Vec<Rgb8>,
    /// `(width, height)` of the first frame before the resize.
    pub original: (u32, u32),
    /// Which frames of a video file they are.
    pub sampling: Option<Sampling>,
    /// What it took to make.
    pub timings: Timings,
}

impl Visual {
    /// Writes the patches of temporal slice `t` to `out`, `[grid.h * grid.w, patch_dim]` float32, in
    /// the order of [`patchify::write_patch`].
    ///
    /// # Panics
    /// If `t` is not below `grid.t`, `out` has another length, or `config` is not the one that the
    /// processor was made with.
    pub fn write_slice(&self, t: usize, normalize: &Normalize, config: &VisionConfig, out: &mut [f32]) {
        assert_eq!(out.len(), self.grid.patches_per_slice() * config.patch_dim(), "values of a slice");
        let table = normalize.table();
        for (index, row) in out.chunks_exact_mut(config.patch_dim()).enumerate() {
            patchify::write_patch(self, t, index, &table, config, row);
        }
    }
}

/// Told how many tokens pictures will have in all, as far as is known, before any of these is decoded. What it refuses
/// ends the loading.
pub type Room<'a> = &'a (dyn Fn(usize) -> Result<()> + Sync);

/// How a checkpoint wants its pictures: `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    /// Bounds on the area of a resized picture that says nothing itself.
    pub limits: PixelLimits,
    /// Bounds on the area of a frame of a video file that says nothing itself.
    pub video_limits: PixelLimits,
    /// Whether pictures are turned as their EXIF data say. qwen-vl-utils does not.
    pub exif_orientation: bool,
    /// Colour normalisation.
    pub normalize: Normalize,
    /// Sides of resized pictures are multiples of this many pixels.
    factor: u64,
    /// Frames in a temporal slice.
    temporal_patch_size: usize,
    /// Side of a patch in pixels.
    patch_size: usize,
}

/// `preprocessor_config.json`; keys that say nothing new for this engine are left out.
#[derive(Deserialize)]
struct PreprocessorConfig {
    min_pixels: Option<f64>,
    max_pixels: Option<f64>,
    size: Option<BTreeMap<String, serde_json::Value>>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    rescale_factor: Option<f64>,
    patch_size: Option<usize>,
    merge_size: Option<usize>,
    temporal_patch_size: Option<usize>,
}

impl Processor {
    /// Reads the text of a `preprocessor_config.json`; `None` gives the values of the published
    /// checkpoints, which also stand in for absent keys. Newer files may write the limits as
    /// `size: {shortest_edge, longest_edge}`, which count pixels all the same.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the text is malformed, a value is out of range, or a patch size is
    /// not the one of `config`.
    pub fn from_json(text: Option<&str>, config: &VisionConfig) -> Result<Self> {
        let fail = |problem: String| {
            Err(Error::Checkpoint {
                path: "preprocessor_config.json".into(),
                problem,
                help: "take the file from the checkpoint that config.json comes from".into(),
            })
        };
        let file: PreprocessorConfig = match serde_json::from_str(text.unwrap_or("{}")) {
            Ok(file) => file,
            Err(e) => return fail(e.to_string()),
        };
        let size = |key: &str| file.size.as_ref().and_then(|s| s.get(key)).and_then(|v| v.as_f64());
        let limits = PixelLimits {
            min_pixels: file.min_pixels.or(size("shortest_edge")).unwrap_or(PixelLimits::IMAGE.min_pixels),
            max_pixels: file.max_pixels.or(size("longest_edge")).unwrap_or(PixelLimits::IMAGE.max_pixels),
        };
        if !(limits.min_pixels >= 1.0 && limits.max_pixels >= limits.min_pixels) {
            let PixelLimits { min_pixels, max_pixels } = limits;
            return fail(format!(
                "found min_pixels {min_pixels}, max_pixels {max_pixels}, expected 1 <= min <= max"
            ));
        }
        let normalize = Normalize {
            mean: file.image_mean.unwrap_or(Normalize::CLIP.mean),
            std: file.image_std.unwrap_or(Normalize::CLIP.std),
        };
        if !(normalize.mean.iter().all(|m| m.is_finite()) && normalize.std.iter().all(|s| *s > 0.0)) {
            return fail(
                "found an image_mean or image_std that is out of range, expected positive image_std".into(),
            );
        }
        if let Some(factor) = file.rescale_factor.filter(|f| (f * 255.0 - 1.0).abs() > 1e-6) {
            return fail(format!("found rescale_factor {factor}, expected 1/255"));
        }
        for (key, found, expected) in [
            ("patch_size", file.patch_size, config.patch_size),
            ("merge_size", file.merge_size, config.spatial_merge_size),
            ("temporal_patch_size", file.temporal_patch_size, config.temporal_patch_size),
        ] {
            if let Some(found) = found.filter(|found| *found != expected) {
                return fail(format!("found {key} {found}, expected {expected} as in config.json"));
            }
        }
        Ok(Processor {
            limits,
            video_limits: PixelLimits {
                min_pixels: video::MIN_FRAME_PIXELS,
                max_pixels: video::MAX_FRAME_PIXELS,
            },
            exif_orientation: false,
            normalize,
            factor: config.pixel_factor() as u64,
            temporal_patch_size: config.temporal_patch_size,
            patch_size: config.patch_size,
        })
    }

    /// The `(height, width)` that a picture of `width` x `height` pixels is resized to.
    ///
    /// The rules are those of qwen-vl-utils 0.0.14 (`fetch_image`), with the processor's limits as
    /// the default ones.
    ///
    /// # Errors
    /// [`Error::Request`] if only one of `resized_height` and `resized_width` is given, or `min_pixels` is above
    /// `max_pixels`; [`Error::Graph`] if the picture has an impossible size, or would have more than [`MAX_PIXELS`]
    /// after the resize.
    pub fn target_size(&self, width: u32, height: u32, options: &ImageOptions) -> Result<(u32, u32)> {
        let limits = PixelLimits {
            min_pixels: options.min_pixels.map_or(self.limits.min_pixels, |n| n as f64),
            max_pixels: options.max_pixels.map_or(self.limits.max_pixels, |n| n as f64),
        };
        self.size_within(width, height, options, limits)
    }

    /// The `(height, width)` that each of `n` frames of a video file is resized to; the rules are those
    /// of `fetch_video` in qwen-vl-utils 0.0.14.
    ///
    /// # Errors
    /// Those of [`Processor::target_size`].
    pub fn frame_size(
        &self,
        n: usize,
        width: u32,
        height: u32,
        options: &ImageOptions,
        video: &VideoOptions,
    ) -> Result<(u32, u32)> {
        let defaults = (self.video_limits.min_pixels, self.video_limits.max_pixels);
        let own = (options.min_pixels, options.max_pixels);
        self.size_within(width, height, options, video::frame_limits(n, video, defaults, own))
    }

    /// `limits` count unless a size is asked for.
    fn size_within(
        &self,
        width: u32,
        height: u32,
        options: &ImageOptions,
        limits: PixelLimits,
    ) -> Result<(u32, u32)> {
        let (height, width, limits) = match (options.resized_height, options.resized_width) {
            (Some(height), Some(width)) => (height, width, self.limits),
            (None, None) if limits.min_pixels > limits.max_pixels => {
                let default = |given: Option<u64>| if given.is_none() { " (the default)" } else { "" };
                return Err(Error::Request {
                    field: "min_pixels".into(),
                    found: format!(
                        "min_pixels {}{} above max_pixels {}{}",
                        limits.min_pixels,
                        default(options.min_pixels),
                        limits.max_pixels,
                        default(options.max_pixels)
                    ),
                    expected: "at most max_pixels: give both".into(),
                });
            }
            (None, None) => (height, width, limits),
            (height, _) => {
                let (given, absent) = match height {
                    Some(_) => ("resized_height", "resized_width"),
                    None => ("resized_width", "resized_height"),
                };
                return Err(Error::Request {
                    field: absent.into(),
                    found: "nothing".into(),
                    expected: format!("a number of pixels, because {given} is given"),
                });
            }
        };
        let (h, w) = smart_resize(height.into(), width.into(), self.factor, limits)?;
        if h.saturating_mul(w) > MAX_PIXELS {
            let reason = format!(
                "it would be enlarged to {w}x{h}, more than the limit of {MAX_PIXELS} pixels; lower min_pixels"
            );
            return Err(Error::Graph(qwenvl_graph::Error::ImageSize {
                width: width.into(),
                height: height.into(),
                reason,
            }));
        }
        Ok((h as u32, w as u32))
    }

    /// Resizes a picture.
    ///
    /// # Errors
    /// Those of [`Processor::target_size`].
    pub fn image(&self, rgb: Rgb8, options: &ImageOptions) -> Result<Visual> {
        let frame = self.frame(1, rgb, options, Timings::default())?;
        self.visual(VisualKind::Image, vec![frame], "in memory")
    }

    /// Resizes a list of frames that are a video, each as if it were an image; this is what
    /// qwen-vl-utils 0.0.8 does with a list. No frames are dropped; the last one is repeated to
    /// fill the last temporal slice.
    ///
    /// # Errors
    /// Those of [`Processor::target_size`]; [`Error::Request`] if there is no frame;
    /// [`Error::Image`] if frames differ in size after the resize.
    pub fn video_frames(&self, frames: Vec<Rgb8>, options: &ImageOptions) -> Result<Visual> {
        let frames: Result<Vec<Frame>> =
            frames.into_iter().map(|rgb| self.frame(1, rgb, options, Timings::default())).collect();
        self.visual(VisualKind::Video, frames?, "in memory")
    }

    /// Fetches, decodes and resizes pictures and videos, frames in parallel on as many threads as
    /// the machine has processors. The result is in the order of `requests`.
    ///
    /// The sizes of all pictures on this machine are read first, and `room` is told what they come to. Those that are
    /// downloaded and frames of video files are told of one by one, before they are decoded.
    ///
    /// # Errors
    /// That of the first frame, in order, that [`ImageSource::fetch`], [`decode::decode`],
    /// [`Processor::image`] or [`Processor::video_frames`] refuse; that of `room`; [`Error::Request`] if a
    /// request has no source, or is an image with several.
    pub fn load(&self, requests: &[VisualRequest], limits: &FetchLimits, room: Room) -> Result<Vec<Visual>> {
        let slots = self.temporal_patch_size;
        let jobs: Vec<Job> = requests
            .iter()
            .flat_map(|request| {
                let n = request.sources.len();
                // The last frame fills its slice.
                let slots = move |i| if i + 1 < n { 1 } else { n.next_multiple_of(slots) - i };
                request.sources.iter().enumerate().map(move |(i, source)| Job {
                    request,
                    source,
                    slots: slots(i),
                })
            })
            .collect();
        let known = in_parallel(jobs.len(), |i| self.known_cost(&jobs[i], limits))?;
        let total = AtomicU64::new(known.iter().sum());
        let take = |cost: u64| {
            let total = total.fetch_add(cost, Ordering::Relaxed) + cost;
            room(total.div_ceil(slots as u64) as usize)
        };
        take(0)?;
        // Processors that have no picture of their own help with the others.
        let processors = std::thread::available_parallelism().map_or(1, |p| p.get());
        let threads = processors / jobs.len().max(1);
        let mut loaded = in_parallel(jobs.len(), |i| match &jobs[i].request.file {
            None => {
                // A file may have changed meanwhile.
                let take = |cost: u64| take(cost.saturating_sub(known[i]));
                self.load_frame(threads, &jobs[i], limits, &take).map(Loaded::Frame)
            }
            Some(video) => self.load_file(&jobs[i], video, limits, &take).map(Loaded::File),
        })?
        .into_iter();
        let mut visuals = Vec::with_capacity(requests.len());
        for request in requests {
            let name = request.sources.first().map_or("", ImageSource::name);
            let (mut frames, mut file) = (Vec::new(), None);
            for loaded in loaded.by_ref().take(request.sources.len()) {
                match loaded {
                    Loaded::Frame(frame) => frames.push(frame),
                    Loaded::File(visual) => file = Some(visual),
                }
            }
            visuals.push(match file {
                Some(visual) => visual,
                None => self.visual(request.kind, frames, name)?,
            });
        }
        Ok(visuals)
    }

    /// What a picture of this size costs in a number of temporal slots: a token costs as many as a slice has.
    fn cost(&self, (height, width): (u32, u32), slots: usize) -> u64 {
        u64::from(height) * u64::from(width) / (self.factor * self.factor) * slots as u64
    }

    /// The cost of a picture that is on this machine, else 0.
    fn known_cost(&self, job: &Job, limits: &FetchLimits) -> Result<u64> {
        if job.request.file.is_some() {
            return Ok(0);
        }
        let Some((width, height)) = job.source.size(limits)? else { return Ok(0) };
        let size = self.target_size(width, height, &job.request.options);
        Ok(self.cost(size.map_err(|e| named(job, e))?, job.slots))
    }

    /// Loads the sampled frames of a video file.
    fn load_file(&self, job: &Job, video: &VideoOptions, limits: &FetchLimits, take: Take) -> Result<Visual> {
        let (source, options) = (job.source, &job.request.options);
        let start = Instant::now();
        let file = source.local(limits)?;
        let fetch = start.elapsed();
        let (taken, pass) = (Cell::new(0), Cell::new(None));
        let size_of = |n: usize, width: u32, height: u32| {
            if u64::from(width) * u64::from(height) > limits.max_pixels {
                let problem = format!(
                    "its frames have {width}x{height} pixels, more than the limit of {}",
                    limits.max_pixels
                );
                return Err(video::error(source.name(), problem, "reduce its size before sending it"));
            }
            let size = self.frame_size(n, width, height, options, video).map_err(|e| named(job, e))?;
            // Another decoder may have tried before and asked for the same.
            let cost = self.cost(size, n.next_multiple_of(self.temporal_patch_size));
            take(cost.saturating_sub(taken.replace(cost)))?;
            drop(pass.take());
            pass.set(Some(DECODING.enter(video::decoding_bytes((width, height)))));
            Ok(size)
        };
        let loaded = video::load(&file, source.name(), video, &size_of)?;
        let frame = |resized| Frame { resized, original: loaded.original, timings: Timings::default() };
        let frames = loaded.frames.into_iter().map(frame).collect();
        let visual = self.visual(VisualKind::Video, frames, source.name())?;
        let timings = Timings { fetch, decode: loaded.decode, resize: loaded.resize };
        Ok(Visual { sampling: Some(loaded.sampling), timings, ..visual })
    }

    fn load_frame(&self, threads: usize, job: &Job, limits: &FetchLimits, take: Take) -> Result<Frame> {
        let (source, options) = (job.source, &job.request.options);
        if let Some(rgb) = source.decoded() {
            return self.frame(threads, rgb, options, Timings::default());
        }
        let start = Instant::now();
        let bytes = source.bytes(limits)?;
        let fetched = Instant::now();
        let (width, height) = decode::size(Cursor::new(&bytes), source.name(), limits.max_pixels)?;
        let size = self.target_size(width, height, options).map_err(|e| named(job, e))?;
        take(self.cost(size, job.slots))?;
        let _pass = DECODING.enter(u64::from(width) * u64::from(height) * BYTES_PER_PIXEL);
        let exif = options.exif_orientation.unwrap_or(self.exif_orientation);
        let rgb = decode::decode_oriented(&bytes, source.name(), exif)?;
        let timings = Timings { fetch: fetched - start, decode: fetched.elapsed(), resize: Duration::ZERO };
        self.frame(threads, rgb, options, timings)
    }

    fn frame(&self, threads: usize, rgb: Rgb8, options: &ImageOptions, timings: Timings) -> Result<Frame> {
        let original = (rgb.width(), rgb.height());
        let (height, width) = self.target_size(original.0, original.1, options)?;
        let start = Instant::now();
        let resized = resize::resize_on(threads, rgb, width, height);
        Ok(Frame { resized, original, timings: Timings { resize: start.elapsed(), ..timings } })
    }

    fn visual(&self, kind: VisualKind, frames: Vec<Frame>, name: &str) -> Result<Visual> {
        let request = |found: String, expected: &str| Error::Request {
            field: if kind == VisualKind::Image { "image" } else { "video" }.into(),
            found,
            expected: expected.into(),
        };
        let Some(first) = frames.first() else { return Err(request("no frame".into(), "at least one")) };
        if kind == VisualKind::Image && frames.len() > 1 {
            return Err(request(format!("{} frames", frames.len()), "one, or a video"));
        }
        let (original, size) = (first.original, (first.resized.width(), first.resized.height()));
        let mut timings = Timings::default();
        for (i, frame) in frames.iter().enumerate() {
            let (w, h) = (frame.resized.width(), frame.resized.height());
            if (w, h) != size {
                let problem = format!(
                    "frame {i} of the video that starts with it becomes {w}x{h} pixels and frame 0 {}x{}",
                    size.0, size.1
                );
                return Err(source::image_error(name, problem, "give frames of one size"));
            }
            timings += frame.timings;
        }
        let grid = Grid {
            t: frames.len().div_ceil(self.temporal_patch_size),
            h: size.1 as usize / self.patch_size,
            w: size.0 as usize / self.patch_size,
        };
        let frames = frames.into_iter().map(|f| f.resized).collect();
        Ok(Visual { kind, grid, frames, original, sampling: None, timings })
    }
}

/// One picture, or a video file.
struct Job<'a> {
    request: &'a VisualRequest,
    source: &'a ImageSource,
    /// Temporal slots that a picture fills.
    slots: usize,
}

/// Told the cost of pictures that will be decoded.
type Take<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// What one thread has loaded.
enum Loaded {
    Frame(Frame),
    File(Visual),
}

/// One picture after the resize.
struct Frame {
    resized: Rgb8,
    original: (u32, u32),
    timings: Timings,
}

/// Says of which picture or video an error about its size is.
fn named(job: &Job, e: Error) -> Error {
    let name = job.source.name();
    match e {
        Error::Request { field, found, expected } => {
            Error::Request { field: format!("{field} of {name}"), found, expected }
        }
        Error::Graph(qwenvl_graph::Error::ImageSize { width, height, reason }) => {
            let (problem, help) = reason.split_once("; ").unwrap_or((&reason, "give another size"));
            let problem = format!("{width}x{height} pixels: {problem}");
            match job.request.file {
                None => source::image_error(name, problem, help),
                Some(_) => video::error(name, problem, help),
            }
        }
        other => other,
    }
}

/// What the largest pixels take that a decoder gives.
const BYTES_PER_PIXEL: u64 = 8;

/// Pictures and films of this process that are being decoded: together they have at most this many bytes. A single
/// one may have more.
static DECODING: Gate = Gate { most_bytes: 1 << 30, bytes: Mutex::new(0), left: Condvar::new() };

/// Lets work in as long as there is memory for it.
struct Gate {
    most_bytes: u64,
    bytes: Mutex<u64>,
    left: Condvar,
}

impl Gate {
    /// Waits until these bytes fit beside the others, or are alone.
    fn enter(&self, bytes: u64) -> Pass<'_> {
        let full = |held: &mut u64| *held > 0 && *held + bytes > self.most_bytes;
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *self.left.wait_while(held, full).unwrap_or_else(PoisonError::into_inner) += bytes;
        Pass { gate: self, bytes }
    }
}

/// Memory in use. Given back when dropped.
struct Pass<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        *self.gate.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.gate.left.notify_all();
    }
}

/// `work(0)` to `work(n - 1)` on all processors, in order. After an error no new work is begun, and
/// the result is the first error in order among the work that was.
fn in_parallel<T: Send>(n: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, |p| p.get()).min(n);
    if threads <= 1 {
        return (0..n).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<T>)>> = Mutex::new(Vec::with_capacity(n));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        return;
                    }
                    let result = work(i);
                    if result.is_err() {
                        next.store(n, Ordering::Relaxed);
                    }
                    done.lock().expect("no holder panics").push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_waits_until_there_is_memory_for_it_and_any_may_run_alone() {
        static GATE: Gate = Gate { most_bytes: 10, bytes: Mutex::new(0), left: Condvar::new() };
        let first = GATE.enter(6);
        let second = GATE.enter(4);
        let (sender, entered) = std::sync::mpsc::channel();
        let third = std::thread::spawn(move || {
            let pass = GATE.enter(100);
            sender.send(()).unwrap();
            drop(pass);
        });
        drop(first);
        assert!(entered.recv_timeout(Duration::from_millis(50)).is_err(), "4 bytes are held");
        drop(second);
        entered.recv_timeout(Duration::from_secs(10)).unwrap();
        third.join().unwrap();
        assert_eq!(*GATE.bytes.lock().unwrap(), 0);
    }

    #[test]
    fn pictures_and_films_wait_until_there_is_memory_for_them() {
        let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/samples");
        let config = qwenvl_graph::ModelConfig::from_json(include_str!("../tiny_model/config.json")).unwrap();
        let processor = Processor::from_json(None, &config.vision).unwrap();
        for (name, kind, file) in [
            ("00_shape1.png", VisualKind::Image, None),
            ("11_mp4.mp4", VisualKind::Video, Some(VideoOptions::default())),
        ] {
            let sources = vec![ImageSource::file(samples.join(name))];
            let request = VisualRequest { kind, sources, options: ImageOptions::default(), file };
            let all = DECODING.enter(DECODING.most_bytes);
            let (sender, loaded) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    sender.send(processor.load(&[request], &FetchLimits::default(), &|_| Ok(()))).unwrap();
                });
                assert!(loaded.recv_timeout(Duration::from_millis(500)).is_err(), "{name} waits");
                drop(all);
                assert!(loaded.recv_timeout(Duration::from_secs(60)).unwrap().is_ok(), "{name}");
            });
        }
    }
}
