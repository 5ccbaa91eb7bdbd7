//! The video track of an MP4 or QuickTime file: where its samples are and when they are shown.
//!
//! Source: ISO/IEC 14496-12 and -15. Reads the `moov` box only, as a whole; every table is checked
//! against the bytes that are there before anything is made of it.

use std::io::{Read, Seek, SeekFrom};

use super::Rotation;

/// Longest `moov` box that is read.
const MAX_MOOV_BYTES: u64 = 128 << 20;
/// Most samples of a track: 19 hours at 60 frames a second.
const MAX_SAMPLES: usize = 1 << 22;

/// A video track.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// The codec's box: `avc1`, `hvc1`, ...
    pub codec: [u8; 4],
    /// The decoder configuration of H.264.
    pub avcc: Vec<u8>,
    /// How the picture is to be turned for display.
    pub rotation: Rotation,
    /// Ticks in a second.
    pub timescale: u32,
    /// Samples in the order in which they are decoded.
    pub samples: Vec<Sample>,
    /// Ticks of all samples.
    pub duration: u64,
}

/// One picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u32,
    /// Whether decoding can start here.
    pub sync: bool,
    /// Whether the edit list leaves it out.
    pub hidden: bool,
    /// When it is shown, in ticks.
    pub pts: i64,
}

/// Why there is no track to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not a file of this kind.
    Foreign,
    /// Such a file, but not readable here; another program may.
    Unsupported(String),
    /// No program will find a picture in it.
    Bad(String),
}

type Parsed<T> = Result<T, Problem>;

fn bad<T>(what: impl Into<String>) -> Parsed<T> {
    Err(Problem::Bad(what.into()))
}

/// Reads the first video track. `length` is the file's.
pub fn read(file: &mut (impl Read + Seek), length: u64) -> Parsed<Track> {
    let moov = find_moov(file, length)?;
    let mut audio = false;
    for (kind, track) in boxes(&moov) {
        if kind != *b"trak" {
            continue;
        }
        let mdia = child(track, b"mdia")?;
        match child(mdia, b"hdlr")?.get(8..12) {
            Some(b"vide") => {
                let fragmented = boxes(&moov).any(|(kind, _)| kind == *b"mvex");
                return read_track(track, mdia, length, fragmented);
            }
            Some(b"soun") => audio = true,
            _ => {}
        }
    }
    bad(if audio { "it has sound but no video" } else { "it has no video track" })
}

fn find_moov(file: &mut (impl Read + Seek), length: u64) -> Parsed<Vec<u8>> {
    let io = |e: std::io::Error| Problem::Bad(format!("it cannot be read: {e}"));
    let (mut at, mut seen) = (0, 0);
    while at + 8 <= length {
        let mut header = [0; 16];
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        file.read_exact(&mut header[..8]).map_err(io)?;
        let kind = [header[4], header[5], header[6], header[7]];
        if seen == 0 && !matches!(&kind, b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot")
        {
            return Err(Problem::Foreign);
        }
        seen += 1;
        let (size, head) = match u32::from_be_bytes([header[0], header[1], header[2], header[3]]) {
            0 => (length - at, 8),
            1 if at + 16 <= length => {
                file.read_exact(&mut header[8..]).map_err(io)?;
                (u64::from_be_bytes(*header.last_chunk().expect("eight bytes")), 16)
            }
            n => (u64::from(n), 8),
        };
        if size < head {
            return bad(format!("the box at byte {at} has an impossible size"));
        }
        if &kind == b"moov" {
            if size > MAX_MOOV_BYTES {
                return Err(Problem::Unsupported(format!("an index of {size} bytes")));
            }
            if at + size > length {
                return bad("it is cut short: the index does not fit in the file");
            }
            let mut moov = vec![0; (size - head) as usize];
            file.read_exact(&mut moov).map_err(io)?;
            return Ok(moov);
        }
        at = at.saturating_add(size);
    }
    match seen {
        0 => Err(Problem::Foreign),
        _ if at > length => bad("it is cut short, and the index was to come at the end"),
        _ => bad("it has no index (moov box)"),
    }
}

/// The boxes in `data` by kind; ends at the first that does not fit.
fn boxes(mut data: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = data.split_first_chunk::<8>()?;
        let kind = [head[4], head[5], head[6], head[7]];
        let (size, rest, head) = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0 => (rest.len() as u64 + 8, rest, 8),
            1 => {
                let (size, rest) = rest.split_first_chunk::<8>()?;
                (u64::from_be_bytes(*size), rest, 16)
            }
            n => (u64::from(n), rest, 8),
        };
        let (content, rest) = rest.split_at_checked(usize::try_from(size.checked_sub(head)?).ok()?)?;
        data = rest;
        Some((kind, content))
    })
}

