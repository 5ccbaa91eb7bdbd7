//! Dense and integer linear layers.

use super::*;

#[test]
fn dense_linear_is_within_the_bound_of_its_chains_for_every_ragged_size() {
    let mut rng = Rng(1);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (m, n, k) in
                [(1, 1, 1), (1, 7, 8), (2, 65, 250), (3, 16, 257), (4, 3, 512), (5, 130, 1176), (97, 67, 519)]
            {
                let x = rng.normals(m * k);
                let (bytes, w) = encode(&rng.normals(n * k), dtype);
                let bias = rng.normals(n);
                let matrix = Matrix::Dense(DenseMatrix::new(&bytes, dtype, n, k));
                let mut y = vec![POISON; m * n];
                rig.linear(&x, m, &[Part { matrix, bias: Some(&bias) }], Finish::Store, &mut y);
                for (at, (sum, size)) in r::matmul(&f64s(&x), &w, m, n, k).into_iter().enumerate() {
                    let bias = f64::from(bias[at % n]);
                    let error = (f64::from(y[at]) - sum - bias).abs();
                    let bound = tol::dense_dot(k) * (size + bias.abs());
                    assert!(
                        error <= bound,
                        "{} {dtype} {m}x{n}x{k} at {at}: {error:e} > {bound:e}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// A matrix with integer codes: the tensors of its file, and its weights [n, k].
struct Quantised {
    packing: Packing,
    bits: usize,
    n: usize,
    k: usize,
    group: usize,
    /// The group of each input.
    g_idx: Vec<u32>,
    qweight: Vec<u8>,
    qzeros: Vec<u8>,
    scales: Vec<u8>,
    w: Vec<f64>,
}

impl Quantised {
    /// Random codes and zero points, all values of them.
    fn random(rng: &mut Rng, packing: Packing, bits: usize, (n, k, group): (usize, usize, usize)) -> Self {
        let g_idx = (0..k).map(|l| (l / group) as u32).collect();
        let groups = k.div_ceil(group);
        let mut random = |bytes: usize| (0..bytes).map(|_| rng.next() as u8).collect::<Vec<u8>>();
        let (qweight, qzeros) = (random(k * n * bits / 8), random(groups * n * bits / 8));
        let scales: Vec<f32> = (0..groups * n).map(|_| 0.02 + 0.01 * rng.unit()).collect();
        let scales = encode(&scales, DType::F16).0;
        Quantised { packing, bits, n, k, group, g_idx, qweight, qzeros, scales, w: Vec::new() }.unpacked()
    }

    /// The same with inputs assigned to groups otherwise.
    fn with_groups(mut self, g_idx: Vec<u32>) -> Self {
        self.g_idx = g_idx;
        self.unpacked()
    }

    /// Fills in the weights, by the formulas of the formats.
    fn unpacked(mut self) -> Self {
        let (n, k, bits, per_word) = (self.n, self.k, self.bits, 32 / self.bits);
        let field = |bytes: &[u8], word: usize, place: usize| {
            let word = u32::from_le_bytes(bytes[4 * word..4 * word + 4].try_into().unwrap());
            word >> (bits * place) & ((1 << bits) - 1)
        };
        // Column 8c+j of a row of AWQ sits in nibble R[j] of word c.
        let awq = |bytes: &[u8], row: usize, column: usize| {
            field(bytes, row * n / 8 + column / 8, [0, 4, 1, 5, 2, 6, 3, 7][column % 8])
        };
        self.w = vec![0.0; n * k];
        for j in 0..n {
            for l in 0..k {
                let g = self.g_idx[l] as usize;
                let (code, zero) = match self.packing {
                    Packing::Awq => (awq(&self.qweight, l, j), awq(&self.qzeros, g, j)),
                    Packing::Gptq { v2 } => {
                        let stored = field(&self.qzeros, g * n / per_word + j / per_word, j % per_word);
                        let zero = if v2 { stored } else { (stored + 1) % (1 << bits) };
                        (field(&self.qweight, l / per_word * n + j, l % per_word), zero)
                    }
                };
                let at = 2 * (g * n + j);
                let scale = half::f16::from_le_bytes([self.scales[at], self.scales[at + 1]]).to_f64();
                self.w[j * k + l] = (f64::from(code) - f64::from(zero)) * scale;
            }
        }
        self
    }

    /// Repacked with `group` inputs per group.
    fn pack(&self, pool: &mut Pool, group: usize) -> Packed {
        let in_order = self.g_idx.iter().enumerate().all(|(l, &g)| g as usize == l / self.group);
        let groups = self.k.div_ceil(self.group);
        let order = (!in_order || !self.k.is_multiple_of(group))
            .then(|| Arc::new(InputOrder::new(&self.g_idx, groups, group)));
        let source = Source {
            packing: self.packing,
            qweight: &self.qweight,
            qzeros: &self.qzeros,
            scales: &self.scales,
            n: self.n,
            k: self.k,
            group: self.group,
            order,
        };
        match self.bits {
            4 => Packed::Int4(GroupedMatrix::pack(pool, &source, group)),
            _ => Packed::Int8(GroupedMatrix::pack(pool, &source, group)),
        }
    }
}

enum Packed {
    Int4(Int4Matrix),
    Int8(Int8Matrix),
}

impl Packed {
    fn matrix(&self) -> Matrix<'_> {
        match self {
            Packed::Int4(m) => Matrix::Int4(m),
            Packed::Int8(m) => Matrix::Int8(m),
        }
    }

    fn weight(&self, n: usize, k: usize) -> f64 {
        let (code, zero, scale) = match self {
            Packed::Int4(m) => m.weight(n, k),
            Packed::Int8(m) => m.weight(n, k),
        };
        (f64::from(code) - f64::from(zero)) * half::f16::from_bits(scale).to_f64()
    }

    fn bytes(&self) -> u64 {
        match self {
            Packed::Int4(m) => m.bytes(),
            Packed::Int8(m) => m.bytes(),
        }
    }
}

const V1: Packing = Packing::Gptq { v2: false };
const V2: Packing = Packing::Gptq { v2: true };

/// Groups assigned at random; some may be empty.
fn scattered(rng: &mut Rng, k: usize, groups: usize) -> Vec<u32> {
    (0..k).map(|_| rng.below(groups) as u32).collect()
}

/// Groups of equal size whose members are spread, as activation order leaves them.
fn shuffled(rng: &mut Rng, k: usize, group: usize) -> Vec<u32> {
    let mut out: Vec<u32> = (0..k).map(|l| (l / group) as u32).collect();
    (1..k).rev().for_each(|l| out.swap(l, rng.below(l + 1)));
    out
}

/// Matrices of every format, with the group to pack them in.
fn every_format(rng: &mut Rng) -> Vec<(String, Quantised, usize)> {
    let mut out = Vec::new();
    let mut add = |name: &str, q: Quantised, group: usize| {
        out.push((format!("{name}: int{} {}x{} g{group}", q.bits, q.n, q.k), q, group));
    };
    for (n, k, group) in [(8, 128, 128), (72, 256, 64), (136, 512, 128), (24, 96, 32)] {
        add("awq", Quantised::random(rng, Packing::Awq, 4, (n, k, group)), group);
        for bits in [4, 8] {
            for packing in [V1, V2] {
                let name = if packing == V1 { "gptq" } else { "gptq v2" };
                add(name, Quantised::random(rng, packing, bits, (n, k, group)), group);
            }
            let sizes = (n, k, group);
            let g_idx = shuffled(rng, k, group);
            add("desc_act", Quantised::random(rng, V1, bits, sizes).with_groups(g_idx), group);
            let g_idx = scattered(rng, k, k.div_ceil(group));
            add("any g_idx", Quantised::random(rng, V1, bits, sizes).with_groups(g_idx), group);
        }
    }
    for bits in [4, 8] {
        add("one group", Quantised::random(rng, V1, bits, (40, 640, 640)), 128);
        add("large groups in parts", Quantised::random(rng, V1, bits, (16, 1024, 512)), 128);
        add("short last group", Quantised::random(rng, V1, bits, (32, 200, 128)), 128);
        add("a group of all there is room for", Quantised::random(rng, V1, bits, (16, 512, 256)), 256);
    }
    add("outputs in fours", Quantised::random(rng, V1, 8, (20, 128, 64)), 64);
    out
}

#[test]
fn repacking_keeps_every_weight_of_every_format_and_not_a_byte_more() {
    let mut rng = Rng(2);
    let mut pool = Pool::new(2).unwrap();
    for (name, q, group) in every_format(&mut rng) {
        let packed = q.pack(&mut pool, group);
        for j in 0..q.n {
            for l in 0..q.k {
                assert_eq!(packed.weight(j, l), q.w[j * q.k + l], "{name}: weight [{j}, {l}]");
            }
        }
        // Groups of odd sizes are filled up.
        if q.n % 16 == 0 && !name.starts_with("any") {
            let format = match q.bits {
                4 => WeightFormat::Int4 { group },
                _ => WeightFormat::Int8 { group },
            };
            assert_eq!(packed.bytes(), format.matrix_bytes(q.n, q.k), "{name}");
        }
    }
}

#[test]
fn integer_linear_is_within_the_bound_of_its_rounded_inputs() {
    let mut rng = Rng(3);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        for (name, q, group) in every_format(&mut rng) {
            let (n, k) = (q.n, q.k);
            let packed = q.pack(&mut rig.pool, group);
            for m in [1, 2, 3, 5, 8, 15, 16, 17, 33] {
                let mut x = rng.normals(m * k);
                x[0] *= 200.0;
                let mut y = vec![POISON; m * n];
                let part = Part { matrix: packed.matrix(), bias: None };
                rig.linear(&x, m, &[part], Finish::Store, &mut y);
                let x64 = f64s(&x);
                // The largest input of each group of the file; groups here are these or parts of them.
                let mut largest = vec![0f64; m * k.div_ceil(q.group)];
                let groups = largest.len() / m;
                for (at, v) in x64.iter().enumerate() {
                    let largest = &mut largest[at / k * groups + q.g_idx[at % k] as usize];
                    *largest = largest.max(v.abs());
                }
                for (at, (sum, size)) in r::matmul(&x64, &q.w, m, n, k).into_iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let of = |l: usize| q.w[j * k + l].abs() * largest[i * groups + q.g_idx[l] as usize];
                    let rounding: f64 = (0..k).map(of).sum();
                    // Groups of any sizes may be one more each.
                    let folds = (k.div_ceil(group) + groups + 4) as f64;
                    let bound = tol::rounded_input() * rounding + folds * tol::F32_EPS * (size + rounding);
                    let error = (f64::from(y[at]) - sum).abs();
                    assert!(error <= bound, "{name} {} m={m} at {at}: {error:e} > {bound:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn the_largest_codes_and_inputs_do_not_overflow_the_sum_of_a_group() {
    for (bits, group, largest) in [(4, 4368, 15.0), (8, 256, 255.0)] {
        for stored in [0u8, 0xff] {
            let (n, k) = (16, group);
            let mut q = Quantised::random(&mut Rng(0), V2, bits, (n, k, group));
            // Codes all ones with zero points 0, and the reverse.
            q.qweight.fill(!stored);
            q.qzeros.fill(stored);
            q.scales = encode(&vec![1.0; n], DType::F16).0;
            let q = q.unpacked();
            let expected = if stored == 0 { largest } else { -largest };
            assert!(q.w.iter().all(|w| *w == expected));
            for isa in Isa::available() {
                let mut rig = Rig::new(isa, 1);
                rig.scratch = vec![Aligned::zeroed(64 * 64 + 16 * group)];
                let packed = q.pack(&mut rig.pool, group);
                for m in [1, 3, 12] {
                    let mut y = vec![POISON; m * n];
                    let part = Part { matrix: packed.matrix(), bias: None };
                    rig.linear_blocked(&vec![1.0; m * k], m, &[part], Finish::Store, &mut y, 16, 16);
                    for v in y {
                        let error = (f64::from(v) - expected * k as f64).abs();
                        assert!(error <= 4.0 * tol::F32_EPS * largest * k as f64, "{v}");
                    }
                }
            }
        }
    }
}

#[test]
fn parts_with_inputs_in_different_orders_each_read_their_own() {
    let mut rng = Rng(12);
    let (m, n, k, group) = (5, 32, 256, 64);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let packed: Vec<Packed> = (0..3)
            .map(|i| {
                let q = Quantised::random(&mut rng, V1, 4, (n, k, group));
                let g_idx = if i == 1 { q.g_idx.clone() } else { shuffled(&mut rng, k, group) };
                q.with_groups(g_idx).pack(&mut rig.pool, group)
            })
            .collect();
        let parts: Vec<Part> = packed.iter().map(|p| Part { matrix: p.matrix(), bias: None }).collect();
        let x = rng.normals(m * k);
        let mut all = vec![POISON; m * 3 * n];
        rig.linear(&x, m, &parts, Finish::Store, &mut all);
        for (i, part) in parts.iter().enumerate() {
            let mut alone = vec![POISON; m * n];
            rig.linear(&x, m, &[*part], Finish::Store, &mut alone);
            for row in 0..m {
                let here = &all[row * 3 * n + i * n..][..n];
                assert_eq!(bits(here), bits(&alone[row * n..(row + 1) * n]), "part {i}, row {row}");
            }
        }
        let (mut gate, mut up, mut both) = (vec![POISON; m * n], vec![POISON; m * n], vec![POISON; m * n]);
        rig.linear(&x, m, &parts[..1], Finish::Store, &mut gate);
        rig.linear(&x, m, &parts[1..2], Finish::Store, &mut up);
        rig.linear(&x, m, &parts[..2], Finish::SwiGlu, &mut both);
        let mut expected = vec![POISON; m * n];
        pointwise::swiglu(isa, &mut rig.pool, &gate, &up, &mut expected);
        assert_eq!(bits(&both), bits(&expected));
    }
}

#[test]
fn integer_linear_with_nan_or_infinite_inputs_gives_nan_and_leaves_other_rows_alone() {
    let mut rng = Rng(4);
    let (n, k, group) = (16, 256, 128);
    for width in [4, 8] {
        let q = Quantised::random(&mut rng, V1, width, (n, k, group));
        for isa in Isa::available() {
            let mut rig = Rig::new(isa, 1);
            let packed = q.pack(&mut rig.pool, group);
            let parts = [Part { matrix: packed.matrix(), bias: None }];
            let x = rng.normals(2 * k);
            let mut clean = vec![POISON; 2 * n];
            rig.linear(&x, 2, &parts, Finish::Store, &mut clean);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = x.clone();
                x[k + 130] = bad;
                let mut y = vec![0.0; 2 * n];
                rig.linear(&x, 2, &parts, Finish::Store, &mut y);
                assert_eq!(bits(&y[..n]), bits(&clean[..n]));
                assert!(y[n..].iter().all(|v| v.is_nan()), "{bad}: {:?}", &y[n..]);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_on_any_machine() {
    let mut rng = Rng(5);
    let (n, k, most) = (80, 640, 33);
    let awq = Quantised::random(&mut rng, Packing::Awq, 4, (n, k, 128));
    let gptq = Quantised::random(&mut rng, V1, 8, (n, k, 128));
    let g_idx = scattered(&mut rng, k, 5);
    let sorted = Quantised::random(&mut rng, V1, 8, (n, k, 128)).with_groups(g_idx);
    let (bytes, _) = encode(&rng.normals(n * k), DType::BF16);
    let x = rng.normals(most * k);
    let mut first: Option<[Vec<u32>; 4]> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut rig = Rig::new(isa, threads);
            let packed = [&awq, &gptq, &sorted].map(|q| q.pack(&mut rig.pool, 128));
            let dense = Matrix::Dense(DenseMatrix::new(&bytes, DType::BF16, n, k));
            let matrices = [packed[0].matrix(), packed[1].matrix(), packed[2].matrix(), dense];
            let results = matrices.map(|matrix| {
                let parts = [Part { matrix, bias: None }];
                let mut alone = vec![POISON; most * n];
                for i in 0..most {
                    let out = &mut alone[i * n..(i + 1) * n];
                    rig.linear(&x[i * k..(i + 1) * k], 1, &parts, Finish::Store, out);
                }
                for m in [2, 3, 5, 7, 8, 9, 16, 17, 31, 32, 33] {
                    let mut y = vec![POISON; m * n];
                    rig.linear_blocked(&x[..m * k], m, &parts, Finish::Store, &mut y, 16, 16);
                    assert_eq!(bits(&y), bits(&alone[..m * n]), "{} m={m}", isa.name());
                }
                bits(&alone)
            });
            let first = first.get_or_insert_with(|| results.clone());
            assert_eq!(*first, results, "{} with {threads} threads", isa.name());
        }
    }
}

#[test]
fn epilogues_do_what_the_separate_kernels_do() {
    let mut rng = Rng(6);
    let (m, n, k) = (9, 96, 128);
    let x = rng.normals(m * k);
    let weights: Vec<Vec<u8>> = (0..2).map(|_| encode(&rng.normals(n * k), DType::F16).0).collect();
    let bias = rng.normals(n);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let part = |i: usize| Part {
            matrix: Matrix::Dense(DenseMatrix::new(&weights[i], DType::F16, n, k)),
            bias: Some(&bias),
        };
        let mut plain = [vec![POISON; m * n], vec![POISON; m * n]];
        for (i, out) in plain.iter_mut().enumerate() {
            rig.linear(&x, m, &[part(i)], Finish::Store, out);
        }
        for activation in [Activation::QuickGelu, Activation::Gelu] {
            let (mut expected, mut y) = (vec![POISON; m * n], vec![POISON; m * n]);
            pointwise::activate(isa, &mut rig.pool, activation, &plain[0], &mut expected);
            rig.linear(&x, m, &[part(0)], Finish::Activate(activation), &mut y);
            assert_eq!(bits(&y), bits(&expected));
        }
        let (mut expected, mut y) = (vec![POISON; m * n], vec![POISON; m * n]);
        pointwise::swiglu(isa, &mut rig.pool, &plain[0], &plain[1], &mut expected);
        rig.linear(&x, m, &[part(0), part(1)], Finish::SwiGlu, &mut y);
        assert_eq!(bits(&y), bits(&expected));

        let residual = rng.normals(m * n);
        pointwise::add(&mut rig.pool, &plain[0], Some(&residual), &mut expected);
        rig.linear(&x, m, &[part(0)], Finish::AddResidual(Some(&residual)), &mut y);
        assert_eq!(bits(&y), bits(&expected));
        let mut in_place = residual.clone();
        rig.linear(&x, m, &[part(0)], Finish::AddResidual(None), &mut in_place);
        assert_eq!(bits(&in_place), bits(&expected));

        // Heads of 16: q and k thirds turn, v does not.
        let mut table = RopeTable::default();
        table.fill_vision(16, (0..m as u32).map(|i| [i, 3 * i]));
        rope::rotate_rows(&mut rig.pool, &table, 0, &plain[0], n, 64, 16, &mut expected);
        rig.linear_blocked(
            &x,
            m,
            &[part(0)],
            Finish::VisionRope { table: &table, first_row: 0, head_dim: 16 },
            &mut y,
            96,
            48,
        );
        assert_eq!(bits(&y), bits(&expected));
    }
}
