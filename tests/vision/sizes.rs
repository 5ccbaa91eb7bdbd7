//! Sizes of pictures, limits of pixels, configurations.

use super::*;

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
    assert_says(
        processor.target_size(1000, 1000, &low),
        &["min_pixels 100352 (the default)", "max_pixels 50000", "give both"],
    );
    let high = ImageOptions { min_pixels: Some(300_000), ..Default::default() };
    assert_says(
        processor.target_size(1000, 1000, &high),
        &["300000 above", "max_pixels 200704 (the default)"],
    );
}

#[test]
fn errors_about_a_size_name_the_picture() {
    let load = |width, options| {
        let request = VisualRequest {
            kind: VisualKind::Image,
            sources: vec![ImageSource::memory("thin.png", png(width, 1))],
            options,
            file: None,
        };
        processor().load(&[request], &FetchLimits::default(), &|_| Ok(()))
    };
    assert_says(load(300, ImageOptions::default()), &["image thin.png: 300x1 pixels: aspect ratio", "crop"]);
    let low = ImageOptions { max_pixels: Some(1000), ..Default::default() };
    assert_says(load(30, low), &["min_pixels of thin.png", "3136 (the default)"]);
    let large = ImageOptions { min_pixels: Some(1 << 40), max_pixels: Some(1 << 41), ..Default::default() };
    assert_says(load(30, large), &["image thin.png: 30x1", "lower min_pixels"]);
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
