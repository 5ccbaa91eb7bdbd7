//! Reading a request's JSON objects with errors that name the path.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Characters of a value that an error message shows.
const SHOWN: usize = 60;

/// One JSON object and the path that leads to it, for messages.
pub struct Object<'a> {
    field: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub fn new(value: &'a Value, field: &str, expected: &str) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| mismatch(field, value, expected))?;
        Ok(Object { field: field.to_string(), map })
    }

    pub fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.field)
    }

    /// The value of `key`; JSON `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The error for the value of `key`, or for its absence.
    pub fn mismatch(&self, key: &str, expected: impl Display) -> Error {
        match self.map.get(key) {
            Some(value) => mismatch(&self.path(key), value, expected),
            None => request(self.path(key), "nothing", expected),
        }
    }

    /// Fails at the first key that is not in `known`.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        self.only_of(&[known])
    }

    /// Fails at the first key that is in none of `known`.
    pub fn only_of(&self, known: &[&[&str]]) -> Result<()> {
        let known: Vec<&str> = known.concat();
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(request(
                self.field.clone(),
                format!("the unknown key {}", shortened(key)),
                format!("only {}", known.join(", ")),
            )),
        }
    }

    pub fn object(&self, key: &str) -> Result<Object<'a>> {
        match self.get(key) {
            Some(value) => Object::new(value, &self.path(key), "an object"),
            None => Err(self.mismatch(key, "an object")),
        }
    }

    pub fn required_str(&self, key: &str, expected: &str) -> Result<&'a str> {
        self.optional_str(key, expected)?.ok_or_else(|| self.mismatch(key, expected))
    }

    pub fn optional_str(&self, key: &str, expected: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.mismatch(key, expected))).transpose()
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.mismatch(key, "true or false"))).transpose()
    }

    /// A whole number above zero. Some clients write all numbers with a point, as 151200.0.
    pub fn positive(&self, key: &str) -> Result<Option<u64>> {
        // Up to here every integer is a float.
        let exact = |n: &f64| n.fract() == 0.0 && (0.0..=(1u64 << 53) as f64).contains(n);
        let whole = |v: &Value| v.as_u64().or_else(|| v.as_f64().filter(exact).map(|n| n as u64));
        self.get(key)
            .map(|v| whole(v).filter(|n| *n > 0).ok_or_else(|| self.mismatch(key, "a positive integer")))
            .transpose()
    }

    pub fn positive_u32(&self, key: &str) -> Result<Option<u32>> {
        self.positive(key)?
            .map(|n| u32::try_from(n).map_err(|_| self.mismatch(key, format!("at most {}", u32::MAX))))
            .transpose()
    }

    /// A finite number, zero or above.
    pub fn seconds(&self, key: &str) -> Result<Option<f64>> {
        let number = |v: &Value| v.as_f64().filter(|n| n.is_finite() && *n >= 0.0);
        self.get(key)
            .map(|v| number(v).ok_or_else(|| self.mismatch(key, "a number that is not negative")))
            .transpose()
    }
}

/// The error for a value that is not what `field` may be.
pub fn mismatch(field: &str, found: &Value, expected: impl Display) -> Error {
    let found = match found {
        Value::Array(items) if items.is_empty() => "an empty array".to_string(),
        Value::Object(map) if map.is_empty() => "an empty object".to_string(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(map) => {
            let keys: Vec<&str> = map.keys().map(String::as_str).collect();
            format!("an object with {}", shortened(&keys.join(", ")))
        }
        Value::String(text) => format!("{:?}", shortened(text)),
        other => other.to_string(),
    };
    request(field.to_string(), found, expected)
}

fn request(field: String, found: impl Display, expected: impl Display) -> Error {
    Error::Request { field, found: found.to_string(), expected: expected.to_string() }
}

/// The text, or its beginning if it is long.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_string(),
    }
}
