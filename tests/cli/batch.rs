//! batch, with lines of any kind.

use super::*;

#[test]
fn batch_answers_in_order_and_resolves_paths_against_its_file() {
    let color = json!({"custom_id": "first", "messages": [{"role": "user", "content": [
        {"type": "image", "image": "pictures/a.png"},
        {"type": "text", "text": "What color is the square?"},
    ]}], "max_tokens": 64, "temperature": 0});
    let story = question("the longest", "Tell me a short story.");
    let short =
        json!({"custom_id": 7, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2});
    let who = question("fourth", "Who are you?");
    let input = format!("{story}\n\n{color}\n  \n{short}\r\n{who}");
    let (dir, file) = batch_dir(input.as_bytes());
    let run = qwenvl(&["batch", text(&file)]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let lines = run.lines();
    lines.iter().for_each(assert_is_answer);
    let ids: Vec<&Value> = lines.iter().map(|l| &l["custom_id"]).collect();
    assert_eq!(ids, [&json!("the longest"), &json!("first"), &json!(7), &json!("fourth")]);
    assert!(lines[0]["text"].as_str().unwrap().starts_with("Once upon a time"));
    assert_eq!(lines[1]["text"], "The square is yellow.");
    assert_eq!((&lines[2]["text"], &lines[2]["finish_reason"]), (&json!("I am"), &json!("length")));
    assert_eq!(lines[3]["text"], "I am a tiny vision language model.");

    // One at a time, and to a file.
    let output = dir.path().join("answers.jsonl");
    let run = qwenvl(&["batch", "--parallel", "1", text(&file), "--output", text(&output)]);
    assert_eq!(run.ok(), "");
    let written = std::fs::read_to_string(&output).unwrap();
    for (a, b) in lines.iter().zip(written.lines()) {
        let b: Value = serde_json::from_str(b).unwrap();
        assert_eq!((&a["custom_id"], &a["token_ids"]), (&b["custom_id"], &b["token_ids"]));
    }
    assert_eq!(written.lines().count(), 4);

    // From standard input, paths start at the working directory.
    let input = color.to_string().replace("pictures/a.png", "13_chat.png");
    let run = with_input(&["batch", "-"], input.as_bytes());
    assert_eq!(run.lines()[0]["text"], "The square is yellow.");
}

#[test]
fn a_line_of_a_batch_that_fails_does_not_stop_the_others() {
    let who = question("good", "Who are you?").to_string();
    let bad: [(&[u8], Value, &str); 11] = [
        (b"not JSON", Value::Null, "not JSON"),
        (b"\xff\xfe{}", Value::Null, "not UTF-8"),
        (b"{\"custom_id\": \"cut\", \"messages\": [", Value::Null, "not JSON"),
        (b"[1, 2]", Value::Null, "a JSON object"),
        (b"{\"custom_id\": \"a\"}", json!("a"), "messages"),
        (b"{\"custom_id\": \"b\", \"messages\": []}", json!("b"), "non-empty"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"stream\": true}", Value::Null, "stream"),
        (
            b"{\"custom_id\": [1], \"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"temperature\": -1}",
            json!([1]),
            "temperature",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"max_tokens\": 32768}",
            Value::Null,
            "the context of 32768",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"none.png\"}]}]}",
            Value::Null,
            "none.png",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"http://127.0.0.1:1/a\"}]}]}",
            Value::Null,
            "http://127.0.0.1:1/a",
        ),
    ];
    let mut input = Vec::new();
    for (line, ..) in &bad {
        input.extend([who.as_bytes(), b"\n", line, b"\n"].concat());
    }
    let (_dir, file) = batch_dir(&input);
    let run = qwenvl(&["batch", "--parallel", "3", text(&file)]);
    assert_eq!(run.code, Some(1));
    let lines = run.lines();
    assert_eq!(lines.len(), 2 * bad.len());
    for (pair, (line, id, message)) in lines.chunks(2).zip(bad) {
        assert_eq!(pair[0]["text"], "I am a tiny vision language model.");
        assert_eq!(pair[1]["custom_id"], id);
        let error = pair[1]["error"].as_str().unwrap_or_else(|| panic!("{}", pair[1]));
        assert!(error.contains(message), "{}: {error}", String::from_utf8_lossy(line));
        assert!(run.stderr.contains(error), "{error}");
        let again = error.matches("os error").count();
        assert!(again <= 1, "the reason is told once: {error}");
    }
    assert!(run.stderr.contains("error: request 2: the line is not JSON"), "{}", run.stderr);
}

/// Three requests, of which the second fails, and the file for their answers.
fn three_requests() -> (TempDir, PathBuf, PathBuf) {
    let lines = [question("a", "Who are you?"), json!({"custom_id": "b"}), question("c", "Who are you?")];
    let (dir, requests) = batch_dir(lines.map(|l| l.to_string()).join("\n").as_bytes());
    let output = dir.path().join("answers.jsonl");
    (dir, requests, output)
}

/// Answers in a file: custom_id, and whether it failed.
fn outcomes(file: &Path) -> Vec<(String, bool)> {
    let text = std::fs::read_to_string(file).unwrap();
    let values = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    values.map(|v| (v["custom_id"].as_str().unwrap().to_string(), v.get("error").is_some())).collect()
}

#[test]
fn batch_leaves_files_alone_that_hold_something() {
    let (dir, requests, output) = three_requests();
    let refused = |file: &Path, more: &[&str], message: &str| {
        let before = std::fs::read(file).unwrap();
        let run = qwenvl(&[&["batch", text(&requests), "--output", text(file)], more].concat());
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
        assert!(run.stderr.contains(message), "{message} is not in {}", run.stderr);
        assert_eq!(std::fs::read(file).unwrap(), before, "{message}");
    };
    assert_eq!(qwenvl(&["batch", text(&requests), "--output", text(&output)]).code, Some(1));
    refused(&output, &[], "--overwrite");
    refused(&output, &["--resume", "--model", "none"], "none");
    refused(&output, &["--overwrite", "--context", "0"], "context");
    // Requests by another name.
    let link = dir.path().join("link");
    std::fs::hard_link(&requests, &link).unwrap();
    refused(&link, &["--overwrite"], "these are the requests");
    // A file of somebody else, of which not one line is whole.
    let foreign = dir.path().join("foreign");
    for held in ["{\"a\": 1}", "{\"custom\": 1", "\n"] {
        std::fs::write(&foreign, held).unwrap();
        refused(&foreign, &["--resume"], "line 1 is no answer of this command");
    }

    // A run that does not come to its answers makes no file.
    let other = dir.path().join("other.jsonl");
    let batch =
        |more: &[&str]| qwenvl(&[&["batch", text(&requests), "--output", text(&other)], more].concat());
    assert_eq!(batch(&["--context", "0"]).code, Some(1));
    assert!(!other.exists());
    std::fs::write(&other, "anything").unwrap();
    assert_eq!(batch(&["--overwrite"]).code, Some(1));
    assert_eq!(outcomes(&other), outcomes(&output));
    std::fs::write(&other, "").unwrap();
    assert_eq!(batch(&[]).code, Some(1));
    assert_eq!(outcomes(&other), outcomes(&output));
}

#[test]
fn requests_that_failed_are_asked_again_if_that_is_wanted() {
    let (_dir, requests, output) = three_requests();
    let batch = |more: &[&str]| {
        qwenvl(&[&["batch", text(&requests), "--output", text(&output), "--resume"], more].concat())
    };
    let id = |id: &str, failed| (id.to_string(), failed);
    assert_eq!(batch(&[]).code, Some(1));
    let first = std::fs::read_to_string(&output).unwrap();
    let run = batch(&[]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("1 requests failed before") && run.stderr.contains("--retry-errors"));
    assert_eq!(std::fs::read_to_string(&output).unwrap(), first);

    let mended = std::fs::read_to_string(&requests).unwrap();
    let mended = mended.replace("{\"custom_id\":\"b\"}", &question("b", "Who are you?").to_string());
    std::fs::write(&requests, mended).unwrap();
    let run = batch(&[]);
    assert!(run.code == Some(1) && run.stderr.contains("request 2 is another"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), first);
    assert_eq!(batch(&["--retry-errors"]).ok(), "");
    assert_eq!(outcomes(&output), [id("a", false), id("b", false), id("c", false)]);
    let whole = std::fs::read_to_string(&output).unwrap();
    for line in [0, 2] {
        assert_eq!(whole.lines().nth(line), first.lines().nth(line), "what was answered stays");
    }

    // As if the run had been killed after the answer, before it got to its place; and in the middle of a letter.
    let again = whole.lines().nth(1).unwrap();
    std::fs::write(&output, [first.as_bytes(), again.as_bytes(), b"\n{\"custom_id\":\"\xc3"].concat())
        .unwrap();
    assert_eq!(batch(&[]).ok(), "");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), whole);
}

