//! The sampler against the reference library.

mod common;

use common::{floats, ints, vectors};
use proptest::prelude::*;
use qwenvl::Error;
use qwenvl::sampler::{GenerationConfig, Sampler, SamplingParams, TokenSet};

fn sampling() -> SamplingParams {
    SamplingParams { do_sample: true, top_k: 0, ..Default::default() }
}

fn close(found: f32, expected: f32) -> bool {
    found == expected || (found - expected).abs() <= 1e-6 * expected.abs().max(1.0)
}

#[test]
fn scores_and_probabilities_are_those_of_the_reference() {
    let file = vectors("logits_processors.json");
    let scores = floats(&file["scores_in"]);
    let mut history = TokenSet::new(scores.len());
    history.extend(&ints::<u32>(&file["input_ids"]));
    let mut sampler = Sampler::new(scores.len());
    for case in file["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().expect(key) as f32;
        let params = SamplingParams {
            temperature: number("temperature"),
            top_k: number("top_k") as u32,
            top_p: number("top_p"),
            repetition_penalty: number("repetition_penalty"),
            ..sampling()
        };
        let found = sampler.process(&scores, &history, &params).unwrap();
        for (kind, found, expected) in
            [("scores_out", found.scores, &case["scores_out"]), ("probs", found.probs, &case["probs"])]
        {
            let expected = floats(expected);
            for (id, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    close(found, expected),
                    "{}: {kind}[{id}] is {found}, expected {expected}",
                    case["desc"]
                );
            }
        }
    }
    assert_eq!(scores.len(), 16);
}

#[test]
fn greedy_takes_the_lowest_id_of_the_largest_logit_after_the_penalty() {
    let (mut sampler, mut history) = (Sampler::new(4), TokenSet::new(4));
    let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
    let greedy = SamplingParams::default();
    assert_eq!(sampler.sample(&logits, &history, &greedy, 0).unwrap(), 1);
    assert_eq!(
        sampler.sample(&logits, &history, &SamplingParams { temperature: 0.0, ..sampling() }, 0).unwrap(),
        1
    );
    history.insert(1);
    let penalty = SamplingParams { repetition_penalty: 1.5, ..greedy };
    assert_eq!(sampler.sample(&logits, &history, &penalty, 0).unwrap(), 2);
    assert_eq!(
        sampler.process(&logits, &history, &penalty).unwrap().scores,
        [1.0, 2.0, 3.0, f32::NEG_INFINITY]
    );
}

#[test]
fn top_k_keeps_ties_with_the_last() {
    let (mut sampler, history) = (Sampler::new(5), TokenSet::new(5));
    let params = SamplingParams { top_k: 2, ..sampling() };
    let probs = sampler.process(&[1.0, 2.0, 1.0, 0.0, 1.0], &history, &params).unwrap().probs.to_vec();
    assert!(probs[3] == 0.0 && probs[0] > 0.0 && probs[0] == probs[2] && probs[0] == probs[4], "{probs:?}");
}

#[test]
fn unusable_logits_are_errors() {
    let (mut sampler, history) = (Sampler::new(3), TokenSet::new(3));
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for logits in [&[0.0, nan, 0.0][..], &[nan; 3], &[0.0, inf, 0.0], &[-inf; 3], &[0.0; 2], &[]] {
        for params in [SamplingParams::default(), sampling()] {
            let error = sampler.sample(logits, &history, &params, 9).unwrap_err();
            assert!(matches!(error, Error::Logits { position: 9, .. }), "{logits:?}: {error}");
        }
    }
    let error = Sampler::new(0).sample(&[], &history, &sampling(), 0).unwrap_err();
    assert!(matches!(error, Error::Logits { .. }), "{error}");
}

