//! Where a picture comes from, and fetching its bytes within limits.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::decode::Rgb8;
use crate::error::{Error, Result};

/// Characters of a name that messages show.
const SHOWN_CHARS: usize = 120;

/// Standard base64, with or without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where a picture comes from: a file, a server, or memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    name: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Url(String),
    Memory(Vec<u8>),
    Pixels(Rgb8),
}

/// A file of this machine.
pub(super) enum Local {
    /// The user's.
    File(PathBuf),
    /// One that goes away with this value.
    Temporary(tempfile::NamedTempFile),
}

impl Local {
    pub(super) fn path(&self) -> &Path {
        match self {
            Local::File(path) => path,
            Local::Temporary(file) => file.path(),
        }
    }
}

/// What a fetch may take before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// Largest file, response body or inline picture, in bytes (64 MiB).
    pub max_bytes: u64,
    /// Wall-clock time for one whole download, redirects and body included (30 s).
    pub timeout: Duration,
    /// Redirects that are followed (5).
    pub max_redirects: u32,
}

impl Default for FetchLimits {
    fn default() -> Self {
        FetchLimits { max_bytes: 64 << 20, timeout: Duration::from_secs(30), max_redirects: 5 }
    }
}

impl FetchLimits {
    /// For video files: 4 GiB in 10 minutes. They are not held in memory.
    pub fn video() -> Self {
        FetchLimits { max_bytes: 4 << 30, timeout: Duration::from_secs(600), ..FetchLimits::default() }
    }
}

impl ImageSource {
    /// Reads the notations of the model card: a path, `file://...`, `http(s)://...` and
    /// `data:image...;base64,...`. Relative paths start at `base_dir`. `%41`-like escapes are
    /// decoded in `file://` URLs only.
    ///
    /// # Errors
    /// [`Error::Image`] for an empty string, another scheme, or inline data that is not base64.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self> {
        Self::parse_media(text, base_dir, "image")
    }

    /// As [`parse`](Self::parse), for a video: inline data are `data:video...;base64,...`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_video(text: &str, base_dir: &Path) -> Result<Self> {
        Self::parse_media(text, base_dir, "video")
    }

    fn parse_media(text: &str, base_dir: &Path, media: &str) -> Result<Self> {
        let name = shorten(text);
        let fail = |problem: &str, help: &str| Err(image_error(&name, problem, help));
        if text.trim().is_empty() {
            return fail("the source is empty", "give a path, a URL or a data URI");
        }
        let place = match scheme(text).as_deref() {
            None => Place::File(base_dir.join(text)),
            Some("http" | "https") => Place::Url(text.to_string()),
            Some("file") => {
                // `file://host/path` names a path on `host`; the one host that makes sense is this one.
                let path = &text["file://".len()..];
                let path = path.strip_prefix("localhost").filter(|p| p.starts_with('/')).unwrap_or(path);
                match percent_decode(path) {
                    Some(path) if !path.is_empty() => Place::File(base_dir.join(path)),
                    Some(_) => return fail("the URL has no path", "write file:///directory/picture.jpg"),
                    None => return fail("the decoded path is not UTF-8", "give the plain path instead"),
                }
            }
            Some("data") => match inline(text, media) {
                Ok(bytes) => Place::Memory(bytes),
                Err(problem) => {
                    let help = format!("write data:{media}/...;base64, and then the file in base64");
                    return fail(&problem, &help);
                }
            },
            Some(other) => {
                let problem = format!("scheme {other} is not supported");
                return fail(&problem, "use a path, file://, http://, https:// or data:image/...;base64,");
            }
        };
        Ok(ImageSource { name, place })
    }

    /// A file of this machine.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        ImageSource { name: shorten(&path.to_string_lossy()), place: Place::File(path) }
    }

    /// An encoded picture in memory; `name` is for messages.
    pub fn memory(name: &str, bytes: Vec<u8>) -> Self {
        ImageSource { name: shorten(name), place: Place::Memory(bytes) }
    }

    /// A decoded picture in memory, `[height, width, 3]` bytes.
    ///
    /// # Errors
    /// [`Error::Image`] if there are not that many bytes, or a side is zero.
    pub fn pixels(width: u32, height: u32, rgb: &[u8]) -> Result<Self> {
        let pixels = Rgb8::new(width, height, rgb.to_vec())?;
        Ok(ImageSource { name: format!("in memory, {width}x{height}"), place: Place::Pixels(pixels) })
    }

    /// The pixels, if the source is a decoded picture.
    pub(super) fn decoded(&self) -> Option<&Rgb8> {
        match &self.place {
            Place::Pixels(rgb) => Some(rgb),
            _ => None,
        }
    }

    /// What messages call it: the path or URL, shortened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The encoded picture.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened or read; [`Error::Image`] if it is not a regular
    /// file, if a server does not answer with a picture in time, or if there is more than
    /// `limits` allow.
    pub fn fetch(&self, limits: &FetchLimits) -> Result<Vec<u8>> {
        match &self.place {
            Place::File(path) => self.read_file(path, limits),
            Place::Url(url) => {
                let mut bytes = Vec::new();
                self.download(url, limits, &mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })?;
                Ok(bytes)
            }
            Place::Memory(bytes) if bytes.len() as u64 > limits.max_bytes => Err(self.too_large(limits)),
            Place::Memory(bytes) => Ok(bytes.clone()),
            Place::Pixels(_) => Err(image_error(&self.name, "it has no encoded form", "use its pixels")),
        }
    }

    fn read_file(&self, path: &Path, limits: &FetchLimits) -> Result<Vec<u8>> {
        let fail = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
        // Asked before opening: opening a pipe waits for a writer.
        let metadata = std::fs::metadata(path).map_err(fail)?;
        if !metadata.is_file() {
            let problem = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(image_error(&self.name, problem, "give the path of a picture file"));
        }
        if metadata.len() > limits.max_bytes {
            return Err(self.too_large(limits));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        let file = File::open(path).map_err(fail)?;
        file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > limits.max_bytes {
            return Err(self.too_large(limits));
        }
        Ok(bytes)
    }

    /// The source as a file of this machine: what is not one is written to a temporary one.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch); [`Error::Io`] if the temporary file cannot be written.
    pub(super) fn local(&self, limits: &FetchLimits) -> Result<Local> {
        let fail = |source| Error::Io { action: "write", path: std::env::temp_dir(), source };
        let temporary = || tempfile::NamedTempFile::with_prefix("qwenvl-").map_err(fail);
        match &self.place {
            Place::File(path) => Ok(Local::File(path.clone())),
            Place::Url(url) => {
                let mut file = temporary()?;
                self.download(url, limits, &mut |part| file.write_all(part).map_err(fail))?;
                Ok(Local::Temporary(file))
            }
            Place::Memory(bytes) => {
                let mut file = temporary()?;
                file.write_all(bytes).map_err(fail)?;
                Ok(Local::Temporary(file))
            }
            Place::Pixels(_) => Err(image_error(&self.name, "it is no file", "use its pixels")),
        }
    }

    /// Gives the body to `sink`, piece by piece.
    fn download(
        &self,
        url: &str,
        limits: &FetchLimits,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(limits.timeout))
            .max_redirects(limits.max_redirects)
            .user_agent(concat!("qwenvl/", env!("CARGO_PKG_VERSION")))
            .accept("image/*, video/*, */*;q=0.5")
            .build()
            .into();
        let response = agent.get(url).call().map_err(|e| self.download_error(e, limits))?;
        let too_long = |n: Option<u64>| n.is_some_and(|n| n > limits.max_bytes);
        if too_long(response.body().content_length()) {
            return Err(self.too_large(limits));
        }
        let mut reader = response.into_body().into_reader();
        let (mut length, mut buffer) = (0, [0; 16 << 10]);
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.download_error(ureq::Error::from(e), limits)),
            };
            length += n as u64;
            if too_long(Some(length)) {
                return Err(self.too_large(limits));
            }
            sink(&buffer[..n])?;
            if start.elapsed() > limits.timeout {
                return Err(self.too_slow(limits));
            }
        }
    }

    fn download_error(&self, error: ureq::Error, limits: &FetchLimits) -> Error {
        let fail = |problem: String, help: &str| image_error(&self.name, problem, help);
        match error {
            ureq::Error::Timeout(_) => self.too_slow(limits),
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::TimedOut => self.too_slow(limits),
            ureq::Error::StatusCode(code) => fail(
                format!("the server answered with status {code}"),
                "open the URL in a browser to check it",
            ),
            ureq::Error::TooManyRedirects => fail(
                format!("the server redirects more than {} times", limits.max_redirects),
                "give the URL of the file itself",
            ),
            ureq::Error::HostNotFound => {
                fail("the host is unknown".into(), "check the spelling and the network, or give a local file")
            }
            other => fail(
                format!("download failed: {other}"),
                "check the URL and the network, or give a local file",
            ),
        }
    }

    fn too_slow(&self, limits: &FetchLimits) -> Error {
        let problem = format!("the download did not finish in {:.1} s", limits.timeout.as_secs_f64());
        image_error(&self.name, problem, "download the picture first and give its path")
    }

    fn too_large(&self, limits: &FetchLimits) -> Error {
        let problem = format!("it has more than {} bytes, the limit for one file", limits.max_bytes);
        image_error(&self.name, problem, "give a smaller file")
    }
}

