//! H.264 in MP4, decoded in this program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rust_h264::decoder::{Frame, OrderedDecoder};
use rust_h264::error::DecodeError;
use rust_h264::nal::{
    AvccConfig, NalUnit, NalUnitType, SpsInfo, parse_avcc, parse_avcc_config, parse_sps_info,
};

use super::mp4::{Problem, Track};
use super::yuv::{Colour, to_rgb};
use super::{MAX_FRAME_AREA, Rgb8};

/// Longest frame that is read, in bytes.
const MAX_SAMPLE_BYTES: u32 = 64 << 20;

/// A track that can be decoded here.
pub struct Video {
    file: File,
    track: Track,
    /// Samples that are shown, in the order in which they are: indices of samples.
    shown: Vec<u32>,
    size: (u32, u32),
}

impl Video {
    /// Checks that the track can be decoded here.
    pub fn open(file: File, track: Track) -> Result<Video, Problem> {
        let config = configuration(&track.avcc)?;
        let Some(sps) = config.sps_nals.first() else {
            return Err(Problem::Unsupported("H.264 without its parameters in the index".into()));
        };
        let info = sequence(sps)?;
        let size = track.rotation.size(info.width, info.height);
        if let Some(at) = track.samples.iter().position(|s| s.size > MAX_SAMPLE_BYTES) {
            return Err(Problem::Bad(format!("frame {at} is said to have {} bytes", track.samples[at].size)));
        }
        let mut shown: Vec<u32> =
            (0..track.samples.len() as u32).filter(|&i| !track.samples[i as usize].hidden).collect();
        shown.sort_by_key(|&i| track.samples[i as usize].pts);
        Ok(Video { file, track, shown, size })
    }

    /// Frames that are shown.
    pub fn frames(&self) -> u64 {
        self.shown.len() as u64
    }

    /// Frames per second, on average.
    pub fn fps(&self) -> f64 {
        let seconds = self.track.duration as f64 / f64::from(self.track.timescale);
        if seconds > 0.0 { self.track.samples.len() as f64 / seconds } else { 1.0 }
    }

    /// Width and height as displayed.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// When a frame is shown, in seconds from the first.
    pub fn time(&self, frame: u64) -> f64 {
        let pts = |i: u32| self.track.samples[i as usize].pts;
        (pts(self.shown[frame as usize]) - pts(self.shown[0])) as f64 / f64::from(self.track.timescale)
    }

    /// Decodes the frames with these numbers, ascending, and gives each to `keep`, in no order. Skips
    /// what no wanted frame depends on.
    pub fn decode(
        &mut self,
        wanted: &[u64],
        keep: &mut dyn FnMut(u64, Rgb8) -> crate::Result<()>,
    ) -> Result<crate::Result<()>, Problem> {
        let avcc = self.track.avcc.clone();
        let config = configuration(&avcc)?;
        // By sample, the number of the wanted frame.
        let mut missing: BTreeMap<u32, u64> =
            wanted.iter().map(|&frame| (self.shown[frame as usize], frame)).collect();
        let targets: Vec<u32> = missing.keys().copied().collect();
        let mut run = Run::new(&config)?;
        let mut next = 0;
        for target in targets {
            let start = self.start_of(target);
            if start > next {
                if let Err(e) = take(run.finish()?, &run, self.track.rotation, &mut missing, keep) {
                    return Ok(Err(e));
                }
                run = Run::new(&config)?;
                next = start;
            }
            while next <= target {
                let bytes = self.read_sample(next)?;
                let frames = run.feed(&bytes, config.length_size, next)?;
                if let Err(e) = take(frames, &run, self.track.rotation, &mut missing, keep) {
                    return Ok(Err(e));
                }
                next += 1;
            }
        }
        if let Err(e) = take(run.finish()?, &run, self.track.rotation, &mut missing, keep) {
            return Ok(Err(e));
        }
        match missing.into_iter().next() {
            None => Ok(Ok(())),
            Some((sample, frame)) => {
                Err(Problem::Bad(format!("frame {frame} (the {sample}th stored) does not decode")))
            }
        }
    }

    /// Where decoding must start for a sample: at the sync sample before it, or at the one before that if
    /// the picture is shown before the first.
    fn start_of(&self, target: u32) -> u32 {
        let samples = &self.track.samples;
        let sync_before = |from: u32| (0..=from).rev().find(|&i| samples[i as usize].sync).unwrap_or(0);
        let mut start = sync_before(target);
        while start > 0 && samples[target as usize].pts < samples[start as usize].pts {
            start = sync_before(start - 1);
        }
        start
    }

