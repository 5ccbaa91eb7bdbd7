//! One step of a plan: its op, its kernel.

use std::ops::Range;

use qwenvl_graph::config::VisionConfig;
use qwenvl_graph::{Epilogue, Op, Program, Rows, ValueId};

use super::{Call, Memory, Weights};
use crate::checkpoint::Checkpoint;
use crate::exec::{DecoderCall, VisionCall};
use crate::kernels::cpu::linear::{Blocking, Finish, linear};
use crate::kernels::cpu::{Pool, attention, embed, norm, pointwise, rope};
use crate::vision::patchify;

/// Runs step `at` of `program` for the patches `rows` of a vision call, or all tokens of a decoder
/// call.
pub(super) fn run(
    program: &Program,
    at: usize,
    rows: Range<usize>,
    weights: &Weights,
    checkpoint: &Checkpoint,
    memory: &mut Memory,
    call: &Call,
) {
    let node = &program.graph.nodes[at];
    let kernel = &program.kernels[at];
    let view = |id: ValueId, whole: bool| locate(program, id, &rows, whole, call);
    let Memory { isa, pool, arena, visual, kv, scratch, rounded, angles, slices, config } = memory;
    let isa = *isa;

    // Sources, and the one op without output.
    match &node.op {
        Op::Patchify => {
            let out = &mut arena[view(node.output.expect("patches"), false)];
            return patchify_rows(config, vision(call), &rows, slices, pool, out);
        }
        Op::Embed { table } => {
            let call = decoder(call);
            let out = &mut arena[view(node.output.expect("embeddings"), false)];
            let table = weights.dense(*table, checkpoint);
            return embed::embed(pool, &table, call.tokens, visual, call.visual_index, out);
        }
        Op::WriteKv { layer, .. } => {
            let (k, v) = (view(node.inputs[0], false), view(node.inputs[1], false));
            return kv.write(*layer, decoder(call).slots, &arena[k], &arena[v]);
        }
        _ => {}
    }

    let output = node.output.expect("all other ops write a value");
    // Attention and row selection read all rows, also from a tile.
    let whole = matches!(node.op, Op::VisionAttention { .. } | Op::SelectRows);
    let x_at = view(node.inputs[0], whole);
    let out_at = view(output, false);
    // The residual, unless the output takes its place.
    let second = node.inputs.get(1).map(|v| view(*v, false)).filter(|at| *at != out_at);
    let (x, second, out): (&[f32], Option<&[f32]>, &mut [f32]) = if program.placements[output.0].is_none() {
        // The visual rows: outside the arena.
        let first = vision(call).first_row * program.graph.value(output).shape.cols;
        (&arena[x_at], second.map(|at| &arena[at]), &mut visual[first + out_at.start..first + out_at.end])
    } else {
        match second {
            None => {
                let [x, out] =
                    arena.get_disjoint_mut([x_at, out_at]).expect("the plan keeps live values apart");
                (x, None, out)
            }
            Some(second) => {
                let ranges = [x_at, second, out_at];
                let [x, second, out] =
                    arena.get_disjoint_mut(ranges).expect("the plan keeps live values apart");
                (x, Some(second), out)
            }
        }
    };

    match &node.op {
        Op::Linear { parts, k, epilogue } => {
            let stacked = weights.parts(parts, checkpoint);
            let finish = match epilogue {
                Epilogue::Store => Finish::Store,
                Epilogue::Activate(activation) => Finish::Activate(*activation),
                Epilogue::AddResidual => Finish::AddResidual(second),
                Epilogue::SwiGlu => Finish::SwiGlu,
                Epilogue::VisionRope(rope) => {
                    Finish::VisionRope { table: angles, first_row: rows.start, head_dim: rope.head_dim }
                }
                Epilogue::RopeWriteKv { layer, heads, .. } => Finish::RopeWriteKv {
                    table: angles,
                    kv: kv.writer(),
                    layer: *layer,
                    heads: *heads,
                    slots: decoder(call).slots,
                },
            };
            let blocking = Blocking { block_m: kernel.block_m, block_n: kernel.block_n, scratch, rounded };
            linear(isa, pool, x, x.len() / k, &stacked[..parts.len()], finish, out, blocking);
        }
        Op::LayerNorm { weight, bias, eps } => {
            norm::layer_norm(isa, pool, x, weights.vector(*weight), weights.vector(*bias), *eps, out);
        }
        Op::RmsNorm { weight, eps } => norm::rms_norm(isa, pool, x, weights.vector(*weight), *eps, out),
        Op::Activate(activation) => pointwise::activate(isa, pool, *activation, x, out),
        Op::SwiGlu => pointwise::swiglu(isa, pool, x, second.expect("gate and up"), out),
        Op::Add => pointwise::add(pool, x, second, out),
        Op::RotateVision(r) => {
            let cols = 3 * r.n_heads * r.head_dim;
            rope::rotate_rows(pool, angles, rows.start, x, cols, cols / 3 * 2, r.head_dim, out);
        }
        Op::Rotate(r) => {
            let cols = program.graph.value(output).shape.cols;
            rope::rotate_rows(pool, angles, 0, x, cols, cols, r.head_dim, out);
        }
        Op::VisionAttention { n_heads, head_dim } => {
            attention::vision(isa, pool, x, slices, rows, *n_heads, *head_dim, out, scratch);
        }
        Op::PagedAttention { layer, .. } => {
            let call = decoder(call);
            attention::paged(isa, pool, kv, *layer, x, call.seqs, call.page_table, out, scratch);
        }
        Op::MergeRows { .. } => out.copy_from_slice(x),
        Op::SelectRows => {
            embed::select_rows(x, program.graph.value(output).shape.cols, decoder(call).logit_rows, out)
        }
        Op::Patchify | Op::Embed { .. } | Op::WriteKv { .. } => unreachable!("handled above"),
    }
}

