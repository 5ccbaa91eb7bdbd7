//! linear: launcher of int4_gemm, int8_gemm and dense_gemm; see `linear.cuh` for what they compute and in which order.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr;

use cudarc::driver::CudaStream;
use qwenvl_graph::Activation;
use qwenvl_graph::op::{Heads, MRope, VisionRope};

use super::norm::MAX_RMS_COLS;
pub use super::tiles::Tile;
use super::tiles::{Device, Shares, Size};
use super::{Address, Half, Kernels, Result, abi, check, name};

/// Inputs of a record: what runs are cut by.
pub const GROUP: usize = 128;
/// Outputs of a strip.
pub const STRIP: usize = 256;

/// How weights are stored in records.
pub use qwenvl_graph::cuda::WeightKind;

/// The kernel for weights of a kind, and its image.
pub const fn kernel(kind: WeightKind) -> &'static str {
    match kind {
        WeightKind::Int4 => "int4_gemm",
        WeightKind::Int4G64 => "int4_g64_gemm",
        WeightKind::Int4G32 => "int4_g32_gemm",
        WeightKind::Int8 => "int8_gemm",
        WeightKind::Int8G32 => "int8_g32_gemm",
        WeightKind::Dense => "dense_gemm",
        WeightKind::Cast => "cast_gemm",
    }
}

/// Which rows of a matrix share the accumulators of a lane; see `linear.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// In order.
    Plain,
    /// Row r of each head of `2 · half` rows with row r + half.
    Paired {
        /// Half a head; a multiple of 8.
        half: usize,
    },
}

impl RowOrder {
    pub(super) fn half(self) -> u32 {
        match self {
            RowOrder::Plain => 0,
            RowOrder::Paired { half } => half as u32,
        }
    }
}

/// Which order of sums: a promise of the plan for each kind of row. For 4- and 8-bit weights there is one: prompts and
/// generated tokens have the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regime {
    /// Of generated tokens and the head: inputs in slices.
    SmallM,
    /// Of prompts and pictures. 16-bit weights: all inputs in one chain.
    Prefill,
}

/// Where the rotary angles of rows come from: the table, and the positions of each row.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// `[positions, columns]` of (cos, sin) f32.
    pub angles: Address,
    /// `[rows, axes]` u32.
    pub positions: Address,
    /// Which pairs follow which axis.
    pub pairs: RopePairs,
}

/// Which pairs of channels follow which axis of the position, and which column of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopePairs {
    /// Three axes; a column for each pair.
    MRope(MRope),
    /// Two axes with half the pairs each; both start at the first column.
    Vision(VisionRope),
}

impl RopePairs {
    /// Columns of the table of angles.
    pub fn columns(&self) -> usize {
        match self {
            RopePairs::MRope(rope) => rope.head_dim / 2,
            RopePairs::Vision(rope) => rope.head_dim / 4,
        }
    }

    /// Half a head.
    pub fn half(&self) -> usize {
        match self {
            RopePairs::MRope(rope) => rope.head_dim / 2,
            RopePairs::Vision(rope) => rope.head_dim / 2,
        }
    }
}

impl Rope {
    /// Kernels load the angles of two pairs at once.
    pub(super) fn check(&self, kernel: &'static str) -> Result<()> {
        let p = self.abi();
        check(kernel, p.axis_end.iter().chain([&p.columns]).all(|end| end % 2 == 0), || {
            format!("axes of {:?} pairs, expected even numbers", p.axis_end)
        })?;
        check(kernel, self.angles % 16 == 0, || "angles must be 16-byte aligned".into())
    }

    /// Without the first rows.
    fn skip(self, rows: u64) -> Rope {
        Rope { positions: self.positions + rows * u64::from(self.abi().axes) * 4, ..self }
    }

    pub(super) fn abi(&self) -> abi::QwenvlRope {
        let (axes, axis_end, restart) = match self.pairs {
            RopePairs::MRope(rope) => {
                let [t, h, w] = rope.sections.map(|s| s as u32);
                (3, [t, t + h, t + h + w], 0)
            }
            RopePairs::Vision(rope) => {
                let quarter = rope.head_dim as u32 / 4;
                (2, [quarter, 2 * quarter, 2 * quarter], 1)
            }
        };
        abi::QwenvlRope {
            angles: self.angles as *const f32,
            positions: self.positions as *const u32,
            axes,
            axis_end,
            columns: self.pairs.columns() as u32,
            restart,
        }
    }
}

