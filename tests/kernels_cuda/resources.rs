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
fn shared_memory_is_within_the_limits_of_every_architecture() {
    // Dynamic shared memory is asserted where it is chosen, by MOST_SHARED_BYTES of `common.cuh`, and again by a driver
    // when it loads the kernels. Static shared memory needs no permission below 48 KiB.
    for r in all() {
        assert!(r.shared_bytes <= 48 << 10, "{} on sm_{}: {} bytes", r.kernel, r.arch, r.shared_bytes);
    }
}

#[test]
fn blocks_that_share_a_multiprocessor_have_the_registers_for_it() {
    for r in all() {
        // Of 65,536; allocated by 256 for a warp. Blocks of `launch` in each file's header.
        let (threads, blocks) = match r.kernel {
            k if k.starts_with("flash_attn") => (128, if k.ends_with("_64") { 3 } else { 2 }),
            k if k.starts_with("paged_prefill") && !k.ends_with("_128") => (128, 2),
            k if k.starts_with("paged_attn") => (128, 4),
            "sample" => (1024, 1),
            _ => (256, 1),
        };
        assert!(
            r.registers.next_multiple_of(8) * threads * blocks <= 65_536,
            "{} on sm_{}",
            r.kernel,
            r.arch
        );
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
