//! Lines from files and standard input, which may hold anything.

use std::io::{self, BufRead, Read};

/// Longest accepted line, in bytes: pictures may be inline.
pub const MAX_LINE_BYTES: u64 = 256 << 20;

/// The whole of an input, as text.
///
/// # Errors
/// If it cannot be read, is longer than [`MAX_LINE_BYTES`] or not UTF-8.
pub fn text(reader: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    reader.take(MAX_LINE_BYTES + 1).read_to_end(&mut bytes)?;
    let fail = |problem: String| Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    if bytes.len() as u64 > MAX_LINE_BYTES {
        return fail(format!("it has more than {MAX_LINE_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes);
    text.or_else(|e| fail(format!("it is not UTF-8 from byte {} on", e.utf8_error().valid_up_to())))
}

/// Reads lines. One that is not text does not end the others.
pub struct Lines {
    reader: Box<dyn BufRead>,
    max_bytes: u64,
}

impl Lines {
    /// The lines of `reader`.
    pub fn new(reader: impl BufRead + 'static) -> Lines {
        Lines { reader: Box::new(reader), max_bytes: MAX_LINE_BYTES }
    }

    /// The next line with its end, or what is wrong with it; `None` at the end of the input.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next(&mut self) -> io::Result<Option<Result<String, String>>> {
        let mut line = Vec::new();
        let n = (&mut self.reader).take(self.max_bytes).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(None);
        }
        if n as u64 == self.max_bytes && !line.ends_with(b"\n") {
            drop(line);
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(format!("the line has more than {} bytes", self.max_bytes))));
        }
        let not_text = |e: std::string::FromUtf8Error| {
            format!("the line is not UTF-8 from byte {} on", e.utf8_error().valid_up_to())
        };
        Ok(Some(String::from_utf8(line).map_err(not_text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_long_or_no_text_are_skipped_alone() {
        let input: &[u8] = b"one\n\xff\n12345678\n1234567\n123456789 and more\n\nend";
        let mut lines = Lines { max_bytes: 8, ..Lines::new(input) };
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(line.unwrap_or_else(|e| e));
        }
        let too_long = "the line has more than 8 bytes";
        assert_eq!(
            found,
            ["one\n", "the line is not UTF-8 from byte 0 on", too_long, "1234567\n", too_long, "\n", "end"]
        );
    }
}
