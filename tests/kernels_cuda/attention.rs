//! flash_attn (vision tower, prefill) and paged_attn (decode).

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{
    self, FlashAttention, Keys, PagedAttention, Sequence, arrivals_len, partials_bytes,
};
use qwenvl::kernels::cuda::linear::Kv;
use qwenvl_graph::op::Heads;

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::common::tolerance::F32_EPS;
use crate::gpu::*;

/// Scores err by a chain of d, weights by e to that and by their rounding to T, sums by a chain of the keys, the result
/// by its rounding. `size` bounds the values.
#[allow(clippy::too_many_arguments)]
fn check(
    half: Half,
    found: &[u16],
    expected: &[f64],
    d: usize,
    keys: usize,
    score: f64,
    size: f64,
    what: &str,
) {
    let (relative, absolute) = rounding(half);
    let weights = relative + absolute + 4.0 * (2.0 * (d as f64) * score + keys as f64 + 64.0) * F32_EPS;
    for (c, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (value(half, *found) - expected).abs();
        let bound = weights * size + relative * expected.abs() + absolute;
        assert!(off <= bound, "{what} channel {c}: {} {expected}: {off:e} > {bound:e}", value(half, *found));
    }
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |a, b| a.max(b.abs()))
}

const D: usize = 80;

fn vision(half: Half, qkv: &[u16], lengths: &[usize], heads: usize) -> Vec<u16> {
    let mut sequences = Vec::new();
    let mut first = 0;
    for &rows in lengths {
        sequences.push(Sequence { first, rows: rows as u32, past: 0, pages: 0 });
        first += rows as u32;
    }
    let tiles = attention::tiles(&sequences, heads, 1);
    let (qkv, at, tiles_at) =
        (Buffer::of(qkv), Buffer::of(&words(&sequences)), Buffer::of(&tile_words(&tiles)));
    let out = Buffer::poisoned(first as usize * heads * D * 2);
    let stream = gpu().stream();
    let a = FlashAttention {
        half,
        keys: Keys::Vision { qkv: qkv.at, n_heads: heads },
        sequences: at.at,
        tiles: tiles_at.at,
        n_tiles: tiles.len(),
        out: out.at,
    };
    // SAFETY: buffers are as long as the shapes say and live until the stream is done.
    unsafe { gpu().kernels.flash_attention(&stream, &a) }.unwrap();
    out.read(&stream)
}

fn words(sequences: &[Sequence]) -> Vec<u32> {
    sequences.iter().flat_map(|s| [s.first, s.rows, s.past, s.pages]).collect()
}

fn tile_words(tiles: &[attention::Tile]) -> Vec<u32> {
    tiles.iter().flat_map(|t| [t.sequence, t.head, t.first_row]).collect()
}

#[test]
fn vision_attention_matches_float64_and_never_crosses_sequences() {
    let mut rng = Rng(21);
    let heads = 2;
    let lengths = [1usize, 4, 63, 64, 65, 127, 129, 200];
    let total: usize = lengths.iter().sum();
    for half in HALVES {
        let qkv = normals(&mut rng, half, total * 3 * heads * D);
        let out = vision(half, &qkv, &lengths, heads);
        let part = |row: usize, third: usize, head: usize| {
            values(half, &qkv[row * 3 * heads * D + third * heads * D + head * D..][..D])
        };
        let mut first = 0;
        for len in lengths {
            for head in 0..heads {
                let keys: Vec<_> = (first..first + len).map(|row| part(row, 1, head)).collect();
                let values: Vec<_> = (first..first + len).map(|row| part(row, 2, head)).collect();
                let size = values.iter().map(|v| largest(v)).fold(0.0, f64::max);
                for row in first..first + len {
                    let expected = r::attention(&part(row, 0, head), &keys, &values);
                    let found = &out[row * heads * D + head * D..][..D];
                    check(half, found, &expected, D, len, 8.0, size, &format!("{half:?} row {row} of {len}"));
                }
            }
            // Alone, and beside sequences of NaN: the same bits.
            let alone =
                vision(half, &qkv[first * 3 * heads * D..(first + len) * 3 * heads * D], &[len], heads);
            assert_eq!(out[first * heads * D..(first + len) * heads * D], alone, "{half:?} {len} alone");
            first += len;
        }
        let mut dirty = qkv.clone();
        dirty[..69 * 3 * heads * D].fill(0xffff);
        let beside = vision(half, &dirty, &lengths, heads);
        assert_eq!(beside[132 * heads * D..], out[132 * heads * D..], "neighbours of NaN");
    }
}

