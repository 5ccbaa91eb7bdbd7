//! attention: softmax(Q Kᵀ / sqrt(d)) V, never holding more than 96 x 64 scores.
//!
//! order   keys in tiles of 64 at absolute positions, ascending; online softmax: each tile rescales what
//!         came before by e^(old max − new max). A query's bits depend on its own keys only: not on the
//!         batch, the chunk it came in, or the rows it is computed with.
//! layout  vision: q, k, v side by side in `[patches, 3·heads·d]`; keys and values are copied tile by tile,
//!         keys transposed: rows 15 KiB apart would share a few sets of the cache.
//!         decoder: pages `[page][layer][kv_head]`, each K transposed `[d, 64]` and then V `[64, d]`, so that
//!         both products read 16 contiguous floats per step.
//! tile    6 query rows x 16 columns: 12 accumulators of 8 lanes. With AVX-512 12 x 32 or 8 x 48: 24 of 16 lanes,
//!         11 to 14 loads for 24 multiply-adds. In the decoder all query heads of a key head are rows of one tile,
//!         so that a page is read once for all of them.
//! bytes   decode: every key and value of the context once, 8·d per token and key head.
//! bound   decode: bandwidth; vision and prefill: fused multiply-adds, 4·d FLOP per query-key pair.

use std::ops::Range;

use qwenvl_graph::kernel::{ATTENTION_KEYS, ATTENTION_ROWS, KV_PAGE_TOKENS};
use qwenvl_graph::op::Heads;

use super::pointwise::exp;
use super::shared::SharedMut;
use super::simd::Simd;
use super::{Aligned, Isa, Pool, dispatch};
use crate::kernels::SeqRows;

const KEYS: usize = ATTENTION_KEYS;
const _: () = assert!(KV_PAGE_TOKENS == ATTENTION_KEYS && KEYS.is_multiple_of(16));

