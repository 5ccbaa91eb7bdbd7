//! What can go wrong while a model is described and planned.

/// An error of this crate. Every message says what was found, what was expected and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `config.json` is not JSON.
    #[error("config.json is not valid JSON: {message}")]
    Json {
        /// The parser's message with line and column.
        message: String,
    },
    /// A field of `config.json` is missing, malformed or names something this engine does not do.
    #[error("config.json: {field} is {found}, expected {expected}")]
    Config {
        /// Path of the field, as `vision_config.patch_size`.
        field: String,
        /// The value in the file.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// An image or frame cannot be brought to a size the model accepts.
    #[error("image of {width}x{height} pixels: {reason}")]
    ImageSize {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// Why not, and what to change.
        reason: String,
    },
    /// A plan was asked for with bounds it cannot honour.
    #[error("cannot plan with {option} = {found}: expected {expected}")]
    PlanOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        found: String,
        /// The accepted range.
        expected: String,
    },
    /// A patch grid that no picture can have.
    #[error("grid of {t}x{h}x{w} patches: {reason}")]
    Grid {
        /// Temporal slices.
        t: usize,
        /// Patch rows.
        h: usize,
        /// Patch columns.
        w: usize,
        /// Why not.
        reason: String,
    },
    /// The placeholder tokens of a prompt do not match the pictures that come with it.
    #[error("{kind}s: found {found}, expected {expected}")]
    Placeholders {
        /// `image` or `video`.
        kind: &'static str,
        /// What the prompt holds.
        found: String,
        /// What the pictures ask for.
        expected: String,
    },
    /// A graph was wired inconsistently. This is a defect of the builder, not of the user's input.
    #[error("graph: {op}: {reason}")]
    Graph {
        /// The op being added.
        op: String,
        /// What does not match.
        reason: String,
    },
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
