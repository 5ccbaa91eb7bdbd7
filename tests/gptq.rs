//! GPTQ checkpoints: unpacking as the reference does, activation order, version 2, added biases, and
//! what can be wrong with them.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{floats, ints, tiny_gptq};
use qwenvl::checkpoint::{Checkpoint, GptqLinear};
use qwenvl::graph::weights::decoder_linears;
use qwenvl::prompt::messages_from_json;
use qwenvl::{Engine, EngineOptions, Request, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of the decoder layers.
fn edit(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("decoder.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let copy = |(name, t): (String, TensorView)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
    let mut tensors: Tensors = parsed.tensors().into_iter().map(copy).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    common::write_index(dir, &["decoder.safetensors", "rest.safetensors"]);
}

fn edit_config(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn words(data: &[u8]) -> Vec<u32> {
    data.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let message = result.err().expect("this should be refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn check(dir: &Path) -> Result<()> {
    Checkpoint::open(dir)?.validate()
}

/// Tokens for a text question.
fn answer(dir: &Path) -> Vec<u32> {
    let target = common::target();
    let options =
        EngineOptions { target, context_tokens: Some(128), threads: Some(2), ..EngineOptions::default() };
    let mut engine = Engine::load(Checkpoint::open(dir).unwrap(), &options).unwrap();
    let mut request = Request::new(
        messages_from_json(&json!([{"role": "user", "content": "Describe the shapes."}]), "messages")
            .unwrap(),
    );
    request.max_tokens = Some(24);
    engine.answer(&request).unwrap().token_ids
}

#[test]
fn gptq_unpacks_as_the_reference_library_does() {
    let vectors: Value =
        serde_json::from_slice(&common::unpacked("tests/data/vectors/gptq.json.zst")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let desc = case["desc"].as_str().unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (k, n, bits) = (size("in_features"), size("out_features"), size("bits"));
        let tensor =
            |key: &str| ints::<i32>(&case[key]).iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let (qweight, qzeros) = (tensor("qweight_i32"), tensor("qzeros_i32"));
        let scales: Vec<u8> =
            floats(&case["scales_f16"]).iter().flat_map(|s| half::f16::from_f32(*s).to_le_bytes()).collect();
        let g_idx = ints(&case["g_idx"]);
        assert_eq!(g_idx.len(), k);
        let parts = [&qweight[..], &qzeros, &scales];
        let linear = GptqLinear::new(parts, g_idx, n, bits as u32, false).expect(desc);
        let (codes, zeros) =
            (ints::<u32>(&case["codes_in_out"]), ints::<u32>(&case["zeros_plus1_group_out"]));
        let dequantised = floats(&case["dequant_in_out_f16"]);
        for at in 0..k * n {
            let (row, column) = (at / n, at % n);
            assert_eq!(u32::from(linear.code(row, column)), codes[at], "{desc}: code {row},{column}");
            assert_eq!(linear.weight(row, column).to_f32(), dequantised[at], "{desc}: {row},{column}");
        }
        for (at, zero) in zeros.iter().enumerate() {
            assert_eq!(u32::from(linear.zero(at / n, at % n)), *zero, "{desc}: zero {at}");
        }
    }
}

#[test]
fn inputs_in_activation_order_give_the_tokens_of_the_same_layer_in_order() {
    for bits in [4, 8] {
        let dir = tiny_gptq(bits);
        let expected = answer(dir.path());
        // Intermediate channels change places: rows of gate and up, inputs of down.
        edit(dir.path(), |tensors| {
            let per_word = 32 / bits as usize;
            for layer in 0..4 {
                let f = 512;
                // 77 and 512 share no divisor.
                let from = |to: usize| (to * 77 + layer) % f;
                for name in ["gate_proj", "up_proj"] {
                    let module = format!("model.layers.{layer}.mlp.{name}");
                    let columns = |data: &[u8], size: usize| -> Vec<u8> {
                        data.chunks_exact(f * size)
                            .flat_map(|row| {
                                (0..f).flat_map(move |to| row[from(to) * size..][..size].to_vec())
                            })
                            .collect()
                    };
                    for (part, size) in [("qweight", 4), ("scales", 2)] {
                        let data = &mut tensors.get_mut(&format!("{module}.{part}")).unwrap().2;
                        *data = columns(data, size);
                    }
                    let zeros = words(&tensors[&format!("{module}.qzeros")].2);
                    assert!(zeros.iter().all(|w| *w == zeros[0]), "symmetric: columns look alike");
                }
                let module = format!("model.layers.{layer}.mlp.down_proj");
                let qweight = &mut tensors.get_mut(&format!("{module}.qweight")).unwrap().2;
                let (old, n) = (words(qweight), 256);
                let mut new = vec![0u32; old.len()];
                let mask = ((1u64 << bits) - 1) as u32;
                for to in 0..f {
                    for column in 0..n {
                        let from = from(to);
                        let code =
                            old[from / per_word * n + column] >> (bits as usize * (from % per_word)) & mask;
                        new[to / per_word * n + column] |= code << (bits as usize * (to % per_word));
                    }
                }
                *qweight = bytes(&new);
                let g_idx: Vec<u32> = (0..f).map(|to| (from(to) / 128) as u32).collect();
                tensors.get_mut(&format!("{module}.g_idx")).unwrap().2 = bytes(&g_idx);
            }
        });
        refused(check(dir.path()), &["mlp.down_proj.g_idx", "desc_act is false", "for input"]);
        edit_config(dir.path(), |config| config["quantization_config"]["desc_act"] = json!(true));
        check(dir.path()).unwrap();
        // Sums within a group are exact, so not even the order of the inputs can be seen.
        assert_eq!(answer(dir.path()), expected);
    }
}

/// On CUDA inputs are put in the order of their groups before each layer.
#[test]
#[cfg(feature = "cuda")]
fn sorted_inputs_of_every_layer_give_on_cuda_what_the_cpu_gives() {
    use qwenvl::Target;
    use qwenvl::exec::compare::compare;

    if common::target() == Target::Cpu {
        return;
    }
    for bits in [4, 8] {
        let dir = tiny_gptq(bits);
        edit_config(dir.path(), |config| config["quantization_config"]["desc_act"] = json!(true));
        edit(dir.path(), |tensors| {
            for (_, (.., data)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".g_idx")) {
                let k = data.len() / 4;
                *data = bytes(&(0..k).map(|i| ((i * 77 + 5) % k / 128) as u32).collect::<Vec<_>>());
            }
        });
        let load = |target| {
            let options = EngineOptions {
                target,
                context_tokens: Some(128),
                threads: Some(2),
                ..EngineOptions::default()
            };
            Engine::load(Checkpoint::open(dir.path()).unwrap(), &options).unwrap()
        };
        let messages = json!([{"role": "user", "content": "Describe the shapes."}]);
        let mut request = Request::new(messages_from_json(&messages, "messages").unwrap());
        request.max_tokens = Some(3);
        let (mut cpu, mut device) = (load(Target::Cpu), load(common::target()));
        let run = &mut |engine: &mut Engine| engine.answer(&request).map(|_| ());
        for difference in compare(&mut cpu, &mut device, run).unwrap() {
            assert!(difference.worst <= 1.0, "{bits} bits: {difference:?}");
        }
        let planned = device.plan().memory;
        // Groups of unequal size in one layer, and layers with other groups than those beside them. What they take
        // beside the plan is known after loading.
        edit(dir.path(), |tensors| {
            let data = &mut tensors.get_mut("model.layers.1.mlp.down_proj.g_idx").unwrap().2;
            *data = bytes(&(0..512u32).map(|i| i * i % 11 / 3).collect::<Vec<_>>());
            let data = &mut tensors.get_mut("model.layers.2.self_attn.k_proj.g_idx").unwrap().2;
            let reversed: Vec<u32> = words(data).into_iter().rev().collect();
            *data = bytes(&reversed);
        });
        let (mut cpu, mut device) = (load(Target::Cpu), load(common::target()));
        for difference in compare(&mut cpu, &mut device, run).unwrap() {
            assert!(difference.worst <= 1.0, "{bits} bits, uneven: {difference:?}");
        }
        assert!(device.plan().memory.weights_bytes > planned.weights_bytes);
        assert!(device.plan().memory.workspace_bytes > planned.workspace_bytes);
    }
}

#[test]
fn version_2_zero_points_give_the_same_tokens() {
    for bits in [4, 8] {
        let dir = tiny_gptq(bits);
        let expected = answer(dir.path());
        edit_config(dir.path(), |config| {
            config["quantization_config"]["checkpoint_format"] = json!("gptq_v2");
        });
        edit(dir.path(), |tensors| {
            for (_, (.., data)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".qzeros")) {
                let one = if bits == 4 { 0x1111_1111 } else { 0x0101_0101 };
                // Symmetric: 7 or 127 everywhere, no carry.
                *data = bytes(&words(data).iter().map(|w| w + one).collect::<Vec<_>>());
            }
        });
        assert_eq!(answer(dir.path()), expected);
    }
}

/// Codes and zero points that move together: the same weights.
#[test]
fn zero_points_of_8_bits_other_than_the_middle_are_taken() {
    let dir = tiny_gptq(8);
    let expected = answer(dir.path());
    for sym in [false, true] {
        // True is wrong, and only costs memory that the plan does not know of.
        edit_config(dir.path(), |config| config["quantization_config"]["sym"] = json!(sym));
        edit(dir.path(), |tensors| {
            let module = "model.layers.1.mlp.up_proj";
            let mut codes = tensors[&format!("{module}.qweight")].2.clone();
            let zeros = &mut tensors.get_mut(&format!("{module}.qzeros")).unwrap().2;
            let (n, mut moved) = (512, 0);
            for (at, zero) in zeros.iter_mut().enumerate() {
                let (group, column) = (at / n, at % n);
                let place = |k: usize| 4 * (k / 4 * n + column) + k % 4;
                let inputs = || 128 * group..128 * (group + 1);
                let spare = inputs().map(|k| 255 - codes[place(k)]).min().unwrap();
                inputs().for_each(|k| codes[place(k)] += spare);
                *zero += spare;
                moved += usize::from(spare > 0);
            }
            assert!(sym || moved > n / 2, "{moved} columns have room above");
            tensors.get_mut(&format!("{module}.qweight")).unwrap().2 = codes;
        });
        assert_eq!(answer(dir.path()), expected, "sym {sym}");
    }
}

#[test]
fn biases_of_zeros_are_dropped_and_others_added() {
    let dir = tiny_gptq(4);
    let expected = answer(dir.path());
    let add = |value: f32| {
        edit(dir.path(), |tensors| {
            for layer in 0..4 {
                for (name, n) in [("self_attn.o_proj", 256), ("mlp.up_proj", 512), ("mlp.down_proj", 256)] {
                    let data = half::f16::from_f32(value).to_le_bytes().repeat(n);
                    tensors.insert(format!("model.layers.{layer}.{name}.bias"), (Dtype::F16, vec![n], data));
                }
            }
        });
    };
    add(0.0);
    assert_eq!(answer(dir.path()), expected);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.extra_bias("model.layers.0.self_attn.o_proj", 256).unwrap(), None);
    add(0.5);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.extra_bias("model.layers.0.self_attn.o_proj", 256).unwrap(), Some(vec![0.5; 256]));
    assert_ne!(answer(dir.path()), expected);
    add(f32::NAN);
    refused(check(dir.path()), &["o_proj.bias", "NaN or infinity"]);
    edit(dir.path(), |tensors| {
        tensors.insert("model.layers.0.self_attn.o_proj.bias".into(), (Dtype::F16, vec![3], vec![0; 6]));
    });
    refused(check(dir.path()), &["model.layers.0.self_attn.o_proj.bias", "[3]", "[256]"]);
}

