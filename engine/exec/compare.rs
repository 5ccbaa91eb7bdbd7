//! Two engines side by side: whether a device computes in every step what the CPU computes.
//!
//! The device runs first. Then the CPU runs the same calls, and after each step its result is compared and
//! replaced by the device's: a step is measured alone, on the same inputs, and both take the same tokens.

use std::sync::{Arc, Mutex};

use qwenvl_graph::weights::WeightFormat;
use qwenvl_graph::{DType, Epilogue, Op, Program, WeightKind};

use super::Written;
use crate::engine::Engine;
use crate::error::Result;

/// How far apart a step's results were.
#[derive(Clone, Debug)]
pub struct Difference {
    /// `vision`, `prefill` or `decode`.
    pub program: &'static str,
    /// Which of its steps.
    pub step: usize,
    /// Its op.
    pub op: &'static str,
    /// Its kernel on the device.
    pub kernel: &'static str,
    /// What it wrote.
    pub value: String,
    /// The largest difference in parts of what is allowed; infinite if a result is not finite.
    pub worst: f64,
}

/// Runs the same calls on both engines, which have the same options but for the target, and compares what
/// each step of each call writes.
///
/// # Errors
/// Those of the calls.
pub fn compare(
    cpu: &mut Engine,
    device: &mut Engine,
    run: &mut dyn FnMut(&mut Engine) -> Result<()>,
) -> Result<Vec<Difference>> {
    let outputs = Arc::new(Mutex::new(Vec::<Vec<f32>>::new()));
    let to = Arc::clone(&outputs);
    device.watch(Some(Box::new(move |w| to.lock().expect("no panic").push(w.values.to_vec()))));
    let ran = run(device);
    device.watch(None);
    ran?;
    // The device's types are those that round.
    let unit = unit_roundoff(device.plan().activation);
    let steps = device.plan().programs().map(|p| {
        let noise = (0..p.kernels.len()).map(|at| noise(p, at, unit));
        (p.name, p.kernels.iter().map(|k| k.name).zip(noise).collect::<Vec<_>>())
    });
    let differences = Arc::new(Mutex::new(Vec::new()));
    let (from, to) = (Arc::clone(&outputs), Arc::clone(&differences));
    let mut next = 0;
    cpu.watch(Some(Box::new(move |w: Written<'_>| {
        let from = from.lock().expect("no panic");
        let found = &from[next];
        next += 1;
        let node = &w.program.graph.nodes[w.step];
        let value = w.program.graph.value(node.output.expect("a step that wrote"));
        let program = steps.iter().find(|(name, _)| *name == w.program.name);
        let (kernel, noise) = program.expect("both have the same programs").1[w.step];
        to.lock().expect("no panic").push(Difference {
            program: w.program.name,
            step: w.step,
            op: node.op.name(),
            kernel,
            value: value.name.clone(),
            worst: worst(found, w.values, value.shape.cols, noise),
        });
        w.values.copy_from_slice(found);
    })));
    let ran = run(cpu);
    cpu.watch(None);
    ran?;
    let differences = std::mem::take(&mut *differences.lock().expect("no panic"));
    assert_eq!(differences.len(), outputs.lock().expect("no panic").len(), "both ran the same steps");
    Ok(differences)
}

/// Half the distance of neighbours, relative.
pub(super) fn unit_roundoff(activation: DType) -> f64 {
    match activation {
        DType::BF16 => 1.0 / 256.0,
        DType::F16 => 1.0 / 2048.0,
        DType::F32 | DType::I32 => 1.0 / (1u64 << 24) as f64,
    }
}

/// The standard deviation of a step's result relative to its size, where the device rounds and the CPU does
/// not, or the other way.
fn noise(program: &Program, step: usize, unit: f64) -> f64 {
    let node = &program.graph.nodes[step];
    let stores_half = node.output.is_some_and(|v| program.graph.value(v).dtype != DType::F32);
    let stored = f64::from(u8::from(stores_half));
    let mut other = 0.0;
    // How often a number is rounded to the activations' type between a step's inputs and its result.
    let roundings = match &node.op {
        Op::Linear { parts, epilogue, .. } => {
            let WeightKind::Matrix { format, .. } = program.graph.weight(parts[0].weight).kind else {
                unreachable!("a linear part is a matrix")
            };
            // The device has dense weights in its own type; the CPU rounds the inputs of integer weights to 16
            // bits of the largest of their group, at most some eight deviations.
            let weights = match format {
                WeightFormat::Dense(_) => 1.0,
                WeightFormat::Int4 { .. } | WeightFormat::Int8 { .. } => {
                    other = 8.0 / 32767.0;
                    0.0
                }
            };
            let factors = if *epilogue == Epilogue::SwiGlu { 2.0 } else { 1.0 };
            factors * weights + stored
        }
        // Before the weight, and after.
        Op::RmsNorm { .. } => 1.0 + stored,
        // Weights of the softmax; in the decoder also keys and values.
        Op::VisionAttention { .. } => 1.0 + stored,
        Op::PagedAttention { .. } => 3.0 + stored,
        _ => stored,
    };
    // Numbers of equal likelihood within half a step: a third of its square. And sums in f32.
    (unit * unit * roundings / 3.0 + other * other + (64.0 / (1u64 << 24) as f64).powi(2)).sqrt()
}

/// The largest difference of two results in parts of six standard deviations, of which a billion numbers
/// have none beyond.
pub(super) fn worst(found: &[f32], expected: &[f32], cols: usize, noise: f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "both have as many rows");
    let mut worst = 0f64;
    for (found, expected) in found.chunks(cols).zip(expected.chunks(cols)) {
        let square = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
        let size = square.sqrt();
        for (a, b) in found.iter().zip(expected) {
            if !a.is_finite() {
                return f64::INFINITY;
            }
            let allowed = 6.0 * noise * (f64::from(b.abs()) + size);
            let error = (f64::from(*a) - f64::from(*b)).abs();
            if error > 0.0 {
                worst = worst.max(error / allowed);
            }
        }
    }
    worst
}
