//! paged_attn: attention of one new token per sequence. The pages of these tests serve `paged_prefill.rs` as well.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{PagedAttention, SPLIT_TOKENS, Sequence, partials_bytes};
use qwenvl::kernels::cuda::linear::Kv;
use qwenvl_graph::op::Heads;

use crate::common::rng::Rng;
use crate::gpu::*;
use crate::softmax::{assert_close, attention};

pub const PAGE: usize = 64;
pub const D: usize = 128;

/// Pages of one layer, poison where no token is, and a shuffled table.
pub struct Pool {
    pub kv_heads: usize,
    pub data: Vec<u16>,
    pub table: Vec<u32>,
    /// First table entry and keys of each sequence.
    pub sequences: Vec<(usize, usize)>,
    /// `[sequence][kv_head][token]`.
    keys: Vec<Vec<Vec<Vec<f64>>>>,
    values: Vec<Vec<Vec<Vec<f64>>>>,
    /// Elements of a page: more than the layer has, as if layers lay side by side.
    stride: usize,
}

impl Pool {
    pub fn new(rng: &mut Rng, half: Half, lengths: &[usize], kv_heads: usize) -> Pool {
        let n_pages: usize = lengths.iter().map(|n| n.div_ceil(PAGE)).sum();
        let mut free: Vec<u32> = (0..n_pages as u32 + 3).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, rng.below(i + 1));
        }
        let stride = 2 * kv_heads * PAGE * D + 256;
        let mut pool = Pool {
            kv_heads,
            data: vec![POISON; free.len() * stride],
            table: vec![u32::MAX; 2],
            sequences: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            stride,
        };
        for &n in lengths {
            pool.sequences.push((pool.table.len(), n));
            let pages: Vec<u32> = (0..n.div_ceil(PAGE)).map(|_| free.pop().unwrap()).collect();
            for part in 0..2 {
                let mut heads = Vec::new();
                for head in 0..kv_heads {
                    let mut tokens = Vec::new();
                    for token in 0..n {
                        let row = encode(half, &rng.normals(D));
                        let page = pages[token / PAGE] as usize;
                        let at = page * stride + ((part * kv_heads + head) * PAGE + token % PAGE) * D;
                        pool.data[at..at + D].copy_from_slice(&row);
                        tokens.push(values(half, &row));
                    }
                    heads.push(tokens);
                }
                if part == 0 { &mut pool.keys } else { &mut pool.values }.push(heads);
            }
            pool.table.extend(pages);
            pool.table.push(u32::MAX);
        }
        pool
    }

    pub fn kv(&self, data: &Buffer<u16>, group: usize) -> Kv {
        let heads = Heads { n_heads: self.kv_heads * group, n_kv_heads: self.kv_heads, head_dim: D };
        Kv { pages: data.at, page_stride: self.stride as u64, heads }
    }

    /// Poison in place of what a sequence has from token `from` on, as before it was written.
    pub fn forget(&self, data: &mut [u16], sequence: usize, from: usize) {
        let (first_page, n) = self.sequences[sequence];
        for token in from..n {
            let page = self.table[first_page + token / PAGE] as usize;
            for row in 0..2 * self.kv_heads {
                data[page * self.stride + (row * PAGE + token % PAGE) * D..][..D].fill(POISON);
            }
        }
    }

    /// The result for a token that sees `seen` keys of a sequence.
    pub fn expect(&self, u: f64, sequence: usize, kv_head: usize, q: &[f64], seen: usize) -> Vec<(f64, f64)> {
        let keys: Vec<&[f64]> = self.keys[sequence][kv_head][..seen].iter().map(Vec::as_slice).collect();
        let values: Vec<&[f64]> = self.values[sequence][kv_head][..seen].iter().map(Vec::as_slice).collect();
        attention(u, q, &keys, &values)
    }
}

/// Decode attention of the named sequences of a pool, one row each, then of one that is empty. Twice, so that the
/// counters are seen to return to zero.
fn run_decode(
    half: Half,
    pool: &Pool,
    members: &[usize],
    group: usize,
    splits: usize,
    q: &[u16],
) -> Vec<u16> {
    let (n, width) = (members.len() + 1, pool.kv_heads * group * D);
    let mut sequences: Vec<Sequence> = members
        .iter()
        .map(|&m| {
            let (pages, keys) = pool.sequences[m];
            Sequence { first: 0, rows: 1, past: keys as u32 - 1, pages: pages as u32 }
        })
        .collect();
    sequences.push(Sequence::default());
    let heads = pool.kv_heads * group;
    let max_keys = members.iter().map(|&m| pool.sequences[m].1).max().unwrap() + 5 * SPLIT_TOKENS;
    let floats = partials_bytes(n, heads, max_keys, splits) / 4;
    let mut rows = q.to_vec();
    rows.extend(vec![POISON; width]);
    let (q, out) = (Buffer::of(&rows), Buffer::<u16>::poisoned(n * width));
    let (data, table) = (Buffer::of(&pool.data), Buffer::of(&pool.table));
    let (partials, arrivals) = (Buffer::<f32>::scratch(floats), Buffer::<u32>::zeroed(n * pool.kv_heads));
    let sequences = words(&sequences);
    let call = PagedAttention {
        half,
        q: q.at,
        out: out.at,
        kv: pool.kv(&data, group),
        sequences: sequences.at,
        n_seqs: n,
        page_table: table.at,
        max_keys,
        max_splits: splits,
        partials: partials.at,
        arrivals: arrivals.at,
    };
    let mut first = Vec::new();
    for _ in 0..2 {
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { gpu().kernels.paged_attention(&stream(), &call) }.unwrap();
        let out = out.read();
        assert!(arrivals.read().iter().all(|&n| n == 0), "counters return to zero");
        assert!(out[members.len() * width..].iter().all(|&x| x == 0), "no sequence, no result");
        if first.is_empty() {
            first = out;
        } else {
            assert_eq!(first, out, "the second launch");
        }
    }
    first
}

