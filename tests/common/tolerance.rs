//! Error bounds, derived from number formats and lengths. Nothing here is tuned to make a test pass.

/// Unit roundoff of f32.
pub const F32_EPS: f64 = 1.0 / (1u64 << 24) as f64;

/// Bound on the error of an f32 sum of `k` products, relative to Σ|x·w|: one rounding for each
/// addition on the longest chain of the dense kernel (256/8 in a block, 3 in the tree, one per block,
/// bias, residual).
pub fn dense_dot(k: usize) -> f64 {
    (256.0 / 8.0 + 3.0 + k.div_ceil(256) as f64 + 2.0) * F32_EPS
}

/// Bound on the error of an f32 chain of `k` multiply-adds, relative to Σ|x·w|.
pub fn chain(k: usize) -> f64 {
    (k as f64 + 2.0) * F32_EPS
}

/// Largest error of an input rounded to 16-bit integers, relative to the largest of its group: half
/// a step, and the roundings of the factor and the product.
pub fn rounded_input() -> f64 {
    0.5 / 32767.0 + 3.0 * F32_EPS
}

/// Bound on the relative error of the vector exponential and one operation after it.
pub const EXP: f64 = 6.0 * F32_EPS;

/// How many standard deviations an error may have: of a million normal ones, one in five hundred sets
/// has any beyond.
const DEVIATIONS: f64 = 6.0;

/// Largest error of a logit against a float32 reference, relative to the root mean square of its row.
///
/// `gain` says how errors inside the model reach the row (`tools/golden/tiny_logits.py` measures it on
/// the reference, to first order): `[0]` unit rounding errors of every operation, which this engine
/// and the reference make independently, `[1]` rounded inputs of 4-bit matrices, of which only this
/// engine has any, in parts of the largest of their group.
pub fn logits(gain: [f32; 2]) -> f64 {
    let rounding = 2f64.sqrt() * F32_EPS * f64::from(gain[0]);
    let inputs = f64::from(gain[1]) / 32767.0;
    DEVIATIONS * rounding.hypot(inputs)
}
