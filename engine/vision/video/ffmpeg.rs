//! Any other video, through the `ffmpeg` and `ffprobe` programs.
//!
//! Frames come through a pipe as PPM pictures, only the sampled ones. The programs read the one file and nothing
//! else: formats that name other files, as playlists do, are not read, nor is anything but files. They are killed
//! if nothing comes for a while.

use std::ffi::OsString;
#[cfg(unix)]
use std::fs::File;
#[cfg(unix)]
use std::io::Seek;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{MAX_FRAME_AREA, Rgb8, error};
use crate::error::{Error, Result};

/// How long a program may give nothing before it is killed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most frames of a video.
const MAX_FRAMES: usize = 1 << 22;
/// What is kept of a program's complaints, in bytes.
const COMPLAINT_BYTES: usize = 600;
/// Longest expression that ffmpeg is given, in bytes: Linux takes arguments of up to 128 KiB.
const MAX_CHOICE_BYTES: usize = 100_000;
/// Longest line of output that is looked at, in bytes.
const MAX_LINE_BYTES: u64 = 4096;

/// What the programs may read: containers and raw streams that hold all of a film in themselves. Playlists, manifests,
/// edit lists and patterns of file names (`hls`, `dash`, `concat`, `imf`, `image2`, `sdp`, ...) name other files.
const FORMATS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,rm,ivf,gif,apng,h264,hevc,vvc,\
                       av1,obu,m4v,h261,h263,vc1,mjpeg,dv,yuv4mpegpipe";

/// What a program reads.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// A file by its name.
    Path(&'a Path),
    /// One that may have no name: the program gets it as its standard input.
    #[cfg(unix)]
    Open(&'a File),
}

/// The two programs.
pub struct Tools {
    ffmpeg: PathBuf,
    ffprobe: PathBuf,
}

/// What `ffprobe` says of a video.
pub struct Probe {
    /// Frames per second, on average.
    pub fps: f64,
    /// When each frame is shown, in seconds, ascending.
    pub times: Vec<f64>,
}

impl Tools {
    /// Looks for the programs in the directories of `PATH`.
    pub fn find() -> Option<Tools> {
        let find = |program: &str| {
            let path = std::env::var_os("PATH")?;
            let name = format!("{program}{}", std::env::consts::EXE_SUFFIX);
            std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|p| p.is_file())
        };
        Some(Tools { ffmpeg: find("ffmpeg")?, ffprobe: find("ffprobe")? })
    }

    /// Counts the frames of the first video stream and says when each is shown. Reads the whole file,
    /// but decodes nothing.
    ///
    /// # Errors
    /// [`Error::Video`] if there is no video in it, or the program fails.
    pub fn probe(&self, file: Input, name: &str) -> Result<Probe> {
        let mut command = Command::new(&self.ffprobe);
        command.args(["-v", "error", "-protocol_whitelist", "file", "-format_whitelist", FORMATS]);
        command.args(["-select_streams", "V:0"]);
        command.args(["-show_entries", "stream=avg_frame_rate,r_frame_rate:packet=pts_time,dts_time,flags"]);
        command.args(["-of", "compact=p=1:nk=0"]);
        file.give(&mut command)?;
        let running = Running::start(command, &self.ffprobe, name, |out, sender| {
            let mut out = BufReader::new(out);
            loop {
                let mut line = String::new();
                match (&mut out).take(MAX_LINE_BYTES).read_line(&mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if sender.send(line).is_err() => return,
                    Ok(_) => {}
                }
            }
        })?;
        let (mut times, mut rate, mut stream) = (Vec::new(), None, false);
        while let Some(line) = running.next()? {
            let field =
                |key: &str| line.trim_end().split('|').find_map(|f| f.strip_prefix(key)?.strip_prefix('='));
            if line.starts_with("stream|") {
                stream = true;
                rate = ["avg_frame_rate", "r_frame_rate"].into_iter().find_map(|key| ratio(field(key)?));
            } else if line.starts_with("packet|") && !field("flags").is_some_and(|f| f.contains('D')) {
                let time = field("pts_time").or(field("dts_time")).and_then(|t| t.parse::<f64>().ok());
                times.push(time.filter(|t| t.is_finite()).unwrap_or(f64::NAN));
                if times.len() > MAX_FRAMES {
                    return Err(error(name, format!("it has more than {MAX_FRAMES} frames"), "cut it"));
                }
            }
        }
        running.finish()?;
        if !stream || times.is_empty() {
            let problem = if stream { "it has no frames" } else { "it has no video" };
            return Err(error(name, problem, "give a file with a video in it"));
        }
        let span = times.iter().copied().fold(0.0, f64::max);
        let fps = rate.unwrap_or(if span > 0.0 { times.len() as f64 / span } else { 1.0 });
        // Raw streams have no times.
        if times.iter().any(|t| t.is_nan()) {
            times.iter_mut().enumerate().for_each(|(i, t)| *t = i as f64 / fps);
        }
        times.sort_by(f64::total_cmp);
        Ok(Probe { fps, times })
    }

    /// Decodes the frames with these numbers, ascending, and gives each to `keep`. A video that ends
    /// early gives fewer.
    ///
    /// # Errors
    /// [`Error::Video`] if the program fails, that of `keep` otherwise.
    pub fn decode(
        &self,
        file: Input,
        name: &str,
        wanted: &[u64],
        keep: &mut dyn FnMut(u64, Rgb8) -> Result<()>,
    ) -> Result<()> {
        // The spelling of the option that stops ffmpeg from repeating frames changed in 5.1.
        match self.decode_with("-fps_mode", file, name, wanted, keep) {
            Err(Error::Video { problem, .. }) if problem.contains("fps_mode") => {
                self.decode_with("-vsync", file, name, wanted, keep)
            }
            result => result,
        }
    }

    fn decode_with(
        &self,
        passthrough: &str,
        file: Input,
        name: &str,
        wanted: &[u64],
        keep: &mut dyn FnMut(u64, Rgb8) -> Result<()>,
    ) -> Result<()> {
        let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else { return Ok(()) };
        let (mut choice, mut chosen) = (choice(&runs(wanted)), wanted.to_vec());
        if choice.len() > MAX_CHOICE_BYTES {
            // Frames that nobody wants come along.
            (choice, chosen) = (self::choice(&[(first, last)]), (first..=last).collect());
        }
        let mut command = Command::new(&self.ffmpeg);
        command.args(["-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", "file"]);
        command.args(["-format_whitelist", FORMATS, "-i"]);
        file.give(&mut command)?;
        command.args(["-map", "0:V:0", "-vf"]);
        command.arg(format!("select='{choice}'")).args([passthrough, "passthrough"]);
        command.args(["-frames:v", &chosen.len().to_string()]);
        command.args(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]);
        let running = Running::start(command, &self.ffmpeg, name, |out, sender| {
            let mut out = BufReader::new(out);
            loop {
                let frame = read_ppm(&mut out);
                let last = !matches!(frame, Ok(Some(_)));
                if sender.send(frame).is_err() || last {
                    return;
                }
            }
        })?;
        for number in chosen {
            match running.next()? {
                Some(Ok(Some(_))) if wanted.binary_search(&number).is_err() => {}
                Some(Ok(Some(frame))) => keep(number, frame)?,
                Some(Err(problem)) => return Err(error(name, problem, "convert it to H.264 in MP4")),
                Some(Ok(None)) | None => break,
            }
        }
        running.finish()
    }
}

