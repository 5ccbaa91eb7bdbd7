//! Which kernels the rows of a linear layer go to. Kernels of one [`super::linear::Regime`] give the same bits, so that
//! the choice is one of speed: of as few rounds of blocks as there can be, and all of them full.

use std::ops::Range;

use super::linear::{GROUP, STRIP, WeightKind, small_rows};

/// What a block of threads works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// A run of the weights and all rows, few as they are: each weight comes from memory once.
    Run,
    /// 256 outputs of 64 or, of 16-bit weights, 128 rows.
    Wide,
    /// 64 outputs of 64 rows; of 16-bit weights only.
    Narrow,
}

/// Outputs of [`Tile::Narrow`].
pub(super) const NARROW_OUTPUTS: usize = 64;
/// Blocks of [`Tile::Narrow`] that a multiprocessor holds.
pub(super) const NARROW_BLOCKS: usize = 2;

/// A device, and the rows that blocks of its kernels take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub sm_count: usize,
    /// At most.
    pub run: usize,
    pub wide: usize,
    pub narrow: usize,
}

/// A linear layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub kind: WeightKind,
    pub n: usize,
    pub k: usize,
    pub n_runs: usize,
}

// Costs are in units of 256 outputs, 128 inputs and 64 rows of one block: 1.7 µs of tensor cores on an A100.

/// What a launch costs beside its work: 1.3 µs between kernels, 1.5 µs to fill and drain.
const LAUNCH: f64 = 1.7;
/// What the end of a block's tile costs, while nothing is multiplied.
const EPILOGUE: f64 = 2.0;
/// Adding a run to those before it: 64 KiB from L2 to the one block that joins a strip.
const JOIN: f64 = 0.4;
/// Reading weights of 16 bits from memory, where there are few rows.
const MEMORY: f64 = 2.2;
/// A narrow tile has a quarter of the work, at half of the rate: shared memory sets it.
const NARROW: f64 = 0.5;

/// Rows and their tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Rows of wide tiles, the first ones.
    pub wide: usize,
    /// Tiles of the others.
    pub rest: Tile,
    /// Rows of one launch of those.
    pub step: usize,
    /// All rows.
    pub m: usize,
}

impl Shares {
    /// Launches in order.
    pub fn launches(self) -> impl Iterator<Item = (Tile, Range<usize>)> {
        let Shares { wide, rest, step, m } = self;
        let others = (wide..m).step_by(step).map(move |first| (rest, first..m.min(first + step)));
        (wide > 0).then_some((Tile::Wide, 0..wide)).into_iter().chain(others)
    }
}

impl Rows {
    /// Shares out `m` rows of a prompt: whole rounds of wide tiles, and what is left to runs of integer weights or to narrow
    /// tiles of 16-bit ones, whatever takes the least time.
    pub fn share(&self, size: &Size, m: usize) -> Shares {
        let is_integer = size.kind != WeightKind::Dense;
        let cost = |tiles: usize| {
            let rest = match m.saturating_sub(tiles * self.wide) {
                0 => 0.0,
                rows if is_integer => self.runs(size, rows),
                rows => self.narrow(size, rows),
            };
            self.wide(size, tiles) + rest
        };
        let tiles = (0..=m.div_ceil(self.wide)).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(0);
        let (rest, step) = if is_integer { (Tile::Run, self.run) } else { (Tile::Narrow, m) };
        Shares { wide: m.min(tiles * self.wide), rest, step, m }
    }

    fn wide(&self, size: &Size, tiles: usize) -> f64 {
        let blocks = size.n.div_ceil(STRIP) * tiles;
        let rounds = blocks.div_ceil(self.sm_count);
        let work = rounds as f64 * (size.k.div_ceil(GROUP) as f64 + EPILOGUE) * self.wide as f64 / 64.0;
        if tiles == 0 { 0.0 } else { work + LAUNCH }
    }

    fn runs(&self, size: &Size, rows: usize) -> f64 {
        let strips = size.n.div_ceil(STRIP);
        let units = strips * size.k.div_ceil(GROUP);
        let runs_of_strip = 1.0 + size.n_runs as f64 / strips as f64;
        let (longest, least) =
            (units.div_ceil(size.n_runs) as f64, MEMORY * f64::from(size.kind.bits()) / 16.0);
        let launch = |rows: usize| {
            let work = small_rows(rows) as f64 / 64.0;
            work.max(least) * longest + LAUNCH + work * (EPILOGUE + JOIN * runs_of_strip)
        };
        let (whole, rest) = (rows / self.run, rows % self.run);
        whole as f64 * launch(self.run) + if rest == 0 { 0.0 } else { launch(rest) }
    }

    fn narrow(&self, size: &Size, rows: usize) -> f64 {
        let blocks = size.n.div_ceil(NARROW_OUTPUTS) * rows.div_ceil(self.narrow);
        let rounds = (blocks as f64 / self.sm_count as f64).max(1.0);
        rounds * (size.k.div_ceil(GROUP) as f64 + EPILOGUE) * NARROW + LAUNCH
    }
}
