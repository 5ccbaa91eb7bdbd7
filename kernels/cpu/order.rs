//! The order in which a matrix with groups reads its inputs.

/// Inputs sorted by group, so that a group is a run of neighbours even if the file assigned inputs to
/// groups one by one (`desc_act`). Each group is filled up to whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputOrder {
    inputs: Vec<u32>,
    groups: Vec<u32>,
    block: usize,
    k: usize,
}

impl InputOrder {
    /// Stands where a group is filled up: an input that is zero.
    pub const NONE: u32 = u32::MAX;

    /// Sorts inputs by `group_of[input]`, those of one group in ascending order, and fills groups up to
    /// multiples of `block`.
    ///
    /// # Panics
    /// If a group is not below `groups`.
    pub fn new(group_of: &[u32], groups: usize, block: usize) -> InputOrder {
        let mut counts = vec![0; groups];
        group_of.iter().for_each(|&g| counts[g as usize] += 1usize);
        let mut starts = Vec::with_capacity(groups);
        let mut order = InputOrder { inputs: Vec::new(), groups: Vec::new(), block, k: group_of.len() };
        for (group, count) in counts.iter().enumerate() {
            starts.push(order.groups.len() * block);
            let blocks = count.div_ceil(block);
            order.groups.extend(std::iter::repeat_n(group as u32, blocks));
        }
        order.inputs.resize(order.groups.len() * block, Self::NONE);
        for (input, &group) in group_of.iter().enumerate() {
            let at = &mut starts[group as usize];
            order.inputs[*at] = input as u32;
            *at += 1;
        }
        order
    }

    /// An order read from a file; `None` if it is not one of whole blocks that has every input once.
    pub fn from_parts(inputs: Vec<u32>, groups: Vec<u32>, block: usize, k: usize) -> Option<InputOrder> {
        let mut seen = vec![false; k];
        for &input in inputs.iter().filter(|&&i| i != Self::NONE) {
            let seen = seen.get_mut(input as usize)?;
            if std::mem::replace(seen, true) {
                return None;
            }
        }
        let whole = block > 0 && inputs.len() == groups.len().checked_mul(block)?;
        (whole && seen.iter().all(|s| *s)).then_some(InputOrder { inputs, groups, block, k })
    }

    /// Inputs of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Inputs per block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Input at each place, or [`NONE`](Self::NONE): whole blocks.
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// The file's group of each block.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        4 * (self.inputs.len() + self.groups.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_sorted_by_group_and_groups_filled_up() {
        const NO: u32 = InputOrder::NONE;
        let order = InputOrder::new(&[1, 0, 1, 3, 1, 0], 4, 2);
        assert_eq!(order.inputs(), [1, 5, 0, 2, 4, NO, 3, NO]);
        assert_eq!(order.groups(), [0, 1, 1, 3]);
        assert_eq!(order.k(), 6);
    }
}
