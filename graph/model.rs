//! How long a plan would take on a GPU: a model, not a measurement.
//!
//! Every step costs what its bytes and FLOPs cost at some rates, and a launch. There are two sets of rates: what
//! the kernels are designed for, and what the simulator makes of them as they are. Each constant names where it
//! comes from. Whoever shows a number from here says that it is modelled.

use std::ops::Range;

use crate::builder::WeightKind;
use crate::cuda;
use crate::device::{Device, DeviceKind};
use crate::fit::{CARD_INPUT_TOKENS, CARD_OUTPUT_TOKENS, CardRow};
use crate::op::{LinearPart, Op};
use crate::plan::{Plan, Program};
use crate::shape::Sizes;
use crate::weights::WeightFormat;

/// Rates of the kernels. Bandwidths are shares of the best read bandwidth of the device, matrix rates of the
/// peak of its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// What any step costs beside its work: from one node of a graph to the next, filling and draining.
    pub launch_s: f64,
    /// The same for linear layers over few rows.
    pub linear_launch_s: f64,
    /// Reading integer weights.
    pub integer_bandwidth: f64,
    /// Reading 16-bit weights.
    pub dense_bandwidth: f64,
    /// Reading keys and values of one new token.
    pub attention_bandwidth: f64,
    /// Shortest decode attention: reading lengths, page ids, keys and partial results in turn.
    pub attention_floor_s: f64,
    /// Shortest step of any other kind.
    pub other_floor_s: f64,
    /// Long products.
    pub linear_matrix: f64,
    /// Attention over many rows.
    pub attention_matrix: f64,
    /// Where one kernel runs all layers, what a linear layer or attention takes beside its work: rows and norms, sums
    /// that are joined, the barrier to the next.
    pub layer_step_s: f64,
    /// There, work on weights and keys as a share of the least time that reading them takes.
    pub layer_work: f64,
}

/// What the kernels are designed for.
///
/// Launches: 1.3 µs from node to node on an H100 (Hazy Research, "no bubbles", 2025), taken for all, and 1 µs in
/// which a kernel fills and drains the memory pipeline. Matrix rates: cuBLAS reaches 0.80 to 0.85 in long
/// products, FlashAttention-2 reports 0.50 to 0.73. Steps within one kernel: 1 to 1.5 µs for a barrier of all blocks, as
/// much for what comes before and after it.
pub const DESIGN: Rates = Rates {
    launch_s: 2.3e-6,
    linear_launch_s: 2.3e-6,
    integer_bandwidth: 0.955,
    dense_bandwidth: 0.955,
    attention_bandwidth: 0.90,
    attention_floor_s: 3e-6,
    other_floor_s: 0.0,
    linear_matrix: 0.75,
    attention_matrix: 0.65,
    layer_step_s: 2.5e-6,
    layer_work: 0.4,
};

