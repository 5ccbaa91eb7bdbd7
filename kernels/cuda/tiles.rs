//! Which kernels the rows of a linear layer go to. Kernels of one [`super::linear::Regime`] give the same bits, so that
//! the choice is one of speed: all multiprocessors have work, and as long as each other.

use std::ops::Range;

use super::linear::{GROUP, STRIP, WeightKind, small_rows};

/// What a block of threads works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// A run of the weights and all rows, few as they are: each weight comes from memory once.
    Run,
    /// 256 outputs of 128 rows of 16-bit weights, or of 16 to 64 rows: see [`super::Kernels::tile_rows`].
    Wide,
    /// 128 outputs of 128 rows; of 16-bit weights only.
    Square,
    /// 64 outputs of 64 rows; of 16-bit weights only.
    Narrow,
}

impl Tile {
    /// The kernels for prompts of such weights.
    pub const fn of_prompts(kind: WeightKind) -> &'static [Tile] {
        match kind {
            WeightKind::Dense => &[Tile::Wide, Tile::Square, Tile::Narrow],
            _ => &[Tile::Wide],
        }
    }

    /// Outputs of a tile.
    pub const fn outputs(self) -> usize {
        match self {
            Tile::Run | Tile::Wide => STRIP,
            Tile::Square => 128,
            Tile::Narrow => 64,
        }
    }

    /// Blocks that work on so many tiles: a multiprocessor has as many as every other.
    pub fn blocks(self, tiles: usize, sm_count: usize) -> usize {
        let of_each = match self {
            Tile::Run | Tile::Wide => 1,
            Tile::Square | Tile::Narrow => (tiles / sm_count).clamp(1, 2),
        };
        tiles.min(of_each * sm_count)
    }

    /// Threads of a block.
    pub(super) const fn threads(self) -> u32 {
        match self {
            Tile::Square => 128,
            Tile::Run | Tile::Wide | Tile::Narrow => 256,
        }
    }

    /// How fast a multiprocessor full of them multiplies, against [`Tile::Wide`].
    const fn rate(self) -> f64 {
        match self {
            Tile::Run | Tile::Wide => 1.0,
            Tile::Square => SQUARE,
            Tile::Narrow => NARROW,
        }
    }
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
/// Adding the sums of a run to those of the runs before it in a strip.
const JOIN: f64 = 0.2;
/// Leaving the sums of a tile that is cut, and taking up those of another.
const CUT: f64 = 0.8;
/// Reading weights of 16 bits from memory, where there are few rows.
const MEMORY: f64 = 2.2;
/// Of the lesser of multiplying and reading what the other does not hide.
const UNHIDDEN: f64 = 0.2;
/// [`Tile::rate`]: more of the rows and weights come from L2 and shared memory.
const SQUARE: f64 = 0.9;
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

/// A device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device<R> {
    pub sm_count: usize,
    /// Rows of a tile, of [`Tile::Run`] the most.
    pub rows: R,
}

impl<R: Fn(Tile) -> usize> Device<R> {
    /// Shares out `m` rows of a prompt: some to wide tiles, and what is left to runs of integer weights or to smaller tiles
    /// of 16-bit ones, whatever takes the least time.
    pub fn share(&self, size: &Size, m: usize) -> Shares {
        let wide = (self.rows)(Tile::Wide);
        let others =
            if size.kind == WeightKind::Dense { &[Tile::Square, Tile::Narrow][..] } else { &[Tile::Run] };
        let ways = (0..=m.div_ceil(wide)).flat_map(|tiles| others.iter().map(move |rest| (tiles, *rest)));
        let cost = |(tiles, rest): (usize, Tile)| {
            let left = m.saturating_sub(tiles * wide);
            let rest = if rest == Tile::Run { self.runs(size, left) } else { self.tiles(size, rest, left) };
            self.tiles(size, Tile::Wide, tiles * wide) + rest
        };
        let (tiles, rest) = ways.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).expect("one way at least");
        let step = if rest == Tile::Run { (self.rows)(Tile::Run) } else { m };
        Shares { wide: m.min(tiles * wide), rest, step, m }
    }

    fn tiles(&self, size: &Size, tile: Tile, rows: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let tile_rows = (self.rows)(tile);
        let tiles = size.n.div_ceil(tile.outputs()) * rows.div_ceil(tile_rows);
        let blocks = tile.blocks(tiles, self.sm_count);
        let is_cut = tiles > blocks && !tiles.is_multiple_of(blocks);
        let of_tile = size.k.div_ceil(GROUP) as f64 + EPILOGUE;
        // Work of the busiest multiprocessor, in tiles.
        let work = (tiles as f64 / self.sm_count as f64).max(1.0) * of_tile + if is_cut { CUT } else { 0.0 };
        let units = (tile.outputs() * tile_rows) as f64 / (STRIP * 64) as f64;
        work * units / tile.rate() + LAUNCH
    }

    fn runs(&self, size: &Size, rows: usize) -> f64 {
        let strips = size.n.div_ceil(STRIP);
        let units = strips * size.k.div_ceil(GROUP);
        let runs_of_strip = 1.0 + size.n_runs as f64 / strips as f64;
        let (longest, least) =
            (units.div_ceil(size.n_runs) as f64, MEMORY * f64::from(size.kind.bits()) / 16.0);
        let launch = |rows: usize| {
            let work = small_rows(rows) as f64 / 64.0;
            let unit = work.max(least) + UNHIDDEN * work.min(least);
            unit * longest + LAUNCH + work * (EPILOGUE + JOIN * runs_of_strip)
        };
        let most = (self.rows)(Tile::Run);
        let (whole, rest) = (rows / most, rows % most);
        whole as f64 * launch(most) + if rest == 0 { 0.0 } else { launch(rest) }
    }
}
