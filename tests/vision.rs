//! From sources to patches, checked against Pillow, qwen-vl-utils and transformers.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::crc32;
use proptest::prelude::*;
use qwenvl::Error;
use qwenvl::graph::config::VisionConfig;
use qwenvl::graph::{Grid, PixelLimits, smart_resize};
use qwenvl::vision::decode::decode;
use qwenvl::vision::resize::resize;
use qwenvl::vision::{
    FetchLimits, ImageOptions, ImageSource, MAX_PIXELS, Normalize, Processor, Rgb8, Visual, VisualKind,
    VisualRequest,
};
use serde_json::Value;

fn config() -> VisionConfig {
    VisionConfig {
        depth: 32,
        embed_dim: 1280,
        num_heads: 16,
        mlp_ratio: 4,
        patch_size: 14,
        spatial_merge_size: 2,
        temporal_patch_size: 2,
        in_channels: 3,
        hidden_size: 1536,
    }
}

fn processor() -> Processor {
    Processor::from_json(None, &config()).unwrap()
}

fn golden(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut root: Value = serde_json::from_str(&text).unwrap();
    let Value::Array(cases) = root["cases"].take() else { panic!("{file} has no cases") };
    cases
}

fn int(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn base64(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn filled(width: u32, height: u32, value: u8) -> Rgb8 {
    Rgb8::new(width, height, vec![value; (width * height * 3) as usize]).unwrap()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

fn problem(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result.unwrap_err() {
        e @ (Error::Image { .. } | Error::Request { .. } | Error::Io { .. } | Error::Graph(_)) => {
            e.to_string()
        }
        e => panic!("{e:?}"),
    }
}

#[track_caller]
fn assert_says(result: Result<impl std::fmt::Debug, Error>, parts: &[&str]) {
    let message = problem(result);
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

// Sizes

#[test]
fn smart_resize_agrees_with_qwen_vl_utils() {
    for case in golden("vectors/smart_resize.json") {
        let limits = PixelLimits {
            min_pixels: case["min_pixels"].as_f64().unwrap(),
            max_pixels: case["max_pixels"].as_f64().unwrap(),
        };
        let found = smart_resize(int(&case["height"]), int(&case["width"]), int(&case["factor"]), limits);
        let expected = &case["vl_utils"];
        match expected.as_array() {
            Some(hw) if int(&hw[0]) > 0 && int(&hw[1]) > 0 => {
                assert_eq!(found.unwrap(), (int(&hw[0]), int(&hw[1])), "{}", case["desc"]);
            }
            // A side of zero, on which the reference fails one step later, or an error right away.
            _ => assert!(found.is_err(), "{}: {found:?}", case["desc"]),
        }
    }
}

#[test]
fn target_size_agrees_with_smart_resize_of_qwen_vl_utils() {
    for case in golden("vectors/smart_resize.json") {
        let (Some(min), Some(max)) = (case["min_pixels"].as_u64(), case["max_pixels"].as_u64()) else {
            continue;
        };
        if int(&case["factor"]) != 28 {
            continue;
        }
        let options = ImageOptions { min_pixels: Some(min), max_pixels: Some(max), ..Default::default() };
        let (height, width) = (int(&case["height"]) as u32, int(&case["width"]) as u32);
        let found = processor().target_size(width, height, &options);
        match case["vl_utils"].as_array() {
            Some(hw) if int(&hw[0]) > 0 && int(&hw[1]) > 0 => {
                assert_eq!(found.unwrap(), (int(&hw[0]) as u32, int(&hw[1]) as u32), "{}", case["desc"]);
            }
            _ => assert!(found.is_err(), "{}: {found:?}", case["desc"]),
        }
    }
}

#[test]
fn an_explicit_size_ignores_the_limits_of_the_item() {
    let options = ImageOptions {
        exif_orientation: None,
        min_pixels: Some(1),
        max_pixels: Some(784),
        resized_height: Some(280),
        resized_width: Some(420),
    };
    assert_eq!(processor().target_size(1000, 50, &options).unwrap(), (280, 420));
}

#[test]
fn half_an_explicit_size_is_refused() {
    let height = ImageOptions { resized_height: Some(280), ..Default::default() };
    let width = ImageOptions { resized_width: Some(280), ..Default::default() };
    assert_says(
        processor().target_size(100, 100, &height),
        &["resized_width", "because resized_height is given"],
    );
    assert_says(
        processor().target_size(100, 100, &width),
        &["resized_height", "because resized_width is given"],
    );
}

#[test]
fn limits_of_the_item_override_those_of_the_processor_one_by_one() {
    let file = r#"{"min_pixels": 100352, "max_pixels": 200704}"#;
    let processor = Processor::from_json(Some(file), &config()).unwrap();
    let area = |options| {
        let (h, w) = processor.target_size(1000, 1000, &options).unwrap();
        h * w
    };
    assert_eq!(area(ImageOptions::default()), 448 * 448);
    assert_eq!(area(ImageOptions { max_pixels: Some(313_600), ..Default::default() }), 560 * 560);
    let low = ImageOptions { max_pixels: Some(50_000), ..Default::default() };
    assert_says(processor.target_size(1000, 1000, &low), &["min_pixels 100352", "max_pixels 50000"]);
}

#[test]
fn a_picture_is_not_enlarged_without_bound() {
    let options = ImageOptions { min_pixels: Some(1 << 40), max_pixels: Some(1 << 41), ..Default::default() };
    assert_says(processor().image(filled(30, 30, 1), &options), &["30x30", "lower min_pixels"]);
    let options =
        ImageOptions { min_pixels: Some(u64::MAX), max_pixels: Some(u64::MAX), ..Default::default() };
    assert!(processor().image(filled(30, 30, 1), &options).is_err());
}

#[test]
fn an_aspect_ratio_above_200_is_refused() {
    assert_says(processor().image(filled(201, 1, 9), &ImageOptions::default()), &["201", "200", "crop"]);
    assert!(processor().image(filled(200, 1, 9), &ImageOptions::default()).is_ok());
}

// preprocessor_config.json

#[test]
fn the_published_preprocessor_config_is_read() {
    let file = r#"{
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"
    }"#;
    let read = Processor::from_json(Some(file), &config()).unwrap();
    assert_eq!(read, processor());
    assert_eq!(read.normalize, Normalize::CLIP);
    assert_eq!(read.limits, PixelLimits::IMAGE);
}

#[test]
fn a_size_with_edges_means_pixel_limits() {
    let file = r#"{"size": {"shortest_edge": 784, "longest_edge": 78400}, "min_pixels": null, "rescale_factor": 0.00392156862745098}"#;
    let read = Processor::from_json(Some(file), &config()).unwrap();
    assert_eq!(read.limits, PixelLimits { min_pixels: 784.0, max_pixels: 78400.0 });
}

#[test]
fn unusable_preprocessor_configs_are_refused() {
    for (file, part) in [
        ("{", "EOF"),
        (r#"{"min_pixels": "many"}"#, "string"),
        (r#"{"min_pixels": 10, "max_pixels": 5}"#, "min <= max"),
        (r#"{"min_pixels": 0}"#, "min_pixels 0"),
        (r#"{"image_std": [0, 1, 1]}"#, "image_std"),
        (r#"{"image_mean": [0, 1]}"#, "length 2"),
        (r#"{"image_mean": [1e300, 1, 1]}"#, ""),
        (r#"{"patch_size": 16}"#, "patch_size 16, expected 14"),
        (r#"{"rescale_factor": 1.0}"#, "rescale_factor"),
    ] {
        let message = Processor::from_json(Some(file), &config()).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("preprocessor_config.json"), "{file}: {message}");
    }
}

// Resize

/// The pictures of `tools/golden/pillow_resize.py`.
fn synthetic(width: u32, height: u32, seed: u32) -> Rgb8 {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let mut h = x.wrapping_mul(2_654_435_761)
                    ^ y.wrapping_mul(2_246_822_519)
                    ^ (c + seed).wrapping_mul(3_266_489_917);
                h ^= h >> 15;
                h = h.wrapping_mul(2_246_822_519);
                h ^= h >> 13;
                data.push(match seed % 3 {
                    0 => h as u8,
                    1 => (7 * x + 13 * y + 50 * c + x * y % 17) as u8,
                    _ if h & 128 != 0 => 255,
                    _ => 0,
                });
            }
        }
    }
    Rgb8::new(width, height, data).unwrap()
}

#[test]
fn resize_gives_the_bytes_of_pillow() {
    let cases = golden("pillow_resize.json");
    assert!(cases.len() >= 200);
    for case in cases {
        let [w, h, ow, oh, seed, crc] = std::array::from_fn(|i| int(&case[i]) as u32);
        let resized = resize(synthetic(w, h, seed), ow, oh);
        assert_eq!((resized.width(), resized.height()), (ow, oh));
        assert_eq!(crc32(resized.data()), crc, "{w}x{h} to {ow}x{oh}, seed {seed}");
    }
}

// The whole way

#[test]
fn pixel_values_agree_with_the_slow_processor() {
    for case in golden("vectors/preprocess.json") {
        let (height, width) = (int(&case["height"]) as u32, int(&case["width"]) as u32);
        let mut data = Vec::new();
        for y in 0..height {
            for x in 0..width {
                data.extend((0..3).map(|c| (7 * x + 13 * y + 50 * c + x * y % 17) as u8));
            }
        }
        let processor = processor();
        let visual =
            processor.image(Rgb8::new(width, height, data).unwrap(), &ImageOptions::default()).unwrap();
        assert_eq!((visual.kind, visual.original), (VisualKind::Image, (width, height)));

        let Grid { t, h, w } = visual.grid;
        let grid = &case["grid_thw"];
        assert_eq!([t, h, w], std::array::from_fn(|i| int(&grid[i]) as usize), "{}", case["desc"]);
        let frame = &visual.frames[0];
        let row: Vec<u64> = frame.data()[..84].iter().map(|v| u64::from(*v)).collect();
        let expected: Vec<u64> = case["resized_u8_row0"].as_array().unwrap().iter().map(int).collect();
        assert_eq!(row, expected, "{}", case["desc"]);
        let sum: u64 = frame.data().iter().map(|v| u64::from(*v)).sum();
        assert_eq!(sum, int(&case["resized_u8_sum"]), "{}", case["desc"]);

        let mut out = vec![f32::NAN; h * w * 1176];
        visual.write_slice(0, &processor.normalize, &config(), &mut out);
        let total: f64 = out.iter().map(|v| f64::from(*v)).sum();
        let expected = case["pixel_values_sum"].as_f64().unwrap();
        assert!(
            (total - expected).abs() < 1e-9 * out.len() as f64,
            "{}: {total} and {expected}",
            case["desc"]
        );
        for sample in case["samples"].as_array().unwrap() {
            let (row, column) = (int(&sample[0]) as usize, int(&sample[1]) as usize);
            let expected = sample[2].as_f64().unwrap() as f32;
            assert_eq!(out[row * 1176 + column].to_bits(), expected.to_bits(), "{}: {sample}", case["desc"]);
        }
    }
}

#[test]
fn the_last_of_an_odd_number_of_frames_is_repeated() {
    let frames = [10, 20, 30].map(|v| filled(56, 84, v)).to_vec();
    let processor = processor();
    let video = processor.video_frames(frames, &ImageOptions::default()).unwrap();
    assert_eq!((video.kind, video.grid), (VisualKind::Video, Grid { t: 2, h: 6, w: 4 }));
    let red = |t: usize, in_slice: usize| {
        let mut out = vec![f32::NAN; 24 * 1176];
        video.write_slice(t, &processor.normalize, &config(), &mut out);
        let value = out[in_slice * 196] * processor.normalize.std[0] + processor.normalize.mean[0];
        (value * 255.0).round() as u8
    };
    assert_eq!([red(0, 0), red(0, 1), red(1, 0), red(1, 1)], [10, 20, 30, 30]);
}

#[test]
fn one_frame_makes_a_video_of_one_slice() {
    let video = processor().video_frames(vec![filled(56, 56, 1)], &ImageOptions::default()).unwrap();
    assert_eq!(video.grid, Grid { t: 1, h: 4, w: 4 });
}

#[test]
fn frames_take_the_image_path_with_the_keys_of_the_item() {
    let options = ImageOptions { max_pixels: Some(28 * 28 * 6), ..Default::default() };
    let frames = vec![filled(640, 360, 1), filled(640, 360, 2)];
    let video = processor().video_frames(frames, &options).unwrap();
    assert_eq!((video.frames[0].width(), video.frames[0].height()), (84, 28));
    let default = processor().video_frames(vec![filled(640, 360, 1)], &ImageOptions::default()).unwrap();
    assert_eq!((default.frames[0].height(), default.frames[0].width()), (364, 644));
}

#[test]
fn videos_without_frames_or_with_frames_of_two_sizes_are_refused() {
    assert_says(processor().video_frames(vec![], &ImageOptions::default()), &["video", "at least one"]);
    let frames = vec![filled(56, 56, 0), filled(56, 57, 0), filled(112, 56, 0)];
    let result = processor().video_frames(frames, &ImageOptions::default());
    assert_says(result, &["frame 2", "112x56", "56x56"]);
}

// Decoding

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
        (&b"\0\0\0\x20ftypisom\0\0\0\0"[..], ["video", "convert"]),
        (&b"<!DOCTYPE html><html>"[..], ["web page", "URL"]),
        (&b"<svg xmlns="[..], ["SVG", "convert"]),
        (&b"%PDF-1.7"[..], ["PDF", "convert"]),
        (&b"hello"[..], ["no known picture format", "68 65 6c 6c 6f"]),
    ] {
        assert_says(decode(bytes, "x"), &parts);
    }
}

#[test]
fn an_rgb8_has_as_many_bytes_as_its_size_says() {
    assert_says(Rgb8::new(2, 2, vec![0; 11]), &["2x2", "11", "12"]);
    assert_says(Rgb8::new(0, 2, vec![]), &["0x2"]);
    assert_says(Rgb8::new(u32::MAX, u32::MAX, vec![]), &["limit"]);
}

// Sources

fn fetch(text: &str, limits: &FetchLimits) -> Result<Vec<u8>, Error> {
    ImageSource::parse(text, Path::new("/nowhere"))?.fetch(limits)
}

#[test]
fn every_notation_of_the_model_card_finds_the_picture() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = png(3, 2);
    std::fs::write(dir.path().join("a b.png"), &bytes).unwrap();
    let absolute = dir.path().join("a b.png").to_str().unwrap().to_string();
    let digits = STANDARD.encode(&bytes);
    let server = serve(|mut stream| {
        respond(&mut stream, "200 OK", &png(3, 2));
    });
    for text in [
        "a b.png".to_string(),
        absolute.clone(),
        format!("file://{absolute}"),
        format!("file://{}", absolute.replace(' ', "%20")),
        format!("FILE://localhost{absolute}"),
        "file://a%20b.png".to_string(),
        format!("data:image;base64,{digits}"),
        format!("data:image/png;base64,{digits}"),
        format!("data:image/png;charset=x;base64,{}\n", digits.trim_end_matches('=')),
        format!("{server}/a.png"),
    ] {
        let source = ImageSource::parse(&text, dir.path()).unwrap();
        assert_eq!(source.fetch(&FetchLimits::default()).unwrap(), bytes, "{text}");
    }
}

#[test]
fn other_notations_are_refused() {
    for (text, parts) in [
        ("", ["empty", "give"]),
        ("ftp://host/a.png", ["ftp", "http://"]),
        ("file://", ["no path", "file:///"]),
        ("data:text/plain;base64,AAAA", ["not an image", "data:image/"]),
        ("data:image/png,AAAA", ["not base64", "data:image/"]),
        ("data:image/png;base64", ["comma", "data:image/"]),
        ("data:image/png;base64,A*AA", ["valid base64", "data:image/"]),
        ("file:///%ff", ["UTF-8", "path"]),
    ] {
        assert_says(ImageSource::parse(text, Path::new(".")), &parts);
    }
}

#[test]
fn names_in_messages_are_short() {
    let long = format!("http://127.0.0.1:1/{}", "x".repeat(5000));
    assert!(problem(fetch(&long, &FetchLimits::default())).len() < 400);
    let inline = format!("data:image/png;base64,{}", STANDARD.encode([7; 4000]));
    let source = ImageSource::parse(&inline, Path::new(".")).unwrap();
    assert_eq!(source.name(), "data:image/png;base64,...");
}

#[test]
fn missing_files_and_files_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = FetchLimits::default();
    assert_says(fetch("/nowhere/a.png", &limits), &["/nowhere/a.png", "read", "No such file"]);
    assert_says(fetch(dir.path().to_str().unwrap(), &limits), &["directory"]);
    assert_says(fetch("/dev/zero", &limits), &["not a regular file"]);
    assert!(fetch("a\0b", &limits).is_err());
    let pipe = dir.path().join("pipe");
    if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|s| s.success()) {
        assert_says(fetch(pipe.to_str().unwrap(), &limits), &["not a regular file"]);
    }
}

#[test]
fn files_and_inline_pictures_above_the_limit_are_refused() {
    let limits = FetchLimits { max_bytes: 10, ..Default::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, [0; 11]).unwrap();
    assert_says(fetch(path.to_str().unwrap(), &limits), &["more than 10 bytes"]);
    std::fs::write(&path, [0; 10]).unwrap();
    assert_eq!(fetch(path.to_str().unwrap(), &limits).unwrap().len(), 10);
    let inline = format!("data:image/png;base64,{}", STANDARD.encode([7; 11]));
    assert_says(fetch(&inline, &limits), &["more than 10 bytes"]);
}

/// A server on a free port of this machine that hands every connection to `answer` after the
/// request has come in. Ends with the test process.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = (&stream).read(&mut [0; 4096]);
                answer(stream);
            });
        }
    });
    url
}

