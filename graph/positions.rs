//! Where tokens and patches are: M-RoPE positions of a prompt, rotary positions of the vision tower.
//!
//! Pure functions of token ids and grids, shared by the plan, the prompt and the run.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::grid::Grid;

/// The `(t, h, w)` positions of one expanded prompt, and where the answer goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RopeIndex {
    /// `[n_tokens]`: temporal, height and width position of each token.
    pub positions: Vec<[u32; 3]>,
    /// A token written at cache index `c`, from `n_tokens` on, has position `c + delta` on all
    /// three axes. Zero for plain text, usually negative after a picture.
    pub delta: i64,
}

/// The number of placeholder tokens of `grid`, with the checks that [`Grid::tokens`] leaves out.
///
/// # Errors
/// [`Error::Grid`] if a side is zero, `h` or `w` is no multiple of `merge`, or the number of
/// patches does not fit in 32 bits.
pub fn grid_tokens(grid: Grid, merge: usize) -> Result<usize> {
    let fail = |reason: String| Err(Error::Grid { t: grid.t, h: grid.h, w: grid.w, reason });
    if grid.t == 0 || grid.h == 0 || grid.w == 0 {
        return fail("a side is zero".into());
    }
    if merge == 0 || !grid.h.is_multiple_of(merge) || !grid.w.is_multiple_of(merge) {
        return fail(format!("height and width must be multiples of the merge size {merge}"));
    }
    match grid.h.checked_mul(grid.w).and_then(|n| n.checked_mul(grid.t)) {
        Some(patches) if patches <= u32::MAX as usize => Ok(patches / (merge * merge)),
        _ => fail(format!("more than {} patches", u32::MAX)),
    }
}

/// Positions of an expanded prompt without padding: text advances all axes together, a picture
/// spans its merged grid from one common start, and what follows continues one above the largest
/// position used.
///
/// `get_rope_index` of transformers 4.57.6 (`modeling_qwen2_vl.py`), for one unpadded row.
///
/// # Errors
/// [`Error::Placeholders`] if the prompt does not hold exactly the given pictures in order, each as
/// one unbroken run of its token; [`Error::Grid`] for a grid that cannot be.
pub fn rope_index(
    ids: &[u32],
    config: &ModelConfig,
    image_grids: &[Grid],
    video_grids: &[Grid],
) -> Result<RopeIndex> {
    let merge = config.vision.spatial_merge_size;
    let (mut images, mut videos) = (Items::new("image", image_grids), Items::new("video", video_grids));
    let mut positions = Vec::with_capacity(ids.len());
    // The next free position. Never above the number of tokens so far: a picture advances by its
    // longest side, which is at most its number of tokens.
    let mut next = 0u32;
    let mut rest = ids;
    while let Some(&id) = rest.first() {
        let items = match id {
            _ if id == config.image_token_id => &mut images,
            _ if id == config.video_token_id => &mut videos,
            _ => {
                positions.push([next; 3]);
                next += 1;
                rest = &rest[1..];
                continue;
            }
        };
        let grid = items.take()?;
        let n = grid_tokens(grid, merge)?;
        let run = rest.iter().take(n).take_while(|&&other| other == id).count();
        if run < n {
            return Err(Error::Placeholders {
                kind: items.kind,
                found: format!("{run} tokens in a row for number {}", items.taken),
                expected: format!(
                    "{n}, as many as its {}x{}x{} grid has merged patches",
                    grid.t, grid.h, grid.w
                ),
            });
        }
        let (h, w) = (grid.h / merge, grid.w / merge);
        for t in 0..grid.t {
            for y in 0..h {
                positions.extend((0..w).map(|x| [next + t as u32, next + y as u32, next + x as u32]));
            }
        }
        next += grid.t.max(h).max(w) as u32;
        rest = &rest[n..];
    }
    images.finish()?;
    videos.finish()?;
    Ok(RopeIndex { delta: i64::from(next) - ids.len() as i64, positions })
}

/// The pictures of one kind, handed out in order.
struct Items<'a> {
    kind: &'static str,
    grids: &'a [Grid],
    taken: usize,
}

impl<'a> Items<'a> {
    fn new(kind: &'static str, grids: &'a [Grid]) -> Self {
        Items { kind, grids, taken: 0 }
    }

    fn take(&mut self) -> Result<Grid> {
        let grid = self.grids.get(self.taken).copied().ok_or_else(|| Error::Placeholders {
            kind: self.kind,
            found: format!("placeholders of at least {} in the prompt", self.taken + 1),
            expected: format!("{}, the number given", self.grids.len()),
        })?;
        self.taken += 1;
        Ok(grid)
    }

    fn finish(&self) -> Result<()> {
        if self.taken == self.grids.len() {
            return Ok(());
        }
        Err(Error::Placeholders {
            kind: self.kind,
            found: format!("placeholders of {} in the prompt", self.taken),
            expected: format!("{}, the number given", self.grids.len()),
        })
    }
}

