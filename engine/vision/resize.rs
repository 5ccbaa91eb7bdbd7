//! Pillow's antialiased bicubic resize, bit for bit.
//!
//! Source: `src/libImaging/Resample.c` of Pillow 13.0.0 (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`), and for the order of passes the compiled `ImagingResample`.

use super::decode::Rgb8;
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::resample::{PRECISION_BITS, weighted_rows};

/// Radius of the bicubic kernel, in output pixels when reducing and in input pixels when enlarging.
const RADIUS: f64 = 2.0;
/// Rows that are filtered along x together: whole blocks of the kernel.
const STRIP_ROWS: usize = 16;

/// `image` resized to `width` x `height`, both positive. A side that does not change is not filtered.
pub fn resize(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
    resize_on(1, image, width, height)
}

/// As [`resize`], on up to `threads` threads, with the same result.
pub fn resize_on(threads: usize, image: &Rgb8, width: u32, height: u32) -> Rgb8 {
    let size = (image.width() as usize, image.height() as usize);
    let (out_width, out_height) = (width as usize, height as usize);
    let data = if vertical_first(size, (out_width, out_height)) {
        let narrow = resize_height(threads, image.data(), size.0, size.1, out_height);
        resize_width(threads, &narrow, size.0, out_width).unwrap_or(narrow)
    } else {
        match resize_width(threads, image.data(), size.0, out_width) {
            Some(wide) => resize_height(threads, &wide, out_width, size.1, out_height),
            None => resize_height(threads, image.data(), out_width, size.1, out_height),
        }
    };
    Rgb8::trusted(width, height, data)
}

/// The order of passes, `(width, height)` in and out. Pillow up to 12 always filters rows first;
/// Pillow 13 begins with the columns if the height loses more than twice what the width loses.
/// Every pass rounds to bytes, so that the order shows in the last bits.
fn vertical_first(input: (usize, usize), output: (usize, usize)) -> bool {
    let lost = |i: usize, o: usize| i as i64 - o as i64;
    let (width, height) = (lost(input.0, output.0), lost(input.1, output.1));
    height > 0 && height > 2 * width
}

/// `data` (`[rows, width, 3]`) with other rows; a copy if the height does not change.
fn resize_height(threads: usize, data: &[u8], width: usize, height: usize, out_height: usize) -> Vec<u8> {
    if height == out_height {
        return data.to_vec();
    }
    let (row, taps) = (width * 3, Taps::new(height, out_height));
    let mut out = vec![0; out_height * row];
    in_parts(threads, &mut out, row, |first, out| filter(data, row, &taps, first, out));
    out
}

/// `data` (`[rows, width, 3]`) with other columns; `None` if the width does not change.
///
/// A strip of rows is transposed so that pixel `x` of all its rows lies together; filtering along x
/// is then the same as filtering along y, with an inner loop over contiguous values.
fn resize_width(threads: usize, data: &[u8], width: usize, out_width: usize) -> Option<Vec<u8>> {
    const ROW: usize = 3 * STRIP_ROWS;
    if width == out_width {
        return None;
    }
    let columns = Taps::new(width, out_width);
    let rows = data.len() / (width * 3);
    let mut out = vec![0; rows * out_width * 3];
    in_parts(threads, &mut out, out_width * 3, |first, out| {
        let mut strip = vec![0; width * ROW];
        let mut filtered = vec![0; out_width * ROW];
        let data = &data[first * width * 3..][..out.len() / out_width * width];
        let strips = data.chunks(width * 3 * STRIP_ROWS).zip(out.chunks_mut(out_width * 3 * STRIP_ROWS));
        for (data, out) in strips {
            for (r, row) in data.chunks_exact(width * 3).enumerate() {
                for (to, from) in strip.as_chunks_mut::<ROW>().0.iter_mut().zip(row.as_chunks::<3>().0) {
                    to[r * 3..r * 3 + 3].copy_from_slice(from);
                }
            }
            filter(&strip, ROW, &columns, 0, &mut filtered);
            for (r, row) in out.chunks_exact_mut(out_width * 3).enumerate() {
                for (to, from) in row.as_chunks_mut::<3>().0.iter_mut().zip(filtered.as_chunks::<ROW>().0) {
                    to.copy_from_slice(&from[r * 3..r * 3 + 3]);
                }
            }
        }
    });
    Some(out)
}

/// Rows of `row` values of `out`, in as many parts as there are threads; `work` is told its first row.
fn in_parts(threads: usize, out: &mut [u8], row: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    let rows = out.len() / row;
    let part = rows.div_ceil(threads.max(1)).next_multiple_of(STRIP_ROWS);
    if part >= rows {
        return work(0, out);
    }
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(part * row).enumerate() {
            let work = &work;
            scope.spawn(move || work(i * part, out));
        }
    });
}