fn respond(stream: &mut TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

fn short() -> FetchLimits {
    FetchLimits { max_bytes: 100_000, timeout: Duration::from_millis(600), max_redirects: 3 }
}

#[track_caller]
fn assert_stops(url: &str, parts: &[&str]) {
    let start = Instant::now();
    assert_says(fetch(url, &short()), parts);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn an_unreachable_server_is_an_error_with_the_url() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/a.png");
    assert_stops(&url, &[&url, "refused"]);
    assert_stops("http://", &["http://"]);
    assert_stops("http://host.invalid/a.png", &["host.invalid"]);
}

#[test]
fn an_error_status_is_an_error() {
    let server = serve(|mut stream| respond(&mut stream, "404 Not Found", b"no"));
    assert_stops(&server, &[&server, "status 404"]);
}

#[test]
fn an_announced_length_above_the_limit_stops_before_the_body() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n");
        std::thread::sleep(Duration::from_secs(30));
    });
    assert_stops(&server, &["more than 100000 bytes"]);
}

#[test]
fn a_body_that_never_ends_stops_at_the_size_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[0; 4096]).is_ok() {}
    });
    assert_stops(&server, &["more than 100000 bytes"]);
}

#[test]
fn a_body_that_trickles_stops_at_the_time_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_header_that_trickles_stops_at_the_time_limit() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X: y\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_server_that_never_answers_stops_at_the_time_limit() {
    let server = serve(|_stream| std::thread::sleep(Duration::from_secs(30)));
    assert_stops(&server, &["did not finish in 0.6 s"]);
}

