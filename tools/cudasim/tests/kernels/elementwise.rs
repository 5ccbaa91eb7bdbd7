use half::f16;

use crate::device::{Arg, Device, Random, VARIANTS, grid};

#[test]
fn add_f32_is_exact_for_any_length() {
    for variant in VARIANTS {
        for n in [1usize, 31, 1000, 4096] {
            let device = Device::new(&format!("vector.{variant}"));
            let mut random = Random(n as u64);
            let (a, b) = (random.floats(n), random.floats(n));
            let c = device.buffer::<f32>(n);
            let args = [device.upload(&a), device.upload(&b), c, Arg::I32(n as i32)];
            device.run("add_f32", grid(5), 128, 0, &args);
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(device.download::<f32>(c, n), want, "{variant} {n}");
        }
    }
}

#[test]
fn axpy_f16_rounds_once() {
    for variant in VARIANTS {
        let n = 4096;
        let device = Device::new(&format!("vector.{variant}"));
        let mut random = Random(7);
        let half = |random: &mut Random| f16::from_f32(random.float() * 8.0);
        let a = half(&mut random);
        let x: Vec<f16> = (0..n).map(|_| half(&mut random)).collect();
        let y: Vec<f16> = (0..n).map(|_| half(&mut random)).collect();
        let bits = |v: &[f16]| v.iter().map(|h| h.to_bits()).collect::<Vec<u16>>();
        let (x_dev, y_dev) = (device.upload(&bits(&x)), device.upload(&bits(&y)));
        device.run("axpy_f16", grid(4), 128, 0, &[Arg::U16(a.to_bits()), x_dev, y_dev, Arg::I32(n)]);
        let got = device.download::<u16>(y_dev, n as usize);
        for i in 0..n as usize {
            // Products and sums of halves are exact in f64.
            let want = f16::from_f64(a.to_f64() * x[i].to_f64() + y[i].to_f64());
            assert_eq!(got[i], want.to_bits(), "{variant} element {i}");
        }
    }
}

#[test]
fn fill_parts_gives_every_cta_its_words() {
    for variant in VARIANTS {
        let device = Device::new(&format!("vector.{variant}"));
        let out = device.buffer::<u32>(20 * 48);
        device.run("fill_parts", grid(20), 32, 0, &[out, Arg::I32(48)]);
        let got = device.download::<u32>(out, 20 * 48);
        assert!(got.iter().enumerate().all(|(i, v)| *v == i as u32 / 48), "{variant}");
    }
}

#[test]
fn histogram_counts_every_byte() {
    for variant in VARIANTS {
        let n = 5000;
        let device = Device::new(&format!("atomics.{variant}"));
        let mut random = Random(3);
        let data: Vec<u8> = (0..n).map(|_| (random.below(256) & random.below(256)) as u8).collect();
        let counts = device.upload(&[0u32; 256]);
        device.run("histogram", grid(6), 128, 0, &[device.upload(&data), counts, Arg::I32(n)]);
        let mut want = [0u32; 256];
        data.iter().for_each(|byte| want[usize::from(*byte)] += 1);
        assert_eq!(device.download::<u32>(counts, 256), want, "{variant}");
    }
}

#[test]
fn every_atomic_operation_gives_the_sequential_result() {
    for variant in VARIANTS {
        let n = 700usize;
        let device = Device::new(&format!("atomics.{variant}"));
        let mut random = Random(11);
        let data = random.ints(n);
        let mut start = vec![0i32; 13 + n];
        start[6] = -1;
        start[11] = f32::NEG_INFINITY.to_bits() as i32;
        start[4] = -1;
        let out = device.upload(&start);
        let (wide, f, d) = (device.upload(&[0u64; 2]), device.upload(&[0f32]), device.upload(&[0f64]));
        let args = [device.upload(&data), out, wide, f, d, Arg::I32(n as i32)];
        device.run("every_operation", grid(6), 128, 0, &args);

        let mut want = start.clone();
        let mut wide_want = [0u64; 2];
        for &x in &data {
            let u = x as u32;
            want[0] = want[0].wrapping_add(x);
            want[1] = want[1].wrapping_sub(x);
            want[2] = want[2].min(x);
            want[3] = want[3].max(x);
            want[4] = (want[4] as u32).min(u) as i32;
            want[5] = (want[5] as u32).max(u) as i32;
            want[6] &= x | 0xff;
            want[7] |= x & 0xff;
            want[8] ^= x;
            want[9] = if want[9] as u32 >= 999 { 0 } else { want[9] + 1 };
            want[10] = if want[10] == 0 || want[10] as u32 > 777 { 777 } else { want[10] - 1 };
            want[11] = f32::from_bits(want[11] as u32).max(x as f32).to_bits() as i32;
            want[12] += 1;
            let square = u64::from(u) * u64::from(u);
            wide_want[0] = wide_want[0].wrapping_add(square);
            wide_want[1] = wide_want[1].max(square);
        }
        want[13..].fill(1);
        assert_eq!(device.download::<i32>(out, 13 + n), want, "{variant}");
        assert_eq!(device.download::<u64>(wide, 2), wide_want, "{variant}");
        assert_eq!(device.download::<f32>(f, 1), [n as f32], "{variant}");
        assert_eq!(device.download::<f64>(d, 1), [n as f64 / 4.0], "{variant}");
    }
}
