//! plan, check, help.

use super::*;

#[test]
fn plan_states_the_memory_of_every_size_and_format_from_config_json_alone() {
    let dir = tempfile::tempdir().unwrap();
    for size in [Size::B2, Size::B7, Size::B72] {
        for format in [Format::Bf16, Format::Awq, Format::GptqInt4, Format::GptqInt8] {
            let (file, config) = config_file(dir.path(), size, format);
            // The directory and the file are the same.
            let model = if format == Format::Awq { text(dir.path()) } else { text(&file) };
            let args = ["plan", "--json", "--device", "h200-141g", "--context", "32768", "--model", model];
            let plan = qwenvl(&args).json();
            let bytes = |key: &str| plan[key].as_u64().unwrap_or_else(|| panic!("{key}"));
            let parts = ["weights_bytes", "kv_bytes", "arena_bytes", "visual_bytes", "workspace_bytes"];
            assert_eq!(parts.map(bytes).iter().sum::<u64>(), bytes("total_bytes"), "{size:?} {format:?}");
            assert_eq!(bytes("kv_bytes"), 32768 * bytes("kv_bytes_per_token"));
            assert_eq!(plan["fits"], bytes("total_bytes") <= bytes("device_bytes"));
            let model = qwenvl::graph::ModelConfig::from_json(&config.to_string()).unwrap();
            let stored: u64 = random_checkpoint::tensors(&model).unwrap().iter().map(|t| t.bytes()).sum();
            let off = (bytes("weights_bytes") as f64 / stored as f64 - 1.0).abs();
            assert!(off < 0.01, "{size:?} {format:?}: {} planned, {stored} stored", bytes("weights_bytes"));
            let rows = plan["bound_tokens_per_s"].as_array().unwrap();
            let inputs: Vec<u32> = rows.iter().map(|r| r["input_tokens"].as_u64().unwrap() as u32).collect();
            assert_eq!(inputs, [1, 6144, 14336, 30720]);
            assert!(rows.iter().all(|r| r["tokens_per_s"].as_f64().unwrap() > 0.0));
        }
    }
}

#[test]
fn plan_tells_what_fits_an_a100_and_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let args = |file: &str| {
        ["plan", "--device", "a100-80g", "--context", "32768", "--model", file].map(str::to_string).to_vec()
    };
    let (file, _) = config_file(dir.path(), Size::B72, Format::Awq);
    let json = [args(text(&file)), vec!["--json".into()]].concat();
    let plan = qwenvl(&json).json();
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["weights_bytes"], 42_994_232_320u64);
    assert_eq!(plan["kv_bytes_per_token"], 327_680);
    assert!(plan["largest_context_tokens"].as_u64().unwrap() >= 32768);
    assert_eq!(plan["would_fit"], json!([]));
    assert_eq!(plan["simulated_token"].as_array().unwrap().len(), 4);
    assert_eq!(plan["card_tokens_per_s"], json!([12.0, 8.33, 5.72, 3.39]));
    let table = qwenvl(&args(text(&file))).ok();
    assert!(
        table.contains("42994232320") && table.contains("fits a100-80g") && table.contains("30720"),
        "{table}"
    );
    // Where the time goes, beside physics and the card.
    for line in ["linear+residual down_proj", "physical bound", "simulated over the card's"] {
        assert!(table.contains(line), "{table}");
    }

    let (file, _) = config_file(dir.path(), Size::B72, Format::Bf16);
    let plan = qwenvl(&json).json();
    assert_eq!(plan["fits"], false);
    let changes: Vec<&str> =
        plan["would_fit"].as_array().unwrap().iter().map(|r| r["change"].as_str().unwrap()).collect();
    assert!(changes.iter().any(|c| c.contains("AWQ")), "{changes:?}");
    let page = dir.path().join("plan.html");
    let table = qwenvl(&[args(text(&file)), vec!["--html".into(), text(&page).into()]].concat()).ok();
    assert!(table.contains("does NOT fit") && table.contains("the AWQ checkpoint"), "{table}");
    let html = std::fs::read_to_string(page).unwrap();
    assert!(
        html.starts_with("<!doctype html>")
            && html.contains("does not fit")
            && html.trim().ends_with("</html>")
    );
    assert!(!html.contains("http"), "the page needs nothing else");

    // A device that is too small for any context.
    let small = ["plan", "--device", "rtx4090", "--model", text(&file), "--json"];
    let plan = qwenvl(&small).json();
    assert_eq!((&plan["fits"], &plan["largest_context_tokens"]), (&json!(false), &Value::Null));
}

#[test]
fn plan_without_a_model_is_of_the_embedded_one_on_this_machine() {
    let plan = qwenvl(&["plan", "--json", "--threads", "1", "--context", "512"]).json();
    assert_eq!((&plan["device"], &plan["fits"]), (&json!("cpu"), &json!(true)));
    assert!(plan["bound_tokens_per_s"].is_array());
}

#[test]
fn plan_takes_the_gpus_of_this_machine() {
    let plan = |device: &str| qwenvl(&["plan", "--json", "--device", device, "--context", "512"]);
    if common::target() == Target::Cpu {
        let refused = plan("cuda");
        assert!(refused.code == Some(1) && refused.stderr.contains("cuda"), "{}", refused.stderr);
        return;
    }
    let device = plan("cuda").json()["device"].clone();
    assert!(device.as_str().is_some_and(|d| d.starts_with("cuda:0 (")), "{device}");
    assert_eq!(plan("auto").json()["device"], device);
    let missing = plan("cuda:99");
    assert!(missing.code == Some(1) && missing.stderr.contains("cuda:0"), "{}", missing.stderr);
}

#[test]
fn check_says_what_this_build_runs_on() {
    let report = qwenvl(&["check", "--json"]).json();
    assert_eq!(report["passed"], true, "{report:#}");
    assert!(report["cpu"]["threads"].as_u64().unwrap() > 0);
    assert_eq!(report["cuda"].is_null(), cfg!(not(feature = "cuda")));
    let text = qwenvl(&["check"]).ok();
    assert!(text.contains("cpu ") && text.contains("CUDA ") && !text.contains("FAIL"), "{text}");
}

#[test]
fn help_names_every_command_and_the_format_of_batch_files() {
    let help = qwenvl(&["--help"]).ok();
    for name in ["run", "chat", "batch", "bench", "check", "plan"] {
        assert!(help.contains(&format!("  {name} ")), "{help}");
    }
    let batch = qwenvl(&["batch", "--help"]).ok();
    for key in [
        "custom_id",
        "messages",
        "max_tokens",
        "temperature",
        "token_ids",
        "finish_reason",
        "usage",
        "request",
    ] {
        assert!(batch.contains(key), "{key} in {batch}");
    }
    assert!(qwenvl(&["--version"]).ok().starts_with("qwenvl "));
}
