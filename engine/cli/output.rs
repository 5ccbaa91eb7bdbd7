//! Answers as JSON.

use qwenvl::exec::Peaks;
use qwenvl::{Answer, Engine, grounding};
use serde_json::{Value, json};

/// The object that `batch` writes for each line, and `run --json` prints.
pub fn answer(custom_id: Option<&str>, answer: &Answer) -> Value {
    let mut object = json!({
        "custom_id": custom_id,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "timings": answer.timings,
        "visuals": answer.visuals,
    });
    let boxes = grounding::boxes(&answer.text);
    if !boxes.is_empty() {
        // Which of several pictures is meant, only the text can tell.
        let size = match answer.visuals.as_slice() {
            [only] => Some((only.width, only.height)),
            _ => None,
        };
        let boxes = boxes.iter().map(|b| {
            json!({
                "label": b.label,
                "thousandths": b.thousandths,
                "pixels": size.map(|(width, height)| b.pixels(width, height)),
            })
        });
        object["boxes"] = boxes.collect();
    }
    if !answer.notices.is_empty() {
        object["notices"] = json!(answer.notices);
    }
    object
}

/// What was reached, beside what this machine reached at the same time when nothing else limits it.
pub fn rates(engine: &Engine, peaks: Peaks) -> Value {
    let w = engine.work();
    let rate = |amount: u64, seconds: f64| if seconds > 0.0 { amount as f64 / seconds / 1e9 } else { 0.0 };
    let decode = rate(w.decode_bytes, w.decode_s);
    let prefill = rate(w.prefill_flops, w.prefill_s);
    let vit = rate(w.vision_flops, w.vision_s);
    let (read, fma) = (peaks.read_bytes_per_s / 1e9, peaks.fma_flops_per_s / 1e9);
    json!({
        "read_gb_s": read,
        "fma_gflop_s": fma,
        "decode_gb_s": decode,
        "decode_of_read": decode / read,
        "prefill_gflop_s": prefill,
        "prefill_of_fma": prefill / fma,
        "vit_gflop_s": vit,
        "vit_of_fma": vit / fma,
    })
}
