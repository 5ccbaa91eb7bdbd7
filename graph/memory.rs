//! From the lifetimes of values to offsets in one arena.

use crate::builder::{Graph, ValueId};
use crate::op::{Epilogue, Op};
use crate::plan::Segment;
use crate::shape::Sizes;

/// Every value starts at a multiple of this many bytes.
pub const ALIGN_BYTES: u64 = 256;

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the start of the arena.
    pub offset_bytes: u64,
    /// Bytes at the upper bounds.
    pub bytes: u64,
    /// Whether it holds only the rows of the current tile of its segment.
    pub tiled: bool,
}

/// A memory region with a lifetime, in step numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Size.
    pub bytes: u64,
    /// First step at which it holds something.
    pub first: usize,
    /// Last step at which it is needed.
    pub last: usize,
}

impl Block {
    fn meets(&self, other: &Block) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Places every value that a node writes. `None` for values that fusion made disappear, and for the
/// result if `result_elsewhere`: the executor then gives it a place outside the arena. Returns the placements, by value, and the size of the arena in bytes.
///
/// The output of a residual addition takes the place of its second input if that dies there.
pub fn place(
    graph: &Graph,
    segments: &[Segment],
    sizes: &Sizes,
    result_elsewhere: bool,
) -> (Vec<Option<Placement>>, u64) {
    let n_values = graph.values.len();
    let mut life: Vec<Option<(usize, usize)>> = vec![None; n_values];
    let extend = |slot: &mut Option<(usize, usize)>, first: usize, last: usize| {
        let (a, b) = slot.unwrap_or((first, last));
        *slot = Some((a.min(first), b.max(last)));
    };
    let mut tiled = vec![false; n_values];
    for segment in segments {
        for at in segment.steps.clone() {
            let node = &graph.nodes[at];
            for value in node.inputs.iter().chain(&node.output) {
                if segment.is_interior(graph, *value) {
                    tiled[value.0] = segment.tile_rows.is_some();
                    extend(&mut life[value.0], at, at);
                } else {
                    // A tiled segment runs its steps again for every tile.
                    extend(&mut life[value.0], segment.steps.start, segment.steps.end - 1);
                }
            }
        }
    }
    if let Some(result) = graph.result {
        extend(&mut life[result.0], graph.nodes.len(), graph.nodes.len());
        if result_elsewhere {
            life[result.0] = None;
        }
    }

    let mut owner: Vec<usize> = (0..n_values).collect();
    for segment in segments {
        for at in segment.steps.clone() {
            let node = &graph.nodes[at];
            let (Some(out), Op::Linear { epilogue: Epilogue::AddResidual, .. } | Op::Add) =
                (node.output, &node.op)
            else {
                continue;
            };
            let residual = node.inputs[1];
            let dies = life[residual.0].is_some_and(|(_, last)| last < segment.steps.end);
            let same =
                graph.value(residual).dtype == graph.value(out).dtype && tiled[residual.0] == tiled[out.0];
            if dies && same {
                owner[out.0] = owner[residual.0];
            }
        }
    }

    let mut blocks: Vec<Block> = Vec::new();
    let mut block_of: Vec<Option<usize>> = vec![None; n_values];
    for id in 0..n_values {
        let Some((first, last)) = life[id] else { continue };
        let bytes = value_bytes(graph, ValueId(id), tile_of(segments, graph, ValueId(id)), sizes);
        if owner[id] == id {
            block_of[id] = Some(blocks.len());
            blocks.push(Block { bytes, first, last });
        } else {
            let shared = block_of[owner[id]].expect("a residual is written before its sum");
            block_of[id] = Some(shared);
            let block = &mut blocks[shared];
            *block = Block {
                bytes: block.bytes.max(bytes),
                first: block.first.min(first),
                last: block.last.max(last),
            };
        }
    }
    let (offsets, arena_bytes) = pack(&blocks);
    let placements = (0..n_values)
        .map(|id| {
            let block = block_of[id]?;
            Some(Placement { offset_bytes: offsets[block], bytes: blocks[block].bytes, tiled: tiled[id] })
        })
        .collect();
    (placements, arena_bytes)
}

/// Packs blocks so that those that live together do not overlap: the largest first, each at the
/// lowest free offset. Returns the offsets and the total.
pub fn pack(blocks: &[Block]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first));
    let mut offsets = vec![0u64; blocks.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for &i in &order {
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|&&p| blocks[p].meets(&blocks[i]))
            .map(|&p| (offsets[p], offsets[p] + blocks[p].bytes))
            .collect();
        taken.sort_unstable();
        let mut at = 0u64;
        for (start, end) in taken {
            if at + blocks[i].bytes <= start {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGN_BYTES));
        }
        offsets[i] = at;
        total = total.max(at + blocks[i].bytes);
        placed.push(i);
    }
    (offsets, total.next_multiple_of(ALIGN_BYTES))
}

fn tile_of(segments: &[Segment], graph: &Graph, value: ValueId) -> Option<usize> {
    segments.iter().find(|s| s.is_interior(graph, value)).and_then(|s| s.tile_rows)
}

fn value_bytes(graph: &Graph, value: ValueId, tile: Option<usize>, sizes: &Sizes) -> u64 {
    let v = graph.value(value);
    let sizes = match tile {
        Some(tile) => Sizes { patches: sizes.patches.min(tile), ..*sizes },
        None => *sizes,
    };
    sizes.rows(v.shape.rows) as u64 * v.shape.cols as u64 * v.dtype.size_bytes()
}
