//! Files of pictures.

use super::*;

#[test]
fn decoding_gives_the_pixels_of_pillow() {
    let mut wrong = Vec::new();
    for case in golden("pillow_decode.json") {
        let desc = case["desc"].as_str().unwrap();
        let found = match decode(&base64(&case["file"]), desc) {
            Ok(found) => found,
            Err(e) => {
                wrong.push(e.to_string());
                continue;
            }
        };
        let size = (int(&case["width"]) as u32, int(&case["height"]) as u32);
        assert_eq!((found.width(), found.height()), size, "{desc}");
        let expected = base64(&case["rgb"]);
        let worst = found.data().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if u64::from(worst) > int(&case["tolerance"]) {
            wrong.push(format!("{desc}: differs by {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_that_are_cut_short_are_refused() {
    for case in golden("pillow_decode.json") {
        let (bytes, desc) = (base64(&case["file"]), case["desc"].as_str().unwrap());
        for kept in [bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4] {
            // The part that an animation keeps may be its first frame.
            if !desc.contains("animated") {
                assert!(decode(&bytes[..kept], desc).is_err(), "{desc}: {kept} of {} bytes", bytes.len());
            }
        }
    }
}

#[test]
fn a_jpeg_without_its_end_marker_is_refused() {
    let case = golden("pillow_decode.json").into_iter().find(|c| c["desc"] == "JPEG with restarts").unwrap();
    let bytes = base64(&case["file"]);
    assert_says(decode(&bytes[..bytes.len() - 2], "a.jpg"), &["a.jpg", "ends inside the picture", "again"]);
    assert!(decode(&[&bytes[..], b"trailing"].concat(), "a.jpg").is_ok());
}

#[test]
fn a_picture_of_a_gigapixel_is_refused_by_its_header() {
    let mut bytes = png(4, 4);
    patch_png_size(&mut bytes, 40_000, 30_000);
    let start = Instant::now();
    let limit = MAX_PIXELS.to_string();
    assert_says(
        decode(&bytes, "bomb.png"),
        &["bomb.png", "40000x30000 = 1200000000 pixels", &limit, "reduce"],
    );
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_picture_without_width_is_refused() {
    let mut bytes = png(4, 4);
    patch_png_size(&mut bytes, 0, 4);
    assert_says(decode(&bytes, "empty.png"), &["empty.png"]);
    let mut gif = b"GIF89a\0\0\0\0\0\0\0;".to_vec();
    assert_says(decode(&gif, "empty.gif"), &["empty.gif"]);
    gif.clear();
    assert_says(decode(&gif, "no.gif"), &["it has no bytes"]);
}

fn patch_png_size(bytes: &mut [u8], width: u32, height: u32) {
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
}

#[test]
fn corrupt_pictures_are_refused() {
    let mut bytes = png(64, 64);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    assert_says(decode(&bytes, "bad.png"), &["bad.png", "damaged"]);
}

#[test]
fn other_formats_are_refused_by_name_with_advice() {
    for (bytes, parts) in [
        (&b"\0\0\0\x20ftypavif\0\0\0\0"[..], ["AVIF", "convert"]),
        (&b"\0\0\0\x20ftypheic\0\0\0\0"[..], ["HEIC", "convert"]),
        (&b"\0\0\0\x20ftypisom\0\0\0\0"[..], ["a video", "part of type video"]),
        (&b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81"[..], ["a video", "part of type video"]),
        (&b"RIFF\0\0\0\0AVI LIST"[..], ["a video", "part of type video"]),
        (&b"<!DOCTYPE html><html>"[..], ["web page", "URL"]),
        (&b"<svg xmlns="[..], ["SVG", "convert"]),
        (&b"%PDF-1.7"[..], ["PDF", "convert"]),
        (&b"hello"[..], ["no known picture format", "convert"]),
    ] {
        assert_says(decode(bytes, "x"), &parts);
    }
    // What stands in a file is nobody's business who only knows its name.
    let message = problem(decode(b"hello", "x"));
    assert!(!message.contains("hello") && !message.contains("68"), "{message}");
}

#[test]
fn an_rgb8_has_as_many_bytes_as_its_size_says() {
    assert_says(Rgb8::new(2, 2, vec![0; 11]), &["2x2", "11", "12"]);
    assert_says(Rgb8::new(0, 2, vec![]), &["0x2"]);
    assert_says(Rgb8::new(u32::MAX, u32::MAX, vec![]), &["limit"]);
}

// Sources
