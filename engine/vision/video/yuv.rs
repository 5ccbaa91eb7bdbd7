//! From the planes of a decoded picture to 8-bit RGB.

use rust_h264::decoder::{ChromaFormat, Frame};

use super::{Rgb8, Rotation};

/// How luma and chroma were made from red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// Matrix coefficients by ISO/IEC 23091-2; what is not known counts as BT.601, as in ffmpeg.
    pub matrix: u8,
    /// Whether black is 0 and white 255, not 16 and 235.
    pub full_range: bool,
}

/// Coefficients of centred samples in 1/8192. As in the converter of libswscale for x86, samples count
/// eighths and products lose their fraction one by one, rounded down: frames are those of ffmpeg, bit
/// for bit.
struct Coefficients {
    luma: i32,
    black: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

impl Coefficients {
    fn new(colour: Colour) -> Coefficients {
        let (red, blue) = match colour.matrix {
            1 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            7 => (0.212, 0.087),
            9 | 10 => (0.2627, 0.0593),
            _ => (0.299, 0.114),
        };
        let green = 1.0 - red - blue;
        let (luma, chroma) = if colour.full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |x: f64| (x * 8192.0).round() as i32;
        Coefficients {
            luma: fixed(luma),
            black: if colour.full_range { 0 } else { 16 },
            red_v: fixed(2.0 * (1.0 - red) * chroma),
            green_u: -fixed(2.0 * (1.0 - blue) * blue / green * chroma),
            green_v: -fixed(2.0 * (1.0 - red) * red / green * chroma),
            blue_u: fixed(2.0 * (1.0 - blue) * chroma),
        }
    }
}

/// A sample times a coefficient, rounded down.
fn times(sample: i32, coefficient: i32) -> i32 {
    (8 * sample * coefficient) >> 16
}

/// The picture in RGB, turned for display. A chroma sample stands for the whole of its 2x2 (or 2x1)
/// pixels, and of 10-bit samples the high eight bits count.
pub fn to_rgb(frame: &Frame, colour: Colour, rotation: Rotation) -> Rgb8 {
    let c = Coefficients::new(colour);
    let (width, height) = (frame.width as usize, frame.height as usize);
    let chroma_width = frame.chroma_width() as usize;
    let shift_y = u32::from(frame.chroma_format == ChromaFormat::Yuv420);
    let (mut y, mut u, mut v) = (Vec::new(), Vec::new(), Vec::new());
    let planes = [(&frame.y, &mut y), (&frame.u, &mut u), (&frame.v, &mut v)].map(|(plane, eight)| {
        if frame.bit_depth == 8 {
            return plane.as_slice();
        }
        let drop = frame.bit_depth - 8;
        eight.extend(plane.as_chunks::<2>().0.iter().map(|b| (u16::from_le_bytes(*b) >> drop) as u8));
        eight.as_slice()
    });
    let mut rgb = vec![0; width * height * 3];
    for (row, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
        let luma = &planes[0][row * width..][..width];
        // An odd last row or column has no chroma of its own.
        let chroma_row = (row >> shift_y).min((frame.chroma_height() as usize).saturating_sub(1));
        let chroma = |plane: &[u8], x: usize| match plane
            .get(chroma_row * chroma_width + x.min(chroma_width.max(1) - 1))
        {
            Some(&v) => i32::from(v) - 128,
            None => 0,
        };
        for (pair, out) in out.chunks_mut(6).enumerate() {
            let (u, v) = (chroma(planes[1], pair), chroma(planes[2], pair));
            let red = times(v, c.red_v);
            let green = times(u, c.green_u) + times(v, c.green_v);
            let blue = times(u, c.blue_u);
            for (pixel, &y) in out.chunks_exact_mut(3).zip(&luma[2 * pair..]) {
                let y = times(i32::from(y) - c.black, c.luma);
                for (value, add) in pixel.iter_mut().zip([red, green, blue]) {
                    *value = (y + add).clamp(0, 255) as u8;
                }
            }
        }
    }
    rotation.apply(frame.width, frame.height, rgb)
}
