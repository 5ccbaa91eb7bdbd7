//! Kernel arguments on the command line: `i32:7`, `f32[1000]=random`, `f16[64]=file:x.bin>y.bin`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use half::{bf16, f16};

/// One argument.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// A value, as the bytes that the kernel sees.
    Value(Vec<u8>),
    /// A buffer in device memory, passed by its address.
    Buffer(Buffer),
}

/// A buffer: its elements before the launch and what happens to them after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// Type of an element.
    pub kind: Kind,
    /// Elements.
    pub count: usize,
    /// What they are before.
    pub initial: Initial,
    /// Where they go after.
    pub output: Option<Output>,
}

/// Elements before a launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Initial {
    /// Nobody wrote them.
    Unwritten,
    /// All the same.
    All(String),
    /// 0, 1, 2 ...
    Index,
    /// Random: floats from -1 to 1, all values of integers.
    Random,
    /// Bytes of a file.
    File(PathBuf),
}

/// Elements after a launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Printed.
    Print,
    /// Written as bytes.
    File(PathBuf),
}

/// Types of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Signed integers of so many bytes.
    Signed(usize),
    /// Unsigned integers of so many bytes.
    Unsigned(usize),
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Kind> {
        Ok(match text {
            "i8" | "i16" | "i32" | "i64" => Kind::Signed(text[1..].parse::<usize>()? / 8),
            "u8" | "u16" | "u32" | "u64" => Kind::Unsigned(text[1..].parse::<usize>()? / 8),
            "f16" => Kind::F16,
            "bf16" => Kind::Bf16,
            "f32" => Kind::F32,
            "f64" => Kind::F64,
            _ => bail!("{text:?} is no type; known are i8 to i64, u8 to u64, f16, bf16, f32 and f64"),
        })
    }
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::Signed(bytes) | Kind::Unsigned(bytes) => bytes,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }

    /// The bytes of a value.
    pub fn encode(self, text: &str) -> Result<Vec<u8>> {
        let wide = match self {
            Kind::Signed(bytes) => {
                let value: i64 = text.parse()?;
                let shift = 64 - 8 * bytes;
                if value << shift >> shift != value {
                    bail!("{value} does not fit {bytes} bytes");
                }
                value as u64
            }
            Kind::Unsigned(bytes) => {
                let value = match text.strip_prefix("0x") {
                    Some(digits) => u64::from_str_radix(digits, 16)?,
                    None => text.parse()?,
                };
                if bytes < 8 && value >> (8 * bytes) != 0 {
                    bail!("{value} does not fit {bytes} bytes");
                }
                value
            }
            _ => self.float(text.parse()?),
        };
        Ok(wide.to_le_bytes()[..self.bytes()].to_vec())
    }

    fn float(self, value: f64) -> u64 {
        match self {
            Kind::F16 => f16::from_f64(value).to_bits().into(),
            Kind::Bf16 => bf16::from_f64(value).to_bits().into(),
            Kind::F32 => (value as f32).to_bits().into(),
            _ => value.to_bits(),
        }
    }

    /// An element as text.
    pub fn decode(self, bytes: &[u8]) -> String {
        let wide = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match self {
            Kind::Unsigned(_) => wide.to_string(),
            Kind::Signed(bytes) => {
                let shift = 64 - 8 * bytes as u32;
                ((wide << shift) as i64 >> shift).to_string()
            }
            Kind::F16 => f16::from_bits(wide as u16).to_string(),
            Kind::Bf16 => bf16::from_bits(wide as u16).to_string(),
            Kind::F32 => f32::from_bits(wide as u32).to_string(),
            Kind::F64 => f64::from_bits(wide).to_string(),
        }
    }
}

impl FromStr for Argument {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Argument> {
        let buffer = text.find('[').filter(|open| text.find(':').is_none_or(|colon| *open < colon));
        match buffer {
            Some(open) => Buffer::parse(&text[..open], &text[open + 1..]).map(Argument::Buffer),
            None => {
                let (kind, value) = text
                    .split_once(':')
                    .ok_or_else(|| anyhow!("{text:?} is neither TYPE:VALUE nor TYPE[COUNT]=...>..."))?;
                Ok(Argument::Value(kind.parse::<Kind>()?.encode(value).with_context(|| format!("{text:?}"))?))
            }
        }
    }
}