/// What the simulator's model of an A100 80 GB (`tools/cudasim/MODEL.md`, itself good for 15 to 40 %) makes of the
/// kernels as they are: lines through the times of `benches/kernels_cuda.txt`, and 1.3 µs from node to node of a
/// graph. In µs, one row: 72B int4 norm and qkv 28.3, o 22.7, norm, gate and up 153.5, down 77.2; heads of 72B and
/// 2B 1448 and 273; attention of 72B over 256, 4,096, 6,144, 14,336 and 30,720 keys 3.5, 11.3, 16.1, 35.8 and 73.9; a
/// norm of 8,192 columns 2.7. All layers in one kernel, in µs a layer after 256 tokens: 72B 275, 7B 74.4, 2B 23.5; of these
/// the longest warp is busy 122, 45.5 and 23.5. At 2,048 rows 0.75 to 0.84 of the matrix peak for 7B and 72B; prefill attention of 2,048
/// tokens 0.69 to 0.74, after 4,096 others 0.65 to 0.76; vision attention 0.80. The lines reproduce the decode times
/// within 6 %.
pub const SIMULATED: Rates = Rates {
    launch_s: 3.6e-6,
    linear_launch_s: 3.3e-6,
    integer_bandwidth: 0.93,
    dense_bandwidth: 0.955,
    attention_bandwidth: 0.97,
    attention_floor_s: 1.2e-6,
    other_floor_s: 0.4e-6,
    linear_matrix: 0.78,
    attention_matrix: 0.7,
    layer_step_s: 3.6e-6,
    layer_work: 0.41,
};

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
    pub fn token_parts(&self, rates: &Rates, context: usize) -> Option<Vec<TokenPart>> {
        let (program, sizes) = (&self.decode, Sizes::decode(1, context));
        let mut parts: Vec<TokenPart> = Vec::new();
        let layers = self.steps_in_one_kernel(program, &sizes);
        for (at, (node, time)) in
            program.graph.nodes.iter().zip(self.times(rates, program, &sizes)?).enumerate()
        {
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
                    kernel: if layers.contains(&at) { "decode_layers" } else { program.kernels[at].name },
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

    /// The steps of a program that one kernel runs at the given sizes, none if there are no such.
    fn steps_in_one_kernel(&self, program: &Program, sizes: &Sizes) -> Range<usize> {
        let DeviceKind::Cuda { multiprocessors } = self.device.kind else { return 0..0 };
        let (graph, quantization) = (&program.graph, self.config.quantization);
        // Prompts have more tokens than rows of logits.
        let is_decode = program.name == self.decode.name && sizes.tokens == sizes.logit_rows;
        if is_decode && cuda::runs_in_one_kernel(graph, quantization, sizes.tokens, multiprocessors) {
            cuda::layer_steps(graph)
        } else {
            0..0
        }
    }

    /// The modelled times of all steps at the given sizes.
    fn times(&self, rates: &Rates, program: &Program, sizes: &Sizes) -> Option<Vec<StepTime>> {
        let one_by_one = (0..program.graph.nodes.len()).map(|at| self.step_time(rates, program, at, sizes));
        let mut times = one_by_one.collect::<Option<Vec<StepTime>>>()?;
        let layers = self.steps_in_one_kernel(program, sizes);
        // Weights are on their way all the time: either they set the pace, or what is done with them and between them.
        let (mut moving, mut working) = (Vec::new(), Vec::new());
        for at in layers.clone() {
            let bytes_s = program.step_cost(at, sizes).bytes() as f64 / self.device.read_bytes_per_s;
            let (bandwidth, step_s) = match &program.graph.nodes[at].op {
                Op::Linear { parts, .. } if is_dense(program, parts) => {
                    (rates.dense_bandwidth, rates.layer_step_s)
                }
                Op::Linear { .. } => (rates.integer_bandwidth, rates.layer_step_s),
                Op::PagedAttention { .. } => (rates.attention_bandwidth, rates.layer_step_s),
                // Part of the layer after it.
                _ => (f64::INFINITY, 0.0),
            };
            moving.push(bytes_s / bandwidth);
            working.push(if step_s > 0.0 { step_s + rates.layer_work * bytes_s } else { 0.0 });
        }
        let is_moving = moving.iter().sum::<f64>() > working.iter().sum::<f64>();
        let (seconds, limiter) = if is_moving { (moving, "bandwidth") } else { (working, "latency") };
        for (at, seconds) in layers.clone().zip(seconds) {
            times[at] = StepTime { seconds, limiter };
        }
        if let Some(first) = times.get_mut(layers.start).filter(|_| !layers.is_empty()) {
            first.seconds += rates.launch_s;
        }
        Some(times)
    }

    /// The modelled time of one step in a launch of its own at the given sizes; `None` for devices that are not modelled.
    pub fn step_time(
        &self,
        rates: &Rates,
        program: &Program,
        step: usize,
        sizes: &Sizes,
    ) -> Option<StepTime> {
        time(&self.device, rates, program, step, sizes)
    }

    /// The modelled time of a program at the given sizes, seconds.
    pub fn program_time(&self, rates: &Rates, program: &Program, sizes: &Sizes) -> Option<f64> {
        Some(self.times(rates, program, sizes)?.iter().map(|time| time.seconds).sum())
    }

    /// The model card's speed table as modelled: one sequence, prompts in the plan's chunks.
    pub fn modelled_rows(&self, rates: &Rates) -> Option<Vec<CardRow>> {
        CARD_INPUT_TOKENS.iter().map(|&input| self.modelled_row(rates, input)).collect()
    }

    fn modelled_row(&self, rates: &Rates, input_tokens: usize) -> Option<CardRow> {
        let chunk = self.options.prefill_chunk_tokens;
        let chunks = (0..input_tokens).step_by(chunk);
        let prefill_s = chunks
            .map(|past| {
                let tokens = chunk.min(input_tokens - past);
                self.program_time(rates, &self.prefill, &Sizes::prefill(tokens, past))
            })
            .sum::<Option<f64>>()?;
        // Times are nearly linear in the context, so the mean context gives the mean time.
        let context = input_tokens + CARD_OUTPUT_TOKENS / 2;
        let token_s = self.program_time(rates, &self.decode, &Sizes::decode(1, context))?;
        let total_s = prefill_s + token_s * CARD_OUTPUT_TOKENS as f64;
        Some(CardRow {
            input_tokens,
            decode_tokens_per_s: 1.0 / token_s,
            tokens_per_s: CARD_OUTPUT_TOKENS as f64 / total_s,
            prefill_s,
        })
    }
}

fn is_dense(program: &Program, parts: &[LinearPart]) -> bool {
    let kind = program.graph.weight(parts[0].weight).kind;
    matches!(kind, WeightKind::Matrix { format: WeightFormat::Dense(_), .. })
}

fn time(device: &Device, rates: &Rates, program: &Program, step: usize, sizes: &Sizes) -> Option<StepTime> {
    let DeviceKind::Cuda { .. } = device.kind else { return None };
    let decodes = sizes.tokens == sizes.logit_rows;
    let never = f64::INFINITY;
    let (bandwidth, matrix, floor, launch) = match &program.graph.nodes[step].op {
        // A change of view.
        Op::MergeRows { .. } => return Some(StepTime { seconds: 0.0, limiter: "latency" }),
        // Part of the layer after it.
        Op::RmsNorm { .. } if decodes && sizes.tokens == 1 && cuda::is_prologue(&program.graph, step) => {
            return Some(StepTime { seconds: 0.0, limiter: "latency" });
        }
        Op::Linear { parts, .. } => {
            let bandwidth =
                if is_dense(program, parts) { rates.dense_bandwidth } else { rates.integer_bandwidth };
            let launch = if decodes { rates.linear_launch_s } else { rates.launch_s };
            (bandwidth, rates.linear_matrix, 0.0, launch)
        }
        Op::PagedAttention { .. } if decodes => {
            (rates.attention_bandwidth, never, rates.attention_floor_s, rates.launch_s)
        }
        Op::PagedAttention { .. } | Op::VisionAttention { .. } => {
            (rates.attention_bandwidth, rates.attention_matrix, 0.0, rates.launch_s)
        }
        // One pass over their bytes; no matrix arithmetic.
        _ => (rates.attention_bandwidth, never, rates.other_floor_s, rates.launch_s),
    };
    let cost = program.step_cost(step, sizes);
    let moving = cost.bytes() as f64 / (device.read_bytes_per_s * bandwidth);
    let computing = cost.flops as f64 / (device.peak_flops_per_s * matrix);
    let work = moving.max(computing).max(floor);
    let limiter = match work {
        w if w < launch || w == floor => "latency",
        w if w == moving => "bandwidth",
        _ => "arithmetic",
    };
    Some(StepTime { seconds: work + launch, limiter })
}
