//! From pixels to the rows that the vision tower reads.
//!
//! Order and arithmetic are those of the slow image processor of transformers 4.57.6
//! (`image_processing_qwen2_vl.py`, `_preprocess`).

use qwenvl_graph::config::VisionConfig;

use super::decode::Rgb8;

/// Colour normalisation: a channel value `v` in 0..=255 becomes `(v / 255 - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Mean of red, green and blue, on the scale 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f32; 3],
}

impl Normalize {
    /// What all published checkpoints use: the constants of CLIP.
    pub const CLIP: Normalize =
        Normalize { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.261_302_6, 0.275_777_1] };

    /// The normalised value of every byte in every channel. The division by 255 is rounded from
    /// float64 to float32, and the rest is float32, as in the slow processor.
    fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|c| {
            std::array::from_fn(|v| ((v as f64 / 255.0) as f32 - self.mean[c]) / self.std[c])
        })
    }
}

/// Writes the patches of one temporal slice as float32 rows.
///
/// `frames` are the `temporal_patch_size` frames of the slice, equal in size (an image is given as
/// often as that). With `h` x `w` patches, `out` is `[h * w, 1176]`: rows in blocks of 2x2 patches
/// (block row, block column, row in block, column in block), values of a row in the order channel,
/// frame, y, x. In general, the 2 is `spatial_merge_size` and 1176 is `patch_dim()`.
///
/// # Panics
/// If the number of frames, their sizes or the length of `out` do not fit together.
pub fn write_patches(frames: &[&Rgb8], normalize: &Normalize, config: &VisionConfig, out: &mut [f32]) {
    let (patch, merge) = (config.patch_size, config.spatial_merge_size);
    let (width, height) = (frames[0].width() as usize, frames[0].height() as usize);
    assert_eq!(frames.len(), config.temporal_patch_size, "frames of a slice");
    assert!(frames.iter().all(|f| (f.width(), f.height()) == (frames[0].width(), frames[0].height())));
    assert!(
        width.is_multiple_of(patch * merge) && height.is_multiple_of(patch * merge),
        "size {width}x{height}"
    );
    let (h, w) = (height / patch, width / patch);
    assert_eq!(out.len(), h * w * config.patch_dim(), "values of {h}x{w} patches");

    let table = normalize.table();
    let mut rows = out.chunks_exact_mut(config.patch_dim());
    for (block_y, block_x) in grid(h / merge, w / merge) {
        for (in_y, in_x) in grid(merge, merge) {
            let (top, left) = ((block_y * merge + in_y) * patch, (block_x * merge + in_x) * patch);
            let mut lines = rows.next().expect("a row for every patch").chunks_exact_mut(patch);
            for (c, table) in table.iter().enumerate() {
                for frame in frames {
                    for y in top..top + patch {
                        let line = lines.next().expect("a line for every channel, frame and y");
                        let pixels = &frame.data()[(y * width + left) * 3..][..patch * 3];
                        for (value, pixel) in line.iter_mut().zip(pixels.chunks_exact(3)) {
                            *value = table[usize::from(pixel[c])];
                        }
                    }
                }
            }
        }
    }
}

/// All `(y, x)` in row order.
fn grid(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |y| (0..w).map(move |x| (y, x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplying_by_the_rescale_factor_gives_the_same_table_as_dividing() {
        // The reference multiplies by the float64 that `preprocessor_config.json` spells out.
        let table = Normalize { mean: [0.0; 3], std: [1.0; 3] }.table();
        for (v, divided) in table[0].iter().enumerate() {
            let multiplied = (v as f64 * 0.00392156862745098) as f32;
            assert_eq!(divided.to_bits(), multiplied.to_bits(), "value {v}");
        }
    }
}
