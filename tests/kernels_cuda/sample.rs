//! argmax and sample, beside the sampler of the host.

use qwenvl::kernels::cuda::sample::{BINS_BYTES, NO_TOKEN, Sample, SampleRow, best_len};
use qwenvl::sampler::{Sampler, SamplingParams, TokenSet};

use crate::common::rng::Rng;
use crate::gpu::*;

/// Tokens of a batch from the device, `None` for unusable logits.
fn pick(logits: &[Vec<f32>], seen: &[Vec<u32>], params: &[(SamplingParams, u64)]) -> Vec<Option<u32>> {
    let (rows, vocab) = (logits.len(), logits[0].len());
    let words = vocab.div_ceil(32) + 1;
    let mut history = vec![0u32; rows * words];
    for (row, ids) in seen.iter().enumerate() {
        for id in ids {
            history[row * words + *id as usize / 32] |= 1 << (id % 32);
        }
    }
    let row_params: Vec<u32> = params
        .iter()
        .flat_map(|(p, position)| {
            let row = SampleRow {
                seed: [p.seed as u32, (p.seed >> 32) as u32],
                position: [*position as u32, (*position >> 32) as u32],
                temperature: if p.is_greedy() { 0.0 } else { p.temperature },
                top_p: p.top_p,
                repetition_penalty: p.repetition_penalty,
                top_k: p.top_k,
            };
            let floats = [row.temperature, row.top_p, row.repetition_penalty].map(f32::to_bits);
            [&row.seed[..], &row.position, &floats, &[row.top_k]].concat()
        })
        .collect();
    let (logits_at, scores) = (Buffer::of(&logits.concat()), Buffer::<f32>::scratch(rows * vocab));
    let (history_at, params_at) = (Buffer::of(&history), Buffer::of(&row_params));
    let (tokens, best, arrivals) = (
        Buffer::filled(77u32, rows),
        Buffer::<u64>::scratch(best_len(rows, vocab)),
        Buffer::<u32>::zeroed(rows),
    );
    let bins = Buffer::<u8>::zeroed(rows * BINS_BYTES);
    let call = Sample {
        logits: logits_at.at,
        scores: scores.at,
        history: history_at.at,
        history_words: words,
        params: params_at.at,
        tokens: tokens.at,
        best: best.at,
        bins: bins.at,
        arrivals: arrivals.at,
        drawn: params.iter().any(|(p, _)| !p.is_greedy()),
        rows,
        vocab,
    };
    // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
    unsafe { gpu().kernels.sample(&stream(), &call) }.unwrap();
    let tokens: Vec<Option<u32>> = tokens.read().into_iter().map(|t| (t != NO_TOKEN).then_some(t)).collect();
    assert!(arrivals.read().iter().all(|&n| n == 0));
    assert!(bins.read().iter().all(|&n| n == 0), "the next launch finds none");
    for (row, token) in tokens.iter().enumerate() {
        if let Some(token) = token {
            history[row * words + *token as usize / 32] |= 1 << (token % 32);
        }
    }
    assert_eq!(history_at.read(), history, "the tokens are in the histories");
    tokens
}

#[test]
fn the_device_picks_the_tokens_of_the_host() {
    let mut rng = Rng(8);
    for (vocab, spread) in
        [(1, 1.0), (33, 3.0), (1280, 2.5), (9000, 2.0), (4096, 0.0), (5000, 60.0), (33_000, 4.0)]
    {
        let (mut logits, mut seen, mut params) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (top_k, top_p, temperature, penalty)) in [
            (0, 1.0, 0.0, 1.0),
            (0, 1.0, 1.0, 1.0),
            (1, 0.001, 0.01, 1.0),
            (50, 1.0, 0.7, 1.05),
            (0, 0.9, 1.0, 1.0),
            (0, 0.5, 1.3, 1.3),
            (20, 0.8, 0.7, 0.9),
            (3, 0.0, 1.0, 1.0),
            (vocab / 2, 0.999, 2.0, 1.0),
            (0, 1.0, 0.0, 1.2),
        ]
        .into_iter()
        .enumerate()
        {
            // Rounded to bf16, as the head leaves them: many are equal.
            let row = rng.normals(vocab as usize);
            logits.push(
                row.iter().map(|x| half::bf16::from_f32(x * spread + 1.0).to_f32()).collect::<Vec<f32>>(),
            );
            if i % 2 == 1 {
                logits[i].iter_mut().for_each(|x| *x -= 100.0); // all below zero
            }
            seen.push((0..vocab / 7).map(|_| rng.below(vocab as usize) as u32).collect::<Vec<u32>>());
            let sampling = SamplingParams {
                do_sample: temperature > 0.0,
                temperature,
                top_k,
                top_p,
                repetition_penalty: penalty,
                seed: rng.next(),
            };
            params.push((sampling, (i as u64) << 31 | 5));
        }
        if vocab > 100 {
            logits[1][7] = f32::NEG_INFINITY;
            (logits[2][0], logits[2][1]) = (-0.0, 0.0);
            logits[4].iter_mut().skip(3).for_each(|x| *x = f32::NEG_INFINITY);
        }
        let found = pick(&logits, &seen, &params);
        let mut host = Sampler::new(vocab as usize);
        for (row, token) in found.iter().enumerate() {
            let mut history = TokenSet::new(vocab as usize);
            history.extend(&seen[row]);
            let (p, position) = &params[row];
            let expected = host.sample(&logits[row], &history, p, *position).ok();
            assert_eq!(*token, expected, "{vocab} logits, row {row}: {p:?}");
        }
    }
}

#[test]
fn unusable_logits_give_no_token() {
    let mut rng = Rng(9);
    let greedy = SamplingParams { do_sample: false, ..Default::default() };
    let drawn = SamplingParams { do_sample: true, ..Default::default() };
    let mut logits: Vec<Vec<f32>> = (0..8).map(|_| rng.normals(5000)).collect();
    for row in [0, 4] {
        logits[row][4999] = f32::NAN;
        logits[row + 1][17] = f32::INFINITY;
        logits[row + 2].fill(f32::NEG_INFINITY);
    }
    let params: Vec<_> = (0..8).map(|row| (if row < 4 { greedy } else { drawn }, 0)).collect();
    let tokens = pick(&logits, &vec![Vec::new(); 8], &params);
    let usable: Vec<bool> = tokens.iter().map(Option::is_some).collect();
    assert_eq!(usable, [false, false, false, true, false, false, false, true]);
}
