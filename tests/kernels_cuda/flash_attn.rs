//! flash_attn: attention of the vision tower.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::attention::{FlashAttention, Keys, Sequence, TileList, VISION_TILE_ROWS};

use crate::common::rng::Rng;
use crate::gpu::*;
use crate::softmax::{assert_close, attention};

const D: usize = 80;

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
        let (gap, width) = (3, 3 * n_heads * D);
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

    /// In tiles of either height, which give the same bits.
    fn run(&self, half: Half, sequences: &[Sequence]) -> Vec<u16> {
        let [large, small] = VISION_TILE_ROWS.map(|rows| self.run_in_tiles(half, sequences, rows));
        assert!(large == small, "{half:?}: the rows of a tile change the bits");
        large
    }

    fn run_in_tiles(&self, half: Half, sequences: &[Sequence], tile_rows: usize) -> Vec<u16> {
        let mut list = TileList::default();
        list.list(sequences, self.n_heads, 1, tile_rows);
        let (qkv, out) = (Buffer::of(&self.qkv), Buffer::<u16>::poisoned(self.rows * self.n_heads * D));
        let device_tiles = words(&list.tiles);
        let call = FlashAttention {
            half,
            keys: Keys::Vision { qkv: qkv.at, n_heads: self.n_heads },
            tiles: device_tiles.at,
            n_tiles: list.tiles.len(),
            tile_rows,
            out: out.at,
        };
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { gpu().kernels.flash_attention(&stream(), &call) }.unwrap();
        out.read()
    }
}

fn check_vision(what: &str, half: Half, case: &VisionCase, out: &[u16]) {
    let (qkv, found) = (values(half, &case.qkv), values(half, out));
    let width = case.n_heads * D;
    let mut written = vec![false; case.rows];
    for s in &case.sequences {
        let rows = s.first as usize..(s.first + s.rows) as usize;
        for head in 0..case.n_heads {
            let at = |row: usize, part: usize| &qkv[(row * 3 + part) * width + head * D..][..D];
            let keys: Vec<&[f64]> = rows.clone().map(|row| at(row, 1)).collect();
            let values: Vec<&[f64]> = rows.clone().map(|row| at(row, 2)).collect();
            for row in rows.clone() {
                written[row] = true;
                let expected = attention(roundoff(half), at(row, 0), &keys, &values);
                let found = &found[row * width + head * D..][..D];
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
    let mut rng = Rng(1);
    for half in HALVES {
        let case = VisionCase::new(&mut rng, half, &[1, 4, 63, 64, 65, 127, 129], 2, 1.0);
        let out = case.run(half, &case.sequences);
        check_vision("ragged", half, &case, &out);
    }
}

#[test]
fn flash_attn_takes_scores_of_ten_thousand() {
    let mut rng = Rng(2);
    for half in HALVES {
        // q · k of normal numbers has a deviation of sqrt(80), which the scale takes to 1; 70² makes it 5,000.
        let case = VisionCase::new(&mut rng, half, &[65, 130], 1, 70.0);
        let out = case.run(half, &case.sequences);
        check_vision("large", half, &case, &out);
    }
}

#[test]
fn flash_attn_gives_a_sequence_alone_the_bits_it_has_among_others() {
    let mut rng = Rng(3);
    for half in HALVES {
        let case = VisionCase::new(&mut rng, half, &[200, 65, 256, 3], 1, 1.0);
        let together = case.run(half, &case.sequences);
        for s in &case.sequences {
            let alone = case.run(half, &[*s]);
            let rows = s.first as usize * D..(s.first + s.rows) as usize * D;
            assert_eq!(alone[rows.clone()], together[rows], "{half:?}, {} rows", s.rows);
        }
    }
}

#[test]
fn flash_attn_takes_the_mean_when_all_keys_are_alike() {
    let mut rng = Rng(22);
    for half in HALVES {
        for (query, key) in [(0.0f32, 1.0f32), (100.0, 100.0), (-100.0, 100.0)] {
            let mut case = VisionCase::new(&mut rng, half, &[70], 1, 1.0);
            let first = case.sequences[0].first as usize;
            for row in first..first + 70 {
                case.qkv[row * 3 * D..][..D].fill(round_to(half, query));
                case.qkv[(row * 3 + 1) * D..][..D].fill(round_to(half, key));
            }
            let out = case.run(half, &case.sequences);
            check_vision("alike", half, &case, &out);
        }
    }
}
