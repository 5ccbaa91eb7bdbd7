use half::f16;

use crate::device::{Arg, Device, Random, VARIANTS, assert_close, grid};

#[test]
fn sum_rows_adds_each_row() {
    for variant in VARIANTS {
        let (rows, n) = (7, 1000);
        let device = Device::new(&format!("reduction.{variant}"));
        let data = Random(1).floats(rows * n);
        let out = device.buffer::<f32>(rows);
        device.run("sum_rows", grid(rows as u32), 256, 0, &[device.upload(&data), out, Arg::I32(n as i32)]);
        let want: Vec<f64> = data.chunks(n).map(|row| row.iter().map(|x| f64::from(*x)).sum()).collect();
        assert_close(variant, &device.download(out, rows), &want, 1e-5, 1e-4);
    }
}

#[test]
fn sum_tiles_adds_integers_exactly() {
    for variant in VARIANTS {
        let (ctas, tiles) = (5, 4);
        let device = Device::new(&format!("reduction.{variant}"));
        let data = Random(2).ints(ctas * tiles * 128);
        let out = device.buffer::<i32>(ctas);
        device.run(
            "sum_tiles",
            grid(ctas as u32),
            128,
            0,
            &[device.upload(&data), out, Arg::I32(tiles as i32)],
        );
        let want: Vec<i32> = data
            .chunks(tiles * 128)
            .map(|part| part.iter().fold(0, |sum: i32, x| sum.wrapping_add(*x)))
            .collect();
        assert_eq!(device.download::<i32>(out, ctas), want, "{variant}");
    }
}

#[test]
fn softmax_rows_sum_to_one_and_match_the_exact_values() {
    for variant in VARIANTS {
        let (rows, n) = (10, 333);
        let device = Device::new(&format!("softmax.{variant}"));
        let data: Vec<f32> = Random(3).floats(rows * n).iter().map(|x| x * 10.0).collect();
        let out = device.buffer::<f32>(rows * n);
        let args = [device.upload(&data), out, Arg::I32(rows as i32), Arg::I32(n as i32)];
        device.run("softmax_rows", grid(3), 128, 0, &args);
        let want: Vec<f64> = data
            .chunks(n)
            .flat_map(|row| {
                let most = row.iter().copied().fold(f32::MIN, f32::max);
                let exp: Vec<f64> = row.iter().map(|x| f64::from(x - most).exp()).collect();
                let sum: f64 = exp.iter().sum();
                exp.into_iter().map(move |e| e / sum)
            })
            .collect();
        // __expf scales its argument in f32: an error of 20 half ulps of the exponent.
        assert_close(variant, &device.download(out, rows * n), &want, 4e-6, 1e-12);
    }
}

#[test]
fn scan_warps_adds_up_within_a_warp_and_votes() {
    for variant in VARIANTS {
        let n = 256;
        let device = Device::new(&format!("softmax.{variant}"));
        let data: Vec<i32> = Random(4).ints(n).iter().map(|x| x % 1000).collect();
        let (out, positive) = (device.buffer::<i32>(n), device.buffer::<u32>(n / 32));
        device.run("scan_warps", grid(2), 128, 0, &[device.upload(&data), out, positive]);
        let mut want = data.clone();
        for warp in want.chunks_mut(32) {
            for i in 1..32 {
                warp[i] += warp[i - 1];
            }
        }
        assert_eq!(device.download::<i32>(out, n), want, "{variant}");
        let votes: Vec<u32> = data
            .chunks(32)
            .map(|warp| warp.iter().enumerate().fold(0, |votes, (i, x)| votes | u32::from(*x > 0) << i))
            .collect();
        assert_eq!(device.download::<u32>(positive, n / 32), votes, "{variant}");
    }
}

#[test]
fn gemv_int4_matches_its_formula() {
    for variant in VARIANTS {
        let (n, k) = (9usize, 512usize);
        let device = Device::new(&format!("int4.{variant}"));
        let mut random = Random(5);
        let words: Vec<u32> = (0..n * k / 8).map(|_| random.next() as u32).collect();
        let scales: Vec<f16> = (0..n * k / 128).map(|_| f16::from_f32(random.float().abs() * 0.1)).collect();
        let x: Vec<f16> = (0..k).map(|_| f16::from_f32(random.float())).collect();
        let bits = |v: &[f16]| v.iter().map(|h| h.to_bits()).collect::<Vec<u16>>();
        let y = device.buffer::<f32>(n);
        let args = [
            device.upload(&words),
            device.upload(&bits(&scales)),
            device.upload(&bits(&x)),
            y,
            Arg::I32(n as i32),
            Arg::I32(k as i32),
        ];
        device.run("gemv_int4", grid(3), 128, 0, &args);
        let want: Vec<f64> = (0..n)
            .map(|row| {
                (0..k)
                    .map(|i| {
                        let word = words[row * (k / 8) + i / 8];
                        // Nibble j holds weight [0, 2, 4, 6, 1, 3, 5, 7][j].
                        let nibble = [0, 4, 1, 5, 2, 6, 3, 7][i % 8];
                        let q = f64::from((word >> (4 * nibble)) & 15) - 8.0;
                        // The product is rounded to a half.
                        let product = f16::from_f64(q * x[i].to_f64()).to_f64();
                        product * scales[row * (k / 128) + i / 128].to_f64()
                    })
                    .sum()
            })
            .collect();
        assert_close(variant, &device.download(y, n), &want, 1e-4, 1e-4);
    }
}