/// One layer of the KV cache: pages of `[2 (k, v), kv_heads, 64 tokens, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// The layer's part of page 0.
    pub pages: Address,
    /// Elements from a page to the next.
    pub page_stride: u64,
    /// Heads.
    pub heads: Heads,
}

impl Kv {
    pub(super) fn abi(&self) -> abi::QwenvlKv {
        abi::QwenvlKv {
            pages: self.pages as *mut c_void,
            page_stride: self.page_stride,
            kv_heads: self.heads.n_kv_heads as u32,
            head_dim: self.heads.head_dim as u32,
        }
    }
}

/// What follows the product. `out` is `[m, outputs]`, of the activations' type unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub enum Finish {
    /// Stores in f32.
    StoreF32,
    /// Stores.
    Store,
    /// A pointwise function.
    Activate(Activation),
    /// `out = residual + y`, both f32; they may be the same.
    AddResidual(Address),
    /// Gate and up, stacked and paired: `silu(gate) · up`, half as many outputs.
    SwiGlu,
    /// q, k, v of the vision tower, paired: rotates the first two thirds.
    VisionRope(Rope),
    /// q, k, v, paired: stores q rotated; writes k rotated and v to the slots (page · 64 + offset) of the rows.
    RopeWriteKv {
        /// Angles.
        rope: Rope,
        /// The layer.
        kv: Kv,
        /// `[m]` u32.
        slots: Address,
    },
}

/// `out = finish(x · wᵀ + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// How `w` is stored.
    pub kind: WeightKind,
    /// The type of `x`.
    pub half: Half,
    /// The order of sums.
    pub regime: Regime,
    /// `[m, k]`, rows `ldx` elements apart; 16-byte aligned.
    pub x: Address,
    /// Elements from a row of `x` to the next; a multiple of 8.
    pub ldx: usize,
    /// Records of `[n, k]`, as [`super::repack`] makes them.
    pub w: Address,
    /// The order of their rows.
    pub order: RowOrder,
    /// `[n]` f32, 16-byte aligned.
    pub bias: Option<Address>,
    /// See [`Finish`].
    pub out: Address,
    /// Rows.
    pub m: usize,
    /// Outputs of all parts.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Equal runs that the weights are cut into, as [`runs`] gives: part of the numeric contract.
    pub n_runs: usize,
    /// What follows.
    pub finish: Finish,
    /// [`workspace_bytes`] of any content, and [`arrivals`] zeroed u32.
    pub workspace: Workspace,
}

/// RMSNorm as a prologue of a linear layer: the same bits as [`Kernels::norm`] before it, a launch less.
#[derive(Clone, Copy, Debug)]
pub struct Normalised {
    /// `[k]` f32.
    pub weight: Address,
    /// Added under the root.
    pub eps: f64,
}

/// Memory that launches on one stream share.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// Partial sums.
    pub partials: Address,
    /// Arrivals: zero before the first launch, and after each.
    pub arrivals: Address,
}

/// Runs for a matrix on a device with `sm_count` multiprocessors: one each, if there are that many units of 256 outputs
/// and 128 inputs.
pub fn runs(n: usize, k: usize, sm_count: usize) -> usize {
    sm_count.min(n.div_ceil(STRIP) * k.div_ceil(GROUP))
}

/// Most rows of [`Tile::Run`].
pub use qwenvl_graph::cuda::SMALL_ROWS as RUN_ROWS;
/// Bytes of partial sums, and counters, for layers of at most so many outputs on a device with so many
/// multiprocessors.
pub use qwenvl_graph::cuda::{linear_arrivals as arrivals, linear_partials_bytes as workspace_bytes};

/// Rows of the kernel of runs that takes `m`.
pub(super) fn small_rows(m: usize) -> usize {
    m.next_power_of_two().max(8)
}

