//! Messages: what a user says, and with which pictures.
//!
//! The JSON form is the one of the model card and of qwen-vl-utils; `image_url` and `video_url` parts are
//! also accepted as OpenAI's clients write them. [`messages_from_json`] checks every key.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::parse::Object;
use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
}

/// What is said: a text, or texts and pictures in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Texts and pictures; nothing is put between them.
    Parts(Vec<Part>),
}

/// One part of a content.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A text.
    Text {
        /// The text, used as it is.
        text: String,
    },
    /// An image.
    Image(ImagePart),
    /// A video.
    Video(VideoPart),
}

/// An image and the size it shall have.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePart {
    /// The image.
    pub image: ImageInput,
    /// The size it shall have.
    pub size: SizeOptions,
    /// Whether to turn it as its EXIF data say; the processor's choice if `None`.
    pub exif_orientation: Option<bool>,
    /// OpenAI's hint about cost. It has no effect but a notice in the answer.
    pub detail: Option<String>,
}

/// A video, which of its frames to take and the size they shall have.
///
/// The options are those of qwen-vl-utils 0.0.14; `None` is its default.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoPart {
    /// The video.
    pub video: VideoInput,
    /// The size of each frame.
    pub size: SizeOptions,
    /// Upper bound on the pixels of all frames together.
    pub total_pixels: Option<u64>,
    /// Frames to take from each second of the video; not together with `nframes`.
    pub fps: Option<f64>,
    /// Number of frames to take; not together with `fps`.
    pub nframes: Option<u32>,
    /// Least number of frames that `fps` may lead to.
    pub min_frames: Option<u32>,
    /// Greatest number of frames that `fps` may lead to.
    pub max_frames: Option<u32>,
    /// Where to begin, in seconds.
    pub video_start: Option<f64>,
    /// Where to end, in seconds.
    pub video_end: Option<f64>,
}

/// The size a picture shall have. `None` leaves it to the checkpoint's processor configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeOptions {
    /// Least area in pixels; smaller pictures are enlarged.
    pub min_pixels: Option<u64>,
    /// Greatest area in pixels; larger pictures are reduced.
    pub max_pixels: Option<u64>,
    /// `(height, width)` in pixels, to be rounded to what the model takes, instead of the
    /// picture's own size. `resized_height` and `resized_width` in JSON.
    pub resized: Option<(u32, u32)>,
}

/// Where an image is.
#[derive(Clone, PartialEq)]
pub enum ImageInput {
    /// A path, a `file://`, `http://` or `https://` URL, or a `data:` URL with base64.
    Location(String),
    /// A picture file in memory: its bytes, as JPEG or PNG.
    Encoded(Arc<[u8]>),
    /// Pixels in memory.
    Pixels {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// `[height, width, 3]`: red, green, blue.
        rgb: Arc<[u8]>,
    },
}

/// Where a video is.
#[derive(Clone, Debug, PartialEq)]
pub enum VideoInput {
    /// A video file: a path, a `file://`, `http://` or `https://` URL, or a `data:video` URL with base64.
    File(String),
    /// Its frames in order.
    Frames(Vec<ImageInput>),
}

/// Reads a JSON array of messages. `field` is what errors call the array, as `messages`.
///
/// # Errors
/// [`Error::Request`] with the path of the first thing that is missing, unknown, of a wrong type or
/// out of range, or an empty array.
pub fn messages_from_json(value: &Value, field: &str) -> Result<Vec<Message>> {
    let found = value.as_array().filter(|messages| !messages.is_empty());
    let messages =
        found.ok_or_else(|| super::parse::mismatch(field, value, "a non-empty array of messages"))?;
    messages
        .iter()
        .enumerate()
        .map(|(i, message)| Message::from_json(message, &format!("{field}[{i}]")))
        .collect()
}

impl Message {
    /// A message with any role and content.
    pub fn new(role: Role, content: impl Into<Content>) -> Self {
        Message { role, content: content.into() }
    }

