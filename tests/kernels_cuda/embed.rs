//! embed: rows of the embedding table, visual rows, rows by index.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::linear::RowOrder;
use qwenvl::kernels::cuda::norm::{Embed, Table};
use qwenvl::kernels::cuda::pointwise::PointwiseOp;
use qwenvl_graph::DType;

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::gpu::*;
use crate::pointwise::pointwise;
use crate::repack::{Stored, dense, pack};

#[test]
fn embed_takes_rows_of_every_type_and_visual_rows_where_they_are_named() {
    let mut rng = Rng(3);
    let (vocab, cols, none) = (11, 1536, u32::MAX);
    let tokens = [3u32, 0, 10, 7, 7, 11];
    let visual_index = [none, none, 2, none, 0, none];
    let (tokens_at, index_at) = (Buffer::of(&tokens), Buffer::of(&visual_index));
    let numbers = rng.normals(vocab * cols);
    for half in HALVES {
        let visual = encode(half, &rng.normals(3 * cols));
        let visual_at = Buffer::of(&visual);
        let tables = [
            (
                DType::F32,
                numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
                r::f64s(&numbers),
            ),
            (DType::BF16, bytes(Half::BF16, &numbers), values(Half::BF16, &encode(Half::BF16, &numbers))),
            (DType::F16, bytes(Half::F16, &numbers), values(Half::F16, &encode(Half::F16, &numbers))),
        ];
        for (kind, bytes, exact) in tables {
            let (table, out) = (Buffer::of(&bytes), Buffer::<f32>::poisoned(tokens.len() * cols));
            let call = Embed {
                table: table.at,
                stored: Table::Rows(kind),
                vocab,
                tokens: tokens_at.at,
                visual: visual_at.at,
                visual_index: index_at.at,
                half,
                out: out.at,
                rows: tokens.len(),
                cols,
            };
            // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
            unsafe { gpu().kernels.embed(&stream(), &call) }.unwrap();
            for (i, row) in out.read().chunks_exact(cols).enumerate() {
                let (token, seen) = (tokens[i] as usize, visual_index[i]);
                if token == vocab {
                    assert!(row.iter().all(|x| x.is_nan()), "an id beyond the vocabulary");
                    continue;
                }
                let expected = if seen == none {
                    exact[token * cols..][..cols].to_vec()
                } else {
                    values(half, &visual[seen as usize * cols..][..cols])
                };
                assert_eq!(r::f64s(row), expected, "{half:?}, table {kind}, row {i}");
            }
        }
    }
    let (x, indices, out) =
        (Buffer::of(&numbers), Buffer::of(&[4u32, 0, 4]), Buffer::<f32>::poisoned(3 * cols));
    let op = PointwiseOp::Gather { index: indices.at };
    pointwise(Half::BF16, op, x.at, out.at, 3, cols);
    for (row, index) in out.read().chunks_exact(cols).zip([4, 0, 4]) {
        assert_eq!(row, &numbers[index * cols..][..cols]);
    }
}

#[test]
fn embed_takes_rows_from_the_records_of_a_tied_head() {
    let mut rng = Rng(12);
    let (vocab, none) = (300, u32::MAX);
    let tokens = [0u32, 299, 7, 128, 130, 300];
    for half in HALVES {
        for cols in [256, 152] {
            for stored_in in HALVES {
                let stored = [Stored::random(&mut rng, dense(stored_in), stored_in, vocab, cols)];
                let packed = pack(stored_in, &stored, RowOrder::Plain);
                let (tokens_at, index_at) = (Buffer::of(&tokens), Buffer::of(&[none; 6]));
                let (visual, out) = (Buffer::<u16>::poisoned(cols), Buffer::<f32>::poisoned(6 * cols));
                let call = Embed {
                    table: packed.records.at,
                    stored: Table::Records(stored_in),
                    vocab,
                    tokens: tokens_at.at,
                    visual: visual.at,
                    visual_index: index_at.at,
                    half,
                    out: out.at,
                    rows: tokens.len(),
                    cols,
                };
                // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
                unsafe { gpu().kernels.embed(&stream(), &call) }.unwrap();
                for (token, row) in tokens.iter().zip(out.read().chunks_exact(cols)) {
                    if *token == 300 {
                        assert!(row.iter().all(|x| x.is_nan()), "an id beyond the vocabulary");
                        continue;
                    }
                    assert_eq!(
                        r::f64s(row),
                        packed.weights[*token as usize * cols..][..cols],
                        "{half:?} {stored_in:?} {token}"
                    );
                }
            }
        }
    }
}

fn bytes(half: Half, numbers: &[f32]) -> Vec<u8> {
    encode(half, numbers).iter().flat_map(|x| x.to_le_bytes()).collect()
}
