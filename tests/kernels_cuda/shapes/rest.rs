//! What is neither a linear layer nor attention.

use qwenvl::kernels::cuda::norm::{Embed, Frames, Norm, NormKind, Patchify, Table};
use qwenvl::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use qwenvl::kernels::cuda::sample::{BINS_BYTES, Sample, best_len};
use qwenvl_graph::{Activation, DType};

use super::{BF16, Case, Model, Shapes, decoder_rope, memory, of, pages, zeroed};

impl Shapes<'_> {
    pub(super) fn rms_norm(&mut self, model: &Model, rows: usize) {
        let cols = model.hidden;
        let name = format!("rms_norm {} {rows}", model.name);
        self.norm(name, rows, cols, |_| NormKind::Rms);
    }

    pub(super) fn layer_norm(&mut self, rows: usize) {
        self.norm(format!("layer_norm {rows}"), rows, 1280, |cols| NormKind::Layer(memory(cols * 4)));
    }

    pub(super) fn norm(&mut self, name: String, rows: usize, cols: usize, kind: impl Fn(usize) -> NormKind) {
        self.case(streaming(name, rows * cols * 6 + cols * 4), |kernels| {
            let n = Norm {
                kind: kind(cols),
                half: BF16,
                x: memory(rows * cols * 4),
                row_index: None,
                weight: memory(cols * 4),
                out: memory(rows * cols * 2),
                rows,
                cols,
                eps: 1e-6,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.norm(stream, &n) }.expect("launch"))
        });
    }

    pub(super) fn embed(&mut self, model: &Model, rows: usize) {
        let (cols, vocab) = (model.hidden, model.vocab);
        self.case(streaming(format!("embed {} {rows}", model.name), rows * (cols * 6 + 8)), |kernels| {
            let e = Embed {
                table: memory(vocab * cols * 2),
                stored: Table::Rows(DType::BF16),
                vocab,
                tokens: of(&(0..rows as u32).map(|i| i * 61).collect::<Vec<u32>>()),
                visual: memory(cols * 2),
                visual_index: of(&vec![u32::MAX; rows]),
                half: BF16,
                out: memory(rows * cols * 4),
                rows,
                cols,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.embed(stream, &e) }.expect("launch"))
        });
    }

    /// A square picture of so many patches.
    pub(super) fn patchify(&mut self, patches: usize) {
        let side = patches.isqrt();
        let pixels = patches * 14 * 14;
        let bytes = pixels * 3 + patches * 1176 * 2;
        self.case(streaming(format!("patchify {patches}"), bytes), |kernels| {
            let frame = memory(pixels * 3);
            let words = [frame as u32, (frame >> 32) as u32].repeat(2);
            let slice = [&words[..], &[0, side as u32, side as u32, 0]].concat();
            assert_eq!(slice.len() * 4, size_of::<Frames>());
            let c = Patchify {
                slices: of(&slice),
                n_slices: 1,
                table: zeroed(768 * 4),
                half: BF16,
                out: memory(patches * 1176 * 2),
                first_row: 0,
                rows: patches,
                patch: 14,
                merge: 2,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.patchify(stream, &c) }.expect("launch"))
        });
    }

    /// The steps of plans that are not fused.
    pub(super) fn unfused(&mut self, model: &Model, rows: usize) {
        let heads = model.heads;
        let (q, kv_cols) = (heads.n_heads * 128, heads.n_kv_heads * 128);
        let (hidden, f) = (model.hidden, model.intermediate);
        let case = |what: &str, bytes| streaming(format!("{what} {} {rows}", model.name), bytes);
        type Op = Box<dyn Fn() -> PointwiseOp>;
        let cases: [(&str, usize, usize, Op); 7] = [
            ("swiglu", f, 6, Box::new(move || PointwiseOp::SwiGlu { up: memory(rows * f * 2) })),
            ("gelu", 5120, 4, Box::new(|| PointwiseOp::Activate(Activation::Gelu))),
            ("quick_gelu", 5120, 4, Box::new(|| PointwiseOp::Activate(Activation::QuickGelu))),
            ("add", hidden, 10, Box::new(move || PointwiseOp::Add { residual: memory(rows * hidden * 4) })),
            ("rope", q, 4, Box::new(move || PointwiseOp::Rotate { rope: decoder_rope(rows), n_rotated: q })),
            (
                "kv_write",
                kv_cols,
                8,
                Box::new(move || PointwiseOp::WriteKv {
                    values: memory(rows * kv_cols * 2),
                    kv: pages(heads, rows).0,
                    slots: of(&(0..rows as u32).collect::<Vec<u32>>()),
                }),
            ),
            (
                "select_rows",
                hidden,
                8,
                Box::new(move || PointwiseOp::Gather { index: of(&(0..rows as u32).collect::<Vec<u32>>()) }),
            ),
        ];
        for (what, cols, per_element, op) in cases {
            self.case(case(what, rows * cols * per_element), |kernels| {
                let c = Pointwise {
                    op: op(),
                    half: BF16,
                    x: memory(rows * cols * 4),
                    out: memory(rows * cols * 4),
                    rows,
                    cols,
                };
                // SAFETY: memory is as long as the shapes say.
                Box::new(move |stream| unsafe { kernels.pointwise(stream, &c) }.expect("launch"))
            });
        }
    }

    /// Greedy: one launch. Logits of zero.
    /// The largest score, or one drawn as the published generation_config.json says.
    pub(super) fn sample(&mut self, model: &Model, drawn: bool) {
        let vocab = model.vocab;
        let of_model = |what: &str| streaming(format!("{what} {}", model.name), vocab * 4);
        let parts =
            if drawn { ["argmax, drawn", "sample, drawn"].map(of_model).to_vec() } else { Vec::new() };
        let case = Case { parts, ..of_model(if drawn { "token, drawn" } else { "argmax" }) };
        self.case(case, |kernels| {
            let words = vocab.div_ceil(32);
            let (temperature, top_k, top_p) = if drawn { (0.01f32, 1, 0.001f32) } else { (0.0, 0, 1.0) };
            // About as far apart as logits are.
            let logits: Vec<u32> =
                (0..vocab as u32).map(|i| (i.wrapping_mul(2_654_435_769) as f32 / 2e8).to_bits()).collect();
            // A `QwenvlSampleRow`.
            let params = [0, 0, 0, 0, temperature.to_bits(), top_p.to_bits(), 1f32.to_bits(), top_k];
            let s = Sample {
                logits: of(&logits),
                scores: memory(vocab * 4),
                history: zeroed(words * 4),
                history_words: words,
                params: of(&params),
                tokens: memory(4),
                best: memory(best_len(1, vocab) * 8),
                bins: zeroed(BINS_BYTES),
                arrivals: zeroed(4),
                drawn,
                rows: 1,
                vocab,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.sample(stream, &s) }.expect("launch"))
        });
    }
}

pub(super) fn streaming(name: String, bytes: usize) -> Case {
    Case { name, bytes: bytes as f64, ..Case::default() }
}