/// Ascending numbers as runs of consecutive ones: the first and last of each.
fn runs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.chunk_by(|a, b| a + 1 == *b).map(|run| (run[0], run[run.len() - 1])).collect()
}

/// An expression of ffmpeg that is not 0 for the frames of these runs. A search tree: ffmpeg refuses an expression
/// of some hundred terms, and counts its depth.
fn choice(runs: &[(u64, u64)]) -> String {
    match runs {
        [] => "0".into(),
        [(first, last)] if first == last => format!("eq(n,{first})"),
        [(first, last)] => format!("between(n,{first},{last})"),
        _ => {
            let (below, above) = runs.split_at(runs.len() / 2);
            format!("if(lt(n,{}),{},{})", above[0].0, choice(below), choice(above))
        }
    }
}

impl Input<'_> {
    /// The file as an argument that can be neither an option nor a URL, and as standard input if it is that.
    fn give(self, command: &mut Command) -> Result<()> {
        let mut argument = OsString::from("file:");
        match self {
            Input::Path(path) => {
                let fail = |source| Error::Io { action: "find", path: path.to_path_buf(), source };
                argument.push(std::path::absolute(path).map_err(fail)?);
                command.stdin(Stdio::null());
            }
            #[cfg(unix)]
            Input::Open(file) => {
                let fail = |source| Error::Io { action: "read", path: std::env::temp_dir(), source };
                let mut file = file.try_clone().map_err(fail)?;
                // Where the program shares the place in the file, it begins at the start.
                file.rewind().map_err(fail)?;
                argument.push("/dev/fd/0");
                command.stdin(file);
            }
        }
        command.arg(argument);
        Ok(())
    }
}

