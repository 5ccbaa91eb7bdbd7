use crate::device::{Arg, Device, Random, VARIANTS, assert_close, grid};

#[test]
fn pipelines_of_depth_2_to_5_add_up_all_tiles() {
    for variant in VARIANTS {
        let device = Device::new(&format!("pipeline.{variant}"));
        for depth in 2..=5 {
            for tiles in [1usize, 2, 7] {
                let ctas = 3;
                let data = Random(depth * 10 + tiles as u64).floats(ctas * tiles * 512);
                let out = device.buffer::<f32>(ctas * 512);
                let args = [device.upload(&data), out, Arg::I32(tiles as i32)];
                device.run(&format!("pipeline{depth}"), grid(ctas as u32), 128, 0, &args);
                let want: Vec<f64> = data
                    .chunks(tiles * 512)
                    .flat_map(|part| {
                        (0..512)
                            .map(|i| part.iter().skip(i).step_by(512).map(|x| f64::from(*x).powi(2)).sum())
                    })
                    .collect();
                let what = format!("{variant} depth {depth} tiles {tiles}");
                assert_close(&what, &device.download(out, ctas * 512), &want, 1e-6, 1e-6);
            }
        }
    }
}

#[test]
fn a_copy_of_fewer_bytes_fills_with_zeros() {
    for variant in VARIANTS {
        let device = Device::new(&format!("pipeline.{variant}"));
        for n in [1usize, 4, 6, 127, 128] {
            let data: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let out = device.buffer::<f32>(128);
            device.run("copy_ragged", grid(1), 32, 0, &[device.upload(&data), out, Arg::I32(n as i32)]);
            let mut want = data.clone();
            want.resize(128, 0.0);
            assert_eq!(device.download::<f32>(out, 128), want, "{variant} {n}");
        }
    }
}
