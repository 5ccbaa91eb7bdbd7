//! attention: launchers of flash_attn (vision tower), paged_prefill and paged_attn (decode).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::c_void;
use std::ptr;

use cudarc::driver::CudaStream;

use super::linear::Kv;
use super::{Address, Half, Kernels, Result, abi, check, name};

/// A tile of query rows on the device: 32 bytes at a multiple of 16.
pub use super::abi::QwenvlAttentionTile as Tile;
/// A sequence on the device: its rows, and for the decoder the keys before them and its page table.
pub use super::abi::QwenvlSequence as Sequence;

const NO_TILE: u32 = abi::QWENVL_NO_TILE;
const PAGE_TOKENS: u32 = abi::QWENVL_PAGE_TOKENS;
/// Query rows of a tile of the vision tower: those of the kernels. Large ones read keys less often, small ones fill a
/// device sooner; the bits of a result are the same.
pub const VISION_TILE_ROWS: [usize; 2] = [128, 64];
/// The same for prefill.
pub const PREFILL_TILE_ROWS: [usize; 3] = [128, 64, 32];
/// Keys of a split of decode attention, up to the most splits.
pub const SPLIT_TOKENS: usize = abi::QWENVL_DECODE_TOKENS as usize;
/// Most splits of a sequence.
pub const MAX_SPLITS: usize = abi::QWENVL_DECODE_SPLITS as usize;

/// The tiles of a call, and the work of each block of prefill attention while they are shared out.
#[derive(Debug, Default)]
pub struct TileList {
    /// As the kernels take them.
    pub tiles: Vec<Tile>,
    /// Their rows.
    pub tile_rows: usize,
    /// The work of a block and its last tile.
    blocks: BinaryHeap<Reverse<(u32, u32)>>,
}

impl TileList {
    /// A list with room for so many tiles, on a device of so many multiprocessors.
    pub fn with_capacity(tiles: usize, multiprocessors: usize) -> TileList {
        let most_blocks = prefill_blocks(PREFILL_TILE_ROWS[2], multiprocessors);
        TileList {
            tiles: Vec::with_capacity(tiles),
            tile_rows: 0,
            blocks: BinaryHeap::with_capacity(most_blocks),
        }
    }

    /// Lists the tiles of a call anew: those that see most keys first, so that the last to start are short. Among those
    /// that see about as many, the ones of a sequence and head run together, so that its keys and values are in L2.
    ///
    /// `heads` are those of the vision tower, or the key heads of the decoder with `group` query heads each. In the
    /// vision tower `past` is 0 and a tile sees all rows of its sequence.
    pub fn list(&mut self, sequences: &[Sequence], heads: usize, group: usize, tile_rows: usize) {
        let tiles = &mut self.tiles;
        tiles.clear();
        self.tile_rows = tile_rows;
        for &sequence in sequences {
            for head in 0..heads as u32 {
                for first_row in (0..sequence.rows * group as u32).step_by(tile_rows) {
                    tiles.push(Tile { sequence, head, first_row, next: NO_TILE, ..Tile::default() });
                }
            }
        }
        let keys = |t: &Tile| keys_of(t, group, tile_rows);
        let step = tiles.iter().map(keys).max().map_or(1, |longest| (longest / 8).max(1));
        // No two are alike, and a stable sort would take memory.
        tiles.sort_unstable_by_key(|t| {
            let s = &t.sequence;
            (Reverse(keys(t) / step), Reverse(s.rows), s.first, t.head, Reverse(t.first_row))
        });
    }

    /// Shares the tiles out to the blocks of prefill attention: the first each, then the next to the block that has
    /// least to do.
    pub fn link(&mut self, group: usize, multiprocessors: usize) {
        let n_blocks = prefill_blocks(self.tile_rows, multiprocessors);
        self.blocks.clear();
        for at in 0..self.tiles.len() {
            // What a tile takes beside its pages is about as much as another.
            let pages = keys_of(&self.tiles[at], group, self.tile_rows).div_ceil(PAGE_TOKENS) + 1;
            let before = if at < n_blocks { None } else { self.blocks.pop() };
            let work = before.map_or(0, |Reverse((work, last))| {
                self.tiles[last as usize].next = at as u32;
                work
            });
            self.blocks.push(Reverse((work + pages, at as u32)));
        }
    }

    /// The work of the busiest block over the mean, once the tiles are linked.
    pub fn imbalance(&self) -> f64 {
        let work = || self.blocks.iter().map(|Reverse((work, _))| f64::from(*work));
        work().fold(0.0, f64::max) * self.blocks.len() as f64 / work().sum::<f64>()
    }
}

/// Keys that a tile sees.
fn keys_of(t: &Tile, group: usize, tile_rows: usize) -> u32 {
    let s = &t.sequence;
    s.past + s.rows.min((t.first_row + tile_rows as u32).div_ceil(group as u32))
}