#[test]
fn a_batch_goes_on_only_with_the_requests_that_it_began_with() {
    let line = |text: &str| json!({"messages": [{"role": "user", "content": text}]}).to_string();
    let (dir, requests) = batch_dir(format!("{}\n{}", line("Who are you?"), line("Hello")).as_bytes());
    let output = dir.path().join("answers.jsonl");
    let batch = || qwenvl(&["batch", text(&requests), "--output", text(&output), "--resume"]);
    batch().ok();
    // Blank lines and ends of lines do not matter, but words do.
    std::fs::write(&requests, format!("\n{}\r\n\n{}\n", line("Who are you?"), line("Hello"))).unwrap();
    batch().ok();
    let before = std::fs::read(&output).unwrap();
    std::fs::write(&requests, format!("{}\n{}", line("Who are you?"), line("Bye"))).unwrap();
    let run = batch();
    assert!(run.code == Some(1) && run.stderr.contains("request 2 is another"), "{}", run.stderr);
    assert_eq!(std::fs::read(&output).unwrap(), before);
}

#[test]
fn answers_that_wait_behind_a_slow_one_are_few() {
    let slow = question("slow", "Tell me a short story.").to_string();
    let (dir, requests) = batch_dir([slow.as_str(), &"no JSON\n".repeat(40)].join("\n").as_bytes());
    // Answers and messages in the order in which they come.
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut command = command(&["batch", "--parallel", "2", text(&requests)]);
    let status = command.stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(&log).unwrap();
    let before = log[..log.find("\"slow\"").unwrap()].matches("error: request").count();
    assert_eq!((before, log.matches("error: request").count()), (8, 40));
}

