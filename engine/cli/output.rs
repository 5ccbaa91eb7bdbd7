//! Answers as JSON.

use qwenvl::exec::Peaks;
use qwenvl::graph::Plan;
use qwenvl::host::Resident;
use qwenvl::{Answer, Engine};
use serde_json::{Value, json};

/// The object that `batch` writes for each line, and `run --json` prints.
pub fn answer(custom_id: Option<&str>, answer: &Answer) -> Value {
    json!({
        "custom_id": custom_id,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "timings": answer.timings,
        "visuals": answer.visuals,
    })
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

/// What the plan states, part by part, beside what the process holds. On the CPU, the plan's
/// total without its mapped weights is memory of the process's own, and the mapped weights are mapped
/// files.
pub fn memory(plan: &Plan, resident: Option<Resident>) -> Value {
    let m = &plan.memory;
    json!({
        "plan_total_bytes": m.total_bytes(),
        "plan_weights_bytes": m.weights_bytes,
        "plan_mapped_weights_bytes": m.mapped_weights_bytes,
        "plan_kv_bytes": m.kv_bytes,
        "plan_arena_bytes": m.arena_bytes,
        "plan_visual_bytes": m.visual_bytes,
        "plan_workspace_bytes": m.workspace_bytes,
        "resident_bytes": resident.map(|r| r.total_bytes),
        "resident_anonymous_bytes": resident.map(|r| r.anonymous_bytes),
        "resident_file_bytes": resident.map(|r| r.file_bytes),
        "resident_peak_bytes": resident.map(|r| r.peak_bytes),
    })
}
