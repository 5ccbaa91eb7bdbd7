//! Prefill and decode: many requests through one executor.
//!
//! Requests wait until the cache has pages for their whole context, then join; prompts run in chunks
//! that may hold several of them, and all sequences decode together. Prompts and answers take turns, so
//! that an answer under way waits for one call of others' prompts at a time. What a request is answered
//! does not depend on its company.

use std::collections::VecDeque;
use std::time::Instant;

use qwenvl_graph::Sizes;

use crate::error::{Error, Result};
use crate::exec::{DecoderCall, Executor, Phase, SampleRow, Slice, VisionCall};
use crate::frontend::{Prepared, ms};
use crate::kernels::SeqRows;
use crate::kernels::cpu::embed::NO_VISUAL_ROW;
use crate::kv_cache::{PageAllocator, PageTable};
use crate::request::{Answer, DEFAULT_MAX_TOKENS, FinishReason, Token, Usage};
use crate::sampler::TokenSet;
use crate::vision::Normalize;

/// Room for text, per token. Tokens of most languages have fewer bytes on average; for others the text
/// grows.
const TEXT_BYTES_PER_TOKEN: usize = 8;

/// Names a request between [`Engine::submit`](crate::Engine::submit) and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What happened to a request in one step.
#[derive(Debug)]
pub enum Event {
    /// It has a new token.
    Token(RequestId, Token),
    /// It is answered. Text that was held back for a stop string comes as a last piece.
    Done(RequestId, String, Box<Answer>),
    /// It failed; others go on.
    Failed(RequestId, Error),
}

/// Bytes, FLOPs and seconds of what has run, for achieved rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of weights and cache that decoding read.
    pub decode_bytes: u64,
    /// Seconds in decoding.
    pub decode_s: f64,
    /// FLOPs of prefills.
    pub prefill_flops: u64,
    /// Seconds in prefills.
    pub prefill_s: f64,
    /// FLOPs of the vision tower.
    pub vision_flops: u64,
    /// Seconds in the vision tower.
    pub vision_s: f64,
}

struct Sequence {
    id: RequestId,
    prepared: Prepared,
    max_tokens: usize,
    pages: PageTable,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    generated: Vec<u32>,
    history: TokenSet,
    text: String,
    /// Slices of its pictures that the vision tower has seen.
    encoded_slices: usize,
    /// Where its pictures' rows start, and how many have been taken.
    visual_base: usize,
    visual_taken: usize,
    started: Instant,
}

impl Sequence {
    /// Whether its pictures, or some of them, are still to be seen.
    fn is_encoding(&self) -> bool {
        self.slices().nth(self.encoded_slices).is_some()
    }

    fn slices(&self) -> impl Iterator<Item = Slice<'_>> {
        self.prepared.visuals.iter().flat_map(|visual| (0..visual.grid.t).map(move |t| Slice { visual, t }))
    }

    fn is_prefilling(&self) -> bool {
        self.cached < self.prepared.tokens.len()
    }

    /// How its next token is picked.
    fn sample_row(&self) -> SampleRow<'_> {
        let position = (self.prepared.tokens.len() + self.generated.len()) as u64;
        SampleRow { params: &self.prepared.sampling, history: &self.history, position }
    }

    /// Rotary position of the generated token at cache index `index`.
    fn position(&self, index: usize) -> [u32; 3] {
        [(index as i64 + self.prepared.delta).max(0) as u32; 3]
    }
}

/// Runs requests on an executor.
pub(crate) struct Scheduler {
    pages: PageAllocator,
    waiting: VecDeque<Sequence>,
    active: Vec<Sequence>,
    /// Visual rows taken since the last time nobody needed any.
    visual_used: usize,
    /// Whether the last call was for a prompt or its pictures.
    prompts_had_turn: bool,
    next_id: u64,
    /// Weights that one decode step reads.
    decode_weight_bytes: u64,
    placeholders: [u32; 2],
    eos: Vec<u32>,
    normalize: Normalize,
    batch: Batch,
    pub(crate) work: Work,
}

