//! H.264 in MP4, decoded in this program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

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

/// What decoders of one film may hold together, unless a single one takes more.
const FILM_BYTES: u64 = 160 << 20;

/// What decoding a film of this size takes, in bytes, about.
pub fn decoding_bytes(size: (u32, u32)) -> u64 {
    decoder_bytes(size).max(FILM_BYTES)
}

/// What one decoder takes: reference frames, those that wait for their turn, and the one that is kept, with 12 bits a
/// pixel.
fn decoder_bytes((width, height): (u32, u32)) -> u64 {
    const FRAMES: u64 = 20;
    FRAMES * u64::from(width) * u64::from(height) * 3 / 2
}

/// A track that can be decoded here.
pub struct Video {
    file: Mutex<File>,
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
        Ok(Video { file: Mutex::new(file), track, shown, size })
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

    /// Decodes the frames with these numbers, ascending, on up to `threads` threads, and gives each to `keep`, in no
    /// order. Skips what no wanted frame depends on.
    pub fn decode(
        &self,
        wanted: &[u64],
        threads: usize,
        keep: &mut dyn FnMut(u64, Rgb8) -> crate::Result<()>,
    ) -> Result<crate::Result<()>, Problem> {
        let stretches = self.stretches(wanted);
        let threads = threads.min(stretches.len()).min(self.decoders_in_memory());
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // One frame waits: more would be memory.
            let (sender, frames) = sync_channel(1);
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let (sender, stretches, next, stop) = (sender.clone(), &stretches, &next, &stop);
                    scope.spawn(move || {
                        loop {
                            let at = next.fetch_add(1, Ordering::Relaxed);
                            let Some(stretch) = stretches.get(at) else { return Ok(()) };
                            if let Err(problem) = self.decode_stretch(stretch, stop, &sender) {
                                stop.store(true, Ordering::Relaxed);
                                return Err((at, problem));
                            }
                        }
                    })
                })
                .collect();
            drop(sender);
            let kept = frames.iter().try_for_each(|(number, rgb)| keep(number, rgb));
            stop.store(kept.is_err(), Ordering::Relaxed);
            // Senders end when nobody receives.
            drop(frames);
            let ends = workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| resume_unwind(panic)));
            // The first problem in the film: which thread meets its own first is chance.
            match ends.filter_map(Result::err).min_by_key(|(at, _)| *at) {
                Some((_, problem)) => Err(problem),
                None => Ok(kept),
            }
        })
    }

    /// How many decoders one film may have at once.
    fn decoders_in_memory(&self) -> usize {
        (FILM_BYTES / decoder_bytes(self.size).max(1)).max(1) as usize
    }

    /// Samples that are decoded together, from one where decoding can start.
    fn stretches(&self, wanted: &[u64]) -> Vec<Stretch> {
        let mut by_start: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
        for &frame in wanted {
            let sample = self.shown[frame as usize];
            by_start.entry(self.start_of(sample)).or_default().insert(sample, frame);
        }
        by_start.into_iter().map(|(start, wanted)| Stretch { start, wanted }).collect()
    }

    fn decode_stretch(
        &self,
        stretch: &Stretch,
        stop: &AtomicBool,
        sender: &SyncSender<(u64, Rgb8)>,
    ) -> Result<(), Problem> {
        let config = configuration(&self.track.avcc)?;
        let mut missing = stretch.wanted.clone();
        let mut run = Run::new(&config)?;
        let last = *stretch.wanted.keys().next_back().unwrap_or(&stretch.start);
        // Whether the receiver, who has an error of its own, is still there.
        let mut give = |frames: Vec<(Frame, u32)>, colour| {
            frames.into_iter().all(|(frame, sample)| match missing.remove(&sample) {
                Some(number) => sender.send((number, to_rgb(&frame, colour, self.track.rotation))).is_ok(),
                None => true,
            })
        };
        for at in stretch.start..=last {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let bytes = self.read_sample(at)?;
            let nals = parse_avcc(&bytes, config.length_size);
            if !stretch.wanted.contains_key(&at) && nobody_refers_to(&nals) {
                continue;
            }
            let frames = run.feed(&nals, at)?;
            if !give(frames, run.colour) {
                return Ok(());
            }
        }
        let frames = run.finish()?;
        if !give(frames, run.colour) {
            return Ok(());
        }
        match missing.into_iter().next() {
            None => Ok(()),
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

    fn read_sample(&self, at: u32) -> Result<Vec<u8>, Problem> {
        let sample = self.track.samples[at as usize];
        let mut bytes = vec![0; sample.size as usize];
        // A panic of another thread leaves the file as good as it was.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(sample.offset)).and_then(|_| file.read_exact(&mut bytes));
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

/// Samples from one where decoding can start up to the last wanted one.
struct Stretch {
    start: u32,
    /// The numbers of the wanted frames, by sample.
    wanted: BTreeMap<u32, u64>,
}

/// Whether a sample is a picture that no other one is predicted from.
fn nobody_refers_to(nals: &[NalUnit]) -> bool {
    let picture = |t| matches!(t, NalUnitType::Slice | NalUnitType::SliceDataA);
    nals.iter().any(|nal| picture(nal.nal_unit_type)) && nals.iter().all(|nal| nal.nal_ref_idc == 0)
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

    fn feed(&mut self, nals: &[NalUnit], at: u32) -> Result<Vec<(Frame, u32)>, Problem> {
        if nals.is_empty() {
            return Err(Problem::Bad(format!("frame {at} is damaged")));
        }
        let mut frames = Vec::new();
        for nal in nals {
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
