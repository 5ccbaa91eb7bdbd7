//! Video files: which frames are looked at and how large they are, decoding, and what can be wrong.

mod common;

use std::path::Path;

use common::{cases, ints, path, vectors};
use proptest::prelude::*;
use qwenvl::graph::Grid;
use qwenvl::vision::video::{VideoOptions, sample};
use qwenvl::vision::{
    FetchLimits, ImageOptions, ImageSource, Processor, Rgb8, Visual, VisualKind, VisualRequest,
};
use qwenvl::{Error, Result};
use serde_json::Value;

const SAMPLE: &str = "tests/data/samples/11_mp4.mp4";

fn processor() -> Processor {
    Processor::from_json(None, &common::published_config().vision).unwrap()
}

fn options(element: &Value) -> (ImageOptions, VideoOptions) {
    let int = |key: &str| element[key].as_u64();
    let image = ImageOptions {
        min_pixels: int("min_pixels"),
        max_pixels: int("max_pixels"),
        resized_height: int("resized_height").map(|n| n as u32),
        resized_width: int("resized_width").map(|n| n as u32),
        exif_orientation: None,
    };
    let video = VideoOptions {
        fps: element["fps"].as_f64(),
        nframes: int("nframes").map(|n| n as u32),
        min_frames: int("min_frames").map(|n| n as u32),
        max_frames: int("max_frames").map(|n| n as u32),
        video_start: element["video_start"].as_f64(),
        video_end: element["video_end"].as_f64(),
        total_pixels: int("total_pixels"),
    };
    (image, video)
}

fn load(source: ImageSource, image: ImageOptions, video: VideoOptions) -> Result<Visual> {
    let request =
        VisualRequest { kind: VisualKind::Video, sources: vec![source], options: image, file: Some(video) };
    let mut loaded = processor().load(&[request], &FetchLimits::default(), &|_| Ok(()))?;
    Ok(loaded.remove(0))
}

fn small() -> ImageOptions {
    ImageOptions { min_pixels: Some(3136), ..ImageOptions::default() }
}

#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) -> Error {
    let error = result.map(|_| ()).expect_err("this should be refused");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
    error
}

#[test]
fn frames_are_sampled_as_by_the_vendors_library() {
    let cases = cases("video_sampling.json");
    assert_eq!(cases.len(), 26);
    let mut errors = 0;
    for (desc, case) in cases {
        let (_, video) = options(&case["ele"]);
        let (total, fps) = (case["total_frames"].as_u64().unwrap(), case["video_fps"].as_f64().unwrap());
        let (found, expected) = (sample(total, fps, &video), &case["vl_utils_0_0_14"]);
        if expected.get("error").is_some() {
            refused(found, &["found"]);
            errors += 1;
            continue;
        }
        let found = found.unwrap();
        assert_eq!(found, ints::<u64>(&expected["indices"]), "{desc}");
        assert_eq!(found.len() as u64, expected["nframes"].as_u64().unwrap(), "{desc}");
    }
    assert!(errors >= 4, "{errors}");
}

#[test]
fn frames_have_the_size_that_the_vendors_library_gives_them() {
    let file = vectors("video_sampling.json");
    let budgets = file["pixel_budget"].as_array().unwrap();
    assert_eq!(budgets.len(), 7);
    for case in budgets {
        let (image, video) = options(&case["ele"]);
        let int = |key: &str| case[key].as_u64().unwrap();
        let frames = sample(int("total_frames"), case["video_fps"].as_f64().unwrap(), &video).unwrap();
        let (width, height) = (int("width") as u32, int("height") as u32);
        let size = processor().frame_size(frames.len(), width, height, &image, &video).unwrap();
        let expected: Vec<usize> = ints(&case["vl_utils_0_0_14"]["shape_TCHW"]);
        let found = [frames.len(), 3, size.0 as usize, size.1 as usize];
        assert_eq!(found, expected[..], "{}", case["desc"]);
    }
}

fn picture(path: &Path) -> Rgb8 {
    qwenvl::vision::decode::decode(&std::fs::read(path).unwrap(), "picture").unwrap()
}

