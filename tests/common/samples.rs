//! The tiny model's samples and what the reference answered.

use qwenvl::Request;
use qwenvl::prompt::messages_from_json;
use serde_json::Value;

use super::{json, path};

pub struct Sample {
    pub id: String,
    pub request: Request,
    /// Its entry in `samples.json`.
    pub value: Value,
}

/// All samples; a video given as a file is given by its decoded frames, which are what the reference
/// answered for.
pub fn samples() -> Vec<Sample> {
    let Value::Array(all) = json("tests/data/samples/samples.json") else { panic!("no array") };
    assert!(all.len() >= 14);
    all.into_iter()
        .map(|value| {
            let mut messages = value["messages"].clone();
            for message in messages.as_array_mut().unwrap() {
                for part in message["content"].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default() {
                    if let Some(frames) = part.as_object_mut().and_then(|p| p.remove("frames")) {
                        part["video"] = frames;
                    }
                }
            }
            let mut request = Request::new(messages_from_json(&messages, "messages").unwrap());
            request.base_dir = path("tests/data/samples");
            Sample { id: value["id"].as_str().unwrap().into(), request, value }
        })
        .collect()
}
