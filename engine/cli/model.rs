//! What all commands that load a model share.

use std::cell::OnceCell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use qwenvl::exec::cpu::CacheUse;
use qwenvl::vision::Processor;
use qwenvl::{Checkpoint, Engine, EngineOptions, Error, Frontend, Request, Target, graph, host};

use super::output;

/// Which model, on which device.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Checkpoint directory as downloaded from the hub: config.json, tokenizer.json, *.safetensors.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to run: cpu, cuda, cuda:N, or auto: the first GPU if this build and machine have one, else the
    /// CPU.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// What `device` names, once that was asked.
    #[arg(skip)]
    chosen: OnceCell<Target>,
    /// Threads on the CPU [default: all processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Keep repacked int4 and int8 weights in this directory, so that the next start only maps them. May
    /// be the checkpoint's own. A file that is damaged or of other weights is written anew.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub repack_cache: Option<PathBuf>,
}

/// How large pictures become that do not say so themselves.
#[derive(clap::Args)]
pub struct PictureArgs {
    /// Smallest picture, or frame of a video, in pixels; smaller ones are enlarged [default: the checkpoint's for
    /// pictures, 100352 for frames of video files].
    #[arg(long, value_name = "PIXELS")]
    pub min_pixels: Option<u64>,
    /// Largest picture, or frame of a video, in pixels; larger ones are reduced [default: the checkpoint's for
    /// pictures; 602112 for frames of video files, which it can only lower].
    #[arg(long, value_name = "PIXELS")]
    pub max_pixels: Option<u64>,
    /// Turn pictures as their EXIF data say. The vendor's library does not, so this is off by default.
    #[arg(long)]
    pub exif_orientation: bool,
}

/// How to pick tokens; what is absent is left to the checkpoint's generation_config.json.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Most tokens to generate [default: 512].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token; above 0 draws.
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw among this many of the most probable tokens; 0 for all.
    #[arg(long)]
    pub top_k: Option<u32>,
    /// Draw among the most probable tokens that together reach this probability.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Above 1, tokens that occurred become less likely.
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Of the random numbers: the same seed gives the same answer [default: 0].
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer at this text. May be repeated.
    #[arg(long)]
    pub stop: Vec<String>,
    /// Keep special tokens in the text, as the box markers of grounding answers.
    #[arg(long)]
    pub keep_special_tokens: bool,
}

impl SamplingArgs {
    /// Puts the parameters into a request.
    pub fn apply(&self, request: &mut Request) {
        request.max_tokens = self.max_tokens;
        request.temperature = self.temperature;
        request.top_k = self.top_k;
        request.top_p = self.top_p;
        request.repetition_penalty = self.repetition_penalty;
        request.seed = self.seed;
        request.stop.clone_from(&self.stop);
        request.keep_special_tokens = self.keep_special_tokens;
    }
}

impl SamplingArgs {
    /// Puts those parameters that were given into a request that has its own.
    pub fn apply_given(&self, request: &mut Request) {
        request.max_tokens = self.max_tokens.or(request.max_tokens);
        request.temperature = self.temperature.or(request.temperature);
        request.top_k = self.top_k.or(request.top_k);
        request.top_p = self.top_p.or(request.top_p);
        request.repetition_penalty = self.repetition_penalty.or(request.repetition_penalty);
        request.seed = self.seed.or(request.seed);
        request.stop.extend_from_slice(&self.stop);
        request.keep_special_tokens |= self.keep_special_tokens;
    }
}

