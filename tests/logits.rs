//! Logits of the tiny model against the reference's in float32.

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::harness::{self, Harness, Input};
use common::samples::Sample;
use common::{crc32, path, tolerance};
use qwenvl::graph::ModelConfig;
use qwenvl::prompt::{Content, ImageInput, Part};
use qwenvl::{Checkpoint, EngineOptions, Frontend, Target};
use safetensors::{Dtype, SafeTensors};

const GOLDEN: &str = "tests/data/tiny_logits.safetensors";
const REBUILD: &str = "run tools/golden/tiny_logits.py";

/// What the reference computed for one sample.
struct Golden {
    forced: Vec<u32>,
    /// After the prompt and after each forced token.
    logits: Vec<Vec<f32>>,
    /// Of each row.
    gain: Vec<[f32; 2]>,
}

fn golden_bytes() -> Vec<u8> {
    std::fs::read(path(GOLDEN)).unwrap_or_else(|e| panic!("{GOLDEN}: {e}; {REBUILD}"))
}

/// The samples, with the reference's pixels instead of JPEG files, of which no two decoders make the
/// same.
fn samples() -> Vec<Sample> {
    let bytes = golden_bytes();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut samples = common::samples::samples();
    let contents = samples.iter_mut().flat_map(|s| &mut s.request.messages).map(|m| &mut m.content);
    let images = contents
        .filter_map(|content| match content {
            Content::Parts(parts) => Some(parts),
            Content::Text(_) => None,
        })
        .flatten()
        .filter_map(|part| match part {
            Part::Image(image) => Some(&mut image.image),
            _ => None,
        });
    let mut replaced = 0;
    for image in images {
        let ImageInput::Location(file) = &*image else { continue };
        if file.ends_with(".jpg") {
            let tensor =
                tensors.tensor(&format!("pixels.{file}")).unwrap_or_else(|e| panic!("{e}; {REBUILD}"));
            let [height, width, 3] = *tensor.shape() else { panic!("{file}") };
            *image =
                ImageInput::Pixels { width: width as u32, height: height as u32, rgb: tensor.data().into() };
            replaced += 1;
        }
    }
    assert_eq!(replaced, 3);
    samples
}

/// Reads the goldens of one checkpoint, by sample.
fn goldens(checkpoint: &str) -> HashMap<String, Golden> {
    let bytes = golden_bytes();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let manifest = metadata.metadata().as_ref().expect("a manifest");
    for (key, file) in [
        ("bf16", "tests/data/tiny-bf16/model.safetensors"),
        ("awq", "engine/tiny_model/model.safetensors"),
        ("samples", "tests/data/samples/samples.json"),
    ] {
        let found = format!("{:08x}", crc32(&std::fs::read(path(file)).unwrap()));
        assert_eq!(manifest[key], found, "{GOLDEN} was made from another {file}; {REBUILD}");
    }
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str, dtype: Dtype| -> (Vec<[u8; 4]>, usize) {
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}; {REBUILD}"));
        assert_eq!(tensor.dtype(), dtype);
        let (words, rest) = tensor.data().as_chunks::<4>();
        assert!(rest.is_empty());
        (words.to_vec(), *tensor.shape().last().unwrap())
    };
    let mut out = HashMap::new();
    for sample in common::samples::samples() {
        let name = format!("{checkpoint}.{}", sample.id);
        let (tokens, _) = words(&format!("{name}.tokens"), Dtype::I32);
        let rows = |part: &str| {
            let (words, columns) = words(&format!("{name}.{part}"), Dtype::F32);
            let values: Vec<f32> = words.into_iter().map(f32::from_le_bytes).collect();
            values.chunks_exact(columns).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let golden = Golden {
            forced: tokens.into_iter().map(u32::from_le_bytes).collect(),
            logits: rows("logits"),
            gain: rows("gain").iter().map(|g| [g[0], g[1]]).collect(),
        };
        assert!(golden.logits.len() == golden.forced.len() + 1 && golden.gain.len() == golden.logits.len());
        out.insert(sample.id, golden);
    }
    out
}

struct Model {
    name: &'static str,
    checkpoint: Arc<Checkpoint>,
    frontend: Frontend,
}

/// On CUDA bits are the same in any company too; bounds here are those of f32.
fn is_cuda() -> bool {
    common::target() != Target::Cpu
}

fn models() -> [Model; 2] {
    let bf16 = Checkpoint::open(&path("tests/data/tiny-bf16")).unwrap();
    [("bf16", bf16), ("awq", Checkpoint::tiny().unwrap())].map(|(name, checkpoint)| Model {
        name,
        frontend: Frontend::new(&checkpoint).unwrap(),
        checkpoint: Arc::new(checkpoint),
    })
}

impl Model {
    /// Room for `max_seqs` samples at once.
    fn harness(&self, max_seqs: usize, edit: impl FnOnce(&mut ModelConfig)) -> Harness {
        let options = EngineOptions {
            context_tokens: Some(256),
            max_seqs,
            max_visual_tokens: Some(128 * max_seqs),
            ..EngineOptions::default()
        };
        let checkpoint = Arc::clone(&self.checkpoint);
        let executor = harness::executor(checkpoint, &self.frontend, &options, edit);
        Harness::new(executor, self.frontend.normalize())
    }