fn child<'a>(data: &'a [u8], kind: &[u8; 4]) -> Parsed<&'a [u8]> {
    match find(data, kind) {
        Some(content) => Ok(content),
        None => bad(format!("the index has no {} box", String::from_utf8_lossy(kind))),
    }
}

fn find<'a>(data: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(data).find(|(found, _)| found == kind).map(|(_, content)| content)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at.checked_add(4)?)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at.checked_add(8)?)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

/// The rows of a table box: version and flags, a count, and so many rows of `N` 32-bit numbers.
fn table<'a, const N: usize>(data: &'a [u8], name: &str) -> Parsed<impl Iterator<Item = [u32; N]> + 'a> {
    let rows = u32_at(data, 4).and_then(|n| Some((n as usize, data.get(8..)?)));
    let whole = rows.and_then(|(n, rest)| rest.get(..n.checked_mul(4 * N)?));
    let Some(rows) = whole else { return bad(format!("the {name} table is cut short")) };
    Ok(rows.chunks_exact(4 * N).map(|row| {
        std::array::from_fn(|i| {
            u32::from_be_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]])
        })
    }))
}

fn read_track(track: &[u8], mdia: &[u8], length: u64, fragmented: bool) -> Parsed<Track> {
    let mdhd = child(mdia, b"mdhd")?;
    let timescale = u32_at(mdhd, if mdhd.first() == Some(&1) { 20 } else { 12 }).unwrap_or(0);
    if timescale == 0 {
        return bad("the track has no time scale");
    }
    let stbl = child(child(mdia, b"minf")?, b"stbl")?;
    let (codec, avcc) = codec(child(stbl, b"stsd")?)?;
    let mut samples = sizes(child(stbl, b"stsz")?)?;
    if samples.is_empty() {
        return if fragmented {
            Err(Problem::Unsupported("a fragmented MP4".into()))
        } else {
            bad("it has no frames")
        };
    }
    offsets(stbl, &mut samples)?;
    if let Some(at) = samples.iter().position(|s| s.offset.saturating_add(s.size.into()) > length) {
        return bad(format!("it is cut short: frame {at} of {} lies beyond its end", samples.len()));
    }
    let duration = times(stbl, &mut samples)?;
    match find(stbl, b"stss") {
        None => samples.iter_mut().for_each(|s| s.sync = true),
        Some(stss) => {
            for [number] in table::<1>(stss, "stss")? {
                if let Some(sample) = (number as usize).checked_sub(1).and_then(|i| samples.get_mut(i)) {
                    sample.sync = true;
                }
            }
        }
    }
    edits(track, &mut samples)?;
    let rotation = find(track, b"tkhd").map_or(Rotation::None, rotation);
    Ok(Track { codec, avcc, rotation, timescale, samples, duration })
}

/// The codec, and the configuration of H.264.
fn codec(stsd: &[u8]) -> Parsed<([u8; 4], Vec<u8>)> {
    let Some((kind, entry)) = stsd.get(8..).and_then(|entries| boxes(entries).next()) else {
        return bad("the track does not say how it is encoded");
    };
    // 78 bytes of a visual sample entry come before its boxes.
    let avcc = entry.get(78..).and_then(|inner| find(inner, b"avcC"));
    Ok((kind, avcc.unwrap_or_default().to_vec()))
}

fn sizes(stsz: &[u8]) -> Parsed<Vec<Sample>> {
    let (Some(size), Some(count)) = (u32_at(stsz, 4), u32_at(stsz, 8)) else {
        return bad("the table of sizes is cut short");
    };
    let count = count as usize;
    let listed = stsz.len().saturating_sub(12) / 4;
    if size == 0 && listed < count {
        return bad(format!("the table of sizes has {listed} of {count} frames"));
    }
    if count > MAX_SAMPLES {
        return Err(Problem::Unsupported(format!("a track of {count} frames (more than {MAX_SAMPLES})")));
    }
    let sample = |size| Sample { offset: 0, size, sync: false, hidden: false, pts: 0 };
    if size != 0 {
        return Ok(vec![sample(size); count]);
    }
    let Some(sizes) = stsz.get(12..12 + 4 * count) else { return bad("the table of sizes is cut short") };
    Ok(sizes.chunks_exact(4).map(|b| sample(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))).collect())
}

