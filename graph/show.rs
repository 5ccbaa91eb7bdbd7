//! A plan for people and programs: table, JSON, HTML page.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::cost::Cost;
use crate::fit::{CARD_INPUT_TOKENS, CARD_OUTPUT_TOKENS, CardRow, card_measured};
use crate::model::{DESIGN, SIMULATED, TokenPart};
use crate::plan::{Plan, Program};

impl Plan {
    /// The plan as JSON: memory, bounds, and every step with its kernel, place, bytes and FLOPs.
    /// All sizes are in bytes; costs are at the upper bounds of the plan.
    pub fn to_json(&self) -> Json {
        let m = &self.memory;
        json!({
            "format": self.config.format_name(),
            "device": self.device.name,
            "device_bytes": self.device.memory_bytes,
            "activation_dtype": self.activation.name(),
            "kv_dtype": self.kv_dtype.name(),
            "context_tokens": self.options.context_tokens,
            "max_seqs": self.options.max_seqs,
            "prefill_chunk_tokens": self.options.prefill_chunk_tokens,
            "max_patches": self.options.max_patches,
            "weights_bytes": m.weights_bytes,
            "mapped_weights_bytes": m.mapped_weights_bytes,
            "kv_bytes_per_token": m.kv_bytes_per_token,
            "kv_bytes": m.kv_bytes,
            "arena_bytes": m.arena_bytes,
            "visual_bytes": m.visual_bytes,
            "workspace_bytes": m.workspace_bytes,
            "total_bytes": m.total_bytes(),
            "fits": self.fits(),
            "bound_tokens_per_s": self.card_rows().map(|rows| rows_json(&rows)),
            "modelled_tokens_per_s": self.modelled_rows(&DESIGN).map(|rows| rows_json(&rows)),
            "simulated_tokens_per_s": self.modelled_rows(&SIMULATED).map(|rows| rows_json(&rows)),
            "simulated_token": self.modelled_rows(&SIMULATED).map(|_| self.token_json()),
            "card_tokens_per_s": card_measured(&self.config),
            "programs": self.programs().map(|p| program_json(self, p)),
        })
    }

    /// Where a token's time goes as simulated, at the inputs of the model card.
    fn token_json(&self) -> Json {
        let part = |p: TokenPart| {
            json!({
                "name": p.name,
                "kernel": p.kernel,
                "steps": p.steps,
                "modelled_s": p.seconds,
                "bound_s": p.bound_s,
                "limiter": p.limiter,
            })
        };
        let input = |&tokens: &usize| {
            let parts = self.token_parts(&SIMULATED, tokens + CARD_OUTPUT_TOKENS / 2).into_iter().flatten();
            json!({ "input_tokens": tokens, "parts": parts.map(part).collect::<Vec<_>>() })
        };
        CARD_INPUT_TOKENS.iter().map(input).collect()
    }

    /// The plan as a text table: memory, then the steps of each program grouped by kind.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        let o = &self.options;
        let _ = writeln!(
            out,
            "{} on {}: context {} tokens, {} at a time, images of up to {} patches, prefill in chunks of {}",
            self.config.format_name(),
            self.device.name,
            o.context_tokens,
            if o.max_seqs == 1 { "one sequence".into() } else { format!("{} sequences", o.max_seqs) },
            o.max_patches,
            o.prefill_chunk_tokens.min(o.context_tokens),
        );
        let _ = writeln!(out, "\nmemory                       bytes        GiB");
        for (name, bytes) in self.memory_rows() {
            let _ = writeln!(out, "{name:<18} {bytes:>15} {:>10.2}", gib(bytes));
        }
        let verdict = if self.fits() { "fits" } else { "does NOT fit" };
        let _ = writeln!(
            out,
            "{verdict} {}: {:.2} GiB needed, {:.2} GiB usable; KV cache {} bytes per token",
            self.device.name,
            gib(self.memory.total_bytes()),
            gib(self.device.memory_bytes),
            self.memory.kv_bytes_per_token
        );
        for program in self.programs() {
            program_table(self, program, &mut out);
        }
        out
    }

    /// The plan as one self-contained HTML page: memory, the arena over time, every step.
    pub fn to_html(&self) -> String {
        let mut out = String::from(HTML_HEAD);
        let _ = write!(
            out,
            "<h1>{} on {}</h1><p>Context {} tokens, {} sequence(s), images of up to {} patches. {} of {} bytes: <b>{}</b>.</p>",
            self.config.format_name(),
            escape(&self.device.name),
            self.options.context_tokens,
            self.options.max_seqs,
            self.options.max_patches,
            self.memory.total_bytes(),
            self.device.memory_bytes,
            if self.fits() { "fits" } else { "does not fit" }
        );
        out.push_str("<table><tr><th>memory<th>bytes<th>GiB</tr>");
        for (name, bytes) in self.memory_rows() {
            let _ = write!(out, "<tr><td>{name}<td>{bytes}<td>{:.3}</tr>", gib(bytes));
        }
        out.push_str("</table>");
        for program in self.programs() {
            program_html(program, &mut out);
        }
        out.push_str("</body></html>\n");
        out
    }

    fn memory_rows(&self) -> [(&'static str, u64); 6] {
        let m = &self.memory;
        [
            ("weights", m.weights_bytes),
            ("KV cache", m.kv_bytes),
            ("arena", m.arena_bytes),
            ("visual rows", m.visual_bytes),
            ("kernel scratch", m.workspace_bytes),
            ("total", m.total_bytes()),
        ]
    }
}