impl Linear {
    /// Some of the rows.
    fn rows(&self, rows: Range<usize>) -> Linear {
        let (first, m) = (rows.start as u64, rows.len());
        let (cols, bytes) = match self.finish {
            Finish::StoreF32 | Finish::AddResidual(_) => (self.n, 4),
            Finish::SwiGlu => (self.n / 2, 2),
            Finish::RopeWriteKv { kv, .. } => (kv.heads.n_heads * kv.heads.head_dim, 2),
            _ => (self.n, 2),
        };
        let finish = match self.finish {
            Finish::AddResidual(residual) => Finish::AddResidual(residual + first * self.n as u64 * 4),
            Finish::VisionRope(rope) => Finish::VisionRope(rope.skip(first)),
            Finish::RopeWriteKv { rope, kv, slots } => {
                Finish::RopeWriteKv { rope: rope.skip(first), kv, slots: slots + first * 4 }
            }
            finish @ (Finish::StoreF32 | Finish::Store | Finish::Activate(_) | Finish::SwiGlu) => finish,
        };
        Linear {
            x: self.x + first * self.ldx as u64 * 2,
            out: self.out + first * cols as u64 * bytes,
            m,
            finish,
            ..*self
        }
    }

    /// What the kernels take, but for limits of their own.
    pub(super) fn parameters(&self, norm: Option<&Normalised>) -> Result<abi::QwenvlLinear> {
        let kernel = kernel(self.kind);
        check(kernel, self.n > 0 && self.k > 0 && self.k % 8 == 0 && self.ldx % 8 == 0, || {
            format!("n {}, k {}, ldx {}: k and ldx must be multiples of 8", self.n, self.k, self.ldx)
        })?;
        check(kernel, self.ldx >= self.k || self.m == 1, || {
            format!("rows of {} elements for {} inputs", self.ldx, self.k)
        })?;
        check(kernel, [self.x, self.w, self.bias.unwrap_or(0)].iter().all(|at| at % 16 == 0), || {
            "x, w and bias must be 16-byte aligned".into()
        })?;
        let units = self.n.div_ceil(STRIP) * self.k.div_ceil(GROUP);
        check(kernel, (1..=units).contains(&self.n_runs) && (units + 1) * self.n_runs < 1 << 32, || {
            format!("{} runs of {units} units", self.n_runs)
        })?;
        let half = self.order.half();
        let expected = match self.finish {
            Finish::SwiGlu => self.n as u32 / 2,
            Finish::VisionRope(rope) | Finish::RopeWriteKv { rope, .. } => rope.pairs.half() as u32,
            _ => half,
        };
        check(kernel, half == expected, || format!("rows paired by {half}, the epilogue needs {expected}"))?;
        check(kernel, self.n % 8 == 0 && self.out % 16 == 0, || {
            format!("n {} and out must be multiples of 8", self.n)
        })?;
        check(kernel, half == 0 || (half % 8 == 0 && self.n % (2 * half as usize) == 0), || {
            format!("{} outputs in heads of 2 · {half}", self.n)
        })?;

        let mut p = abi::QwenvlLinear {
            x: self.x as *const c_void,
            w: self.w as *const c_void,
            bias: self.bias.map_or(ptr::null(), |b| b as *const f32),
            out: self.out as *mut c_void,
            partials: self.workspace.partials as *mut f32,
            arrivals: self.workspace.arrivals as *mut u32,
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            ldx: self.ldx as u32,
            ldo: self.n as u32,
            half,
            n_runs: self.n_runs as u32,
            norm_weight: norm.map_or(ptr::null(), |norm| norm.weight as *const f32),
            eps: norm.map_or(0.0, |norm| norm.eps as f32),
            ..Default::default()
        };
        p.epilogue = match self.finish {
            Finish::StoreF32 => abi::QWENVL_STORE_F32,
            Finish::Store => abi::QWENVL_STORE,
            Finish::Activate(Activation::QuickGelu) => abi::QWENVL_QUICK_GELU,
            Finish::Activate(Activation::Gelu) => abi::QWENVL_GELU,
            Finish::AddResidual(residual) => {
                p.residual = residual as *const f32;
                abi::QWENVL_RESIDUAL
            }
            Finish::SwiGlu => {
                p.ldo = p.n / 2;
                abi::QWENVL_SWIGLU
            }
            Finish::VisionRope(rope) => {
                rope.check(kernel)?;
                p.rope = rope.abi();
                p.n_rotated = p.n / 3 * 2;
                abi::QWENVL_ROPE
            }
            Finish::RopeWriteKv { rope, kv, slots } => {
                let Heads { n_heads, n_kv_heads, head_dim } = kv.heads;
                check(kernel, self.n == (n_heads + 2 * n_kv_heads) * head_dim, || {
                    format!("{} outputs for {n_heads} and twice {n_kv_heads} heads of {head_dim}", self.n)
                })?;
                rope.check(kernel)?;
                p.rope = rope.abi();
                p.kv = kv.abi();
                p.slots = slots as *const u32;
                p.n_q = (n_heads * head_dim) as u32;
                p.n_rotated = ((n_heads + n_kv_heads) * head_dim) as u32;
                p.ldo = p.n_q;
                abi::QWENVL_ROPE_KV
            }
        };
        Ok(p)
    }
}

