//! How a quantised layer lies on the device: the order of its inputs, and which group of the file each place is of.

use std::collections::HashMap;

use qwenvl_graph::config::Quantization;
use qwenvl_graph::cuda::{self, WeightKind, Workspace};
use qwenvl_graph::op::LinearPart;
use qwenvl_graph::weights::{Linear, WeightFormat};
use qwenvl_graph::{Graph, Op, Plan, WeightId};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::kernels::cuda::repack::{Format, NO_INPUT};

/// Parts that are stacked.
const PARTS: usize = 3;

/// Of the parts of a layer, which have their inputs in common.
pub(super) struct Layout {
    pub(super) kind: WeightKind,
    /// How its files store it.
    pub(super) format: Format,
    /// Places along k.
    pub(super) k: usize,
    /// The input at each place, or none; unless all are in order.
    pub(super) inputs: Option<Vec<u32>>,
    /// Of each part: the group of its file for each [`WeightKind::group`] places.
    pub(super) groups: Vec<Vec<u32>>,
}

/// The layouts of all quantised layers, by their first part.
pub(super) type Layouts = HashMap<WeightId, Layout>;

/// The layouts of the layers of `plan`. Where a file has other groups or zero points than its configuration says, `plan`
/// and `workspace` grow by what that takes.
pub(super) fn layouts(
    checkpoint: &Checkpoint,
    plan: &mut Plan,
    workspace: &mut Workspace,
) -> Result<Layouts> {
    let mut layouts = Layouts::new();
    let (mut extra, mut sorted) = (0, 0);
    let quantization = plan.config.quantization;
    for node in &plan.prefill.graph.nodes {
        let Op::Linear { parts, k, .. } = &node.op else { continue };
        let Some(layout) = Layout::of(checkpoint, &plan.prefill.graph, parts, *k)? else { continue };
        let n = parts.iter().map(|p| p.n).sum();
        let (kind, places) = WeightKind::planned(quantization, *k);
        let planned = cuda::layer_bytes(kind, n, places, cuda::sorts_inputs(quantization, *k));
        let is_sorted = layout.inputs.is_some();
        extra += cuda::layer_bytes(layout.kind, n, layout.k, is_sorted).saturating_sub(planned);
        sorted = sorted.max(if is_sorted { layout.k } else { 0 });
        layouts.insert(parts[0].weight, layout);
    }
    plan.memory.weights_bytes += extra;
    plan.memory.workspace_bytes += workspace.widen_sorted(&plan.options, sorted);
    Ok(layouts)
}

impl Layout {
    /// Puts inputs of the same group in every part side by side; `None` for a dense layer.
    fn of(checkpoint: &Checkpoint, graph: &Graph, parts: &[LinearPart], k: usize) -> Result<Option<Layout>> {
        let mut group_of = vec![[0u32; PARTS]; k];
        let (mut is_symmetric, mut stored_as) = (true, None);
        for (at, part) in parts.iter().enumerate() {
            let weight = graph.weight(part.weight);
            let qwenvl_graph::WeightKind::Matrix { format, .. } = weight.kind else {
                unreachable!("a linear part is a matrix")
            };
            if matches!(format, WeightFormat::Dense(_)) {
                return Ok(None);
            }
            let linear = Linear { name: weight.name.clone(), n: part.n, k, bias: false, format };
            // Reading the layer checks the shapes that the repacker relies on.
            if let Quantization::Gptq { bits, v2, .. } = checkpoint.config.quantization {
                let stored = checkpoint.gptq_linear(&linear)?;
                group_of.iter_mut().zip(&stored.g_idx).for_each(|(groups, g)| groups[at] = *g);
                let zero_offset = u32::from(!v2);
                stored_as = Some(match bits {
                    4 => Format::Gptq4 { zero_offset },
                    _ => Format::Gptq8 { zero_offset },
                });
                // 128 in the middle of 0..256.
                is_symmetric &= stored.qzeros.iter().all(|zero| u32::from(*zero) + zero_offset == 128);
            } else {
                let group = checkpoint.awq_linear(&linear)?.group;
                group_of.iter_mut().enumerate().for_each(|(k, groups)| groups[at] = (k / group) as u32);
                stored_as = Some(Format::Awq4);
            }
        }
        let format = stored_as.expect("a layer has parts");
        let bits = if matches!(format, Format::Gptq8 { .. }) { 8 } else { 4 };
        Ok(Some(Layout::new(format, bits, is_symmetric, &group_of, parts.len())))
    }

