//! The attention kernels of CUDA against plain float64: ragged lengths, poisoned neighbours, shuffled pages; and
//! the promise that bits depend on nothing but the sequence.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/cuda.rs"]
mod cuda;

use common::rng::Rng;
use cuda::{HALVES, POISON, Rig, decode, encode, roundoff};
use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{
    self, FlashAttention, Keys, PagedAttention, Sequence, arrivals_len, partials_bytes,
};
use qwenvl::kernels::cuda::linear::Kv;
use qwenvl_graph::op::Heads;

const PAGE: usize = 64;
const D: usize = 128;

/// One query over its keys in float64, and how far a kernel may be from it.
///
/// The kernel rounds the result and each weight to 16 bits (`u`); a weight also carries the error of its score, which
/// is an f32 sum of `d` products (twice the roundoff for each: tensor cores truncate), of the scaled exponent and of
/// 2^x; a relative error e of the weights moves their mean by at most 2e of the mean of |v|; the sum over the keys is
/// in f32.
fn attention(u: f64, q: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<(f64, f64)> {
    const F32: f64 = 1.0 / (1u64 << 24) as f64;
    let scale = 1.0 / (q.len() as f64).sqrt();
    let mut scores = Vec::with_capacity(keys.len());
    let (mut size, mut largest) = (0.0f64, f64::NEG_INFINITY);
    for key in keys {
        let products = q.iter().zip(*key).map(|(a, b)| a * b);
        let (sum, abs) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
        scores.push(sum * scale);
        size = size.max(abs * scale);
        largest = largest.max(sum * scale);
    }
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let weight_error = size * (q.len() + 8) as f64 * 2.0 * F32 + 16.0 * F32;
    let relative = u + 2.0 * weight_error + (keys.len() + 16) as f64 * 2.0 * F32;
    (0..values[0].len())
        .map(|c| {
            let parts = weights.iter().zip(values).map(|(w, v)| w * v[c] / total);
            let (sum, abs) = parts.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
            (sum, u * sum.abs() + (1.0 + u) * relative * abs + 1e-7)
        })
        .collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[(f64, f64)]) {
    for (i, (found, (value, bound))) in found.iter().zip(expected).enumerate() {
        let error = (found - value).abs();
        assert!(error <= *bound, "{what}, channel {i}: {found} is {error:e} from {value}, bound {bound:e}");
    }
}

// ---- the vision tower ----

const VISION_D: usize = 80;

/// Rows of q, k and v side by side, poison between the sequences.
struct VisionCase {
    n_heads: usize,
    sequences: Vec<Sequence>,
    /// `[rows, 3 · n_heads · 80]`.
    qkv: Vec<u16>,
    rows: usize,
}

impl VisionCase {
    fn new(rng: &mut Rng, half: Half, lengths: &[usize], n_heads: usize, size: f32) -> VisionCase {
        let (gap, width) = (3, 3 * n_heads * VISION_D);
        let mut case =
            VisionCase { n_heads, sequences: Vec::new(), qkv: vec![POISON; gap * width], rows: gap };
        for &rows in lengths {
            case.sequences.push(Sequence { first: case.rows as u32, rows: rows as u32, past: 0, pages: 0 });
            let mut numbers = rng.normals(rows * width);
            for row in numbers.chunks_exact_mut(width) {
                row[..2 * width / 3].iter_mut().for_each(|x| *x *= size);
            }
            case.qkv.extend(encode(half, &numbers));
            case.qkv.extend(vec![POISON; gap * width]);
            case.rows += rows + gap;
        }
        case
    }

    fn run(&self, rig: &Rig, half: Half, sequences: &[Sequence]) -> Vec<u16> {
        let tiles = attention::tiles(sequences, self.n_heads, 1);
        let (qkv, out) = (rig.upload(&self.qkv), rig.filled(POISON, self.rows * self.n_heads * VISION_D));
        let (sequences, device_tiles) = (upload(rig, sequences), upload(rig, &tiles));
        let call = FlashAttention {
            half,
            keys: Keys::Vision { qkv: qkv.address(), n_heads: self.n_heads },
            sequences: sequences.address(),
            tiles: device_tiles.address(),
            n_tiles: tiles.len(),
            out: out.address(),
        };
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { rig.kernels.flash_attention(&rig.stream, &call) }.unwrap();
        out.read()
    }
}

/// Structs of `abi.h` as words.
fn upload<T: Copy>(rig: &Rig, data: &[T]) -> cuda::Buffer<u32> {
    assert_eq!(size_of::<T>() % 4, 0);
    // SAFETY: the structs are of u32 only, without padding.
    let words = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u32>(), size_of_val(data) / 4) };
    rig.upload(words)
}