/// The `(h, w)` position of every patch of `grid`, `[t * h * w]`, in the order patches are stored:
/// blocks of `merge` x `merge` patches row by row, inside a block row by row, and the whole
/// repeated for every temporal slice.
///
/// `rot_pos_emb` of transformers 4.57.6. A grid that [`grid_tokens`] refuses loses its ragged edge.
pub fn vision_positions(grid: Grid, merge: usize) -> impl Iterator<Item = [u32; 2]> {
    let merge = merge.max(1);
    let (rows, columns) = (grid.h / merge, grid.w / merge);
    let slice = move || {
        (0..rows).flat_map(move |by| {
            (0..columns).flat_map(move |bx| {
                (0..merge).flat_map(move |y| {
                    (0..merge).map(move |x| [(by * merge + y) as u32, (bx * merge + x) as u32])
                })
            })
        })
    };
    (0..grid.t).flat_map(move |_| slice())
}

/// Borders of the attention segments of the vision tower: prefix sums of `h * w`, one segment per
/// temporal slice of each grid, from 0 to the total number of patches.
///
/// # Errors
/// [`Error::Grid`] at the first grid with which the number of patches does not fit in 32 bits.
pub fn cu_seqlens(grids: &[Grid]) -> Result<Vec<u32>> {
    let mut borders = vec![0u32];
    let mut total = 0u32;
    for grid in grids {
        let slice = grid.h.checked_mul(grid.w).and_then(|n| u32::try_from(n).ok());
        for _ in 0..grid.t {
            total = slice.and_then(|n| total.checked_add(n)).ok_or_else(|| Error::Grid {
                t: grid.t,
                h: grid.h,
                w: grid.w,
                reason: format!("more than {} patches in all", u32::MAX),
            })?;
            borders.push(total);
        }
    }
    Ok(borders)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> ModelConfig {
        let text = r#"{"model_type": "qwen2_vl", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
                       "vision_config": {"hidden_size": 8192}}"#;
        ModelConfig::from_json(text).expect("a minimal configuration")
    }

    const IMAGE: u32 = 151_655;

    #[test]
    fn a_prompt_with_fewer_or_more_pictures_than_given_is_an_error_that_counts_them() {
        let grid = Grid { t: 1, h: 2, w: 2 };
        let error = rope_index(&[1, IMAGE, 2], &config(), &[], &[]).unwrap_err().to_string();
        assert!(
            error.contains("image") && error.contains("at least 1") && error.contains("0, the number"),
            "{error}"
        );
        let error = rope_index(&[1, IMAGE, 2], &config(), &[grid; 2], &[]).unwrap_err().to_string();
        assert!(error.contains("placeholders of 1 in the prompt, expected 2"), "{error}");
    }

    #[test]
    fn a_broken_run_of_placeholders_is_an_error() {
        let grid = Grid { t: 1, h: 2, w: 4 };
        let error = rope_index(&[IMAGE, 1, IMAGE], &config(), &[grid], &[]).unwrap_err().to_string();
        assert!(error.contains("1 tokens in a row for number 1, expected 2"), "{error}");
    }

    #[test]
    fn impossible_grids_are_errors() {
        for (t, h, w) in
            [(0, 2, 2), (1, 0, 2), (1, 3, 2), (1, 2, 5), (usize::MAX, 2, 2), (1, 1 << 20, 1 << 20)]
        {
            assert!(grid_tokens(Grid { t, h, w }, 2).is_err(), "{t}x{h}x{w}");
        }
        assert!(grid_tokens(Grid { t: 1, h: 2, w: 2 }, 0).is_err());
        assert!(cu_seqlens(&[Grid { t: 2, h: 1 << 16, w: 1 << 15 }]).is_err());
    }

    proptest! {
        #[test]
        fn positions_never_repeat_backwards_and_delta_continues_them(
            items in prop::collection::vec((1usize..4, 1usize..5, 1usize..5, 0usize..4), 0..5),
        ) {
            let config = config();
            let mut ids = vec![1, 2];
            let mut grids = Vec::new();
            for (t, h, w, text) in items {
                let grid = Grid { t, h: 2 * h, w: 2 * w };
                ids.extend(std::iter::repeat_n(IMAGE, grid.tokens(2)));
                ids.extend(std::iter::repeat_n(7, text));
                grids.push(grid);
            }
            let found = rope_index(&ids, &config, &grids, &[]).unwrap();
            prop_assert_eq!(found.positions.len(), ids.len());
            let largest = found.positions.iter().flatten().copied().max().unwrap();
            prop_assert_eq!(i64::from(largest) + 1, ids.len() as i64 + found.delta);
            prop_assert!(found.delta <= 0);
        }

        #[test]
        fn arbitrary_ids_and_grids_never_panic(
            ids in prop::collection::vec(prop_oneof![Just(IMAGE), Just(151_656), any::<u32>()], 0..20),
            grids in prop::collection::vec((0usize..5, 0usize..5, 0usize..5), 0..3),
        ) {
            let grids: Vec<Grid> = grids.into_iter().map(|(t, h, w)| Grid { t, h, w }).collect();
            let _ = rope_index(&ids, &config(), &grids, &grids);
            for &grid in &grids {
                let _ = vision_positions(grid, 2).count();
            }
        }
    }
}
