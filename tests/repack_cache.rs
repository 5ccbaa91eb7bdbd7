//! The cache of repacked weights: the second start maps, and nothing that is not right is used.

mod common;

use std::path::{Path, PathBuf};

use common::{path, tiny_gptq};
use qwenvl::exec::cpu::CacheUse;
use qwenvl::prompt::messages_from_json;
use qwenvl::{Checkpoint, Engine, EngineOptions, Request, Result};
use serde_json::json;

/// Tokens of a text answer, and what became of the cache.
fn answer(model: &Path, cache: &Path) -> Result<(Vec<u32>, CacheUse)> {
    let options = EngineOptions {
        context_tokens: Some(128),
        threads: Some(2),
        repack_cache: Some(cache.to_path_buf()),
        ..EngineOptions::default()
    };
    let mut engine = Engine::load(Checkpoint::open(model)?, &options)?;
    let messages =
        messages_from_json(&json!([{"role": "user", "content": "Describe the shapes."}]), "messages")?;
    let request = Request { max_tokens: Some(16), ..Request::new(messages) };
    let ids = engine.answer(&request)?.token_ids;
    Ok((ids, engine.repack_cache().cloned().expect("one was asked for")))
}

/// Asserts that the cache was written for a reason that contains `reason`, with the right answer;
/// returns its file.
#[track_caller]
fn written(model: &Path, cache: &Path, expected: &[u32], reason: &str) -> PathBuf {
    let (ids, found) = answer(model, cache).unwrap();
    assert_eq!(ids, expected);
    match found {
        CacheUse::Written(path, why) if why.contains(reason) => path,
        other => panic!("expected a new file because {reason}, found {other:?}"),
    }
}

fn plain(model: &Path) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    answer(model, dir.path()).unwrap().0
}

#[test]
fn the_second_start_maps_what_the_first_wrote_and_gives_the_same_tokens() {
    let (int4, int8) = (tiny_gptq(4), tiny_gptq(8));
    for model in [path("engine/tiny_model"), int4.path().into(), int8.path().into()] {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("made/on/demand");
        let (expected, first) = answer(&model, &cache).unwrap();
        let CacheUse::Written(file, reason) = first else { panic!("{first:?}") };
        assert_eq!(reason, "there was none");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(answer(&model, &cache).unwrap(), (expected, CacheUse::Mapped(file)));
    }
}

#[test]
fn a_file_that_is_damaged_anywhere_is_written_anew() {
    let model = tiny_gptq(8);
    let cache = tempfile::tempdir().unwrap();
    let expected = plain(model.path());
    let file = written(model.path(), cache.path(), &expected, "there was none");
    let good = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(good[8..16].try_into().unwrap()) as usize;
    let last = good.len() - 1;
    for (at, reason) in [
        (0, "another layout"),
        (8, "damaged"),
        (15, "damaged"),
        (16, "checksum of its header"),
        (24, "checksum of its header"),
        (24 + header / 2, "checksum of its header"),
        ((24 + header).next_multiple_of(4096), "checksum of its weights"),
        (good.len() / 2, "checksum of its weights"),
        (last, "checksum of its weights"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&file, &bad).unwrap();
        written(model.path(), cache.path(), &expected, reason);
        assert_eq!(std::fs::read(&file).unwrap(), good, "byte {at}");
    }
    for length in [0, 7, 23, 24, 24 + header, good.len() / 2, last] {
        std::fs::write(&file, &good[..length]).unwrap();
        written(model.path(), cache.path(), &expected, "damaged");
    }
    std::fs::write(&file, [good.as_slice(), &[0; 4096]].concat()).unwrap();
    assert!(matches!(answer(model.path(), cache.path()).unwrap().1, CacheUse::Mapped(_)));
}

#[test]
fn other_weights_in_the_same_place_are_noticed() {
    let model = tiny_gptq(4);
    let cache = tempfile::tempdir().unwrap();
    let expected = plain(model.path());
    written(model.path(), cache.path(), &expected, "there was none");
    // Scales of one layer twice as large: same length, same header.
    let weights = model.path().join("decoder.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let changed = plain(model.path());
    written(model.path(), cache.path(), &changed, "other weight files");
    // Stored zero points mean something else.
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("\"quant_method\"", "\"checkpoint_format\": \"gptq_v2\", \"quant_method\""),
    )
    .unwrap();
    let changed = plain(model.path());
    written(model.path(), cache.path(), &changed, "other weight files");
    assert!(matches!(answer(model.path(), cache.path()).unwrap().1, CacheUse::Mapped(_)));
}

#[test]
fn inputs_in_activation_order_come_back_in_order() {
    let model = tiny_gptq(8);
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"desc_act\": false", "\"desc_act\": true")).unwrap();
    // Inputs of the first layer's down projection alternate between groups.
    let weights = model.path().join("decoder.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start =
        header + parsed["model.layers.0.mlp.down_proj.g_idx"]["data_offsets"][0].as_u64().unwrap() as usize;
    for k in 0..512 {
        bytes[start + 4 * k] = (k % 4) as u8;
    }
    std::fs::write(&weights, &bytes).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let (expected, first) = answer(model.path(), cache.path()).unwrap();
    assert!(matches!(first, CacheUse::Written(..)));
    let (mapped, second) = answer(model.path(), cache.path()).unwrap();
    assert!(matches!(second, CacheUse::Mapped(_)));
    assert_eq!(mapped, expected);
}

#[test]
fn weights_that_run_as_they_are_stored_need_none() {
    let cache = tempfile::tempdir().unwrap();
    let (_, used) = answer(&path("tests/data/tiny-bf16"), cache.path()).unwrap();
    assert_eq!(used, CacheUse::NotNeeded);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_place_that_cannot_hold_it_is_named() {
    let model = tiny_gptq(4);
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = answer(model.path(), file.path()).unwrap_err().to_string();
    assert!(error.contains("cannot create") && error.contains(file.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_answer() {
    let model = path("engine/tiny_model");
    let expected = plain(&model);
    let dir = tempfile::tempdir().unwrap();
    let file = written(&model, dir.path(), &expected, "there was none");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let (ids, found) = answer(&model, dir.path()).unwrap();
    assert_eq!(ids, expected);
    let CacheUse::Failed(problem) = found else { panic!("{found:?}") };
    assert!(problem.contains("cannot write the repack cache"), "{problem}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");

    let command = std::process::Command::new(env!("CARGO_BIN_EXE_qwenvl"))
        .args(["run", "--device", "cpu", "--model"])
        .arg(&model)
        .arg("--repack-cache")
        .arg(dir.path())
        .arg("Who are you?")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&command.stdout), "I am a tiny vision language model.\n");
    assert!(String::from_utf8_lossy(&command.stderr).contains("note: cannot write the repack cache"));
}