fn rows_json(rows: &[CardRow]) -> Json {
    rows.iter()
        .map(|r| {
            json!({
                "input_tokens": r.input_tokens,
                "tokens_per_s": r.tokens_per_s,
                "decode_tokens_per_s": r.decode_tokens_per_s,
                "prefill_s": r.prefill_s,
            })
        })
        .collect()
}

fn program_json(plan: &Plan, program: &Program) -> Json {
    let steps: Vec<Json> = program
        .graph
        .nodes
        .iter()
        .enumerate()
        .map(|(at, node)| {
            let kernel = &program.kernels[at];
            let cost = program.step_cost(at, &program.bounds);
            let time = plan.step_time(&DESIGN, program, at, &program.bounds);
            let output = node.output.map(|id| {
                let value = program.graph.value(id);
                let place = program.placements[id.0];
                json!({
                    "name": value.name,
                    "shape": value.shape.to_string(),
                    "dtype": value.dtype.name(),
                    "offset_bytes": place.map(|p| p.offset_bytes),
                    "bytes": place.map(|p| p.bytes),
                    "tiled": place.map(|p| p.tiled),
                })
            });
            json!({
                "op": node.op.name(),
                "kernel": kernel.name,
                "block_m": kernel.block_m,
                "block_n": kernel.block_n,
                "output": output,
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "flops": cost.flops,
                "modelled_s": time.map(|t| t.seconds),
                "modelled_limiter": time.map(|t| t.limiter),
            })
        })
        .collect();
    json!({ "name": program.name, "arena_bytes": program.arena_bytes, "steps": steps })
}

/// Steps of one kind: same op, kernel and output width.
struct Kind {
    op: &'static str,
    kernel: String,
    output: String,
    count: usize,
    cost: Cost,
    /// Modelled, for devices that are.
    seconds: Option<f64>,
}

fn kinds(plan: &Plan, program: &Program) -> Vec<Kind> {
    let mut out: Vec<Kind> = Vec::new();
    for (at, node) in program.graph.nodes.iter().enumerate() {
        let k = &program.kernels[at];
        let kernel = match k.block_m {
            0 => k.name.to_string(),
            _ => format!("{} {}x{}", k.name, k.block_m, k.block_n),
        };
        let output = node.output.map_or("-".into(), |v| program.graph.value(v).shape.to_string());
        let cost = program.step_cost(at, &program.bounds);
        let seconds = plan.step_time(&DESIGN, program, at, &program.bounds).map(|t| t.seconds);
        let op = node.op.name();
        match out.iter_mut().find(|k| k.op == op && k.kernel == kernel && k.output == output) {
            Some(kind) => {
                kind.count += 1;
                kind.cost = kind.cost.plus(cost);
                kind.seconds = kind.seconds.zip(seconds).map(|(a, b)| a + b);
            }
            None => out.push(Kind { op, kernel, output, count: 1, cost, seconds }),
        }
    }
    out
}

