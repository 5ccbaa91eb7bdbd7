//! Messages, chat template, tokenizer, placeholders and positions against the reference libraries.

mod common;

use common::{TINY_TOKENIZER, TOKENIZER, cases, chat_template, grids, ints};
use proptest::prelude::*;
use qwenvl::Error;
use qwenvl::graph::positions::{cu_seqlens, rope_index, vision_positions};
use qwenvl::prompt::{
    ChatTemplate, Content, ImageInput, Message, Part, Tokenizer, VideoInput, expand, messages_from_json,
};
use serde_json::{Value, json};

fn parse(messages: &Value) -> Result<Vec<Message>, Error> {
    messages_from_json(messages, "messages")
}

/// Gives the bare pictures of the vectors something to show: a message must say which picture.
fn with_sources(mut messages: Value) -> Value {
    for message in messages.as_array_mut().expect("messages") {
        for part in message["content"].as_array_mut().map_or(&mut [][..], Vec::as_mut_slice) {
            for kind in ["image", "video"] {
                if part["type"] == kind && part.get(kind).is_none() {
                    part[kind] = json!("file.bin");
                }
            }
        }
    }
    messages
}

#[test]
fn prompts_and_their_ids_are_those_of_the_reference() {
    let template = chat_template();
    for (desc, case) in cases("chat_template.json") {
        let flag = |key: &str| case[key].as_bool().expect(key);
        let (generation, vision_id) = (flag("add_generation_prompt"), flag("add_vision_id"));
        let prompt = template.render_json(&case["messages"], generation, vision_id).expect(&desc);
        assert_eq!(prompt, case["prompt"].as_str().unwrap(), "{desc}");
        assert_eq!(TOKENIZER.encode(&prompt).unwrap(), ints::<u32>(&case["prompt_ids"]), "{desc}");
        match parse(&with_sources(case["messages"].clone())) {
            Ok(messages) => {
                assert_eq!(template.render(&messages, generation, vision_id).unwrap(), prompt, "{desc}")
            }
            // The reference drops such a part without a word; a request with one is refused.
            Err(error) => {
                assert!(desc.contains("unknown part type"), "{desc}: {error}");
                assert!(error.to_string().contains("messages[0].content[0].type"), "{error}");
            }
        }
    }
}

#[test]
fn texts_are_encoded_and_decoded_as_the_reference_does() {
    for (desc, case) in cases("tokenization.json") {
        let ids: Vec<u32> = ints(&case["ids"]);
        assert_eq!(TOKENIZER.encode(case["text"].as_str().unwrap()).unwrap(), ids, "{desc}");
        assert_eq!(TOKENIZER.decode(&ids, false), case["decoded"].as_str().unwrap(), "{desc}");
        assert_eq!(TOKENIZER.decode(&ids, true), case["decoded_skip_special"].as_str().unwrap(), "{desc}");
    }
    assert_eq!(TOKENIZER.token_id("<|im_end|>"), Some(151_645));
    assert_eq!(TOKENIZER.vocab_size(), 151_657);
}

#[test]
fn placeholders_are_expanded_as_the_reference_does() {
    let config = common::published_config();
    for (desc, case) in cases("placeholder_expansion.json") {
        let ids = TOKENIZER.encode(case["prompt"].as_str().unwrap()).unwrap();
        let (images, videos) = (grids(&case["image_grid_thw"]), grids(&case["video_grid_thw"]));
        let expanded = expand(&ids, &config, &images, &videos).expect(&desc);
        assert_eq!(expanded, ints::<u32>(&case["input_ids"]), "{desc}");
        let count = |token: u32| expanded.iter().filter(|&&id| id == token).count();
        assert_eq!(json!(count(config.image_token_id)), case["n_image_pad"], "{desc}");
        assert_eq!(json!(count(config.video_token_id)), case["n_video_pad"], "{desc}");
        rope_index(&expanded, &config, &images, &videos).expect(&desc);
    }
}