#[test]
fn groups_that_do_not_exist_are_named_with_the_input() {
    let name = "model.layers.1.mlp.up_proj.g_idx";
    for (value, shown) in [(2u32, "group 2"), (u32::MAX, "group -1")] {
        let dir = tiny_gptq(8);
        edit(dir.path(), |tensors| {
            tensors.get_mut(name).unwrap().2[4 * 37..4 * 38].copy_from_slice(&value.to_le_bytes());
        });
        refused(check(dir.path()), &[name, shown, "input 37", "0..2"]);
    }
}

#[test]
fn a_scale_that_is_not_finite_is_named() {
    let dir = tiny_gptq(4);
    let name = "model.layers.3.mlp.down_proj.scales";
    edit(dir.path(), |tensors| {
        tensors.get_mut(name).unwrap().2[2 * 256..2 * 256 + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    });
    refused(check(dir.path()), &[name, "NaN or infinity at index [1, 0]"]);
}

#[test]
fn a_config_of_the_other_quantisation_is_recognised() {
    let dir = tiny_gptq(4);
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    std::fs::rename(dir.path().join("rest.safetensors"), dir.path().join("model.safetensors")).unwrap();
    refused(check(dir.path()), &["declares GPTQ but the weights are packed as AWQ"]);
}

#[test]
fn a_plan_says_that_inputs_are_sorted() {
    let dir = tiny_gptq(4);
    let plan = || {
        let config = Checkpoint::config_only(dir.path()).unwrap();
        let options = qwenvl::graph::PlanOptions::new(&config, 64, 100_000);
        let device = qwenvl::graph::Device::cpu(2, 1 << 40, 1e10, 1e11);
        qwenvl::graph::Plan::new(&config, &device, &options).unwrap()
    };
    let kernels = |plan: &qwenvl::graph::Plan| plan.decode.kernels.iter().map(|k| k.name).collect::<Vec<_>>();
    let in_order = plan();
    assert!(kernels(&in_order).contains(&"int4_gemm"));
    edit_config(dir.path(), |config| config["quantization_config"]["desc_act"] = json!(true));
    let sorted = plan();
    assert!(kernels(&sorted).contains(&"sort+int4_gemm") && !kernels(&sorted).contains(&"int4_gemm"));
    assert!(sorted.memory.workspace_bytes > in_order.memory.workspace_bytes);
}

#[test]
fn every_group_size_loads_and_runs() {
    use random_checkpoint::{Format, Options, Size, config_json};
    for format in [Format::GptqInt4, Format::GptqInt8, Format::Awq] {
        for group in [-1, 32, 64, 128, 256, 1024, 96, 8] {
            let mut config = config_json(Size::Tiny, format);
            config["num_hidden_layers"] = json!(1);
            config["vision_config"]["depth"] = json!(1);
            config["quantization_config"]["group_size"] = json!(group);
            // Not divisible by 128: the unpadded MLP of the 72B is 231 groups, this one is 5.25.
            config["intermediate_size"] = json!(672);
            config["quantization_config"]["sym"] = json!(group != 64);
            if format == Format::Awq && group > 0 && (256 % group != 0 || 672 % group != 0) {
                continue; // groups of AWQ are whole
            }
            let dir = tempfile::tempdir().unwrap();
            random_checkpoint::write(dir.path(), &config, &Options::default(), &mut |_| {}).unwrap();
            std::fs::copy(
                common::path("engine/tiny_model/tokenizer.json"),
                dir.path().join("tokenizer.json"),
            )
            .unwrap();
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            checkpoint.validate().unwrap();
            for linear in decoder_linears(&checkpoint.config, 0).unwrap() {
                let last = if format == Format::Awq {
                    let stored = checkpoint.awq_linear(&linear).unwrap();
                    stored.weight(stored.k - 1, stored.n - 1)
                } else {
                    let stored = checkpoint.gptq_linear(&linear).unwrap();
                    stored.weight(stored.k() - 1, stored.n - 1)
                };
                assert!(last.to_f32().is_finite());
            }
            assert!(!answer(dir.path()).is_empty());
        }
    }
}
