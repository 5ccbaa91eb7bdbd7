//! Where a picture comes from, and fetching its bytes within limits.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::access::{FetchLimits, FileAccess, Forbidden, UrlAccess, checked_agent, config, is_public};
use super::decode::{self, Rgb8};
use crate::error::{Error, Result};
use crate::prompt::ImageInput;

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
    Memory(Arc<[u8]>),
    Pixels(u32, u32, Arc<[u8]>),
}

/// What a source is fetched as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Media {
    Image,
    Video,
}

impl Media {
    fn word(self) -> &'static str {
        match self {
            Media::Image => "image",
            Media::Video => "video",
        }
    }

    fn error(self, name: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
        match self {
            Media::Image => image_error(name, problem, help),
            Media::Video => super::video::error(name, problem, help),
        }
    }

    /// Most bytes, and most time for them.
    fn bounds(self, limits: &FetchLimits) -> (u64, Duration) {
        match self {
            Media::Image => (limits.max_bytes, limits.timeout),
            Media::Video => (limits.max_video_bytes, limits.video_timeout),
        }
    }
}

/// A file of this machine.
pub(super) enum Local {
    /// The user's.
    File(PathBuf),
    /// One that goes away with this value. Where a program can be given an open file it has no name any more, so that
    /// nothing stays behind however this process ends.
    #[cfg(unix)]
    Temporary(File),
    /// One that goes away with this value.
    #[cfg(not(unix))]
    Temporary(tempfile::NamedTempFile),
}

