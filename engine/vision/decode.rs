//! From an encoded picture to 8-bit RGB.
//!
//! The colour policy is that of qwen-vl-utils 0.0.14 with Pillow 13.0.0: what Pillow opens as mode
//! RGBA is laid over white, everything else goes through `convert("RGB")`. `tests/vision/`
//! checks it on files whose pixels Pillow has decoded (`tools/golden/pillow_decode.py`). So:
//!
//! * EXIF orientation is ignored unless it is asked for ([`decode_oriented`]), and colour profiles and
//!   gamma always; the orientation tag of a TIFF is
//!   applied, as Pillow does while loading.
//! * Grey with alpha, palettes with transparency and PNG's transparent colour lose it: the colour
//!   underneath is kept.
//! * Of 16-bit colour the high byte is kept. 16-bit grey is clipped at 255, and with alpha it counts
//!   as RGBA: Pillow has it so.
//! * The first frame of an animation is the picture.
//!
//! PNG, GIF, BMP, TIFF and lossless WebP give the same bytes as Pillow (CMYK in TIFF to one level).
//! JPEG and lossy WebP come from other decoders than Pillow's: on a 4:2:0 JPEG of a megapixel, 28 %
//! of the values differ by 1 or 2 levels, 0.1 % by 3 to 5. Not read, with a clear error: grey with
//! alpha in TIFF, floating-point TIFF. What the first frame of a GIF leaves open is black.

use std::io::{BufRead, Cursor, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::source::image_error;
use crate::error::Result;
use crate::kernels::cpu::zeroed_bytes;

/// Largest picture that is decoded, or made by resizing, in pixels: 128 Mi.
pub const MAX_PIXELS: u64 = 128 << 20;

/// What a decoder may allocate, in bytes: enough for [`MAX_PIXELS`] of the largest pixels.
const MAX_ALLOC_BYTES: u64 = MAX_PIXELS * 8;

/// Half of the multiple that the vision tower wants sides to be: as much as rounding adds.
const ROOM_PIXELS: usize = 14;

/// A picture: rows of `width` pixels, 8-bit red, green and blue interleaved.
#[derive(Clone, Debug)]
pub struct Rgb8 {
    width: u32,
    height: u32,
    /// The pixels from `start` on. What is before them is room for a slightly larger picture to be made in place.
    data: Vec<u8>,
    start: usize,
}

impl PartialEq for Rgb8 {
    fn eq(&self, other: &Rgb8) -> bool {
        (self.width, self.height, self.data()) == (other.width, other.height, other.data())
    }
}

impl Eq for Rgb8 {}

impl Rgb8 {
    /// A picture from its pixels, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`crate::Error::Image`] if a side is zero, there are more than [`MAX_PIXELS`], or the length
    /// of `data` is another.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self> {
        check_length(width, height, data.len())?;
        Ok(Rgb8 { width, height, data, start: 0 })
    }

    /// For pixels whose number is right by construction.
    pub(super) fn trusted(width: u32, height: u32, data: Vec<u8>) -> Self {
        Rgb8::with_room(width, height, data, 0)
    }

    /// As [`Rgb8::trusted`], for pixels that begin at `start`.
    pub(super) fn with_room(width: u32, height: u32, data: Vec<u8>, start: usize) -> Self {
        debug_assert_eq!(data.len() - start, width as usize * height as usize * 3);
        Rgb8 { width, height, data, start }
    }

    /// Pixels in a row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The memory, and where in it the pixels are: from there to the end.
    pub(super) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.data, self.start)
    }

    /// The pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

/// Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF file. `name` is for messages.
///
/// # Errors
/// [`crate::Error::Image`] if the bytes are no such file, if the file is corrupt or cut short, or
/// if its header announces a zero side or more than [`MAX_PIXELS`].
pub fn decode(bytes: &[u8], name: &str) -> Result<Rgb8> {
    decode_oriented(bytes, name, false)
}

/// As [`decode`], and with `exif` turned as the file's EXIF data say.
///
/// # Errors
/// As [`decode`].
pub fn decode_oriented(bytes: &[u8], name: &str, exif: bool) -> Result<Rgb8> {
    let format = format(bytes, name)?;
    if format == ImageFormat::Jpeg && !jpeg_has_its_end(bytes) {
        return Err(cut_short(name));
    }
    guarded(name, || decode_format(bytes, format, name, exif))
}

/// `(width, height)` that the header of a file announces, before it is turned. Reads no more than the header, but the
/// whole of a JPEG, and decodes nothing.
///
/// # Errors
/// [`crate::Error::Image`] if it is no such file, or has a zero side or more than `max_pixels` or [`MAX_PIXELS`].
pub(super) fn size(mut file: impl BufRead + Seek, name: &str, max_pixels: u64) -> Result<(u32, u32)> {
    let start = file.fill_buf().map_err(|e| failure(name, ImageError::IoError(e)))?;
    let format = format(start, name)?;
    let (width, height) = guarded(name, || Ok(decoder(file, format, name)?.dimensions()))?;
    check_size(name, width, height, max_pixels)?;
    Ok((width, height))
}