/// Scratch of one thread: as many f32 as the plan's kernel states.
struct Scratch<'a> {
    /// `[rows, d]`, scaled by 1/sqrt(d).
    queries: &'a mut [f32],
    /// `[d, 64]`.
    keys: &'a mut [f32],
    /// `[rows, 64]`.
    scores: &'a mut [f32],
    /// `[rows, d]`.
    outputs: &'a mut [f32],
    /// Largest score so far, of each row.
    max: &'a mut [f32],
    /// Σ e^(score − max) so far, of each row.
    sum: &'a mut [f32],
    /// `[64, d]` in the vision tower, empty in the decoder.
    values: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn new(buffer: &'a mut [f32], rows: usize, d: usize) -> Scratch<'a> {
        let (queries, rest) = buffer.split_at_mut(rows * d);
        let (keys, rest) = rest.split_at_mut(d * KEYS);
        let (scores, rest) = rest.split_at_mut(rows * KEYS);
        let (outputs, rest) = rest.split_at_mut(rows * d);
        let (max, rest) = rest.split_at_mut(rows);
        let (sum, values) = rest.split_at_mut(rows);
        Scratch { queries, keys, scores, outputs, max, sum, values }
    }

    fn start(&mut self) {
        self.outputs.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// One tile of keys and values, `[d, 64]` and `[64, d]`; `None` if they are in the scratch.
type Page<'a> = Option<(&'a [f32], &'a [f32])>;

/// Attention within the temporal slices of one vision call.
///
/// `qkv` is `[patches, 3·n_heads·d]`; `slices` are the row ranges that attend to themselves; `rows` are
/// the query rows to compute, and `out` is `[rows, n_heads·d]`. `scratch` has the floats that the plan
/// states for each thread.
///
/// # Panics
/// If the shapes do not match or the scratch is too small.
#[allow(clippy::too_many_arguments)]
pub fn vision(
    isa: Isa,
    pool: &mut Pool,
    qkv: &[f32],
    slices: &[Range<usize>],
    rows: Range<usize>,
    n_heads: usize,
    d: usize,
    out: &mut [f32],
    scratch: &mut [Aligned<f32>],
) {
    let width = n_heads * d;
    assert!(d.is_multiple_of(8) && out.len() == rows.len() * width && qkv.len().is_multiple_of(3 * width));
    assert!(scratch.len() >= pool.threads());
    let block = |slice: &Range<usize>| {
        let start = slice.start.max(rows.start);
        (start, slice.end.min(rows.end).saturating_sub(start))
    };
    let blocks: usize = slices.iter().map(|s| block(s).1.div_ceil(ATTENTION_ROWS)).sum();
    let scale = 1.0 / (d as f32).sqrt();
    let out = SharedMut::new(out);
    let scratch = SharedMut::new(scratch);
    pool.run(blocks * n_heads, |task, thread| {
        let (head, mut at) = (task / blocks, task % blocks);
        let mut found = None;
        for slice in slices {
            let (start, len) = block(slice);
            let count = len.div_ceil(ATTENTION_ROWS);
            if at < count {
                let first = start + at * ATTENTION_ROWS;
                found = Some((slice.clone(), first..(first + ATTENTION_ROWS).min(start + len)));
                break;
            }
            at -= count;
        }
        let (slice, queries) = found.expect("tasks cover the slices");
        // SAFETY: a thread runs one task at a time and has its own scratch.
        let buffer = unsafe { &mut scratch.part(thread..thread + 1)[0] };
        let mut s = Scratch::new(buffer, queries.len(), d);
        s.start();
        for (i, row) in queries.clone().enumerate() {
            let q = &qkv[row * 3 * width + head * d..][..d];
            for (to, x) in s.queries[i * d..][..d].iter_mut().zip(q) {
                *to = x * scale;
            }
        }
        for first in slice.clone().step_by(KEYS) {
            let count = KEYS.min(slice.end - first);
            let row = |key: usize, part: usize| &qkv[((first + key) * 3 + part) * width + head * d..];
            // SAFETY: extents are asserted within.
            unsafe { transpose(isa, row(0, 1), 3 * width, count, d, s.keys) };
            for key in 0..count {
                s.values[key * d..(key + 1) * d].copy_from_slice(&row(key, 2)[..d]);
            }
            // SAFETY: the scratch holds a tile.
            unsafe { attend(isa, &mut s, d, None, &|_| count) };
        }
        for (i, row) in queries.enumerate() {
            let to = (row - rows.start) * width + head * d;
            // SAFETY: tasks own disjoint rows and heads.
            finish(&s, i, d, unsafe { out.part(to..to + d) });
        }
    });
}

/// Keys and values of the decoder, in pages of [`KV_PAGE_TOKENS`] tokens.
pub struct KvPages {
    layers: usize,
    heads: Heads,
    data: Aligned<f32>,
}

impl KvPages {
    /// Room for `pages` pages. The memory is only taken as pages are written.
    pub fn new(pages: usize, layers: usize, heads: Heads) -> KvPages {
        let len = pages * layers * heads.n_kv_heads * 2 * heads.head_dim * KV_PAGE_TOKENS;
        KvPages { layers, heads, data: Aligned::zeroed(len) }
    }

    /// Overwrites everything, so that a test sees what is read before it is written.
    pub fn fill(&mut self, value: f32) {
        self.data.fill(value);
    }

    /// Where a page starts, for one layer and key head: K `[d, 64]`, then V `[64, d]`.
    fn at(&self, page: usize, layer: usize, head: usize) -> usize {
        ((page * self.layers + layer) * self.heads.n_kv_heads + head)
            * 2
            * self.heads.head_dim
            * KV_PAGE_TOKENS
    }

    /// A view that several threads write through, each its own slots.
    pub fn writer(&mut self) -> KvWriter<'_> {
        let (layers, heads) = (self.layers, self.heads);
        KvWriter { layers, heads, data: SharedMut::new(&mut self.data) }
    }

    /// Writes the keys and values `[tokens, n_kv_heads·d]` of one layer at `slots`.
    ///
    /// # Panics
    /// If the shapes do not match or a slot is out of range.
    pub fn write(&mut self, layer: usize, slots: &[u32], k: &[f32], v: &[f32]) {
        let d = self.heads.head_dim;
        let width = self.heads.n_kv_heads * d;
        assert!(k.len() == slots.len() * width && v.len() == k.len());
        let writer = self.writer();
        for (i, &slot) in slots.iter().enumerate() {
            for head in 0..width / d {
                let at = i * width + head * d;
                // SAFETY: this thread alone writes.
                unsafe {
                    writer.key(layer, slot, head, &k[at..at + d]);
                    writer.value(layer, slot, head, &v[at..at + d]);
                }
            }
        }
    }
}

/// See [`KvPages::writer`].
pub struct KvWriter<'a> {
    layers: usize,
    heads: Heads,
    data: SharedMut<'a, f32>,
}