    /// A message of the system: a text or parts.
    pub fn system(content: impl Into<Content>) -> Self {
        Self::new(Role::System, content)
    }

    /// A message of the user: a text or parts.
    pub fn user(content: impl Into<Content>) -> Self {
        Self::new(Role::User, content)
    }

    /// A message of the model: a text or parts.
    pub fn assistant(content: impl Into<Content>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// Reads one message. `field` is what errors call it, as `messages[0]`.
    ///
    /// # Errors
    /// As [`messages_from_json`].
    pub fn from_json(value: &Value, field: &str) -> Result<Self> {
        let mut expected = "an object with role and content".to_string();
        if value.is_array() {
            expected += "; several conversations are for `qwenvl batch`, one on each line";
        }
        let object = Object::new(value, field, &expected)?;
        object.only(&["role", "content"])?;
        let role = match object.required_str("role", "system, user or assistant")? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(object.mismatch("role", "system, user or assistant")),
        };
        let content = match object.get("content") {
            Some(Value::String(text)) => Content::Text(text.clone()),
            Some(Value::Array(parts)) => Content::Parts(
                parts
                    .iter()
                    .enumerate()
                    .map(|(i, part)| Part::from_json(part, &format!("{}[{i}]", object.path("content"))))
                    .collect::<Result<_>>()?,
            ),
            _ => return Err(object.mismatch("content", "a string or an array of parts")),
        };
        Ok(Message { role, content })
    }

    /// What the chat template sees: role, texts, and bare `{"type": "image"}` or
    /// `{"type": "video"}` for pictures.
    pub fn to_template_json(&self) -> Value {
        let content = match &self.content {
            Content::Text(text) => json!(text),
            Content::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text { text } => json!({"type": "text", "text": text}),
                    Part::Image(_) => json!({"type": "image"}),
                    Part::Video(_) => json!({"type": "video"}),
                })
                .collect(),
        };
        json!({"role": self.role.name(), "content": content})
    }

    /// The parts of the content; none if it is a text.
    pub fn parts(&self) -> &[Part] {
        match &self.content {
            Content::Text(_) => &[],
            Content::Parts(parts) => parts,
        }
    }

    /// The images, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImagePart> {
        self.parts().iter().filter_map(|part| match part {
            Part::Image(image) => Some(image),
            _ => None,
        })
    }

    /// The videos, in order.
    pub fn videos(&self) -> impl Iterator<Item = &VideoPart> {
        self.parts().iter().filter_map(|part| match part {
            Part::Video(video) => Some(video),
            _ => None,
        })
    }
}

impl Role {
    /// The role as JSON and the template spell it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Content::Text(text.to_string())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Content::Text(text)
    }
}

impl From<Vec<Part>> for Content {
    fn from(parts: Vec<Part>) -> Self {
        Content::Parts(parts)
    }
}

impl<const N: usize> From<[Part; N]> for Content {
    fn from(parts: [Part; N]) -> Self {
        Content::Parts(parts.into())
    }
}

impl Part {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Part::Text { text: text.into() }
    }

    /// An image with no wish about its size: a path, a URL or an [`ImageInput`].
    pub fn image(image: impl Into<ImageInput>) -> Self {
        Part::Image(ImagePart::new(image))
    }

    /// A video file with default options.
    pub fn video(path: impl Into<String>) -> Self {
        Part::Video(VideoPart::new(VideoInput::File(path.into())))
    }

    /// A video given as its frames, in order, with default options.
    pub fn video_frames<I: Into<ImageInput>>(frames: impl IntoIterator<Item = I>) -> Self {
        Part::Video(VideoPart::new(VideoInput::Frames(frames.into_iter().map(Into::into).collect())))
    }

    /// Reads one part. `field` is what errors call it, as `messages[0].content[1]`.
    fn from_json(value: &Value, field: &str) -> Result<Self> {
        const KINDS: &str = "text, image, image_url, video or video_url";
        const KEYS: [&str; 5] = ["text", "image", "image_url", "video", "video_url"];
        let object = Object::new(value, field, "an object with text, image, image_url, video or video_url")?;
        // The type may be left out; the key that holds the matter then names it.
        let kind = match object.optional_str("type", KINDS)? {
            Some(kind) => kind,
            None => match KEYS.iter().find(|key| object.get(key).is_some()) {
                Some(kind) => kind,
                None => return Err(object.mismatch("type", KINDS)),
            },
        };
        match kind {
            "text" => {
                object.only(&["type", "text"])?;
                Ok(Part::text(object.required_str("text", "a string")?))
            }
            "image" | "image_url" => ImagePart::from_json(&object).map(Part::Image),
            "video" | "video_url" => VideoPart::from_json(&object).map(Part::Video),
            _ => Err(object.mismatch("type", KINDS)),
        }
    }
}