    /// The logits of all samples, each alone.
    fn alone(
        &self,
        samples: &[Sample],
        goldens: &HashMap<String, Golden>,
        harness: &mut Harness,
    ) -> Vec<Vec<Vec<f32>>> {
        let one = |sample: &Sample| {
            let prompt = self.frontend.prepare(&sample.request).unwrap();
            harness.logits(&[Input { prompt: &prompt, forced: &goldens[&sample.id].forced }], 512).remove(0)
        };
        samples.iter().map(one).collect()
    }
}

/// The largest error of a row in parts of what is allowed.
fn worst(found: &[f32], golden: &[f32], gain: [f32; 2]) -> f64 {
    assert!(found.len() == golden.len() && found.iter().all(|v| v.is_finite()));
    let square = |v: &f32| f64::from(*v) * f64::from(*v);
    let scale = (golden.iter().map(square).sum::<f64>() / golden.len() as f64).sqrt();
    let allowed = tolerance::logits(gain) * scale;
    let errors = found.iter().zip(golden).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    errors.fold(0.0, f64::max) / allowed
}

#[test]
fn logits_are_within_the_derived_tolerance_of_the_float32_reference() {
    if is_cuda() {
        return;
    }
    let samples = samples();
    for model in models() {
        let goldens = goldens(model.name);
        let mut harness = model.harness(1, |_| {});
        let mut most = 0f64;
        for (sample, rows) in samples.iter().zip(model.alone(&samples, &goldens, &mut harness)) {
            let golden = &goldens[&sample.id];
            assert_eq!(rows.len(), golden.logits.len());
            for (at, found) in rows.iter().enumerate() {
                let error = worst(found, &golden.logits[at], golden.gain[at]);
                assert!(error <= 1.0, "{} {} row {at}: {error:.2} of the tolerance", model.name, sample.id);
                most = most.max(error);
            }
        }
        println!("{}: the largest error is {most:.3} of what is allowed", model.name);
    }
}

#[test]
fn a_model_that_is_slightly_wrong_is_outside_of_the_tolerance() {
    if is_cuda() {
        return;
    }
    type Edit = fn(&mut ModelConfig);
    let edits: [(&str, Edit); 3] = [
        ("epsilon of the norms", |c| c.text.rms_norm_eps = 1e-4),
        ("base of the rotary frequencies", |c| c.text.rope_theta *= 1.01),
        ("sections of the rotary frequencies", |c| c.text.mrope_section = [8, 32, 24]),
    ];
    let samples: Vec<Sample> = samples().into_iter().take(3).collect();
    for model in models() {
        let goldens = goldens(model.name);
        for (what, edit) in edits {
            let mut harness = model.harness(1, edit);
            let rows = model.alone(&samples, &goldens, &mut harness);
            let errors = samples.iter().zip(&rows).flat_map(|(sample, rows)| {
                let golden = &goldens[&sample.id];
                rows.iter().enumerate().map(|(at, row)| worst(row, &golden.logits[at], golden.gain[at]))
            });
            let most = errors.fold(0.0, f64::max);
            assert!(most > 1.0, "{}, {what}: the largest error is {most:.2} of the tolerance", model.name);
            println!("{}, {what}: {most:.1} of the tolerance", model.name);
        }
    }
}

#[test]
fn logits_have_the_same_bits_in_company_and_in_chunks_at_every_depth() {
    let mut samples = samples();
    if is_cuda() {
        // A simulated GPU is slow: one picture, two, a video, text.
        samples.retain(|s| ["00_", "07_", "09_", "12_"].iter().any(|id| s.id.starts_with(id)));
    }
    for model in models() {
        let goldens = goldens(model.name);
        let prompts: Vec<_> = samples.iter().map(|s| model.frontend.prepare(&s.request).unwrap()).collect();
        let inputs: Vec<Input> = samples
            .iter()
            .zip(&prompts)
            .map(|(sample, prompt)| Input { prompt, forced: &goldens[&sample.id].forced })
            .collect();
        for layers in [1, model.checkpoint.config.text.num_hidden_layers] {
            if is_cuda() && layers == 1 {
                continue;
            }
            let mut harness = model.harness(inputs.len(), |c| c.text.num_hidden_layers = layers);
            let alone = model.alone(&samples, &goldens, &mut harness);
            for chunk in [512, 33, 1] {
                let together = harness.logits(&inputs, chunk);
                for ((sample, a), b) in samples.iter().zip(&alone).zip(&together) {
                    let bits = |rows: &[Vec<f32>]| -> Vec<u32> {
                        rows.iter().flatten().map(|v| v.to_bits()).collect()
                    };
                    assert!(
                        bits(a) == bits(b),
                        "{} {}, {layers} layers, chunks of {chunk}",
                        model.name,
                        sample.id
                    );
                }
            }
        }
    }
}
