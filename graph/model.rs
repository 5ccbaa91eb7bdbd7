//! How long a plan would take on a GPU: a model, not a measurement.
//!
//! Every step costs what its bytes and FLOPs cost at the rates below, and a launch. The rates are what the
//! kernels are designed for; each constant names where it comes from. Whoever shows a number from here
//! says that it is modelled.

use crate::device::{Device, DeviceKind};
use crate::fit::{CARD_INPUT_TOKENS, CARD_OUTPUT_TOKENS, CardRow};
use crate::op::Op;
use crate::plan::{Plan, Program};
use crate::shape::Sizes;

/// A node of a CUDA graph after the one it depends on: 1.3 µs on an H100 (Hazy Research, "no bubbles",
/// 2025), taken for all; and 1 µs in which a kernel fills and drains the memory pipeline.
const LAUNCH_S: f64 = 2.3e-6;
/// Share of the best read bandwidth that linear layers stream weights at. Design target of the kernels.
const LINEAR_BANDWIDTH: f64 = 0.955;
/// Share of it that decode attention streams keys and values at. Design target.
const ATTENTION_BANDWIDTH: f64 = 0.90;
/// Shortest decode attention: the latency of reading lengths, page ids, keys and partial results in turn.
const ATTENTION_FLOOR_S: f64 = 3e-6;
/// Share of the matrix peak that long products reach. Design target; cuBLAS reaches 0.80 to 0.85.
const LINEAR_MATRIX: f64 = 0.75;
/// Share of the matrix peak that attention over many rows reaches. Design target; FlashAttention-2 reports
/// 0.50 to 0.73.
const ATTENTION_MATRIX: f64 = 0.65;

/// A step's time and what sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// Seconds, the launch included.
    pub seconds: f64,
    /// `bandwidth`, `arithmetic` or `latency`.
    pub limiter: &'static str,
}

/// Steps of decoding that do the same in every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPart {
    /// The op, and the first of its weights where there are several of the op.
    pub name: String,
    /// Its kernel.
    pub kernel: &'static str,
    /// How many steps.
    pub steps: usize,
    /// Their modelled time, launches included.
    pub seconds: f64,
    /// What their bytes take at the device's best bandwidth.
    pub bound_s: f64,
    /// As [`StepTime::limiter`], of the last of them.
    pub limiter: &'static str,
}

impl Plan {
    /// Where the modelled time of a token of one sequence goes, with `context` tokens before it, the largest
    /// part first; `None` for devices that are not modelled.
    pub fn token_parts(&self, context: usize) -> Option<Vec<TokenPart>> {
        let (program, sizes) = (&self.decode, Sizes::decode(1, context));
        let mut parts: Vec<TokenPart> = Vec::new();
        for (at, node) in program.graph.nodes.iter().enumerate() {
            let time = self.step_time(program, at, &sizes)?;
            let bound_s = program.step_cost(at, &sizes).bytes() as f64 / self.device.read_bytes_per_s;
            let name = match &node.op {
                Op::Linear { parts, .. } => {
                    let weight = &program.graph.weight(parts[0].weight).name;
                    format!("{} {}", node.op.name(), weight.rsplit('.').next().unwrap_or(weight))
                }
                op => op.name().to_string(),
            };
            match parts.iter_mut().find(|p| p.name == name) {
                Some(part) => {
                    part.steps += 1;
                    part.seconds += time.seconds;
                    part.bound_s += bound_s;
                    part.limiter = time.limiter;
                }
                None => parts.push(TokenPart {
                    name,
                    kernel: program.kernels[at].name,
                    steps: 1,
                    seconds: time.seconds,
                    bound_s,
                    limiter: time.limiter,
                }),
            }
        }
        parts.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Some(parts)
    }

    /// Seconds of a modelled token that are launches: between kernels, and while one fills and drains.
    pub fn launches_s(&self) -> f64 {
        let views = |op: &Op| matches!(op, Op::MergeRows { .. });
        self.decode.graph.nodes.iter().filter(|n| !views(&n.op)).count() as f64 * LAUNCH_S
    }

    /// The modelled time of one step at the given sizes; `None` for devices that are not modelled.
    pub fn step_time(&self, program: &Program, step: usize, sizes: &Sizes) -> Option<StepTime> {
        time(&self.device, program, step, sizes)
    }

    /// The modelled time of a program at the given sizes, seconds.
    pub fn program_time(&self, program: &Program, sizes: &Sizes) -> Option<f64> {
        (0..program.graph.nodes.len()).map(|at| self.step_time(program, at, sizes).map(|t| t.seconds)).sum()
    }

    /// The model card's speed table as modelled: one sequence, prompts in the plan's chunks.
    pub fn modelled_rows(&self) -> Option<Vec<CardRow>> {
        CARD_INPUT_TOKENS.iter().map(|&input| self.modelled_row(input)).collect()
    }

    fn modelled_row(&self, input_tokens: usize) -> Option<CardRow> {
        let chunk = self.options.prefill_chunk_tokens;
        let chunks = (0..input_tokens).step_by(chunk);
        let prefill_s = chunks
            .map(|past| {
                let tokens = chunk.min(input_tokens - past);
                self.program_time(&self.prefill, &Sizes::prefill(tokens, past))
            })
            .sum::<Option<f64>>()?;
        // Times are nearly linear in the context, so the mean context gives the mean time.
        let context = input_tokens + CARD_OUTPUT_TOKENS / 2;
        let token_s = self.program_time(&self.decode, &Sizes::decode(1, context))?;
        let total_s = prefill_s + token_s * CARD_OUTPUT_TOKENS as f64;
        Some(CardRow {
            input_tokens,
            decode_tokens_per_s: 1.0 / token_s,
            tokens_per_s: CARD_OUTPUT_TOKENS as f64 / total_s,
            prefill_s,
        })
    }
}

fn time(device: &Device, program: &Program, step: usize, sizes: &Sizes) -> Option<StepTime> {
    let DeviceKind::Cuda { .. } = device.kind else { return None };
    let decodes = sizes.tokens == sizes.logit_rows;
    let (bandwidth, matrix, floor) = match &program.graph.nodes[step].op {
        // A change of view.
        Op::MergeRows { .. } => return Some(StepTime { seconds: 0.0, limiter: "latency" }),
        Op::Linear { .. } => (LINEAR_BANDWIDTH, LINEAR_MATRIX, 0.0),
        Op::PagedAttention { .. } if decodes => (ATTENTION_BANDWIDTH, f64::INFINITY, ATTENTION_FLOOR_S),
        Op::PagedAttention { .. } | Op::VisionAttention { .. } => {
            (ATTENTION_BANDWIDTH, ATTENTION_MATRIX, 0.0)
        }
        // One pass over their bytes; no matrix arithmetic.
        _ => (ATTENTION_BANDWIDTH, f64::INFINITY, 0.0),
    };
    let cost = program.step_cost(step, sizes);
    let moving = cost.bytes() as f64 / (device.read_bytes_per_s * bandwidth);
    let computing = cost.flops as f64 / (device.peak_flops_per_s * matrix);
    let work = moving.max(computing).max(floor);
    let limiter = match work {
        w if w < LAUNCH_S || w == floor => "latency",
        w if w == moving => "bandwidth",
        _ => "arithmetic",
    };
    Some(StepTime { seconds: work + LAUNCH_S, limiter })
}