impl Buffer {
    fn parse(kind: &str, rest: &str) -> Result<Buffer> {
        let (count, rest) = rest.split_once(']').ok_or_else(|| anyhow!("a ] is missing"))?;
        let (initial, output) = match rest.split_once('>') {
            Some((initial, "-")) => (initial, Some(Output::Print)),
            Some((_, "")) => bail!("a file name or - must follow >"),
            Some((initial, path)) => (initial, Some(Output::File(path.into()))),
            None => (rest, None),
        };
        let kind: Kind = kind.parse()?;
        let initial = match initial.strip_prefix('=') {
            None if initial.is_empty() => Initial::Unwritten,
            None => bail!("{initial:?} should begin with ="),
            Some("random") => Initial::Random,
            Some("index") => Initial::Index,
            Some("zero") => Initial::All("0".to_owned()),
            Some(value) => match value.strip_prefix("file:") {
                Some(path) => Initial::File(path.into()),
                None => {
                    kind.encode(value).with_context(|| {
                        format!("{value:?} is not random, index, zero, file:PATH or a value")
                    })?;
                    Initial::All(value.to_owned())
                }
            },
        };
        let count = count.parse().ok().filter(|count| *count > 0 && *count < 1 << 40);
        Ok(Buffer { kind, count: count.ok_or_else(|| anyhow!("a count is missing"))?, initial, output })
    }

    /// The bytes before the launch; `None` when nobody writes them.
    pub fn bytes(&self, seed: &mut u64) -> Result<Option<Vec<u8>>> {
        let total = self.count * self.kind.bytes();
        Ok(Some(match &self.initial {
            Initial::Unwritten => return Ok(None),
            Initial::All(value) => self.kind.encode(value)?.repeat(self.count),
            Initial::Index => {
                (0..self.count).flat_map(|index| self.element(index as u64, index as f64)).collect()
            }
            Initial::Random => (0..self.count)
                .flat_map(|_| {
                    let random = next(seed);
                    self.element(random, (random >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
                })
                .collect(),
            Initial::File(path) => {
                let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
                if bytes.len() != total {
                    bail!("{} has {} bytes, the buffer {total}", path.display(), bytes.len());
                }
                bytes
            }
        }))
    }

    fn element(&self, integer: u64, float: f64) -> Vec<u8> {
        let wide = match self.kind {
            Kind::Signed(_) | Kind::Unsigned(_) => integer,
            kind => kind.float(float),
        };
        wide.to_le_bytes()[..self.kind.bytes()].to_vec()
    }
}

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(text: &str) -> Buffer {
        match text.parse().unwrap() {
            Argument::Buffer(buffer) => buffer,
            Argument::Value(_) => panic!("{text} is a value"),
        }
    }

    #[test]
    fn values_are_the_bytes_of_their_type() {
        for (text, bytes) in [
            ("i32:-2", &[0xfe, 0xff, 0xff, 0xff][..]),
            ("u8:0xff", &[0xff]),
            ("f16:1", &[0x00, 0x3c]),
            ("bf16:1", &[0x80, 0x3f]),
            ("f64:0.5", &[0, 0, 0, 0, 0, 0, 0xe0, 0x3f]),
        ] {
            assert_eq!(text.parse::<Argument>().unwrap(), Argument::Value(bytes.to_vec()), "{text}");
        }
    }

    #[test]
    fn buffers_say_what_goes_in_and_out() {
        let whole = buffer("f32[10]=random>out.bin");
        assert_eq!((whole.count, whole.kind), (10, Kind::F32));
        assert_eq!((whole.initial, whole.output), (Initial::Random, Some(Output::File("out.bin".into()))));
        assert_eq!(buffer("u16[3]").initial, Initial::Unwritten);
        assert_eq!(
            buffer("i32[3]=index>-").bytes(&mut 0).unwrap().unwrap(),
            [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]
        );
        assert_eq!(buffer("u16[2]=7").bytes(&mut 0).unwrap().unwrap(), [7, 0, 7, 0]);
        let random = buffer("f32[100]=random").bytes(&mut 1).unwrap().unwrap();
        assert!(random.chunks(4).all(|x| f32::from_le_bytes(x.try_into().unwrap()).abs() <= 1.0));
    }

    #[test]
    fn what_is_no_argument_is_refused() {
        for text in [
            "", "7", "i32", "i32:", "i32:x", "u8:256", "i8:-129", "q4:1", "f32[", "f32[]", "f32[0]",
            "f32[4]x", "f32[4]=x", "f32[4]>",
        ] {
            assert!(text.parse::<Argument>().is_err(), "{text:?}");
        }
    }
}
