//! From one placeholder per picture to one per visual token.

use crate::graph::positions::grid_tokens;
use crate::graph::{Grid, ModelConfig};
use crate::{Error, Result};

/// Longest prompt that is built at all. Plans have smaller limits of their own.
const MAX_TOKENS: usize = 1 << 24;

/// Repeats each image or video placeholder of `ids` once for every token that its picture becomes,
/// `t * h * w / merge^2` of its grid. Images and videos are each taken in order.
///
/// `Qwen2VLProcessor.__call__` of transformers 4.57.6.
///
/// # Errors
/// [`Error::Request`] if the number of placeholders is not the number of grids, as when a text
/// spells a placeholder out; [`Error::Graph`] for a grid that cannot be.
pub fn expand(
    ids: &[u32],
    config: &ModelConfig,
    image_grids: &[Grid],
    video_grids: &[Grid],
) -> Result<Vec<u32>> {
    let merge = config.vision.spatial_merge_size;
    let mut total = ids.len();
    for (kind, token, grids) in
        [("image", config.image_token_id, image_grids), ("video", config.video_token_id, video_grids)]
    {
        let found = ids.iter().filter(|&&id| id == token).count();
        if found != grids.len() {
            return Err(Error::Request {
                field: "messages".into(),
                found: format!("{found} {kind} placeholders (token {token}) in the prompt"),
                expected: format!(
                    "{}, one for each {kind}; the text of a message must not contain the placeholder itself",
                    grids.len()
                ),
            });
        }
        for &grid in grids {
            total = total.saturating_add(grid_tokens(grid, merge)?);
        }
    }
    if total > MAX_TOKENS {
        return Err(Error::Request {
            field: "messages".into(),
            found: format!("a prompt of {total} tokens"),
            expected: format!("at most {MAX_TOKENS}; lower max_pixels or give fewer pictures"),
        });
    }
    let (mut images, mut videos) = (image_grids.iter(), video_grids.iter());
    let mut expanded = Vec::with_capacity(total);
    for &id in ids {
        let grid = match id {
            _ if id == config.image_token_id => images.next(),
            _ if id == config.video_token_id => videos.next(),
            _ => None,
        };
        let repeat = grid.map_or(1, |grid| grid.tokens(merge));
        expanded.extend(std::iter::repeat_n(id, repeat));
    }
    Ok(expanded)
}
