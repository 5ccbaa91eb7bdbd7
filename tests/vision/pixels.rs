//! Resizing, patches, frames.

use super::*;

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