/// Places of the samples, from the tables of chunks.
fn offsets(stbl: &[u8], samples: &mut [Sample]) -> Parsed<()> {
    let starts: Vec<u64> = match (find(stbl, b"stco"), find(stbl, b"co64")) {
        (Some(stco), _) => table::<1>(stco, "stco")?.map(|[at]| at.into()).collect(),
        (None, Some(co64)) => {
            table::<2>(co64, "co64")?.map(|[hi, lo]| u64::from(hi) << 32 | u64::from(lo)).collect()
        }
        (None, None) => return bad("the index does not say where the frames are"),
    };
    let runs: Vec<[u32; 3]> = table::<3>(child(stbl, b"stsc")?, "stsc")?.collect();
    let (mut next, mut run) = (0, 0);
    for (chunk, &start) in starts.iter().enumerate() {
        while runs.get(run + 1).is_some_and(|r| r[0] as usize <= chunk + 1) {
            run += 1;
        }
        let Some(&[_, per_chunk, _]) = runs.get(run) else { break };
        let mut at = start;
        for _ in 0..per_chunk {
            let Some(sample) = samples.get_mut(next) else { return Ok(()) };
            sample.offset = at;
            at = at.saturating_add(sample.size.into());
            next += 1;
        }
    }
    if next < samples.len() {
        return bad(format!("the index places {next} of {} frames", samples.len()));
    }
    Ok(())
}

/// When samples are shown; returns how long all take.
fn times(stbl: &[u8], samples: &mut [Sample]) -> Parsed<u64> {
    let (mut next, mut time) = (0, 0i64);
    for [count, delta] in table::<2>(child(stbl, b"stts")?, "stts")? {
        for _ in 0..count {
            let Some(sample) = samples.get_mut(next) else { break };
            sample.pts = time;
            time = time.saturating_add(delta.into());
            next += 1;
        }
    }
    if next < samples.len() {
        return bad(format!("the index times {next} of {} frames", samples.len()));
    }
    if let Some(ctts) = find(stbl, b"ctts") {
        let mut next = 0;
        for [count, offset] in table::<2>(ctts, "ctts")? {
            for _ in 0..count {
                let Some(sample) = samples.get_mut(next) else { break };
                // Version 0 says unsigned, but writers put negative numbers there too.
                sample.pts = sample.pts.saturating_add(i64::from(offset as i32));
                next += 1;
            }
        }
    }
    Ok(time as u64)
}

/// Hides what comes before the start of the one edit that files have; several edits are not read.
fn edits(track: &[u8], samples: &mut [Sample]) -> Parsed<()> {
    let Some(elst) = find(track, b"edts").and_then(|edts| find(edts, b"elst")) else { return Ok(()) };
    let count = u32_at(elst, 4).unwrap_or(0) as usize;
    let long = elst.first() == Some(&1);
    let mut start = None;
    for i in 0..count.min(elst.len()) {
        let at = 8 + i * if long { 20 } else { 12 };
        let time = if long {
            u64_at(elst, at + 8).map(|t| t as i64)
        } else {
            u32_at(elst, at + 4).map(|t| i64::from(t as i32))
        };
        match time {
            // An empty edit delays the start.
            Some(-1) | None => {}
            Some(time) if start.is_none() => start = Some(time),
            Some(_) => return Err(Problem::Unsupported("a list of several edits".into())),
        }
    }
    let Some(start) = start else { return Ok(()) };
    if samples.iter().any(|s| s.pts >= start) {
        samples.iter_mut().for_each(|s| s.hidden = s.pts < start);
    }
    Ok(())
}

fn rotation(tkhd: &[u8]) -> Rotation {
    // The matrix follows creation and change times, track, duration, layer and volume.
    let at = if tkhd.first() == Some(&1) { 52 } else { 40 };
    let entry = |i: usize| u32_at(tkhd, at + 4 * i).map(|v| (v as i32) >> 16);
    match (entry(0), entry(1), entry(3), entry(4)) {
        (Some(0), Some(1), Some(-1), Some(0)) => Rotation::Right,
        (Some(-1), Some(0), Some(0), Some(-1)) => Rotation::Half,
        (Some(0), Some(-1), Some(1), Some(0)) => Rotation::Left,
        _ => Rotation::None,
    }
}
