//! Pictures and videos: from a path or URL to the rows that the vision tower reads.
//!
//! [`source`] finds the bytes, [`decode`] makes pixels of them, [`Processor`] chooses the size,
//! [`mod@resize`] resizes, [`patchify`] normalises and reorders. A picture is resized once, to the
//! size that qwen-vl-utils would give it. [`video`] does the same for the sampled frames of a file.

pub mod decode;
pub mod patchify;
pub mod resize;
pub mod source;
pub mod video;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use qwenvl_graph::config::VisionConfig;
use qwenvl_graph::{Grid, PixelLimits, smart_resize};
use serde::Deserialize;

pub use decode::{MAX_PIXELS, Rgb8};
pub use patchify::Normalize;
pub use source::{FetchLimits, ImageSource};
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
    /// [`Error::Request`] if only one of `resized_height` and `resized_width` is given;
    /// [`Error::Graph`] if the picture has an impossible size; [`Error::Image`] if it would have
    /// more than [`MAX_PIXELS`] after the resize.
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
            return Err(source::image_error(
                &format!("of {width}x{height} pixels"),
                format!("it would be enlarged to {w}x{h}, more than the limit of {MAX_PIXELS} pixels"),
                "lower min_pixels",
            ));
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
    /// # Errors
    /// That of the first frame, in order, that [`ImageSource::fetch`], [`decode::decode`],
    /// [`Processor::image`] or [`Processor::video_frames`] refuse; [`Error::Request`] if a request
    /// has no source, or is an image with several.
    pub fn load(&self, requests: &[VisualRequest], limits: &FetchLimits) -> Result<Vec<Visual>> {
        let jobs: Vec<(&ImageSource, &VisualRequest)> =
            requests.iter().flat_map(|r| r.sources.iter().map(move |s| (s, r))).collect();
        // Processors that have no picture of their own help with the others.
        let processors = std::thread::available_parallelism().map_or(1, |p| p.get());
        let threads = processors / jobs.len().max(1);
        let mut loaded = in_parallel(jobs.len(), |i| {
            let (source, request) = jobs[i];
            match &request.file {
                None => self.load_frame(threads, source, &request.options, limits).map(Job::Frame),
                Some(video) => self.load_file(source, &request.options, video).map(Job::File),
            }
        })?
        .into_iter();
        let mut visuals = Vec::with_capacity(requests.len());
        for request in requests {
            let name = request.sources.first().map_or("", ImageSource::name);
            let (mut frames, mut file) = (Vec::new(), None);
            for job in loaded.by_ref().take(request.sources.len()) {
                match job {
                    Job::Frame(frame) => frames.push(frame),
                    Job::File(visual) => file = Some(visual),
                }
            }
            visuals.push(match file {
                Some(visual) => visual,
                None => self.visual(request.kind, frames, name)?,
            });
        }
        Ok(visuals)
    }

    /// Loads the sampled frames of a video file.
    fn load_file(
        &self,
        source: &ImageSource,
        options: &ImageOptions,
        video: &VideoOptions,
    ) -> Result<Visual> {
        let start = Instant::now();
        let file = source.local(&FetchLimits::video())?;
        let fetch = start.elapsed();
        let size_of = |n: usize, width: u32, height: u32| self.frame_size(n, width, height, options, video);
        let loaded = video::load(file.path(), source.name(), video, &size_of)?;
        let frame = |resized| Frame { resized, original: loaded.original, timings: Timings::default() };
        let frames = loaded.frames.into_iter().map(frame).collect();
        let visual = self.visual(VisualKind::Video, frames, source.name())?;
        let timings = Timings { fetch, decode: loaded.decode, resize: loaded.resize };
        Ok(Visual { sampling: Some(loaded.sampling), timings, ..visual })
    }

    fn load_frame(
        &self,
        threads: usize,
        source: &ImageSource,
        options: &ImageOptions,
        limits: &FetchLimits,
    ) -> Result<Frame> {
        if let Some(rgb) = source.decoded() {
            return self.frame(threads, rgb.clone(), options, Timings::default());
        }
        let start = Instant::now();
        let bytes = source.fetch(limits)?;
        let fetched = Instant::now();
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

/// What one thread has loaded.
enum Job {
    Frame(Frame),
    File(Visual),
}

/// One picture after the resize.
struct Frame {
    resized: Rgb8,
    original: (u32, u32),
    timings: Timings,
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