#[test]
fn requests_are_made_ready_side_by_side() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/13_chat.png", server.local_addr().unwrap());
    let picture = std::fs::read(path("tests/data/samples/13_chat.png")).unwrap();
    // Nobody is answered before both have asked.
    let served = std::thread::spawn(move || {
        let asked = [server.accept().unwrap().0, server.accept().unwrap().0];
        for mut stream in asked {
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", picture.len());
            stream.write_all(&[head.as_bytes(), &picture].concat()).unwrap();
        }
    });
    let line = json!({"messages": [{"role": "user", "content": [
        {"type": "image", "image": url}, {"type": "text", "text": "What color is the square?"}]}]});
    let (_dir, requests) = batch_dir(format!("{line}\n{line}\n").as_bytes());
    let run = qwenvl(&["batch", "--parallel", "1", text(&requests)]);
    served.join().unwrap();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for answer in run.lines() {
        assert_eq!(answer["text"], "The square is yellow.");
    }
}

/// Lines that are nearly requests: a valid one with some bytes replaced, removed or put in.
fn mutated_lines() -> impl Strategy<Value = Vec<u8>> {
    let valid = [
        json!({"custom_id": 1, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}).to_string(),
        json!({"custom_id": "p", "max_tokens": 2, "messages": [{"role": "user", "content": [
            {"type": "image", "image": "pictures/a.png", "max_pixels": 50176},
            {"type": "text", "text": "What color is the square?"}]}], "stop": ["."], "seed": 5, "top_p": 0.5})
        .to_string(),
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "video", "video": ["pictures/a.png", "pictures/a.png"], "resized_height": 56, "resized_width": 56},
            {"type": "text", "text": "What is it?"}]}], "max_tokens": 1, "repetition_penalty": 1.5})
        .to_string(),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url":
            "data:image/png;base64,iVBORw0KGgo="}}]}], "max_tokens": 1, "top_k": 3, "temperature": 0.5})
        .to_string(),
    ];
    let edit = (
        any::<prop::sample::Index>(),
        0usize..4,
        prop_oneof![any::<u8>(), Just(b'"'), Just(b'0'), Just(b'-')],
    );
    (prop::sample::select(valid.to_vec()), prop::collection::vec(edit, 0..4)).prop_map(|(line, edits)| {
        let mut bytes = line.into_bytes();
        for (at, kind, byte) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                // A piece twice.
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the lines hold, each gets one line in its place, and nothing panics.
    #[test]
    fn any_batch_file_gives_a_line_for_each_of_its_lines(
        lines in prop::collection::vec(
            prop_oneof![4 => mutated_lines(), 1 => prop::collection::vec(any::<u8>(), 0..60)], 60,
        ),
    ) {
        let input = lines.join(&b'\n');
        let is_blank = |l: &&[u8]| std::str::from_utf8(l).is_ok_and(|l| l.trim().is_empty());
        let expected = input.split(|b| *b == b'\n').filter(|l| !is_blank(l)).count();
        let (_dir, file) = batch_dir(&input);
        let run = qwenvl(&["batch", "--context", "512", text(&file)]);
        prop_assert!(run.code == Some(0) || run.code == Some(1), "{:?}: {}", run.code, run.stderr);
        let lines = run.lines();
        prop_assert_eq!(lines.len(), expected);
        let failed = lines.iter().filter(|l| l.get("error").is_some()).count();
        prop_assert_eq!(run.code, Some(i32::from(failed > 0)));
        for line in lines.iter().filter(|l| l.get("error").is_none()) {
            assert_is_answer(line);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Requests from any bytes are prepared or refused.
    #[test]
    fn any_bytes_are_a_request_or_an_error(line in mutated_lines()) {
        thread_local! {
            static FRONTEND: Frontend = Frontend::new(&Checkpoint::tiny().unwrap()).unwrap();
            static DIR: TempDir = batch_dir(b"").0;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&line) else { return Ok(()) };
        let base_dir = DIR.with(|d| d.path().to_path_buf());
        if let Ok(request) = Request::from_json(&value, base_dir) {
            match FRONTEND.with(|f| f.prepare(&request)) {
                Ok(prepared) => prop_assert_eq!(prepared.tokens.len(), prepared.positions.len()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
