//! Tensor names: every spelling in circulation, mapped to the one of the published files.
//!
//! | published | also met |
//! |---|---|
//! | `visual.*` | `model.visual.*` |
//! | `model.*` | `model.language_model.*`, `language_model.model.*` |
//! | `lm_head.*` | `language_model.lm_head.*` |

use std::borrow::Cow;

/// The published spelling of a stored name; `None` for tensors that carry no weights
/// (`*.rotary_emb.inv_freq`, which old exports hold).
pub fn canonical(stored: &str) -> Option<Cow<'_, str>> {
    if stored.ends_with(".rotary_emb.inv_freq") {
        return None;
    }
    const PREFIXES: [(&str, &str); 4] = [
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ];
    for (met, published) in PREFIXES {
        if let Some(rest) = stored.strip_prefix(met) {
            return Some(Cow::Owned(format!("{published}{rest}")));
        }
    }
    Some(Cow::Borrowed(stored))
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn every_known_spelling_maps_to_the_published_one() {
        for (stored, published) in [
            ("visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
            ("model.visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
            ("model.layers.3.mlp.up_proj.qweight", "model.layers.3.mlp.up_proj.qweight"),
            ("model.language_model.layers.3.mlp.up_proj.qweight", "model.layers.3.mlp.up_proj.qweight"),
            ("language_model.model.layers.3.mlp.up_proj.qweight", "model.layers.3.mlp.up_proj.qweight"),
            ("model.language_model.norm.weight", "model.norm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(canonical(stored).as_deref(), Some(published), "{stored}");
        }
        assert_eq!(canonical("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }
}