impl Kernels {
    /// Launches a linear layer: one kernel or, of many rows, several.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device, of the sizes and contents that [`Linear`] says, that no other stream
    /// writes; positions, slots and page ids are in range.
    pub unsafe fn linear(&self, stream: &CudaStream, l: &Linear) -> Result<()> {
        let kernel = kernel(l.kind);
        check(kernel, l.m > 0 && l.n_runs > 0, || format!("{} rows, {} runs", l.m, l.n_runs))?;
        check(kernel, l.kind != WeightKind::Cast || l.regime == Regime::SmallM, || "few rows only".into())?;
        for (tile, rows) in self.tiles(l) {
            // SAFETY: the caller's promise.
            unsafe { self.launch_linear(stream, &l.rows(rows), tile, None)? }
        }
        Ok(())
    }

    /// Launches one kernel for a linear layer: for tests.
    ///
    /// # Errors
    /// As [`Kernels::linear`], and for more rows than the kernel takes.
    ///
    /// # Safety
    /// As [`Kernels::linear`].
    pub unsafe fn linear_of_tile(&self, stream: &CudaStream, l: &Linear, tile: Tile) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_linear(stream, l, tile, None) }
    }

    /// The kernels that [`Kernels::linear`] launches for a layer, with their rows. Addresses play no part.
    pub fn tiles(&self, l: &Linear) -> impl Iterator<Item = (Tile, Range<usize>)> + use<> {
        let rows = |tile| self.tile_rows(l.kind, l.half, tile);
        let shares = match l.regime {
            Regime::SmallM => Shares { wide: 0, rest: Tile::Run, step: rows(Tile::Run), m: l.m },
            Regime::Prefill => Device { sm_count: self.sm_count as usize, rows }
                .share(&Size { kind: l.kind, n: l.n, k: l.k, n_runs: l.n_runs }, l.m),
        };
        shares.launches()
    }

    /// Rows of a tile, of [`Tile::Run`] the most: [`RUN_ROWS`], or fewer where shared memory is small.
    ///
    /// # Panics
    /// If weights of that kind have no such tile.
    pub fn tile_rows(&self, kind: WeightKind, half: Half, tile: Tile) -> usize {
        let name = match tile {
            Tile::Run => "m64",
            Tile::Wide => "prefill",
            Tile::Square => "square",
            Tile::Narrow => "narrow",
        };
        self.function(&name!("{}_{}_{name}", kernel(kind), half.name())).config[1] as usize
    }

    /// Rows that [`Kernels::linear_of_norm`] takes.
    pub fn norm_rows(&self, kind: WeightKind, half: Half) -> usize {
        self.function(&name!("{}_{}_norm", kernel(kind), half.name())).config[1] as usize
    }

    /// Launches a linear layer of few rows whose `x` is f32 and normalised first: at most [`Kernels::norm_rows`] rows
    /// and [`super::norm::MAX_RMS_COLS`] inputs.
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    ///
    /// # Safety
    /// As [`Kernels::linear`].
    pub unsafe fn linear_of_norm(&self, stream: &CudaStream, l: &Linear, norm: &Normalised) -> Result<()> {
        let (most, kernel) = (self.norm_rows(l.kind, l.half), kernel(l.kind));
        check(kernel, l.regime == Regime::SmallM && l.m <= most && l.k <= MAX_RMS_COLS, || {
            format!("{} rows of {}, expected at most {most} of {MAX_RMS_COLS}", l.m, l.k)
        })?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_linear(stream, l, Tile::Run, Some(norm)) }
    }

    /// # Safety
    /// As [`Kernels::linear`].
    unsafe fn launch_linear(
        &self,
        stream: &CudaStream,
        l: &Linear,
        tile: Tile,
        norm: Option<&Normalised>,
    ) -> Result<()> {
        let p = l.parameters(norm)?;
        let kernel = kernel(l.kind);
        let limit = if tile == Tile::Run { RUN_ROWS } else { usize::MAX };
        check(kernel, (1..=limit).contains(&l.m), || format!("{} rows, expected 1 to {limit}", l.m))?;
        let name = match (tile, norm) {
            (Tile::Run, Some(_)) => name!("{kernel}_{}_norm", l.half.name()),
            (Tile::Run, None) => name!("{kernel}_{}_m{}", l.half.name(), small_rows(l.m)),
            (Tile::Wide, _) => name!("{kernel}_{}_prefill", l.half.name()),
            (Tile::Square, _) => name!("{kernel}_{}_square", l.half.name()),
            (Tile::Narrow, _) => name!("{kernel}_{}_narrow", l.half.name()),
        };
        let (rows, multiprocessors) = (self.function(&name).config[1] as usize, self.sm_count as usize);
        let grid = match tile {
            Tile::Run => {
                check(kernel, l.m <= rows, || format!("{} rows: at most {rows} on this device", l.m))?;
                l.n_runs
            }
            _ => {
                let blocks = tile.blocks(l.m.div_ceil(rows) * l.n.div_ceil(tile.outputs()), multiprocessors);
                let stages = 4 * l.k.div_ceil(GROUP);
                let most = (1 << 32) / (2 * blocks * blocks);
                check(kernel, stages < most, || format!("{} inputs, expected below {}", l.k, most * 32))?;
                blocks
            }
        };
        let grid = grid as u32;
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, (grid, 1, 1), tile.threads(), &p) }
    }
}