fn check_vision(what: &str, half: Half, case: &VisionCase, out: &[u16]) {
    let (qkv, found) = (decode(half, &case.qkv), decode(half, out));
    let width = case.n_heads * VISION_D;
    let mut written = vec![false; case.rows];
    for s in &case.sequences {
        let rows = s.first as usize..(s.first + s.rows) as usize;
        for head in 0..case.n_heads {
            let at = |row: usize, part: usize| &qkv[(row * 3 + part) * width + head * VISION_D..][..VISION_D];
            let keys: Vec<&[f64]> = rows.clone().map(|row| at(row, 1)).collect();
            let values: Vec<&[f64]> = rows.clone().map(|row| at(row, 2)).collect();
            for row in rows.clone() {
                written[row] = true;
                let expected = attention(roundoff(half), at(row, 0), &keys, &values);
                let found = &found[row * width + head * VISION_D..][..VISION_D];
                assert_close(
                    &format!("{what} {half:?}, {} rows, row {row}, head {head}", s.rows),
                    found,
                    &expected,
                );
            }
        }
    }
    for (row, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
        assert!(
            out[row * width..(row + 1) * width].iter().all(|x| *x == POISON),
            "{what}: row {row} is nobody's"
        );
    }
}

#[test]
fn flash_attn_takes_ragged_sequences_side_by_side() {
    let rig = Rig::new();
    let mut rng = Rng(1);
    for half in HALVES {
        let case = VisionCase::new(&mut rng, half, &[1, 4, 63, 64, 65, 127, 129], 2, 1.0);
        let out = case.run(&rig, half, &case.sequences);
        check_vision("ragged", half, &case, &out);
    }
}

#[test]
fn flash_attn_takes_scores_of_ten_thousand() {
    let rig = Rig::new();
    let mut rng = Rng(2);
    for half in HALVES {
        // q · k of normal numbers has a deviation of sqrt(80), which the scale takes to 1; 70² makes it 5,000.
        let case = VisionCase::new(&mut rng, half, &[65, 130], 1, 70.0);
        let out = case.run(&rig, half, &case.sequences);
        check_vision("large", half, &case, &out);
    }
}

#[test]
fn flash_attn_gives_a_sequence_alone_the_bits_it_has_among_others() {
    let rig = Rig::new();
    let mut rng = Rng(3);
    for half in HALVES {
        let case = VisionCase::new(&mut rng, half, &[200, 65, 256, 3], 1, 1.0);
        let together = case.run(&rig, half, &case.sequences);
        for s in &case.sequences {
            let alone = case.run(&rig, half, &[*s]);
            let rows = s.first as usize * VISION_D..(s.first + s.rows) as usize * VISION_D;
            assert_eq!(alone[rows.clone()], together[rows], "{half:?}, {} rows", s.rows);
        }
    }
}

// ---- the decoder ----

/// Pages of one layer, poison where no token is, and a shuffled table.
struct Pool {
    kv_heads: usize,
    data: Vec<u16>,
    table: Vec<u32>,
    /// First table entry and keys of each sequence.
    sequences: Vec<(usize, usize)>,
    /// `[sequence][kv_head][token]`.
    keys: Vec<Vec<Vec<Vec<f64>>>>,
    values: Vec<Vec<Vec<Vec<f64>>>>,
    /// Elements of a page: more than the layer has, as if layers lay side by side.
    stride: usize,
}