fn program_table(plan: &Plan, program: &Program, out: &mut String) {
    let b = &program.bounds;
    let size = match program.name {
        "vision" => format!("{} patches", b.patches),
        _ => format!("{} tokens, {} KV tokens", b.tokens, b.kv_tokens),
    };
    let _ = writeln!(out, "\n{} ({} steps, at its bounds: {size})", program.name, program.graph.nodes.len());
    let _ = writeln!(
        out,
        "{:>5} {:<18} {:<22} {:<22} {:>11} {:>11} {:>10} {:>12}",
        "count", "op", "kernel", "output", "weights MB", "moved MB", "GFLOP", "modelled ms"
    );
    for kind in kinds(plan, program) {
        let _ = writeln!(
            out,
            "{:>5} {:<18} {:<22} {:<22} {:>11.2} {:>11.2} {:>10.2} {:>12}",
            kind.count,
            kind.op,
            kind.kernel,
            kind.output,
            kind.cost.weight_bytes as f64 / 1e6,
            kind.cost.activation_bytes as f64 / 1e6,
            kind.cost.flops as f64 / 1e9,
            kind.seconds.map_or("-".into(), |s| format!("{:.3}", s * 1e3)),
        );
    }
}

fn program_html(program: &Program, out: &mut String) {
    let steps = program.graph.nodes.len();
    let (width, height) = (960.0, 220.0);
    let scale_x = width / steps.max(1) as f64;
    let scale_y = height / program.arena_bytes.max(1) as f64;
    let _ = write!(
        out,
        "<h2>{}</h2><p>{} steps; arena {} bytes. Below: arena offset (down) over steps (right).</p>\
         <svg viewBox=\"0 0 {width} {height}\" width=\"{width}\">",
        program.name, steps, program.arena_bytes
    );
    for (id, place) in program.placements.iter().enumerate() {
        let Some(place) = place else { continue };
        let touches = |n: &crate::builder::Node| n.output.iter().chain(&n.inputs).any(|v| v.0 == id);
        let first = program.graph.nodes.iter().position(touches).unwrap_or(0);
        let last = program.graph.nodes.iter().rposition(touches).unwrap_or(first);
        let _ = write!(
            out,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" class=\"{}\"><title>{} {} bytes at {}</title></rect>",
            first as f64 * scale_x,
            place.offset_bytes as f64 * scale_y,
            ((last - first + 1) as f64 * scale_x).max(0.5),
            (place.bytes as f64 * scale_y).max(0.5),
            if place.tiled { "tile" } else { "whole" },
            escape(&program.graph.values[id].name),
            place.bytes,
            place.offset_bytes,
        );
    }
    out.push_str(
        "</svg><table><tr><th>step<th>op<th>kernel<th>output<th>shape<th>dtype<th>offset<th>bytes\
         <th>weights, bytes<th>moved, bytes<th>FLOP</tr>",
    );
    for (at, node) in program.graph.nodes.iter().enumerate() {
        let cost = program.step_cost(at, &program.bounds);
        let _ = write!(out, "<tr><td>{at}<td>{}<td>{}", node.op.name(), program.kernels[at].name);
        match node.output {
            Some(id) => {
                let v = program.graph.value(id);
                let (offset, bytes) = program.placements[id.0]
                    .map_or(("visual rows".into(), "-".into()), |p| {
                        (p.offset_bytes.to_string(), p.bytes.to_string())
                    });
                let _ = write!(
                    out,
                    "<td>{}<td>{}<td>{}<td>{offset}<td>{bytes}",
                    escape(&v.name),
                    v.shape,
                    v.dtype
                );
            }
            None => out.push_str("<td>-<td>-<td>-<td>-<td>-"),
        }
        let _ = write!(out, "<td>{}<td>{}<td>{}</tr>", cost.weight_bytes, cost.activation_bytes, cost.flops);
    }
    out.push_str("</table>");
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HTML_HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>plan</title><style>\
body{font:14px system-ui,sans-serif;margin:2rem;max-width:70rem;color:#222}\
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.15rem .6rem;border-bottom:1px solid #ddd}\
svg{background:#f6f6f6;border:1px solid #ddd}\
rect{stroke:#fff;stroke-width:.3}.whole{fill:#4a7ebb}.tile{fill:#e2973f}\
</style></head><body>";