const SIZE_KEYS: [&str; 4] = ["min_pixels", "max_pixels", "resized_height", "resized_width"];

impl SizeOptions {
    fn from_json(object: &Object) -> Result<Self> {
        let (min_pixels, max_pixels) = (object.positive("min_pixels")?, object.positive("max_pixels")?);
        if let (Some(min), Some(max)) = (min_pixels, max_pixels)
            && min > max
        {
            return Err(object.mismatch("min_pixels", format!("at most max_pixels, {max}")));
        }
        let resized = match (object.positive_u32("resized_height")?, object.positive_u32("resized_width")?) {
            (Some(height), Some(width)) => Some((height, width)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(object.mismatch("resized_width", "a number, as resized_height is given"));
            }
            (None, Some(_)) => {
                return Err(object.mismatch("resized_height", "a number, as resized_width is given"));
            }
        };
        Ok(SizeOptions { min_pixels, max_pixels, resized })
    }
}

impl ImagePart {
    /// An image with no wish about its size.
    pub fn new(image: impl Into<ImageInput>) -> Self {
        ImagePart { image: image.into(), size: SizeOptions::default(), exif_orientation: None, detail: None }
    }

    fn from_json(object: &Object) -> Result<Self> {
        const EXPECTED: &str = "a path, URL or data URL";
        let (location, detail) = match (object.get("image"), object.get("image_url")) {
            (Some(_), Some(_)) => return Err(object.mismatch("image_url", "nothing, as image is given")),
            (_, None) => (object.required_str("image", EXPECTED)?, None),
            (None, Some(_)) => url(object, "image_url", EXPECTED)?,
        };
        object.only_of(&[&["type", "image", "image_url", "exif_orientation"], &SIZE_KEYS])?;
        let exif_orientation = object.flag("exif_orientation")?;
        let size = SizeOptions::from_json(object)?;
        let detail = detail.map(str::to_string);
        Ok(ImagePart { image: location.into(), size, exif_orientation, detail })
    }
}

/// What OpenAI's clients write: a URL, or an object with `url` and perhaps `detail`.
fn url<'a>(object: &Object<'a>, key: &str, expected: &str) -> Result<(&'a str, Option<&'a str>)> {
    if !matches!(object.get(key), Some(Value::Object(_))) {
        return Ok((object.required_str(key, "a URL, or an object with url")?, None));
    }
    const DETAILS: &str = "auto, low or high";
    let url = object.object(key)?;
    url.only(&["url", "detail"])?;
    let detail = url.optional_str("detail", DETAILS)?;
    if !matches!(detail, None | Some("auto" | "low" | "high")) {
        return Err(url.mismatch("detail", DETAILS));
    }
    Ok((url.required_str("url", expected)?, detail))
}

impl VideoPart {
    /// A video with default options.
    pub fn new(video: VideoInput) -> Self {
        VideoPart {
            video,
            size: SizeOptions::default(),
            total_pixels: None,
            fps: None,
            nframes: None,
            min_frames: None,
            max_frames: None,
            video_start: None,
            video_end: None,
        }
    }

