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
fn run_takes_the_frames_of_a_directory_in_the_order_of_their_names() {
    let sample = samples().into_iter().find(|s| s.id == "09_video").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for frame in sample.value["messages"][0]["content"][0]["video"].as_array().unwrap().iter().rev() {
        let name = frame.as_str().unwrap();
        std::fs::copy(path("tests/data/samples").join(name), dir.path().join(name)).unwrap();
    }
    let run = qwenvl(&["run", "--frames", text(dir.path()), "Describe this video."]);
    assert_eq!(run.ok().trim(), sample.value["answer_awq"].as_str().unwrap());
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
