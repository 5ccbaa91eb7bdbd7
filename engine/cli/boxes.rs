//! `--draw-boxes`: the boxes of an answer, drawn into the picture.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use image::{ExtendedColorType, ImageFormat};
use qwenvl::prompt::{Content, ImageInput, Part};
use qwenvl::vision::decode::decode_oriented;
use qwenvl::vision::{FetchLimits, ImageSource};
use qwenvl::{Request, grounding};

use super::output;

/// Colours of the boxes in turn.
const COLOURS: [[u8; 3]; 6] =
    [[230, 25, 75], [60, 180, 75], [0, 130, 200], [245, 130, 48], [145, 30, 180], [70, 240, 240]];

/// The first picture of a request in its original size.
pub struct Canvas {
    width: u32,
    height: u32,
    rgb: Arc<[u8]>,
}

impl Canvas {
    /// Fetches and decodes it, turned by its EXIF data if the part or `exif` says so. The request has the pixels
    /// then, so that nothing is fetched twice.
    pub fn first_picture(request: &mut Request, exif: bool) -> anyhow::Result<Canvas> {
        let parts = request.messages.iter_mut().filter_map(|m| match &mut m.content {
            Content::Parts(parts) => Some(parts),
            Content::Text(_) => None,
        });
        let picture = parts.flatten().find_map(|part| match part {
            Part::Image(picture) => Some(picture),
            _ => None,
        });
        let Some(part) = picture else { bail!("--draw-boxes needs a picture in the request: pass --image") };
        let canvas = match &part.image {
            ImageInput::Pixels { width, height, rgb } => {
                Canvas { width: *width, height: *height, rgb: rgb.clone() }
            }
            ImageInput::Encoded(_) | ImageInput::Location(_) => {
                let source = ImageSource::of(&part.image, &request.base_dir)?;
                let bytes = source.fetch(&FetchLimits::default())?;
                let picture = decode_oriented(&bytes, source.name(), part.exif_orientation.unwrap_or(exif))?;
                Canvas { width: picture.width(), height: picture.height(), rgb: picture.data().into() }
            }
        };
        let Canvas { width, height, ref rgb } = canvas;
        part.image = ImageInput::Pixels { width, height, rgb: rgb.clone() };
        Ok(canvas)
    }

    /// Draws the boxes of a text and writes the picture.
    pub fn draw(mut self, text: &str, file: &Path) -> anyhow::Result<()> {
        let boxes = grounding::boxes(text);
        if boxes.is_empty() {
            output::note(format_args!(
                "note: the answer has no boxes; {} is the picture without any",
                file.display()
            ));
        }
        for (found, colour) in boxes.iter().zip(COLOURS.iter().cycle()) {
            let [left, top, right, bottom] = found.pixels(self.width, self.height);
            let label = found.label.as_deref().unwrap_or("box");
            output::note(format_args!("{label}: ({left},{top}),({right},{bottom})"));
            self.frame([left, top, right, bottom], *colour);
        }
        let written = image::save_buffer_with_format(
            file,
            &self.rgb,
            self.width,
            self.height,
            ExtendedColorType::Rgb8,
            ImageFormat::Png,
        );
        written.with_context(|| format!("cannot write {}", file.display()))
    }

    /// The border of a box, inside it.
    fn frame(&mut self, [left, top, right, bottom]: [u32; 4], colour: [u8; 3]) {
        let rgb = Arc::make_mut(&mut self.rgb);
        let line = (self.width.min(self.height) / 200).max(2);
        for y in top..bottom {
            for x in left..right {
                let inside = |at: u32, from: u32, to: u32| at >= from + line && at + line < to;
                if !(inside(x, left, right) && inside(y, top, bottom)) {
                    let at = (y as usize * self.width as usize + x as usize) * 3;
                    rgb[at..at + 3].copy_from_slice(&colour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_drawn_as_a_border_within_the_picture() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out.png");
        let canvas = Canvas { width: 20, height: 10, rgb: vec![0; 600].into() };
        canvas.draw("<|box_start|>(0,0),(500,1000)<|box_end|>", &file).unwrap();
        let drawn = image::open(&file).unwrap().to_rgb8();
        for (x, y, pixel) in drawn.enumerate_pixels() {
            let border = x < 10 && !((2..8).contains(&x) && (2..8).contains(&y));
            assert_eq!(pixel.0, if border { COLOURS[0] } else { [0; 3] }, "{x},{y}");
        }
    }
}
