//! `MODEL.md` is what the program beside it prints, and the model meets the anchor that decides.

#[path = "../examples/model_page.rs"]
mod model_page;

use cudasim::device::DeviceSpec;

#[test]
fn the_page_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/MODEL.md");
    let found = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        found == model_page::page(),
        "MODEL.md is stale: cargo run --release -p cudasim --example model_page > tools/cudasim/MODEL.md"
    );
}

#[test]
fn the_first_anchor_is_met_within_fifteen_percent() {
    let anchors = model_page::anchors();
    assert!(anchors[0].error().abs() < 0.15, "{:+.3}", anchors[0].error());
}

#[test]
fn the_worked_example_gives_what_was_calculated_by_hand() {
    let p = model_page::worked_example(&DeviceSpec::preset("a100-40g").unwrap());
    assert!((p.terms.dram_us - 3.3).abs() < 0.1);
    assert!((p.terms.issue_us / p.tail - 2.2).abs() < 0.1);
    assert!((p.tail - 1.055).abs() < 0.001);
}