/// Blocks of prefill attention that run at once on a device of so many multiprocessors.
fn prefill_blocks(tile_rows: usize, multiprocessors: usize) -> usize {
    if tile_rows == PREFILL_TILE_ROWS[0] { multiprocessors } else { 2 * multiprocessors }
}

/// Tiles of so many rows in a call, see [`TileList::list`].
fn count_tiles(sequences: &[Sequence], heads: usize, group: usize, tile_rows: usize) -> usize {
    heads * sequences.iter().map(|s| (s.rows as usize * group).div_ceil(tile_rows)).sum::<usize>()
}

/// Of [`VISION_TILE_ROWS`] those with which a device of so many multiprocessors is done first. Tiles are alike, so that
/// the multiprocessors that have most of them decide; a row takes a sixth longer in a small one.
pub fn vision_tile_rows(sequences: &[Sequence], n_heads: usize, multiprocessors: usize) -> usize {
    let [large, small] = VISION_TILE_ROWS;
    let most_rows =
        |tile_rows| count_tiles(sequences, n_heads, 1, tile_rows).div_ceil(multiprocessors) * tile_rows;
    if 7 * most_rows(small) < 6 * most_rows(large) { small } else { large }
}

/// The same of [`PREFILL_TILE_ROWS`]. Tiles differ in their keys, so that a few for each multiprocessor are shared out
/// evenly; where there are less, the longest decides, which takes half as long in rows of 32.
pub fn prefill_tile_rows(
    sequences: &[Sequence],
    n_kv_heads: usize,
    group: usize,
    multiprocessors: usize,
) -> usize {
    let [large, medium, small] = PREFILL_TILE_ROWS;
    let count = |tile_rows| count_tiles(sequences, n_kv_heads, group, tile_rows);
    if 3 * count(large) >= 4 * multiprocessors {
        large
    } else if count(medium) >= multiprocessors {
        medium
    } else {
        small
    }
}

/// Attention of many rows.
#[derive(Clone, Copy, Debug)]
pub struct FlashAttention {
    /// Type of queries, keys, values and results.
    pub half: Half,
    /// Where keys and values are.
    pub keys: Keys,
    /// `[n_tiles]` of [`Tile`], as [`TileList`] has them; for prefill linked.
    pub tiles: Address,
    /// How many.
    pub n_tiles: usize,
    /// Their rows, of [`VISION_TILE_ROWS`] or [`PREFILL_TILE_ROWS`].
    pub tile_rows: usize,
    /// `[rows, heads · head_dim]`.
    pub out: Address,
}

/// Where keys and values are.
#[derive(Clone, Copy, Debug)]
pub enum Keys {
    /// Vision tower: `[patches, 3 · heads · 80]`, q, k and v side by side. A row sees its whole sequence.
    Vision {
        /// The rows.
        qkv: Address,
        /// Heads.
        n_heads: usize,
    },
    /// Prefill: queries `[tokens, n_heads · 128]`; keys in pages; a token sees those up to itself.
    Paged {
        /// The queries.
        q: Address,
        /// The layer.
        kv: Kv,
        /// Pages of all sequences, u32.
        page_table: Address,
    },
}

/// Attention of one new token per sequence.
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention {
    /// Type of queries, keys, values and results.
    pub half: Half,
    /// `[rows, n_heads · 128]`.
    pub q: Address,
    /// As `q`.
    pub out: Address,
    /// The layer.
    pub kv: Kv,
    /// `[n_seqs]` of [`Sequence`] with one row each, or none: then it is skipped.
    pub sequences: Address,
    /// How many.
    pub n_seqs: usize,
    /// Pages of all sequences, u32.
    pub page_table: Address,
    /// Most keys of a sequence; shorter ones cost nothing.
    pub max_keys: usize,
    /// Most splits of a sequence, up to [`MAX_SPLITS`]: part of the numeric contract.
    pub max_splits: usize,
    /// [`partials_bytes`] of any content.
    pub partials: Address,
    /// `[n_seqs, n_kv_heads]` of u32: zero before the first launch, and after each.
    pub arrivals: Address,
}

