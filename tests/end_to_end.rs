//! The tiny trained model answers as the reference does.

mod common;

use common::samples::{Sample, samples};
use common::{ints, path, tiny_gptq};
use qwenvl::{Answer, Checkpoint, Engine, EngineOptions, Event, FinishReason};
use tempfile::TempDir;

fn bf16() -> Checkpoint {
    Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap()
}

fn options() -> EngineOptions {
    let target = common::target();
    EngineOptions { target, context_tokens: Some(256), threads: Some(2), ..EngineOptions::default() }
}

fn check(sample: &Sample, answer: &Answer, suffix: &str) {
    let text = sample.value[format!("answer{suffix}")].as_str().unwrap();
    assert_eq!(answer.text, text, "{}", sample.id);
    // The samples hold the first eight ids.
    let ids: Vec<u32> = ints(&sample.value[format!("generated_ids{suffix}")]);
    assert_eq!(answer.token_ids[..ids.len()], ids, "{}", sample.id);
    let n: usize = sample.value["n_generated"].as_u64().unwrap() as usize;
    if suffix.is_empty() {
        assert_eq!(answer.token_ids.len(), n, "{}", sample.id);
    }
    let prompt: Vec<u32> = ints(&sample.value["input_ids"]);
    assert_eq!(answer.usage.prompt_tokens, prompt.len(), "{}", sample.id);
}

#[test]
fn every_sample_is_answered_as_by_the_reference_one_at_a_time() {
    let (int4, int8) = (tiny_gptq(4), tiny_gptq(8));
    for (checkpoint, suffix) in [
        (bf16(), ""),
        (Checkpoint::tiny().unwrap(), "_awq"),
        (Checkpoint::open(int4.path()).unwrap(), "_gptq_int4"),
        (Checkpoint::open(int8.path()).unwrap(), "_gptq_int8"),
    ] {
        let mut engine = Engine::load(checkpoint, &options()).unwrap();
        for sample in samples() {
            let answer = engine.answer(&sample.request).unwrap();
            check(&sample, &answer, suffix);
        }
    }
}

/// Runs all samples at once and returns the answers in order.
fn together(engine: &mut Engine, samples: &[Sample]) -> Vec<Answer> {
    let mut ids = Vec::new();
    for sample in samples {
        let prepared = engine.frontend().prepare(&sample.request).unwrap();
        ids.push(engine.submit(prepared).unwrap());
    }
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events).unwrap();
    }
    let mut answers = Vec::new();
    for id in ids {
        let done = events.iter().find_map(|e| match e {
            Event::Done(found, _, answer) if *found == id => Some((**answer).clone()),
            Event::Failed(found, error) if *found == id => panic!("{error}"),
            _ => None,
        });
        answers.push(done.expect("answered"));
    }
    answers
}

#[test]
fn every_sample_is_answered_as_by_the_reference_in_one_batch() {
    let samples = samples();
    let (int4, int8) = (tiny_gptq(4), tiny_gptq(8));
    let open_gptq = |dir: &TempDir| Checkpoint::open(dir.path()).unwrap();
    let formats: [(&dyn Fn() -> Checkpoint, &str); 4] = [
        (&bf16, ""),
        (&|| Checkpoint::tiny().unwrap(), "_awq"),
        (&|| open_gptq(&int4), "_gptq_int4"),
        (&|| open_gptq(&int8), "_gptq_int8"),
    ];
    for (open, suffix) in formats {
        for chunk in [512, 7] {
            let options = EngineOptions { max_seqs: 14, prefill_chunk_tokens: chunk, ..options() };
            let mut engine = Engine::load(open(), &options).unwrap();
            for (sample, answer) in samples.iter().zip(together(&mut engine, &samples)) {
                check(sample, &answer, suffix);
            }
        }
    }
}

#[test]
fn a_prompt_of_tokens_is_answered_as_its_text_and_beyond_the_end_if_that_is_asked_for() {
    let mut engine = Engine::load(Checkpoint::tiny().unwrap(), &options()).unwrap();
    let is_text =
        |s: &&Sample| ["image_grid_thw", "video_grid_thw"].iter().all(|key| s.value[*key].is_null());
    let sample = samples().into_iter().find(|s| is_text(&s)).expect("a sample of text");
    let tokens: Vec<u32> = ints(&sample.value["input_ids"]);
    let prepared = engine.frontend().prepare_tokens(tokens.clone(), &sample.request).unwrap();
    let answer = engine.generate_prepared(prepared).unwrap().finish().unwrap();
    check(&sample, &answer, "_awq");
    assert_eq!(answer.finish_reason, FinishReason::Stop);

    let mut prepared = engine.frontend().prepare_tokens(tokens, &sample.request).unwrap();
    (prepared.ignore_eos, prepared.max_tokens) = (true, Some(answer.token_ids.len() + 5));
    let longer = engine.generate_prepared(prepared).unwrap().finish().unwrap();
    assert_eq!(longer.token_ids[..answer.token_ids.len()], answer.token_ids);
    assert_eq!(
        (longer.finish_reason, longer.token_ids.len()),
        (FinishReason::Length, answer.token_ids.len() + 5)
    );
    let (vocab, image) = (engine.plan().config.text.vocab_size as u32, engine.plan().config.image_token_id);
    for (tokens, named) in [(vec![], "none"), (vec![1, vocab], "at 1"), (vec![image], "at 0")] {
        let error = engine.frontend().prepare_tokens(tokens, &sample.request).err().expect("an error");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn the_plain_graph_gives_the_tokens_of_the_fused_one() {
    let samples = samples();
    let mut answers = [true, false].map(|fuse| {
        let options = EngineOptions { max_seqs: 4, fuse, ..options() };
        let mut engine = Engine::load(Checkpoint::tiny().unwrap(), &options).unwrap();
        together(&mut engine, &samples).into_iter().map(|a| a.token_ids).collect::<Vec<_>>()
    });
    let plain = std::mem::take(&mut answers[1]);
    assert_eq!(answers[0], plain);
}

#[test]
fn other_threads_prepare_requests_while_the_engine_steps() {
    let mut engine = Engine::load(Checkpoint::tiny().unwrap(), &options()).unwrap();
    let samples: Vec<Sample> = samples().into_iter().take(4).collect();
    let (send, prepared) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for (number, sample) in samples.iter().enumerate() {
            let (frontend, send) = (engine.frontend().clone(), send.clone());
            scope.spawn(move || send.send((number, frontend.prepare(&sample.request))).unwrap());
        }
        drop(send);
        let mut ids = Vec::new();
        let (mut events, mut answers) = (Vec::new(), 0);
        while ids.len() < samples.len() || !engine.is_idle() {
            if let Ok((number, request)) = prepared.try_recv() {
                ids.push((engine.submit(request.unwrap()).unwrap(), number));
            }
            engine.step(&mut events).unwrap();
            for event in events.drain(..) {
                if let Event::Done(id, _, answer) = event {
                    let number = ids.iter().find(|(own, _)| *own == id).unwrap().1;
                    check(&samples[number], &answer, "_awq");
                    answers += 1;
                }
            }
        }
        assert_eq!(answers, samples.len());
    });
}
