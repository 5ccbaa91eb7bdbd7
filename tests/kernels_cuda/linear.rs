//! int4_gemm, int8_gemm, dense_gemm: one body, `linear.cuh`, for weights of 4, 8 and 16 bits.

use std::ops::Range;

use qwenvl::kernels::cuda::linear::{
    self, Finish, Kv, Linear, Normalised, Regime, Rope, RopePairs, RowOrder, Tile, WeightKind, Workspace,
};
use qwenvl::kernels::cuda::norm::{Norm, NormKind};
use qwenvl::kernels::cuda::{Address, Half};
use qwenvl_graph::Activation;
use qwenvl_graph::op::{Heads, MRope, VisionRope};

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::common::tolerance::F32_EPS;
use crate::gpu::*;
use crate::repack::{
    AWQ4, AWQ4_G32, FORMATS, GPTQ8, GPTQ8_G32, Packed, Stored, Weights, dense, pack, tested,
};

/// What a launch needs beside its matrix.
pub struct Launch<'a> {
    pub half: Half,
    /// The kernel; none: those that a prompt gets.
    pub tile: Option<Tile>,
    pub packed: &'a Packed,
    pub bias: Option<&'a Buffer<f32>>,
    pub n_runs: usize,
}

impl Launch<'_> {
    /// Runs over rows `[m, k]` of `x`.
    pub fn run(&self, x: &[u16], m: usize, finish: Finish, out: Address) {
        let Packed { n, k, .. } = *self.packed;
        assert_eq!(x.len(), m * k);
        let x = Buffer::of(x);
        let sm_count = gpu().kernels.sm_count() as usize;
        let partials = Buffer::<u8>::scratch(linear::workspace_bytes(sm_count));
        let arrivals = Buffer::<u32>::zeroed(linear::arrivals(n, sm_count));
        let l = Linear {
            kind: self.packed.kind,
            half: self.half,
            regime: Regime::Prefill,
            x: x.at,
            ldx: k,
            w: self.packed.records.at,
            order: self.packed.order,
            bias: self.bias.map(|b| b.at),
            out,
            m,
            n,
            k,
            n_runs: self.n_runs,
            finish,
            workspace: Workspace { partials: partials.at, arrivals: arrivals.at },
        };
        let kernels = &gpu().kernels;
        // SAFETY: buffers are as long as the shapes say and live until the stream is done.
        let launched = unsafe {
            match self.tile {
                Some(tile) => kernels.linear_of_tile(&stream(), &l, tile),
                None => kernels.linear(&stream(), &l),
            }
        };
        launched.unwrap();
        let left = arrivals.read();
        assert!(left.iter().all(|a| *a == 0), "arrivals are left: {left:?}");
    }

    pub fn f32(&self, x: &[u16], m: usize) -> Vec<f32> {
        let out = Buffer::poisoned(m * self.packed.n);
        self.run(x, m, Finish::StoreF32, out.at);
        out.read()
    }
}

const RUN: Option<Tile> = Some(Tile::Run);

/// The kernels that take any number of rows.
fn prefill_tiles(kind: WeightKind) -> impl Iterator<Item = Option<Tile>> {
    Tile::of_prompts(kind).iter().copied().map(Some)
}

/// All kernels.
fn tiles(kind: WeightKind) -> impl Iterator<Item = Option<Tile>> {
    [RUN].into_iter().chain(prefill_tiles(kind))
}

/// Kernels with numbers of rows, and what a prompt gets.
fn with_rows(kind: WeightKind) -> impl Iterator<Item = (Option<Tile>, usize)> {
    [(RUN, 7), (RUN, 9)].into_iter().chain(prefill_tiles(kind).map(|tile| (tile, 70))).chain([(None, 70)])
}

/// Bound on the error of the kernel's sum, relative to Σ|x·w|: a truncation for each addition of the longest chain
/// (tensor cores do not round), and a rounding for each group and run. 4-bit codes in bf16 are multiplied with 128 added,
/// which cancels: random rows stay 16 times below this bound even so; for rows of one sign see `lifted`.
fn bound(k: usize, n_runs: usize) -> f64 {
    (2.0 * (k as f64 + 8.0) + k.div_ceil(128) as f64 + n_runs as f64) * F32_EPS
}

