//! paged_prefill: causal attention of chunks of prompts.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{FlashAttention, Keys, PREFILL_TILE_ROWS, Sequence, TileList};

use crate::common::rng::Rng;
use crate::gpu::*;
use crate::paged_attn::{D, Pool};
use crate::softmax::assert_close;

/// Prefill attention of several sequences in one call, in tiles of any height, which give the same bits. `members`:
/// the sequence, its tokens before the call, and its tokens in the call.
fn run_prefill(
    half: Half,
    pool: &Pool,
    members: &[(usize, usize, usize)],
    group: usize,
    q: &[Vec<u16>],
) -> Vec<Vec<u16>> {
    let [large, other @ ..] = PREFILL_TILE_ROWS.map(|rows| run_in_tiles(half, pool, members, group, q, rows));
    assert!(other.iter().all(|o| *o == large), "{half:?}, group {group}: the rows of a tile change the bits");
    large
}

fn run_in_tiles(
    half: Half,
    pool: &Pool,
    members: &[(usize, usize, usize)],
    group: usize,
    q: &[Vec<u16>],
    tile_rows: usize,
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
    let mut list = TileList::default();
    list.list(&sequences, pool.kv_heads, group, tile_rows);
    list.link(group, gpu().kernels.sm_count() as usize);
    let (device_q, out) = (Buffer::of(&rows), Buffer::<u16>::poisoned(rows.len()));
    let (data, table) = (Buffer::of(&data), Buffer::of(&pool.table));
    let device_tiles = words(&list.tiles);
    let call = FlashAttention {
        half,
        keys: Keys::Paged { q: device_q.at, kv: pool.kv(&data, group), page_table: table.at },
        tiles: device_tiles.at,
        n_tiles: list.tiles.len(),
        tile_rows,
        out: out.at,
    };
    // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
    unsafe { gpu().kernels.flash_attention(&stream(), &call) }.unwrap();
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
    let (q, found) = (values(half, q), values(half, out));
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
    let mut rng = Rng(6);
    for (half, group, kv_heads) in
        [(Half::BF16, 2, 1), (Half::BF16, 7, 1), (Half::F16, 6, 2), (Half::F16, 8, 1), (Half::BF16, 1, 1)]
    {
        let lengths = [1, 64, 65, 131, 190];
        let pool = Pool::new(&mut rng, half, &lengths, kv_heads);
        let width = kv_heads * group * D;
        let q: Vec<Vec<u16>> = lengths.iter().map(|n| encode(half, &rng.normals(n * width))).collect();
        let members = [(0, 0, 1), (1, 0, 64), (2, 1, 64), (3, 63, 68), (4, 64, 126)];
        for (&(m, past, _), out) in members.iter().zip(run_prefill(half, &pool, &members, group, &q)) {
            check_prefill("several", half, &pool, m, group, &q[m], past, &out);
        }
    }
}

#[test]
fn paged_prefill_gives_the_same_bits_however_a_prompt_is_cut() {
    let mut rng = Rng(7);
    for (half, group) in [(Half::BF16, 7), (Half::F16, 2), (Half::BF16, 8)] {
        let pool = Pool::new(&mut rng, half, &[300, 100], 1);
        let width = group * D;
        let q: Vec<Vec<u16>> = [300, 100].iter().map(|n| encode(half, &rng.normals(n * width))).collect();
        let whole = run_prefill(half, &pool, &[(0, 0, 300)], group, &q).remove(0);
        check_prefill("whole", half, &pool, 0, group, &q[0], 0, &whole);
        for chunks in [&[1, 299][..], &[63, 1, 236], &[64, 64, 64, 64, 44], &[17; 18], &[128, 172], &[299, 1]]
        {
            let (mut past, mut out) = (0, Vec::new());
            for (i, &n) in chunks.iter().enumerate() {
                let n = n.min(300 - past);
                // Beside another sequence every other time.
                let members = [(0, past, n), (1, 10 * (i % 9), 10)];
                out.extend(run_prefill(half, &pool, &members[..1 + i % 2], group, &q).remove(0));
                past += n;
            }
            assert_eq!(past, 300);
            assert!(out == whole, "{half:?}, group {group}, chunks {chunks:?}");
        }
    }
}

#[test]
fn paged_prefill_takes_more_tiles_than_blocks() {
    let mut rng = Rng(10);
    let (half, group, kv_heads) = (Half::BF16, 2, 2);
    // More than two rounds of blocks, and some tiles that take longer than others.
    let n = gpu().kernels.sm_count() as usize + 30;
    let lengths: Vec<usize> = (0..n).map(|i| if i % 50 == 7 { 70 } else { 1 + i % 3 }).collect();
    let pool = Pool::new(&mut rng, half, &lengths, kv_heads);
    let width = kv_heads * group * D;
    let q: Vec<Vec<u16>> = lengths.iter().map(|n| encode(half, &rng.normals(n * width))).collect();
    let members: Vec<(usize, usize, usize)> = (0..n).map(|m| (m, 0, lengths[m])).collect();
    for (&(m, past, _), out) in members.iter().zip(run_prefill(half, &pool, &members, group, &q)) {
        check_prefill("many", half, &pool, m, group, &q[m], past, &out);
    }
}
