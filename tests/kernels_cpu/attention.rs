//! Attention of the vision tower and of the decoder.

use qwenvl::kernels::cpu::attention;

use super::*;

#[test]
fn vision_attention_matches_float64_and_never_crosses_slices() {
    let mut rng = Rng(8);
    let (heads, d) = (2, 80);
    let lengths = [1usize, 4, 63, 64, 65, 127, 130];
    let total: usize = lengths.iter().sum();
    let qkv = rng.normals(total * 3 * heads * d);
    let mut slices = Vec::new();
    let mut at = 0;
    for len in lengths {
        slices.push(at..at + len);
        at += len;
    }
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let mut out = vec![POISON; total * heads * d];
        attention::vision(isa, &mut rig.pool, &qkv, &slices, 0..total, heads, d, &mut out, &mut rig.scratch);
        let part = |row: usize, third: usize, head: usize| {
            f64s(&qkv[row * 3 * heads * d + third * heads * d + head * d..][..d])
        };
        for slice in &slices {
            for head in 0..heads {
                let keys: Vec<_> = slice.clone().map(|row| part(row, 1, head)).collect();
                let values: Vec<_> = slice.clone().map(|row| part(row, 2, head)).collect();
                for row in slice.clone() {
                    let expected = r::attention(&part(row, 0, head), &keys, &values);
                    check_attention(&out[row * heads * d + head * d..][..d], &expected, d, keys.len());
                }
            }
        }
        // Rows asked for in pieces have the same bits.
        for piece in [0..70, 70..71, 71..total] {
            let mut part = vec![POISON; piece.len() * heads * d];
            attention::vision(
                isa,
                &mut rig.pool,
                &qkv,
                &slices,
                piece.clone(),
                heads,
                d,
                &mut part,
                &mut rig.scratch,
            );
            assert_eq!(bits(&part), bits(&out[piece.start * heads * d..piece.end * heads * d]));
        }
    }
}

/// Scores err by a chain of `d`, weights by e to that, sums by a chain of the keys.
fn check_attention(found: &[f32], expected: &[f64], d: usize, keys: usize) {
    let bound = (2.0 * d as f64 + 2.0 * keys as f64 + 64.0) * tol::F32_EPS * 4.0;
    for (a, e) in found.iter().zip(expected) {
        assert!((f64::from(*a) - e).abs() <= bound, "{a} {e}, bound {bound:e}");
    }
}

#[test]
fn paged_attention_matches_float64_for_every_ratio_and_chunking() {
    let mut rng = Rng(9);
    let d = 128;
    for (n_heads, n_kv_heads) in [(2, 1), (6, 1), (14, 2), (16, 2)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim: d };
        let lengths = [1usize, 63, 64, 65, 150];
        let inputs: Vec<[Vec<f32>; 3]> = lengths
            .iter()
            .map(|&l| {
                [
                    rng.normals(l * n_heads * d),
                    rng.normals(l * n_kv_heads * d),
                    rng.normals(l * n_kv_heads * d),
                ]
            })
            .collect();
        let mut first: Option<Vec<Vec<u32>>> = None;
        for isa in Isa::available() {
            for chunk in [150, 64, 7, 1] {
                let mut rig = Rig::new(isa, 2);
                let results: Vec<Vec<u32>> = inputs
                    .iter()
                    .map(|input| bits(&paged_in_chunks(&mut rig, heads, input, chunk)))
                    .collect();
                let first = first.get_or_insert_with(|| results.clone());
                assert_eq!(*first, results, "{} chunk {chunk} heads {n_heads}/{n_kv_heads}", isa.name());
            }
        }
        for (bits, [q, k, v]) in first.unwrap().iter().zip(&inputs) {
            let row = |x: &[f32], width: usize, t: usize, h: usize| f64s(&x[t * width + h * d..][..d]);
            for t in [0, q.len() / (n_heads * d) / 2, q.len() / (n_heads * d) - 1] {
                for h in 0..n_heads {
                    let kv = h / (n_heads / n_kv_heads);
                    let keys: Vec<_> = (0..=t).map(|i| row(k, n_kv_heads * d, i, kv)).collect();
                    let values: Vec<_> = (0..=t).map(|i| row(v, n_kv_heads * d, i, kv)).collect();
                    let expected = r::attention(&row(q, n_heads * d, t, h), &keys, &values);
                    let found: Vec<f32> =
                        bits[t * n_heads * d + h * d..][..d].iter().map(|b| f32::from_bits(*b)).collect();
                    check_attention(&found, &expected, d, t + 1);
                }
            }
        }
    }
}

/// Runs one sequence beside a decoy, pages in shuffled order and poisoned, in chunks.
fn paged_in_chunks(rig: &mut Rig, heads: Heads, [q, k, v]: &[Vec<f32>; 3], chunk: usize) -> Vec<f32> {
    let (layer, layers) = (1, 2);
    let tokens = q.len() / (heads.n_heads * heads.head_dim);
    let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let mut kv = KvPages::new(6, layers, heads);
    kv.fill(POISON);
    let page_table = [4u32, 1, 3, 5];
    let decoy_page = page_table.len();
    let table: Vec<u32> = page_table.iter().copied().chain([2]).collect();
    kv.write(layer, &[2 * 64], &k[..kv_width], &v[..kv_width]);
    let mut out = Vec::new();
    let mut done = 0;
    while done < tokens {
        let n = chunk.min(tokens - done);
        let slots: Vec<u32> = (done..done + n).map(|t| page_table[t / 64] * 64 + (t % 64) as u32).collect();
        kv.write(
            layer,
            &slots,
            &k[done * kv_width..(done + n) * kv_width],
            &v[done * kv_width..(done + n) * kv_width],
        );
        let mut queries = q[..q_width].to_vec();
        queries.extend(&q[done * q_width..(done + n) * q_width]);
        let seqs = [
            SeqRows { tokens: 0..1, past: 0, pages: decoy_page..decoy_page + 1 },
            SeqRows { tokens: 1..n + 1, past: done, pages: 0..decoy_page },
        ];
        let mut y = vec![POISON; queries.len()];
        attention::paged(
            rig.isa,
            &mut rig.pool,
            &kv,
            layer,
            &queries,
            &seqs,
            &table,
            &mut y,
            &mut rig.scratch,
        );
        out.extend(&y[q_width..]);
        done += n;
    }
    out
}
