//! bench.

use super::*;

#[test]
fn bench_measures_as_many_tokens_as_it_is_asked_for() {
    let args = ["bench", "--input", "1,70", "--output", "40", "--parallel", "2", "--prefill-chunk", "48"];
    let report = qwenvl(&[&args[..], &["--json"]].concat()).json();
    assert_eq!((&report["parallel"], &report["output_tokens"]), (&json!(2), &json!(40)));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["input_tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 70]);
    for row in rows {
        // The model would have ended its answer to random tokens before.
        assert_eq!(row["generated_tokens"], 2 * 40);
        assert_eq!(row["card_tokens_per_s"], Value::Null);
        let rate = |key: &str| {
            row[key].as_f64().filter(|rate| *rate > 0.0).unwrap_or_else(|| panic!("{key}: {row}"))
        };
        let parts = rate("prefill_s") + 2.0 * 39.0 / rate("decode_tokens_per_s");
        assert!(2.0 * 40.0 / rate("tokens_per_s") >= parts, "the whole takes as long as its parts: {row}");
        assert!(rate("prefill_tokens_per_s") > 0.0 && rate("decode_gb_s") > 0.0);
    }
    let table = qwenvl(&args).ok();
    let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!((last.len(), last[0], last[7]), (8, "70", "-"), "{table}");
}

#[test]
fn bench_takes_no_more_than_the_model_has_positions() {
    let long = qwenvl(&["bench", "--input", "1,4000000", "--output", "8"]);
    assert!(long.code == Some(1) && long.stderr.contains("positions"), "{}", long.stderr);
    let many = qwenvl(&["bench", "--device", "cpu", "--input", "30000", "--parallel", "1024"]);
    assert!(many.code == Some(1) && many.stderr.contains("--parallel 1024"), "{}", many.stderr);
    let none = qwenvl(&["bench", "--input", "0"]);
    assert!(none.code == Some(2) && none.stderr.contains("--input"), "{}", none.stderr);
}
