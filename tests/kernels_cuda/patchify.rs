//! patchify: frames to rows of patches.

use qwenvl::kernels::cuda::norm::{Frames, Patchify};
use qwenvl::vision::{Normalize, Rgb8, Visual, VisualKind, patchify::write_patch};
use qwenvl_graph::Grid;

use crate::common;
use crate::common::rng::Rng;
use crate::gpu::*;

#[test]
fn patchify_gives_the_rows_of_the_host() {
    let mut rng = Rng(7);
    let config = common::published_config().vision;
    let table = Normalize::CLIP.table();
    let mut picture = |kind, t: usize, h: usize, w: usize, frames: usize| {
        let frames = (0..frames)
            .map(|_| {
                let bytes = (0..h * w * 14 * 14 * 3).map(|_| rng.next() as u8).collect();
                Rgb8::new((w * 14) as u32, (h * 14) as u32, bytes).unwrap()
            })
            .collect();
        Visual {
            kind,
            grid: Grid { t, h, w },
            frames,
            original: (1, 1),
            sampling: None,
            timings: Default::default(),
        }
    };
    let visuals = [
        picture(VisualKind::Image, 1, 2, 2, 1),
        picture(VisualKind::Image, 1, 4, 6, 1),
        picture(VisualKind::Video, 2, 2, 4, 3),
        picture(VisualKind::Image, 1, 6, 10, 1),
        picture(VisualKind::Image, 1, 14, 2, 1),
    ];
    let mut expected = Vec::new();
    let (mut frames, mut slices) = (Vec::new(), Vec::new());
    for visual in &visuals {
        let on_device: Vec<_> = visual.frames.iter().map(|f| Buffer::of(f.data())).collect();
        for t in 0..visual.grid.t {
            let frame = |i: usize| on_device[(2 * t + i).min(on_device.len() - 1)].at as *const u8;
            slices.push(Frames {
                frames: [frame(0), frame(1)],
                first_patch: (expected.len() / 1176) as u32,
                grid_h: visual.grid.h as u32,
                grid_w: visual.grid.w as u32,
            });
            for index in 0..visual.grid.patches_per_slice() {
                let mut row = vec![0f32; 1176];
                write_patch(visual, t, index, &table, &config, &mut row);
                expected.extend(row);
            }
        }
        frames.extend(on_device);
    }
    // As the device reads it: two addresses, three words, padding.
    let bytes = slices.iter().flat_map(|s| {
        let [a, b] = s.frames.map(|f| (f as u64).to_le_bytes());
        let words = [s.first_patch, s.grid_h, s.grid_w, 0].map(u32::to_le_bytes);
        [a.to_vec(), b.to_vec(), words.concat()].concat()
    });
    let slices_at = Buffer::of(&bytes.collect::<Vec<u8>>());
    let table_at = Buffer::of(&table.concat());
    let rows = expected.len() / 1176;
    for half in HALVES {
        for (first, count) in [(0, rows), (4, 12), (rows - 4, 4)] {
            let out = Buffer::<u16>::poisoned(count * 1176 + 8);
            let call = Patchify {
                slices: slices_at.at,
                n_slices: slices.len(),
                table: table_at.at,
                half,
                out: out.at,
                first_row: first,
                rows: count,
                patch: 14,
                merge: 2,
            };
            // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
            unsafe { gpu().kernels.patchify(&stream(), &call) }.unwrap();
            let mut wanted = encode(half, &expected[first * 1176..(first + count) * 1176]);
            wanted.extend([POISON; 8]);
            assert!(out.read() == wanted, "{half:?}, rows {first} to {}", first + count);
        }
    }
}
