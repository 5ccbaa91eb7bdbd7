//! `ldmatrix`, `stmatrix` and `movmatrix`: which lane holds which element.

use crate::harness::{Config, bytes_of, kernel, run_clean, values_of};

/// Four 8 x 8 matrices of distinct elements, row by row.
fn matrices() -> Vec<u16> {
    (0..4 * 64).map(|i| 0x100 + i).collect()
}

/// Element of matrix `m` at a row and column.
fn element(m: usize, row: usize, column: usize) -> u16 {
    0x100 + (m * 64 + row * 8 + column) as u16
}

/// Copies buffer 0 to shared memory and leaves the address of row `t` in `a`.
const FILL: &str = ".shared .align 16 .b8 s[512]; .reg .b32 t, a, x, y, z, v; .reg .b64 q, w, o;
    mov.u32 t, %tid.x; ld.param.u64 q, [p0]; ld.param.u64 w, [p1]; mul.wide.u32 o, t, 16; add.s64 q, q, o; add.s64 w, w, o;
    mov.u32 a, s; mad.lo.u32 a, t, 16, a; ld.global.v4.u32 {x, y, z, v}, [q]; st.shared.v4.u32 [a], {x, y, z, v};
    bar.sync 0; mov.u32 x, 0; mov.u32 y, 0; mov.u32 z, 0; mov.u32 v, 0;\n";

fn load(instruction: &str) -> Vec<[u16; 8]> {
    let body = format!("{FILL}{instruction} st.global.v4.u32 [w], {{x, y, z, v}};");
    let out = run_clean(&kernel(2, &body), Config::new(1, 32), &[bytes_of(&matrices()), vec![0; 512]]);
    values_of::<u16>(&out.buffers[1]).chunks(8).map(|c| c.try_into().unwrap()).collect()
}

#[test]
fn each_lane_holds_two_neighbours_of_a_row() {
    for (count, registers) in [(1, "x"), (2, "x, y"), (4, "x, y, z, v")] {
        for trans in [false, true] {
            let suffix = if trans { ".trans" } else { "" };
            let text =
                format!("ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{registers}}}, [a];");
            for (lane, found) in load(&text).into_iter().enumerate() {
                for m in 0..4 {
                    let pair = [found[2 * m], found[2 * m + 1]];
                    let (row, column) = (lane / 4, lane % 4 * 2);
                    let wanted = match (m < count, trans) {
                        (false, _) => [0, 0],
                        (true, false) => [element(m, row, column), element(m, row, column + 1)],
                        (true, true) => [element(m, column, row), element(m, column + 1, row)],
                    };
                    assert_eq!(pair, wanted, "{text} lane {lane} matrix {m}");
                }
            }
        }
    }
}

#[test]
fn rows_come_from_the_addresses_of_their_lanes() {
    // Lane i gives row 31 - i, so that rows and matrices come in reverse.
    let text = "xor.b32 t, t, 31; mov.u32 a, s; mad.lo.u32 a, t, 16, a; \
                ldmatrix.sync.aligned.m8n8.x4.shared.b16 {x, y, z, v}, [a];";
    for (lane, found) in load(text).into_iter().enumerate() {
        for m in 0..4 {
            let wanted = element(3 - m, 7 - lane / 4, lane % 4 * 2);
            assert_eq!(found[2 * m], wanted);
        }
    }
}

#[test]
fn stored_matrices_come_back_as_loaded() {
    for (count, registers) in [(1, "x"), (2, "x, y"), (4, "x, y, z, v")] {
        for (load_as, store_as) in [("", ""), (".trans", ".trans"), (".trans", "")] {
            let text = format!(
                "ldmatrix.sync.aligned.m8n8.x4{load_as}.shared.b16 {{x, y, z, v}}, [a]; bar.sync 0;
                 stmatrix.sync.aligned.m8n8.x{count}{store_as}.shared.b16 [a], {{{registers}}}; bar.sync 0;
                 ld.shared.v4.u32 {{x, y, z, v}}, [a];"
            );
            for (row, found) in load(&text).into_iter().enumerate() {
                let (m, row) = (row / 8, row % 8);
                for (column, &found) in found.iter().enumerate() {
                    let turned = m < count && load_as != store_as;
                    let wanted = if turned { element(m, column, row) } else { element(m, row, column) };
                    assert_eq!(
                        found, wanted,
                        "x{count}{load_as}{store_as} matrix {m} row {row} column {column}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_matrix_is_transposed_between_registers() {
    let text =
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {x}, [a]; movmatrix.sync.aligned.m8n8.trans.b16 x, x;";
    for (lane, found) in load(text).into_iter().enumerate() {
        let (row, column) = (lane / 4, lane % 4 * 2);
        assert_eq!(found[..2], [element(0, column, row), element(0, column + 1, row)]);
    }
}
