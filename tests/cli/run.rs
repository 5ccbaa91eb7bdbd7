//! run and chat.

use super::*;

#[test]
fn run_gives_the_texts_of_the_reference() {
    for sample in samples() {
        let answer = sample.value["answer_awq"].as_str().unwrap();
        let messages = sample.value["messages"].as_array().unwrap();
        let mut args: Vec<String> = vec!["run".into()];
        let one = messages[0]["content"].as_array().filter(|_| messages.len() == 1);
        let Some(parts) = one else {
            // A conversation is given as a file, here standard input.
            let input = sample.value["messages"].to_string();
            assert_eq!(with_input(&["run", "--messages", "-"], input.as_bytes()).ok(), format!("{answer}\n"));
            continue;
        };
        for part in parts {
            match part["type"].as_str().unwrap() {
                "image" => args.extend(["--image".into(), part["image"].as_str().unwrap().into()]),
                "video" => {
                    let frames = part.get("frames").unwrap_or(&part["video"]).as_array().unwrap();
                    let frames: Vec<&str> = frames.iter().map(|f| f.as_str().unwrap()).collect();
                    args.extend(["--frames".into(), frames.join(",")]);
                }
                _ => args.push(part["text"].as_str().unwrap().into()),
            }
        }
        assert_eq!(qwenvl(&args).ok(), format!("{answer}\n"), "{args:?}");
    }
}

#[test]
fn run_takes_the_frames_of_a_directory_in_the_order_of_their_numbers() {
    let sample = samples().into_iter().find(|s| s.id == "09_video").unwrap();
    let frames = sample.value["messages"][0]["content"][0]["video"].as_array().unwrap();
    // As they are, and as ffmpeg numbers them, from 7 to 14.
    for number in [None, Some(7)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".DS_Store"), "no picture").unwrap();
        for (i, frame) in frames.iter().enumerate().rev() {
            let name = frame.as_str().unwrap();
            let copy = number.map_or(name.to_string(), |first| format!("{}.png", first + i));
            std::fs::copy(path("tests/data/samples").join(name), dir.path().join(copy)).unwrap();
        }
        let run = qwenvl(&["run", "--frames", text(dir.path()), "Describe this video."]);
        assert_eq!(run.ok().trim(), sample.value["answer_awq"].as_str().unwrap(), "{number:?}");
    }
}

#[test]
fn run_sizes_pictures_and_chooses_frames_as_its_options_say() {
    let seen = |args: &[&str]| {
        let object = qwenvl(&[&["run", "--json", "--max-tokens", "1"], args, &["What?"]].concat()).json();
        object["visuals"].clone()
    };
    let sized = ["--resized-height", "280", "--resized-width", "425"];
    for (option, file) in
        [("--image", "13_chat.png"), ("--frames", "10_video_00.png"), ("--video", "11_mp4.mp4")]
    {
        let visual = &seen(&[&[option, file], &sized[..]].concat())[0];
        assert_eq!(
            (&visual["resized_height"], &visual["resized_width"]),
            (&json!(280), &json!(420)),
            "{option}"
        );
    }
    let frames = |args: &[&str]| {
        let video = ["--video", "11_mp4.mp4", "--min-pixels", "3136"];
        seen(&[&video[..], args].concat())[0]["video"]["frames"].as_array().unwrap().len()
    };
    assert_eq!(frames(&[]), 8);
    assert_eq!(frames(&["--max-frames", "6"]), 6);
    assert_eq!(frames(&["--fps", "0.5", "--min-frames", "2"]), 2);
    let total = ["--video", "11_mp4.mp4", "--min-pixels", "784", "--total-pixels", "12544"];
    let visual = &seen(&total)[0];
    let area = visual["resized_height"].as_u64().unwrap() * visual["resized_width"].as_u64().unwrap();
    assert!(area <= 12544 / 8 * 2, "{visual}");
}

#[test]
fn run_keeps_the_custom_id_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.json");
    std::fs::write(&file, question("mine", "Who are you?").to_string()).unwrap();
    assert_eq!(qwenvl(&["run", "--json", "--messages", text(&file)]).json()["custom_id"], "mine");
    assert_eq!(qwenvl(&["run", "--json", "Who are you?"]).json()["custom_id"], Value::Null);
}