    fn from_json(object: &Object) -> Result<Self> {
        const EXPECTED: &str = "the path of a video or a non-empty array of frames";
        const KEYS: [&str; 7] =
            ["total_pixels", "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"];
        object.only_of(&[&["type", "video", "video_url"], &KEYS, &SIZE_KEYS])?;
        let video = match object.get("video") {
            Some(_) if object.get("video_url").is_some() => {
                return Err(object.mismatch("video_url", "nothing, as video is given"));
            }
            None if object.get("video_url").is_some() => {
                VideoInput::File(url(object, "video_url", "a path, URL or data URL")?.0.to_string())
            }
            Some(Value::String(path)) => VideoInput::File(path.clone()),
            Some(Value::Array(frames)) if !frames.is_empty() => {
                let frame = |(i, frame): (usize, &Value)| match frame {
                    Value::String(location) => Ok(ImageInput::Location(location.clone())),
                    other => {
                        let field = format!("{}[{i}]", object.path("video"));
                        Err(super::parse::mismatch(&field, other, "a path, URL or data URL of a frame"))
                    }
                };
                VideoInput::Frames(frames.iter().enumerate().map(frame).collect::<Result<_>>()?)
            }
            _ => return Err(object.mismatch("video", EXPECTED)),
        };
        let part = VideoPart {
            video,
            size: SizeOptions::from_json(object)?,
            total_pixels: object.positive("total_pixels")?,
            fps: object.seconds("fps")?,
            nframes: object.positive_u32("nframes")?,
            min_frames: object.positive_u32("min_frames")?,
            max_frames: object.positive_u32("max_frames")?,
            video_start: object.seconds("video_start")?,
            video_end: object.seconds("video_end")?,
        };
        if part.fps == Some(0.0) {
            return Err(object.mismatch("fps", "a number above zero"));
        }
        if part.fps.is_some() && part.nframes.is_some() {
            return Err(object.mismatch("nframes", "nothing, as fps is given"));
        }
        if let (Some(min), Some(max)) = (part.min_frames, part.max_frames)
            && min > max
        {
            return Err(object.mismatch("min_frames", format!("at most max_frames, {max}")));
        }
        if let (Some(start), Some(end)) = (part.video_start, part.video_end)
            && start >= end
        {
            return Err(object.mismatch("video_start", format!("less than video_end, {end}")));
        }
        Ok(part)
    }
}

impl ImageInput {
    /// A picture file in memory, of any format that is read from disk.
    pub fn encoded(bytes: impl Into<Arc<[u8]>>) -> Self {
        ImageInput::Encoded(bytes.into())
    }

    /// An image in memory; `rgb` is `[height, width, 3]`: red, green, blue.
    ///
    /// # Errors
    /// [`Error::Request`] if a side is zero or `rgb` has another length.
    pub fn pixels(width: u32, height: u32, rgb: impl Into<Arc<[u8]>>) -> Result<Self> {
        let rgb = rgb.into();
        // Three times the square of a u32 does not fit in 64 bits.
        let expected = u128::from(width) * u128::from(height) * 3;
        if expected == 0 || rgb.len() as u128 != expected {
            return Err(Error::Request {
                field: "image".into(),
                found: format!("{} bytes for {width}x{height} pixels", rgb.len()),
                expected: format!("positive sides and {expected} bytes, three per pixel"),
            });
        }
        Ok(ImageInput::Pixels { width, height, rgb })
    }
}

impl From<&str> for ImageInput {
    fn from(location: &str) -> Self {
        ImageInput::Location(location.to_string())
    }
}

impl From<String> for ImageInput {
    fn from(location: String) -> Self {
        ImageInput::Location(location)
    }
}

/// Shows no pixels, and no more of a location than tells which it is: `data:` URLs are long.
impl fmt::Debug for ImageInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageInput::Location(location) => write!(f, "Location({})", super::parse::shortened(location)),
            ImageInput::Encoded(bytes) => write!(f, "Encoded({} bytes)", bytes.len()),
            ImageInput::Pixels { width, height, .. } => write!(f, "Pixels({width}x{height})"),
        }
    }
}