#[test]
fn parameters_out_of_range_are_errors_that_name_the_field() {
    let (mut sampler, history) = (Sampler::new(1), TokenSet::new(1));
    for (params, field) in [
        (SamplingParams { temperature: f32::NAN, ..sampling() }, "temperature"),
        (SamplingParams { temperature: -1.0, ..sampling() }, "temperature"),
        (SamplingParams { top_p: 1.1, ..sampling() }, "top_p"),
        (SamplingParams { top_p: f32::NAN, ..sampling() }, "top_p"),
        (SamplingParams { repetition_penalty: 0.0, ..sampling() }, "repetition_penalty"),
    ] {
        let error = sampler.sample(&[0.0], &history, &params, 0).unwrap_err().to_string();
        assert!(error.contains(&format!("request: {field}:")), "{error}");
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let (mut sampler, history) = (Sampler::new(4), TokenSet::new(4));
    let probs = [0.5f32, 0.1, 0.15, 0.25];
    let logits = probs.map(f32::ln);
    let n = 20_000;
    let mut counts = [0u32; 4];
    for position in 0..n {
        counts[sampler.sample(&logits, &history, &sampling(), position).unwrap() as usize] += 1;
    }
    // Pearson's statistic with three degrees of freedom is above 16.3 once in a thousand.
    let statistic: f64 = counts
        .iter()
        .zip(probs)
        .map(|(&count, p)| {
            let expected = f64::from(p) * n as f64;
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    assert!(statistic < 16.3, "{counts:?}");
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let (mut sampler, history) = (Sampler::new(1000), TokenSet::new(1000));
    let logits: Vec<f32> = (0..1000).map(|i| (i % 7) as f32 * 0.1).collect();
    let mut draw = |seed, position| {
        sampler.sample(&logits, &history, &SamplingParams { seed, ..sampling() }, position).unwrap()
    };
    let forward: Vec<u32> = (0..50).map(|position| draw(1, position)).collect();
    let mut backward: Vec<u32> = (0..50).rev().map(|position| draw(1, position)).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert_ne!(forward, (0..50).map(|position| draw(2, position)).collect::<Vec<_>>());
    assert_ne!(forward, (0..50).map(|position| draw(1 << 32, position)).collect::<Vec<_>>());
}

/// The steps as the reference describes them, over sorted copies in float64.
fn obvious(logits: &[f32], history: &TokenSet, params: &SamplingParams) -> Vec<Option<f64>> {
    let mut scores: Vec<f32> = logits.to_vec();
    for (id, score) in scores.iter_mut().enumerate() {
        if history.contains(id as u32) {
            let p = params.repetition_penalty;
            *score = if *score < 0.0 { *score * p } else { *score / p };
        }
        *score /= params.temperature;
    }
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    if params.top_k > 0 && (params.top_k as usize) < ranked.len() {
        let kth = scores[ranked[params.top_k as usize - 1]];
        ranked.retain(|&id| scores[id] >= kth);
    }
    let largest = f64::from(scores[ranked[0]]);
    let weight = |id: usize| (f64::from(scores[id]) - largest).exp();
    if params.top_p < 1.0 {
        let total: f64 = ranked.iter().map(|&id| weight(id)).sum();
        let mut above = 0.0;
        let keep = ranked.iter().take_while(|&&id| {
            let stays = above < f64::from(params.top_p) * total;
            above += weight(id);
            stays
        });
        let n = keep.count().max(1);
        ranked.truncate(n);
    }
    let total: f64 = ranked.iter().map(|&id| weight(id)).sum();
    let mut probs = vec![None; scores.len()];
    ranked.iter().for_each(|&id| probs[id] = Some(weight(id) / total));
    probs
}

proptest! {
    #[test]
    fn agrees_with_the_obvious_implementation(
        logits in prop::collection::vec(prop_oneof![-20f32..20.0, (-4i32..4).prop_map(|n| n as f32)], 1..900),
        ids in prop::collection::vec(0u32..900, 0..30),
        temperature in 0.3f32..3.0,
        top_k in 0u32..400,
        top_p in 0.0f32..1.0,
        repetition_penalty in 0.8f32..1.3,
        all_of_p: bool,
    ) {
        let mut history = TokenSet::new(logits.len());
        history.extend(&ids);
        let top_p = if all_of_p { 1.0 } else { top_p };
        let params = SamplingParams { temperature, top_k, top_p, repetition_penalty, ..sampling() };
        let mut sampler = Sampler::new(logits.len());
        let expected = obvious(&logits, &history, &params);
        let found = sampler.process(&logits, &history, &params).unwrap();
        // Sums in f32 and f64 may part over the entry at which top_p is crossed, and over what
        // follows it if that weighs next to nothing.
        let differ = (0..logits.len()).filter(|&id| {
            let weighs = found.probs[id].max(expected[id].unwrap_or(0.0) as f32) > 1e-6;
            (weighs || all_of_p) && (found.scores[id] > f32::NEG_INFINITY) != expected[id].is_some()
        });
        prop_assert!(differ.count() <= usize::from(!all_of_p));
        for (&found, expected) in found.probs.iter().zip(&expected) {
            prop_assert!((f64::from(found) - expected.unwrap_or(0.0)).abs() < 1e-3, "{found} {expected:?}");
        }
        let drawn = sampler.sample(&logits, &history, &params, 3).unwrap() as usize;
        let processed = sampler.process(&logits, &history, &params).unwrap();
        prop_assert!(processed.probs[drawn] > 0.0);
    }

    #[test]
    fn arbitrary_generation_configs_are_read_or_refused(text in "[{}\\[\\]\":,a-z_0-9.-]{0,40}", value in -1e40f64..1e40) {
        let _ = GenerationConfig::from_json(Some(&text));
        for key in ["temperature", "top_p", "top_k", "repetition_penalty", "eos_token_id", "do_sample"] {
            if let Ok(config) = GenerationConfig::from_json(Some(&format!("{{\"{key}\": {value}}}"))) {
                prop_assert!(config.sampling.check().is_ok());
            }
        }
    }

    #[test]
    fn arbitrary_logits_and_parameters_never_panic(
        logits in prop::collection::vec(any::<f32>(), 0..20),
        temperature: f32, top_k: u32, top_p in -0.5f32..1.5, repetition_penalty: f32, do_sample: bool, seed: u64, position: u64,
    ) {
        let mut history = TokenSet::new(16);
        history.extend(&[0, 3, 15, 400]);
        let params = SamplingParams { do_sample, temperature, top_k, top_p, repetition_penalty, seed };
        let mut sampler = Sampler::new(logits.len());
        if let Ok(id) = sampler.sample(&logits, &history, &params, position) {
            prop_assert!((id as usize) < logits.len());
        }
        let _ = sampler.process(&logits, &history, &params);
    }
}