impl KvWriter<'_> {
    fn at(&self, layer: usize, slot: u32, head: usize) -> (usize, usize) {
        let (page, offset) = (slot as usize / KV_PAGE_TOKENS, slot as usize % KV_PAGE_TOKENS);
        let start = ((page * self.layers + layer) * self.heads.n_kv_heads + head) * 2 * self.heads.head_dim;
        (start * KV_PAGE_TOKENS, offset)
    }

    /// # Safety
    /// No other thread writes or reads this slot and head.
    pub(crate) unsafe fn key(&self, layer: usize, slot: u32, head: usize, k: &[f32]) {
        let (start, offset) = self.at(layer, slot, head);
        for (c, x) in k.iter().enumerate() {
            let at = start + c * KV_PAGE_TOKENS + offset;
            // SAFETY: one element, of this slot.
            unsafe { self.data.part(at..at + 1)[0] = *x };
        }
    }

    /// # Safety
    /// No other thread writes or reads this slot and head.
    pub(crate) unsafe fn value(&self, layer: usize, slot: u32, head: usize, v: &[f32]) {
        let (start, offset) = self.at(layer, slot, head);
        let at = start + (KV_PAGE_TOKENS + offset) * v.len();
        // SAFETY: the elements of this slot.
        unsafe { self.data.part(at..at + v.len()).copy_from_slice(v) };
    }
}

/// Causal attention over pages.
///
/// `q` and `out` are `[tokens, n_heads·d]`; `seqs` cover the tokens; `page_table` holds the pages of
/// all sequences. The call's own keys and values are already in the pages. `scratch` has the floats
/// that the plan states for each thread.
///
/// # Panics
/// If the shapes do not match, a page is out of range, or the scratch is too small.
#[allow(clippy::too_many_arguments)]
pub fn paged(
    isa: Isa,
    pool: &mut Pool,
    kv: &KvPages,
    layer: usize,
    q: &[f32],
    seqs: &[SeqRows],
    page_table: &[u32],
    out: &mut [f32],
    scratch: &mut [Aligned<f32>],
) {
    let Heads { n_heads, n_kv_heads, head_dim: d } = kv.heads;
    let (width, per_key) = (n_heads * d, n_heads / n_kv_heads);
    let block_tokens = (ATTENTION_ROWS / per_key).max(1);
    assert!(q.len() == out.len() && q.len().is_multiple_of(width) && d % 8 == 0);
    assert!(scratch.len() >= pool.threads());
    let blocks: usize = seqs.iter().map(|s| s.tokens.len().div_ceil(block_tokens)).sum();
    let scale = 1.0 / (d as f32).sqrt();
    let out = SharedMut::new(out);
    let scratch = SharedMut::new(scratch);
    pool.run(blocks * n_kv_heads, |task, thread| {
        let (mut at, head) = (task / n_kv_heads, task % n_kv_heads);
        let mut found = None;
        for seq in seqs {
            let count = seq.tokens.len().div_ceil(block_tokens);
            if at < count {
                let first = seq.tokens.start + at * block_tokens;
                found = Some((seq, first..(first + block_tokens).min(seq.tokens.end)));
                break;
            }
            at -= count;
        }
        let (seq, tokens) = found.expect("tasks cover the sequences");
        let rows = tokens.len() * per_key;
        // SAFETY: a thread runs one task at a time and has its own scratch.
        let buffer = unsafe { &mut scratch.part(thread..thread + 1)[0] };
        let mut s = Scratch::new(buffer, rows, d);
        s.start();
        let columns = |row: usize| {
            let (token, query_head) = (tokens.start + row / per_key, head * per_key + row % per_key);
            token * width + query_head * d
        };
        for row in 0..rows {
            for (to, x) in s.queries[row * d..][..d].iter_mut().zip(&q[columns(row)..][..d]) {
                *to = x * scale;
            }
        }
        // Keys that a row sees: those before the call, and the call's up to its own token.
        let seen = |row: usize| seq.past + (tokens.start + row / per_key - seq.tokens.start) + 1;
        let pages = &page_table[seq.pages.clone()];
        for (i, first) in (0..seen(rows - 1)).step_by(KEYS).enumerate() {
            let page = kv.at(pages[i] as usize, layer, head);
            let tile = Some(kv.data[page..page + 2 * d * KEYS].split_at(d * KEYS));
            // SAFETY: a page holds a tile.
            unsafe { attend(isa, &mut s, d, tile, &|row| seen(row).saturating_sub(first).min(KEYS)) };
        }
        for row in 0..rows {
            let to = columns(row);
            // SAFETY: tasks own disjoint tokens and heads.
            finish(&s, row, d, unsafe { out.part(to..to + d) });
        }
    });
}

