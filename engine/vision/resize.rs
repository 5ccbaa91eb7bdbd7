//! Pillow's antialiased bicubic resize, bit for bit.
//!
//! Source: `src/libImaging/Resample.c` of Pillow 13.0.0 (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`), and for the order of passes the compiled `ImagingResample`.

use std::ops::Range;

use super::decode::Rgb8;
use crate::kernels::cpu::resample::{self, Columns, PRECISION_BITS, STRIP_PADDING, STRIP_ROWS, Weights4};
use crate::kernels::cpu::{Aligned, Isa, zeroed_bytes};

/// Radius of the bicubic kernel, in output pixels when reducing and in input pixels when enlarging.
const RADIUS: f64 = 2.0;
/// Threads from which on it is faster to make a result beside the picture, in parts, than in its place: new memory
/// takes as long as the resizing.
const WORTH_THREADS: usize = 4;

/// `image` resized to `width` x `height`, both positive. A side that does not change is not filtered.
pub fn resize(image: Rgb8, width: u32, height: u32) -> Rgb8 {
    resize_on(1, image, width, height)
}

/// As [`resize`], on up to `threads` threads, with the same result.
///
/// Beside the picture and the result there is memory for a few rows only: what the first pass makes goes into the
/// second at once. On few threads a result that is not much larger takes the place of the picture.
pub fn resize_on(threads: usize, image: Rgb8, width: u32, height: u32) -> Rgb8 {
    let size = (image.width() as usize, image.height() as usize);
    let out_size = (width as usize, height as usize);
    if size == out_size {
        return image;
    }
    let resize = Resize {
        isa: Isa::detect(),
        columns: (size.0 != out_size.0).then(|| Taps::new(size.0, out_size.0).columns()),
        rows: (size.1 != out_size.1).then(|| Taps::new(size.1, out_size.1)),
        rows_first: vertical_first(size, out_size),
        row: size.0 * 3,
        out_row: out_size.0 * 3,
    };
    let ((mut source, start), len) = (image.into_parts(), out_size.0 * out_size.1 * 3);
    if threads < WORTH_THREADS && resize.room(out_size.1) <= start {
        resize.make(0, out_size.1, &mut Pixels { source: Err(start), out: &mut source });
        source.truncate(len);
        source.shrink_to_fit();
        return Rgb8::trusted(width, height, source);
    }
    let mut data = zeroed_bytes(len);
    in_parts(threads, &mut data, resize.out_row, |part, out| {
        let rows = out.len() / resize.out_row;
        resize.make(part, rows, &mut Pixels { source: Ok(&source[start..]), out });
    });
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

/// The picture, and the place of some rows of the result.
struct Pixels<'a> {
    /// Or where it begins in `out`, if the result takes its place.
    source: Result<&'a [u8], usize>,
    out: &'a mut [u8],
}

impl Pixels<'_> {
    fn source(&self) -> &[u8] {
        self.source.unwrap_or_else(|start| &self.out[start..])
    }
}

/// What is done to a picture.
struct Resize {
    isa: Isa,
    columns: Option<Columns>,
    rows: Option<Taps>,
    rows_first: bool,
    /// Values of a row before and after.
    row: usize,
    out_row: usize,
}

impl Resize {
    /// Values that must be free before the picture for the `height` rows of the result to be made in its place: no row
    /// may reach beyond what has been read.
    fn room(&self, height: usize) -> usize {
        let read = |i: usize| match &self.rows {
            Some(rows) => rows.spans[i].0 + rows.spans[i].1,
            None => i + 1,
        };
        (0..height).map(|i| ((i + 1) * self.out_row).saturating_sub(read(i) * self.row)).max().unwrap_or(0)
    }