/// The slices of a decoder call, kept between calls.
#[derive(Default)]
struct Batch {
    tokens: Vec<u32>,
    positions: Vec<[u32; 3]>,
    visual_index: Vec<u32>,
    slots: Vec<u32>,
    seqs: Vec<SeqRows>,
    page_table: Vec<u32>,
    logit_rows: Vec<u32>,
    /// Which active sequence each entry of `seqs` is.
    members: Vec<usize>,
    /// Which active sequence each row of logits belongs to.
    owners: Vec<usize>,
    /// The token that each row of logits gave.
    sampled: Vec<Result<u32>>,
}

impl Batch {
    fn with_capacity(tokens: usize, seqs: usize, pages: usize) -> Batch {
        Batch {
            tokens: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            visual_index: Vec::with_capacity(tokens),
            slots: Vec::with_capacity(tokens),
            seqs: Vec::with_capacity(seqs),
            page_table: Vec::with_capacity(pages),
            logit_rows: Vec::with_capacity(seqs),
            members: Vec::with_capacity(seqs),
            owners: Vec::with_capacity(seqs),
            sampled: Vec::with_capacity(seqs),
        }
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.visual_index.clear();
        self.slots.clear();
        self.seqs.clear();
        self.page_table.clear();
        self.logit_rows.clear();
        self.members.clear();
        self.owners.clear();
        self.sampled.clear();
    }

    fn push(&mut self, token: u32, position: [u32; 3], visual: u32, slot: u32) {
        self.tokens.push(token);
        self.positions.push(position);
        self.visual_index.push(visual);
        self.slots.push(slot);
    }

    /// Closes the rows of one sequence, which began at token `first` of the call.
    fn end_sequence(
        &mut self,
        first: usize,
        past: usize,
        pages: &PageTable,
        owner: usize,
        wants_logits: bool,
    ) {
        let start = self.page_table.len();
        self.page_table.extend_from_slice(pages.pages());
        self.seqs.push(SeqRows {
            tokens: first..self.tokens.len(),
            past,
            pages: start..self.page_table.len(),
        });
        self.members.push(owner);
        if wants_logits {
            self.logit_rows.push(self.tokens.len() as u32 - 1);
            self.owners.push(owner);
        }
    }

    fn call(&self) -> DecoderCall<'_> {
        DecoderCall {
            tokens: &self.tokens,
            positions: &self.positions,
            visual_index: &self.visual_index,
            slots: &self.slots,
            seqs: &self.seqs,
            page_table: &self.page_table,
            logit_rows: &self.logit_rows,
        }
    }
}

