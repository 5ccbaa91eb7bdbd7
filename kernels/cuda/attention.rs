//! attention: launchers of flash_attn (vision tower), paged_prefill and paged_attn (decode).

use std::cmp::Reverse;
use std::ffi::c_void;
use std::ptr;

use cudarc::driver::CudaStream;

use super::linear::Kv;
use super::{Address, Half, Kernels, Result, abi, check, name};

/// A tile of query rows on the device.
pub use super::abi::QwenvlAttentionTile as Tile;
/// A sequence on the device: its rows, and for the decoder the keys before them and its page table.
pub use super::abi::QwenvlSequence as Sequence;

/// Query rows of a tile.
pub const TILE_ROWS: usize = 128;
/// Keys of a split of decode attention, up to the most splits.
pub const SPLIT_TOKENS: usize = abi::QWENVL_DECODE_TOKENS as usize;
/// Most splits of a sequence.
pub const MAX_SPLITS: usize = abi::QWENVL_DECODE_SPLITS as usize;

/// The list of tiles: those that see most keys first, so that the last to start are short. Among those that see
/// about as many, the ones of a sequence and head run together, so that its keys and values are in L2.
///
/// `heads` are those of the vision tower, or the key heads of the decoder with `group` query heads each. In the
/// vision tower `past` is 0 and a tile sees all rows of its sequence.
pub fn tiles(sequences: &[Sequence], heads: usize, group: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    list_tiles(&mut tiles, sequences, heads, group);
    tiles
}

/// As [`tiles`], into a list that is emptied first.
pub fn list_tiles(tiles: &mut Vec<Tile>, sequences: &[Sequence], heads: usize, group: usize) {
    tiles.clear();
    for (sequence, s) in sequences.iter().enumerate() {
        for head in 0..heads as u32 {
            for first_row in (0..s.rows * group as u32).step_by(TILE_ROWS) {
                tiles.push(Tile { sequence: sequence as u32, head, first_row });
            }
        }
    }
    let keys = |t: &Tile| {
        let s = &sequences[t.sequence as usize];
        s.past + s.rows.min((t.first_row + TILE_ROWS as u32).div_ceil(group as u32))
    };
    let step = tiles.iter().map(keys).max().map_or(1, |longest| (longest / 8).max(1));
    let rows = |t: &Tile| sequences[t.sequence as usize].rows;
    // No two are alike, and a stable sort would take memory.
    tiles.sort_unstable_by_key(|t| {
        (Reverse(keys(t) / step), Reverse(rows(t)), t.sequence, t.head, Reverse(t.first_row))
    });
}

/// Attention of many rows.
#[derive(Clone, Copy, Debug)]
pub struct FlashAttention {
    /// Type of queries, keys, values and results.
    pub half: Half,
    /// Where keys and values are.
    pub keys: Keys,
    /// `[n]` of [`Sequence`].
    pub sequences: Address,
    /// `[n_tiles]` of [`Tile`], as [`tiles`] lists them.
    pub tiles: Address,
    /// How many.
    pub n_tiles: usize,
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
    /// Addresses name memory of this device as [`FlashAttention`] says; sequences, tiles and pages are in range.
    pub unsafe fn flash_attention(&self, stream: &CudaStream, a: &FlashAttention) -> Result<()> {
        check("flash_attn", a.n_tiles > 0, || "no tiles".into())?;
        let mut p = abi::QwenvlAttention {
            out: a.out as *mut c_void,
            sequences: a.sequences as *const Sequence,
            tiles: a.tiles as *const Tile,
            n_tiles: a.n_tiles as u32,
            group: 1,
            page_table: ptr::null(),
            ..Default::default()
        };
        let n_tiles = p.n_tiles;
        let (name, grid, block) = match a.keys {
            Keys::Vision { qkv, n_heads } => {
                let width = n_heads * 80;
                let part = |i: usize| (qkv + (i * width * 2) as u64) as *const c_void;
                (p.q, p.k, p.v) = (part(0), part(1), part(2));
                (p.ldq, p.ldo) = (3 * width as u32, width as u32);
                p.scale_log2 = scale_log2(80);
                ("flash_attn", n_tiles, 128)
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
                ("paged_prefill", n_tiles.min(self.sm_count()), 256)
            }
        };
        let name = name!("{name}_{}", a.half.name());
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
        let heads = a.kv.heads;
        check("paged_attn", heads.head_dim == 128, || format!("heads of {}", heads.head_dim))?;
        check(
            "paged_attn",
            heads.n_heads % heads.n_kv_heads == 0 && heads.n_heads / heads.n_kv_heads <= 8,
            || format!("{} heads over {}: at most 8 for one", heads.n_heads, heads.n_kv_heads),
        )?;
        check("paged_attn", (1..=MAX_SPLITS).contains(&a.max_splits), || {
            format!("{} splits, expected 1 to {MAX_SPLITS}", a.max_splits)
        })?;
        check("paged_attn", (1..=65535).contains(&a.n_seqs) && a.max_keys > 0, || {
            format!("{} sequences of up to {} keys", a.n_seqs, a.max_keys)
        })?;
        let slots = slots(a.max_keys, a.max_splits) as u32;
        let p = abi::QwenvlDecodeAttention {
            q: a.q as *const c_void,
            out: a.out as *mut c_void,
            sequences: a.sequences as *const Sequence,
            page_table: a.page_table as *const u32,
            partials: a.partials as *mut f32,
            arrivals: a.arrivals as *mut u32,
            kv: a.kv.abi(),
            n_seqs: a.n_seqs as u32,
            group: (heads.n_heads / heads.n_kv_heads) as u32,
            ldq: (heads.n_heads * 128) as u32,
            ldo: (heads.n_heads * 128) as u32,
            max_splits: a.max_splits as u32,
            slots,
            scale_log2: scale_log2(128),
        };
        let name = name!("paged_attn_{}", a.half.name());
        // A few times as many blocks as run at once, or each split its own; each takes its share of those there are.
        let pairs = (a.n_seqs * heads.n_kv_heads) as u32;
        let grid =
            (heads.n_kv_heads as u32, a.n_seqs as u32, (8 * self.sm_count()).div_ceil(pairs).min(slots));
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, &name, grid, 256, &p) }
    }
}
