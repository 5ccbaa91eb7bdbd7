//! Rewrites that merge neighbouring operations, so that intermediates never reach memory.
//!
//! Each rewrite keeps the arithmetic: a fused graph gives the same numbers as the plain one.

use crate::builder::{Graph, Node, ValueId};
use crate::op::{Epilogue, LinearPart, Op};

/// Applies every rewrite.
pub fn fuse(graph: &mut Graph) {
    fuse_qkv(graph);
    fuse_gate_up(graph);
    fuse_epilogues(graph);
    fuse_merge(graph);
}

/// q, k, v projections of one input, M-RoPE on q and k, and the KV write become one linear layer.
fn fuse_qkv(graph: &mut Graph) {
    let mut absorbed = Vec::new();
    for at in 0..graph.nodes.len() {
        let Op::WriteKv { layer, heads } = graph.nodes[at].op else { continue };
        let (k, v) = (graph.nodes[at].inputs[0], graph.nodes[at].inputs[1]);
        let attends = |n: &Node| matches!(n.op, Op::PagedAttention { layer: l, .. } if l == layer);
        let Some(q) = graph.nodes.iter().find(|n| attends(n)).map(|n| n.inputs[0]) else { continue };
        let Some((q_turn, rope)) = rotation(graph, q) else { continue };
        let Some((k_turn, k_rope)) = rotation(graph, k) else { continue };
        let (q_in, k_in) = (graph.nodes[q_turn].inputs[0], graph.nodes[k_turn].inputs[0]);
        let found = [plain_linear(graph, q_in), plain_linear(graph, k_in), plain_linear(graph, v)];
        let [Some(ql), Some(kl), Some(vl)] = found else { continue };
        let x = graph.nodes[ql].inputs[0];
        if rope != k_rope || [kl, vl].iter().any(|&l| graph.nodes[l].inputs[0] != x) {
            continue;
        }
        let epilogue = Epilogue::RopeWriteKv { layer, heads, rope };
        let op = stacked(graph, &[ql, kl, vl], epilogue);
        graph.nodes[at] = Node { op, inputs: vec![x], output: Some(q) };
        absorbed.extend([ql, kl, vl, q_turn, k_turn]);
    }
    remove(graph, &absorbed);
}

/// gate and up projections of one input and the SwiGLU become one linear layer.
fn fuse_gate_up(graph: &mut Graph) {
    let mut absorbed = Vec::new();
    for at in 0..graph.nodes.len() {
        if graph.nodes[at].op != Op::SwiGlu {
            continue;
        }
        let inputs = &graph.nodes[at].inputs;
        let (Some(gate), Some(up)) = (plain_linear(graph, inputs[0]), plain_linear(graph, inputs[1])) else {
            continue;
        };
        let x = graph.nodes[gate].inputs[0];
        if graph.nodes[up].inputs[0] != x {
            continue;
        }
        let op = stacked(graph, &[gate, up], Epilogue::SwiGlu);
        let output = graph.nodes[at].output;
        graph.nodes[at] = Node { op, inputs: vec![x], output };
        absorbed.extend([gate, up]);
    }
    remove(graph, &absorbed);
}

/// A pointwise function, a vision rotation or a residual addition after a linear layer becomes
/// the layer's epilogue.
fn fuse_epilogues(graph: &mut Graph) {
    let mut absorbed = Vec::new();
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let epilogue = match &node.op {
            Op::Activate(activation) => Epilogue::Activate(*activation),
            Op::RotateVision(rope) => Epilogue::VisionRope(*rope),
            Op::Add => Epilogue::AddResidual,
            _ => continue,
        };
        let Some(linear) = plain_linear(graph, node.inputs[0]) else { continue };
        let Op::Linear { parts, k, .. } = graph.nodes[linear].op.clone() else { continue };
        let mut inputs = vec![graph.nodes[linear].inputs[0]];
        inputs.extend(&node.inputs[1..]);
        let output = node.output;
        graph.nodes[at] = Node { op: Op::Linear { parts, k, epilogue }, inputs, output };
        absorbed.push(linear);
    }
    remove(graph, &absorbed);
}

/// A linear layer reads grouped rows in place: the rows of a group are already side by side.
fn fuse_merge(graph: &mut Graph) {
    let mut absorbed = Vec::new();
    for at in 0..graph.nodes.len() {
        if !matches!(graph.nodes[at].op, Op::Linear { .. }) {
            continue;
        }
        let x = graph.nodes[at].inputs[0];
        let merge = producer(graph, x).filter(|&p| matches!(graph.nodes[p].op, Op::MergeRows { .. }));
        if let Some(merge) = merge
            && consumers(graph, x) == 1
        {
            graph.nodes[at].inputs[0] = graph.nodes[merge].inputs[0];
            absorbed.push(merge);
        }
    }
    remove(graph, &absorbed);
}

fn producer(graph: &Graph, value: ValueId) -> Option<usize> {
    graph.nodes.iter().position(|n| n.output == Some(value))
}

fn consumers(graph: &Graph, value: ValueId) -> usize {
    graph.nodes.iter().flat_map(|n| &n.inputs).filter(|&&v| v == value).count()
}

/// The rotation that gives `value`, if nothing else reads its input.
fn rotation(graph: &Graph, value: ValueId) -> Option<(usize, crate::op::MRope)> {
    let at = producer(graph, value)?;
    match graph.nodes[at].op {
        Op::Rotate(rope) if consumers(graph, graph.nodes[at].inputs[0]) == 1 => Some((at, rope)),
        _ => None,
    }
}

/// The linear layer without epilogue that gives `value`, if `value` has one reader.
fn plain_linear(graph: &Graph, value: ValueId) -> Option<usize> {
    let at = producer(graph, value)?;
    let plain = matches!(graph.nodes[at].op, Op::Linear { epilogue: Epilogue::Store, .. });
    (plain && consumers(graph, value) == 1).then_some(at)
}

fn stacked(graph: &Graph, linears: &[usize], epilogue: Epilogue) -> Op {
    let mut all: Vec<LinearPart> = Vec::new();
    let mut width = 0;
    for &at in linears {
        if let Op::Linear { parts, k, .. } = &graph.nodes[at].op {
            all.extend(parts);
            width = *k;
        }
    }
    Op::Linear { parts: all, k: width, epilogue }
}

fn remove(graph: &mut Graph, gone: &[usize]) {
    let mut at = 0;
    graph.nodes.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
}