/// Which inputs an output is made of, along one side.
struct Taps {
    /// `(first input, number of inputs)` of each output.
    spans: Vec<(usize, usize)>,
    /// Weights of each output, `stride` apart, with [`PRECISION_BITS`] fractional bits.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = RADIUS * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps { spans: Vec::with_capacity(output), weights: vec![0; output * stride], stride };
        let mut real = vec![0.0; stride];
        for i in 0..output {
            let center = (i as f64 + 0.5) * scale;
            // `as` truncates, and takes what is below zero to zero.
            let lo = (center - support + 0.5) as usize;
            let hi = ((center + support + 0.5) as usize).min(input);
            let real = &mut real[..hi - lo];
            for (j, weight) in real.iter_mut().enumerate() {
                *weight = bicubic(((j + lo) as f64 - center + 0.5) * (1.0 / filter_scale));
            }
            let sum: f64 = real.iter().sum();
            for (fixed, weight) in taps.weights[i * stride..].iter_mut().zip(real) {
                let scaled = *weight / sum * f64::from(1 << PRECISION_BITS);
                *fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            taps.spans.push((lo, hi - lo));
        }
        taps
    }

    fn output(&self, i: usize) -> (usize, &[i32]) {
        let (first, n) = self.spans[i];
        (first, &self.weights[i * self.stride..][..n])
    }
}

/// The Keys kernel with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Makes every row of `out`, of which the first is row `first` of the result, from the rows of `source`
/// that its taps name, `row` values each.
fn filter(source: &[u8], row: usize, taps: &Taps, first: usize, out: &mut [u8]) {
    let isa = Isa::detect();
    for (i, out) in out.chunks_exact_mut(row).enumerate() {
        let (lo, weights) = taps.output(first + i);
        weighted_rows(isa, &source[lo * row..][..weights.len() * row], weights, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::resample::ROUND;

    /// The definition, one output value at a time, in i64.
    fn reference(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
        let pass = |data: &[u8], (w, h): (usize, usize), out: usize, along_x: bool| -> Vec<u8> {
            let taps = Taps::new(if along_x { w } else { h }, out);
            let (ow, oh) = if along_x { (out, h) } else { (w, out) };
            let mut result = Vec::with_capacity(ow * oh * 3);
            for y in 0..oh {
                for x in 0..ow {
                    for c in 0..3 {
                        let (lo, weights) = taps.output(if along_x { x } else { y });
                        let mut sum = i64::from(ROUND);
                        for (k, weight) in weights.iter().enumerate() {
                            let (sx, sy) = if along_x { (lo + k, y) } else { (x, lo + k) };
                            sum += i64::from(*weight) * i64::from(data[(sy * w + sx) * 3 + c]);
                        }
                        result.push((sum >> PRECISION_BITS).clamp(0, 255) as u8);
                    }
                }
            }
            result
        };
        let (w, h) = (image.width() as usize, image.height() as usize);
        let (ow, oh) = (width as usize, height as usize);
        let mut data = image.data().to_vec();
        if vertical_first((w, h), (ow, oh)) {
            data = pass(&data, (w, h), oh, false);
        }
        if w != ow {
            data = pass(&data, (w, data.len() / (w * 3)), ow, true);
        }
        if h != oh && !vertical_first((w, h), (ow, oh)) {
            data = pass(&data, (ow, h), oh, false);
        }
        Rgb8::trusted(width, height, data)
    }

    fn extremes(width: u32, height: u32) -> Rgb8 {
        let mut state = 1_u32;
        let data = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if state >> 31 == 0 { 0 } else { 255 }
            })
            .collect();
        Rgb8::trusted(width, height, data)
    }

    #[test]
    fn resize_equals_its_definition() {
        for (w, h, ow, oh) in [
            (1, 1, 28, 28),
            (37, 23, 28, 56),
            (64, 9, 28, 28),
            (28, 90, 28, 28),
            (90, 28, 28, 28),
            (61, 150, 5, 61),
        ] {
            let image = extremes(w, h);
            let expected = reference(&image, ow, oh);
            for threads in [1, 2, 5] {
                assert_eq!(
                    resize_on(threads, &image, ow, oh),
                    expected,
                    "{w}x{h} to {ow}x{oh}, {threads} threads"
                );
            }
        }
    }

    #[test]
    fn sums_of_products_never_overflow() {
        let limit = f64::from(i32::MAX - ROUND) / 255.0;
        for input in (1..200).chain([333, 1000, 4095, 20_000]) {
            for output in (28..300).step_by(28).chain([1, 2, 3, 5, 7, 1036, 4760]) {
                let taps = Taps::new(input, output);
                for i in 0..output {
                    let total: i64 = taps.output(i).1.iter().map(|w| i64::from(w.abs())).sum();
                    assert!((total as f64) < limit, "{input} to {output}, output {i}: {total}");
                    assert!((total as f64) < 1.7 * f64::from(1 << PRECISION_BITS), "{input} to {output}");
                }
            }
        }
    }
}
