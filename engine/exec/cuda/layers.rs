//! The decoder's layers of a few new tokens in one launch.

use std::ops::Range;

use qwenvl_graph::{Op, Program, cuda};

use super::bind::Weights;
use super::step::{Call, Round, Steps};
use crate::error::Result;
use crate::exec::Phase;
use crate::kernels::cuda::decode_layers::{DecodeLayers, DecodeStep};

/// Steps of a program that one kernel runs.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    /// Those of the program.
    pub(super) steps: Range<usize>,
    /// What is launched in their place.
    pub(super) launch: DecodeLayers,
}

impl Steps<'_> {
    /// The layers of a decode call, and what the device is told of them, which is to lie at `address`. None if their
    /// weights, their sizes or the device are not for it: then they are launched one by one.
    ///
    /// # Errors
    /// Whatever a step meets.
    pub(super) fn layers(
        &self,
        program: &Program,
        weights: &Weights,
        call: &Call,
        address: u64,
        arrived: u64,
    ) -> Result<Option<(Layers, Vec<u8>)>> {
        assert_eq!(call.phase, Some(Phase::Decode), "layers of new tokens");
        let round = Round { program, rows: 0..call.rows, call };
        let mut listed: Vec<DecodeStep> = Vec::new();
        let mut attention = None;
        let steps = cuda::layer_steps(&program.graph);
        for at in steps.clone() {
            match &program.graph.nodes[at].op {
                Op::RmsNorm { .. } if self.is_prologue(&round, at, weights) => {}
                Op::PagedAttention { layer, heads } => {
                    attention = Some(self.paged_attention(&round, at, *layer, *heads));
                }
                Op::Linear { parts, .. } if weights.matrix(parts).inputs.is_none() => {
                    let (linear, norm) = self.linear(&round, at, weights)?;
                    listed.push(DecodeStep { attention: attention.take(), norm, linear });
                }
                _ => return Ok(None),
            }
        }
        let Some(first) = listed.first() else { return Ok(None) };
        let (kind, half) = (first.linear.kind, first.linear.half);
        if listed.iter().any(|step| step.linear.kind != kind) {
            return Ok(None);
        }
        // What the kernel does not take is no error: the others do.
        let Ok(list) = self.kernels.decode_steps(&listed) else { return Ok(None) };
        let (n_steps, blocks) = (list.n_steps, list.blocks);
        let launch = DecodeLayers { kind, half, steps: address, n_steps, blocks, arrived };
        Ok(Some((Layers { steps, launch }, list.bytes)))
    }

    /// Launches the steps of `layers`.
    pub(super) fn launch_layers(&self, program: &Program, layers: &Layers) -> Result<()> {
        // SAFETY: what the device is told of the steps was made by `layers` of the same call; the rest as in `step`.
        let launched = unsafe { self.kernels.decode_layers(&self.gpu.stream, &layers.launch) };
        launched.map_err(|error| {
            let Range { start, end } = layers.steps;
            let step = format!("{} steps {start} to {}, one launch", program.name, end - 1);
            self.gpu.kernel_error(&step, error)
        })
    }
}
