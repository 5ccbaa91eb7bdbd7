//! Which pages of the KV cache belong to whom: pure host logic.

use qwenvl_graph::kernel::KV_PAGE_TOKENS;

/// Hands out the pages of the cache.
#[derive(Clone, Debug)]
pub struct PageAllocator {
    /// Pages that nobody owns, the next one last.
    free: Vec<u32>,
    total: usize,
}

/// The pages of one sequence, in the order of its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    pages: Vec<u32>,
}

impl PageAllocator {
    /// All of `pages` pages are free.
    pub fn new(pages: usize) -> PageAllocator {
        PageAllocator { free: (0..pages as u32).rev().collect(), total: pages }
    }

    /// Pages that nobody owns.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total_pages(&self) -> usize {
        self.total
    }

    /// Pages for `tokens` tokens, or `None` if there are not enough.
    pub fn allocate(&mut self, tokens: usize) -> Option<PageTable> {
        let needed = tokens.div_ceil(KV_PAGE_TOKENS);
        let rest = self.free.len().checked_sub(needed)?;
        let mut pages = self.free.split_off(rest);
        pages.reverse();
        Some(PageTable { pages })
    }

    /// Takes pages back.
    pub fn release(&mut self, table: PageTable) {
        self.free.extend(table.pages.into_iter().rev());
        debug_assert!(self.free.len() <= self.total);
    }
}

impl PageTable {
    /// The pages.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Where the key and value of the token at cache index `token` go: page · 64 + offset.
    ///
    /// # Panics
    /// If the sequence has no page for it.
    pub fn slot(&self, token: usize) -> u32 {
        self.pages[token / KV_PAGE_TOKENS] * KV_PAGE_TOKENS as u32 + (token % KV_PAGE_TOKENS) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_page_has_two_owners_and_none_is_lost(sizes in prop::collection::vec((1usize..300, any::<bool>()), 1..60)) {
            let mut allocator = PageAllocator::new(20);
            let mut owned: Vec<PageTable> = Vec::new();
            for (tokens, release) in sizes {
                if release && !owned.is_empty() {
                    allocator.release(owned.remove(tokens % owned.len()));
                }
                let free = allocator.free_pages();
                match allocator.allocate(tokens) {
                    Some(table) => {
                        prop_assert_eq!(table.pages().len(), tokens.div_ceil(KV_PAGE_TOKENS));
                        owned.push(table);
                    }
                    None => prop_assert!(free < tokens.div_ceil(KV_PAGE_TOKENS)),
                }
                let mut all: Vec<u32> = owned.iter().flat_map(|t| t.pages()).chain(&allocator.free).copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..20).collect::<Vec<u32>>());
            }
        }
    }

    #[test]
    fn slots_follow_the_pages_of_the_sequence() {
        let mut allocator = PageAllocator::new(4);
        let first = allocator.allocate(65).unwrap();
        assert_eq!(first.pages(), [0, 1]);
        let second = allocator.allocate(128).unwrap();
        assert_eq!((second.slot(0), second.slot(64), second.slot(127)), (128, 192, 255));
        assert_eq!(allocator.allocate(1), None);
    }
}