#[test]
fn attention_survives_large_scores_and_equal_ones() {
    let heads = 1;
    for half in HALVES {
        for (query, key) in [(0.0f32, 1.0f32), (100.0, 100.0), (-100.0, 100.0)] {
            let (rows, width) = (70, 3 * D);
            let mut qkv = vec![0u16; rows * width];
            let mut rng = Rng(22);
            for row in 0..rows {
                for c in 0..D {
                    qkv[row * width + c] = round_to(half, query);
                    qkv[row * width + D + c] = round_to(half, key);
                    qkv[row * width + 2 * D + c] = round_to(half, rng.normal());
                }
            }
            let out = vision(half, &qkv, &[rows], heads);
            for c in 0..D {
                let column = (0..rows).map(|row| value(half, qkv[row * width + 2 * D + c]));
                let mean = column.sum::<f64>() / rows as f64;
                for row in 0..rows {
                    check(half, &out[row * D + c..][..1], &[mean], D, rows, 8.0, 4.0, "all keys alike");
                }
            }
        }
    }
}

/// One layer of pages, written by the host.
struct Pages {
    data: Vec<u16>,
    heads: Heads,
}

impl Pages {
    fn new(pages: usize, heads: Heads) -> Pages {
        Pages { data: vec![0xffff; pages * 2 * heads.n_kv_heads * 64 * 128], heads }
    }

    fn write(&mut self, page: u32, offset: usize, keys: &[u16], values: &[u16]) {
        let n = self.heads.n_kv_heads;
        for head in 0..n {
            for (which, x) in [keys, values].into_iter().enumerate() {
                let at = (((page as usize * 2 + which) * n + head) * 64 + offset) * 128;
                self.data[at..at + 128].copy_from_slice(&x[head * 128..][..128]);
            }
        }
    }

    fn kv(&self, at: &Buffer) -> Kv {
        let stride = 2 * self.heads.n_kv_heads * 64 * 128;
        Kv { pages: at.at, page_stride: stride as u64, heads: self.heads }
    }
}

/// Sequences of some lengths, their pages shuffled, unused slots NaN.
struct Case {
    half: Half,
    heads: Heads,
    pages: Pages,
    table: Vec<u32>,
    first_page: Vec<u32>,
    lengths: Vec<usize>,
    /// Of each sequence: q, k, v.
    rows: Vec<[Vec<u16>; 3]>,
}