/// What the 128 adds to the error of a group, relative to its scale times Σ|x|: the sum runs up to 128 + 15 times that,
/// with as many additions as the group has inputs, and so does Σ x, a tree of seven roundings, times 128 and the zero point.
const LIFTED: f64 = (2.0 * (128.0 + 8.0) + 7.0 + 2.0) * (128.0 + 15.0) * F32_EPS;

#[test]
fn rows_of_one_sign_lose_no_more_than_the_offset_of_codes_explains() {
    let mut rng = Rng(11);
    let (n, k, m, n_runs) = (384, 640, 11, 5);
    for (format, half) in tested([AWQ4]).flat_map(|format| HALVES.map(|half| (format, half))) {
        let stored = [Stored::random(&mut rng, format, half, n, k)];
        let packed = pack(half, &stored, RowOrder::Plain);
        let x: Vec<u16> = normals(&mut rng, half, m * k).iter().map(|v| v & 0x7fff).collect();
        let exact = r::matmul(&values(half, &x), &packed.weights, m, n, k);
        for tile in tiles(packed.kind) {
            let y = Launch { half, tile, packed: &packed, bias: None, n_runs }.f32(&x, m);
            for (at, (found, (sum, size))) in y.iter().zip(&exact).enumerate() {
                let total: f64 = values(half, &x[at / n * k..][..k]).iter().sum();
                // `Stored` has scales up to 0.03.
                let lifted = if half == Half::BF16 { LIFTED * 0.0301 * total } else { 0.0 };
                let (error, bound) = ((f64::from(*found) - sum).abs(), bound(k, n_runs) * size + lifted);
                assert!(error <= bound, "{half:?} {tile:?} at {at}: {found} {sum} ({error:e} > {bound:e})");
            }
        }
    }
}

