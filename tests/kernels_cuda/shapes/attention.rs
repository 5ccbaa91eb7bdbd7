//! Attention of answers, prompts and pictures.

use qwenvl::kernels::cuda::Address;
use qwenvl::kernels::cuda::attention::{
    self, FlashAttention, Keys, PagedAttention, Sequence, TileList, partials_bytes,
};
use qwenvl_graph::cuda::decode_splits;

use super::{BF16, Case, Model, Shapes, memory, of, pages, zeroed};

impl Shapes<'_> {
    pub(super) fn decode_attention(&mut self, model: &Model, n: usize, keys: usize) {
        let heads = model.heads;
        let width = heads.n_heads * 128;
        let bytes = (n * keys * heads.n_kv_heads * 512 + 2 * n * width * 2) as f64;
        let case = Case {
            name: format!("decode {} attention {n} x {keys} keys", model.name),
            bytes,
            flops: 4.0 * (n * keys * width) as f64,
            ..Case::default()
        };
        self.case(case, |kernels| {
            let max_splits = decode_splits(heads.n_kv_heads, kernels.sm_count() as usize);
            let (kv, page_table) = pages(heads, n * keys);
            let list: Vec<Sequence> = (0..n)
                .map(|i| Sequence {
                    first: i as u32,
                    rows: 1,
                    past: keys as u32 - 1,
                    pages: (i * keys / 64) as u32,
                })
                .collect();
            let a = PagedAttention {
                half: BF16,
                q: zeroed(n * width * 2),
                out: memory(n * width * 2),
                kv,
                sequences: sequences(&list),
                n_seqs: n,
                page_table,
                max_keys: keys,
                max_splits,
                partials: memory(partials_bytes(n, heads.n_heads, keys, max_splits)),
                arrivals: zeroed(4 * n * heads.n_kv_heads),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.paged_attention(stream, &a) }.expect("launch"))
        });
    }

    pub(super) fn prefill_attention(&mut self, model: &Model, tokens: usize, past: usize) {
        let heads = model.heads;
        let width = heads.n_heads * 128;
        let pairs = tokens as f64 * (past as f64 + (tokens as f64 + 1.0) / 2.0);
        let flops = 4.0 * width as f64 * pairs;
        let sequence = [Sequence { first: 0, rows: tokens as u32, past: past as u32, pages: 0 }];
        let (kv_heads, group) = (heads.n_kv_heads, heads.n_heads / heads.n_kv_heads);
        let multiprocessors = self.kernels.sm_count() as usize;
        let tile_rows = attention::prefill_tile_rows(&sequence, kv_heads, group, multiprocessors);
        let mut list = TileList::default();
        list.list(&sequence, kv_heads, group, tile_rows);
        list.link(group, multiprocessors);
        let case = Case {
            name: format!("prefill {} attention {tokens} after {past}", model.name),
            bytes: (tokens * width * 4 + (past + tokens) * heads.n_kv_heads * 512) as f64,
            flops,
            sample: sample_of_attention(flops),
            imbalance: Some(list.imbalance()),
            ..Case::default()
        };
        self.case(case, |kernels| {
            let (kv, page_table) = pages(heads, past + tokens);
            let a = FlashAttention {
                half: BF16,
                keys: Keys::Paged { q: memory(tokens * width * 2), kv, page_table },
                tiles: tiles(&list),
                n_tiles: list.tiles.len(),
                tile_rows,
                out: memory(tokens * width * 2),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.flash_attention(stream, &a) }.expect("launch"))
        });
    }

    pub(super) fn vision_attention(&mut self, patches: usize) {
        let flops = 4.0 * 1280.0 * (patches as f64).powi(2);
        let case = Case {
            name: format!("vision attention {patches}"),
            bytes: (patches * 5120 * 2) as f64,
            flops,
            sample: sample_of_attention(flops),
            ..Case::default()
        };
        self.case(case, |kernels| {
            let sequence = [Sequence { first: 0, rows: patches as u32, past: 0, pages: 0 }];
            let tile_rows = attention::vision_tile_rows(&sequence, 16, kernels.sm_count() as usize);
            let mut list = TileList::default();
            list.list(&sequence, 16, 1, tile_rows);
            let a = FlashAttention {
                half: BF16,
                keys: Keys::Vision { qkv: memory(patches * 3840 * 2), n_heads: 16 },
                tiles: tiles(&list),
                n_tiles: list.tiles.len(),
                tile_rows,
                out: memory(patches * 1280 * 2),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.flash_attention(stream, &a) }.expect("launch"))
        });
    }
}

/// Blocks of prefill attention differ, so that few of them say less than those of other kernels: as many as can be.
pub(super) fn sample_of_attention(flops: f64) -> Option<&'static str> {
    if flops < 1.3e10 {
        None
    } else if flops < 2e11 {
        Some("8")
    } else {
        Some("2")
    }
}

pub(super) fn sequences(s: &[Sequence]) -> Address {
    of(&s.iter().flat_map(|s| [s.first, s.rows, s.past, s.pages]).collect::<Vec<u32>>())
}

pub(super) fn tiles(list: &TileList) -> Address {
    let words = list.tiles.iter().flat_map(|t| {
        let s = t.sequence;
        [s.first, s.rows, s.past, s.pages, t.head, t.first_row, t.next, 0]
    });
    of(&words.collect::<Vec<u32>>())
}
