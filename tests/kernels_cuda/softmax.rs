//! What the tests of attention share: its formula, and how far a kernel may be from it.

use crate::common::tolerance::F32_EPS;

/// One query over its keys in float64, and how far a kernel may be from it.
///
/// The kernel rounds the result and each weight to 16 bits (`u`); a weight also carries the error of its score, which
/// is an f32 sum of `d` products (twice the roundoff for each: tensor cores truncate), of the scaled exponent and of
/// 2^x; a relative error e of the weights moves their mean by at most 2e of the mean of |v|; the sum over the keys is
/// in f32.
pub fn attention(u: f64, q: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<(f64, f64)> {
    const F32: f64 = F32_EPS;
    let scale = 1.0 / (q.len() as f64).sqrt();
    let mut scores = Vec::with_capacity(keys.len());
    let (mut size, mut largest) = (0.0f64, f64::NEG_INFINITY);
    for key in keys {
        let products = q.iter().zip(*key).map(|(a, b)| a * b);
        let (sum, abs) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
        scores.push(sum * scale);
        size = size.max(abs * scale);
        largest = largest.max(sum * scale);
    }
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let weight_error = size * (q.len() + 8) as f64 * 2.0 * F32 + 16.0 * F32;
    let relative = u + 2.0 * weight_error + (keys.len() + 16) as f64 * 2.0 * F32;
    (0..values[0].len())
        .map(|c| {
            let parts = weights.iter().zip(values).map(|(w, v)| w * v[c] / total);
            let (sum, abs) = parts.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
            (sum, u * sum.abs() + (1.0 + u) * relative * abs + 1e-7)
        })
        .collect()
}

pub fn assert_close(what: &str, found: &[f64], expected: &[(f64, f64)]) {
    for (i, (found, (value, bound))) in found.iter().zip(expected).enumerate() {
        let error = (found - value).abs();
        assert!(error <= *bound, "{what}, channel {i}: {found} is {error:e} from {value}, bound {bound:e}");
    }
}