impl Pool {
    fn new(rng: &mut Rng, half: Half, lengths: &[usize], kv_heads: usize) -> Pool {
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
                        tokens.push(decode(half, &row));
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

    fn kv(&self, data: &cuda::Buffer<u16>, group: usize) -> Kv {
        let heads = Heads { n_heads: self.kv_heads * group, n_kv_heads: self.kv_heads, head_dim: D };
        Kv { pages: data.address(), page_stride: self.stride as u64, heads }
    }

    /// Poison in place of what a sequence has from token `from` on, as before it was written.
    fn forget(&self, data: &mut [u16], sequence: usize, from: usize) {
        let (first_page, n) = self.sequences[sequence];
        for token in from..n {
            let page = self.table[first_page + token / PAGE] as usize;
            for row in 0..2 * self.kv_heads {
                data[page * self.stride + (row * PAGE + token % PAGE) * D..][..D].fill(POISON);
            }
        }
    }

    /// The result for a token that sees `seen` keys of a sequence.
    fn expect(&self, u: f64, sequence: usize, kv_head: usize, q: &[f64], seen: usize) -> Vec<(f64, f64)> {
        let keys: Vec<&[f64]> = self.keys[sequence][kv_head][..seen].iter().map(Vec::as_slice).collect();
        let values: Vec<&[f64]> = self.values[sequence][kv_head][..seen].iter().map(Vec::as_slice).collect();
        attention(u, q, &keys, &values)
    }
}

/// Decode attention of the named sequences of a pool, one row each, then of one that is empty. Twice, so that the
/// counters are seen to return to zero.
fn run_decode(
    rig: &Rig,
    half: Half,
    pool: &Pool,
    members: &[usize],
    group: usize,
    chunk: usize,
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
    let max_keys = members.iter().map(|&m| pool.sequences[m].1).max().unwrap() + 5 * chunk;
    let floats = partials_bytes(n, heads, max_keys, chunk) / 4;
    let counters = arrivals_len(n, pool.kv_heads, max_keys, chunk);
    let mut rows = q.to_vec();
    rows.extend(vec![POISON; width]);
    let (q, out) = (rig.upload(&rows), rig.filled(POISON, n * width));
    let (data, table) = (rig.upload(&pool.data), rig.upload(&pool.table));
    let (partials, arrivals) = (rig.filled(f32::NAN, floats), rig.filled(0u32, counters));
    let sequences = upload(rig, &sequences);
    let call = PagedAttention {
        half,
        q: q.address(),
        out: out.address(),
        kv: pool.kv(&data, group),
        sequences: sequences.address(),
        n_seqs: n,
        page_table: table.address(),
        max_keys,
        chunk_tokens: chunk,
        partials: partials.address(),
        arrivals: arrivals.address(),
    };
    let mut first = Vec::new();
    for _ in 0..2 {
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { rig.kernels.paged_attention(&rig.stream, &call) }.unwrap();
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
    let rig = Rig::new();
    let mut rng = Rng(4);
    let lengths = [1, 63, 64, 65, 255, 256, 257, 1000, 4097];
    for (half, group, kv_heads, chunk) in [
        (Half::BF16, 8, 1, 256),
        (Half::BF16, 6, 2, 128),
        (Half::BF16, 7, 1, 128),
        (Half::F16, 2, 1, 128),
        (Half::F16, 7, 1, 256),
        (Half::F16, 1, 2, 128),
    ] {
        let pool = Pool::new(&mut rng, half, &lengths, kv_heads);
        let width = kv_heads * group * D;
        let q = encode(half, &rng.normals(lengths.len() * width));
        let members: Vec<usize> = (0..lengths.len()).collect();
        let out = run_decode(&rig, half, &pool, &members, group, chunk, &q);
        let (q, found) = (decode(half, &q), decode(half, &out));
        for (m, &length) in lengths.iter().enumerate() {
            for head in 0..kv_heads * group {
                let at = m * width + head * D;
                let expected = pool.expect(roundoff(half), m, head / group, &q[at..at + D], length);
                let what = format!("{half:?}, group {group}, chunk {chunk}, {length} keys, head {head}");
                assert_close(&what, &found[at..at + D], &expected);
            }
        }
    }
}

#[test]
fn paged_attn_gives_a_sequence_alone_the_bits_it_has_in_a_batch() {
    let rig = Rig::new();
    let mut rng = Rng(5);
    let lengths = [300, 1, 65, 4500, 257];
    let (group, width) = (7, 7 * D);
    for (half, chunk) in [(Half::BF16, 256), (Half::F16, 128)] {
        let pool = Pool::new(&mut rng, half, &lengths, 1);
        let q = encode(half, &rng.normals(lengths.len() * width));
        let together = run_decode(&rig, half, &pool, &[0, 1, 2, 3, 4], group, chunk, &q);
        for (m, length) in lengths.iter().enumerate() {
            let rows = m * width..(m + 1) * width;
            let alone = run_decode(&rig, half, &pool, &[m], group, chunk, &q[rows.clone()]);
            assert_eq!(alone[..width], together[rows], "{half:?}, {length} keys");
        }
    }
}

#[test]
fn paged_attn_takes_more_chunks_than_blocks() {
    let rig = Rig::new();
    let mut rng = Rng(8);
    let (mut lengths, group) = (vec![3; 60], 2);
    lengths[30] = 2000;
    let pool = Pool::new(&mut rng, Half::BF16, &lengths, 2);
    let width = 2 * group * D;
    let q = encode(Half::BF16, &rng.normals(lengths.len() * width));
    let members: Vec<usize> = (0..lengths.len()).collect();
    let together = run_decode(&rig, Half::BF16, &pool, &members, group, 128, &q);
    for m in [29, 30] {
        let rows = m * width..(m + 1) * width;
        let alone = run_decode(&rig, Half::BF16, &pool, &[m], group, 128, &q[rows.clone()]);
        assert_eq!(alone[..width], together[rows], "{} keys", lengths[m]);
    }
}

/// Prefill attention of several sequences in one call. `members`: the sequence, its tokens before the call, and its
/// tokens in the call.
fn run_prefill(
    rig: &Rig,
    half: Half,
    pool: &Pool,
    members: &[(usize, usize, usize)],
    group: usize,
    q: &[Vec<u16>],
) -> Vec<Vec<u16>> {
    let width = pool.kv_heads * group * D;
    let (mut rows, mut sequences) = (vec![POISON; width], Vec::new());
    for &(m, past, n) in members {
        let first = (rows.len() / width) as u32;
        let pages = pool.sequences[m].0 as u32;
        sequences.push(Sequence { first, rows: n as u32, past: past as u32, pages });
        rows.extend_from_slice(&q[m][past * width..(past + n) * width]);
        rows.extend(vec![POISON; width]);
    }
    let mut data = pool.data.clone();
    for &(m, past, n) in members {
        pool.forget(&mut data, m, past + n);
    }
    let tiles = attention::tiles(&sequences, pool.kv_heads, group);
    let (device_q, out) = (rig.upload(&rows), rig.filled(POISON, rows.len()));
    let (data, table) = (rig.upload(&data), rig.upload(&pool.table));
    let (device_sequences, device_tiles) = (upload(rig, &sequences), upload(rig, &tiles));
    let call = FlashAttention {
        half,
        keys: Keys::Paged { q: device_q.address(), kv: pool.kv(&data, group), page_table: table.address() },
        sequences: device_sequences.address(),
        tiles: device_tiles.address(),
        n_tiles: tiles.len(),
        out: out.address(),
    };
    // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
    unsafe { rig.kernels.flash_attention(&rig.stream, &call) }.unwrap();
    let out = out.read();
    let mut nobodys = vec![true; rows.len() / width];
    let parts = sequences
        .iter()
        .map(|s| {
            let range = s.first as usize..(s.first + s.rows) as usize;
            nobodys[range.clone()].fill(false);
            out[range.start * width..range.end * width].to_vec()
        })
        .collect();
    for (row, _) in nobodys.iter().enumerate().filter(|(_, nobodys)| **nobodys) {
        assert!(out[row * width..(row + 1) * width].iter().all(|&x| x == POISON), "row {row} is nobody's");
    }
    parts
}

#[allow(clippy::too_many_arguments)]
fn check_prefill(
    what: &str,
    half: Half,
    pool: &Pool,
    m: usize,
    group: usize,
    q: &[u16],
    past: usize,
    out: &[u16],
) {
    let width = pool.kv_heads * group * D;
    let (q, found) = (decode(half, q), decode(half, out));
    for token in 0..out.len() / width {
        for head in 0..width / D {
            let (from, at) = ((past + token) * width + head * D, token * width + head * D);
            let expected = pool.expect(roundoff(half), m, head / group, &q[from..from + D], past + token + 1);
            assert_close(
                &format!("{what} {half:?}, group {group}, token {token} after {past}, head {head}"),
                &found[at..at + D],
                &expected,
            );
        }
    }
}

#[test]
fn paged_prefill_takes_several_sequences_at_any_offset() {
    let rig = Rig::new();
    let mut rng = Rng(6);
    for (half, group, kv_heads) in
        [(Half::BF16, 2, 1), (Half::BF16, 7, 1), (Half::F16, 6, 2), (Half::F16, 8, 1), (Half::BF16, 1, 1)]
    {
        let lengths = [1, 64, 65, 131, 190];
        let pool = Pool::new(&mut rng, half, &lengths, kv_heads);
        let width = kv_heads * group * D;
        let q: Vec<Vec<u16>> = lengths.iter().map(|n| encode(half, &rng.normals(n * width))).collect();
        let members = [(0, 0, 1), (1, 0, 64), (2, 1, 64), (3, 63, 68), (4, 64, 126)];
        for (&(m, past, _), out) in members.iter().zip(run_prefill(&rig, half, &pool, &members, group, &q)) {
            check_prefill("several", half, &pool, m, group, &q[m], past, &out);
        }
    }
}

#[test]
fn paged_prefill_gives_the_same_bits_however_a_prompt_is_cut() {
    let rig = Rig::new();
    let mut rng = Rng(7);
    for (half, group) in [(Half::BF16, 7), (Half::F16, 2), (Half::BF16, 8)] {
        let pool = Pool::new(&mut rng, half, &[300, 100], 1);
        let width = group * D;
        let q: Vec<Vec<u16>> = [300, 100].iter().map(|n| encode(half, &rng.normals(n * width))).collect();
        let whole = run_prefill(&rig, half, &pool, &[(0, 0, 300)], group, &q).remove(0);
        check_prefill("whole", half, &pool, 0, group, &q[0], 0, &whole);
        for chunks in [&[1, 299][..], &[63, 1, 236], &[64, 64, 64, 64, 44], &[17; 18], &[128, 172], &[299, 1]]
        {
            let (mut past, mut out) = (0, Vec::new());
            for (i, &n) in chunks.iter().enumerate() {
                let n = n.min(300 - past);
                // Beside another sequence every other time.
                let members = [(0, past, n), (1, 10 * (i % 9), 10)];
                out.extend(run_prefill(&rig, half, &pool, &members[..1 + i % 2], group, &q).remove(0));
                past += n;
            }
            assert_eq!(past, 300);
            assert!(out == whole, "{half:?}, group {group}, chunks {chunks:?}");
        }
    }
}

// ---- no checks: launches at the sizes of the models, for `cudasim report` ----
//
// Each alone, under `cudasim env` with `CUDASIM_REPORT=run.json CUDASIM_CHECKS=none`; those of many queries with
// `CUDASIM_SAMPLE=24`, which decode does not need and which would take its pages for cached.

/// 7B and 72B: query heads, key heads, tokens of a chunk.
const MODELS: [(usize, usize, usize); 2] = [(28, 4, 128), (64, 8, 256)];

#[test]
#[ignore = "for counters and modelled times"]
fn decode_at_the_sizes_of_the_models() {
    let rig = Rig::new();
    // More than the cache of the largest card: what was set before a launch has left it.
    let mut flood = rig.zeroed(256 << 20);
    for (n_heads, n_kv_heads, chunk) in MODELS {
        let heads = Heads { n_heads, n_kv_heads, head_dim: D };
        for keys in [2048usize, 6144, 14_336, 30_720] {
            let pages = keys.div_ceil(PAGE);
            let stride = 2 * n_kv_heads * PAGE * D;
            let (q, out) = (rig.zeroed(2 * n_heads * D), rig.zeroed(2 * n_heads * D));
            let data = rig.zeroed(2 * pages * stride);
            let table = rig.upload(&(0..pages as u32).collect::<Vec<u32>>());
            let sequence = Sequence { first: 0, rows: 1, past: keys as u32 - 1, pages: 0 };
            let sequences = upload(&rig, &[sequence]);
            let partials = rig.zeroed(partials_bytes(1, n_heads, keys, chunk));
            let arrivals = rig.filled(0u32, arrivals_len(1, n_kv_heads, keys, chunk));
            let call = PagedAttention {
                half: Half::BF16,
                q: q.address(),
                out: out.address(),
                kv: Kv { pages: data.address(), page_stride: stride as u64, heads },
                sequences: sequences.address(),
                n_seqs: 1,
                page_table: table.address(),
                max_keys: keys,
                chunk_tokens: chunk,
                partials: partials.address(),
                arrivals: arrivals.address(),
            };
            flood.zero();
            // SAFETY: the buffers live until the stream has run; shapes as above.
            unsafe { rig.kernels.paged_attention(&rig.stream, &call) }.unwrap();
            rig.stream.synchronize().unwrap();
        }
    }
}

#[test]
#[ignore = "for counters and modelled times"]
fn prefill_and_vision_at_the_sizes_of_the_models() {
    let rig = Rig::new();
    let zeros = |elements: usize| rig.zeroed(2 * elements);
    for (n_heads, n_kv_heads, _) in MODELS {
        let heads = Heads { n_heads, n_kv_heads, head_dim: D };
        for (tokens, past) in [(512usize, 0), (2048, 0), (2048, 4096)] {
            let pages = (past + tokens).div_ceil(PAGE);
            let stride = 2 * n_kv_heads * PAGE * D;
            let (q, out, data) =
                (zeros(tokens * n_heads * D), zeros(tokens * n_heads * D), zeros(pages * stride));
            let kv = Kv { pages: data.address(), page_stride: stride as u64, heads };
            let table = rig.upload(&(0..pages as u32).collect::<Vec<u32>>());
            let sequence = Sequence { first: 0, rows: tokens as u32, past: past as u32, pages: 0 };
            let tiles = attention::tiles(&[sequence], n_kv_heads, n_heads / n_kv_heads);
            let (sequences, device_tiles) = (upload(&rig, &[sequence]), upload(&rig, &tiles));
            let call = FlashAttention {
                half: Half::BF16,
                keys: Keys::Paged { q: q.address(), kv, page_table: table.address() },
                sequences: sequences.address(),
                tiles: device_tiles.address(),
                n_tiles: tiles.len(),
                out: out.address(),
            };
            // SAFETY: the buffers live until the stream has run; shapes as above.
            unsafe { rig.kernels.flash_attention(&rig.stream, &call) }.unwrap();
            rig.stream.synchronize().unwrap();
        }
    }
    for rows in [1024, 4096, 16_384] {
        let (qkv, out) = (zeros(rows * 3 * 16 * VISION_D), zeros(rows * 16 * VISION_D));
        let sequence = Sequence { first: 0, rows: rows as u32, past: 0, pages: 0 };
        let tiles = attention::tiles(&[sequence], 16, 1);
        let (sequences, device_tiles) = (upload(&rig, &[sequence]), upload(&rig, &tiles));
        let call = FlashAttention {
            half: Half::BF16,
            keys: Keys::Vision { qkv: qkv.address(), n_heads: 16 },
            sequences: sequences.address(),
            tiles: device_tiles.address(),
            n_tiles: tiles.len(),
            out: out.address(),
        };
        // SAFETY: as above.
        unsafe { rig.kernels.flash_attention(&rig.stream, &call) }.unwrap();
        rig.stream.synchronize().unwrap();
    }
}
