use crate::device::{Arg, Device, Random, VARIANTS, grid};

#[test]
fn f64_arithmetic_is_exact_to_the_last_bit() {
    for variant in VARIANTS {
        let n = 500;
        let device = Device::new(&format!("wide.{variant}"));
        let mut random = Random(1);
        let mut doubles = || -> Vec<f64> {
            (0..n).map(|_| f64::from(random.float()) * 1000.0 + f64::from(random.float()) * 1e-6).collect()
        };
        let (x, y) = (doubles(), doubles());
        let out = device.buffer::<f64>(8 * n);
        device.run(
            "f64_math",
            grid(4),
            128,
            0,
            &[device.upload(&x), device.upload(&y), out, Arg::I32(n as i32)],
        );
        let got = device.download::<f64>(out, 8 * n);
        for i in 0..n {
            let (a, b) = (x[i], y[i]);
            let want = [
                a + b,
                a * b,
                a / b,
                a.abs().sqrt(),
                a.mul_add(b, 1.0),
                a.floor() + b.round_ties_even() + a.min(b),
                (a * 0.01).exp(),
                a.trunc() + f64::from(b as f32),
            ];
            for (j, want) in want.into_iter().enumerate() {
                let got = got[8 * i + j];
                // exp is a polynomial of the library, within an ulp.
                let same = if j == 6 { (got - want).abs() <= 4e-16 * want } else { got == want };
                assert!(same, "{variant} operation {j} of {a} and {b}: {got}, expected {want}");
            }
        }
    }
}

#[test]
fn divisions_of_64_bits_are_exact() {
    for variant in VARIANTS {
        let n = 600;
        let device = Device::new(&format!("wide.{variant}"));
        let mut random = Random(2);
        let mut longs = |zero: bool| -> Vec<i64> {
            (0..n)
                .map(|_| {
                    // All sizes, and the values at the edges.
                    let value = match random.below(8) {
                        0 => i64::MIN,
                        1 => i64::MAX,
                        2 => -1,
                        3 => 1,
                        _ => random.next() as i64 >> random.below(63),
                    };
                    if value == 0 && !zero { 17 } else { value }
                })
                .collect()
        };
        let (x, y) = (longs(true), longs(false));
        let out = device.buffer::<i64>(8 * n);
        device.run(
            "divide_64",
            grid(5),
            128,
            0,
            &[device.upload(&x), device.upload(&y), out, Arg::I32(n as i32)],
        );
        let got = device.download::<i64>(out, 8 * n);
        for i in 0..n {
            let (a, b) = (x[i], y[i]);
            let (ua, ub) = (a as u64, b as u64);
            let mut want = [
                a.wrapping_div(b),
                a.wrapping_rem(b),
                (ua / ub) as i64,
                (ua % ub) as i64,
                ((i128::from(a) * i128::from(b)) >> 64) as i64,
                ((u128::from(ua) * u128::from(ub)) >> 64) as i64,
                a / 1_000_003,
                i64::from(
                    ((a as i32).wrapping_div(b as i32 | 1) as u32).wrapping_add(a as u32 % (b as u32 | 1)),
                ),
            ];
            let mut got = got[8 * i..8 * i + 8].to_vec();
            if a == i64::MIN && b == -1 {
                // Undefined in C++.
                (want[0], want[1], got[0], got[1]) = (0, 0, 0, 0);
            }
            if a as i32 == i32::MIN && (b as i32 | 1) == -1 {
                (want[7], got[7]) = (0, 0);
            }
            assert_eq!(got, want, "{variant}: {a} and {b}");
        }
    }
}