    fn read_sample(&mut self, at: u32) -> Result<Vec<u8>, Problem> {
        let sample = self.track.samples[at as usize];
        let mut bytes = vec![0; sample.size as usize];
        let read =
            self.file.seek(SeekFrom::Start(sample.offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|e| Problem::Bad(format!("frame {at} cannot be read: {e}")))?;
        Ok(bytes)
    }
}

fn configuration(avcc: &[u8]) -> Result<AvccConfig<'_>, Problem> {
    parse_avcc_config(avcc).map_err(|e| Problem::Bad(format!("its decoder configuration is damaged: {e}")))
}

/// What a sequence parameter set says, if this program decodes such a video.
fn sequence(nal: &NalUnit) -> Result<SpsInfo, Problem> {
    let info = parse_sps_info(nal).map_err(|e| problem("its parameters", &e))?;
    let area = u64::from(info.coded_width) * u64::from(info.coded_height);
    if info.width == 0 || info.height == 0 || area > MAX_FRAME_AREA {
        let (w, h) = (info.coded_width, info.coded_height);
        return Err(Problem::Bad(format!("its frames have {w}x{h} pixels, more than {MAX_FRAME_AREA}")));
    }
    Ok(info)
}

fn problem(what: &str, error: &DecodeError) -> Problem {
    match error {
        DecodeError::Unsupported(feature) => Problem::Unsupported(format!("H.264 with {feature}")),
        other => Problem::Bad(format!("{what} cannot be decoded: {other}")),
    }
}

/// Gives the wanted ones among `frames` to `keep`.
fn take(
    frames: Vec<(Frame, u32)>,
    run: &Run,
    rotation: super::Rotation,
    missing: &mut BTreeMap<u32, u64>,
    keep: &mut dyn FnMut(u64, Rgb8) -> crate::Result<()>,
) -> crate::Result<()> {
    for (frame, sample) in frames {
        if let Some(number) = missing.remove(&sample) {
            keep(number, to_rgb(&frame, run.colour, rotation))?;
        }
    }
    Ok(())
}

/// A decoder between two places where decoding can start.
struct Run {
    decoder: OrderedDecoder<u32>,
    colour: Colour,
}

impl Run {
    fn new(config: &AvccConfig) -> Result<Run, Problem> {
        // Frames know their sample: they need not come in order.
        let mut run = Run {
            decoder: OrderedDecoder::with_max_depth(1),
            colour: Colour { matrix: 2, full_range: false },
        };
        for nal in config.sps_nals.iter().chain(&config.pps_nals) {
            run.nal(nal, 0)?;
        }
        Ok(run)
    }

    fn feed(&mut self, sample: &[u8], length_size: usize, at: u32) -> Result<Vec<(Frame, u32)>, Problem> {
        let nals = parse_avcc(sample, length_size);
        if nals.is_empty() {
            return Err(Problem::Bad(format!("frame {at} is damaged")));
        }
        let mut frames = Vec::new();
        for nal in &nals {
            frames.extend(self.nal(nal, at)?);
        }
        Ok(frames)
    }

    fn nal(&mut self, nal: &NalUnit, at: u32) -> Result<Vec<(Frame, u32)>, Problem> {
        if nal.nal_unit_type == NalUnitType::Sps {
            let info = sequence(nal)?;
            self.colour = Colour { matrix: info.matrix, full_range: info.full_range };
        }
        self.guarded(at, |decoder| decoder.decode_nal_with_meta(nal, at))
    }

    fn finish(&mut self) -> Result<Vec<(Frame, u32)>, Problem> {
        self.guarded(u32::MAX, |decoder| Ok(decoder.flush_with_meta()))
    }

    /// The decoder is meant not to panic on any input. Should it, that is a bad file.
    fn guarded(
        &mut self,
        at: u32,
        work: impl FnOnce(&mut OrderedDecoder<u32>) -> Result<Vec<(Frame, u32)>, DecodeError>,
    ) -> Result<Vec<(Frame, u32)>, Problem> {
        let what = || if at == u32::MAX { "the last frame".into() } else { format!("frame {at}") };
        match catch_unwind(AssertUnwindSafe(|| work(&mut self.decoder))) {
            Ok(result) => result.map_err(|e| problem(&what(), &e)),
            Err(_) => Err(Problem::Bad(format!("the decoder failed on {}", what()))),
        }
    }
}