#[test]
fn a_placeholder_without_its_picture_is_an_error_that_counts_both() {
    let config = common::published_config();
    let ids = TOKENIZER.encode("<|image_pad|> and <|image_pad|>").unwrap();
    let grid = grids(&json!([[1, 4, 4]]));
    let error = expand(&ids, &config, &grid, &[]).unwrap_err().to_string();
    assert!(error.contains("found 2 image placeholders") && error.contains("expected 1"), "{error}");
    let error = expand(&ids, &config, &[grid[0]; 2], &grid).unwrap_err().to_string();
    assert!(error.contains("found 0 video placeholders") && error.contains("expected 1"), "{error}");
    assert!(matches!(
        expand(&ids, &config, &grids(&json!([[1, 4, 4], [1, 3, 4]])), &[]),
        Err(Error::Graph(_))
    ));
    let large = grids(&json!([[1, 4, 4], [1, 60000, 60000]]));
    assert!(matches!(expand(&ids, &config, &large, &[]), Err(Error::Request { .. })));
}

#[test]
fn positions_are_those_of_the_reference() {
    let config = common::published_config();
    for (desc, case) in cases("rope_index.json") {
        let rows = case["input_ids"].as_array().unwrap();
        let (mut images, mut videos) = (grids(&case["image_grid_thw"]), grids(&case["video_grid_thw"]));
        for (row, ids) in rows.iter().enumerate() {
            let mask: Vec<u32> = match &case["attention_mask"] {
                Value::Null => vec![1; ids.as_array().unwrap().len()],
                mask => ints(&mask[row]),
            };
            // A row without its padding, and the pictures it holds.
            let real = |values: Vec<u32>| -> Vec<u32> {
                values.into_iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(v, _)| v).collect()
            };
            let ids = real(ints(ids));
            let starts =
                |token: u32| ids.windows(2).filter(|w| *w == [config.vision_start_token_id, token]).count();
            let row_images: Vec<_> = images.drain(..starts(config.image_token_id)).collect();
            let row_videos: Vec<_> = videos.drain(..starts(config.video_token_id)).collect();
            let found = rope_index(&ids, &config, &row_images, &row_videos).expect(&desc);
            for axis in 0..3 {
                let expected = real(ints(&case["position_ids_thw"][axis][row]));
                let found: Vec<u32> = found.positions.iter().map(|p| p[axis]).collect();
                assert_eq!(found, expected, "{desc}, row {row}, axis {axis}");
            }
            // The reference counts cache slots of the padding too.
            let pads = (mask.len() - ids.len()) as i64;
            assert_eq!(json!(found.delta - pads), case["rope_deltas"][row], "{desc}, row {row}");
        }
        assert!(images.is_empty() && videos.is_empty(), "{desc}");
    }
}

#[test]
fn vision_positions_and_segments_are_those_of_the_reference() {
    for (desc, case) in cases("vision_rope.json") {
        let grids = grids(&case["grid_thw"]);
        let (h, w): (Vec<u32>, Vec<u32>) =
            grids.iter().flat_map(|&grid| vision_positions(grid, 2)).map(|[h, w]| (h, w)).unzip();
        assert_eq!(h, ints::<u32>(&case["h_pos"]), "{desc}");
        assert_eq!(w, ints::<u32>(&case["w_pos"]), "{desc}");
        assert_eq!(cu_seqlens(&grids).unwrap(), ints::<u32>(&case["cu_seqlens"]), "{desc}");
    }
}

#[test]
fn prompts_of_all_samples_of_the_tiny_model_are_those_of_the_reference() {
    let (template, config) = (chat_template(), common::tiny_config());
    let samples = common::json("tests/data/samples/samples.json");
    for sample in samples.as_array().unwrap() {
        let mut messages = sample["messages"].clone();
        for part in messages[0]["content"].as_array_mut().unwrap() {
            part.as_object_mut().unwrap().remove("frames");
        }
        let messages = parse(&messages).unwrap();
        let ids = TINY_TOKENIZER.encode(&template.render(&messages, true, false).unwrap()).unwrap();
        let (images, videos) = (grids(&sample["image_grid_thw"]), grids(&sample["video_grid_thw"]));
        assert_eq!(messages.iter().flat_map(Message::images).count(), images.len());
        assert_eq!(messages.iter().flat_map(Message::videos).count(), videos.len());
        let ids = expand(&ids, &config, &images, &videos).unwrap();
        assert_eq!(ids, ints::<u32>(&sample["input_ids"]), "{}", sample["id"]);
        rope_index(&ids, &config, &images, &videos).unwrap();
        // Long answers are stored with their first ids only.
        let beginning = TINY_TOKENIZER.decode(&ints::<u32>(&sample["generated_ids"]), true);
        assert!(sample["answer"].as_str().unwrap().starts_with(&beginning), "{}: {beginning}", sample["id"]);
    }
}

