//! Basic blocks, and where lanes that part meet again.

use crate::exec::inst::{Inst, Kind, NONE, flag};

/// A basic block of one routine: instructions `start..end`.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) successors: Vec<usize>,
}

/// Divides `insts[range]` into blocks. Branch targets must lie in the range.
pub(super) fn blocks(insts: &[Inst], range: std::ops::Range<usize>, tables: &[Vec<u32>]) -> Vec<Block> {
    let (first, end) = (range.start, range.end);
    let mut leader = vec![false; end - first + 1];
    leader[0] = true;
    leader[end - first] = true;
    for pc in range.clone() {
        let inst = &insts[pc];
        match inst.kind {
            Kind::Branch => {
                leader[inst.target as usize - first] = true;
                leader[pc + 1 - first] = true;
            }
            Kind::BranchIndexed => {
                for &t in &tables[inst.target as usize] {
                    leader[t as usize - first] = true;
                }
                leader[pc + 1 - first] = true;
            }
            Kind::Exit | Kind::Return | Kind::Trap => leader[pc + 1 - first] = true,
            _ => {}
        }
    }
    let mut block_of = vec![0; end - first + 1];
    let mut out: Vec<Block> = Vec::new();
    for pc in range {
        if leader[pc - first] {
            out.push(Block { start: pc, end: pc, successors: Vec::new() });
        }
        block_of[pc - first] = out.len() - 1;
        if let Some(last) = out.last_mut() {
            last.end = pc + 1;
        }
    }
    let n = out.len();
    for (b, block) in out.iter_mut().enumerate() {
        let inst = &insts[block.end - 1];
        let guarded = inst.guard != NONE;
        let mut next = Vec::new();
        match inst.kind {
            Kind::Branch => next.push(block_of[inst.target as usize - first]),
            Kind::BranchIndexed => {
                next.extend(tables[inst.target as usize].iter().map(|&t| block_of[t as usize - first]));
            }
            _ => {}
        }
        let falls = match inst.kind {
            Kind::Branch | Kind::BranchIndexed | Kind::Exit | Kind::Trap => guarded,
            Kind::Return => false,
            _ => true,
        };
        if falls && b + 1 < n {
            next.push(b + 1);
        }
        next.sort_unstable();
        next.dedup();
        block.successors = next;
    }
    out
}

/// Immediate post-dominators: the block at which all paths from a block meet, `None` when that is only the exit.
pub(super) fn post_dominators(blocks: &[Block]) -> Vec<Option<usize>> {
    // Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", on the reversed graph.
    let n = blocks.len();
    let exit = n;
    let mut preds_reversed = vec![Vec::new(); n + 1]; // successors in the program, exit included
    let mut edges = vec![Vec::new(); n + 1]; // predecessors in the program
    for (b, block) in blocks.iter().enumerate() {
        preds_reversed[b] = block.successors.clone();
        if block.successors.is_empty() {
            preds_reversed[b].push(exit);
        }
        for &s in &preds_reversed[b] {
            edges[s].push(b);
        }
    }
    // Post-order from the exit, without recursion.
    let mut order = vec![usize::MAX; n + 1];
    let mut sequence = Vec::with_capacity(n + 1);
    let mut seen = vec![false; n + 1];
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((node, next)) = stack.pop() {
        if let Some(&e) = edges[node].get(next) {
            stack.push((node, next + 1));
            if !seen[e] {
                seen[e] = true;
                stack.push((e, 0));
            }
        } else {
            order[node] = sequence.len();
            sequence.push(node);
        }
    }
    let mut idom = vec![usize::MAX; n + 1];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &node in sequence.iter().rev().filter(|&&b| b != exit) {
            let mut new = usize::MAX;
            for &p in preds_reversed[node].iter().filter(|&&p| idom[p] != usize::MAX) {
                new = if new == usize::MAX { p } else { meet(&idom, &order, p, new) };
            }
            if new != idom[node] {
                idom[node] = new;
                changed = true;
            }
        }
    }
    idom[..n].iter().map(|&d| (d < n).then_some(d)).collect()
}

fn meet(idom: &[usize], order: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while order[a] < order[b] {
            a = idom[a];
        }
        while order[b] < order[a] {
            b = idom[b];
        }
    }
    a
}

/// Writes into each branch of the blocks where its lanes meet again, and marks those places.
pub(super) fn reconverge(insts: &mut [Inst], blocks: &[Block]) {
    let ipdom = post_dominators(blocks);
    for (b, block) in blocks.iter().enumerate() {
        let last = block.end - 1;
        if matches!(insts[last].kind, Kind::Branch | Kind::BranchIndexed) {
            insts[last].reconverge = ipdom[b].map_or(NONE, |d| blocks[d].start as u32);
            if let Some(d) = ipdom[b] {
                insts[blocks[d].start].flags |= flag::LEADER;
            }
        }
        // After these, lanes that took no part because of a guard meet the others.
        for pc in block.start..block.end {
            if matches!(insts[pc].kind, Kind::Call | Kind::Collective | Kind::Barrier) && pc + 1 < insts.len()
            {
                insts[pc + 1].flags |= flag::LEADER;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[&[usize]]) -> Vec<Block> {
        edges.iter().map(|e| Block { start: 0, end: 1, successors: e.to_vec() }).collect()
    }

    #[test]
    fn diamonds_loops_and_early_exits() {
        // 0 → 1, 2 → 3; 3 → 4 (loop back to 3) → 5
        let b = graph(&[&[1, 2], &[3], &[3], &[4], &[3, 5], &[]]);
        assert_eq!(post_dominators(&b), [Some(3), Some(3), Some(3), Some(4), Some(5), None]);
        // One side exits: they meet only at the exit.
        assert_eq!(post_dominators(&graph(&[&[1, 2], &[], &[]])), [None, None, None]);
        // A loop that never ends has no post-dominator, and the search ends.
        assert_eq!(post_dominators(&graph(&[&[1, 2], &[1], &[]])), [Some(2), None, None]);
    }
}
