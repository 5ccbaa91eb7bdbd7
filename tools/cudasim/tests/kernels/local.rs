use crate::device::{Arg, Device, Random, VARIANTS, grid};

#[test]
fn sort_local_sorts() {
    for variant in VARIANTS {
        let n = 100;
        let device = Device::new(&format!("local.{variant}"));
        let data = Random(1).ints(16 * n);
        let out = device.buffer::<i32>(16 * n);
        device.run("sort_local", grid(2), 64, 0, &[device.upload(&data), out, Arg::I32(n as i32)]);
        let mut want = data.clone();
        want.chunks_mut(16).for_each(<[i32]>::sort_unstable);
        assert_eq!(device.download::<i32>(out, 16 * n), want, "{variant}");
    }
}

#[test]
fn a_called_function_writes_through_a_pointer_to_local_memory() {
    for variant in VARIANTS {
        let n = 100;
        let device = Device::new(&format!("local.{variant}"));
        let data: Vec<i32> = (1..=n).collect();
        let out = device.buffer::<i32>(2 * n as usize);
        device.run("call_function", grid(2), 64, 0, &[device.upload(&data), out, Arg::I32(n)]);
        let mut want = Vec::new();
        for start in 1..=i64::from(n) {
            let (mut x, mut steps, mut most) = (start, 0, 0);
            while x != 1 && steps < 1000 {
                x = if x % 2 != 0 { 3 * x + 1 } else { x / 2 };
                steps += 1;
                most = most.max(x as i32);
            }
            want.extend([steps, most]);
        }
        assert_eq!(device.download::<i32>(out, 2 * n as usize), want, "{variant}");
    }
}

#[test]
fn constant_memory_variables_and_switches_work() {
    const TABLE: [i32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];
    for variant in VARIANTS {
        let n = 1000;
        let device = Device::new(&format!("local.{variant}"));
        let data = Random(2).ints(n);
        let out = device.buffer::<i32>(n);
        device.run("lookup", grid(8), 128, 0, &[device.upload(&data), out, Arg::I32(n as i32)]);
        let want: Vec<i32> = data
            .iter()
            .map(|&x| {
                let y = match x & 7 {
                    0 => x.wrapping_mul(3),
                    1 => x ^ 0x55,
                    2 => x.count_ones() as i32,
                    3 => x.leading_zeros() as i32,
                    4 => x.reverse_bits(),
                    5 => x.trailing_zeros() as i32 + 1,
                    6 => x >> 3,
                    _ => x.wrapping_neg(),
                };
                y.wrapping_add(TABLE[(x & 7) as usize]).wrapping_add(7)
            })
            .collect();
        assert_eq!(device.download::<i32>(out, n), want, "{variant}");
    }
}