/// What step `at` has written for `rows`.
pub(super) fn written<'m>(
    program: &Program,
    at: usize,
    rows: &Range<usize>,
    memory: &'m mut Memory,
    call: &Call,
) -> Option<&'m mut [f32]> {
    let output = program.graph.nodes[at].output?;
    let place = locate(program, output, rows, false, call);
    if program.placements[output.0].is_some() {
        return Some(&mut memory.arena[place]);
    }
    let first = vision(call).first_row * program.graph.value(output).shape.cols;
    Some(&mut memory.visual[first + place.start..first + place.end])
}

fn vision<'a>(call: &Call<'a>) -> &'a VisionCall<'a> {
    match call {
        Call::Vision(call) => call,
        Call::Decoder(_) => unreachable!("an op of the vision tower in a decoder program"),
    }
}

fn decoder<'a>(call: &Call<'a>) -> &'a DecoderCall<'a> {
    match call {
        Call::Decoder(call) => call,
        Call::Vision(_) => unreachable!("an op of the decoder in a vision program"),
    }
}

/// Elements of a value in the arena: the rows of the tile `patches`, or with `whole` all of the call.
/// For a value outside the arena, elements from the start of its own place.
fn locate(program: &Program, id: ValueId, patches: &Range<usize>, whole: bool, call: &Call) -> Range<usize> {
    let value = program.graph.value(id);
    let (first, last) = match value.shape.rows {
        Rows::Patches | Rows::MergedPatches(_) => {
            let per = if let Rows::MergedPatches(per) = value.shape.rows { per } else { 1 };
            let all = || vision(call).slices.iter().map(|s| s.visual.grid.patches_per_slice()).sum::<usize>();
            if whole { (0, all() / per) } else { (patches.start / per, patches.end / per) }
        }
        Rows::Tokens => (0, decoder(call).tokens.len()),
        Rows::LogitRows => (0, decoder(call).logit_rows.len()),
    };
    let (start, skipped) = match program.placements[id.0] {
        Some(place) => (place.offset_bytes as usize / 4, if place.tiled { 0 } else { first }),
        None => (0, first),
    };
    let cols = value.shape.cols;
    start + skipped * cols..start + (skipped + last - first) * cols
}

fn patchify_rows(
    config: &VisionConfig,
    call: &VisionCall,
    rows: &Range<usize>,
    slices: &[Range<usize>],
    pool: &mut Pool,
    out: &mut [f32],
) {
    let cols = config.patch_dim();
    let table = call.normalize.table();
    pool.run_on_chunks(out, cols, 64, |first, out| {
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            let row = rows.start + first + i;
            let at = slices.partition_point(|s| s.end <= row);
            let slice = call.slices[at];
            patchify::write_patch(slice.visual, slice.t, row - slices[at].start, &table, config, out);
        }
    });
}