/// `30000/1001`; `None` for `0/0`.
fn ratio(text: &str) -> Option<f64> {
    let (n, d) = text.split_once('/')?;
    let rate = n.parse::<f64>().ok()? / d.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

/// The next picture of a stream of PPM files; `None` at its end.
fn read_ppm(out: &mut impl BufRead) -> Result<Option<Rgb8>, String> {
    let mut header = [0u32; 3];
    let mut magic = [0; 2];
    if out.read_exact(&mut magic).is_err() {
        return Ok(None);
    }
    if &magic != b"P6" {
        return Err("ffmpeg gave something else than a picture".into());
    }
    let mut byte = [0];
    let mut next =
        |out: &mut dyn BufRead| out.read_exact(&mut byte).map(|()| byte[0]).map_err(|e| e.to_string());
    next(out)?;
    for number in &mut header {
        while let digit @ b'0'..=b'9' = next(out)? {
            *number = number.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
        }
    }
    let [width, height, _] = header;
    let area = u64::from(width) * u64::from(height);
    if area == 0 || area > MAX_FRAME_AREA {
        return Err(format!("its frames have {width}x{height} pixels, more than {MAX_FRAME_AREA}"));
    }
    let mut data = vec![0; area as usize * 3];
    out.read_exact(&mut data).map_err(|e| format!("ffmpeg ended inside a frame: {e}"))?;
    Ok(Some(Rgb8::trusted(width, height, data)))
}

/// A program that runs, and what it has given. Killed when dropped.
struct Running<T> {
    child: std::cell::RefCell<Child>,
    output: Receiver<T>,
    complaints: Option<JoinHandle<String>>,
    program: String,
    name: String,
}

impl<T: Send + 'static> Running<T> {
    /// Starts a program whose standard input is set; `read` sends what it makes of the output, and is stopped if nobody
    /// takes it.
    fn start(
        mut command: Command,
        program: &Path,
        name: &str,
        read: impl FnOnce(ChildStdout, SyncSender<T>) + Send + 'static,
    ) -> Result<Running<T>> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let fail = |source| Error::Io { action: "start", path: program.to_path_buf(), source };
        let mut child = command.spawn().map_err(fail)?;
        let (sender, output) = sync_channel(1);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(fail(std::io::Error::other("no pipes")));
        };
        std::thread::spawn(move || read(stdout, sender));
        let complaints = Some(std::thread::spawn(move || collect(stderr)));
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Running { child: child.into(), output, complaints, program, name: name.into() })
    }

    /// The next piece of output; `None` at its end.
    fn next(&self) -> Result<Option<T>> {
        match self.output.recv_timeout(PATIENCE) {
            Ok(piece) => Ok(Some(piece)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let problem = format!("{} gave nothing for {} s", self.program, PATIENCE.as_secs());
                Err(error(&self.name, problem, "convert it to H.264 in MP4"))
            }
        }
    }

    /// Waits for the program and reports its failure.
    fn finish(mut self) -> Result<()> {
        let status = self.child.get_mut().wait();
        let complaint = self.complaints.take().and_then(|c| c.join().ok()).unwrap_or_default();
        if status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Ok(());
        }
        let complaint = complaint.trim().replace('\n', "; ");
        let complaint = if complaint.is_empty() { "it does not say why".into() } else { complaint };
        Err(error(
            &self.name,
            format!("{} cannot read it: {complaint}", self.program),
            "the file is damaged, or this ffmpeg lacks its codec",
        ))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        let _ = self.child.get_mut().kill();
        let _ = self.child.get_mut().wait();
    }
}

/// The end of what a program complains about.
fn collect(mut stderr: ChildStderr) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 512]);
    while let Ok(n @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        let extra = kept.len().saturating_sub(COMPLAINT_BYTES);
        kept.drain(..extra);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ffmpeg makes of an expression of [`choice`] for frame `n`, and how deep its parentheses go.
    fn evaluate(text: &str, n: u64) -> (bool, usize) {
        let (function, rest) = text.split_once('(').expect("a function");
        let (mut depth, mut parts, mut start) = (0, Vec::new(), 0);
        let inside = rest.strip_suffix(')').expect("its end");
        for (i, c) in inside.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(&inside[start..i]);
                    start = i + 1;
                }
                _ => {}
            }
        }
        parts.push(&inside[start..]);
        let number = |i: usize| parts[i].parse::<u64>().expect("a number");
        match (function, parts.len()) {
            ("eq", 2) => (n == number(1), 1),
            ("lt", 2) => (n < number(1), 1),
            ("between", 3) => ((number(1)..=number(2)).contains(&n), 1),
            ("if", 3) => {
                let (value, depth) = evaluate(parts[if evaluate(parts[0], n).0 { 1 } else { 2 }], n);
                (value, depth + 1)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_choice_is_of_the_wanted_frames_and_not_deep() {
        let spread: Vec<u64> = (0..768).map(|i| i * 18_000 / 768).collect();
        for wanted in [vec![5], vec![0, 1, 2], vec![3, 9], vec![0, 4, 5, 6, 8, 11, 12], spread] {
            let text = choice(&runs(&wanted));
            for n in 0..=wanted[wanted.len() - 1] + 2 {
                let (value, depth) = evaluate(&text, n);
                assert_eq!(value, wanted.contains(&n), "frame {n}");
                assert!(depth <= 12, "{depth}");
            }
        }
    }
}
