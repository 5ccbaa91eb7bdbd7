//! Exchanges between the lanes of a warp.

use crate::harness::{Config, bytes_of, kernel, map1, map2, map3, map4, run_clean, values_of};
use crate::random::Random;

const WARPS: usize = 64;
const N: usize = 32 * WARPS;

fn random(seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..N).map(|_| random.u32()).collect()
}

/// `shfl` by the pseudo-code of the manual: the lane that is read and whether it is in range.
fn source(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (bval, cval, segment) = (b & 31, c & 31, c >> 8 & 31);
    let max = (lane & segment) | (cval & !segment);
    let min = lane & segment;
    let (j, valid) = match mode {
        "up" => (lane.wrapping_sub(bval), i64::from(lane) - i64::from(bval) >= i64::from(max)),
        "down" => (lane + bval, lane + bval <= max),
        "bfly" => (lane ^ bval, lane ^ bval <= max),
        _ => {
            let j = min | (bval & !segment);
            (j, j <= max)
        }
    };
    if valid { (j, true) } else { (lane, false) }
}

#[test]
fn shuffles_of_every_mode_clamp_and_segment() {
    let a = random(1);
    for mode in ["up", "down", "bfly", "idx"] {
        for segment in [0u32, 0x10, 0x18, 0x1c, 0x1e, 0x1f] {
            for clamp in [0u32, 31, 7] {
                let c = segment << 8 | clamp;
                for b in 0..32u32 {
                    if b % 5 != 0 && b > 4 {
                        continue;
                    }
                    let text = format!(
                        ".reg .pred p; .reg .b32 t; shfl.sync.{mode}.b32 %o|p, %a, {b}, {c}, 0xffffffff; \
                         selp.u32 t, 1, 0, p; xor.b32 %o, %o, t;"
                    );
                    let found: Vec<u32> = map1(&text, &a[..256]);
                    for (i, &found) in found.iter().enumerate() {
                        let (lane, warp) = (i as u32 % 32, i / 32 * 32);
                        let (j, valid) = source(mode, lane, b, c);
                        let wanted = a[warp + j as usize] ^ u32::from(valid);
                        assert_eq!(found, wanted, "{mode} lane {lane}, b {b}, c {c:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn shuffles_take_their_operands_from_registers_of_each_lane() {
    let (a, mut b, c) = (random(2), random(3), random(4));
    for (i, b) in b.iter_mut().enumerate() {
        *b = if i % 3 == 0 { *b } else { *b & 31 };
    }
    let c: Vec<u32> = c.iter().map(|&c| c & 0x1f1f).collect();
    for mode in ["up", "down", "bfly", "idx"] {
        let text = format!("shfl.sync.{mode}.b32 %o, %a, %b, %c, -1;");
        for (i, found) in map3::<u32, u32, u32, u32>(&text, &a, &b, &c).into_iter().enumerate() {
            let (j, _) = source(mode, i as u32 % 32, b[i], c[i]);
            assert_eq!(found, a[i / 32 * 32 + j as usize], "{mode} lane {} {:#x} {:#x}", i % 32, b[i], c[i]);
        }
    }
}

/// Predicates with long runs of equal values, so that whole warps agree now and then.
fn flags(seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..N / 32)
        .flat_map(|_| {
            let word = match random.below(4) {
                0 => 0,
                1 => u32::MAX,
                _ => random.u32(),
            };
            (0..32).map(move |lane| word >> lane & 1)
        })
        .collect()
}

fn word(values: &[u32], i: usize) -> u32 {
    (0..32).fold(0, |w, lane| w | u32::from(values[i / 32 * 32 + lane] != 0) << lane)
}

#[test]
fn votes_of_a_whole_warp() {
    let a = flags(5);
    let vote = |mode: &str| -> Vec<u32> {
        map1(
            &format!(
                ".reg .pred p, q; setp.ne.u32 p, %a, 0; vote.sync.{mode}.pred q, p, -1; selp.u32 %o, 1, 0, q;"
            ),
            &a,
        )
    };
    let (all, any, uni) = (vote("all"), vote("any"), vote("uni"));
    let ballot: Vec<u32> =
        map1(".reg .pred p; setp.ne.u32 p, %a, 0; vote.sync.ballot.b32 %o, p, 0xffffffff;", &a);
    let negated: Vec<u32> = map1(".reg .pred p; setp.ne.u32 p, %a, 0; vote.sync.ballot.b32 %o, !p, -1;", &a);
    for i in 0..N {
        let w = word(&a, i);
        assert_eq!(ballot[i], w);
        assert_eq!(negated[i], !w);
        assert_eq!(all[i] == 1, w == u32::MAX);
        assert_eq!(any[i] == 1, w != 0);
        assert_eq!(uni[i] == 1, w == 0 || w == u32::MAX);
    }
}

#[test]
fn a_vote_of_some_lanes_counts_only_those() {
    let (a, side) = (flags(6), flags(7));
    // Lanes part by `side`; each group votes with its own mask.
    let text = ".reg .pred p, s; .reg .b32 m, n; setp.ne.u32 p, %a, 0; setp.ne.u32 s, %b, 0; \
                vote.sync.ballot.b32 m, s, -1; not.b32 n, m; @s bra THEN; \
                vote.sync.ballot.b32 %o, p, n; bra JOIN; THEN: vote.sync.ballot.b32 %o, p, m; JOIN:";
    for (i, found) in map2::<u32, u32, u32>(text, &a, &side).into_iter().enumerate() {
        let sides = word(&side, i);
        let mine = if side[i] != 0 { sides } else { !sides };
        assert_eq!(found, word(&a, i) & mine);
    }
    let text = ".reg .pred s; setp.ne.u32 s, %a, 0; @s bra THEN; activemask.b32 %o; bra JOIN; \
                THEN: activemask.b32 %o; JOIN:";
    for (i, found) in map1::<u32, u32>(text, &side).into_iter().enumerate() {
        let sides = word(&side, i);
        assert_eq!(found, if side[i] != 0 { sides } else { !sides });
    }
}

#[test]
fn matches_find_lanes_with_the_same_value() {
    let mut random = Random::new(8);
    let mut a: Vec<u32> = (0..N).map(|_| random.below(6)).collect();
    a[..32].fill(7);
    let wide: Vec<u64> = a.iter().map(|&x| u64::from(x) << 33).collect();
    let same = |i: usize| (0..32).fold(0u32, |m, l| m | u32::from(a[i / 32 * 32 + l] == a[i]) << l);
    let any: Vec<u32> = map1("match.any.sync.b32 %o, %a, -1;", &a);
    let any64: Vec<u32> = map1("match.any.sync.b64 %o, %a, -1;", &wide);
    let all: Vec<u32> = map1(
        ".reg .pred p; .reg .b32 t; match.all.sync.b32 %o|p, %a, -1; selp.u32 t, 0, 1, p; xor.b32 %o, %o, t;",
        &a,
    );
    for i in 0..N {
        assert_eq!(any[i], same(i));
        assert_eq!(any64[i], same(i));
        let equal = same(i) == u32::MAX;
        assert_eq!(all[i], if equal { u32::MAX } else { 1 }, "{i}");
    }
}

#[test]
fn reductions_over_a_warp() {
    let mut r = Random::new(9);
    let a: Vec<u32> = (0..N).map(|_| r.integer(32) as u32).collect();
    let warp = |i: usize| &a[i / 32 * 32..][..32];
    type Fold = fn(&[u32]) -> u32;
    let cases: [(&str, Fold); 9] = [
        ("add.u32", |w| w.iter().fold(0, |s, &x| s.wrapping_add(x))),
        ("add.s32", |w| w.iter().fold(0, |s, &x| s.wrapping_add(x))),
        ("min.u32", |w| *w.iter().min().unwrap()),
        ("max.u32", |w| *w.iter().max().unwrap()),
        ("min.s32", |w| w.iter().map(|&x| x as i32).min().unwrap() as u32),
        ("max.s32", |w| w.iter().map(|&x| x as i32).max().unwrap() as u32),
        ("and.b32", |w| w.iter().fold(u32::MAX, |s, &x| s & x)),
        ("or.b32", |w| w.iter().fold(0, |s, &x| s | x)),
        ("xor.b32", |w| w.iter().fold(0, |s, &x| s ^ x)),
    ];
    for (op, fold) in cases {
        for (i, found) in
            map1::<u32, u32>(&format!("redux.sync.{op} %o, %a, -1;"), &a).into_iter().enumerate()
        {
            assert_eq!(found, fold(warp(i)), "{op}");
        }
    }
}

#[test]
fn tiles_of_a_warp_each_with_their_own_member_mask_work_together() {
    let a = random(9);
    // Lanes of a tile of 16 name the tile; both tiles execute the instruction at once.
    let text = ".reg .b32 lane, t, members, votes; .reg .pred odd; mov.u32 lane, %laneid; and.b32 t, lane, 16; \
                shl.b32 members, 0xffff, t; redux.sync.add.s32 %o, %a, members; and.b32 t, %a, 1; \
                setp.ne.u32 odd, t, 0; vote.sync.ballot.b32 votes, odd, members; xor.b32 %o, %o, votes; \
                shfl.sync.bfly.b32 t, %a, 5, 0x101f, members; xor.b32 %o, %o, t;";
    let found: Vec<u32> = map1(text, &a);
    for (i, found) in found.iter().enumerate() {
        let tile = i / 16 * 16;
        let sum = a[tile..tile + 16].iter().fold(0u32, |sum, x| sum.wrapping_add(*x));
        let votes = (0..16).fold(0, |votes, l| votes | (a[tile + l] & 1) << (tile % 32 + l));
        assert_eq!(*found, sum ^ votes ^ a[i ^ 5], "lane {i}");
    }
}

#[test]
fn one_lane_is_elected() {
    let a = random(10);
    let text = ".reg .pred p; .reg .b32 t; elect.sync t|p, -1; selp.u32 %o, 1, 0, p;";
    let found: Vec<u32> = map1(text, &a);
    for w in found.chunks(32) {
        assert_eq!(w.iter().sum::<u32>(), 1);
    }
}

#[test]
fn special_registers_name_the_lane_and_the_block() {
    let a = vec![0u32; N];
    let read = |register: &str| -> Vec<u32> { map1(&format!("mov.u32 %o, {register};"), &a) };
    let expect = |register: &str, f: fn(u32) -> u32| {
        for (i, found) in read(register).into_iter().enumerate() {
            assert_eq!(found, f(i as u32), "{register} of thread {i}");
        }
    };
    expect("%tid.x", |i| i % 256);
    expect("%tid.y", |_| 0);
    expect("%ntid.x", |_| 256);
    expect("%ntid.z", |_| 1);
    expect("%ctaid.x", |i| i / 256);
    expect("%nctaid.x", |_| N as u32 / 256);
    expect("%laneid", |i| i % 32);
    expect("%warpid", |i| i % 256 / 32);
    expect("%nwarpid", |_| 8);
    expect("%lanemask_eq", |i| 1 << (i % 32));
    expect("%lanemask_lt", |i| (1 << (i % 32)) - 1);
    expect("%lanemask_le", |i| ((1u64 << (i % 32 + 1)) - 1) as u32);
    expect("%lanemask_gt", |i| !((1u64 << (i % 32 + 1)) - 1) as u32);
    expect("%lanemask_ge", |i| !((1u32 << (i % 32)) - 1));
}

#[test]
fn threads_of_a_block_are_numbered_x_first() {
    let body = ".reg .b32 x, y, z, w, h, t, n; .reg .b64 q, o;
        mov.u32 x, %tid.x; mov.u32 y, %tid.y; mov.u32 z, %tid.z; mov.u32 w, %ntid.x; mov.u32 h, %ntid.y;
        mad.lo.u32 t, z, h, y; mad.lo.u32 t, t, w, x; mov.u32 n, %laneid;
        shl.b32 x, x, 20; shl.b32 y, y, 14; shl.b32 z, z, 8; or.b32 n, n, x; or.b32 n, n, y; or.b32 n, n, z;
        ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; st.global.u32 [q], n;";
    let (w, h, d) = (7u32, 5, 3);
    let config = Config { block: [w, h, d], ..Config::new(1, 1) };
    let out = run_clean(&kernel(1, body), config, &[vec![0; (w * h * d * 4) as usize]]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        let i = i as u32;
        let wanted = ((i % w) << 20) | ((i / w % h) << 14) | ((i / w / h) << 8) | (i % 32);
        assert_eq!(found, wanted, "thread {i}");
    }
}

#[test]
fn lanes_part_and_meet_again() {
    // Each lane runs a loop of its own length; afterwards the warp shuffles as one.
    let a: Vec<u32> = random(11).iter().map(|x| x % 50).collect();
    let text = ".reg .pred p; .reg .b32 i; mov.u32 i, 0; mov.u32 %o, 0; \
                LOOP: setp.ge.u32 p, i, %a; @p bra DONE; add.u32 %o, %o, i; add.u32 i, i, 1; bra LOOP; \
                DONE: shfl.sync.bfly.b32 %o, %o, 1, 31, -1;";
    for (i, found) in map1::<u32, u32>(text, &a).into_iter().enumerate() {
        let n = a[i ^ 1];
        assert_eq!(found, (0..n).sum::<u32>());
    }
    // Nested branches, each side with its own result.
    let text = ".reg .pred p, q; setp.lt.u32 p, %a, 25; setp.lt.u32 q, %b, %c; @!p bra ELSE; @q bra INNER; \
                mov.u32 %o, 1; bra JOIN; INNER: mov.u32 %o, 2; bra JOIN; ELSE: @!q bra LAST; mov.u32 %o, 3; bra JOIN; \
                LAST: mov.u32 %o, 4; JOIN: add.u32 %o, %o, %d;";
    let (b, c, d) = (random(12), random(13), random(14));
    for (i, found) in map4::<u32, u32, u32, u32, u32>(text, &a, &b, &c, &d).into_iter().enumerate() {
        let value = match (a[i] < 25, b[i] < c[i]) {
            (true, false) => 1,
            (true, true) => 2,
            (false, true) => 3,
            (false, false) => 4,
        };
        assert_eq!(found, d[i].wrapping_add(value));
    }
}

#[test]
fn indexed_branches_go_where_the_table_says() {
    let a: Vec<u32> = random(15).iter().map(|x| x % 4).collect();
    let text = "TABLE: .branchtargets A0, A1, A2, A3; brx.idx %a, TABLE; A0: mov.u32 %o, 10; bra END; \
                A1: mov.u32 %o, 11; bra END; A2: mov.u32 %o, 12; bra END; A3: mov.u32 %o, 13; END:";
    for (i, found) in map1::<u32, u32>(text, &a).into_iter().enumerate() {
        assert_eq!(found, 10 + a[i]);
    }
}

#[test]
fn functions_take_and_return_values() {
    let body = "
        .reg .b32 x, t; .reg .b64 q, o;
        mov.u32 t, %tid.x; ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; ld.global.u32 x, [q];
        { .param .b32 in; .param .b32 out; st.param.b32 [in], x; call.uni (out), twice_plus, (in); ld.param.b32 x, [out]; }
        st.global.u32 [q], x;";
    let text = kernel(1, body);
    let function = ".func (.param .b32 r) plus_one(.param .b32 a) { .reg .b32 v; ld.param.b32 v, [a]; add.u32 v, v, 1; \
                    st.param.b32 [r], v; ret; }\n\
                    .func (.param .b32 r) twice_plus(.param .b32 a) { .reg .b32 v; .reg .pred p; ld.param.b32 v, [a]; \
                    setp.gt.u32 p, v, 100; @p bra OUT; shl.b32 v, v, 1; \
                    { .param .b32 i; .param .b32 o; st.param.b32 [i], v; call (o), plus_one, (i); ld.param.b32 v, [o]; } \
                    OUT: st.param.b32 [r], v; ret; }\n";
    let text = text.replacen(".visible", &format!("{function}.visible"), 1);
    let a: Vec<u32> = (0..64).map(|i| i * 3).collect();
    let out = run_clean(&text, Config::new(1, 64), &[bytes_of(&a)]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        assert_eq!(found, if a[i] > 100 { a[i] } else { 2 * a[i] + 1 });
    }
}