/// What `auto`, `cpu`, `cuda` and `cuda:N` name; `None` for anything else.
///
/// # Errors
/// If it names a GPU and this build runs on none.
pub fn target(device: &str) -> anyhow::Result<Option<Target>> {
    let ordinal = match device {
        "cpu" => return Ok(Some(Target::Cpu)),
        "auto" => {
            return Ok(Some(match host::has_gpu() {
                Ok(true) => Target::Cuda(0),
                Ok(false) => Target::Cpu,
                Err(error) => {
                    output::note(format_args!("note: cuda:0 cannot be used, running on the CPU: {error}"));
                    Target::Cpu
                }
            }));
        }
        "cuda" => Some(0),
        device => device.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    if ordinal.is_some() && !cfg!(feature = "cuda") {
        bail!(
            "device {device}: this build has no CUDA executor; build with --features cuda, or use --device cpu"
        );
    }
    Ok(ordinal.map(Target::Cuda))
}

impl PictureArgs {
    /// Puts the options into what sizes pictures.
    ///
    /// # Errors
    /// If the least is above the most.
    pub fn apply(&self, processor: &mut Processor) -> anyhow::Result<()> {
        processor.exif_orientation = self.exif_orientation;
        if let (Some(min), Some(max)) = (self.min_pixels, self.max_pixels)
            && min > max
        {
            bail!("--min-pixels {min} is above --max-pixels {max}");
        }
        let Processor { limits, video_limits, .. } = processor;
        if let Some(pixels) = self.max_pixels.map(|pixels| pixels as f64) {
            limits.max_pixels = pixels;
            limits.min_pixels = limits.min_pixels.min(pixels);
            video_limits.max_pixels = video_limits.max_pixels.min(pixels);
        }
        if let Some(pixels) = self.min_pixels.map(|pixels| pixels as f64) {
            limits.min_pixels = pixels;
            video_limits.min_pixels = pixels;
        }
        if let Some(pixels) = self.max_pixels {
            // Frames may have 1.05 times their least size, whatever their most is.
            video_limits.min_pixels = video_limits.min_pixels.min(pixels as f64 / 1.05);
        }
        Ok(())
    }
}

impl ModelArgs {
    /// What `--device` names.
    fn target(&self) -> anyhow::Result<Target> {
        if let Some(target) = self.chosen.get() {
            return Ok(*target);
        }
        let target = target(&self.device)?.with_context(|| {
            format!(
                "device {} is unknown: use auto, cpu, cuda or cuda:N (named GPUs are for `qwenvl plan`)",
                self.device
            )
        })?;
        Ok(*self.chosen.get_or_init(|| target))
    }

    /// Opens the checkpoint and what makes prompts from it. Reads no weights.
    pub fn open(&self) -> anyhow::Result<(Checkpoint, Frontend)> {
        self.target()?;
        let checkpoint = match &self.model {
            Some(dir) => Checkpoint::open(dir)?,
            None => Checkpoint::tiny()?,
        };
        let frontend = Frontend::new(&checkpoint)?;
        for key in frontend.ignored_generation_keys() {
            output::note(format_args!(
                "note: generation_config.json: {key} is not supported and has no effect"
            ));
        }
        Ok((checkpoint, frontend))
    }

    /// Loads the weights, with a progress bar if that takes a while and a person is watching.
    pub fn load(
        &self,
        checkpoint: Checkpoint,
        frontend: Frontend,
        options: EngineOptions,
    ) -> anyhow::Result<Engine> {
        let options = EngineOptions {
            target: self.target()?,
            threads: self.threads.map(usize::from),
            repack_cache: self.repack_cache.clone(),
            ..options
        };
        let mut bar: Option<ProgressBar> = None;
        let start = Instant::now();
        let visible = std::io::stderr().is_terminal();
        let engine = Engine::with_frontend(checkpoint, frontend, &options, &mut |done, total| {
            if visible && bar.is_none() && start.elapsed() > Duration::from_millis(300) {
                let style = ProgressStyle::with_template("loading {bar:30} {bytes}/{total_bytes}");
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                bar = Some(ProgressBar::new(total).with_style(style));
            }
            if let Some(bar) = &bar {
                bar.set_position(done);
            }
        });
        let engine = engine.map_err(|e| {
            in_options(e, "the context (--context, or the prompt and --max-tokens together)", "--parallel")
        })?;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        match engine.repack_cache() {
            Some(CacheUse::Written(path, reason)) => {
                output::note(format_args!("note: wrote the repack cache {} ({reason})", path.display()));
            }
            Some(CacheUse::NotNeeded) => {
                output::note("note: --repack-cache has no effect: these weights run as they are stored");
            }
            Some(CacheUse::Failed(problem)) => {
                output::note(format_args!("note: {problem}; the next start repacks the weights again"));
            }
            Some(CacheUse::Mapped(_)) | None => {}
        }
        Ok(engine)
    }
}

/// An error about the bounds of a plan, with the options of the command line that set them: `context` for the length of
/// a sequence, `sequences` for their number.
pub fn in_options(error: Error, context: &str, sequences: &str) -> anyhow::Error {
    let Error::Graph(graph::Error::PlanOption { option, found, expected }) = &error else {
        return error.into();
    };
    match *option {
        "context" => anyhow!("{context}: found {found}, expected {expected}"),
        "max_seqs" => anyhow!("{sequences}: found {found}, expected {expected}"),
        "prefill_chunk" => anyhow!("--prefill-chunk: found {found}, expected {expected}"),
        "kv_pool" => anyhow!("--context times {sequences}: found {found} tokens, expected {expected}"),
        "max_patches" => anyhow!("--max-pixels: found {found} patches, expected {expected}"),
        _ => error.into(),
    }
}

/// The directory of a file, where relative paths in it start.
pub fn directory_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use qwenvl::vision::{ImageOptions, VideoOptions};

    use super::*;

    #[test]
    fn max_pixels_makes_no_frame_larger_and_every_one_as_small_as_it_says() {
        let mut frontend = Frontend::new(&Checkpoint::tiny().unwrap()).unwrap();
        let default = frontend.processor_mut().clone();
        let area = |min_pixels: Option<u64>, max_pixels: Option<u64>| {
            let mut processor = default.clone();
            let args = PictureArgs { min_pixels, max_pixels, exif_orientation: false };
            args.apply(&mut processor).unwrap();
            let (image, video) = (ImageOptions::default(), VideoOptions::default());
            let (h, w) = processor.frame_size(4, 1920, 1080, &image, &video).unwrap();
            h * w
        };
        let usual = area(None, None);
        assert!((500_000..=602_112).contains(&usual), "{usual}");
        assert_eq!(area(None, Some(12_845_056)), usual);
        for max in [300_000, 100_352, 50_176] {
            for min in [None, Some(u64::from(max))] {
                let area = area(min, Some(max.into()));
                assert!((max / 4 * 3..=max).contains(&area), "{area} of {max}, at least {min:?}");
            }
        }
        let reversed = PictureArgs { min_pixels: Some(2), max_pixels: Some(1), exif_orientation: false };
        assert!(reversed.apply(&mut default.clone()).is_err());
    }
}
