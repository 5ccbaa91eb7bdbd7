//! From a request to tokens and pictures: everything before the executor.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use qwenvl_graph::{Grid, ModelConfig, rope_index};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::prompt::{
    ChatTemplate, ImageInput, Part, SizeOptions, StopMatcher, TokenDecoder, Tokenizer, VideoInput, VideoPart,
    expand, find_template,
};
use crate::request::{DEFAULT_MAX_TOKENS, Request, Timings, VisualInfo};
use crate::sampler::{GenerationConfig, SamplingParams};
use crate::vision::{
    FetchLimits, ImageOptions, ImageSource, Normalize, Processor, VideoOptions, Visual, VisualKind,
    VisualRequest,
};

/// Prepares requests for one checkpoint. Needs no weights.
pub struct Frontend {
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    processor: Processor,
    generation: GenerationConfig,
    eos_token_ids: Vec<u32>,
    /// What fetching a picture may take, and which files and servers requests may name.
    pub fetch_limits: FetchLimits,
    /// Most tokens of a prompt, those of its pictures included: [`DEFAULT_PROMPT_TOKENS`], and the context once an
    /// engine has the frontend. A request above it is refused before its text is encoded and its pictures are decoded,
    /// so that what it takes is bounded.
    pub max_prompt_tokens: usize,
}

/// [`Frontend::max_prompt_tokens`] of a frontend without an engine: a little more than the 128,000 that qwen-vl-utils
/// sizes long videos for.
pub const DEFAULT_PROMPT_TOKENS: usize = 128 << 10;

/// A request ready for the executor.
pub struct Prepared {
    /// The expanded prompt.
    pub tokens: Vec<u32>,
    /// Rotary position of each.
    pub positions: Vec<[u32; 3]>,
    /// A token at cache index `c` after the prompt has position `c + delta`.
    pub delta: i64,
    /// The pictures in the order of the prompt.
    pub visuals: Vec<Visual>,
    /// Placeholder tokens of all pictures.
    pub visual_tokens: usize,
    /// What of the request has no effect, and why.
    pub notices: Vec<String>,
    /// Most tokens to generate, if the request says.
    pub max_tokens: Option<usize>,
    /// Whether the answer goes on after a token that ends it: so that a measurement has the length it wants.
    pub ignore_eos: bool,
    pub(crate) sampling: SamplingParams,
    pub(crate) decoder: TokenDecoder,
    pub(crate) stop: StopMatcher,
    pub(crate) cancel: crate::request::CancelHandle,
    pub(crate) timings: Timings,
}

impl Prepared {
    /// Patches of the largest temporal slice: what one vision call must hold at least.
    pub fn largest_slice(&self) -> usize {
        self.visuals.iter().map(|v| v.grid.patches_per_slice()).max().unwrap_or(0)
    }

    /// Tokens of prompt and answer together, at most.
    pub fn context_tokens(&self) -> usize {
        self.tokens.len().saturating_add(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS))
    }

    /// The pictures as the model sees them.
    pub fn visual_infos(&self, merge: usize) -> Vec<VisualInfo> {
        self.visuals
            .iter()
            .map(|v| VisualInfo {
                width: v.original.0,
                height: v.original.1,
                resized_width: v.frames[0].width(),
                resized_height: v.frames[0].height(),
                grid_thw: [v.grid.t, v.grid.h, v.grid.w],
                tokens: v.grid.tokens(merge),
                video: v.sampling.clone(),
            })
            .collect()
    }
}

