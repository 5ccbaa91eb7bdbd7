//! What the program says when something is wrong.

use super::*;

/// Writes a picture that is no good.
fn bad_picture(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join(name);
    match name {
        "cut.png" => {
            let good = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
            std::fs::write(&file, &good[..300]).unwrap();
        }
        "text.png" => std::fs::write(&file, "this is no picture").unwrap(),
        "empty.png" => std::fs::write(&file, "").unwrap(),
        "long.png" => image::RgbImage::new(2, 402).save(&file).unwrap(),
        other => panic!("{other}"),
    }
    file
}

/// What a machine without a GPU is told.
const NO_CUDA: &str = if cfg!(feature = "cuda") { "no CUDA driver" } else { "no CUDA executor" };

#[test]
fn bad_input_ends_with_a_message_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let picture = |name| bad_picture(dir.path(), name).to_str().unwrap().to_string();
    let [cut, no_picture, empty, long] = ["cut.png", "text.png", "empty.png", "long.png"].map(picture);
    let missing = dir.path().join("missing").to_str().unwrap().to_string();
    let bare = dir.path().to_str().unwrap().to_string();
    let broken_json = dir.path().join("broken.json").to_str().unwrap().to_string();
    std::fs::write(&broken_json, "{").unwrap();
    let no_frames = dir.path().join("no-frames");
    std::fs::create_dir(&no_frames).unwrap();
    std::fs::write(no_frames.join(".DS_Store"), "").unwrap();
    let no_frames = no_frames.to_str().unwrap().to_string();
    let broken_config = dir.path().join("broken");
    std::fs::create_dir(&broken_config).unwrap();
    std::fs::write(broken_config.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let broken_config = broken_config.to_str().unwrap().to_string();
    let (_batch, requests) = batch_dir(question("a", "Who are you?").to_string().as_bytes());
    let requests = requests.to_str().unwrap().to_string();
    let long_prompt = "word ".repeat(300);
    let many_tokens = usize::MAX.to_string();

    let cases: &[(i32, &[&str], &[&str])] = &[
        (2, &[], &["Usage"]),
        (2, &["fly"], &["unrecognized subcommand", "fly"]),
        (2, &["run"], &["<PROMPT>"]),
        (2, &["run", "--colour", "hi"], &["--colour"]),
        (2, &["run", "--threads", "0", "hi"], &["--threads", "1..=1024"]),
        (2, &["run", "--max-tokens", "many", "hi"], &["--max-tokens", "many"]),
        (2, &["run", "--messages", "a.json", "hi"], &["--messages"]),
        (2, &["run", "--messages", "a.json", "--fps", "1"], &["--messages", "--fps"]),
        (2, &["run", "--messages", "a.json", "--nframes", "4"], &["--messages", "--nframes"]),
        (2, &["run", "--messages", "a.json", "--video-start", "1"], &["--messages", "--video-start"]),
        (2, &["run", "--messages", "a.json", "--video-end", "1"], &["--messages", "--video-end"]),
        (
            2,
            &["run", "--messages", "a.json", "--resized-height", "28", "--resized-width", "28"],
            &["--messages", "--resized-"],
        ),
        (2, &["run", "--resized-height", "28", "hi"], &["--resized-width"]),
        (2, &["run", "--video", "a.mp4", "--fps", "nan", "hi"], &["--fps", "above 0"]),
        (2, &["run", "--video", "a.mp4", "--fps", "-1", "hi"], &["--fps", "above 0"]),
        (2, &["run", "--video", "a.mp4", "--fps", "0", "hi"], &["--fps", "above 0"]),
        (2, &["run", "--video", "a.mp4", "--nframes", "1", "hi"], &["--nframes", "1 is not in 2.."]),
        (2, &["run", "--video", "a.mp4", "--video-start", "-1", "hi"], &["--video-start", "0 or more"]),
        (2, &["run", "--video", "a.mp4", "--video-end", "nan", "hi"], &["--video-end", "0 or more"]),
        (2, &["run", "--video", "a.mp4", "--total-pixels", "0", "hi"], &["--total-pixels"]),
        (2, &["bench", "--max-pixels", "50176"], &["--max-pixels"]),
        (2, &["bench", "--min-pixels", "50176"], &["--min-pixels"]),
        (2, &["bench", "--exif-orientation"], &["--exif-orientation"]),
        (2, &["batch", "--retry-errors", "--output", "a", &requests], &["--resume"]),
        (2, &["batch", "--resume", "--overwrite", "--output", "a", &requests], &["--overwrite"]),
        (2, &["batch", "--parallel", "0", &requests], &["--parallel"]),
        (1, &["run", "--device", "tpu", "hi"], &["tpu", "auto, cpu, cuda"]),
        (1, &["run", "--device", "a100-80g", "hi"], &["a100-80g", "qwenvl plan"]),
        (1, &["run", "--device", "cuda", "hi"], &["cuda", NO_CUDA, "--device cpu"]),
        (1, &["chat", "--device", "cuda:1"], &["cuda:1", NO_CUDA]),
        (1, &["plan", "--device", "tpu"], &["tpu", "a100-80g"]),
        (1, &["run", "--model", &missing, "hi"], &[&missing, "no such directory"]),
        (1, &["run", "--model", &bare, "hi"], &["config.json"]),
        (1, &["run", "--model", &broken_config, "hi"], &["model_type", "llama"]),
        (1, &["plan", "--model", &missing], &[&missing]),
        (1, &["plan", "--model", &broken_json], &["JSON"]),
        (1, &["plan", "--context", "0"], &["--context: found 0"]),
        (1, &["plan", "--max-seqs", "0"], &["--max-seqs: found 0"]),
        (1, &["plan", "--prefill-chunk", "0"], &["--prefill-chunk: found 0"]),
        (1, &["plan", "--max-pixels", "0"], &["--max-pixels: found 0 patches"]),
        (1, &["plan", "--max-seqs", "60000"], &["--context times --max-seqs", "tokens"]),
        (1, &["bench", "--prefill-chunk", "0"], &["--prefill-chunk: found 0"]),
        (1, &["plan", "--context", &many_tokens, "--max-seqs", &many_tokens], &["context"]),
        (1, &["plan", "--html", "/none/plan.html"], &["/none/plan.html"]),
        (1, &["run", "--image", &missing, "hi"], &["cannot read", &missing]),
        (1, &["run", "--image", &bare, "hi"], &["it is a directory"]),
        (1, &["run", "--image", "", "hi"], &["the source is empty"]),
        (1, &["run", "--image", &cut, "hi"], &["cut.png", "cut short"]),
        (1, &["run", "--image", &no_picture, "hi"], &["text.png", "no known picture format"]),
        (1, &["run", "--image", &empty, "hi"], &["empty.png"]),
        (1, &["run", "--image", &long, "hi"], &["2x402", "200"]),
        (
            1,
            &["run", "--image", "http://127.0.0.1:1/a.png", "hi"],
            &["http://127.0.0.1:1/a.png", "download failed"],
        ),
        (1, &["run", "--image", "ftp://127.0.0.1/a.png", "hi"], &["ftp"]),
        (1, &["run", "--image", "data:image/png;base64,####", "hi"], &["base64"]),
        (1, &["run", "--image", "13_chat.png", "--max-pixels", "1", "hi"], &["max_pixels 1"]),
        (1, &["run", "--image", "13_chat.png", "--min-pixels", "0", "hi"], &["min_pixels 0"]),
        (
            1,
            &["chat", "--min-pixels", "5000", "--max-pixels", "4000"],
            &["--min-pixels 5000 is above --max-pixels 4000"],
        ),
        (1, &["run", "--frames", &missing, "hi"], &[&missing]),
        (1, &["run", "--frames", &no_frames, "hi"], &[&no_frames, "no files", "pictures of a video"]),
        (1, &["run", "--frames", "13_chat.png,00_shape1.png", "hi"], &["frames of one size"]),
        (1, &["run", "--messages", &missing], &[&missing]),
        (1, &["run", "--messages", &broken_json], &["broken.json is not JSON"]),
        (1, &["run", "--messages", &bare], &["cannot read", &bare]),
        (1, &["run", "--messages", "13_chat.png"], &["cannot read 13_chat.png", "not UTF-8 from byte 0 on"]),
        (
            1,
            &["run", "--image", "13_chat.png", "--draw-boxes", "/none/a.png", "hi"],
            &["--draw-boxes /none/a.png"],
        ),
        (1, &["run", "--context", "100", &long_prompt], &["the context of 100", "shorten the prompt"]),
        (1, &["run", "--context", "64", "--max-tokens", "64", "hi"], &["the context of 64", "lower"]),
        (1, &["run", "--max-tokens", "0", "hi"], &["max_tokens", "at least 1"]),
        (1, &["run", "--max-tokens", &many_tokens, "hi"], &["context", "1..=16777216"]),
        (1, &["run", "--context", &many_tokens, "hi"], &["context", "1..=16777216"]),
        (1, &["run", "--temperature", "-1", "hi"], &["temperature", "-1"]),
        (1, &["run", "--temperature", "nan", "hi"], &["temperature", "NaN"]),
        (1, &["run", "--temperature", "inf", "hi"], &["temperature", "inf", "finite"]),
        (1, &["run", "--top-p", "2", "hi"], &["top_p"]),
        (1, &["run", "--repetition-penalty", "0", "hi"], &["repetition_penalty"]),
        (1, &["run", "--stop", "", "hi"], &["stop[0]"]),
        (1, &["batch", &missing], &["cannot read", &missing]),
        (1, &["batch", &bare], &["cannot read", &bare]),
        (1, &["batch", &requests, "--output", "/none/answers"], &["--output /none/answers: cannot write it"]),
        (1, &["batch", &requests, "--output", &requests], &["these are the requests"]),
        // 4.4 TB of cache.
        (
            1,
            &["batch", "--parallel", "64", "--context", "16777216", &requests],
            &["are available on cpu", "--context", "would need"],
        ),
    ];
    for (code, args, messages) in cases {
        let run = qwenvl(args);
        assert_eq!((run.code, run.stdout.as_str()), (Some(*code), ""), "{args:?}: {}", run.stderr);
        for message in *messages {
            assert!(run.stderr.contains(message), "{args:?}: {message:?} is not in {}", run.stderr);
        }
        assert!(run.stderr.matches("os error").count() <= 1, "{}", run.stderr);
    }
    assert_ne!(std::fs::read_to_string(&requests).unwrap(), "", "the requests are untouched");
}