#[test]
fn linears_match_float64_for_every_ragged_m_in_every_tile() {
    let mut rng = Rng(2);
    for half in HALVES {
        for format in tested(FORMATS.into_iter().chain([dense(half)])) {
            let sizes: &[(usize, usize, usize)] = match format.is_dense() {
                // Ragged k as of the patch embedding; not quite one strip; odd records.
                true => &[(80, 152, 2), (384, 1176, 7), (520, 256, 4)],
                // The last group is not whole.
                false => &[(72, 128, 1), (384, 616, 5), (512, 256, 3)],
            };
            for &(n, k, n_runs) in sizes {
                let stored = [Stored::random(&mut rng, format, half, n, k)];
                let packed = pack(half, &stored, RowOrder::Plain);
                let x = normals(&mut rng, half, 100 * k);
                let exact = r::matmul(&values(half, &x), &packed.weights, 100, n, k);
                for m in [1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 100] {
                    for tile in tiles(packed.kind) {
                        if tile == RUN && m > gpu().kernels.tile_rows(packed.kind, half, Tile::Run) {
                            continue;
                        }
                        let launch = Launch { half, tile, packed: &packed, bias: None, n_runs };
                        let y = launch.f32(&x[..m * k], m);
                        for (at, (found, (sum, size))) in y.iter().zip(&exact).enumerate() {
                            let (error, bound) = ((f64::from(*found) - sum).abs(), bound(k, n_runs) * size);
                            assert!(
                                error <= bound,
                                "{format:?} {half:?} {tile:?} {m}x{n}x{k} at {at}: {found} {sum} ({error:e} > {bound:e})"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_any_batch_and_in_prefill_of_integer_weights() {
    let mut rng = Rng(3);
    let (n, k, most) = (640, 896, 100);
    for half in HALVES {
        for format in tested(FORMATS.into_iter().chain([dense(half)])) {
            let stored = [Stored::random(&mut rng, format, half, n, k)];
            let packed = pack(half, &stored, RowOrder::Plain);
            let x = normals(&mut rng, half, most * k);
            for n_runs in [1, 5, 21] {
                let run = |tile, rows: Range<usize>| {
                    let launch = Launch { half, tile, packed: &packed, bias: None, n_runs };
                    let y = launch.f32(&x[rows.start * k..rows.end * k], rows.len());
                    y.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
                };
                let mut alone = Vec::new();
                for i in 0..33 {
                    alone.extend(run(RUN, i..i + 1));
                }
                let most_of_run = gpu().kernels.tile_rows(packed.kind, half, Tile::Run);
                for m in [2, 7, 8, 9, 16, 17, 31, 32, 33].into_iter().filter(|m| *m <= most_of_run) {
                    assert_eq!(run(RUN, 0..m), alone[..m * n], "{format:?} {half:?} m={m} runs={n_runs}");
                }
                let prefill = run(None, 0..most);
                let tiles = prefill_tiles(packed.kind).chain([None]);
                for (tile, rows) in tiles.flat_map(|tile| [0..1, 5..22, 30..95].map(|rows| (tile, rows))) {
                    let (from, to) = (rows.start * n, rows.end * n);
                    assert_eq!(
                        run(tile, rows.clone()),
                        prefill[from..to],
                        "{format:?} {half:?} {tile:?} {rows:?} runs={n_runs}"
                    );
                }
                if !format.is_dense() {
                    assert!(
                        prefill[..33 * n] == alone[..],
                        "{format:?} {half:?}: prefill and small m differ"
                    );
                }
            }
        }
    }
}

#[test]
fn tiles_cut_between_blocks_and_rows_shared_out_to_kernels_have_the_bits_of_whole_tiles() {
    let mut rng = Rng(12);
    let (half, n) = (Half::BF16, 27 * 256);
    // More tiles than there are multiprocessors, of which a few rows have fewer. Inputs of one stage and of several;
    // slices that end in the middle of a tile.
    let formats = [
        (AWQ4, 640, 4 * 64 + 8),
        (GPTQ8, 128, 4 * 64 + 8),
        (GPTQ8, 384, 4 * 64 + 8),
        (dense(half), 352, 4 * 128 + 8),
    ];
    for (format, k, m) in
        formats.into_iter().flat_map(|f| tested([f.0]).map(move |format| (format, f.1, f.2)))
    {
        let packed = pack(half, &[Stored::random(&mut rng, format, half, n, k)], RowOrder::Plain);
        let x = normals(&mut rng, half, m * k);
        let residual = rng.normals(m * n);
        let bits = |tile, rows: Range<usize>| {
            let launch = Launch { half, tile, packed: &packed, bias: None, n_runs: linear::runs(n, k, 50) };
            let residual = Buffer::of(&residual[rows.start * n..rows.end * n]);
            let out = Buffer::poisoned(rows.len() * n);
            launch.run(
                &x[rows.start * k..rows.end * k],
                rows.len(),
                Finish::AddResidual(residual.at),
                out.at,
            );
            out.read().iter().map(|v: &f32| v.to_bits()).collect::<Vec<u32>>()
        };
        for tile in prefill_tiles(packed.kind) {
            let whole: Vec<u32> =
                (0..m).step_by(128).flat_map(|at| bits(tile, at..m.min(at + 128))).collect();
            for several in [tile, None] {
                assert!(bits(several, 0..m) == whole, "{format:?} {tile:?} {several:?}");
            }
        }
    }
}

/// A layer of no weights.
fn empty() -> Linear {
    Linear {
        kind: WeightKind::Dense,
        half: Half::BF16,
        regime: Regime::Prefill,
        x: 0,
        ldx: 0,
        w: 0,
        order: RowOrder::Plain,
        bias: None,
        out: 0,
        m: 0,
        n: 0,
        k: 0,
        n_runs: 0,
        finish: Finish::Store,
        workspace: Workspace { partials: 0, arrivals: 0 },
    }
}

#[test]
fn rows_of_prompts_go_to_as_few_rounds_of_blocks_as_there_can_be() {
    let kernels = &gpu().kernels;
    let (sms, mut several) = (kernels.sm_count() as usize, 0);
    let kinds: Vec<WeightKind> = [WeightKind::Int4, WeightKind::Int8, WeightKind::Dense]
        .into_iter()
        .filter(|kind| is_tested(linear::kernel(*kind)))
        .collect();
    for (hidden, kv, intermediate) in [(1536, 256, 8960), (3584, 512, 18944), (8192, 1024, 29696)] {
        for (n, k) in
            [(hidden + 2 * kv, hidden), (hidden, hidden), (2 * intermediate, hidden), (hidden, intermediate)]
        {
            for kind in kinds.iter().copied() {
                for m in [1, 17, 64, 65, 128, 200, 512, 1035, 2048] {
                    let l = Linear { kind, m, n, k, ldx: k, n_runs: linear::runs(n, k, sms), ..empty() };
                    let launches: Vec<(Tile, Range<usize>)> = kernels.tiles(&l).collect();
                    let mut end = 0;
                    for (tile, rows) in &launches {
                        assert!(rows.start == end && rows.end > end, "{kind:?} {m}x{n}x{k}: {launches:?}");
                        assert!(
                            *tile != Tile::Run
                                || rows.len() <= kernels.tile_rows(kind, Half::BF16, Tile::Run)
                        );
                        assert!(*tile != Tile::Run || kind != WeightKind::Dense, "{launches:?}");
                        end = rows.end;
                    }
                    assert_eq!(end, m, "{kind:?} {m}x{n}x{k}: {launches:?}");
                    several += usize::from(launches.len() > 1);
                }
            }
        }
    }
    assert!(
        several > 0 || kinds.iter().all(|kind| *kind == WeightKind::Dense),
        "each layer goes to one kernel"
    );
}

/// Zero points and codes at both ends, so that their differences are the largest there are: all 255.
#[test]
fn the_largest_differences_of_8_bits_are_exact() {
    let k = 64;
    for (half, format) in HALVES.into_iter().flat_map(|half| tested([GPTQ8_G32]).map(move |f| (half, f))) {
        let stored = [Stored::extreme(format, 16, k)];
        let packed = pack(half, &stored, RowOrder::Plain);
        for tile in tiles(packed.kind) {
            let launch = Launch { half, tile, packed: &packed, bias: None, n_runs: 1 };
            // An input at a time.
            let mut x = vec![0; k * k];
            (0..k).for_each(|i| x[i * k + i] = round_to(half, 1.0));
            let y = [&x[..k * k / 2], &x[k * k / 2..]].map(|x| launch.f32(x, k / 2)).concat();
            for (at, found) in y.iter().enumerate() {
                let expected = packed.weights[at % 16 * k + at / 16];
                assert!(expected.abs() == 255.0 && f64::from(*found) == expected, "{half:?} {at}: {found}");
            }
        }
    }
}

#[test]
fn other_rows_of_nan_change_nothing() {
    let mut rng = Rng(4);
    let (n, k, m, n_runs) = (256, 256, 9, 2);
    for format in tested([AWQ4, GPTQ8, AWQ4_G32, dense(Half::BF16)]) {
        let stored = [Stored::random(&mut rng, format, Half::BF16, n, k)];
        let packed = pack(Half::BF16, &stored, RowOrder::Plain);
        let x = normals(&mut rng, Half::BF16, m * k);
        for tile in tiles(packed.kind) {
            let launch = Launch { half: Half::BF16, tile, packed: &packed, bias: None, n_runs };
            let clean = launch.f32(&x, m);
            let mut dirty = x.clone();
            dirty[3 * k..4 * k].fill(0x7fc0);
            let y = launch.f32(&dirty, m);
            for i in (0..m).filter(|i| *i != 3) {
                assert_eq!(y[i * n..(i + 1) * n], clean[i * n..(i + 1) * n], "{format:?} row {i}");
            }
            assert!(y[3 * n..4 * n].iter().all(|v| v.is_nan()));
        }
    }
}

#[test]
fn linears_take_the_sizes_of_the_published_models_in_as_many_runs_as_an_a100_has_multiprocessors() {
    let mut rng = Rng(9);
    // Hidden, key and value, intermediate size (padded as in the checkpoint) of the three models.
    for (hidden, kv, intermediate) in [(1536, 256, 8960), (3584, 512, 18944), (8192, 1024, 29696)] {
        let (qkv, gate_up) = (hidden + 2 * kv, 2 * intermediate);
        // Whole n and k by turns, the other side cut short.
        let mut sizes = vec![(qkv, 128), (gate_up, 128), (hidden, 256), (264, hidden), (136, intermediate)];
        if intermediate == 29696 {
            sizes.push((128, 29568)); // as it was before it was padded
        }
        for (n, k) in sizes {
            let format = FORMATS[(n + k) / 8 % FORMATS.len()];
            for format in tested([AWQ4, format, dense(Half::BF16)]) {
                let stored = [Stored::random(&mut rng, format, Half::BF16, n, k)];
                let packed = pack(Half::BF16, &stored, RowOrder::Plain);
                let n_runs = linear::runs(n, k, 108);
                let x = normals(&mut rng, Half::BF16, 3 * k);
                let exact = r::matmul(&values(Half::BF16, &x), &packed.weights, 3, n, k);
                for tile in tiles(packed.kind) {
                    let launch = Launch { half: Half::BF16, tile, packed: &packed, bias: None, n_runs };
                    for (at, (found, (sum, size))) in launch.f32(&x, 3).iter().zip(&exact).enumerate() {
                        let (error, bound) = ((f64::from(*found) - sum).abs(), bound(k, n_runs) * size);
                        assert!(error <= bound, "{format:?} {tile:?} {n}x{k} at {at}: {found} {sum}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_norm_as_prologue_gives_the_bits_of_a_norm_before() {
    let mut rng = Rng(10);
    for half in HALVES {
        // What the bits of records mean makes no difference here.
        let cast = Weights { kind: WeightKind::Cast, ..dense(half) };
        for format in tested(FORMATS.into_iter().chain([dense(half), cast])) {
            for (n, k, n_runs) in [(256, 128, 1), (384, 640, 5), (136, 8192, 21), (264, 1536, 3)] {
                let stored = [Stored::random(&mut rng, format, half, n, k)];
                let packed = pack(half, &stored, RowOrder::Plain);
                let most = gpu().kernels.norm_rows(packed.kind, half);
                let rows = Buffer::of(&rng.normals(most * k));
                let weight = Buffer::of(&rng.normals(k));
                let (x, y, z) = (
                    Buffer::<u16>::poisoned(most * k),
                    Buffer::poisoned(most * n),
                    Buffer::poisoned(most * n),
                );
                let norm = Norm {
                    kind: NormKind::Rms,
                    half,
                    x: rows.at,
                    row_index: None,
                    weight: weight.at,
                    out: x.at,
                    rows: most,
                    cols: k,
                    eps: 1e-6,
                };
                // SAFETY: buffers are as long as the shapes say and live until the stream is done.
                unsafe { gpu().kernels.norm(&stream(), &norm) }.unwrap();
                let sm_count = gpu().kernels.sm_count() as usize;
                let partials = Buffer::<u8>::scratch(linear::workspace_bytes(sm_count));
                let arrivals = Buffer::<u32>::zeroed(linear::arrivals(n, sm_count));
                for m in 1..=most {
                    let l = |x, out| Linear {
                        kind: packed.kind,
                        half,
                        regime: Regime::SmallM,
                        x,
                        ldx: k,
                        w: packed.records.at,
                        order: packed.order,
                        bias: None,
                        out,
                        m,
                        n,
                        k,
                        n_runs,
                        finish: Finish::StoreF32,
                        workspace: Workspace { partials: partials.at, arrivals: arrivals.at },
                    };
                    let prologue = Normalised { weight: weight.at, eps: 1e-6 };
                    // SAFETY: as above.
                    unsafe {
                        gpu().kernels.linear(&stream(), &l(x.at, y.at)).unwrap();
                        gpu().kernels.linear_of_norm(&stream(), &l(rows.at, z.at), &prologue).unwrap();
                    }
                    let bits =
                        |b: &Buffer<f32>| b.read()[..m * n].iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                    assert!(bits(&y) == bits(&z), "{format:?} {half:?} {m}x{n}x{k}");
                }
            }
        }
    }
}

#[test]
fn a_head_in_the_other_type_gives_the_bits_of_weights_that_were_rounded() {
    if !(is_tested("cast_gemm") && is_tested("dense_gemm")) {
        return;
    }
    let mut rng = Rng(11);
    for (half, other) in [(Half::BF16, Half::F16), (Half::F16, Half::BF16)] {
        for (n, k, n_runs) in [(80, 152, 2), (520, 1024, 4)] {
            let kept = Weights { kind: WeightKind::Cast, ..dense(other) };
            let mut stored = [Stored::random(&mut rng, kept, other, n, k)];
            // Records of the other type; the repacker rounds the same matrix.
            let kept = pack(other, &stored, RowOrder::Plain);
            stored[0].format.kind = WeightKind::Dense;
            let rounded = pack(half, &stored, RowOrder::Plain);
            let most = gpu().kernels.tile_rows(WeightKind::Cast, half, Tile::Run);
            let x = normals(&mut rng, half, most * k);
            for m in [1, 2, 8, 9, 17, 33, most] {
                let bits = |packed| {
                    let launch = Launch { half, tile: RUN, packed, bias: None, n_runs };
                    let y = launch.f32(&x[..m * k], m);
                    y.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
                };
                assert!(bits(&kept) == bits(&rounded), "{half:?} {m}x{n}x{k}");
            }
        }
    }
}

/// Relative error of the approximate exponential, reciprocal and what follows: a few units in the last place.
const POINTWISE: f64 = 16.0 * F32_EPS;

#[test]
fn pointwise_epilogues_match_float64() {
    let mut rng = Rng(5);
    let (n, k, n_runs) = (264, 384, 4);
    for half in HALVES {
        for format in tested([AWQ4, GPTQ8, AWQ4_G32, dense(half)]) {
            for (tile, m) in with_rows(format.kind) {
                let what = format!("{format:?} {half:?} {tile:?}");
                let stored = [Stored::random(&mut rng, format, half, n, k)];
                let packed = pack(half, &stored, RowOrder::Plain);
                let bias = rng.normals(n);
                let bias_at = Buffer::of(&bias);
                let launch = Launch { half, tile, packed: &packed, bias: Some(&bias_at), n_runs };
                let x = normals(&mut rng, half, m * k);
                let exact: Vec<(f64, f64)> = r::matmul(&values(half, &x), &packed.weights, m, n, k)
                    .into_iter()
                    .enumerate()
                    .map(|(at, (sum, size))| {
                        let bias = f64::from(bias[at % n]);
                        (sum + bias, bound(k, n_runs) * (size + bias.abs()))
                    })
                    .collect();
                type Formula = fn(f64) -> f64;
                let cases: [(Finish, Formula); 3] = [
                    (Finish::Store, |x| x),
                    (Finish::Activate(Activation::QuickGelu), r::quick_gelu),
                    (Finish::Activate(Activation::Gelu), r::gelu),
                ];
                for (finish, formula) in cases {
                    let out = Buffer::<u16>::poisoned(m * n);
                    launch.run(&x, m, finish, out.at);
                    for (found, (y, error)) in out.read().into_iter().zip(&exact) {
                        // The slope of the activations is below 1.2; far out they cancel to below 1e-7 · |x|.
                        let error = 1.2 * error + POINTWISE * (1.0 + y.abs()) * y.abs() + y.abs() * 1e-7;
                        check_rounded(half, found, formula(*y), error, &|| format!("{what} {finish:?}"));
                    }
                }
                let residual = rng.normals(m * n);
                let at = Buffer::of(&residual);
                launch.run(&x, m, Finish::AddResidual(at.at), at.at);
                for (i, found) in at.read().into_iter().enumerate() {
                    let (y, error) = exact[i];
                    let expected = y + f64::from(residual[i]);
                    let bound = error + 2.0 * F32_EPS * (expected.abs() + error);
                    assert!((f64::from(found) - expected).abs() <= bound, "{what} residual {i}");
                }
            }
        }
    }
}

#[test]
fn swiglu_takes_gate_and_up_from_the_two_parts() {
    let mut rng = Rng(6);
    let (n, k, n_runs) = (200, 256, 3);
    for half in HALVES {
        for format in tested([AWQ4, GPTQ8, AWQ4_G32, dense(half)]) {
            let parts: [Stored; 2] = std::array::from_fn(|_| Stored::random(&mut rng, format, half, n, k));
            let packed = pack(half, &parts, RowOrder::Paired { half: n });
            for (tile, m) in with_rows(format.kind) {
                let launch = Launch { half, tile, packed: &packed, bias: None, n_runs };
                let x = normals(&mut rng, half, m * k);
                let out = Buffer::<u16>::poisoned(m * n);
                launch.run(&x, m, Finish::SwiGlu, out.at);
                let exact = r::matmul(&values(half, &x), &packed.weights, m, 2 * n, k);
                for (at, found) in out.read().into_iter().enumerate() {
                    let (row, column) = (at / n * 2 * n, at % n);
                    let ((gate, a), (up, b)) = (exact[row + column], exact[row + n + column]);
                    let (a, b) = (bound(k, n_runs) * a, bound(k, n_runs) * b);
                    let error = 1.2 * a * (up.abs() + b)
                        + gate.abs() * b
                        + POINTWISE * (1.0 + gate.abs()) * gate.abs() * up.abs()
                        + 1e-7 * gate.abs() * up.abs();
                    check_rounded(half, found, r::silu(gate) * up, error, &|| {
                        format!("{format:?} {half:?} {at}")
                    });
                }
            }
        }
    }
}

#[test]
fn vision_rope_turns_the_first_two_thirds() {
    if !is_tested("dense_gemm") {
        return;
    }
    let mut rng = Rng(7);
    let (heads, d, k, m) = (3, 80, 160, 37);
    let n = 3 * heads * d;
    for half in HALVES {
        let stored = [Stored::random(&mut rng, dense(half), half, n, k)];
        let packed = pack(half, &stored, RowOrder::Paired { half: d / 2 });
        let (table, angles) = angle_table(&mut rng, 50, d / 4);
        let positions: Vec<u32> = (0..2 * m).map(|_| rng.below(50) as u32).collect();
        let bias = rng.normals(n);
        let (table, at, bias_at) = (Buffer::of(&table), Buffer::of(&positions), Buffer::of(&bias));
        let pairs = RopePairs::Vision(VisionRope { n_heads: heads, head_dim: d });
        let rope = Rope { angles: table.at, positions: at.at, pairs };
        let x = normals(&mut rng, half, m * k);
        let exact = r::matmul(&values(half, &x), &packed.weights, m, n, k);
        for tile in prefill_tiles(packed.kind).chain([None]) {
            let launch = Launch { half, tile, packed: &packed, bias: Some(&bias_at), n_runs: 1 };
            let out = Buffer::<u16>::poisoned(m * n);
            launch.run(&x, m, Finish::VisionRope(rope), out.at);
            let out = out.read();
            for i in 0..m {
                for head in 0..3 * heads {
                    let y = |c: usize| exact[i * n + head * d + c].0 + f64::from(bias[head * d + c]);
                    let row: Vec<f64> = (0..d).map(y).collect();
                    let turns: Vec<f64> = (0..d / 2)
                        .map(|j| angles[positions[2 * i + j / 20] as usize * 20 + j % 20])
                        .collect();
                    let expected = if head < 2 * heads { r::rotate(&row, &turns) } else { row };
                    let size: f64 = (0..d).map(|c| exact[i * n + head * d + c].1 + 4.0).fold(0.0, f64::max);
                    for c in 0..d {
                        let error = 2.0 * bound(k, 1) * size + 8.0 * F32_EPS * size;
                        check_rounded(half, out[i * n + head * d + c], expected[c], error, &|| {
                            format!("{half:?} {i} {head} {c}")
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn qkv_is_turned_and_its_keys_and_values_go_to_their_slots() {
    let mut rng = Rng(8);
    let (n_heads, n_kv_heads, d, k) = (3, 1, 128, 256);
    let heads = Heads { n_heads, n_kv_heads, head_dim: d };
    let n = (n_heads + 2 * n_kv_heads) * d;
    let (pages, layers, layer) = (4, 2, 1);
    let page_stride = layers * 2 * n_kv_heads * 64 * d;
    for half in HALVES {
        for format in tested([AWQ4, GPTQ8, AWQ4_G32, dense(half)]) {
            for (tile, m) in with_rows(format.kind) {
                let what = format!("{format:?} {half:?} {tile:?}");
                let parts = [n_heads * d, n_kv_heads * d, n_kv_heads * d]
                    .map(|n| Stored::random(&mut rng, format, half, n, k));
                let packed = pack(half, &parts, RowOrder::Paired { half: d / 2 });
                let (table, angles) = angle_table(&mut rng, 90, d / 2);
                let positions: Vec<u32> = (0..3 * m).map(|_| rng.below(90) as u32).collect();
                // Any slots, all different; one row is padding.
                let mut slots: Vec<u32> =
                    (0..m as u32).map(|i| (i * 83 + 17) % (64 * pages as u32)).collect();
                slots[2] = u32::MAX;
                let bias = rng.normals(n);
                let (table, at, bias_at) = (Buffer::of(&table), Buffer::of(&positions), Buffer::of(&bias));
                let (slots_at, kv) = (Buffer::of(&slots), Buffer::<u16>::poisoned(pages * page_stride));
                let pairs = RopePairs::MRope(MRope { head_dim: d, sections: [16, 24, 24], theta: 1e6 });
                let finish = Finish::RopeWriteKv {
                    rope: Rope { angles: table.at, positions: at.at, pairs },
                    kv: Kv {
                        pages: kv.at + (layer * 2 * n_kv_heads * 64 * d * 2) as u64,
                        page_stride: page_stride as u64,
                        heads,
                    },
                    slots: slots_at.at,
                };
                let launch = Launch { half, tile, packed: &packed, bias: Some(&bias_at), n_runs: 4 };
                let x = normals(&mut rng, half, m * k);
                let out = Buffer::<u16>::poisoned(m * n_heads * d);
                launch.run(&x, m, finish, out.at);
                let (out, kv) = (out.read(), kv.read());
                let exact = r::matmul(&values(half, &x), &packed.weights, m, n, k);
                let mut untouched = vec![true; kv.len()];
                for i in 0..m {
                    for head in 0..n_heads + 2 * n_kv_heads {
                        let y = |c: usize| exact[i * n + head * d + c].0 + f64::from(bias[head * d + c]);
                        let row: Vec<f64> = (0..d).map(y).collect();
                        let axis = |j: usize| {
                            if j < 16 {
                                0
                            } else if j < 40 {
                                1
                            } else {
                                2
                            }
                        };
                        let turns: Vec<f64> = (0..d / 2)
                            .map(|j| angles[positions[3 * i + axis(j)] as usize * (d / 2) + j])
                            .collect();
                        let value_head = head >= n_heads + n_kv_heads;
                        let expected = if value_head { row } else { r::rotate(&row, &turns) };
                        let size: f64 =
                            (0..d).map(|c| exact[i * n + head * d + c].1 + 4.0).fold(0.0, f64::max);
                        let error = 2.0 * bound(k, 4) * size + 8.0 * F32_EPS * size;
                        for c in 0..d {
                            let found = if head < n_heads {
                                out[i * n_heads * d + head * d + c]
                            } else if slots[i] == u32::MAX {
                                continue;
                            } else {
                                let (page, offset) = (slots[i] as usize / 64, slots[i] as usize % 64);
                                let plane = 2 * layer + usize::from(value_head);
                                let at = page * page_stride + (plane * 64 + offset) * d + c;
                                untouched[at] = false;
                                kv[at]
                            };
                            check_rounded(half, found, expected[c], error, &|| {
                                format!("{what} {i} {head} {c}")
                            });
                        }
                    }
                }
                assert!(kv.iter().zip(&untouched).all(|(v, untouched)| !untouched || *v == 0xffff), "{what}");
            }
        }
    }
}