#[test]
fn an_answer_that_was_cut_says_so() {
    let cut = |args: &[&str]| {
        let run = qwenvl(args);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stderr
    };
    let story = "Tell me a short story.";
    assert_eq!(cut(&["run", "--max-tokens", "5", story]), "note: cut at 5 tokens, see --max-tokens\n");
    assert_eq!(cut(&["run", story]), "");
    let full = cut(&["run", "--context", "32", story]);
    assert!(full.contains("the context is full, --context N makes more room"), "{full}");

    let run = with_input(&["chat", "--max-tokens", "5"], story.as_bytes());
    assert_eq!(run.stderr, "note: cut at 5 tokens, see --max-tokens\n");
    let run = with_input(&["chat", "--context", "60"], "Who are you?\n".repeat(4).as_bytes());
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines.iter().all(|l| l.contains("/clear forgets the conversation")), "{}", run.stderr);
    assert!(lines.last().unwrap().contains("the context of 60"), "{}", run.stderr);
}

#[test]
fn an_answer_is_there_before_its_boxes_and_its_picture_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/13_chat.png", server.local_addr().unwrap());
    let picture = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
    // One answer, and then none.
    let served = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", picture.len());
        stream.write_all(&[head.as_bytes(), &picture].concat()).unwrap();
    });
    let drawn = dir.path().join("drawn.png");
    let question = "What color is the square?";
    let run = qwenvl(&["run", "--image", &url, "--draw-boxes", text(&drawn), question]);
    served.join().unwrap();
    assert_eq!(run.ok(), "The square is yellow.\n");
    assert!(drawn.exists());

    // A file that can be opened and not be written.
    if cfg!(target_os = "linux") {
        let run = qwenvl(&["run", "--image", "13_chat.png", "--draw-boxes", "/dev/full", question]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), "The square is yellow.\n"), "{}", run.stderr);
        assert!(run.stderr.contains("cannot write /dev/full"), "{}", run.stderr);
    }
}