impl PagedAttention {
    /// What the kernel takes.
    pub(super) fn parameters(&self) -> Result<abi::QwenvlDecodeAttention> {
        let heads = self.kv.heads;
        check("paged_attn", heads.head_dim == 128, || format!("heads of {}", heads.head_dim))?;
        check(
            "paged_attn",
            heads.n_heads % heads.n_kv_heads == 0 && heads.n_heads / heads.n_kv_heads <= 8,
            || format!("{} heads over {}: at most 8 for one", heads.n_heads, heads.n_kv_heads),
        )?;
        check("paged_attn", (1..=MAX_SPLITS).contains(&self.max_splits), || {
            format!("{} splits, expected 1 to {MAX_SPLITS}", self.max_splits)
        })?;
        check("paged_attn", (1..=65535).contains(&self.n_seqs) && self.max_keys > 0, || {
            format!("{} sequences of up to {} keys", self.n_seqs, self.max_keys)
        })?;
        let slots = slots(self.max_keys, self.max_splits) as u32;
        Ok(abi::QwenvlDecodeAttention {
            q: self.q as *const c_void,
            out: self.out as *mut c_void,
            sequences: self.sequences as *const Sequence,
            page_table: self.page_table as *const u32,
            partials: self.partials as *mut f32,
            arrivals: self.arrivals as *mut u32,
            kv: self.kv.abi(),
            n_seqs: self.n_seqs as u32,
            group: (heads.n_heads / heads.n_kv_heads) as u32,
            ldq: (heads.n_heads * 128) as u32,
            ldo: (heads.n_heads * 128) as u32,
            max_splits: self.max_splits as u32,
            slots,
            scale_log2: scale_log2(128),
            ..Default::default()
        })
    }
}

/// Splits of a sequence of so many keys or less.
fn slots(max_keys: usize, max_splits: usize) -> usize {
    max_keys.div_ceil(SPLIT_TOKENS).min(max_splits)
}

/// Bytes of [`PagedAttention::partials`].
pub fn partials_bytes(n_seqs: usize, n_heads: usize, max_keys: usize, max_splits: usize) -> usize {
    n_seqs * n_heads * slots(max_keys, max_splits) * (128 + 2) * 4
}

fn scale_log2(head_dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32
}

impl Kernels {
    /// Launches attention of many rows.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device as [`FlashAttention`] says; tiles and pages are in range.
    pub unsafe fn flash_attention(&self, stream: &CudaStream, a: &FlashAttention) -> Result<()> {
        check("flash_attn", a.n_tiles > 0, || "no tiles".into())?;
        let mut p = abi::QwenvlAttention {
            out: a.out as *mut c_void,
            tiles: a.tiles as *const Tile,
            n_tiles: a.n_tiles as u32,
            group: 1,
            page_table: ptr::null(),
            ..Default::default()
        };
        let (n_tiles, tile_rows) = (p.n_tiles, a.tile_rows);
        let (name, heights, grid, block) = match a.keys {
            Keys::Vision { qkv, n_heads } => {
                let width = n_heads * 80;
                let part = |i: usize| (qkv + (i * width * 2) as u64) as *const c_void;
                (p.q, p.k, p.v) = (part(0), part(1), part(2));
                (p.ldq, p.ldo) = (3 * width as u32, width as u32);
                p.scale_log2 = scale_log2(80);
                ("flash_attn", &VISION_TILE_ROWS[..], n_tiles, 128)
            }
            Keys::Paged { q, kv, page_table } => {
                check("flash_attn", kv.heads.head_dim == 128, || format!("heads of {}", kv.heads.head_dim))?;
                check("flash_attn", kv.heads.n_heads % kv.heads.n_kv_heads == 0, || {
                    format!("{} heads over {}", kv.heads.n_heads, kv.heads.n_kv_heads)
                })?;
                p.q = q as *const c_void;
                p.kv = kv.abi();
                p.page_table = page_table as *const u32;
                p.ldq = (kv.heads.n_heads * 128) as u32;
                p.ldo = p.ldq;
                p.group = (kv.heads.n_heads / kv.heads.n_kv_heads) as u32;
                p.scale_log2 = scale_log2(128);
                let blocks = prefill_blocks(tile_rows, self.sm_count() as usize) as u32;
                let block = if tile_rows == PREFILL_TILE_ROWS[0] { 256 } else { 128 };
                ("paged_prefill", &PREFILL_TILE_ROWS[..], n_tiles.min(blocks), block)
            }
        };
        check(name, heights.contains(&tile_rows), || format!("tiles of {tile_rows} rows"))?;
        let name = name!("{name}_{}_{tile_rows}", a.half.name());
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, (grid, 1, 1), block, &p) }
    }

    /// Launches attention of one new token per sequence.
    ///
    /// # Errors
    /// As [`Kernels::flash_attention`].
    ///
    /// # Safety
    /// Addresses name memory of this device as [`PagedAttention`] says; sequences and pages are in range.
    pub unsafe fn paged_attention(&self, stream: &CudaStream, a: &PagedAttention) -> Result<()> {
        let p = a.parameters()?;
        let heads = a.kv.heads;
        let name = name!("paged_attn_{}", a.half.name());
        // A few times as many blocks as run at once, or each split its own; each takes its share of those there are.
        let pairs = (a.n_seqs * heads.n_kv_heads) as u32;
        let grid =
            (heads.n_kv_heads as u32, a.n_seqs as u32, (8 * self.sm_count()).div_ceil(pairs).min(p.slots));
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, grid, 256, &p) }
    }
}