/// One user message with one part.
fn with_part(part: Value) -> Value {
    json!([{"role": "user", "content": [part]}])
}

fn part(value: Value) -> Part {
    let mut messages = parse(&with_part(value)).unwrap();
    let Content::Parts(mut parts) = messages.remove(0).content else { panic!("a text") };
    parts.remove(0)
}

#[test]
fn forms_of_the_model_card_are_understood() {
    let location = |part: Part| match part {
        Part::Image(image) => (image.image, image.size),
        other => panic!("{other:?}"),
    };
    let url = || ImageInput::Location("file:///a.jpg".into());
    for value in [
        json!({"type": "image", "image": "file:///a.jpg"}),
        json!({"image": "file:///a.jpg"}),
        json!({"type": "image_url", "image_url": "file:///a.jpg"}),
        json!({"type": "image_url", "image_url": {"url": "file:///a.jpg", "detail": "high"}}),
        json!({"image_url": {"url": "file:///a.jpg"}, "min_pixels": null}),
    ] {
        assert_eq!(location(part(value)).0, url());
    }
    let (_, size) =
        location(part(json!({"type": "image", "image": "a", "resized_height": 280, "resized_width": 420})));
    assert_eq!(size.resized, Some((280, 420)));
    let (_, size) =
        location(part(json!({"type": "image", "image": "a", "min_pixels": 50176, "max_pixels": 50176})));
    assert_eq!((size.min_pixels, size.max_pixels), (Some(50176), Some(50176)));
    let (_, size) = location(part(json!({"type": "image", "image": "a", "max_pixels": 151200.0})));
    assert_eq!(size.max_pixels, Some(151_200));
    let Part::Video(video) = part(json!({"type": "video", "video": ["1.jpg", "2.jpg"], "fps": 1.0})) else {
        panic!()
    };
    assert_eq!(video.video, VideoInput::Frames(vec!["1.jpg".into(), "2.jpg".into()]));
    let Part::Video(video) = part(json!({"video": "a.mp4", "max_pixels": 151200, "fps": 1})) else {
        panic!()
    };
    assert_eq!((video.video, video.fps), (VideoInput::File("a.mp4".into()), Some(1.0)));
    assert_eq!(part(json!({"text": "t"})), Part::text("t"));
    let built = Message::user([Part::image("file:///a.jpg"), Part::text("t")]);
    let read = parse(
        &json!([{"role": "user", "content": [{"image": "file:///a.jpg"}, {"type": "text", "text": "t"}]}]),
    );
    assert_eq!(read.unwrap(), [built]);
}