#[test]
fn paged_attn_is_within_its_bound_for_every_length_and_group() {
    let mut rng = Rng(4);
    // The last has more splits than lanes.
    let lengths = [1, 63, 64, 65, 255, 256, 257, 1000, 4097, 9000];
    for (half, group, kv_heads, splits) in [
        (Half::BF16, 8, 1, 27),
        (Half::BF16, 6, 2, 64),
        (Half::BF16, 7, 1, 4),
        (Half::F16, 2, 1, 1),
        (Half::F16, 7, 1, 13),
        (Half::F16, 1, 2, 2),
    ] {
        let pool = Pool::new(&mut rng, half, &lengths, kv_heads);
        let width = kv_heads * group * D;
        let q = encode(half, &rng.normals(lengths.len() * width));
        let members: Vec<usize> = (0..lengths.len()).collect();
        let out = run_decode(half, &pool, &members, group, splits, &q);
        let (q, found) = (values(half, &q), values(half, &out));
        for (m, &length) in lengths.iter().enumerate() {
            for head in 0..kv_heads * group {
                let at = m * width + head * D;
                let expected = pool.expect(roundoff(half), m, head / group, &q[at..at + D], length);
                let what = format!("{half:?}, group {group}, {splits} splits, {length} keys, head {head}");
                assert_close(&what, &found[at..at + D], &expected);
            }
        }
    }
}

#[test]
fn paged_attn_takes_scores_of_ten_thousand() {
    let mut rng = Rng(9);
    let (lengths, group) = ([1000usize, 5000], 8);
    for (half, splits) in [(Half::BF16, 27), (Half::BF16, 5), (Half::F16, 64)] {
        let pool = Pool::new(&mut rng, half, &lengths, 1);
        let width = group * D;
        // A score is about normal, times this.
        let q: Vec<f32> = rng.normals(lengths.len() * width).iter().map(|x| x * 5000.0).collect();
        let q = encode(half, &q);
        let out = run_decode(half, &pool, &[0, 1], group, splits, &q);
        let (q, found) = (values(half, &q), values(half, &out));
        for (m, &length) in lengths.iter().enumerate() {
            for head in 0..group {
                let at = m * width + head * D;
                let expected = pool.expect(roundoff(half), m, 0, &q[at..at + D], length);
                let what = format!("{half:?}, {splits} splits, {length} keys, head {head}");
                assert_close(&what, &found[at..at + D], &expected);
            }
        }
    }
}

#[test]
fn paged_attn_gives_a_sequence_the_bits_it_has_alone_in_batches_of_two_to_eight() {
    let mut rng = Rng(5);
    let lengths = [300, 1, 65, 4500, 257, 64, 128, 700];
    let (group, width) = (7, 7 * D);
    for (half, splits) in [(Half::BF16, 27), (Half::F16, 5)] {
        let pool = Pool::new(&mut rng, half, &lengths, 1);
        let q = encode(half, &rng.normals(lengths.len() * width));
        let mut alone = Vec::new();
        for m in 0..lengths.len() {
            let rows = &q[m * width..(m + 1) * width];
            alone.extend_from_slice(&run_decode(half, &pool, &[m], group, splits, rows)[..width]);
        }
        let members: Vec<usize> = (0..lengths.len()).collect();
        for n in 2..=lengths.len() {
            let together = run_decode(half, &pool, &members[..n], group, splits, &q[..n * width]);
            assert!(together[..n * width] == alone[..n * width], "{half:?}, {n} sequences");
        }
    }
}

#[test]
fn paged_attn_takes_more_splits_than_blocks() {
    let mut rng = Rng(8);
    let (mut lengths, group) = (vec![3; 60], 2);
    lengths[30] = 5000;
    let pool = Pool::new(&mut rng, Half::BF16, &lengths, 2);
    let width = 2 * group * D;
    let q = encode(Half::BF16, &rng.normals(lengths.len() * width));
    let members: Vec<usize> = (0..lengths.len()).collect();
    for splits in [64, 9] {
        let together = run_decode(Half::BF16, &pool, &members, group, splits, &q);
        for m in [29, 30] {
            let rows = m * width..(m + 1) * width;
            let alone = run_decode(Half::BF16, &pool, &[m], group, splits, &q[rows.clone()]);
            assert_eq!(alone[..width], together[rows], "{} keys, {splits} splits", lengths[m]);
        }
    }
}
