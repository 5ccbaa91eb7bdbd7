use crate::device::{Arg, Device, Random, VARIANTS, assert_close, grid};

#[test]
fn the_last_cta_adds_the_parts_up() {
    for variant in VARIANTS {
        let (rows, n, split) = (100usize, 300usize, 7usize);
        let device = Device::new(&format!("between_ctas.{variant}"));
        let data = Random(1).floats(rows * n);
        let y = device.buffer::<f32>(n);
        let count = device.upload(&[0u32; 3]);
        let args = [
            device.upload(&data),
            y,
            device.buffer::<f32>(split * n),
            count,
            Arg::I32(rows as i32),
            Arg::I32(n as i32),
        ];
        for _ in 0..2 {
            device.run("sum_columns_split", [3, split as u32, 1], 128, 0, &args);
        }
        let want: Vec<f64> =
            (0..n).map(|col| data.iter().skip(col).step_by(n).map(|x| f64::from(*x)).sum()).collect();
        assert_close(variant, &device.download(y, n), &want, 1e-5, 1e-5);
        assert_eq!(device.download::<u32>(count, 3), [0; 3], "{variant}: the counters are left as they were");
    }
}

#[test]
fn ctas_hand_a_lock_over_in_order() {
    for variant in VARIANTS {
        for threads in [1, 2] {
            let n = 40;
            let mut device = Device::new(&format!("between_ctas.{variant}"));
            device.options.threads = threads;
            let (turn, log) = (device.upload(&[0u32]), device.buffer::<u32>(n));
            device.run("hand_over", grid(n as u32), 64, 0, &[turn, log]);
            let want: Vec<u32> = (0..n)
                .scan(0u32, |x, _| {
                    *x = x.wrapping_mul(3).wrapping_add(1);
                    Some(*x)
                })
                .collect();
            assert_eq!(device.download::<u32>(log, n), want, "{variant} with {threads} host threads");
        }
    }
}

#[test]
fn lanes_of_one_warp_take_turns_with_a_lock() {
    for variant in VARIANTS {
        let device = Device::new(&format!("between_ctas.{variant}"));
        let (lock, counter) = (device.upload(&[0u32]), device.upload(&[0u32]));
        device.run("lock_in_warp", grid(3), 64, 0, &[lock, counter]);
        assert_eq!(device.download::<u32>(counter, 1), [3 * (64 * 63 / 2)], "{variant}");
        assert_eq!(device.download::<u32>(lock, 1), [0], "{variant}");
    }
}

#[test]
fn a_grid_barrier_holds_all_ctas() {
    for variant in VARIANTS {
        for threads in [1, 2] {
            let (n, rounds) = (30usize, 3usize);
            let mut device = Device::new(&format!("between_ctas.{variant}"));
            device.options.threads = threads;
            let (data, out) = (device.buffer::<i32>(n), device.buffer::<i32>(n * rounds));
            let args = [data, out, device.upload(&[0u32]), Arg::I32(rounds as i32)];
            device.run("grid_barrier", grid(n as u32), 64, 0, &args);
            let want: Vec<i32> = (0..n * rounds).map(|i| ((i % n + 1) % n + 100 * (i / n)) as i32).collect();
            assert_eq!(
                device.download::<i32>(out, n * rounds),
                want,
                "{variant} with {threads} host threads"
            );
        }
    }
}