/// The weight of output `n` and place `l` in the bytes of records: the layout of `linear.cuh` in Rust, for tests and
/// tools.
///
/// # Panics
/// If there is no such weight.
pub fn matrix_weight(
    bytes: &[u8],
    kind: WeightKind,
    half: Half,
    order: RowOrder,
    k: usize,
    n: usize,
    l: usize,
) -> f64 {
    let row = match order {
        RowOrder::Plain => n,
        RowOrder::Paired { half } => {
            let (head, channel) = (n / (2 * half), n % (2 * half));
            let (h, j) = (channel / half, channel % half);
            (head * (half / 8) + j / 8) * 16 + h * 8 + j % 8
        }
    };
    let at = (row / 128 * k.div_ceil(128) + l / 128) * kind.record_bytes();
    let record = &bytes[at..at + kind.record_bytes()];
    let (u, j, h, g) = (row % 128 / 32, row % 32 / 16, row % 16 / 8, row % 8);
    let (b, t, s, y) = (l % 128 / 32, l % 32 / 8, l % 8 / 4, l % 4);
    let lane = 4 * g + t;
    let tail = ((u * 8 + g) * 2 + j) * 2 + h;
    // Where the scales and zero points of the group start.
    let group = |codes: usize| {
        let groups = 128 / kind.group();
        codes + l % 128 / kind.group() * ((kind.record_bytes() - codes) / groups)
    };
    let scale =
        |at: usize| half::f16::from_le_bytes([record[at + 2 * tail], record[at + 2 * tail + 1]]).to_f64();
    match kind {
        WeightKind::Int4 | WeightKind::Int4G64 | WeightKind::Int4G32 => {
            let word = ((u * 4 + b) * 32 + lane) * 16 + (2 * s + j) * 4;
            let nibble = h + 2 * (y / 2) + 4 * (y % 2);
            let code = record[word + nibble / 2] >> (4 * (nibble % 2)) & 15;
            let zero = record[group(8192) + 256 + tail / 2] >> (4 * (tail % 2)) & 15;
            (f64::from(code) - f64::from(zero)) * scale(group(8192))
        }
        WeightKind::Int8 | WeightKind::Int8G32 => {
            let at = (((u * 4 + b) * 2 + j) * 32 + lane) * 16 + (2 * s + y / 2) * 4 + h + 2 * (y % 2);
            let zero = if kind == WeightKind::Int8 { 128 } else { record[group(16384) + 256 + tail] };
            (f64::from(record[at]) - f64::from(zero)) * scale(group(16384))
        }
        WeightKind::Dense | WeightKind::Cast => {
            let vector = ((u * 4 + b) * 2 + s) * 2 + j;
            let at = (vector * 32 + lane) * 16 + (h + 2 * (y / 2)) * 4 + 2 * (y % 2);
            let bits = u16::from_le_bytes([record[at], record[at + 1]]);
            match half {
                Half::BF16 => half::bf16::from_bits(bits).to_f64(),
                Half::F16 => half::f16::from_bits(bits).to_f64(),
            }
        }
    }
}