impl ImageSource {
    /// Reads the notations of the model card: a path, `file://...`, `http(s)://...` and
    /// `data:image...;base64,...`. Relative paths start at `base_dir`. `%41`-like escapes are
    /// decoded in `file://` URLs only.
    ///
    /// # Errors
    /// [`Error::Image`] for an empty string, another scheme, or inline data that is not base64.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self> {
        Self::parse_media(text, base_dir, Media::Image)
    }

    /// As [`parse`](Self::parse), for a video: inline data are `data:video...;base64,...`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), but [`Error::Video`].
    pub fn parse_video(text: &str, base_dir: &Path) -> Result<Self> {
        Self::parse_media(text, base_dir, Media::Video)
    }

    fn parse_media(text: &str, base_dir: &Path, media: Media) -> Result<Self> {
        let name = shorten(text);
        let fail = |problem: &str, help: &str| Err(media.error(&name, problem, help));
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
                    Some(_) => return fail("the URL has no path", "write file:///directory/file"),
                    None => return fail("the decoded path is not UTF-8", "give the plain path instead"),
                }
            }
            Some("data") => match inline(text, media) {
                Ok(bytes) => Place::Memory(bytes.into()),
                Err(problem) => {
                    let help = format!("write data:{}/...;base64, and then the file in base64", media.word());
                    return fail(&problem, &help);
                }
            },
            Some(other) => {
                let problem = format!("scheme {other} is not supported");
                let help =
                    format!("use a path, file://, http://, https:// or data:{}/...;base64,", media.word());
                return fail(&problem, &help);
            }
        };
        Ok(ImageSource { name, place })
    }

    /// The source of an image of a message. Relative paths start at `base_dir`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse) and [`pixels`](Self::pixels).
    pub fn of(image: &ImageInput, base_dir: &Path) -> Result<Self> {
        match image {
            ImageInput::Location(location) => ImageSource::parse(location, base_dir),
            ImageInput::Encoded(bytes) => {
                Ok(ImageSource::memory(&format!("in memory, {} bytes", bytes.len()), Arc::clone(bytes)))
            }
            ImageInput::Pixels { width, height, rgb } => {
                ImageSource::pixels(*width, *height, Arc::clone(rgb))
            }
        }
    }

    /// A file of this machine.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        ImageSource { name: shorten(&path.to_string_lossy()), place: Place::File(path) }
    }

    /// An encoded picture in memory; `name` is for messages.
    pub fn memory(name: &str, bytes: impl Into<Arc<[u8]>>) -> Self {
        ImageSource { name: shorten(name), place: Place::Memory(bytes.into()) }
    }

    /// A decoded picture in memory, `[height, width, 3]` bytes.
    ///
    /// # Errors
    /// [`Error::Image`] if there are not that many bytes, or a side is zero.
    pub fn pixels(width: u32, height: u32, rgb: impl Into<Arc<[u8]>>) -> Result<Self> {
        let rgb = rgb.into();
        decode::check_length(width, height, rgb.len())?;
        Ok(ImageSource {
            name: format!("in memory, {width}x{height}"),
            place: Place::Pixels(width, height, rgb),
        })
    }

    /// A copy of the pixels, if the source is a decoded picture.
    pub(super) fn decoded(&self) -> Option<Rgb8> {
        match &self.place {
            Place::Pixels(width, height, rgb) => Some(Rgb8::trusted(*width, *height, rgb.to_vec())),
            _ => None,
        }
    }

    /// What messages call it: the path or URL, shortened. Of a URL neither user nor query is part of it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `(width, height)` of the picture, of which no more than the header is read; `None` if it is not on this machine.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and [`decode::size`].
    pub(super) fn size(&self, limits: &FetchLimits) -> Result<Option<(u32, u32)>> {
        match &self.place {
            Place::File(path) => {
                let (file, _) = self.open_file(path, limits)?;
                decode::size(BufReader::new(file), &self.name, limits.max_pixels).map(Some)
            }
            Place::Url(_) => Ok(None),
            Place::Memory(bytes) => decode::size(Cursor::new(bytes), &self.name, limits.max_pixels).map(Some),
            Place::Pixels(width, height, _) => Ok(Some((*width, *height))),
        }
    }

    /// The encoded picture.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened or read; [`Error::Image`] if it is not a regular
    /// file, if a server does not answer with a picture in time, if there is more than
    /// `limits` allow, or if they do not allow the place.
    pub fn fetch(&self, limits: &FetchLimits) -> Result<Vec<u8>> {
        Ok(self.bytes(limits)?.into_owned())
    }

    /// As [`fetch`](Self::fetch), without a copy of what is in memory.
    pub(super) fn bytes(&self, limits: &FetchLimits) -> Result<Cow<'_, [u8]>> {
        match &self.place {
            Place::File(path) => self.read_file(path, limits).map(Cow::Owned),
            Place::Url(url) => {
                let mut bytes = Vec::new();
                self.download(url, Media::Image, limits, &mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })?;
                Ok(Cow::Owned(bytes))
            }
            Place::Memory(bytes) if bytes.len() as u64 > limits.max_bytes => {
                Err(self.too_large(Media::Image, limits))
            }
            Place::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Place::Pixels(..) => Err(image_error(&self.name, "it has no encoded form", "use its pixels")),
        }
    }

    /// The file and its length, within the limits.
    fn open_file(&self, path: &Path, limits: &FetchLimits) -> Result<(File, u64)> {
        let path = &self.permitted(path, Media::Image, limits)?;
        let fail = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
        // Asked before opening: opening a pipe waits for a writer.
        let metadata = std::fs::metadata(path).map_err(fail)?;
        if !metadata.is_file() {
            let problem = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(image_error(&self.name, problem, "give the path of a picture file"));
        }
        if metadata.len() > limits.max_bytes {
            return Err(self.too_large(Media::Image, limits));
        }
        Ok((File::open(path).map_err(fail)?, metadata.len()))
    }

    fn read_file(&self, path: &Path, limits: &FetchLimits) -> Result<Vec<u8>> {
        let (file, length) = self.open_file(path, limits)?;
        let mut bytes = Vec::with_capacity(length as usize);
        let read = file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { action: "read", path: path.to_path_buf(), source })?;
        if bytes.len() as u64 > limits.max_bytes {
            return Err(self.too_large(Media::Image, limits));
        }
        Ok(bytes)
    }

    /// The path to open, if files may be named that are there.
    fn permitted(&self, path: &Path, media: Media, limits: &FetchLimits) -> Result<PathBuf> {
        let io = |path: &Path, source| Error::Io { action: "read", path: path.to_path_buf(), source };
        let directory = match &limits.files {
            FileAccess::Any => return Ok(path.to_path_buf()),
            FileAccess::None => {
                let problem = "this service reads no files of its machine";
                return Err(media.error(&self.name, problem, "give a URL or a data URI"));
            }
            FileAccess::Under(directory) => directory,
        };
        let root = directory.canonicalize().map_err(|e| io(directory, e))?;
        match path.canonicalize() {
            Ok(path) if path.starts_with(&root) => Ok(path),
            Err(source)
                if path.starts_with(directory) && path.components().all(|c| c != Component::ParentDir) =>
            {
                Err(io(path, source))
            }
            // Nor is it told whether there is such a file.
            _ => Err(media.error(
                &self.name,
                "it is not in the directory that this service reads files of",
                "give a file in it, a URL or a data URI",
            )),
        }
    }

    /// The video as a file of this machine: what is not one is written to a temporary one.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), but [`Error::Video`]; [`Error::Io`] if the temporary file cannot be written.
    pub(super) fn local(&self, limits: &FetchLimits) -> Result<Local> {
        let fail = |source| Error::Io { action: "write", path: std::env::temp_dir(), source };
        #[cfg(unix)]
        let temporary = || tempfile::tempfile().map_err(fail);
        #[cfg(not(unix))]
        let temporary = || tempfile::NamedTempFile::with_prefix("qwenvl-").map_err(fail);
        match &self.place {
            Place::File(path) => self.permitted(path, Media::Video, limits).map(Local::File),
            Place::Url(url) => {
                let mut file = temporary()?;
                self.download(url, Media::Video, limits, &mut |part| file.write_all(part).map_err(fail))?;
                Ok(Local::Temporary(file))
            }
            Place::Memory(bytes) if bytes.len() as u64 > limits.max_video_bytes => {
                Err(self.too_large(Media::Video, limits))
            }
            Place::Memory(bytes) => {
                let mut file = temporary()?;
                file.write_all(bytes).map_err(fail)?;
                Ok(Local::Temporary(file))
            }
            Place::Pixels(..) => Err(Media::Video.error(&self.name, "it is no file", "use its pixels")),
        }
    }

    /// Gives the body to `sink`, piece by piece.
    fn download(
        &self,
        url: &str,
        media: Media,
        limits: &FetchLimits,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (max_bytes, timeout) = media.bounds(limits);
        let agent = match limits.urls {
            UrlAccess::None => {
                let problem = "this service downloads nothing";
                return Err(media.error(&self.name, problem, "give a data URI"));
            }
            UrlAccess::Public => checked_agent(limits, timeout, |address| is_public(address.ip())),
            UrlAccess::Any => config(limits, timeout).build().into(),
        };
        let start = Instant::now();
        let fail = |e| self.download_error(e, media, limits);
        let response = agent.get(url).call().map_err(fail)?;
        let too_long = |n: Option<u64>| n.is_some_and(|n| n > max_bytes);
        if too_long(response.body().content_length()) {
            return Err(self.too_large(media, limits));
        }
        let mut reader = response.into_body().into_reader();
        let (mut length, mut buffer) = (0, [0; 16 << 10]);
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(fail(ureq::Error::from(e))),
            };
            length += n as u64;
            if too_long(Some(length)) {
                return Err(self.too_large(media, limits));
            }
            sink(&buffer[..n])?;
            if start.elapsed() > timeout {
                return Err(self.too_slow(media, limits));
            }
        }
    }

    fn download_error(&self, error: ureq::Error, media: Media, limits: &FetchLimits) -> Error {
        let fail = |problem: String, help: &str| media.error(&self.name, problem, help);
        match error {
            ureq::Error::Timeout(_) => self.too_slow(media, limits),
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::TimedOut => self.too_slow(media, limits),
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
            ureq::Error::Other(e) if e.is::<Forbidden>() => {
                fail("it leads to an address that is not public".into(), "give a public URL or a data URI")
            }
            // The library repeats the URL, with what is not shown of it.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                fail("the URL is malformed".into(), "check its spelling")
            }
            other => fail(
                format!("download failed: {other}"),
                "check the URL and the network, or give a local file",
            ),
        }
    }

    fn too_slow(&self, media: Media, limits: &FetchLimits) -> Error {
        let seconds = media.bounds(limits).1.as_secs_f64();
        let problem = format!("the download did not finish in {seconds:.1} s");
        media.error(&self.name, problem, "download it first and give its path")
    }

    fn too_large(&self, media: Media, limits: &FetchLimits) -> Error {
        let problem = format!("it has more than {} bytes, the limit for one file", media.bounds(limits).0);
        media.error(&self.name, problem, "give a smaller file")
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
fn inline(text: &str, media: Media) -> Result<Vec<u8>, String> {
    let (header, digits) = text.split_once(',').ok_or("the data URI has no comma")?;
    let header = header.to_ascii_lowercase();
    if !header.starts_with(&format!("data:{}", media.word())) {
        let expected = if media == Media::Image { "an image" } else { "a video" };
        return Err(format!("the data URI is not {expected} but {}", shorten(&header)));
    }
    if !header.ends_with(";base64") {
        return Err("the data URI is not base64".into());
    }
    let digits: Vec<u8> = digits.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(digits).map_err(|e| format!("the data URI is not valid base64: {e}"))
}

/// The start of `text`: to the comma of a data URI, else [`SHOWN_CHARS`] characters; of a URL neither user nor query,
/// which may be secrets.
fn shorten(text: &str) -> String {
    let (shown, whole) = match scheme(text).as_deref() {
        Some("data") => match text.find(',') {
            Some(comma) => (Cow::Borrowed(&text[..=comma]), comma + 1 == text.len()),
            None => (Cow::Borrowed(text), true),
        },
        Some(scheme @ ("http" | "https")) => {
            let rest = &text[scheme.len() + "://".len()..];
            let end = rest.find(['?', '#']).unwrap_or(rest.len());
            let (host, path) = rest[..end].split_at(rest[..end].find('/').unwrap_or(end));
            let host = host.rsplit('@').next().unwrap_or(host);
            (Cow::Owned(format!("{scheme}://{host}{path}")), end == rest.len())
        }
        _ => (Cow::Borrowed(text), true),
    };
    let mut short: String = shown.chars().take(SHOWN_CHARS).collect();
    if short.len() < shown.len() || !whole {
        short.push_str("...");
    }
    short
}