impl Frontend {
    /// Reads tokenizer, chat template, preprocessing and generation defaults of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file.
    pub fn new(checkpoint: &Checkpoint) -> Result<Frontend> {
        let config = checkpoint.config.clone();
        let file = |name: &str| checkpoint.text_file(name);
        let of = |name: &str| {
            let path = checkpoint.path().join(name);
            move |error| of_file(path, error)
        };
        let template = find_template(
            file("chat_template.jinja")?.as_deref(),
            file("chat_template.json")?.as_deref(),
            file("tokenizer_config.json")?.as_deref(),
        )
        .map_err(of(""))?;
        let processor = Processor::from_json(file("preprocessor_config.json")?.as_deref(), &config.vision)
            .map_err(of("preprocessor_config.json"))?;
        let generation = GenerationConfig::from_json(file("generation_config.json")?.as_deref())
            .map_err(of("generation_config.json"))?;
        let (eos_file, eos_token_ids) = match generation.eos_token_ids.as_slice() {
            [] => ("config.json", eos_of_config(file("config.json")?.as_deref())),
            ids => ("generation_config.json", ids.to_vec()),
        };
        if let Some(id) = eos_token_ids.iter().find(|id| **id as usize >= config.text.vocab_size) {
            return Err(Error::Checkpoint {
                path: checkpoint.path().join(eos_file),
                problem: format!("found eos_token_id {id}, expected ids below {}", config.text.vocab_size),
                help: "take the file from the checkpoint that config.json comes from".into(),
            });
        }
        let tokenizer =
            Tokenizer::from_bytes(&checkpoint.tokenizer_bytes()?).map_err(of("tokenizer.json"))?;
        Ok(Frontend {
            config,
            tokenizer,
            template,
            processor,
            generation,
            eos_token_ids,
            fetch_limits: FetchLimits::default(),
            max_prompt_tokens: DEFAULT_PROMPT_TOKENS,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How pictures are sized, unless a request says otherwise.
    pub fn processor_mut(&mut self) -> &mut Processor {
        &mut self.processor
    }

    /// Largest area of a resized picture, in pixels, unless a request says otherwise.
    pub fn max_pixels(&self) -> u64 {
        self.processor.limits.max_pixels as u64
    }

    /// Colour normalisation.
    pub fn normalize(&self) -> Normalize {
        self.processor.normalize
    }

    /// Keys of `generation_config.json` that this engine does not know how to honour.
    pub fn ignored_generation_keys(&self) -> &[String] {
        &self.generation.ignored
    }

    pub(crate) fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// Makes the prompt of a request and loads its pictures.
    ///
    /// # Errors
    /// [`Error::Request`] for parameters out of range and for a text that is longer than the context can hold,
    /// [`Error::Context`] for a prompt of too many tokens, [`Error::Image`] and [`Error::Video`] for pictures that
    /// cannot be had, [`Error::Template`] or [`Error::Tokenizer`] for a prompt that cannot be made.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        if request.messages.is_empty() {
            return Err(Error::Request {
                field: "messages".into(),
                found: "none".into(),
                expected: "at least one message".into(),
            });
        }
        self.check(request)?;
        let pictures = self.visual_requests(request)?;
        let start = Instant::now();
        let ids = self.encode(request)?;
        let encoded = start.elapsed();
        // Each picture has one token so far.
        let text_tokens = ids.len().saturating_sub(pictures.len());
        let visuals = self.processor.load(&pictures, &self.fetch_limits, &|visual_tokens| {
            let prompt_tokens = text_tokens.saturating_add(visual_tokens);
            if prompt_tokens <= self.max_prompt_tokens {
                return Ok(());
            }
            Err(Error::Context {
                prompt_tokens,
                visual_tokens,
                max_tokens: request.max_tokens.unwrap_or(1),
                context_tokens: self.max_prompt_tokens,
            })
        })?;
        let start = Instant::now();
        let grids = |kind| visuals.iter().filter(|v| v.kind == kind).map(|v| v.grid).collect::<Vec<Grid>>();
        let (images, videos) = (grids(VisualKind::Image), grids(VisualKind::Video));
        let tokens = expand(&ids, &self.config, &images, &videos)?;
        if tokens.is_empty() {
            return Err(Error::Template { problem: "it makes an empty prompt of these messages".into() });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.config.text.vocab_size) {
            return Err(Error::Tokenizer {
                problem: format!(
                    "token {id} is beyond the model's vocab_size {}: tokenizer.json belongs to another model",
                    self.config.text.vocab_size
                ),
            });
        }
        let index = rope_index(&tokens, &self.config, &images, &videos)?;
        let mut timings = Timings { prompt_ms: ms(encoded + start.elapsed()), ..Timings::default() };
        for visual in &visuals {
            timings.image_fetch_ms += ms(visual.timings.fetch);
            timings.image_decode_ms += ms(visual.timings.decode);
            timings.image_resize_ms += ms(visual.timings.resize);
        }
        let merge = self.config.vision.spatial_merge_size;
        let prepared = self.prepared(tokens, request)?;
        let mut notices = prepared.notices;
        // Those of pictures are fewer than their tokens.
        let (last, most) = (index.positions.iter().flatten().max(), self.config.text.max_position_embeddings);
        notices.extend(last.filter(|last| **last as usize >= most).map(|last| {
            format!("the prompt reaches position {last}, beyond the {most} that the model is made for: its answer may be poor")
        }));
        Ok(Prepared {
            visual_tokens: visuals.iter().map(|v| v.grid.tokens(merge)).sum(),
            positions: index.positions,
            delta: index.delta,
            visuals,
            timings,
            notices,
            ..prepared
        })
    }

    /// A request of text that is tokens already; the messages of `request` are not used.
    ///
    /// # Errors
    /// [`Error::Request`] for no tokens, for ids that are none of the model's or stand for pictures, and for
    /// parameters out of range.
    pub fn prepare_tokens(&self, tokens: Vec<u32>, request: &Request) -> Result<Prepared> {
        self.check(request)?;
        let problem = |found: String| Error::Request {
            field: "tokens".into(),
            found,
            expected: format!("one id or more, of text, below {}", self.config.text.vocab_size),
        };
        let placeholders = [self.config.image_token_id, self.config.video_token_id];
        let is_text = |id: u32| (id as usize) < self.config.text.vocab_size && !placeholders.contains(&id);
        if tokens.is_empty() {
            return Err(problem("none".into()));
        }
        if let Some(at) = tokens.iter().position(|id| !is_text(*id)) {
            return Err(problem(format!("{} at {at}", tokens[at])));
        }
        let index = rope_index(&tokens, &self.config, &[], &[])?;
        Ok(Prepared { positions: index.positions, delta: index.delta, ..self.prepared(tokens, request)? })
    }

    /// The ids of the text, in which every picture is one placeholder.
    fn encode(&self, request: &Request) -> Result<Vec<u32>> {
        let text = self.template.render(&request.messages, true, request.add_vision_id)?;
        // Encoding takes time and memory by the length of the text: first see whether its tokens can be few enough.
        let most_bytes = self.max_prompt_tokens.saturating_mul(self.tokenizer.longest_token_bytes());
        if text.len() > most_bytes {
            return Err(Error::Request {
                field: "messages".into(),
                found: format!("a prompt of {} bytes of text", text.len()),
                expected: format!(
                    "at most {most_bytes}, as {} tokens hold no more: shorten the prompt, or load with a larger context",
                    self.max_prompt_tokens
                ),
            });
        }
        self.tokenizer.encode(&text)
    }

    /// Refuses parameters that are out of range.
    fn check(&self, request: &Request) -> Result<()> {
        request.sampling(&self.generation.sampling).check()?;
        if request.max_tokens == Some(0) {
            return Err(Error::Request {
                field: "max_tokens".into(),
                found: "0".into(),
                expected: "at least 1".into(),
            });
        }
        Ok(())
    }

    /// Tokens with what a request says of their answer, but for positions and pictures.
    fn prepared(&self, tokens: Vec<u32>, request: &Request) -> Result<Prepared> {
        Ok(Prepared {
            tokens,
            positions: Vec::new(),
            delta: 0,
            visuals: Vec::new(),
            visual_tokens: 0,
            notices: notices(request),
            max_tokens: request.max_tokens,
            ignore_eos: false,
            sampling: request.sampling(&self.generation.sampling),
            decoder: self.tokenizer.decoder(!request.keep_special_tokens),
            stop: StopMatcher::new(request.stop.clone())?,
            cancel: request.cancel.clone(),
            timings: Timings::default(),
        })
    }

    fn visual_requests(&self, request: &Request) -> Result<Vec<VisualRequest>> {
        let source = |image: &ImageInput| ImageSource::of(image, &request.base_dir);
        let mut out = Vec::new();
        for part in request.messages.iter().flat_map(|m| m.parts()) {
            match part {
                Part::Text { .. } => {}
                Part::Image(image) => out.push(VisualRequest {
                    kind: VisualKind::Image,
                    sources: vec![source(&image.image)?],
                    options: ImageOptions {
                        exif_orientation: image.exif_orientation,
                        ..options(&image.size)
                    },
                    file: None,
                }),
                Part::Video(video) => {
                    let (sources, file) = match &video.video {
                        VideoInput::Frames(frames) => {
                            only_for_files(video)?;
                            (frames.iter().map(source).collect::<Result<_>>()?, None)
                        }
                        VideoInput::File(location) => {
                            let source = ImageSource::parse_video(location, &request.base_dir)?;
                            (vec![source], Some(video_options(video)))
                        }
                    };
                    let options = options(&video.size);
                    out.push(VisualRequest { kind: VisualKind::Video, sources, options, file });
                }
            }
        }
        Ok(out)
    }
}

/// Says once what is accepted but has no effect.
fn notices(request: &Request) -> Vec<String> {
    let parts = || request.messages.iter().flat_map(|m| m.parts());
    let detail = parts().find_map(|part| match part {
        Part::Image(image) => image.detail.as_deref(),
        _ => None,
    });
    let detail = detail.map(|detail| {
        format!("image_url.detail {detail} has no effect: give min_pixels and max_pixels beside image_url")
    });
    detail.into_iter().collect()
}

fn options(size: &SizeOptions) -> ImageOptions {
    ImageOptions {
        min_pixels: size.min_pixels,
        max_pixels: size.max_pixels,
        resized_height: size.resized.map(|(h, _)| h),
        resized_width: size.resized.map(|(_, w)| w),
        exif_orientation: None,
    }
}

fn video_options(video: &VideoPart) -> VideoOptions {
    VideoOptions {
        fps: video.fps,
        nframes: video.nframes,
        min_frames: video.min_frames,
        max_frames: video.max_frames,
        video_start: video.video_start,
        video_end: video.video_end,
        total_pixels: video.total_pixels,
    }
}

/// Refuses options that choose among the frames of a file for a list of frames. `fps` says how they were
/// taken and changes nothing.
fn only_for_files(video: &VideoPart) -> Result<()> {
    let given = [
        ("nframes", video.nframes.is_some()),
        ("min_frames", video.min_frames.is_some()),
        ("max_frames", video.max_frames.is_some()),
        ("video_start", video.video_start.is_some()),
        ("video_end", video.video_end.is_some()),
        ("total_pixels", video.total_pixels.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(Error::Request {
            field: (*key).into(),
            found: "a list of frames with this option".into(),
            expected: "the option only with a video file: all frames of a list are used".into(),
        }),
    }
}

/// `eos_token_id` of `config.json`, a number or an array, for checkpoints without generation config.
/// An error that reading a file of a checkpoint gave, with where the file is.
fn of_file(path: PathBuf, error: Error) -> Error {
    let problem = match error {
        Error::Checkpoint { problem, help, .. } => return Error::Checkpoint { path, problem, help },
        Error::Tokenizer { problem } => problem,
        Error::Template { problem } => format!("chat template: {problem}"),
        other => return other,
    };
    Error::Checkpoint { path, problem, help: "download the file again".into() }
}

fn eos_of_config(text: Option<&str>) -> Vec<u32> {
    let value = text.and_then(|t| serde_json::from_str::<serde_json::Value>(t).ok());
    let eos = value
        .as_ref()
        .and_then(|v| v.get("eos_token_id").or_else(|| v.get("text_config")?.get("eos_token_id")));
    let number = |v: &serde_json::Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match eos {
        Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(number).collect(),
        Some(id) => number(id).into_iter().collect(),
        None => Vec::new(),
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
