//! The forms in which requests come: Qwen's and OpenAI's messages, options of single items, video files,
//! batches that go on after an interruption, boxes drawn into pictures.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{ints, json, path};
use qwenvl::prompt::{ImageInput, Message, Part, VideoInput, messages_from_json};
use qwenvl::vision::{FileAccess, UrlAccess};
use qwenvl::{Checkpoint, Engine, EngineOptions, Error, Frontend, Request};
use serde_json::{Value, json};

fn engine() -> Engine {
    let options = EngineOptions { context_tokens: Some(512), threads: Some(2), ..EngineOptions::default() };
    Engine::load(Checkpoint::tiny().unwrap(), &options).unwrap()
}

fn request(content: Value) -> Request {
    let value = json!({"messages": [{"role": "user", "content": content}], "temperature": 0});
    Request::from_json(&value, path("tests/data/samples")).unwrap()
}

fn qwenvl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwenvl"));
    command.args(arguments).current_dir(path("tests/data/samples"));
    command
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_video_file_gives_the_answer_of_the_reference() {
    let Value::Array(samples) = json("tests/data/samples/samples.json") else { panic!("no array") };
    let sample = samples.iter().find(|s| s["id"] == "11_mp4").unwrap();
    let mut engine = engine();
    for part in [
        json!({"type": "video", "video": "11_mp4.mp4", "fps": 2.0, "min_pixels": 3136}),
        json!({"type": "video_url", "video_url": {"url": "11_mp4.mp4"}, "fps": 2.0, "min_pixels": 3136}),
    ] {
        let request = request(json!([part, {"type": "text", "text": "Describe this video."}]));
        let answer = engine.answer(&request).unwrap();
        assert_eq!(answer.text, sample["answer_awq"].as_str().unwrap());
        let ids: Vec<u32> = ints(&sample["generated_ids_awq"]);
        assert_eq!(answer.token_ids[..ids.len()], ids);
        assert_eq!(answer.usage.prompt_tokens, ints::<u32>(&sample["input_ids"]).len());
        let video = answer.visuals[0].video.as_ref().unwrap();
        assert_eq!((video.decoder, video.total_frames, video.fps), ("built-in", 8, 2.0));
        assert_eq!(video.frames, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(video.seconds, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    }
}

#[test]
fn the_forms_of_openai_mean_what_those_of_qwen_mean() {
    let mut engine = engine();
    let text = json!({"type": "text", "text": "Which shape is purple?"});
    let mut answers = Vec::new();
    for (part, notices) in [
        (json!({"type": "image", "image": "00_shape1.png"}), 0),
        (json!({"type": "image_url", "image_url": "00_shape1.png"}), 0),
        (json!({"type": "image_url", "image_url": {"url": "00_shape1.png"}}), 0),
        (json!({"type": "image_url", "image_url": {"url": "00_shape1.png", "detail": "low"}}), 1),
    ] {
        let answer = engine.answer(&request(json!([part, text]))).unwrap();
        assert_eq!(answer.notices.len(), notices, "{:?}", answer.notices);
        answers.push((answer.text, answer.token_ids, answer.visuals));
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
    // Options of one item leave the other alone.
    let two = json!([
        {"type": "image_url", "image_url": {"url": "00_shape1.png"}, "resized_height": 56, "resized_width": 84},
        {"type": "image", "image": "00_shape1.png"},
        {"type": "text", "text": "What is this?"},
    ]);
    let answer = engine.answer(&request(two)).unwrap();
    assert_eq!((answer.visuals[0].resized_height, answer.visuals[0].resized_width), (56, 84));
    assert_eq!(answer.visuals[0].grid_thw, [1, 4, 6]);
    assert_eq!(answer.visuals[1], answers[0].2[0]);
}

#[test]
fn what_a_request_takes_is_bounded_before_it_is_loaded() {
    let engine = engine();
    let visual_tokens = |content: Value| match engine.frontend().prepare(&request(content)).map(|_| ()) {
        Err(Error::Context { prompt_tokens, visual_tokens, context_tokens: 512, .. }) => {
            assert!(prompt_tokens > visual_tokens);
            visual_tokens
        }
        other => panic!("{other:?}"),
    };
    let mut dot = Vec::new();
    image::RgbImage::new(1, 1)
        .write_to(&mut std::io::Cursor::new(&mut dot), image::ImageFormat::Png)
        .unwrap();
    let dot = format!("data:image/png;base64,{}", base64(&dot));
    // 390 MB each if they were resized.
    let large = json!({"type": "image", "image": dot, "min_pixels": 130_000_000, "max_pixels": 130_000_000});
    assert_eq!(visual_tokens(vec![large; 40].into()), 40 * 408 * 408);
    let frames = vec![dot; 3];
    let frames =
        json!({"type": "video", "video": frames, "min_pixels": 130_000_000, "max_pixels": 130_000_000});
    assert_eq!(visual_tokens(json!([frames])), 2 * 408 * 408);
    // Four slices of 336 x 336 pixels.
    assert_eq!(visual_tokens(json!([{"type": "video", "video": "11_mp4.mp4"}])), 4 * 144);
    assert_eq!(visual_tokens(json!([{"type": "text", "text": "word ".repeat(600)}])), 0);

    let long = json!([{"type": "text", "text": " ".repeat(20_000_000)}]);
    let error = engine.frontend().prepare(&request(long)).map(|_| ()).unwrap_err().to_string();
    for part in ["a prompt of 20000", "bytes of text", "512 tokens", "shorten the prompt"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_service_says_which_files_and_servers_requests_may_name() {
    let mut engine = engine();
    let image = |from: &str| request(json!([{"type": "image", "image": from}]));
    let refused = |engine: &Engine, from: &str| {
        engine.frontend().prepare(&image(from)).map(|_| ()).expect_err("it is forbidden").to_string()
    };
    let inside = path("tests/data/samples");
    let limits = &mut engine.frontend_mut().unwrap().fetch_limits;
    (limits.files, limits.urls) = (FileAccess::Under(inside), UrlAccess::Public);
    assert!(engine.frontend().prepare(&image("00_shape1.png")).is_ok());
    assert!(refused(&engine, "../tiny_logits.safetensors").contains("not in the directory"));
    assert!(refused(&engine, "http://127.0.0.1:1/latest/meta-data").contains("not public"));
    engine.frontend_mut().unwrap().fetch_limits.files = FileAccess::None;
    assert!(refused(&engine, "00_shape1.png").contains("reads no files"));
}

#[test]
fn a_picture_file_in_memory_is_the_one_on_disk() {
    let mut engine = engine();
    let bytes = std::fs::read(path("tests/data/samples/00_shape1.png")).unwrap();
    let question = |image: Part| Message::user([image, Part::text("Which shape is purple?")]);
    let request = Request::new(vec![question(Part::image(ImageInput::encoded(bytes)))]);
    assert_eq!(engine.answer(&request).unwrap().text, "The square is purple.");
    let request = Request::new(vec![question(Part::image(ImageInput::encoded(*b"GIF")))]);
    let error = engine.answer(&request).unwrap_err().to_string();
    assert!(error.contains("image in memory, 3 bytes: it is no known picture format"), "{error}");
}

#[test]
fn malformed_parts_are_refused_with_their_path() {
    let wrong = |part: Value| {
        let messages = json!([{"role": "user", "content": [part]}]);
        messages_from_json(&messages, "messages").unwrap_err().to_string()
    };
    for (part, expected) in [
        (json!({"type": "video_url", "video_url": {"url": "a", "speed": 2}}), "content[0].video_url"),
        (json!({"type": "video_url", "video_url": {"url": "a"}, "video": "b"}), "as video is given"),
        (json!({"type": "video_url", "video_url": 3}), "content[0].video_url"),
        (json!({"type": "video", "video": "a", "fps": 1, "nframes": 4}), "as fps is given"),
        (json!({"type": "image", "image": "a", "exif_orientation": 1}), "true or false"),
        (json!({"type": "image", "image": "a", "crop": true}), "unknown key crop"),
        (json!({"type": "audio", "audio": "a"}), "content[0].type"),
    ] {
        let message = wrong(part);
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
    }
    let messages = json!([{"role": "user", "content": [{"video_url": {"url": "a.mp4"}, "nframes": 4}]}]);
    let parsed = messages_from_json(&messages, "messages").unwrap();
    let [Part::Video(video)] = parsed[0].parts() else { panic!("{parsed:?}") };
    assert_eq!((&video.video, video.nframes), (&VideoInput::File("a.mp4".into()), Some(4)));
}

/// A JPEG of 40x20 pixels whose EXIF data say that it is to be turned to the right.
fn turned_jpeg() -> Vec<u8> {
    let mut jpeg = Vec::new();
    let picture =
        image::RgbImage::from_fn(40, 20, |x, _| image::Rgb(if x < 20 { [250, 0, 0] } else { [0, 0, 250] }));
    picture.write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    exif.splice(..0, [0xff, 0xe1, length[0], length[1]]);
    jpeg.splice(2..2, exif);
    jpeg
}

#[test]
fn exif_orientation_is_applied_if_it_is_asked_for() {
    use qwenvl::vision::decode::{decode, decode_oriented};
    let jpeg = turned_jpeg();
    let plain = decode(&jpeg, "turned").unwrap();
    assert_eq!((plain.width(), plain.height()), (40, 20));
    assert!(plain.data()[0] > 200, "red is on the left");
    let turned = decode_oriented(&jpeg, "turned", true).unwrap();
    assert_eq!((turned.width(), turned.height()), (20, 40));
    assert!(turned.data()[0] > 200 && turned.data()[20 * 39 * 3 + 2] > 200, "red is at the top, blue below");

    let file = tempfile::Builder::new().suffix(".jpg").tempfile().unwrap();
    std::fs::write(file.path(), &jpeg).unwrap();
    let sizes = |arguments: &[&str]| {
        let image = file.path().to_str().unwrap();
        let output =
            qwenvl(&[&["run", "--json", "--max-tokens", "1", "--image", image, "What?"], arguments].concat());
        let answer: Value = serde_json::from_str(&succeeds(&{ output }.output().unwrap())).unwrap();
        (answer["visuals"][0]["width"].clone(), answer["visuals"][0]["height"].clone())
    };
    assert_eq!(sizes(&[]), (json!(40), json!(20)));
    assert_eq!(sizes(&["--exif-orientation"]), (json!(20), json!(40)));
}

#[test]
fn run_answers_about_a_video_file_and_says_which_frames_it_saw() {
    let arguments = ["run", "--video", "11_mp4.mp4", "--min-pixels", "3136", "Describe this video."];
    assert_eq!(succeeds(&qwenvl(&arguments).output().unwrap()).trim(), "A yellow square moves to the left.");
    let options = ["--json", "--nframes", "4", "--video-start", "1"];
    let output = qwenvl(&[&arguments[..], &options].concat()).output().unwrap();
    let answer: Value = serde_json::from_str(&succeeds(&output)).unwrap();
    assert_eq!(answer["visuals"][0]["video"]["frames"], json!([2, 4, 5, 7]));
    assert_eq!(answer["visuals"][0]["grid_thw"], json!([2, 8, 8]));
}

#[test]
fn without_ffmpeg_a_video_that_needs_it_is_refused_with_what_to_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // The start of a WebM file.
    std::fs::write(file.path(), b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01").unwrap();
    let empty = tempfile::tempdir().unwrap();
    let mut hevc = std::fs::read(path("tests/data/samples/11_mp4.mp4")).unwrap();
    let at = hevc.windows(4).rposition(|w| w == b"avc1").unwrap();
    hevc[at..at + 4].copy_from_slice(b"hvc1");
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), hevc).unwrap();
    for (video, what) in [(file.path(), "no MP4"), (other.path(), "HEVC")] {
        let output = qwenvl(&["run", "--video", video.to_str().unwrap(), "What?"])
            .env("PATH", empty.path())
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        for part in [what, "ffmpeg and ffprobe", "not in PATH", "install ffmpeg"] {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

#[cfg(unix)]
#[test]
fn ffmpeg_is_asked_for_the_sampled_frames_and_its_failures_are_reported() {
    use std::os::unix::fs::PermissionsExt;
    let tools = tempfile::tempdir().unwrap();
    let video = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(video.path(), b"RIFF....AVI ").unwrap();
    let script = |name: &str, text: &str| {
        let file = tools.path().join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let run_on = |video: &str| {
        let path = format!("{}:/usr/bin:/bin", tools.path().display());
        qwenvl(&["run", "--json", "--max-tokens", "1", "--min-pixels", "784", "--video", video, "What?"])
            .env("PATH", path)
            .output()
            .unwrap()
    };
    let run = || run_on(video.path().to_str().unwrap());
    // Six frames at 2 fps, in the order in which they are stored.
    let packets = "echo 'stream|avg_frame_rate=2/1|r_frame_rate=2/1'
for t in 0.0 1.5 0.5 1.0 2.0 2.5; do echo \"packet|pts_time=$t|dts_time=$t|flags=K_\"; done
echo 'packet|pts_time=-1|flags=KD'";
    let packets = format!(
        "echo \"$*\" > \"$(dirname \"$0\")/probe_seen\"
case \"$*\" in *file:/dev/fd/0*) cat /dev/fd/0 > \"$(dirname \"$0\")/probe_read\";; esac
{packets}"
    );
    script("ffprobe", &packets);
    // Frames of 28x56 pixels, as many as are asked for; an older ffmpeg that does not know -fps_mode.
    script(
        "ffmpeg",
        "case \"$*\" in *fps_mode*) echo \"Unrecognized option 'fps_mode'.\" >&2; exit 1;; esac
echo \"$*\" > \"$(dirname \"$0\")/seen\"
case \"$*\" in *file:/dev/fd/0*) cat /dev/fd/0 > \"$(dirname \"$0\")/read\";; esac
for i in 0 1 2 3 4 5; do printf 'P6\\n28 56\\n255\\n'; head -c 4704 /dev/zero; done",
    );
    let answer: Value = serde_json::from_str(&succeeds(&run())).unwrap();
    let seen = std::fs::read_to_string(tools.path().join("seen")).unwrap();
    assert!(seen.contains("select='between(n,0,5)' -vsync"), "{seen}");
    assert!(seen.contains("-i file:/") && seen.contains("-vsync passthrough -frames:v 6"), "{seen}");
    let visual = &answer["visuals"][0];
    assert_eq!((&visual["width"], &visual["height"]), (&json!(28), &json!(56)));
    assert_eq!(visual["video"]["decoder"], "ffmpeg");
    assert_eq!(visual["video"]["seconds"], json!([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]));

    // The programs read this file and none that it names.
    let probed = std::fs::read_to_string(tools.path().join("probe_seen")).unwrap();
    for arguments in [&seen, &probed] {
        let after = |option: &str| arguments.split_once(option).unwrap().1.split(' ').next().unwrap();
        assert_eq!(after("-protocol_whitelist "), "file");
        let formats: Vec<&str> = after("-format_whitelist ").split(',').collect();
        assert!(formats.contains(&"matroska") && formats.contains(&"avi"), "{formats:?}");
        for format in ["hls", "dash", "concat", "image2", "sdp", "imf", "webm_dash_manifest", "lavfi"] {
            assert!(!formats.contains(&format), "{format}");
        }
        assert!(arguments.find("-format_whitelist") < arguments.find("file:/"), "{arguments}");
    }

    // What is inline has no name: the programs get it open.
    let uri = format!("data:video/x-msvideo;base64,{}", base64(b"RIFF....AVI "));
    succeeds(&run_on(&uri));
    for name in ["probe_read", "read"] {
        assert_eq!(std::fs::read(tools.path().join(name)).unwrap(), b"RIFF....AVI ", "{name}");
    }

    let fails = |parts: &[&str]| {
        let output = run();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    };
    script("ffmpeg", "printf 'P6\\n28 56\\n255\\n'; head -c 4704 /dev/zero");
    fails(&["1 of the 6 sampled frames"]);
    script("ffmpeg", "printf 'P6\\n28 56\\n255\\n'; head -c 100 /dev/zero");
    fails(&["inside a frame"]);
    script("ffmpeg", "printf 'P6\\n99999 99999\\n255\\n'");
    fails(&["99999x99999 pixels"]);
    script("ffmpeg", "echo 'Decoder (codec xyz) not found' >&2; exit 1");
    fails(&["codec xyz", "lacks its codec"]);
    script("ffprobe", "echo 'Invalid data found' >&2; exit 1");
    fails(&["ffprobe cannot read it", "Invalid data found"]);
    script("ffprobe", "true");
    fails(&["it has no video"]);
    script("ffprobe", "echo 'stream|avg_frame_rate=0/0|r_frame_rate=25/1'");
    fails(&["it has no frames"]);
}

#[cfg(unix)]
#[test]
fn a_video_that_is_downloaded_leaves_nothing_behind() {
    use std::io::{Read, Write};
    let (listener, directory) =
        (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), tempfile::tempdir().unwrap());
    let url = format!("http://{}/a.mp4", listener.local_addr().unwrap());
    let mut child = qwenvl(&["run", "--video", &url, "What?"])
        .env("TMPDIR", directory.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]);
    // More than fits between the two: it reads, so it has the file.
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n").unwrap();
    stream.write_all(&vec![7; 32 << 20]).unwrap();
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left, 0, "a process that is killed now leaves this");
}

#[test]
fn boxes_are_drawn_into_the_first_picture() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.png");
    let arguments =
        ["run", "--image", "13_chat.png", "--draw-boxes", out.to_str().unwrap(), "What color is the square?"];
    let output = qwenvl(&arguments).output().unwrap();
    assert!(succeeds(&output).contains("The square is yellow."));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the answer has no boxes"));
    let (drawn, original) =
        (image::open(&out).unwrap(), image::open(path("tests/data/samples/13_chat.png")).unwrap());
    assert_eq!(drawn.to_rgb8(), original.to_rgb8());
    let output = qwenvl(&["run", "--draw-boxes", "x.png", "What?"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--draw-boxes needs a picture"));
}

fn batch(requests: &Path, output: &Path, more: &[&str]) -> Output {
    let arguments =
        ["batch", requests.to_str().unwrap(), "--output", output.to_str().unwrap(), "--context", "256"];
    qwenvl(&[&arguments[..], more].concat()).output().unwrap()
}

/// Answers without what differs from run to run.
fn answers(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    lines.iter_mut().for_each(|line| {
        line.as_object_mut().unwrap().remove("timings");
    });
    lines
}

#[test]
fn a_batch_of_all_kinds_goes_on_where_it_was_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("requests.jsonl");
    let sample = |name: &str| path(&format!("tests/data/samples/{name}")).to_str().unwrap().to_string();
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let lines = [
        json!({"custom_id": "text", "messages": user(json!("Who are you?")), "max_tokens": 8}),
        json!({"custom_id": "image", "max_tokens": 8, "messages": user(json!([
            {"type": "image_url", "image_url": {"url": sample("00_shape1.png"), "detail": "high"}},
            {"type": "text", "text": "Which shape is purple?"}]))}),
        json!({"custom_id": "broken", "messages": user(json!([{"type": "image", "image": "missing.png"}]))}),
        json!({"custom_id": "video", "messages": user(json!([
            {"type": "video", "video": sample("11_mp4.mp4"), "min_pixels": 3136},
            {"type": "text", "text": "Describe this video."}]))}),
        json!({"custom_id": "frames", "messages": user(json!([
            {"type": "video", "video": [sample("10_video_00.png"), sample("10_video_01.png"), sample("10_video_02.png")]},
            {"type": "text", "text": "What happens in this video?"}]))}),
    ];
    let text: String = lines.iter().map(|l| format!("{l}\n\n")).collect();
    std::fs::write(&requests, text + "no json\n").unwrap();
    let whole = dir.path().join("whole.jsonl");
    assert_eq!(batch(&requests, &whole, &[]).status.code(), Some(1));
    let expected = answers(&whole);
    let ids: Vec<&Value> = expected.iter().map(|a| &a["custom_id"]).collect();
    assert_eq!(
        ids,
        [&json!("text"), &json!("image"), &json!("broken"), &json!("video"), &json!("frames"), &Value::Null]
    );
    assert!(expected[1]["notices"][0].as_str().unwrap().contains("detail high"));
    assert!(expected[2]["error"].as_str().unwrap().contains("missing.png"));
    assert_eq!(expected[3]["text"], "A yellow square moves to the left.");
    assert_eq!(expected[4]["visuals"][0]["grid_thw"][0], 2);
    assert!(expected[5]["error"].as_str().unwrap().contains("not JSON"));

    let full = std::fs::read(&whole).unwrap();
    let ends: Vec<usize> =
        full.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    for cut in [0, ends[0], ends[1] + 25, ends[4] - 1, full.len()] {
        let part = dir.path().join(format!("{cut}.jsonl"));
        std::fs::write(&part, &full[..cut]).unwrap();
        assert_eq!(batch(&requests, &part, &["--resume", "--parallel", "3"]).status.code(), Some(1));
        assert_eq!(answers(&part), expected, "cut at {cut}");
        let kept = ends.iter().rev().find(|&&e| e <= cut).copied().unwrap_or(0);
        assert_eq!(std::fs::read(&part).unwrap()[..kept], full[..kept], "answers that were there stay");
    }

    let says = |requests: &Path, expected: &str| {
        let output = batch(requests, &whole, &["--resume"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expected), "{expected:?} is not in: {message}");
    };
    let other = dir.path().join("other.jsonl");
    std::fs::write(&other, format!("{}\n{}\n", lines[1], lines[0])).unwrap();
    says(&other, "request 1 is \"image\" but the output answers \"text\"");
    std::fs::write(&other, format!("{}\n", lines[0])).unwrap();
    says(&other, "the output answers request 6 but there are 1");
    std::fs::write(&whole, "{\"a\": 1}\n").unwrap();
    says(&requests, "line 1 is no answer of this command");
    assert_eq!(std::fs::read(&whole).unwrap(), b"{\"a\": 1}\n", "a file that is not ours stays");
}

#[test]
fn a_prompt_beyond_the_positions_of_the_model_is_told() {
    let mut checkpoint = Checkpoint::tiny().unwrap();
    let request = Request::new(vec![Message::user(vec![Part::text("Who are you?")])]);
    let notices =
        |checkpoint: &Checkpoint| Frontend::new(checkpoint).unwrap().prepare(&request).unwrap().notices;
    assert!(notices(&checkpoint).is_empty());
    checkpoint.config.text.max_position_embeddings = 16;
    let [notice] = &notices(&checkpoint)[..] else { panic!("one notice") };
    assert!(notice.contains("beyond the 16"), "{notice}");
}

#[test]
fn a_file_of_a_checkpoint_that_cannot_be_used_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path("tests/data/tiny-bf16")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    for (name, text, expected) in [
        ("tokenizer.json", "", "download the file again"),
        ("preprocessor_config.json", "{", "take the file from the checkpoint"),
        ("generation_config.json", "[", "JSON"),
        ("generation_config.json", "{\"eos_token_id\": [99999999]}", "expected ids below"),
    ] {
        let file = dir.path().join(name);
        let before = std::fs::read(&file).ok();
        std::fs::write(&file, text).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = Frontend::new(&checkpoint).err().expect("an unusable file").to_string();
        assert!(error.starts_with(&file.display().to_string()) && error.contains(expected), "{error}");
        match before {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
    }
}

#[test]
fn a_service_can_tell_the_faults_of_requests_from_its_own() {
    let engine = engine();
    let image =
        |source: &str| json!([{"type": "image", "image": source}, {"type": "text", "text": "What is it?"}]);
    let tiny = json!([{"type": "image", "image": "00_shape1.png", "min_pixels": 9_000_000, "max_pixels": 9_000_000}]);
    for content in [image("none.png"), image("ftp://host/a.png"), image("samples.json"), tiny] {
        let error = engine.frontend().prepare(&request(content)).err().expect("a fault");
        assert!(error.is_of_request(), "{error:?}");
    }
    let error = Checkpoint::open(&path("tests/data/samples")).expect_err("no checkpoint");
    assert!(!error.is_of_request(), "{error:?}");
}
