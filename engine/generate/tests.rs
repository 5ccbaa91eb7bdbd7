//! The scheduler with an executor that only counts.

use qwenvl_graph::{Device, Plan};

use super::*;
use crate::exec::Peaks;
use crate::prompt::{Message, Part};
use crate::sampler::Sampler;
use crate::{Checkpoint, EngineOptions, Frontend, Request};

/// An executor whose sequences all go on with the token 5, until told otherwise.
struct Fake {
    plan: Plan,
    logits: Vec<f32>,
    /// The sequence that owns this page has no usable logits.
    broken_page: Option<u32>,
    /// The next call of this kind fails.
    failing: Option<&'static str>,
    /// What was called, in order.
    calls: Vec<String>,
}

impl Fake {
    fn call(&mut self, name: &str) -> Result<()> {
        self.calls.push(name.into());
        match self.failing.take_if(|failing| *failing == name) {
            None => Ok(()),
            Some(_) => Err(Error::Unsupported { what: name.into(), help: "this is a test".into() }),
        }
    }
}

impl Executor for Fake {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn encode(&mut self, _: &VisionCall) -> Result<()> {
        self.call("encode")
    }

    fn forward(&mut self, phase: Phase, call: &DecoderCall) -> Result<()> {
        self.call(if phase == Phase::Prefill { "prefill" } else { "decode" })?;
        let vocab = self.plan.config.text.vocab_size;
        self.logits.clear();
        for row in call.logit_rows {
            let seq = call.seqs.iter().find(|s| s.tokens.contains(&(*row as usize))).unwrap();
            let broken = self.broken_page.is_some_and(|p| call.page_table[seq.pages.clone()].contains(&p));
            let start = self.logits.len();
            self.logits.resize(start + vocab, if broken { f32::NAN } else { 0.0 });
            self.logits[start + 5] += 1.0;
        }
        Ok(())
    }

    fn sample(
        &mut self,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()> {
        self.call("sample")?;
        let vocab = self.plan.config.text.vocab_size;
        let mut sampler = Sampler::new(vocab);
        tokens.extend(
            rows.zip(self.logits.chunks(vocab))
                .map(|(row, logits)| sampler.sample(logits, row.history, row.params, row.position)),
        );
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32]> {
        Ok(&self.logits)
    }

    fn watch(&mut self, _: Option<crate::exec::Watch>) {}

    fn measure(&mut self) -> Peaks {
        unreachable!()
    }
}

struct Rig {
    frontend: Frontend,
    executor: Fake,
    scheduler: Scheduler,
    events: Vec<Event>,
}

impl Rig {
    fn new(max_seqs: usize) -> Rig {
        let checkpoint = Checkpoint::tiny().unwrap();
        let frontend = Frontend::new(&checkpoint).unwrap();
        let options = EngineOptions { context_tokens: Some(128), max_seqs, ..EngineOptions::default() };
        let device = Device::cpu(1, u64::MAX, 0.0, 0.0);
        let plan = options.plan(&checkpoint.config, &frontend, &device).unwrap();
        let executor = Fake { plan, logits: Vec::new(), broken_page: None, failing: None, calls: Vec::new() };
        let scheduler = Scheduler::new(&executor, frontend.eos_token_ids(), frontend.normalize());
        Rig { frontend, executor, scheduler, events: Vec::new() }
    }

    /// A request of fewer than 64 tokens, with its answer at most 128: two pages.
    fn submit(&mut self, picture: bool) -> RequestId {
        let rgb = vec![0; 56 * 56 * 3];
        let mut parts = vec![Part::text("Who are you?")];
        if picture {
            parts.push(Part::Image(crate::prompt::ImagePart {
                image: crate::prompt::ImageInput::Pixels { width: 56, height: 56, rgb: rgb.into() },
                size: Default::default(),
                exif_orientation: None,
                detail: None,
            }));
        }
        let request = Request { max_tokens: Some(64), ..Request::new(vec![Message::user(parts)]) };
        let prepared = self.frontend.prepare(&request).unwrap();
        assert!((1..64).contains(&prepared.tokens.len()));
        self.scheduler.submit(&self.executor, prepared).unwrap()
    }

    fn step(&mut self) -> Result<()> {
        self.scheduler.step(&mut self.executor, &mut self.events)
    }

    fn run(&mut self) {
        while !self.scheduler.is_idle() {
            self.step().unwrap();
        }
    }