#[test]
fn the_frames_of_an_mp4_are_those_that_ffmpeg_decodes() {
    let visual = load(ImageSource::file(path(SAMPLE)), small(), VideoOptions::default()).unwrap();
    let sampling = visual.sampling.as_ref().unwrap();
    assert_eq!(sampling.decoder, "built-in");
    assert_eq!((sampling.total_frames, sampling.frames.len()), (8, visual.frames.len()));
    assert_eq!(visual.original, (112, 112));
    assert_eq!(visual.grid, Grid { t: 4, h: 8, w: 8 });
    assert!(sampling.seconds.is_sorted() && sampling.seconds[0] == 0.0);
    for (frame, number) in visual.frames.iter().zip(&sampling.frames) {
        let reference = picture(&path(&format!("tests/data/samples/11_mp4_decoded_{number:02}.png")));
        let differs = frame.data().iter().zip(reference.data()).position(|(a, b)| a != b);
        assert_eq!(differs, None, "frame {number}");
    }
}

#[test]
fn part_of_a_video_is_taken_from_its_middle() {
    let all = load(
        ImageSource::file(path(SAMPLE)),
        small(),
        VideoOptions { nframes: Some(8), ..Default::default() },
    )
    .unwrap();
    let fps = all.sampling.as_ref().unwrap().fps;
    let video = VideoOptions {
        nframes: Some(2),
        video_start: Some(3.0 / fps),
        video_end: Some(6.0 / fps),
        ..Default::default()
    };
    let part = load(ImageSource::file(path(SAMPLE)), small(), video).unwrap();
    assert_eq!(part.sampling.as_ref().unwrap().frames, [3, 6]);
    assert_eq!(part.frames, [all.frames[3].clone(), all.frames[6].clone()]);
}

#[test]
fn a_video_in_memory_is_the_one_in_the_file() {
    use base64::Engine as _;
    let bytes = std::fs::read(path(SAMPLE)).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(&bytes);
    let uri = format!("data:video/mp4;base64,{encoded}");
    let source = ImageSource::parse_video(&uri, Path::new("")).unwrap();
    let (a, b) = (load(source, small(), VideoOptions::default()).unwrap(), ImageSource::file(path(SAMPLE)));
    assert_eq!(a.frames, load(b, small(), VideoOptions::default()).unwrap().frames);
    refused(ImageSource::parse_video("data:image/png;base64,AAAA", Path::new("")), &["not a video"]);
}

fn broken(bytes: &[u8]) -> Result<Visual> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    load(ImageSource::file(file.path()), small(), VideoOptions::default())
}

#[test]
fn what_is_wrong_with_a_video_is_said() {
    let good = std::fs::read(path(SAMPLE)).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        // The index comes last.
        let at = good.windows(from.len()).rposition(|w| w == from).expect("a box");
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    refused(broken(b""), &["no bytes"]);
    refused(broken(&good[..good.len() - 100]), &["cut short"]);
    refused(broken(&good[..40]), &["video"]);
    refused(broken(&replaced(b"vide", b"soun")), &["sound but no video"]);
    refused(broken(&replaced(b"moov", b"free")), &["no index"]);
    // No frames: a count of zero in the table of sizes.
    let at = good.windows(4).position(|w| w == b"stsz").unwrap();
    let mut empty = good.clone();
    empty[at + 12..at + 16].fill(0);
    refused(broken(&empty), &["no frames"]);
    let mut many = good.clone();
    many[at + 12..at + 16].fill(0xff);
    refused(broken(&many), &["4294967295 frames"]);
    refused(load(ImageSource::file(path("no/such.mp4")), small(), VideoOptions::default()), &["no/such.mp4"]);
    refused(load(ImageSource::file(path("tests")), small(), VideoOptions::default()), &["regular file"]);
    let two = VideoOptions { fps: Some(1.0), nframes: Some(2), ..Default::default() };
    refused(load(ImageSource::file(path(SAMPLE)), small(), two), &["nframes", "11_mp4.mp4"]);
    let none = VideoOptions { video_start: Some(99.0), ..Default::default() };
    refused(load(ImageSource::file(path(SAMPLE)), small(), none), &["video_start", "11_mp4.mp4"]);
    let png = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
    refused(broken(&png), &["video", "it is a picture (PNG)", "part of type image"]);
    refused(ImageSource::parse_video("", Path::new("")), &["video : the source is empty"]);
    refused(ImageSource::parse_video("ftp://host/a.mp4", Path::new("")), &["video ftp://host", "data:video"]);
    let low = ImageOptions { max_pixels: Some(50_000), ..ImageOptions::default() };
    let error = refused(
        load(ImageSource::file(path(SAMPLE)), low, VideoOptions::default()),
        &["min_pixels of ", "11_mp4.mp4", "100352 (the default)", "max_pixels 50000"],
    );
    assert!(matches!(error, Error::Request { .. }));
}

