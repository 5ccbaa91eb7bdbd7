//! Which frames of a video are looked at, and how large they may be.
//!
//! Source: qwen-vl-utils 0.0.14, `vision_process.py` (`calculate_video_frame_range`, `smart_nframes`,
//! `fetch_video`).

use qwenvl_graph::PixelLimits;

use crate::error::{Error, Result};

/// Frames come in pairs: a temporal slice has two.
const FRAME_FACTOR: u64 = 2;
/// Frames per second that are looked at, unless a request says otherwise.
const FPS: f64 = 2.0;
/// Least number of frames, unless a request says otherwise.
const MIN_FRAMES: u64 = 4;
/// Greatest number of frames, unless a request says otherwise.
const MAX_FRAMES: u64 = 768;
/// Least area of a frame of a video file, in pixels: 128 tokens.
pub const MIN_FRAME_PIXELS: f64 = (128 * 784) as f64;
/// Greatest area of a frame of a video file, in pixels: 768 tokens.
pub const MAX_FRAME_PIXELS: f64 = (768 * 784) as f64;
/// Pixels of all frames together: 0.9 · 128000 tokens.
const TOTAL_PIXELS: f64 = 90_316_800.0;

/// The keys beside a video file in a message that choose its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoOptions {
    /// Frames to take from each second; 2 if neither this nor `nframes` is given.
    pub fps: Option<f64>,
    /// Number of frames to take; not together with `fps`.
    pub nframes: Option<u32>,
    /// Least number of frames that `fps` may lead to; 4 if absent.
    pub min_frames: Option<u32>,
    /// Greatest number of frames that `fps` may lead to; 768 or all if absent.
    pub max_frames: Option<u32>,
    /// Where to begin, in seconds.
    pub video_start: Option<f64>,
    /// Where to end, in seconds.
    pub video_end: Option<f64>,
    /// Upper bound on the pixels of all frames together; 90,316,800 if absent.
    pub total_pixels: Option<u64>,
}

/// The frames to look at in a video of `total` frames at `video_fps`, by their number in display order.
///
/// # Errors
/// [`Error::Request`] if `fps` and `nframes` are both given, a number of the options is none that can be, the range is
/// empty, or the number of frames that follows is below 2 or above those in the range.
pub fn sample(total: u64, video_fps: f64, options: &VideoOptions) -> Result<Vec<u64>> {
    let fail = |field: &str, found: String, expected: String| {
        Err(Error::Request { field: field.into(), found, expected })
    };
    if total == 0 || !(video_fps > 0.0 && video_fps.is_finite()) {
        return fail("video", format!("{total} frames at {video_fps} fps"), "frames and their rate".into());
    }
    if let Some(fps) = options.fps.filter(|fps| !(*fps > 0.0 && fps.is_finite())) {
        return fail("fps", fps.to_string(), "a finite number above zero".into());
    }
    for (field, seconds) in [("video_start", options.video_start), ("video_end", options.video_end)] {
        if let Some(seconds) = seconds.filter(|s| !(*s >= 0.0 && s.is_finite())) {
            return fail(field, seconds.to_string(), "a finite number of seconds, zero or above".into());
        }
    }
    if total == 1 {
        return fail("video", "a film of one frame".into(), "two or more: give it as an image".into());
    }
    let (start, end) = range(total, video_fps, options)?;
    let total = end - start + 1;
    let frames = match (options.nframes, options.fps) {
        (Some(_), Some(fps)) => {
            return fail("nframes", format!("a number beside fps {fps}"), "one of nframes and fps".into());
        }
        (Some(n), None) => (f64::from(n) / FRAME_FACTOR as f64).round_ties_even() as u64 * FRAME_FACTOR,
        (None, fps) => {
            let least = options.min_frames.map_or(MIN_FRAMES, u64::from).next_multiple_of(FRAME_FACTOR);
            let most = options.max_frames.map_or(MAX_FRAMES.min(total), u64::from);
            let most = most / FRAME_FACTOR * FRAME_FACTOR;
            let wanted = total as f64 / video_fps * fps.unwrap_or(FPS);
            let wanted = wanted.max(least as f64).min(most as f64).min(total as f64);
            (wanted / FRAME_FACTOR as f64).floor() as u64 * FRAME_FACTOR
        }
    };
    if !(FRAME_FACTOR..=total).contains(&frames) {
        let found = format!("options that lead to {frames} frames of {total}");
        return fail(
            "video",
            found,
            format!("between {FRAME_FACTOR} and {total} frames: change nframes or fps"),
        );
    }
    Ok(linspace(start, end, frames))
}

/// First and last frame of the part between `video_start` and `video_end`.
fn range(total: u64, video_fps: f64, options: &VideoOptions) -> Result<(u64, u64)> {
    let (start, end) = (options.video_start, options.video_end);
    let duration = total as f64 / video_fps;
    let clamp = |seconds: f64| seconds.clamp(0.0, duration) * video_fps;
    let first = start.map_or(0, |s| clamp(s).ceil() as u64);
    let last = end.map_or(total - 1, |s| (clamp(s).floor() as u64).min(total - 1));
    // A video of one frame has an empty range only if one was asked for.
    if (start.is_some() || end.is_some()) && first >= last {
        return Err(Error::Request {
            field: if start.is_some() { "video_start" } else { "video_end" }.into(),
            found: format!("a range from frame {first} to frame {last}"),
            expected: format!("a later end: the video has {total} frames in {duration:.2} s"),
        });
    }
    Ok((first, last))
}

/// `n` numbers from `start` to `end`, both included, rounded half to even. As `torch.linspace` in
/// float32: from the start in the first half, from the end in the second.
fn linspace(start: u64, end: u64, n: u64) -> Vec<u64> {
    let (first, last) = (start as f32, end as f32);
    let step = (last - first) / (n - 1) as f32;
    let value = |i: u64| {
        if i < n / 2 { step.mul_add(i as f32, first) } else { last - step * (n - i - 1) as f32 }
    };
    (0..n).map(|i| value(i).round_ties_even() as u64).map(|i| i.clamp(start, end)).collect()
}

/// Bounds on the area of each of `frames` frames. `least` and `most` stand in for [`MIN_FRAME_PIXELS`]
/// and [`MAX_FRAME_PIXELS`]; `min_pixels` and `max_pixels` are the request's own.
pub fn frame_limits(
    frames: usize,
    options: &VideoOptions,
    (least, most): (f64, f64),
    (min_pixels, max_pixels): (Option<u64>, Option<u64>),
) -> PixelLimits {
    let least = min_pixels.map_or(least, |n| n as f64);
    let total = options.total_pixels.map_or(TOTAL_PIXELS, |n| n as f64);
    let share = total / frames.max(1) as f64 * FRAME_FACTOR as f64;
    let budget = most.min(share).max((least * 1.05).floor());
    let most = max_pixels.map_or(budget, |n| budget.min(n as f64));
    PixelLimits { min_pixels: least, max_pixels: most }
}
