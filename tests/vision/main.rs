//! From sources to patches, checked against Pillow, qwen-vl-utils and transformers.

#[path = "../common/mod.rs"]
mod common;

mod decoding;
mod pixels;
mod sizes;
mod sources;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::crc32;
use proptest::prelude::*;
use qwenvl::Error;
use qwenvl::graph::config::VisionConfig;
use qwenvl::graph::{Grid, PixelLimits, smart_resize};
use qwenvl::vision::decode::decode;
use qwenvl::vision::resize::resize;
use qwenvl::vision::{
    FetchLimits, FileAccess, ImageOptions, ImageSource, MAX_PIXELS, Normalize, Processor, Rgb8, UrlAccess,
    Visual, VisualKind, VisualRequest,
};
use serde_json::Value;

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

fn processor() -> Processor {
    Processor::from_json(None, &config()).unwrap()
}

fn golden(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut root: Value = serde_json::from_str(&text).unwrap();
    let Value::Array(cases) = root["cases"].take() else { panic!("{file} has no cases") };
    cases
}

fn int(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn base64(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn filled(width: u32, height: u32, value: u8) -> Rgb8 {
    Rgb8::new(width, height, vec![value; (width * height * 3) as usize]).unwrap()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

fn problem(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result.unwrap_err() {
        e @ (Error::Image { .. } | Error::Request { .. } | Error::Io { .. } | Error::Graph(_)) => {
            e.to_string()
        }
        e => panic!("{e:?}"),
    }
}

#[track_caller]
fn assert_says(result: Result<impl std::fmt::Debug, Error>, parts: &[&str]) {
    let message = problem(result);
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

// Sizes