    /// Tokens, ends and failures of a request.
    fn seen(&self, id: RequestId) -> [usize; 3] {
        let count =
            |f: fn(&Event) -> Option<RequestId>| self.events.iter().filter(|e| f(e) == Some(id)).count();
        [
            count(|e| if let Event::Token(id, _) = e { Some(*id) } else { None }),
            count(|e| if let Event::Done(id, ..) = e { Some(*id) } else { None }),
            count(|e| if let Event::Failed(id, _) = e { Some(*id) } else { None }),
        ]
    }

    fn assert_all_pages_are_free_once(&mut self) {
        let total = self.scheduler.pages.total_pages();
        assert_eq!(self.scheduler.pages.free_pages(), total);
        let all = self.scheduler.pages.allocate(total * qwenvl_graph::kernel::KV_PAGE_TOKENS).unwrap();
        let mut pages = all.pages().to_vec();
        pages.sort_unstable();
        assert_eq!(pages, (0..total as u32).collect::<Vec<_>>());
        self.scheduler.pages.release(all);
    }
}

#[test]
fn a_request_without_usable_logits_fails_alone_and_gives_its_pages_back_once() {
    for steps_before in [0, 1, 7] {
        let mut rig = Rig::new(3);
        let ids = [0; 3].map(|_| rig.submit(false));
        for _ in 0..steps_before {
            rig.step().unwrap();
        }
        // Requests join in order and take pages in order, two each.
        rig.executor.broken_page = Some(2);
        rig.step().unwrap();
        rig.executor.broken_page = None;
        assert_eq!(rig.seen(ids[1]), [steps_before, 0, 1]);
        assert_eq!(rig.scheduler.active.len(), 2);
        assert_eq!(rig.scheduler.pages.free_pages(), 2);
        let late = rig.submit(false);
        rig.run();
        assert_eq!(rig.seen(ids[1]), [steps_before, 0, 1]);
        for id in [ids[0], ids[2], late] {
            assert_eq!(rig.seen(id), [64, 1, 0], "{id:?}");
        }
        rig.assert_all_pages_are_free_once();
    }
}

#[test]
fn an_error_of_the_device_ends_what_runs_and_leaves_what_waits() {
    for (failing, steps_before) in
        [("encode", 0), ("prefill", 0), ("decode", 1), ("sample", 0), ("sample", 9)]
    {
        let mut rig = Rig::new(1);
        let (first, second) = (rig.submit(true), rig.submit(true));
        for _ in 0..steps_before + usize::from(failing != "encode") {
            rig.step().unwrap();
        }
        rig.executor.failing = Some(failing);
        assert!(rig.step().unwrap_err().to_string().contains(failing));
        assert!(rig.scheduler.active.is_empty());
        rig.assert_all_pages_are_free_once();
        rig.run();
        assert_eq!(rig.seen(first), [steps_before, 0, 0]);
        assert_eq!(rig.seen(second), [64, 1, 0]);
        rig.assert_all_pages_are_free_once();
    }
}

#[test]
fn an_aborted_or_cancelled_request_gives_its_pages_back_once() {
    let mut rig = Rig::new(2);
    let ids = [0; 4].map(|_| rig.submit(false));
    for _ in 0..3 {
        rig.step().unwrap();
    }
    rig.scheduler.active[1].prepared.cancel.cancel();
    rig.scheduler.waiting[1].prepared.cancel.cancel();
    rig.scheduler.abort(ids[0]);
    rig.scheduler.abort(ids[0]);
    rig.run();
    rig.scheduler.abort(ids[2]);
    let seen = ids.map(|id| rig.seen(id));
    assert_eq!(seen, [[3, 0, 0], [3, 1, 0], [64, 1, 0], [0, 1, 0]]);
    rig.assert_all_pages_are_free_once();
}

#[test]
fn prompts_and_answers_take_turns() {
    let mut rig = Rig::new(4);
    rig.submit(false);
    rig.step().unwrap();
    rig.executor.calls.clear();
    for _ in 0..3 {
        rig.submit(true);
    }
    for _ in 0..9 {
        rig.step().unwrap();
    }
    rig.executor.calls.retain(|call| call != "sample");
    // Whoever came first has the first turn of a prompt behind it.
    let expected =
        ["decode", "encode", "decode", "encode", "decode", "encode", "decode", "prefill", "decode"];
    assert_eq!(rig.executor.calls, expected);
    rig.run();
    rig.assert_all_pages_are_free_once();
}
