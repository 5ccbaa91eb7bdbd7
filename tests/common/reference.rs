//! Every op in plain float64, one line per formula: what the kernels are tested against.

/// y[m,n] = x[m,k] · w[n,k]ᵀ, and Σ|x·w| beside each.
pub fn matmul(x: &[f64], w: &[f64], m: usize, n: usize, k: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let products = (0..k).map(|l| x[i * k + l] * w[j * k + l]);
            out.push(products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs())));
        }
    }
    out
}

pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(v, w)| v / (mean + eps).sqrt() * w).collect()
}

pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).zip(bias).map(|((v, w), b)| (v - mean) / (var + eps).sqrt() * w + b).collect()
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub fn quick_gelu(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()))
}

/// Half-split rotation of one head by one angle per pair.
pub fn rotate(head: &[f64], angles: &[f64]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for j in 0..half {
        let (s, c) = angles[j].sin_cos();
        out[j] = head[j] * c - head[j + half] * s;
        out[j + half] = head[j + half] * c + head[j] * s;
    }
    out
}

/// One query over `keys` and `values`, rows of `q.len()`.
pub fn attention(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let scores: Vec<f64> =
        keys.iter().map(|k| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * scale).collect();
    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len()).map(|c| weights.iter().zip(values).map(|(w, v)| w * v[c]).sum::<f64>() / sum).collect()
}

pub fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}