    /// Makes `count` rows of the result from row `part` on.
    fn make(&self, part: usize, count: usize, pixels: &mut Pixels) {
        let (before, after) = match &self.columns {
            Some(columns) if self.rows_first => (None, Some(columns)),
            columns => (columns.as_ref(), None),
        };
        let mut spare = match &self.columns {
            Some(columns) => vec![0; columns.reach(self.row).max(STRIP_ROWS * self.row)],
            None => Vec::new(),
        };
        let mut output = vec![0; STRIP_ROWS * (self.out_row + STRIP_PADDING)];
        let mut window = self.rows.as_ref().map(|rows| Window::new(self, rows, before, part));
        for first in (part..part + count).step_by(STRIP_ROWS) {
            let some = STRIP_ROWS.min(part + count - first);
            let at = (first - part) * self.out_row;
            match (&mut window, after) {
                // Rows alone, or after columns.
                (Some(window), None) => {
                    for i in first..first + some {
                        window.read(i, pixels.source(), &mut spare);
                        window.weigh(i, &mut pixels.out[at + (i - first) * self.out_row..][..self.out_row]);
                    }
                    continue;
                }
                (Some(window), Some(columns)) => {
                    for i in first..first + some {
                        window.read(i, pixels.source(), &mut []);
                        window.weigh(i, &mut spare[(i - first) * self.row..][..self.row]);
                    }
                    resample::columns(self.isa, columns, &spare, self.row, &mut output);
                }
                (None, _) => self.strip(before, pixels.source(), first, &mut spare, &mut output),
            }
            let out = pixels.out[at..].chunks_exact_mut(self.out_row).take(some);
            let made = output.chunks_exact(self.out_row + STRIP_PADDING);
            out.zip(made).for_each(|(out, made)| out.copy_from_slice(&made[..self.out_row]));
        }
    }

    /// [`STRIP_ROWS`] rows of `source` from `first` on, with other columns if there are any; those beyond the last are of
    /// any value. `spare` is room for rows whose reach is beyond the picture.
    fn strip(
        &self,
        columns: Option<&Columns>,
        source: &[u8],
        first: usize,
        spare: &mut [u8],
        out: &mut [u8],
    ) {
        let rest = &source[first * self.row..];
        let Some(columns) = columns else {
            let stride = out.len() / STRIP_ROWS;
            let rows = out.chunks_exact_mut(stride).zip(rest.chunks_exact(self.row));
            return rows.for_each(|(out, row)| out[..self.row].copy_from_slice(row));
        };
        let rows = if rest.len() < columns.reach(self.row) {
            spare[..rest.len()].copy_from_slice(rest);
            spare
        } else {
            rest
        };
        resample::columns(self.isa, columns, rows, self.row, out);
    }
}

/// Rows of the picture, with other columns if those come first, that outputs are made of: aligned, in cache, and not
/// in the way of a result that takes the place of the picture.
struct Window<'a> {
    resize: &'a Resize,
    rows: &'a Taps,
    columns: Option<&'a Columns>,
    data: Aligned<u8>,
    stride: usize,
    /// Which rows.
    range: Range<usize>,
}

impl<'a> Window<'a> {
    fn new(resize: &'a Resize, rows: &'a Taps, columns: Option<&'a Columns>, part: usize) -> Window<'a> {
        let row = if columns.is_some() { resize.out_row } else { resize.row };
        let stride = (row + STRIP_PADDING).next_multiple_of(64);
        // Room for several times what an output needs, so that rows are seldom moved.
        let capacity = 4 * (4 * rows.stride) + STRIP_ROWS;
        let first = rows.spans[part].0;
        Window {
            resize,
            rows,
            columns,
            data: Aligned::zeroed(capacity * stride),
            stride,
            range: first..first,
        }
    }

    /// Reads the rows up to the last of output `i`. When there is no room for more, those that neither this nor a later
    /// output needs make it.
    fn read(&mut self, i: usize, source: &[u8], spare: &mut [u8]) {
        let (first, count) = self.rows.spans[i];
        while self.range.end < first + count {
            let (start, stride) = (self.range.start, self.stride);
            if (self.range.len() + STRIP_ROWS) * stride > self.data.len() {
                self.data.copy_within((first - start) * stride..self.range.len() * stride, 0);
                self.range.start = first;
            }
            let to = &mut self.data[self.range.len() * stride..][..STRIP_ROWS * stride];
            self.resize.strip(self.columns, source, self.range.end, spare, to);
            self.range.end += STRIP_ROWS;
        }
    }

    /// Makes output `i`.
    fn weigh(&self, i: usize, out: &mut [u8]) {
        let (first, count) = self.rows.spans[i];
        let rows = &self.data[(first - self.range.start) * self.stride..];
        let rows = &rows[..(count - 1) * self.stride + out.len()];
        resample::row(self.resize.isa, rows, self.stride, &self.rows.fours(i)[..count.div_ceil(4)], out);
    }
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
    /// Weights of each output, `stride` fours each; those beyond its inputs are 0.
    fours: Vec<Weights4>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = RADIUS * filter_scale;
        let stride = (support.ceil() as usize * 2 + 1).div_ceil(4);
        let (mut spans, mut fours) = (Vec::with_capacity(output), Vec::with_capacity(output * stride));
        let (mut real, mut fixed) = (vec![0.0; 4 * stride], vec![0; 4 * stride]);
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
            fixed.fill(0);
            for (fixed, weight) in fixed.iter_mut().zip(real) {
                let scaled = *weight / sum * f64::from(1 << PRECISION_BITS);
                *fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            fours.extend(fixed.as_chunks().0.iter().map(|four| Weights4::new(*four)));
            spans.push((lo, hi - lo));
        }
        Taps { spans, fours, stride }
    }

