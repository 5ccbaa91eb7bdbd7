//! Boxes in the text of an answer, and where they are in the picture.
//!
//! The model writes `<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`
//! with corners in thousandths of width and height. Those markers are special tokens: the request must
//! keep them (`keep_special_tokens`).

use serde::Serialize;

const BOX: (&str, &str) = ("<|box_start|>", "<|box_end|>");
const OBJECT: (&str, &str) = ("<|object_ref_start|>", "<|object_ref_end|>");
/// Corners are fractions of this.
const SCALE: f64 = 1000.0;

/// A box as the model wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroundingBox {
    /// What the model says is in it, if it says so right before the box.
    pub label: Option<String>,
    /// Left, top, right, bottom, 0..=1000.
    pub thousandths: [u32; 4],
}

impl GroundingBox {
    /// Left, top, right and bottom in pixels of a picture of `width` x `height`, each within the picture;
    /// the right and bottom are behind the last pixel.
    pub fn pixels(&self, width: u32, height: u32) -> [u32; 4] {
        let [left, top, right, bottom] = self.thousandths;
        let at = |part: u32, side: u32| {
            (f64::from(part) / SCALE * f64::from(side)).round().min(f64::from(side)) as u32
        };
        [at(left, width), at(top, height), at(right, width), at(bottom, height)]
    }
}

/// The boxes of a text, in order. What is not a box of two corners is passed over; corners are put in
/// order and to at most 1000.
pub fn boxes(text: &str) -> Vec<GroundingBox> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BOX.0) {
        let (inside, after) = match after.split_once(BOX.1) {
            Some(split) => split,
            None => (after, ""),
        };
        if let Some([x1, y1, x2, y2]) = corners(inside) {
            let thousandths = [x1.min(x2), y1.min(y2), x1.max(x2), y1.max(y2)];
            out.push(GroundingBox { label: label(before), thousandths });
        }
        rest = after;
    }
    out
}

/// The object named right before a box.
fn label(before: &str) -> Option<String> {
    let inside = before.trim_end().strip_suffix(OBJECT.1)?;
    Some(inside.rsplit_once(OBJECT.0)?.1.trim().to_string())
}

/// `(x1,y1),(x2,y2)`.
fn corners(text: &str) -> Option<[u32; 4]> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (first, second) = text.strip_prefix('(')?.strip_suffix(')')?.split_once("),(")?;
    let point = |text: &str| -> Option<[u32; 2]> {
        let (x, y) = text.split_once(',')?;
        let number = |n: &str| n.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        Some([number(x)?, number(y)?].map(|n| n.round().min(SCALE) as u32))
    };
    let ([x1, y1], [x2, y2]) = (point(first)?, point(second)?);
    Some([x1, y1, x2, y2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(label: Option<&str>, thousandths: [u32; 4]) -> GroundingBox {
        GroundingBox { label: label.map(str::to_string), thousandths }
    }

    #[test]
    fn boxes_are_read_with_their_labels() {
        let text = "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(10,20),(500,1000)<|box_end|> and \
                    <|box_start|>( 900, 30 ),(100,40)<|box_end|><|im_end|>";
        assert_eq!(boxes(text), [of(Some("a cat"), [10, 20, 500, 1000]), of(None, [100, 30, 900, 40])]);
        assert_eq!(boxes("<|box_start|>(1,2),(3,4)"), [of(None, [1, 2, 3, 4])]);
        assert_eq!(boxes("<|box_start|>(1,2),(3000,4)<|box_end|>"), [of(None, [1, 2, 1000, 4])]);
    }

    #[test]
    fn what_is_no_box_is_passed_over() {
        for text in [
            "",
            "(1,2),(3,4)",
            "<|box_start|><|box_end|>",
            "<|box_start|>(1,2)<|box_end|>",
            "<|box_start|>(a,2),(3,4)",
            "<|box_start|>(-1,2),(3,4)<|box_end|>",
            "<|box_start|>(1,2),(3,4),(5,6)<|box_end|>",
        ] {
            assert_eq!(boxes(text), [], "{text}");
        }
    }

    #[test]
    fn corners_map_to_pixels_of_the_original() {
        let found = of(None, [0, 250, 500, 1000]);
        assert_eq!(found.pixels(640, 480), [0, 120, 320, 480]);
        assert_eq!(found.pixels(1, 1), [0, 0, 1, 1]);
    }
}
