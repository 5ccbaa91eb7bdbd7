//! `qwenvl plan`: what would run, from config.json alone.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use qwenvl::graph::fit::{CARD_INPUT_TOKENS, CARD_OUTPUT_TOKENS, CardRow, card_measured};
use qwenvl::graph::model::{DESIGN, SIMULATED, TokenPart};
use qwenvl::graph::{Device, DeviceKind, ModelConfig, Plan, PlanOptions};
use qwenvl::kernels::cpu::{Isa, Pool, peak};
use qwenvl::vision::Processor;
use qwenvl::{Checkpoint, Target, host};
use serde_json::json;

use super::output;

/// Arguments of `qwenvl plan`.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint directory, or just its config.json: weights are not needed.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// This machine's cpu, cuda or cuda:N, auto: its first GPU if it has one; or any machine's a100-80g, a100-40g,
    /// h100-80g, rtx4090, ... (a wrong name lists them).
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Most tokens of one sequence, prompt and answer together.
    #[arg(long, value_name = "N", default_value_t = 32768)]
    context: usize,
    /// Largest picture in pixels [default: the checkpoint's, or 12845056].
    #[arg(long, value_name = "PIXELS")]
    max_pixels: Option<u64>,
    /// Sequences at the same time, each with the whole context.
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_seqs: usize,
    /// Prompt tokens in one call of the decoder.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill_chunk: usize,
    /// Threads on the CPU [default: all processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Also write the plan as a page: memory over time and every step.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command. The exit code is 0 also for a plan that does not fit: that is an answer.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, checkpoint_pixels) = model(&args)?;
    let device = device(&args)?;
    let max_pixels = args.max_pixels.or(checkpoint_pixels).unwrap_or(12_845_056);
    let options = PlanOptions {
        max_seqs: args.max_seqs,
        kv_pool_tokens: args.context.saturating_mul(args.max_seqs),
        prefill_chunk_tokens: args.prefill_chunk,
        ..PlanOptions::new(&config, args.context, max_pixels)
    };
    let plan = Plan::new(&config, &device, &options)
        .map_err(|e| super::model::in_options(e.into(), "--context", "--max-seqs"))?;
    if let Some(path) = &args.html {
        std::fs::write(path, plan.to_html()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let largest_context = plan.largest_context()?;
    let remedies = if plan.fits() { Vec::new() } else { plan.remedies()? };
    let mut out = output::stdout();
    if args.json {
        let mut object = plan.to_json();
        object["largest_context_tokens"] = json!(largest_context);
        object["would_fit"] =
            remedies.iter().map(|r| json!({"change": r.change, "total_bytes": r.total_bytes})).collect();
        writeln!(out, "{object}")?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    write!(out, "{}", plan.to_table())?;
    match largest_context {
        Some(context) => writeln!(out, "\nlargest context that fits: {context} tokens")?,
        None => writeln!(out, "\nno context fits")?,
    }
    if !plan.fits() {
        writeln!(out, "what would fit {}:", device.name)?;
        if remedies.is_empty() {
            writeln!(out, "  nothing that this engine knows: take a smaller model")?;
        }
        for r in &remedies {
            writeln!(out, "  {:<28} {:>8.2} GiB", r.change, r.total_bytes as f64 / (1u64 << 30) as f64)?;
        }
    }
    if let Some(rows) = plan.card_rows() {
        print_rows(&mut out, "physical bound at the model card's inputs", &rows)?;
        writeln!(
            out,
            "from {:.0} GB/s read and {:.0} GFLOP/s, {}",
            device.read_bytes_per_s / 1e9,
            device.flops_per_s / 1e9,
            match device.kind {
                DeviceKind::Cpu { .. } => "measured here now",
                DeviceKind::Cuda { .. } => "the best that kernels are known to reach",
            }
        )?;
    }
    if let Some(rows) = plan.modelled_rows(&DESIGN) {
        print_rows(&mut out, "modelled, not measured, at the rates the kernels are designed for", &rows)?;
        print_token(&mut out, &plan)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn print_rows(out: &mut impl Write, title: &str, rows: &[CardRow]) -> std::io::Result<()> {
    writeln!(out, "\n{title}; 2048 tokens generated, one sequence")?;
    writeln!(out, "{:>8} {:>16} {:>16} {:>12}", "input", "decode tok/s", "card's tok/s", "prefill s")?;
    for r in rows {
        writeln!(
            out,
            "{:>8} {:>16.1} {:>16.1} {:>12.2}",
            r.input_tokens, r.decode_tokens_per_s, r.tokens_per_s, r.prefill_s
        )?;
    }
    Ok(())
}

/// Where the time of a token goes, beside the physical bound and what the model card measured.
fn print_token(out: &mut impl Write, plan: &Plan) -> std::io::Result<()> {
    let contexts = CARD_INPUT_TOKENS.map(|input| input + CARD_OUTPUT_TOKENS / 2);
    let parts: Option<Vec<_>> = contexts.iter().map(|&c| plan.token_parts(&SIMULATED, c)).collect();
    let rows = [plan.card_rows(), plan.modelled_rows(&DESIGN), plan.modelled_rows(&SIMULATED)];
    let (Some(parts), [Some(bounds), Some(design), Some(simulated)]) = (parts, rows) else { return Ok(()) };
    writeln!(
        out,
        "\nwhere a token's time goes in ms, as the simulator models the kernels, not measured; in brackets its \
         bytes at the best bandwidth"
    )?;
    let cells = |cells: [String; 4]| cells.map(|c| format!("{c:>17}")).concat();
    writeln!(
        out,
        "{:>5} {:<26} {:<13}{}",
        "steps",
        "input",
        "kernel",
        cells(CARD_INPUT_TOKENS.map(|input| input.to_string()))
    )?;
    for part in &parts[3] {
        let same = |i: usize| parts[i].iter().find(|p| p.name == part.name).expect("the same steps");
        let cell = |i: usize| format!("{:.3} ({:.3})", same(i).seconds * 1e3, same(i).bound_s * 1e3);
        writeln!(
            out,
            "{:>5} {:<26} {:<13}{}  {}",
            part.steps,
            part.name,
            part.kernel,
            cells([0, 1, 2, 3].map(cell)),
            part.limiter
        )?;
    }
    let sum = |i: usize| {
        let total = |f: fn(&TokenPart) -> f64| parts[i].iter().map(f).sum::<f64>() * 1e3;
        format!("{:.3} ({:.3})", total(|p| p.seconds), total(|p| p.bound_s))
    };
    writeln!(out, "{:>5} {:<40}{}", "", "in all", cells([0, 1, 2, 3].map(sum)))?;
    writeln!(out, "\ntokens/s as the model card measures, with the prefill")?;
    let line = |out: &mut dyn Write, what: &str, values: [f64; 4]| {
        writeln!(out, "{what:<44}{}", cells(values.map(|v| format!("{v:.2}"))))
    };
    let speeds = |rows: &[CardRow]| [0, 1, 2, 3].map(|i| rows[i].tokens_per_s);
    line(out, "physical bound", speeds(&bounds))?;
    line(out, "modelled as designed", speeds(&design))?;
    line(out, "modelled as simulated", speeds(&simulated))?;
    if let Some(card) = card_measured(&plan.config) {
        line(out, "the card's", card)?;
        line(out, "simulated over the card's", [0, 1, 2, 3].map(|i| simulated[i].tokens_per_s / card[i]))?;
    }
    Ok(())
}

/// The configuration, and the checkpoint's own limit on pictures if it has one.
fn model(args: &Args) -> anyhow::Result<(ModelConfig, Option<u64>)> {
    let (config, preprocessor) = match &args.model {
        None => {
            let tiny = Checkpoint::tiny()?;
            let preprocessor = tiny.text_file("preprocessor_config.json")?;
            (tiny.config, preprocessor)
        }
        Some(path) => {
            let beside = if path.is_dir() { path.clone() } else { super::model::directory_of(path) };
            let preprocessor = std::fs::read_to_string(beside.join("preprocessor_config.json")).ok();
            (Checkpoint::config_only(path)?, preprocessor)
        }
    };
    let pixels = match preprocessor {
        Some(text) => Some(Processor::from_json(Some(&text), &config.vision)?.limits.max_pixels as u64),
        None => None,
    };
    Ok((config, pixels))
}

fn device(args: &Args) -> anyhow::Result<Device> {
    match super::model::target(&args.device)? {
        Some(Target::Cpu) => {
            let threads = args.threads.map_or_else(host::threads, usize::from);
            let isa = Isa::detect();
            let mut pool = Pool::new(threads).context("cannot start threads")?;
            let budget = Duration::from_millis(60);
            let read = peak::read_bandwidth(isa, &mut pool, &vec![1u8; 128 << 20], budget);
            let flops = peak::fma_flops(isa, &mut pool, budget);
            Ok(Device::cpu(threads, host::available_memory_bytes(), read, flops))
        }
        #[cfg(feature = "cuda")]
        Some(Target::Cuda(ordinal)) => Ok(qwenvl::exec::cuda::Gpu::open(ordinal)?.device()?),
        _ => Device::gpu(&args.device).with_context(|| {
            format!(
                "device {} is unknown: use auto, cpu, cuda, cuda:N, {}",
                args.device,
                Device::gpu_names().join(", ")
            )
        }),
    }
}