#[test]
fn run_json_has_the_answer_its_rates_and_its_memory() {
    let sample = &samples()[0];
    let args = ["run", "--json", "--image", "00_shape1.png", "Which shape is purple?"];
    let object = qwenvl(&args).json();
    assert_is_answer(&object);
    assert_eq!(object["text"], sample.value["answer_awq"]);
    assert_eq!(object["token_ids"], sample.value["generated_ids_awq"]);
    assert_eq!(object["finish_reason"], "stop");
    let prompt: Vec<u32> = ints(&sample.value["input_ids"]);
    assert_eq!(object["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(object["visuals"][0]["grid_thw"], sample.value["image_grid_thw"][0]);
    assert!(object["load_ms"].as_f64().unwrap() > 0.0);
    for key in ["read_gb_s", "fma_gflop_s", "decode_gb_s", "prefill_gflop_s", "vit_gflop_s"] {
        assert!(object["rates"][key].as_f64().is_some_and(|r| r > 0.0), "{key} in {object}");
    }
    for key in ["decode_of_read", "prefill_of_fma", "vit_of_fma"] {
        assert!(object["rates"][key].as_f64().is_some_and(|r| r > 0.0), "{key} in {object}");
    }
    let total = object["memory"]["plan_total_bytes"].as_u64().unwrap();
    let parts = ["weights", "kv", "arena", "visual", "workspace"];
    let sum =
        parts.iter().map(|p| object["memory"][format!("plan_{p}_bytes")].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum, total);
}

#[test]
fn run_obeys_its_sampling_options() {
    let story = ["run", "--json", "Tell me a short story."];
    let run = |more: &[&str]| qwenvl(&[&story[..], more].concat()).json();
    let whole = run(&[]);
    let cut = run(&["--max-tokens", "5"]);
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["token_ids"].as_array().unwrap()[..], whole["token_ids"].as_array().unwrap()[..5]);
    let stopped = run(&["--stop", " circle"]);
    assert_eq!(
        (&stopped["text"], &stopped["finish_reason"]),
        (&json!("Once upon a time a small red"), &json!("stop"))
    );
    let drawn = |seed: &str| {
        run(&["--temperature", "3", "--top-k", "0", "--top-p", "1", "--max-tokens", "20", "--seed", seed])
    };
    assert_eq!(drawn("1")["token_ids"], drawn("1")["token_ids"]);
    assert_ne!(drawn("1")["token_ids"], drawn("2")["token_ids"]);
    let system = qwenvl(&["run", "--json", "--system", "Be brief.", "Who are you?"]).json();
    let plain = qwenvl(&["run", "--json", "Who are you?"]).json();
    assert_ne!(system["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
}

#[test]
fn chat_remembers_and_goes_on_after_a_question_that_failed() {
    let sample = samples().into_iter().find(|s| s.id == "13_chat").unwrap();
    let input =
        "/image 13_chat.png\nIs the square large or small?\nWhat color is the square?\n/exit\nWho are you?\n";
    let answers = with_input(&["chat"], input.as_bytes()).ok();
    let last = sample.value["answer_awq"].as_str().unwrap();
    assert_eq!(answers, format!("The square is small.\n{last}\n"));

    let input =
        b"Who are you?\n\n/image none.png\nWhat is this?\n/what\nWho\xff are you?\n/help\nWho are you?\n";
    let run = with_input(&["chat"], input);
    assert_eq!(run.code, Some(1), "a question failed");
    assert_eq!(run.stdout, "I am a tiny vision language model.\n".repeat(2));
    for message in ["none.png", "unknown command /what", "not UTF-8", "/clear"] {
        assert!(run.stderr.contains(message), "{message} in {}", run.stderr);
    }

    let run = with_input(&["chat", "--context", "60"], "Who are you?\n".repeat(4).as_bytes());
    assert!(run.code == Some(1) && run.stderr.contains("the context of 60"), "{}", run.stderr);
    let run = with_input(&["chat"], b"Who are you?\n/clear\nWho are you?");
    assert_eq!(run.ok(), "I am a tiny vision language model.\n".repeat(2));
}

#[test]
fn chat_takes_videos_and_numbers_what_it_shows() {
    let video = b"/video 11_mp4.mp4\nDescribe this video.\n";
    let run = with_input(&["chat", "--min-pixels", "3136"], video);
    assert_eq!(run.ok(), "A yellow square moves to the left.\n");

    let run = with_input(&["chat"], b"/image\n/video  \n/image\t13_chat.png\nWhat color is the square?\n");
    assert_eq!(run.stdout, "The square is yellow.\n");
    for message in ["/image needs a path", "/video needs a path"] {
        assert!(run.stderr.contains(message), "{message} is not in {}", run.stderr);
    }
    // "Picture 1: " needs room of its own.
    let question = b"/image 13_chat.png\nWhat color is the square?\n";
    let prompt = qwenvl(&["run", "--json", "--image", "13_chat.png", "What color is the square?"]).json();
    let context = (prompt["usage"]["prompt_tokens"].as_u64().unwrap() + 1).to_string();
    let args = ["chat", "--max-tokens", "1", "--context", &context];
    assert_eq!(with_input(&args, question).code, Some(0));
    let run = with_input(&[&args[..], &["--add-vision-id"]].concat(), question);
    assert!(run.code == Some(1) && run.stderr.contains("more than the context"), "{}", run.stderr);
}

/// `script` gives the program a terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_person_at_a_terminal_is_told_what_takes_long() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.png", server.local_addr().unwrap());
    let picture = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let _ = stream.read(&mut [0; 4096]);
            std::thread::sleep(std::time::Duration::from_millis(1500));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", picture.len());
            let _ = stream.write_all(&[head.as_bytes(), &picture].concat());
        }
    });
    let program = env!("CARGO_BIN_EXE_qwenvl");
    let line = format!("{program} run --device cpu --image {url} 'What color is the square?'");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let seen = String::from_utf8(script.output().expect("script, of util-linux").stdout).unwrap();
    let answer = seen.find("The square is yellow.").unwrap_or_else(|| panic!("{seen}"));
    assert!(seen[..answer].contains("reading pictures and videos"), "{seen}");
    // Where nobody looks, nothing is shown.
    let run = qwenvl(&["run", "--image", &url, "What color is the square?"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}