pub(super) fn image_error(name: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
    Error::Image { name: name.to_string(), problem: problem.into(), help: help.into() }
}

/// The scheme in lower case: what stands before `://`, or `data`.
fn scheme(text: &str) -> Option<String> {
    if text.get(..5).is_some_and(|s| s.eq_ignore_ascii_case("data:")) {
        return Some("data".into());
    }
    let (scheme, _) = text.split_once("://")?;
    let mut chars = scheme.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic());
    (first && chars.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)))
        .then(|| scheme.to_ascii_lowercase())
}

/// Decodes `%41`-like escapes; a `%` that starts none stands for itself. `None` if not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let escape = match tail {
            [hi, lo, ..] if *first == b'%' => hex(*hi).zip(hex(*lo)),
            _ => None,
        };
        match escape {
            Some((hi, lo)) => (out.push(hi << 4 | lo), rest = &tail[2..]),
            None => (out.push(*first), rest = tail),
        };
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// The bytes of a `data:image...;base64,...` URI, or of another `media`; white space between the digits is allowed.
fn inline(text: &str, media: &str) -> Result<Vec<u8>, String> {
    let (header, digits) = text.split_once(',').ok_or("the data URI has no comma")?;
    let header = header.to_ascii_lowercase();
    if !header.starts_with(&format!("data:{media}")) {
        let article = if media == "image" { "an" } else { "a" };
        return Err(format!("the data URI is not {article} {media} but {}", shorten(&header)));
    }
    if !header.ends_with(";base64") {
        return Err("the data URI is not base64".into());
    }
    let digits: Vec<u8> = digits.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(digits).map_err(|e| format!("the data URI is not valid base64: {e}"))
}

/// The start of `text`: to the comma of a data URI, else [`SHOWN_CHARS`] characters.
fn shorten(text: &str) -> String {
    let shown = match scheme(text).as_deref() {
        Some("data") => text.find(',').map_or(text, |comma| &text[..=comma]),
        _ => text,
    };
    let mut short: String = shown.chars().take(SHOWN_CHARS).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