fn finish(s: &Scratch, row: usize, d: usize, out: &mut [f32]) {
    let inverse = 1.0 / s.sum[row];
    for (o, x) in out.iter_mut().zip(&s.outputs[row * d..][..d]) {
        *o = x * inverse;
    }
}

dispatch!(fn attend => attend_body(s: &mut Scratch, d: usize, page: Page, visible: &dyn Fn(usize) -> usize));

/// Takes one tile of keys and values into all rows; `visible(row)` of its keys count for a row.
///
/// # Safety
/// None beyond the processor's features: extents are asserted.
#[inline(always)]
unsafe fn attend_body<S: Simd>(s: &mut Scratch, d: usize, page: Page, visible: &dyn Fn(usize) -> usize) {
    let rows = s.max.len();
    let (keys, values) = page.unwrap_or((s.keys, s.values));
    assert!(keys.len() >= d * KEYS && values.len() >= d * KEYS && s.queries.len() >= rows * d);
    // SAFETY: queries [rows, d], keys [d, 64], scores [rows, 64].
    unsafe {
        s.scores.fill(0.0);
        multiply::<S>(s.queries.as_ptr(), d, rows, keys.as_ptr(), KEYS, KEYS, d, s.scores.as_mut_ptr(), KEYS);
    }
    let mut most = 0;
    for row in 0..rows {
        let count = visible(row);
        most = most.max(count);
        let scores = &mut s.scores[row * KEYS..][..KEYS];
        scores[count..].fill(f32::NEG_INFINITY);
        if count == 0 {
            scores.fill(0.0);
            continue;
        }
        // SAFETY: whole eights of 64 scores and of `d` outputs.
        unsafe {
            let mut high = S::splat(s.max[row]);
            for i in (0..KEYS).step_by(8) {
                high = S::max(S::load(scores.as_ptr().add(i)), high);
            }
            let max = S::max_lane(high);
            let shift = S::splat(max);
            let mut sum = S::splat(0.0);
            for i in (0..KEYS).step_by(8) {
                let p = scores.as_mut_ptr().add(i);
                let e = exp::<S>(S::sub(S::load(p), shift));
                S::store(p, e);
            }
            scores[count..].fill(0.0);
            for i in (0..KEYS).step_by(8) {
                sum = S::add(sum, S::load(scores.as_ptr().add(i)));
            }
            let kept = if s.max[row] == f32::NEG_INFINITY {
                S::splat(0.0)
            } else {
                exp::<S>(S::splat(s.max[row] - max))
            };
            let kept = if s.max[row] == max { S::splat(1.0) } else { kept };
            let o = s.outputs.as_mut_ptr().add(row * d);
            for i in (0..d).step_by(8) {
                S::store(o.add(i), S::mul(S::load(o.add(i)), kept));
            }
            let mut lanes = [0f32; 8];
            S::store(lanes.as_mut_ptr(), kept);
            s.sum[row] = s.sum[row] * lanes[0] + S::sum(sum);
            s.max[row] = max;
        }
    }
    // SAFETY: scores [rows, most], values [most, d], outputs [rows, d].
    unsafe {
        multiply::<S>(s.scores.as_ptr(), KEYS, rows, values.as_ptr(), d, d, most, s.outputs.as_mut_ptr(), d);
    }
}

