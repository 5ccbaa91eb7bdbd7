//! Contents of any kind never panic.

use super::*;

/// A directory with given contents of the files that are parsed.
fn directory(config: &[u8], weights: &[u8], index: Option<&[u8]>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    if let Some(index) = index {
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    }
    dir
}

/// Goes through everything that looks at the contents; only panics matter.
fn exercise(dir: &Path) {
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    let _ = checkpoint.validate();
    for name in checkpoint.tensor_names() {
        if let Ok(tensor) = checkpoint.tensor(name) {
            let _ = check_finite(&tensor);
            checkpoint.release(&tensor);
        }
    }
    if let Ok(linears) = decoder_linears(&checkpoint.config, 0) {
        for linear in linears {
            if let Ok(awq) = checkpoint.awq_linear(&linear) {
                let _ = awq.weight(awq.k - 1, awq.n - 1);
            }
        }
    }
}

/// A checkpoint of 100 KB, as small as the shapes allow.
fn smallest() -> (Vec<u8>, Vec<u8>) {
    static SMALLEST: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SMALLEST.get_or_init(write_smallest).clone()
}

fn write_smallest() -> (Vec<u8>, Vec<u8>) {
    let mut config = config_json(Size::Tiny, Format::Awq);
    for (key, value) in
        [("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 1), ("vocab_size", 64)]
    {
        config[key] = json!(value);
    }
    for key in ["bos", "eos", "vision_start", "vision_end", "vision", "image", "video"] {
        config[format!("{key}_token_id")] = json!(1);
    }
    config["rope_scaling"]["mrope_section"] = json!([2, 3, 3]);
    config["quantization_config"]["group_size"] = json!(16);
    config["vision_config"]["depth"] = json!(1);
    config["vision_config"]["embed_dim"] = json!(16);
    config["vision_config"]["hidden_size"] = json!(32);
    let files = Files::write(&config, u64::MAX);
    files.check().unwrap();
    (std::fs::read(files.path("config.json")).unwrap(), std::fs::read(files.weights()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_files_never_panic(
        config in prop::collection::vec(any::<u8>(), 0..200),
        weights in prop::collection::vec(any::<u8>(), 0..300),
        index in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
    ) {
        let (valid, _) = smallest();
        exercise(directory(&config, &weights, None).path());
        exercise(directory(&valid, &weights, index.as_deref()).path());
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[\\[\\]{}:,\"a0-9_ -]{0,80}", length in 0_u64..100) {
        let (valid, _) = smallest();
        let weights = [length.to_le_bytes().as_slice(), header.as_bytes()].concat();
        exercise(directory(&valid, &weights, None).path());
        let weights = [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes()].concat();
        exercise(directory(&valid, &weights, Some(header.as_bytes())).path());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6)) {
        let (mut config, mut weights) = smallest();
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        for (index, byte, place) in flips {
            let all = weights.len();
            let bytes = match place {
                0 => &mut config[..],
                1 => &mut weights[..header],
                _ => &mut weights[..all],
            };
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(directory(&config, &weights, None).path());
    }

    #[test]
    fn changed_digits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9', any::<bool>()), 1..6)) {
        // Stays JSON, so that sizes, shapes and offsets are what goes wrong.
        let (mut config, mut weights) = smallest();
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        for (index, digit, in_config) in flips {
            let text = if in_config { &mut config[..] } else { &mut weights[8..header] };
            let digits: Vec<usize> = (0..text.len()).filter(|i| text[*i].is_ascii_digit()).collect();
            text[digits[index.index(digits.len())]] = digit;
        }
        exercise(directory(&config, &weights, None).path());
    }
}
