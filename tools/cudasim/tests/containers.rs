//! Fatbinaries, cubins and host objects give their images, and nothing makes the reader panic.

mod common;

use common::file;
use cudasim::fatbin::{self, FatbinError, Kind};
use proptest::prelude::*;

const KERNELS: [&str; 3] = ["add_f32", "axpy_f16", "fill_parts"];

#[test]
fn plain_lz4_and_zstd_containers_hold_the_same_images() {
    let plain = fatbin::images(&file("vector.none.fatbin")).unwrap();
    let kinds: Vec<(Kind, u32)> = plain.iter().map(|entry| (entry.kind, entry.arch)).collect();
    assert_eq!(kinds, [(Kind::Ptx, 80), (Kind::Cubin, 80)]);
    let text = String::from_utf8(plain[0].bytes.clone()).unwrap();
    for kernel in KERNELS {
        assert!(text.contains(&format!(".entry {kernel}(")), "{kernel}");
    }
    assert_eq!(&plain[1].bytes[..4], b"\x7fELF");
    for name in ["vector.speed.fatbin", "vector.size.fatbin"] {
        let packed = fatbin::images(&file(name)).unwrap();
        // The compiler pads plain text in front.
        let trimmed = |entry: &fatbin::Entry| String::from_utf8_lossy(&entry.bytes).trim().to_owned();
        assert_eq!(trimmed(&packed[0]), trimmed(&plain[0]), "{name}");
        assert_eq!(packed[1], plain[1], "{name}");
    }
}

#[test]
fn a_host_object_gives_the_images_of_its_section() {
    let images = fatbin::images(&file("vector.o")).unwrap();
    assert_eq!(images.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Ptx, Kind::Cubin]);
}

#[test]
fn a_cubin_is_an_image_of_its_architecture() {
    let images = fatbin::images(&file("vector.cubin")).unwrap();
    assert_eq!((images.len(), images[0].kind, images[0].arch), (1, Kind::Cubin, 80));
    let kernels = cudasim::cubin::kernels(&images[0].bytes).unwrap();
    assert_eq!(kernels.len(), KERNELS.len());
}

#[test]
fn a_truncated_container_is_refused_wherever_it_ends() {
    let whole = file("vector.speed.fatbin");
    for length in 0..whole.len() {
        let result = fatbin::images(&whole[..length]);
        assert!(result.is_err(), "{length} of {} bytes were accepted", whole.len());
    }
}

#[test]
fn a_claim_of_a_huge_entry_takes_no_memory() {
    let mut bytes = file("vector.speed.fatbin");
    // The uncompressed length of the first entry, after the 16 bytes of the container.
    bytes[16 + 56..16 + 64].copy_from_slice(&(1u64 << 62).to_le_bytes());
    assert!(matches!(fatbin::images(&bytes), Err(FatbinError::Field { .. })));
    bytes[16 + 56..16 + 64].copy_from_slice(&(1u64 << 29).to_le_bytes());
    assert!(matches!(fatbin::images(&bytes), Err(FatbinError::Compression { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3) {
        let mut bytes = bytes;
        if kind < 2 && bytes.len() >= 4 {
            let magic = [fatbin::MAGIC, fatbin::ELF_MAGIC][kind as usize];
            bytes[..4].copy_from_slice(&magic.to_le_bytes());
        }
        let _ = fatbin::images(&bytes);
    }

    #[test]
    fn no_damage_to_a_real_file_makes_the_reader_panic(
        which in 0..4usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
        near_start in any::<bool>(),
    ) {
        thread_local! {
            static FILES: [Vec<u8>; 4] =
                ["vector.none.fatbin", "vector.speed.fatbin", "vector.size.fatbin", "vector.o"].map(file);
        }
        let mut bytes = FILES.with(|files| files[which].clone());
        let reach = if near_start { 160.min(bytes.len()) } else { bytes.len() };
        for (place, value) in damage {
            let at = place.index(reach);
            bytes[at] = value;
        }
        if cuts {
            let length = cut.index(bytes.len());
            bytes.truncate(length);
        }
        let _ = fatbin::images(&bytes);
    }
}