/// `c[m, n] += a[m, k] · b[k, n]`, all row-major; n a multiple of 8. For each output one chain of
/// fused multiply-adds in ascending k.
///
/// # Safety
/// `a` has m rows of `lda`, `b` k rows of `ldb`, `c` m rows of `ldc` floats, the last rows as long
/// as is read.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn multiply<S: Simd>(
    a: *const f32,
    lda: usize,
    m: usize,
    b: *const f32,
    ldb: usize,
    n: usize,
    k: usize,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's extents.
    unsafe {
        let mut j = 0;
        while j + 16 <= n {
            // As many columns as there are registers for, so that a broadcast serves several of them.
            let columns = match (n - j) / 16 {
                3 | 5 if S::TALL => 3,
                2.. if S::TALL => 2,
                _ => 1,
            };
            let mut i = 0;
            while i < m {
                let (a, b, c) = (a.add(i * lda), b.add(j), c.add(i * ldc + j));
                i += match (columns, m - i) {
                    (3, 8..) => block::<S, 8, 3>(a, lda, b, ldb, k, c, ldc),
                    (3, 4..) => block::<S, 4, 3>(a, lda, b, ldb, k, c, ldc),
                    (3, _) => block::<S, 1, 3>(a, lda, b, ldb, k, c, ldc),
                    (2, 12..) => block::<S, 12, 2>(a, lda, b, ldb, k, c, ldc),
                    (2, 6..) => block::<S, 6, 2>(a, lda, b, ldb, k, c, ldc),
                    (2, 2..) => block::<S, 2, 2>(a, lda, b, ldb, k, c, ldc),
                    (2, _) => block::<S, 1, 2>(a, lda, b, ldb, k, c, ldc),
                    (_, 6..) => block::<S, 6, 1>(a, lda, b, ldb, k, c, ldc),
                    (_, 4..) => block::<S, 4, 1>(a, lda, b, ldb, k, c, ldc),
                    (_, 2..) => block::<S, 2, 1>(a, lda, b, ldb, k, c, ldc),
                    (_, _) => block::<S, 1, 1>(a, lda, b, ldb, k, c, ldc),
                };
            }
            j += 16 * columns;
        }
        if j < n {
            for i in 0..m {
                let c = c.add(i * ldc + j);
                let mut acc = S::load(c);
                for k in 0..k {
                    acc = S::fma(S::splat(*a.add(i * lda + k)), S::load(b.add(k * ldb + j)), acc);
                }
                S::store(c, acc);
            }
        }
    }
}

/// One block of `M` rows and `W` times 16 columns; returns `M`.
#[inline(always)]
unsafe fn block<S: Simd, const M: usize, const W: usize>(
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    k: usize,
    c: *mut f32,
    ldc: usize,
) -> usize {
    // SAFETY: the caller's extents.
    unsafe {
        // Plain loops: closures would not be compiled for the processor's features.
        let mut acc = [[S::wide_splat(0.0); W]; M];
        for i in 0..M {
            for w in 0..W {
                acc[i][w] = S::wide_load(c.add(i * ldc + 16 * w));
            }
        }
        for k in 0..k {
            let mut bv = [S::wide_splat(0.0); W];
            for w in 0..W {
                bv[w] = S::wide_load(b.add(k * ldb + 16 * w));
            }
            for i in 0..M {
                let av = S::wide_splat(*a.add(i * lda + k));
                for w in 0..W {
                    acc[i][w] = S::wide_fma(av, bv[w], acc[i][w]);
                }
            }
        }
        for i in 0..M {
            for w in 0..W {
                S::wide_store(c.add(i * ldc + 16 * w), acc[i][w]);
            }
        }
    }
    M
}

dispatch!(fn transpose => transpose_body(rows: &[f32], ld: usize, count: usize, d: usize, out: &mut [f32]));

/// `out[c·64 + key] = rows[key·ld + c]` for `key < count <= 64`, `c < d`; `d` a multiple of 8.
///
/// # Safety
/// None beyond the processor's features: extents are asserted.
#[inline(always)]
unsafe fn transpose_body<S: Simd>(rows: &[f32], ld: usize, count: usize, d: usize, out: &mut [f32]) {
    assert!(count <= KEYS && d.is_multiple_of(8) && out.len() >= d * KEYS);
    assert!(count == 0 || rows.len() >= (count - 1) * ld + d);
    let whole = count / 8 * 8;
    for key in (0..whole).step_by(8) {
        for c in (0..d).step_by(8) {
            // SAFETY: eight rows of at least `c + 8` floats, and eight rows of 64 floats.
            unsafe {
                let mut block = [S::splat(0.0); 8];
                for i in 0..8 {
                    block[i] = S::load(rows.as_ptr().add((key + i) * ld + c));
                }
                let block = S::transpose(block);
                for i in 0..8 {
                    S::store(out.as_mut_ptr().add((c + i) * KEYS + key), block[i]);
                }
            }
        }
    }
    for key in whole..count {
        for c in 0..d {
            out[c * KEYS + key] = rows[key * ld + c];
        }
    }
}