/// The tiny BF16 checkpoint in a directory of its own, to be damaged.
fn damaged(damage: impl FnOnce(&Path)) -> Run {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path("tests/data/tiny-bf16")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    damage(dir.path());
    qwenvl(&["run", "--model", text(dir.path()), "Who are you?"])
}

#[test]
fn a_damaged_checkpoint_is_told_before_it_runs() {
    assert_eq!(damaged(|_| {}).ok(), "I am a tiny vision language model.\n");
    type Damage = fn(&Path);
    let cases: [(Damage, &str); 5] = [
        (|d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), "safetensors"),
        (|d| std::fs::remove_file(d.join("tokenizer.json")).unwrap(), "tokenizer.json"),
        (
            |d| {
                let file = std::fs::File::options().write(true).open(d.join("model.safetensors")).unwrap();
                file.set_len(1 << 20).unwrap();
            },
            "model.safetensors",
        ),
        (
            |d| {
                let mut config = json("tests/data/tiny-bf16/config.json");
                config["num_hidden_layers"] = 5.into();
                std::fs::write(d.join("config.json"), config.to_string()).unwrap();
            },
            "layers.4",
        ),
        (
            |d| {
                std::fs::write(d.join("chat_template.json"), json!({"chat_template": ""}).to_string())
                    .unwrap()
            },
            "empty prompt",
        ),
    ];
    for (damage, message) in cases {
        let run = damaged(damage);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{message}: {}", run.stderr);
        assert!(run.stderr.contains(message), "{message} is not in {}", run.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_ends_every_command_quietly() {
    let many = (question("a", "Tell me a short story.").to_string() + "\n").repeat(300);
    let (_dir, requests) = batch_dir(many.as_bytes());
    let questions = "Tell me a short story.\n".repeat(300);
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = config_file(dir.path(), Size::B72, Format::Awq);
    let plan = ["plan", "--device", "a100-80g", "--model", text(&config)];
    let commands: [&[&str]; 5] = [
        &["run", "Tell me a short story."],
        &["batch", text(&requests)],
        &["chat"],
        &plan,
        &[&plan[..], &["--json"]].concat(),
    ];
    for args in commands {
        let mut command = command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let questions = questions.clone();
        let writer = std::thread::spawn(move || drop(stdin.write_all(questions.as_bytes())));
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(stdout);
        let run: Run = child.wait_with_output().unwrap().into();
        writer.join().unwrap();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let (_dir, requests) = batch_dir(question("a", "Who are you?").to_string().as_bytes());
    let commands: [&[&str]; 5] = [
        &["run", "Who are you?"],
        &["run", "--json", "Who are you?"],
        &["batch", text(&requests)],
        &["plan", "--threads", "1"],
        &["plan", "--threads", "1", "--json"],
    ];
    for args in commands {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run: Run = command(args).stdout(full).stderr(Stdio::piped()).output().unwrap().into();
        assert_eq!(run.code, Some(1), "{args:?}: {}", run.stderr);
        assert_eq!(run.stderr.matches("cannot write").count(), 1, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("No space left"), "{args:?}: {}", run.stderr);
    }
    // Nor does it matter whether anybody can be told.
    let dir = tempfile::tempdir().unwrap();
    let (drawn, cache) = (dir.path().join("drawn.png"), dir.path().join("cache"));
    let model = path("engine/tiny_model");
    let untold: [(i32, &[&str], &str); 4] = [
        (1, &["run", "--device", "tpu", "hi"], ""),
        (
            0,
            &["run", "--image", "13_chat.png", "--draw-boxes", text(&drawn), "What color is the square?"],
            "The square is yellow.\n",
        ),
        (
            0,
            &[
                "run",
                "--device",
                "cpu",
                "--model",
                text(&model),
                "--repack-cache",
                text(&cache),
                "Who are you?",
            ],
            "I am a tiny vision language model.\n",
        ),
        (0, &["run", "--max-tokens", "2", "Who are you?"], "I am\n"),
    ];
    for (code, args, stdout) in untold {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run: Run = command(args).stdout(Stdio::piped()).stderr(full).output().unwrap().into();
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), stdout), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn messages_without_an_end_are_an_error() {
    let file = std::fs::File::open("/dev/zero").unwrap();
    let runs: [Run; 2] = [
        qwenvl(&["run", "--messages", "/dev/zero"]),
        command(&["run", "--messages", "-"]).stdin(file).output().unwrap().into(),
    ];
    for (run, name) in runs.into_iter().zip(["/dev/zero", "standard input"]) {
        assert_eq!(run.code, Some(1));
        let expected = format!("cannot read {name}: it has more than 268435456 bytes");
        assert!(run.stderr.contains(&expected), "{}", run.stderr);
    }
}
