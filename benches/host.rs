//! Pictures and videos on the host: from the bytes of a file to the patches that the vision tower reads.
//!
//! `cargo bench --bench host [-- FILTER]`. Each stage of a JPEG on one core, a picture and several pictures
//! on all of them, and, if `ffmpeg` is installed, a 1080p film of ten minutes (`-- film`), with the peak
//! of resident memory while its frames were sampled.

use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use criterion::{Criterion, Throughput};
use image::{DynamicImage, ImageFormat, RgbImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use qwenvl::graph::config::VisionConfig;
use qwenvl::vision::decode::decode;
use qwenvl::vision::resize::resize;
use qwenvl::vision::{
    FetchLimits, ImageOptions, ImageSource, Processor, VideoOptions, Visual, VisualKind, VisualRequest,
};

fn config() -> VisionConfig {
    VisionConfig {
        depth: 32,
        embed_dim: 1280,
        num_heads: 16,
        mlp_ratio: 4,
        patch_size: 14,
        spatial_merge_size: 2,
        temporal_patch_size: 2,
        in_channels: 3,
        hidden_size: 1536,
    }
}

/// Smooth shapes with some grain, as photographs have.
fn photograph(width: u32, height: u32) -> RgbImage {
    let mut state = 1u32;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 29) as f32;
        let (x, y) = (x as f32 / width as f32 * 9.0, y as f32 / height as f32 * 7.0);
        let wave = |a: f32, b: f32| ((x * a + (y * b).sin() * 2.0).sin() * 110.0 + 120.0 + grain) as u8;
        image::Rgb([wave(1.0, 1.3), wave(1.7, 0.6), wave(0.4, 2.1)])
    })
}

/// At quality 90; cameras and the web halve the resolution of colour (4:2:0).
fn jpeg(picture: &RgbImage, sampling: SamplingFactor) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, 90);
    encoder.set_sampling_factor(sampling);
    let (width, height) = (picture.width() as u16, picture.height() as u16);
    encoder.encode(picture.as_raw(), width, height, ColorType::Rgb).expect("a JPEG");
    out
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut out = Vec::new();
    let picture = DynamicImage::ImageRgb8(picture.clone());
    picture.write_to(&mut Cursor::new(&mut out), ImageFormat::Png).expect("a PNG");
    out
}

fn request(bytes: &[u8]) -> VisualRequest {
    VisualRequest {
        kind: VisualKind::Image,
        sources: vec![ImageSource::memory("picture", bytes.to_vec())],
        options: ImageOptions::default(),
        file: None,
    }
}

fn patches(visual: &Visual, processor: &Processor, out: &mut Vec<f32>) {
    let config = config();
    out.resize(visual.grid.patches_per_slice() * config.patch_dim(), 0.0);
    visual.write_slice(0, &processor.normalize, &config, out);
}

/// Time on the processor, which a busy machine disturbs less: of the work and of giving back what it made.
fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = ThreadTime::now();
    drop(black_box(work()));
    start.elapsed()
}

fn pictures(c: &mut Criterion) {
    let processor = Processor::from_json(None, &config()).expect("the published configuration");
    for (name, width, height) in [("1 Mpx", 1153, 867), ("12 Mpx", 4000, 3000)] {
        let mut group = c.benchmark_group(name);
        group.sample_size(20).throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        let picture = photograph(width, height);
        let (full, png) = (jpeg(&picture, SamplingFactor::R_4_4_4), png(&picture));
        let jpeg = jpeg(&picture, SamplingFactor::R_4_2_0);
        // `work` gives the time that counts.
        let mut one_core = |name: &str, work: &mut dyn FnMut() -> Duration| {
            group.bench_function(format!("{name}, one core"), |b| {
                b.iter_custom(|iterations| (0..iterations).map(|_| work()).sum());
            });
        };
        one_core("decode JPEG 4:2:0", &mut || timed(|| decode(black_box(&jpeg), "")));
        one_core("decode JPEG 4:4:4", &mut || timed(|| decode(black_box(&full), "")));
        one_core("decode PNG", &mut || timed(|| decode(black_box(&png), "")));
        let decoded = decode(&jpeg, "").unwrap();
        let (h, w) = processor.target_size(width, height, &ImageOptions::default()).unwrap();
        one_core("resize", &mut || {
            let picture = decode(&jpeg, "").unwrap();
            timed(|| resize(picture, w, h))
        });
        let visual = processor.image(decoded, &ImageOptions::default()).unwrap();
        let mut out = Vec::new();
        one_core("normalise and patchify", &mut || {
            timed(|| patches(black_box(&visual), &processor, &mut out))
        });
        for n in [1, 8] {
            let requests: Vec<VisualRequest> = (0..n).map(|_| request(&jpeg)).collect();
            group.bench_function(format!("load {n} JPEG, all cores"), |b| {
                b.iter(|| {
                    processor.load(black_box(&requests), &FetchLimits::default(), &|_| Ok(())).unwrap()
                });
            });
        }
        group.finish();
    }
}

/// The most memory that was resident so far, where the system says.
fn peak_resident_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024 / 1_000_000)
}

/// Makes a film and samples it once: minutes, so not a matter for repetition.
fn film() {
    let dir = tempfile::tempdir().expect("a directory");
    let (part, whole) = (dir.path().join("part.mp4"), dir.path().join("whole.mp4"));
    let ffmpeg = |arguments: &[&str], out: &Path| {
        let status = Command::new("ffmpeg").args(["-v", "error"]).args(arguments).arg(out).status();
        status.is_ok_and(|s| s.success())
    };
    let source = ["-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=30:duration=20", "-pix_fmt", "yuv420p"];
    let repeat = ["-stream_loop", "29", "-i", part.to_str().unwrap_or_default(), "-c", "copy"];
    if !ffmpeg(&source, &part) || !ffmpeg(&repeat, &whole) {
        println!("film: needs ffmpeg with an H.264 encoder in PATH");
        return;
    }
    let processor = Processor::from_json(None, &config()).expect("the published configuration");
    // As many pixels as a context of 32768 tokens has room for.
    let options = VideoOptions { total_pixels: Some(24_576 * 784), ..VideoOptions::default() };
    let request = VisualRequest {
        kind: VisualKind::Video,
        sources: vec![ImageSource::file(&whole)],
        options: ImageOptions { min_pixels: Some(3136), ..ImageOptions::default() },
        file: Some(options),
    };
    let start = Instant::now();
    let visuals = processor.load(&[request], &FetchLimits::default(), &|_| Ok(())).expect("the film");
    let seconds = start.elapsed().as_secs_f64();
    let sampling = visuals[0].sampling.as_ref().expect("a film is sampled");
    let kept: usize = visuals[0].frames.iter().map(|f| f.data().len()).sum();
    println!(
        "film: 10 min of 1080p H.264, {} of {} frames by {}, {seconds:.1} s ({:.0} frames/s), {} MB kept, \
         peak resident {} MB",
        sampling.frames.len(),
        sampling.total_frames,
        sampling.decoder,
        sampling.total_frames as f64 / seconds,
        kept / 1_000_000,
        peak_resident_mb().map_or("?".into(), |mb| mb.to_string()),
    );
}

fn main() {
    if std::env::args().any(|a| a == "film") {
        return film();
    }
    let mut c = Criterion::default().configure_from_args();
    pictures(&mut c);
    c.final_summary();
}