#[test]
fn malformed_messages_are_errors_that_name_the_field() {
    for (messages, field, words) in [
        (json!({}), "messages:", "array"),
        (json!([]), "messages:", "an empty array"),
        (json!([1]), "messages[0]:", "found 1"),
        (json!([[{"role": "user", "content": "a"}]]), "messages[0]:", "found an array of 1"),
        (json!([[{"role": "user", "content": "a"}]]), "messages[0]:", "qwenvl batch"),
        (json!([{"content": "a"}]), "messages[0].role:", "found nothing"),
        (json!([{"role": "tool", "content": "a"}]), "messages[0].role:", "\"tool\""),
        (json!([{"role": "user"}]), "messages[0].content:", "found nothing"),
        (json!([{"role": "user", "content": 1}]), "messages[0].content:", "found 1"),
        (json!([{"role": "user", "content": "a", "name": "b"}]), "messages[0]:", "unknown key name"),
        (with_part(json!("a")), "content[0]:", "\"a\""),
        (with_part(json!({})), "content[0].type:", "found nothing"),
        (with_part(json!({"type": "audio", "audio": "a"})), "content[0].type:", "\"audio\""),
        (with_part(json!({"type": "text"})), "content[0].text:", "found nothing"),
        (with_part(json!({"type": "text", "text": "a", "image": "b"})), "content[0]:", "unknown key image"),
        (with_part(json!({"type": "image"})), "messages[0].content[0].image:", "found nothing"),
        (with_part(json!({"type": "image", "image": 1})), "content[0].image:", "found 1"),
        (with_part(json!({"image": "a", "image_url": "b"})), "content[0].image_url:", "image is given"),
        (with_part(json!({"image_url": {"uri": "a"}})), "content[0].image_url:", "unknown key uri"),
        (with_part(json!({"image_url": {"url": "a", "detail": "x"}})), "image_url.detail:", "auto"),
        (with_part(json!({"image": "a", "min_pixel": 1})), "content[0]:", "unknown key min_pixel"),
        (with_part(json!({"image": "a", "min_pixels": 0})), "content[0].min_pixels:", "found 0"),
        (with_part(json!({"image": "a", "max_pixels": -1})), "content[0].max_pixels:", "found -1"),
        (with_part(json!({"image": "a", "max_pixels": 100.5})), "content[0].max_pixels:", "found 100.5"),
        (with_part(json!({"image": "a", "max_pixels": -8.0})), "content[0].max_pixels:", "found -8.0"),
        (with_part(json!({"image": "a", "max_pixels": 1e300})), "content[0].max_pixels:", "found 1e+300"),
        (
            with_part(json!({"image": "a", "min_pixels": 9, "max_pixels": 4})),
            "min_pixels:",
            "at most max_pixels, 4",
        ),
        (with_part(json!({"image": "a", "resized_height": 28})), "resized_width:", "resized_height is given"),
        (
            with_part(json!({"image": "a", "resized_height": 5000000000u64, "resized_width": 1})),
            "resized_height:",
            "at most",
        ),
        (with_part(json!({"type": "video"})), "content[0].video:", "found nothing"),
        (with_part(json!({"video": []})), "content[0].video:", "an empty array"),
        (with_part(json!({"video": ["a", 2]})), "content[0].video[1]:", "found 2"),
        (with_part(json!({"video": "a", "frames": ["b"]})), "content[0]:", "unknown key frames"),
        (with_part(json!({"video": "a", "fps": 0})), "content[0].fps:", "above zero"),
        (with_part(json!({"video": "a", "fps": 1, "nframes": 4})), "content[0].nframes:", "fps is given"),
        (with_part(json!({"video": "a", "min_frames": 8, "max_frames": 4})), "min_frames:", "max_frames, 4"),
        (with_part(json!({"video": "a", "video_start": 2, "video_end": 1})), "video_start:", "less than"),
    ] {
        let error = parse(&messages).unwrap_err();
        assert!(matches!(error, Error::Request { .. }), "{messages}: {error}");
        let error = error.to_string();
        assert!(error.contains(field) && error.contains(words), "{messages}: {error}");
    }
}

#[test]
fn errors_show_no_more_than_the_beginning_of_long_values() {
    let data = format!("data:image/png;base64,{}", "A".repeat(100_000));
    let error =
        parse(&with_part(json!({"type": "image", "image_url": {"url": data, "detail": data}}))).unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
    let message = Message::user([Part::image(data)]);
    assert!(format!("{message:?}").len() < 300);
}

#[test]
fn images_in_memory_have_three_bytes_per_pixel() {
    assert!(ImageInput::pixels(2, 1, vec![0; 6]).is_ok());
    for (width, height, bytes) in [(2, 1, 5), (0, 1, 0), (u32::MAX, u32::MAX, 1)] {
        assert!(matches!(ImageInput::pixels(width, height, vec![0; bytes]), Err(Error::Request { .. })));
    }
}

#[test]
fn no_token_is_longer_than_the_longest() {
    for tokenizer in [&*TOKENIZER, &*TINY_TOKENIZER] {
        let length = |id| tokenizer.decoder(false).push(id).len();
        let longest = (0..tokenizer.vocab_size() as u32).map(length).max().unwrap();
        assert_eq!(tokenizer.longest_token_bytes(), longest);
    }
}

#[test]
fn malformed_tokenizers_are_errors() {
    let good = common::text("engine/tiny_model/tokenizer.json");
    let value: Value = serde_json::from_str(&good).unwrap();
    let changed = |pointer: &str, new: Value| {
        let mut value = value.clone();
        *value.pointer_mut(pointer).expect(pointer) = new;
        value.to_string()
    };
    let (short, long) = (&good[..good.len() / 2], "[".repeat(100_000));
    for text in [
        "".to_string(),
        "null".into(),
        "{}".into(),
        short.into(),
        long,
        changed("/decoder", Value::Null),
        changed("/model/type", json!("WordPiece")),
        changed("/model/dropout", json!(0.5)),
        changed("/model/merges/0", json!("no such tokens")),
        changed("/model/vocab/!", json!(4_294_967_295u32)),
        changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("(")),
    ] {
        let result = Tokenizer::from_bytes(text.as_bytes());
        assert!(matches!(result, Err(Error::Tokenizer { .. })), "{}", &text[..text.len().min(80)]);
    }
    // The library gives such a token another id.
    let _ = Tokenizer::from_bytes(changed("/added_tokens/0/id", json!(u32::MAX)).as_bytes());
}

