//! What the assembler says of each kernel.

use qwenvl::kernels::cuda::{IMAGES, Resources};

fn all() -> impl Iterator<Item = &'static Resources> {
    IMAGES.iter().flat_map(|image| image.resources)
}

#[test]
fn no_kernel_spills_on_any_architecture() {
    assert!(all().count() > 0);
    for r in all() {
        assert_eq!(r.spilled_bytes, 0, "{} on sm_{} spills", r.kernel, r.arch);
    }
}

#[test]
fn kernels_that_will_be_one_stay_within_its_registers() {
    for r in all() {
        // Decode for up to 16 rows, and its attention: to be fused into one persistent kernel.
        let small = ["_m8", "_m16"].iter().any(|end| r.kernel.ends_with(end));
        if small || r.kernel.starts_with("paged_attn") {
            assert!(r.registers <= 128, "{} on sm_{}: {} registers", r.kernel, r.arch, r.registers);
        }
    }
}