impl Case {
    fn random(rng: &mut Rng, half: Half, n_heads: usize, n_kv_heads: usize, lengths: &[usize]) -> Case {
        let heads = Heads { n_heads, n_kv_heads, head_dim: 128 };
        let count: usize = lengths.iter().map(|l| l.div_ceil(64)).sum();
        let mut free: Vec<u32> = (0..count as u32 + 2).collect();
        let mut pages = Pages::new(count + 2, heads);
        let (mut table, mut first_page, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for &len in lengths {
            first_page.push(table.len() as u32);
            let width = n_kv_heads * 128;
            let [q, k, v] = [n_heads * 128, width, width].map(|w| normals(rng, half, len * w));
            for t in 0..len {
                if t % 64 == 0 {
                    table.push(free.swap_remove(rng.below(free.len())));
                }
                let (keys, values) = (&k[t * width..][..width], &v[t * width..][..width]);
                pages.write(*table.last().unwrap(), t % 64, keys, values);
            }
            rows.push([q, k, v]);
        }
        Case { half, heads, pages, table, first_page, lengths: lengths.to_vec(), rows }
    }

    fn check(&self, sequence: usize, t: usize, found: &[u16], what: &str) {
        let [q, k, v] = &self.rows[sequence];
        let (n, n_kv) = (self.heads.n_heads, self.heads.n_kv_heads);
        for head in 0..n {
            let kv = head / (n / n_kv);
            let rows = |x: &[u16]| -> Vec<Vec<f64>> {
                (0..=t).map(|i| values(self.half, &x[(i * n_kv + kv) * 128..][..128])).collect()
            };
            let values_of = rows(v);
            let size = values_of.iter().map(|v| largest(v)).fold(0.0, f64::max);
            let expected =
                r::attention(&values(self.half, &q[(t * n + head) * 128..][..128]), &rows(k), &values_of);
            check(
                self.half,
                &found[head * 128..][..128],
                &expected,
                128,
                t + 1,
                8.0,
                size,
                &format!("{what} head {head}"),
            );
        }
    }

    /// Prefill of rows `from..to` of some sequences.
    fn prefill(&self, parts: &[(usize, usize, usize)]) -> Vec<u16> {
        let width = self.heads.n_heads * 128;
        let (mut q, mut sequences) = (Vec::<u16>::new(), Vec::new());
        for &(sequence, from, to) in parts {
            sequences.push(Sequence {
                first: (q.len() / width) as u32,
                rows: (to - from) as u32,
                past: from as u32,
                pages: self.first_page[sequence],
            });
            q.extend(&self.rows[sequence][0][from * width..to * width]);
        }
        let tiles =
            attention::tiles(&sequences, self.heads.n_kv_heads, self.heads.n_heads / self.heads.n_kv_heads);
        let out = Buffer::poisoned(q.len() * 2);
        let (q, kv, table) = (Buffer::of(&q), Buffer::of(&self.pages.data), Buffer::of(&self.table));
        let (at, tiles_at) = (Buffer::of(&words(&sequences)), Buffer::of(&tile_words(&tiles)));
        let stream = gpu().stream();
        let a = FlashAttention {
            half: self.half,
            keys: Keys::Paged { q: q.at, kv: self.pages.kv(&kv), page_table: table.at },
            sequences: at.at,
            tiles: tiles_at.at,
            n_tiles: tiles.len(),
            out: out.at,
        };
        // SAFETY: buffers are as long as the shapes say and live until the stream is done.
        unsafe { gpu().kernels.flash_attention(&stream, &a) }.unwrap();
        out.read(&stream)
    }

    /// Decode of the last token of some sequences; `None` is padding, whose result is zero.
    fn decode(&self, which: &[Option<usize>], chunk_tokens: usize, max_keys: usize) -> Vec<u16> {
        let (n, n_kv) = (self.heads.n_heads, self.heads.n_kv_heads);
        let width = n * 128;
        let (mut q, mut sequences) = (Vec::new(), Vec::new());
        for (row, sequence) in which.iter().enumerate() {
            let mut to = Sequence { first: row as u32, ..Default::default() };
            match sequence {
                Some(s) => {
                    let last = self.lengths[*s] - 1;
                    (to.rows, to.past, to.pages) = (1, last as u32, self.first_page[*s]);
                    q.extend(&self.rows[*s][0][last * width..(last + 1) * width]);
                }
                None => q.extend(vec![0xffff; width]),
            }
            sequences.push(to);
        }
        let out = Buffer::poisoned(q.len() * 2);
        let (q, kv, table) = (Buffer::of(&q), Buffer::of(&self.pages.data), Buffer::of(&self.table));
        let at = Buffer::of(&words(&sequences));
        let partials = Buffer::poisoned(partials_bytes(which.len(), n, max_keys, chunk_tokens));
        let arrivals = Buffer::zeroed(4 * arrivals_len(which.len(), n_kv, max_keys, chunk_tokens));
        let stream = gpu().stream();
        let a = PagedAttention {
            half: self.half,
            q: q.at,
            out: out.at,
            kv: self.pages.kv(&kv),
            sequences: at.at,
            n_seqs: which.len(),
            page_table: table.at,
            max_keys,
            chunk_tokens,
            partials: partials.at,
            arrivals: arrivals.at,
        };
        // SAFETY: buffers are as long as the shapes say and live until the stream is done.
        unsafe { gpu().kernels.paged_attention(&stream, &a) }.unwrap();
        assert!(arrivals.read::<u32>(&stream).iter().all(|a| *a == 0), "arrivals are left");
        out.read(&stream)
    }
}

#[test]
fn prefill_attention_matches_float64_and_every_chunking_has_the_same_bits() {
    let mut rng = Rng(23);
    for half in HALVES {
        for (n_heads, n_kv_heads) in [(2, 1), (6, 1), (14, 2), (8, 1)] {
            let width = n_heads * 128;
            let case = Case::random(&mut rng, half, n_heads, n_kv_heads, &[150, 1, 64]);
            let whole = case.prefill(&[(0, 0, 150), (1, 0, 1), (2, 0, 64)]);
            let what = format!("{half:?} {n_heads}/{n_kv_heads}");
            for t in [0, 1, 62, 63, 64, 127, 128, 149] {
                case.check(0, t, &whole[t * width..][..width], &format!("{what} token {t}"));
            }
            case.check(1, 0, &whole[150 * width..][..width], &what);
            case.check(2, 63, &whole[(151 + 63) * width..][..width], &what);
            for chunk in [1, 7, 63, 64, 65, 100] {
                let mut done = 0;
                while done < 150 {
                    let to = (done + chunk).min(150);
                    // Beside another sequence.
                    let out = case.prefill(&[(2, 5, 9), (0, done, to)]);
                    assert_eq!(out[4 * width..], whole[done * width..to * width], "{what} {done}..{to}");
                    done = if chunk == 1 && to > 3 && to < 140 { 140 } else { to };
                }
            }
        }
    }
}

#[test]
fn decode_attention_matches_float64_at_every_boundary() {
    let mut rng = Rng(24);
    let lengths = [1, 63, 64, 65, 255, 256, 257, 300];
    for half in HALVES {
        for (n_heads, n_kv_heads) in [(2, 1), (6, 1), (14, 2), (8, 1)] {
            let width = n_heads * 128;
            let case = Case::random(&mut rng, half, n_heads, n_kv_heads, &lengths);
            let mut which: Vec<Option<usize>> = (0..lengths.len()).map(Some).collect();
            which.insert(3, None);
            for chunk in [128, 256] {
                let all = case.decode(&which, chunk, 320);
                for (row, sequence) in which.iter().enumerate() {
                    let found = &all[row * width..(row + 1) * width];
                    let Some(s) = *sequence else {
                        assert!(found.iter().all(|v| *v == 0), "a padded row is zero");
                        continue;
                    };
                    let what =
                        format!("{half:?} {n_heads}/{n_kv_heads} {} keys, chunks of {chunk}", lengths[s]);
                    case.check(s, lengths[s] - 1, found, &what);
                    // Alone, and in a grid for longer contexts: the same bits.
                    assert_eq!(case.decode(&[Some(s)], chunk, 2048), found, "{what}, alone");
                }
            }
        }
    }
}

#[test]
fn decode_attention_joins_two_levels_of_chunks() {
    let mut rng = Rng(25);
    // 128 · 16 keys are one super-chunk.
    let lengths = [2048, 2049, 2500];
    let case = Case::random(&mut rng, Half::BF16, 2, 1, &lengths);
    let all = case.decode(&[Some(0), Some(1), Some(2)], 128, 2600);
    for (s, len) in lengths.iter().enumerate() {
        let found = &all[s * 256..(s + 1) * 256];
        case.check(s, len - 1, found, &format!("{len} keys"));
        assert_eq!(case.decode(&[Some(s)], 128, 2600), found);
    }
}