#[test]
fn very_long_texts_are_encoded_or_refused() {
    for text in [
        " ".repeat(1 << 20),
        format!("{}x", "\t \u{3000}".repeat(1 << 17)),
        "a".repeat(1 << 18),
        "\n \n".repeat(1 << 16),
    ] {
        if let Ok(ids) = TOKENIZER.encode(&text) {
            assert_eq!(TOKENIZER.decode(&ids, false), text);
        }
    }
}

/// Arbitrary JSON, with the keys and values of messages more often than chance would have them.
fn arbitrary_json() -> impl Strategy<Value = Value> {
    let word = || {
        let words = [
            "role",
            "content",
            "type",
            "text",
            "image",
            "image_url",
            "video",
            "url",
            "detail",
            "user",
            "system",
            "fps",
            "nframes",
            "min_pixels",
            "resized_height",
            "video_start",
            "auto",
        ];
        prop_oneof![prop::sample::select(words.to_vec()).prop_map(String::from), any::<String>()]
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(word(), inner, 0..5).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_is_parsed_or_refused(value in arbitrary_json()) {
        let _ = parse(&value);
        let _ = parse(&json!([{"role": "user", "content": value.clone()}]));
        let _ = parse(&json!([{"role": "user", "content": [value.clone()]}]));
        let mut part = json!({"image": "a"});
        if let (Some(into), Some(from)) = (part.as_object_mut(), value.as_object()) {
            into.extend(from.clone());
        }
        if let Ok(messages) = parse(&with_part(part)) {
            chat_template().render(&messages, true, true).unwrap();
        }
    }

    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = serde_json::from_slice(&bytes) {
            let _ = parse(&value);
        }
        prop_assert!(Tokenizer::from_bytes(&bytes).is_err());
        let text = String::from_utf8_lossy(&bytes);
        let _ = qwenvl::prompt::find_template(None, Some(&text), None);
    }

    #[test]
    fn arbitrary_templates_over_arbitrary_json_never_panic(
        pieces in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "{{ messages[0]", "{% for m in messages %}", "{% endfor %}", "{% if ", " %}", "}}", "['content']",
                "is string", "|length", "|tojson", " + 1", " ~ m", ".x.y", "{%- set x = ", "namespace(a=1)", "loop.first",
                "raise_exception(", ")", "{#", "#}", "{% raw %}", "{% macro f(x) %}", "{% endmacro %}", "[1:-1]", "|sort",
            ]).prop_map(String::from),
            ".{0,6}",
        ], 0..10),
        value in arbitrary_json(),
    ) {
        if let Ok(template) = ChatTemplate::new(&pieces.concat()) {
            let _ = template.render_json(&value, true, false);
        }
        let _ = chat_template().render_json(&value, true, true);
    }

    #[test]
    fn text_comes_through_the_template_verbatim(text in "\\PC{0,40}|[{}%#\n ]{0,20}") {
        let prompt = chat_template().render(&[Message::system(""), Message::user(text.as_str())], false, false).unwrap();
        prop_assert_eq!(prompt, format!("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"));
    }

    #[test]
    fn streamed_text_is_the_decoded_text(
        ids in prop::collection::vec(prop_oneof![0u32..300, 0u32..151_660, 151_640u32..151_660, any::<u32>()], 0..40),
        skip_special: bool,
    ) {
        for tokenizer in [&*TOKENIZER, &*TINY_TOKENIZER] {
            let mut decoder = tokenizer.decoder(skip_special);
            let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
            text += &decoder.finish();
            prop_assert_eq!(text, tokenizer.decode(&ids, skip_special));
        }
    }

    #[test]
    fn encoded_text_decodes_to_itself(text in "[ -~\u{4e00}-\u{4e20}\u{1f600}-\u{1f610}\n]{0,40}") {
        for tokenizer in [&*TOKENIZER, &*TINY_TOKENIZER] {
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), false), text.as_str());
        }
    }
}