impl Scheduler {
    pub(crate) fn new(executor: &dyn Executor, eos: &[u32], normalize: Normalize) -> Scheduler {
        let plan = executor.plan();
        let o = &plan.options;
        let tokens = o.prefill_chunk_tokens.max(o.max_seqs);
        Scheduler {
            pages: PageAllocator::new(plan.kv_pages()),
            waiting: VecDeque::new(),
            active: Vec::with_capacity(o.max_seqs),
            visual_used: 0,
            prompts_had_turn: false,
            next_id: 0,
            decode_weight_bytes: plan.decode.cost(&Sizes::decode(1, 1)).weight_bytes,
            placeholders: [plan.config.image_token_id, plan.config.video_token_id],
            eos: eos.to_vec(),
            normalize,
            batch: Batch::with_capacity(tokens, o.max_seqs, plan.kv_pages()),
            work: Work::default(),
        }
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// [`Error::Context`] or [`Error::Request`] if the plan's bounds can never hold it.
    pub(crate) fn submit(&mut self, executor: &dyn Executor, prepared: Prepared) -> Result<RequestId> {
        let o = &executor.plan().options;
        let prompt = prepared.tokens.len();
        let room = o.context_tokens.saturating_sub(prompt);
        let max_tokens = prepared.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(room)).max(1);
        if max_tokens > room {
            return Err(Error::Context {
                prompt_tokens: prompt,
                visual_tokens: prepared.visual_tokens,
                max_tokens,
                context_tokens: o.context_tokens,
            });
        }
        let limits = [
            ("patches in one image or frame", prepared.largest_slice(), o.max_patches, "max_pixels"),
            ("visual tokens", prepared.visual_tokens, o.max_visual_tokens, "context"),
        ];
        for (what, found, limit, option) in limits {
            if found > limit {
                return Err(Error::Request {
                    field: "messages".into(),
                    found: format!("{found} {what}"),
                    expected: format!(
                        "at most {limit}: lower the item's max_pixels or load with a larger {option}"
                    ),
                });
            }
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut history = TokenSet::new(executor.plan().config.text.vocab_size);
        history.extend(&prepared.tokens);
        self.waiting.push_back(Sequence {
            id,
            max_tokens,
            pages: PageTable::default(),
            cached: 0,
            generated: Vec::new(),
            history,
            text: String::new(),
            encoded_slices: 0,
            visual_base: 0,
            visual_taken: 0,
            started: Instant::now(),
            prepared,
        });
        Ok(id)
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Forgets a request without an answer.
    pub(crate) fn abort(&mut self, id: RequestId) {
        self.waiting.retain(|s| s.id != id);
        if let Some(at) = self.active.iter().position(|s| s.id == id) {
            let sequence = self.active.remove(at);
            self.pages.release(sequence.pages);
        }
    }

    /// One call of the decoder or the vision tower. Appends what happened.
    ///
    /// # Errors
    /// Those of the device: then all requests that had joined are forgotten, without an event, and those
    /// that wait go on waiting. Errors of single requests are events.
    pub(crate) fn step(&mut self, executor: &mut dyn Executor, events: &mut Vec<Event>) -> Result<()> {
        let result = self.try_step(executor, events);
        if result.is_err() {
            self.active.drain(..).for_each(|s| self.pages.release(s.pages));
        }
        result
    }

    fn try_step(&mut self, executor: &mut dyn Executor, events: &mut Vec<Event>) -> Result<()> {
        self.drop_cancelled(executor, events);
        self.admit(executor);
        let prompts = self.active.iter().any(Sequence::is_prefilling);
        let answers = self.active.iter().any(|s| !s.is_prefilling());
        self.prompts_had_turn = prompts && !(answers && self.prompts_had_turn);
        if self.prompts_had_turn
            && let Some(at) = self.active.iter().position(Sequence::is_encoding)
        {
            return self.encode(executor, at);
        }
        let start = Instant::now();
        let phase = if self.prompts_had_turn { Phase::Prefill } else { Phase::Decode };
        self.batch.clear();
        match phase {
            Phase::Prefill => self.batch_prompts(executor),
            Phase::Decode => self.batch_tokens(),
        }
        if self.batch.tokens.is_empty() {
            return Ok(());
        }
        executor.forward(phase, &self.batch.call())?;
        let active = &self.active;
        let mut rows = self.batch.owners.iter().map(|&owner| active[owner].sample_row());
        executor.sample(&mut rows, &mut self.batch.sampled)?;
        self.account(executor, phase, start.elapsed());
        self.emit(executor, events);
        Ok(())
    }

    fn drop_cancelled(&mut self, executor: &dyn Executor, events: &mut Vec<Event>) {
        let is_cancelled = |s: &Sequence| s.prepared.cancel.is_cancelled();
        while let Some(at) = self.waiting.iter().position(is_cancelled) {
            let sequence = self.waiting.remove(at).expect("found above");
            finish(sequence, FinishReason::Cancelled, executor, &mut self.pages, events);
        }
        while let Some(at) = self.active.iter().position(is_cancelled) {
            let sequence = self.active.remove(at);
            finish(sequence, FinishReason::Cancelled, executor, &mut self.pages, events);
        }
    }

    /// Lets waiting requests join while there is room.
    fn admit(&mut self, executor: &dyn Executor) {
        let o = &executor.plan().options;
        loop {
            if !self.active.iter().any(Sequence::is_prefilling) {
                self.visual_used = 0;
            }
            let Some(next) = self.waiting.front() else { return };
            let rows = next.prepared.visual_tokens;
            if self.active.len() == o.max_seqs || self.visual_used + rows > o.max_visual_tokens {
                return;
            }
            let Some(pages) = self.pages.allocate(next.prepared.tokens.len() + next.max_tokens) else {
                return;
            };
            let mut sequence = self.waiting.pop_front().expect("looked at above");
            sequence.pages = pages;
            sequence.visual_base = self.visual_used;
            self.visual_used += rows;
            sequence.started = Instant::now();
            // What a token adds to, at its length: nothing is allocated while decoding.
            sequence.generated.reserve_exact(sequence.max_tokens);
            sequence.text.reserve_exact(sequence.max_tokens.saturating_mul(TEXT_BYTES_PER_TOKEN));
            self.active.push(sequence);
        }
    }

    /// Runs the vision tower over the next slices of a sequence, as many as the plan allows.
    fn encode(&mut self, executor: &mut dyn Executor, at: usize) -> Result<()> {
        let start = Instant::now();
        let (max_patches, per_token) =
            (executor.plan().options.max_patches, executor.plan().config.vision.patches_per_token());
        let sequence = &mut self.active[at];
        let (mut first_row, mut slices) = (sequence.visual_base, Vec::new());
        let (mut patches, mut pairs) = (0, 0);
        for (number, slice) in sequence.slices().enumerate() {
            let n = slice.visual.grid.patches_per_slice();
            if number < sequence.encoded_slices {
                first_row += n / per_token;
                continue;
            }
            if patches + n > max_patches {
                break;
            }
            slices.push(slice);
            (patches, pairs) = (patches + n, pairs + (n as u64).pow(2));
        }
        executor.encode(&VisionCall { slices: &slices, normalize: &self.normalize, first_row })?;
        let sizes = Sizes { patches, patch_pairs: pairs, ..Sizes::default() };
        self.work.vision_flops += executor.plan().vision.cost(&sizes).flops;
        self.work.vision_s += start.elapsed().as_secs_f64();
        sequence.encoded_slices += slices.len();
        sequence.prepared.timings.vit_ms += ms(start.elapsed());
        Ok(())
    }

    fn batch_prompts(&mut self, executor: &dyn Executor) {
        let o = &executor.plan().options;
        let mut room = o.prefill_chunk_tokens.min(executor.plan().prefill.bounds.tokens);
        for (owner, s) in self.active.iter_mut().enumerate() {
            if !s.is_prefilling() || room == 0 {
                continue;
            }
            let (first, past) = (self.batch.tokens.len(), s.cached);
            let end = s.prepared.tokens.len().min(past + room);
            for index in past..end {
                let token = s.prepared.tokens[index];
                let visual = if self.placeholders.contains(&token) {
                    s.visual_taken += 1;
                    (s.visual_base + s.visual_taken - 1) as u32
                } else {
                    NO_VISUAL_ROW
                };
                self.batch.push(token, s.prepared.positions[index], visual, s.pages.slot(index));
            }
            room -= end - past;
            s.cached = end;
            self.batch.end_sequence(first, past, &s.pages, owner, end == s.prepared.tokens.len());
        }
    }

    fn batch_tokens(&mut self) {
        for (owner, s) in self.active.iter_mut().enumerate().filter(|(_, s)| !s.is_prefilling()) {
            let (first, past) = (self.batch.tokens.len(), s.cached);
            let token = *s.generated.last().expect("a prefilled sequence has a token");
            self.batch.push(token, s.position(past), NO_VISUAL_ROW, s.pages.slot(past));
            s.cached += 1;
            self.batch.end_sequence(first, past, &s.pages, owner, true);
        }
    }

    fn account(&mut self, executor: &dyn Executor, phase: Phase, elapsed: std::time::Duration) {
        let plan = executor.plan();
        let kv_tokens: u64 = self.batch.seqs.iter().map(|s| (s.past + s.tokens.len()) as u64).sum();
        match phase {
            Phase::Prefill => {
                let pairs = |s: &SeqRows| Sizes::prefill(s.tokens.len(), s.past).token_pairs;
                let sizes = Sizes {
                    tokens: self.batch.tokens.len(),
                    token_pairs: self.batch.seqs.iter().map(pairs).sum(),
                    kv_tokens,
                    logit_rows: self.batch.logit_rows.len(),
                    ..Sizes::default()
                };
                self.work.prefill_flops += plan.prefill.cost(&sizes).flops;
                self.work.prefill_s += elapsed.as_secs_f64();
            }
            Phase::Decode => {
                self.work.decode_bytes +=
                    self.decode_weight_bytes + kv_tokens * plan.memory.kv_bytes_per_token;
                self.work.decode_s += elapsed.as_secs_f64();
            }
        }
        for &owner in &self.batch.members {
            let t = &mut self.active[owner].prepared.timings;
            match phase {
                Phase::Prefill => t.prefill_ms += ms(elapsed),
                Phase::Decode => t.decode_ms += ms(elapsed),
            }
        }
    }

    /// Turns new tokens into text and ends sequences that are complete or have failed.
    fn emit(&mut self, executor: &dyn Executor, events: &mut Vec<Event>) {
        let mut ended = Vec::new();
        for (&owner, sampled) in self.batch.owners.iter().zip(self.batch.sampled.drain(..)) {
            let s = &mut self.active[owner];
            let id = match sampled {
                Ok(id) => id,
                Err(error) => {
                    events.push(Event::Failed(s.id, error));
                    ended.push((owner, None));
                    continue;
                }
            };
            s.generated.push(id);
            s.history.insert(id);
            if s.generated.len() == 1 {
                s.prepared.timings.first_token_ms = ms(s.started.elapsed());
            }
            let is_eos = !s.prepared.ignore_eos && self.eos.contains(&id);
            let piece = if is_eos { String::new() } else { s.prepared.decoder.push(id) };
            let out = s.prepared.stop.push(piece);
            s.text.push_str(&out.text);
            events.push(Event::Token(s.id, Token { id, text: out.text }));
            if is_eos || out.matched.is_some() {
                ended.push((owner, Some(FinishReason::Stop)));
            } else if s.generated.len() == s.max_tokens {
                ended.push((owner, Some(FinishReason::Length)));
            }
        }
        for (owner, reason) in ended.into_iter().rev() {
            let sequence = self.active.remove(owner);
            match reason {
                Some(reason) => finish(sequence, reason, executor, &mut self.pages, events),
                None => self.pages.release(sequence.pages),
            }
        }
    }
}

fn finish(
    mut s: Sequence,
    reason: FinishReason,
    executor: &dyn Executor,
    pages: &mut PageAllocator,
    events: &mut Vec<Event>,
) {
    pages.release(std::mem::take(&mut s.pages));
    let last = s.prepared.decoder.finish();
    let mut tail = s.prepared.stop.push(last).text;
    tail.push_str(&s.prepared.stop.finish());
    s.text.push_str(&tail);
    let merge = executor.plan().config.vision.spatial_merge_size;
    let answer = Answer {
        text: s.text,
        finish_reason: reason,
        usage: Usage {
            prompt_tokens: s.prepared.tokens.len(),
            visual_tokens: s.prepared.visual_tokens,
            completion_tokens: s.generated.len(),
        },
        token_ids: s.generated,
        timings: s.prepared.timings,
        visuals: s.prepared.visual_infos(merge),
        notices: s.prepared.notices,
    };
    events.push(Event::Done(s.id, tail, Box::new(answer)));
}

#[cfg(test)]
mod tests;