#[test]
fn options_that_no_frames_follow_from_are_refused_by_name() {
    let some = VideoOptions::default;
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        for (field, options) in [
            ("fps", VideoOptions { fps: Some(bad), ..some() }),
            ("video_start", VideoOptions { video_start: Some(bad), ..some() }),
            ("video_end", VideoOptions { video_end: Some(bad), ..some() }),
        ] {
            refused(sample(100, 25.0, &options), &[field, &bad.to_string()]);
        }
    }
    refused(sample(100, 25.0, &VideoOptions { fps: Some(0.0), ..some() }), &["fps", "above zero"]);
    refused(sample(1, 25.0, &some()), &["one frame", "give it as an image"]);
}

#[test]
fn limits_hold_for_videos() {
    use base64::Engine as _;
    let bytes = std::fs::read(path(SAMPLE)).unwrap();
    let uri = format!("data:video/mp4;base64,{}", base64::engine::general_purpose::STANDARD.encode(&bytes));
    let request = VisualRequest {
        kind: VisualKind::Video,
        sources: vec![ImageSource::parse_video(&uri, Path::new("")).unwrap()],
        options: small(),
        file: Some(VideoOptions::default()),
    };
    let length = bytes.len() as u64;
    let load = |limits: FetchLimits, most: usize| {
        processor().load(std::slice::from_ref(&request), &limits, &|tokens| {
            let found = format!("{tokens} tokens");
            let refusal = Error::Request { field: "video".into(), found, expected: "fewer".into() };
            if tokens <= most { Ok(()) } else { Err(refusal) }
        })
    };
    let some = FetchLimits::default;
    refused(
        load(FetchLimits { max_video_bytes: length - 1, ..some() }, 64),
        &["video data:video", "the limit"],
    );
    assert!(load(FetchLimits { max_video_bytes: length, max_bytes: 1, ..some() }, 64).is_ok());
    let few = FetchLimits { max_pixels: 112 * 112 - 1, ..some() };
    refused(load(few, 64), &["video data:video", "112x112 pixels", "12543"]);
    // Four slices of 16 tokens.
    refused(load(some(), 63), &["64 tokens"]);
}

#[test]
fn a_damaged_frame_is_an_error_or_decodes_but_never_a_panic() {
    let good = std::fs::read(path(SAMPLE)).unwrap();
    let mdat = good.windows(4).position(|w| w == b"mdat").unwrap() + 4;
    let mut refused = 0;
    for at in (mdat..good.len().min(mdat + 1200)).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] = !bytes[at];
        refused += usize::from(broken(&bytes).is_err());
    }
    assert!(refused > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_bytes_never_panic_or_hang(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = std::fs::read(path(SAMPLE)).unwrap();
        for (index, byte) in flips {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = broken(&bytes);
    }

    #[test]
    fn changed_tables_never_panic_or_hang(
        flips in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![0u32, 1, 2, 8, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff])), 1..4),
    ) {
        let mut bytes = std::fs::read(path(SAMPLE)).unwrap();
        let moov = bytes.windows(4).position(|w| w == b"moov").unwrap() + 4;
        for (index, number) in flips {
            let at = moov + index.index(bytes.len() - moov - 4);
            bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        let _ = broken(&bytes);
    }

    #[test]
    fn any_options_choose_ascending_frames_within_the_video(
        total in 1u64..100_000, fps in 0.1f64..240.0, wanted in proptest::option::of(0.0f64..200.0),
        nframes in proptest::option::of(0u32..5000), least in proptest::option::of(0u32..2000),
        start in proptest::option::of(0.0f64..5000.0), end in proptest::option::of(0.0f64..5000.0),
    ) {
        let options = VideoOptions {
            fps: wanted, nframes, min_frames: least, video_start: start, video_end: end, ..Default::default()
        };
        if let Ok(frames) = sample(total, fps, &options) {
            prop_assert!(frames.len() >= 2 && frames.len() % 2 == 0);
            prop_assert!(frames.is_sorted() && *frames.last().unwrap() < total);
        }
    }
}