    /// For the columns of a row.
    fn columns(self) -> Columns {
        Columns::new(self.spans.into_iter().map(|(first, _)| first).collect(), self.stride, self.fours)
    }

    /// The weights of an output.
    fn fours(&self, output: usize) -> &[Weights4] {
        &self.fours[output * self.stride..][..self.stride]
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one output value at a time, in i64.
    fn reference(image: &Rgb8, width: u32, height: u32) -> Rgb8 {
        let pass = |data: &[u8], (w, h): (usize, usize), out: usize, along_x: bool| -> Vec<u8> {
            let taps = Taps::new(if along_x { w } else { h }, out);
            let (ow, oh) = if along_x { (out, h) } else { (w, out) };
            let mut result = Vec::with_capacity(ow * oh * 3);
            for y in 0..oh {
                for x in 0..ow {
                    for c in 0..3 {
                        let i = if along_x { x } else { y };
                        let (lo, count) = taps.spans[i];
                        let weights = taps.fours(i).iter().flat_map(Weights4::plain).take(count);
                        let mut sum = 1i64 << (PRECISION_BITS - 1);
                        for (k, weight) in weights.enumerate() {
                            let (sx, sy) = if along_x { (lo + k, y) } else { (x, lo + k) };
                            sum += i64::from(weight) * i64::from(data[(sy * w + sx) * 3 + c]);
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
            // As sides are rounded: up, down, and each in its way.
            (300, 225, 308, 224),
            (225, 300, 224, 308),
            (293, 293, 308, 308),
            (290, 290, 280, 280),
            (290, 280, 308, 280),
        ] {
            let image = extremes(w, h);
            let expected = reference(&image, ow, oh);
            for (threads, room) in [(1, 0), (3, 42 * (w + h) as usize), (4, 0), (5, 7)] {
                let image = Rgb8::with_room(w, h, [&vec![9; room], image.data()].concat(), room);
                let resized = resize_on(threads, image, ow, oh);
                assert_eq!(resized, expected, "{w}x{h} to {ow}x{oh}, {threads} threads, room for {room}");
            }
        }
    }

    #[test]
    fn sums_of_products_never_overflow() {
        let limit = f64::from(i32::MAX - (1 << (PRECISION_BITS - 1))) / 255.0;
        for input in (1..200).chain([333, 1000, 4095, 20_000]) {
            for output in (28..300).step_by(28).chain([1, 2, 3, 5, 7, 1036, 4760]) {
                let taps = Taps::new(input, output);
                for i in 0..output {
                    let weights = taps.fours(i).iter().flat_map(Weights4::plain);
                    let total: i64 = weights.map(|w| i64::from(w.abs())).sum();
                    assert!((total as f64) < limit, "{input} to {output}, output {i}: {total}");
                    assert!((total as f64) < 1.7 * f64::from(1 << PRECISION_BITS), "{input} to {output}");
                }
            }
        }
    }
}
