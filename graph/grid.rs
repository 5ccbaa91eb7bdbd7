//! From the size of a picture to the patches and tokens it becomes.
//!
//! One set of functions computes this for the plan, the prompt and the run, so that the three
//! can never disagree.

use crate::error::{Error, Result};

/// Largest ratio of the longer to the shorter side of a picture that the model accepts.
pub const MAX_ASPECT_RATIO: f64 = 200.0;

/// The patch grid of one image or video, before the 2x2 merge: what the reference calls `grid_thw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal slices: 1 for an image, frame pairs for a video.
    pub t: usize,
    /// Patch rows.
    pub h: usize,
    /// Patch columns.
    pub w: usize,
}

impl Grid {
    /// Number of patches of one temporal slice.
    pub const fn patches_per_slice(&self) -> usize {
        self.h * self.w
    }

    /// Number of patches in all slices.
    pub const fn patches(&self) -> usize {
        self.t * self.h * self.w
    }

    /// Number of rows the merger gives, and of placeholder tokens in the prompt.
    pub const fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// Bounds on the area of a resized picture, in pixels. Real-valued, as video budgets are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelLimits {
    /// Pictures with a smaller area are enlarged.
    pub min_pixels: f64,
    /// Pictures with a larger area are reduced.
    pub max_pixels: f64,
}

impl PixelLimits {
    /// The defaults of qwen-vl-utils for images: 4 to 16384 tokens of 28x28 pixels.
    pub const IMAGE: PixelLimits = PixelLimits { min_pixels: 3136.0, max_pixels: 12_845_056.0 };
}

/// The `(height, width)` that a picture is resized to: multiples of `factor`, area within `limits`,
/// aspect ratio kept as far as rounding allows.
///
/// This is `smart_resize` of qwen-vl-utils 0.0.14 in float64 with its order of operations.
/// Where that one answers with a side of zero pixels, this one is an error.
///
/// # Errors
/// [`Error::ImageSize`] for a side of zero, an aspect ratio above 200, limits that are not ordered
/// positive finite numbers, or a target that vanishes in one direction.
pub fn smart_resize(height: u64, width: u64, factor: u64, limits: PixelLimits) -> Result<(u64, u64)> {
    let fail = |reason: String| Err(Error::ImageSize { width, height, reason });
    let PixelLimits { min_pixels, max_pixels } = limits;
    if height == 0 || width == 0 {
        return fail("a side is zero; give a picture with at least one pixel".into());
    }
    if !(min_pixels.is_finite() && max_pixels.is_finite() && min_pixels > 0.0 && max_pixels >= min_pixels) {
        return fail(format!(
            "min_pixels {min_pixels} and max_pixels {max_pixels} must satisfy 0 < min_pixels <= max_pixels"
        ));
    }
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let ratio = h.max(w) / h.min(w);
    if ratio > MAX_ASPECT_RATIO {
        return fail(format!("aspect ratio {ratio:.1} is above {MAX_ASPECT_RATIO}; crop or pad the picture"));
    }
    let round = |side: f64| (side / f).round_ties_even() * f;
    let (mut hb, mut wb) = (round(h).max(f), round(w).max(f));
    if hb * wb > max_pixels {
        let beta = (h * w / max_pixels).sqrt();
        (hb, wb) = ((h / beta / f).floor() * f, (w / beta / f).floor() * f);
    } else if hb * wb < min_pixels {
        let beta = (min_pixels / (h * w)).sqrt();
        (hb, wb) = ((h * beta / f).ceil() * f, (w * beta / f).ceil() * f);
    }
    if hb < 1.0 || wb < 1.0 {
        return fail(format!(
            "a side shrinks to zero below max_pixels {max_pixels}; raise max_pixels or crop the picture"
        ));
    }
    Ok((hb as u64, wb as u64))
}