#[test]
fn a_redirect_loop_stops() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n");
    });
    assert_stops(&server, &[&server, "redirects more than 3 times"]);
}

#[test]
fn a_body_shorter_than_announced_is_an_error() {
    let server = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    });
    assert_stops(&server, &[&server, "download failed"]);
}

// Loading

#[test]
fn loading_in_parallel_keeps_the_order_and_times_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    let source = |width: u32| {
        let path = dir.path().join(format!("{width}.png"));
        std::fs::write(&path, png(width, 90)).unwrap();
        ImageSource::file(path)
    };
    let image = |w| VisualRequest {
        kind: VisualKind::Image,
        sources: vec![source(w)],
        options: Default::default(),
        file: None,
    };
    let video = VisualRequest {
        kind: VisualKind::Video,
        sources: vec![source(70), source(70), source(70)],
        options: Default::default(),
        file: None,
    };
    let mut requests: Vec<VisualRequest> = (0..10).map(|i| image(100 + 50 * i)).collect();
    requests.insert(4, video);
    let visuals = processor().load(&requests, &FetchLimits::default()).unwrap();
    let widths: Vec<u32> = visuals.iter().map(|v| v.original.0).collect();
    assert_eq!(widths, [100, 150, 200, 250, 70, 300, 350, 400, 450, 500, 550]);
    assert_eq!((visuals[4].grid.t, visuals[4].frames.len()), (2, 3));
    assert!(visuals.iter().all(|v| !v.timings.decode.is_zero() && !v.timings.resize.is_zero()));

    requests[7].sources = vec![ImageSource::memory("broken", b"no picture".to_vec())];
    assert_says(processor().load(&requests, &FetchLimits::default()), &["broken"]);
    requests[7].sources = vec![source(70), source(70)];
    assert_says(processor().load(&requests, &FetchLimits::default()), &["2 frames"]);
    requests[7].sources = vec![];
    assert_says(processor().load(&requests, &FetchLimits::default()), &["no frame"]);
    let none: Vec<Visual> = processor().load(&[], &FetchLimits::default()).unwrap();
    assert!(none.is_empty());
}

// Arbitrary input

proptest! {
    #[test]
    fn decode_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, "any");
    }

    #[test]
    fn decode_takes_damaged_files(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value: u8) {
        thread_local!(static FILES: Vec<Vec<u8>> =
            golden("pillow_decode.json").iter().map(|c| base64(&c["file"])).collect());
        FILES.with(|files| {
            let mut bytes = which.get(files).clone();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = decode(&bytes, "damaged");
        });
    }

    #[test]
    fn parse_takes_any_text(text in ".{0,60}", tail in "(data:image|file://|http://|;base64,|%[0-9a-f]|,){0,4}") {
        let _ = ImageSource::parse(&text, Path::new("/"));
        let _ = ImageSource::parse(&format!("{tail}{text}"), Path::new("/"));
    }
}
