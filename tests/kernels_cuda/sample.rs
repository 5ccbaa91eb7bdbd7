//! sample, beside the sampler of the host.

use qwenvl::SamplingParams;
use qwenvl::kernels::cuda::sample::{NO_TOKEN, Sample};
use qwenvl::sampler::{Sampler, TokenSet};

use crate::common::rng::Rng;
use crate::gpu::*;

struct Row {
    logits: Vec<f32>,
    history: Vec<u32>,
    params: SamplingParams,
    position: u64,
}

fn device(rows: &[Row]) -> Vec<u32> {
    let vocab = rows[0].logits.len();
    let words = vocab.div_ceil(32);
    let logits: Vec<f32> = rows.iter().flat_map(|r| r.logits.iter().copied()).collect();
    let mut history = vec![0u32; rows.len() * words];
    let mut params = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        for id in &row.history {
            history[i * words + *id as usize / 32] |= 1 << (id % 32);
        }
        let p = row.params;
        let temperature = if p.is_greedy() { 0.0 } else { p.temperature };
        params.extend([
            p.seed as u32,
            (p.seed >> 32) as u32,
            row.position as u32,
            (row.position >> 32) as u32,
            temperature.to_bits(),
            p.top_p.to_bits(),
            p.repetition_penalty.to_bits(),
            p.top_k,
        ]);
    }
    let (logits, history, params) = (Buffer::of(&logits), Buffer::of(&history), Buffer::of(&params));
    let (scores, tokens) = (Buffer::poisoned(rows.len() * vocab * 4), Buffer::poisoned(rows.len() * 4));
    let stream = gpu().stream();
    let s = Sample {
        logits: logits.at,
        scores: scores.at,
        history: history.at,
        history_words: words,
        params: params.at,
        tokens: tokens.at,
        rows: rows.len(),
        vocab,
    };
    // SAFETY: buffers are as long as the shapes say and live until the stream is done.
    unsafe { gpu().kernels.sample(&stream, &s) }.unwrap();
    tokens.read(&stream)
}

fn host(row: &Row) -> u32 {
    let mut history = TokenSet::new(row.logits.len());
    history.extend(&row.history);
    let mut sampler = Sampler::new(row.logits.len());
    sampler.sample(&row.logits, &history, &row.params, row.position).unwrap_or(NO_TOKEN)
}

#[test]
fn every_setting_gives_the_hosts_token() {
    let mut rng = Rng(41);
    let mut rows = Vec::new();
    for vocab in [1usize, 5, 1000, 1280, 2051] {
        for (temperature, top_k, top_p, repetition_penalty) in [
            (0.0, 0, 1.0, 1.0),
            (0.0, 0, 1.0, 1.3),
            (1.0, 0, 1.0, 1.0),
            (0.7, 0, 1.0, 1.1),
            (1.0, 1, 1.0, 1.0),
            (1.5, 20, 1.0, 1.0),
            (1.0, 0, 0.9, 1.0),
            (0.8, 50, 0.8, 1.05),
            (0.01, 1, 0.001, 1.0),
            (1.0, 3000, 0.0, 1.0),
        ] {
            for step in 0..3 {
                let mut logits: Vec<f32> = rng.normals(vocab).iter().map(|x| x * 3.0).collect();
                if step == 1 {
                    // Ties, as logits rounded to 16 bits have them.
                    logits.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
                }
                if step == 2 && vocab > 4 {
                    logits[2] = f32::NEG_INFINITY;
                    logits[0] = -0.0;
                    logits[1] = 0.0;
                }
                let history = (0..7).map(|_| rng.below(vocab) as u32).collect();
                let params = SamplingParams {
                    do_sample: true,
                    temperature,
                    top_k,
                    top_p,
                    repetition_penalty,
                    seed: rng.next(),
                };
                rows.push(Row { logits, history, params, position: rng.next() >> 20 });
            }
        }
        let found = device(&rows);
        for (row, found) in rows.iter().zip(&found) {
            assert_eq!(*found, host(row), "vocab {vocab}, {:?} at {}", row.params, row.position);
        }
        rows.clear();
    }
}

#[test]
fn unusable_logits_give_no_token() {
    let greedy = SamplingParams::default();
    let row = |logits: &[f32]| Row { logits: logits.to_vec(), history: vec![], params: greedy, position: 0 };
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows =
        [row(&[1.0, nan, 0.0]), row(&[1.0, inf, 0.0]), row(&[-inf, -inf, -inf]), row(&[-inf, -5.0, -inf])];
    assert_eq!(device(&rows), [NO_TOKEN, NO_TOKEN, NO_TOKEN, 1]);
}