    fn new(format: Format, bits: u32, is_symmetric: bool, group_of: &[[u32; PARTS]], parts: usize) -> Layout {
        let mut order: Vec<u32> = (0..group_of.len() as u32).collect();
        order.sort_by_key(|input| group_of[*input as usize]);
        let together = || order.chunk_by(|a, b| group_of[*a as usize] == group_of[*b as usize]);
        let (kind, k) = WeightKind::of_groups(bits, is_symmetric, together().map(<[u32]>::len));
        let mut inputs = Vec::with_capacity(k);
        let mut groups = vec![Vec::with_capacity(k.div_ceil(kind.group())); parts];
        for inside in together() {
            inputs.resize(inputs.len().next_multiple_of(kind.group()), NO_INPUT);
            inputs.extend(inside);
            for (part, groups) in groups.iter_mut().enumerate() {
                groups.resize(inputs.len().div_ceil(kind.group()), group_of[inside[0] as usize][part]);
            }
        }
        inputs.resize(k, NO_INPUT);
        let is_ordered = inputs.iter().enumerate().all(|(place, input)| *input as usize == place);
        Layout { kind, format, k, inputs: (!is_ordered).then_some(inputs), groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bits: u32, group_of: impl Iterator<Item = [u32; PARTS]>) -> Layout {
        Layout::new(Format::Awq4, bits, true, &group_of.collect::<Vec<_>>(), 2)
    }

    #[test]
    fn groups_in_order_stay_where_they_are() {
        for (group, k, bits, kind) in [
            (128, 640, 4, WeightKind::Int4),
            (128, 672, 4, WeightKind::Int4),
            (640, 640, 8, WeightKind::Int8),
            (64, 672, 4, WeightKind::Int4G64),
            (32, 672, 4, WeightKind::Int4G32),
            (96, 672, 4, WeightKind::Int4G32),
            (64, 672, 8, WeightKind::Int8G32),
        ] {
            let layout = layout(bits, (0..k).map(|i| [(i / group) as u32; PARTS]));
            assert_eq!((layout.kind, layout.k), (kind, k), "{group} of {k}");
            assert!(layout.inputs.is_none(), "{group} of {k}");
            let expected: Vec<u32> = (0..k).step_by(kind.group()).map(|at| (at / group) as u32).collect();
            assert_eq!(layout.groups, [expected.clone(), expected], "{group} of {k}");
        }
    }

    #[test]
    fn every_input_has_one_place_and_places_of_a_scale_have_one_group() {
        // Groups of 24; of unequal size; and of parts that differ.
        let cases: [fn(usize) -> [u32; PARTS]; 3] = [
            |i| [i as u32 / 24; PARTS],
            |i| [(i * i % 7 / 2) as u32; PARTS],
            |i| [i as u32 / 96, (i as u32 * 77 + 5) % 384 / 96, 0],
        ];
        for group_of in cases {
            let layout = layout(4, (0..384).map(group_of));
            let inputs = layout.inputs.expect("inputs move");
            assert_eq!(inputs.len(), layout.k);
            let mut there: Vec<u32> = inputs.iter().copied().filter(|i| *i != NO_INPUT).collect();
            there.sort();
            assert!(there.into_iter().eq(0..384));
            for (place, input) in inputs.iter().enumerate().filter(|(_, i)| **i != NO_INPUT) {
                for part in 0..2 {
                    let found = layout.groups[part][place / layout.kind.group()];
                    assert_eq!(found, group_of(*input as usize)[part], "place {place}, part {part}");
                }
            }
        }
    }
}
