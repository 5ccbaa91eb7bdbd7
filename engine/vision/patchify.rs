//! From pixels to the rows that the vision tower reads.
//!
//! Order and arithmetic are those of the slow image processor of transformers 4.57.6
//! (`image_processing_qwen2_vl.py`, `_preprocess`).

use qwenvl_graph::config::VisionConfig;

use super::Visual;

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
    pub fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|c| {
            std::array::from_fn(|v| ((v as f64 / 255.0) as f32 - self.mean[c]) / self.std[c])
        })
    }
}

/// Writes patch `index` of temporal slice `t` of `visual` as one float32 row.
///
/// Patches count in blocks of 2x2 (block row, block column, row in block, column in block); the
/// values of a row are in the order channel, frame of the slice, y, x: `[patch_dim]`, 1176 for the
/// published models. The last frame stands in for frames that the last slice lacks: an image is
/// every frame of its only slice. In general, the 2 is `spatial_merge_size`.
///
/// # Panics
/// If there is no such slice or patch, or `out` is not `[patch_dim]`.
pub fn write_patch(
    visual: &Visual,
    t: usize,
    index: usize,
    table: &[[f32; 256]; 3],
    config: &VisionConfig,
    out: &mut [f32],
) {
    let (patch, merge) = (config.patch_size, config.spatial_merge_size);
    assert!(t < visual.grid.t && index < visual.grid.patches_per_slice(), "patch {index} of slice {t}");
    assert_eq!(out.len(), config.patch_dim(), "values of a patch");
    let (block, inside) = (index / (merge * merge), index % (merge * merge));
    let blocks = visual.grid.w / merge;
    let top = (block / blocks * merge + inside / merge) * patch;
    let left = (block % blocks * merge + inside % merge) * patch;

    // Channel, frame, line.
    let (channel, of_frame) = (out.len() / 3, patch * patch);
    let (red, rest) = out.split_at_mut(channel);
    let (green, blue) = rest.split_at_mut(channel);
    let first = t * config.temporal_patch_size;
    for number in 0..config.temporal_patch_size {
        let start = number * of_frame;
        if first + number >= visual.frames.len() {
            // The values of the frame before.
            for values in [&mut *red, green, blue] {
                values.copy_within(start - of_frame..start, start);
            }
            continue;
        }
        let frame = &visual.frames[first + number];
        let width = frame.width() as usize;
        for y in 0..patch {
            let pixels = &frame.data()[((top + y) * width + left) * 3..][..patch * 3];
            let line = start + y * patch..start + (y + 1) * patch;
            let values = red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
            for (((r, g), b), pixel) in values.zip(pixels.as_chunks::<3>().0) {
                *r = table[0][usize::from(pixel[0])];
                *g = table[1][usize::from(pixel[1])];
                *b = table[2][usize::from(pixel[2])];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn multiplying_by_the_rescale_factor_gives_the_same_table_as_dividing() {
        // The reference multiplies by the float64 that `preprocessor_config.json` spells out.
        let table = super::Normalize { mean: [0.0; 3], std: [1.0; 3] }.table();
        for (v, divided) in table[0].iter().enumerate() {
            let multiplied = (v as f64 * 0.00392156862745098) as f32;
            assert_eq!(divided.to_bits(), multiplied.to_bits(), "value {v}");
        }
    }
}
