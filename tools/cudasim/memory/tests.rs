use super::*;

fn memory() -> GlobalMemory {
    GlobalMemory::new(1 << 30).unwrap()
}

#[test]
fn bytes_come_back_and_unwritten_ones_are_poison() {
    let m = memory();
    let a = m.alloc(100).unwrap();
    assert_eq!(a % 512, 0);
    m.write(a + 10, b"hello").unwrap();
    let mut out = [0; 7];
    assert_eq!(m.read(a + 9, &mut out), Ok(2));
    assert_eq!(&out, b"\xffhello\xff");
    m.fill(a, &[7], 100).unwrap();
    assert!(m.find(a).unwrap().wholly_initialised());
    assert_eq!(m.read(a + 9, &mut out), Ok(0));
    assert_eq!(out, [7; 7]);
}

#[test]
fn bounds_are_exact_and_name_the_neighbour() {
    let m = memory();
    let a = m.alloc(100).unwrap();
    assert!(m.write(a, &[0; 100]).is_ok());
    assert_eq!(
        m.write(a, &[0; 101]),
        Err(MemError::OutOfBounds { addr: a, bytes: 101, nearest: Some((a, 100)) })
    );
    assert!(m.read(a + 100, &mut [0; 1]).is_err());
    assert!(m.write(a - 1, &[0; 1]).is_err());
    assert!(m.fill(a, &[0; 4], u64::MAX / 2).is_err());
    assert!(m.copy(a, a + 50, 51).is_err());
    assert!(m.write(a + 100, &[]).is_ok());
}

#[test]
fn parts_written_one_by_one_make_the_whole() {
    let m = memory();
    let a = m.alloc(1000).unwrap();
    for i in (0..1000).rev().step_by(2).chain((0..1000).step_by(2)) {
        assert!(!m.find(a).unwrap().wholly_initialised());
        m.write(a + i, &[1]).unwrap();
    }
    assert!(m.find(a).unwrap().wholly_initialised());
}

#[test]
fn copies_carry_what_is_not_initialised() {
    let m = memory();
    let (a, b) = (m.alloc(64).unwrap(), m.alloc(64).unwrap());
    m.fill(b, &[1], 64).unwrap();
    m.write(a + 2, &[9, 9]).unwrap();
    m.copy(b + 8, a, 6).unwrap();
    let mut out = [0; 64];
    assert_eq!(m.read(b, &mut out), Ok(4));
    assert_eq!(out[6..16], [1, 1, POISON, POISON, 9, 9, POISON, POISON, 1, 1]);
    m.fill(b + 8, &[3], 6).unwrap();
    assert!(m.find(b).unwrap().wholly_initialised());
}

#[test]
fn freed_memory_is_unknown_and_fresh_when_it_comes_back() {
    let m = GlobalMemory::new(1 << 20).unwrap();
    let a = m.alloc(1 << 20).unwrap();
    assert_eq!(m.alloc(1), None);
    assert_eq!(m.used(), m.capacity());
    m.fill(a, &[5], 1 << 20).unwrap();
    assert!(!m.free(a + 512));
    assert!(m.free(a));
    assert!(!m.free(a));
    assert!(m.find(a).is_none());
    let mut bases = Vec::new();
    for _ in 0..200 {
        let b = m.alloc((1 << 20) - 100).unwrap();
        assert_eq!(m.read(b, &mut [0; 16]), Ok(16));
        m.fill(b, &[5], 1000).unwrap();
        bases.push(b);
        assert!(m.free(b));
    }
    assert!(bases[0] != bases[1] && bases[198] == bases[199]);
}

#[test]
fn absurd_sizes_are_out_of_memory() {
    let m = memory();
    for bytes in [0, (1 << 30) + 1, u64::MAX, u64::MAX - 511] {
        assert_eq!(m.alloc(bytes), None);
    }
    assert!(GlobalMemory::new(u64::MAX).is_err());
}

#[test]
fn pinned_memory_is_reached_at_its_own_address() {
    let m = memory();
    let host = vec![3u8; 256];
    let addr = host.as_ptr() as u64;
    m.register_host(addr, 256);
    let mut out = [0; 256];
    assert_eq!(m.read(addr, &mut out), Ok(0));
    assert_eq!(out[255], 3);
    assert!(!m.free(addr));
    assert!(m.unregister_host(addr));
    assert!(m.read(addr, &mut out).is_err());
    let a = m.alloc(16).unwrap();
    m.register_host(a + 512, 16);
    assert!(m.find(a + 512).is_none());
}

#[test]
fn unique_sectors_are_counted_once_and_per_launch() {
    let m = memory();
    let a = m.alloc(1 << 20).unwrap();
    m.begin_launch();
    for _ in 0..3 {
        for i in 0..32 {
            m.mark_read(a + 4 * i, 4);
            m.mark_read(a + 200_000 + 64 * i, 4);
        }
    }
    m.mark_written(a + 30, 4);
    let totals = m.take_sectors();
    assert_eq!((totals.read, totals.written), (4 + 32, 2));
    assert_eq!(totals.chunks.iter().map(|c| c.read_sectors).sum::<u32>(), 36);
    assert!(totals.chunks.is_sorted_by_key(|c| c.chunk));
    assert_eq!(m.take_sectors(), SectorTotals::default());
    // One of four sectors that are written is read before.
    m.mark_read(a + 32, 4);
    m.mark_written(a, 128);
    m.mark_read(a, 160);
    let totals = m.take_sectors();
    assert_eq!((totals.read, totals.written), (2, 4));
}

#[test]
fn threads_may_mark_at_once() {
    let m = memory();
    let a = m.alloc(1 << 20).unwrap();
    let allocation = m.find(a).unwrap();
    std::thread::scope(|s| {
        for t in 0..4 {
            let (m, allocation) = (&m, &allocation);
            s.spawn(move || {
                for i in 0..(1 << 18) / 4 {
                    let at = a + (i * 4 + t) * 4;
                    m.mark_written(at, 4);
                    m.mark_initialised(allocation, at, 4);
                    assert_eq!(m.record_write(at, 4, t as u32, 0), None);
                }
            });
        }
    });
    assert!(allocation.wholly_initialised());
    assert_eq!(m.take_sectors().written, (1 << 20) / 32);
}

#[test]
fn the_nearest_allocation_may_be_before_or_after() {
    let m = memory();
    assert!(m.nearest(4).is_none());
    let (a, b) = (m.alloc(100).unwrap(), m.alloc(100).unwrap());
    assert_eq!(m.nearest(a + 101).unwrap().base, a);
    assert_eq!(m.nearest(b - 1).unwrap().base, b);
    assert_eq!(m.nearest(0).unwrap().base, a);
    assert_eq!(m.nearest(u64::MAX).unwrap().base, b);
}