/// The decoders are meant not to panic on any input. Should one do, that is a bad file.
fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(image_error(name, "the decoder failed on it", "convert it to PNG or JPEG")))
}

/// The format, by the first bytes of a file.
fn format(bytes: &[u8], name: &str) -> Result<ImageFormat> {
    let known = image::guess_format(bytes).ok().filter(|f| f.reading_enabled() && brand(bytes).is_none());
    known.ok_or_else(|| {
        let (problem, help) = describe_unknown(bytes);
        image_error(name, problem, help)
    })
}

/// What a decoder complains about.
fn failure(name: &str, error: ImageError) -> crate::Error {
    match error {
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => cut_short(name),
        ImageError::Unsupported(e) => image_error(name, e.to_string(), "convert it to PNG or JPEG"),
        ImageError::Limits(_) => image_error(
            name,
            format!("decoding it takes more than {MAX_ALLOC_BYTES} bytes of memory"),
            "reduce its size before sending it",
        ),
        e => image_error(name, e.to_string(), "the file is damaged; export or download it again"),
    }
}

/// Reads the header.
fn decoder<'a>(
    file: impl BufRead + Seek + 'a,
    format: ImageFormat,
    name: &str,
) -> Result<impl ImageDecoder + 'a> {
    let mut reader = ImageReader::with_format(file, format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOC_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| failure(name, e))?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, MAX_PIXELS)?;
    Ok(decoder)
}

fn decode_format(bytes: &[u8], format: ImageFormat, name: &str, exif: bool) -> Result<Rgb8> {
    let fail = |e| failure(name, e);
    let mut decoder = decoder(Cursor::new(bytes), format, name)?;
    let (width, height) = decoder.dimensions();
    let orientation = match format {
        ImageFormat::Tiff => decoder.orientation().map_err(fail)?,
        // Data that say nothing sensible leave the picture as it is.
        _ if exif => decoder.orientation().unwrap_or(Orientation::NoTransforms),
        _ => Orientation::NoTransforms,
    };
    if decoder.color_type() == ColorType::Rgb8 && orientation == Orientation::NoTransforms {
        // The common case, into memory of our own, with room for sides that are rounded up.
        let start = (width as usize + height as usize) * 3 * ROOM_PIXELS;
        let mut data = zeroed_bytes(start + width as usize * height as usize * 3);
        decoder.read_image(&mut data[start..]).map_err(fail)?;
        return Ok(Rgb8::with_room(width, height, data, start));
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(fail)?;
    picture.apply_orientation(orientation);

    let (width, height) = (picture.width(), picture.height());
    let png = (format == ImageFormat::Png).then(|| png_color_type(bytes)).flatten();
    let has_alpha = !matches!(png, Some(PNG_GREY | PNG_RGB | PNG_PALETTE)) && format != ImageFormat::Gif;
    let data = match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageRgba8(p) => flatten(p.as_raw(), has_alpha),
        DynamicImage::ImageLuma8(p) => replicate(p.into_raw().into_iter()),
        DynamicImage::ImageLumaA8(p) => replicate(p.into_raw().into_iter().step_by(2)),
        DynamicImage::ImageRgb16(p) => high_bytes(p.as_raw()),
        DynamicImage::ImageRgba16(p) => flatten(&high_bytes(p.as_raw()), has_alpha),
        DynamicImage::ImageLuma16(p) => replicate(p.as_raw().iter().map(|v| clip(*v))),
        DynamicImage::ImageLumaA16(p) if png == Some(PNG_GREY) => {
            replicate(p.as_raw().iter().step_by(2).map(|v| clip(*v)))
        }
        // Pillow opens a PNG of 16-bit grey with alpha as RGBA.
        DynamicImage::ImageLumaA16(p) => {
            let bytes = high_bytes(p.as_raw());
            replicate(bytes.chunks_exact(2).map(|la| blend_over_white(la[0], la[1])))
        }
        _ => return Err(image_error(name, "its samples are not 8 or 16 bit", "convert it to PNG or JPEG")),
    };
    Ok(Rgb8::trusted(width, height, data))
}

/// Refuses a number of bytes that is not 3 for every pixel.
pub(super) fn check_length(width: u32, height: u32, bytes: usize) -> Result<()> {
    check_size("in memory", width, height, MAX_PIXELS)?;
    let expected = width as usize * height as usize * 3;
    if bytes != expected {
        let problem = format!("{width}x{height} pixels came with {bytes} bytes");
        return Err(image_error("in memory", problem, format!("give {expected}: 3 for every pixel")));
    }
    Ok(())
}

fn check_size(name: &str, width: u32, height: u32, max_pixels: u64) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        let problem = format!("its size is {width}x{height}");
        return Err(image_error(name, problem, "give a picture with at least one pixel"));
    }
    if pixels > max_pixels {
        let problem =
            format!("it has {width}x{height} = {pixels} pixels, more than the limit of {max_pixels}");
        return Err(image_error(name, problem, "reduce its size before sending it"));
    }
    Ok(())
}

fn cut_short(name: &str) -> crate::Error {
    image_error(name, "the file ends inside the picture", "it was cut short; export or download it again")
}

fn replicate(grey: impl ExactSizeIterator<Item = u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(grey.len() * 3);
    for v in grey {
        out.extend_from_slice(&[v; 3]);
    }
    out
}

fn high_bytes(values: &[u16]) -> Vec<u8> {
    values.iter().map(|v| (v >> 8) as u8).collect()
}

fn clip(value: u16) -> u8 {
    value.min(255) as u8
}

/// RGBA to RGB: over white, or without the alpha.
fn flatten(rgba: &[u8], over_white: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = if over_white { pixel[3] } else { 255 };
        out.extend([pixel[0], pixel[1], pixel[2]].map(|c| blend_over_white(c, alpha)));
    }
    out
}

/// Pillow's `paste` with a mask, on white: rounds `(c * a + 255 * (255 - a)) / 255`.
fn blend_over_white(c: u8, a: u8) -> u8 {
    let t = u32::from(c) * u32::from(a) + 255 * (255 - u32::from(a)) + 128;
    (((t >> 8) + t) >> 8) as u8
}

const PNG_GREY: u8 = 0;
const PNG_RGB: u8 = 2;
const PNG_PALETTE: u8 = 3;

/// The colour type in the header chunk, which comes first in every PNG.
fn png_color_type(bytes: &[u8]) -> Option<u8> {
    bytes.get(25).copied().filter(|_| bytes.get(12..16) == Some(b"IHDR".as_slice()))
}

/// Whether an end-of-image marker follows the last scan. The decoder would fill what is missing
/// with grey; Pillow refuses such files.
fn jpeg_has_its_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    let mut at = 2;
    loop {
        // In a scan FF00 is data and FFD0 to FFD7 are restarts; other markers start a segment.
        let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr(0xFF, rest)) else {
            return false;
        };
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            Some(&END) => return true,
            Some(0xFF) => {}
            Some(0x00..=0x01 | 0xD0..=0xD8) => at += 1,
            // The header of a scan is skipped like any segment; its data is searched.
            Some(_) => {
                let Some(&[hi, lo]) = bytes.get(at + 1..at + 3) else { return false };
                let length = usize::from(u16::from_be_bytes([hi, lo]));
                at += 1 + length.max(2);
            }
        }
    }
}

/// The brand of an ISO media file that is a picture: `avif`, `heic` and their kin.
fn brand(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(8..12).filter(|_| bytes.get(4..8) == Some(b"ftyp".as_slice()))
}

/// What a file is that is no picture, as far as its first bytes tell. They are not shown: they may be of any file.
fn describe_unknown(bytes: &[u8]) -> (String, &'static str) {
    let convert = "convert it to JPEG, PNG, WebP, GIF, BMP or TIFF";
    let video = "give it as a video, in a part of type video";
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).trim_start().to_ascii_lowercase();
    let kind = match brand(bytes) {
        Some(b"avif" | b"avis") => "AVIF",
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => "HEIC",
        Some(b"crx ") => "a raw photograph",
        Some(_) => return ("it is a video".into(), video),
        None if bytes.is_empty() => return ("it has no bytes".into(), "check where it comes from"),
        None if bytes.starts_with(b"\x1A\x45\xDF\xA3") || bytes.get(8..12) == Some(b"AVI ".as_slice()) => {
            return ("it is a video".into(), video);
        }
        None if head.starts_with("<!doctype html") || head.starts_with("<html") => {
            return ("it is a web page, not a picture".into(), "give the URL of the picture itself");
        }
        None if head.starts_with("<svg") || head.starts_with("<?xml") => "SVG or other XML",
        None if head.starts_with("%pdf") => "PDF",
        None if bytes.starts_with(&[0xFF, 0x0A]) || bytes.starts_with(b"\0\0\0\x0CJXL ") => "JPEG XL",
        None => return ("it is no known picture format".into(), convert),
    };
    (format!("it is {kind}, which is not supported"), convert)
}

/// The name of the format of a still picture that these bytes begin.
pub(super) fn still_picture(bytes: &[u8]) -> Option<&'static str> {
    match image::guess_format(bytes).ok()? {
        ImageFormat::Png => Some("PNG"),
        ImageFormat::Jpeg => Some("JPEG"),
        ImageFormat::WebP => Some("WebP"),
        ImageFormat::Bmp => Some("BMP"),
        ImageFormat::Tiff => Some("TIFF"),
        _ => None,
    }
}
