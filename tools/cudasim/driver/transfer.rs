//! Copies and memsets: the many entry points of one operation each.

use super::capture::refuse_unsafe;
use super::copy::{Copy, Extent, Fill, Pitch, Place, host};
use super::entry::{In, api};
use super::error::{Error, Result};
use super::fault::Kind;
use super::op::Op;
use super::state::{Driver, current, driver};
use super::stream::{open, submit};

/// Where an address lies that the program calls a device address: on a device or in pinned memory.
fn device_place(driver: &Driver, addr: u64) -> Result<Place> {
    if let Some(device) = driver.device_of(addr) {
        return Ok(Place::Device(device.clone(), addr));
    }
    driver.pinned_at(addr).map(|_| Place::Host(addr as usize)).ok_or(Error::INVALID_VALUE)
}

/// Where any address lies: unified addressing tells device memory from the rest.
fn any_place(driver: &Driver, addr: usize) -> Result<Place> {
    match driver.device_of(addr as u64) {
        Some(device) => Ok(Place::Device(device.clone(), addr as u64)),
        None if addr == 0 => Err(Error::INVALID_VALUE),
        None => Ok(Place::Host(addr)),
    }
}

/// Whether copies to or from an address wait for nothing: device and pinned memory.
fn pinned(driver: &Driver, place: &Place) -> bool {
    match place {
        Place::Host(addr) => driver.pinned_at(*addr as u64).is_some(),
        _ => true,
    }
}

/// When the call returns.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// When the copy is done, in order with the legacy stream.
    Done,
    /// At once where the memory allows it.
    Stream(usize),
}

fn transfer(mut copy: Copy, wait: Wait) -> Result {
    let handle = match wait {
        Wait::Done => 0,
        Wait::Stream(stream) => stream,
    };
    let (driver, context, stream) = open(handle)?;
    if wait == Wait::Done {
        refuse_unsafe(driver)?;
    }
    copy.check()?;
    if stream.capture().is_none() {
        driver.inject(Kind::Copy, &context.device)?;
        // Pageable memory: the source is taken now, and the target is there when the call returns.
        if let Place::Host(addr) = copy.from
            && driver.config.late
            && !pinned(driver, &copy.from)
            && copy.extent.height == 1
            && copy.extent.depth == 1
        {
            copy.from = Place::Staged(host(addr, copy.extent.width).into());
        }
    }
    let returns_done = wait == Wait::Done || (!pinned(driver, &copy.to) && stream.capture().is_none());
    submit(driver, &context, &stream, Op::Copy(copy))?;
    if returns_done {
        stream.finish(driver);
        context.check_work()?;
    }
    Ok(())
}

fn to_device(to: u64, from: usize, bytes: usize, wait: Wait) -> Result {
    current()?;
    let driver = driver()?;
    if bytes == 0 {
        return Ok(());
    }
    transfer(Copy::linear(device_place(driver, to)?, any_place(driver, from)?, bytes as u64), wait)
}

fn to_host(to: usize, from: u64, bytes: usize, wait: Wait) -> Result {
    current()?;
    let driver = driver()?;
    if bytes == 0 {
        return Ok(());
    }
    transfer(Copy::linear(any_place(driver, to)?, device_place(driver, from)?, bytes as u64), wait)
}

fn unified(to: u64, from: u64, bytes: usize, wait: Wait) -> Result {
    current()?;
    let driver = driver()?;
    if bytes == 0 {
        return Ok(());
    }
    transfer(
        Copy::linear(any_place(driver, to as usize)?, any_place(driver, from as usize)?, bytes as u64),
        wait,
    )
}

fn peer(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, wait: Wait) -> Result {
    let driver = driver()?;
    for context in [to_context, from_context] {
        driver.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?;
    }
    unified(to, from, bytes, wait)
}

/// `CUDA_MEMCPY2D`, and the part of `CUDA_MEMCPY3D` that matters, by field.
#[derive(Clone, Copy)]
struct Box3 {
    x: usize,
    y: usize,
    z: usize,
    kind: u32,
    host: usize,
    device: u64,
    pitch: usize,
    height: usize,
}

// CUmemorytype.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;

impl Box3 {
    fn place(&self, driver: &Driver, width: usize, rows: usize) -> Result<(Place, Pitch)> {
        let base = match self.kind {
            HOST => self.host as u64,
            ARRAY => return Err(Error::NOT_SUPPORTED),
            _ => self.device,
        };
        let row = if self.pitch == 0 { width } else { self.pitch } as u64;
        let slice = row.checked_mul(if self.height == 0 { rows } else { self.height } as u64);
        let pitch = Pitch { row, slice: slice.ok_or(Error::INVALID_VALUE)? };
        let skipped = (self.z as u64)
            .checked_mul(pitch.slice)
            .and_then(|z| z.checked_add((self.y as u64).checked_mul(row)?))
            .and_then(|yz| yz.checked_add(self.x as u64))
            .ok_or(Error::INVALID_VALUE)?;
        let addr = base.checked_add(skipped).ok_or(Error::INVALID_VALUE)?;
        let place =
            if self.kind == DEVICE { device_place(driver, addr)? } else { any_place(driver, addr as usize)? };
        Ok((place, pitch))
    }
}

fn boxed(from: &Box3, to: &Box3, size: [usize; 3], wait: Wait) -> Result {
    current()?;
    let driver = driver()?;
    let [width, height, depth] = size;
    if size.contains(&0) {
        return Ok(());
    }
    let (source, from_pitch) = from.place(driver, width, height)?;
    let (target, to_pitch) = to.place(driver, width, height)?;
    let extent = Extent { width: width as u64, height: height as u64, depth: depth as u64 };
    transfer(Copy { to: target, to_pitch, from: source, from_pitch, extent }, wait)
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy2D {
    from_x: usize,
    from_y: usize,
    from_kind: u32,
    from_host: usize,
    from_device: u64,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: u32,
    to_host: usize,
    to_device: u64,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy3D {
    from: [usize; 4],
    from_kind: u32,
    from_host: usize,
    from_device: u64,
    from_array: usize,
    reserved0: usize,
    from_pitch: usize,
    from_height: usize,
    to: [usize; 4],
    to_kind: u32,
    to_host: usize,
    to_device: u64,
    to_array: usize,
    reserved1: usize,
    to_pitch: usize,
    to_height: usize,
    size: [usize; 3],
}

fn copy_2d(copy: In<Memcpy2D>, wait: Wait) -> Result {
    let c = copy.get()?;
    let from = Box3 {
        x: c.from_x,
        y: c.from_y,
        z: 0,
        kind: c.from_kind,
        host: c.from_host,
        device: c.from_device,
        pitch: c.from_pitch,
        height: 0,
    };
    let to = Box3 {
        x: c.to_x,
        y: c.to_y,
        z: 0,
        kind: c.to_kind,
        host: c.to_host,
        device: c.to_device,
        pitch: c.to_pitch,
        height: 0,
    };
    boxed(&from, &to, [c.width, c.height, 1], wait)
}

/// The copy that a `CUDA_MEMCPY3D` describes, for graph nodes and calls alike.
pub(super) fn described(copy: In<Memcpy3D>) -> Result<Option<Copy>> {
    let driver = driver()?;
    let (from, to, size) = boxes(copy.get()?);
    if size.contains(&0) {
        return Ok(None);
    }
    let (source, from_pitch) = from.place(driver, size[0], size[1])?;
    let (target, to_pitch) = to.place(driver, size[0], size[1])?;
    let extent = Extent { width: size[0] as u64, height: size[1] as u64, depth: size[2] as u64 };
    let copy = Copy { to: target, to_pitch, from: source, from_pitch, extent };
    copy.check()?;
    Ok(Some(copy))
}

fn boxes(c: Memcpy3D) -> (Box3, Box3, [usize; 3]) {
    let from = Box3 {
        x: c.from[0],
        y: c.from[1],
        z: c.from[2],
        kind: c.from_kind,
        host: c.from_host,
        device: c.from_device,
        pitch: c.from_pitch,
        height: c.from_height,
    };
    let to = Box3 {
        x: c.to[0],
        y: c.to[1],
        z: c.to[2],
        kind: c.to_kind,
        host: c.to_host,
        device: c.to_device,
        pitch: c.to_pitch,
        height: c.to_height,
    };
    (from, to, c.size)
}

fn copy_3d(copy: In<Memcpy3D>, wait: Wait) -> Result {
    let (from, to, size) = boxes(copy.get()?);
    boxed(&from, &to, size, wait)
}

/// A fill of device or pinned memory, checked.
pub(super) fn filling(
    addr: u64,
    pitch: usize,
    value: u32,
    element: u32,
    width: usize,
    height: usize,
) -> Result<Fill> {
    let driver = driver()?;
    let context = current()?;
    let device = match driver.device_of(addr) {
        Some(device) => device.clone(),
        // Pinned memory is in the table of every device.
        None => context.device.clone(),
    };
    let fill = Fill {
        device,
        addr,
        pitch: pitch as u64,
        value,
        element_bytes: element,
        width: width as u64,
        height: height as u64,
    };
    fill.check()?;
    Ok(fill)
}

fn fill(addr: u64, pitch: usize, value: u32, element: u32, size: [usize; 2], wait: Wait) -> Result {
    let handle = match wait {
        Wait::Done => 0,
        Wait::Stream(stream) => stream,
    };
    let (driver, context, stream) = open(handle)?;
    if wait == Wait::Done {
        refuse_unsafe(driver)?;
    }
    if size.contains(&0) {
        return Ok(());
    }
    let fill = filling(addr, pitch, value, element, size[0], size[1])?;
    if stream.capture().is_none() {
        driver.inject(Kind::Copy, &context.device)?;
    }
    submit(driver, &context, &stream, Op::Fill(fill))
}

api! {
    fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) { to_device(to, from, bytes, Wait::Done) }
    fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) { to_host(to, from, bytes, Wait::Done) }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) { unified(to, from, bytes, Wait::Done) }
    fn cuMemcpy(to: u64, from: u64, bytes: usize) { unified(to, from, bytes, Wait::Done) }
    fn cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize) {
        peer(to, to_context, from, from_context, bytes, Wait::Done)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, stream: usize) {
        to_device(to, from, bytes, Wait::Stream(stream))
    }
    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, stream: usize) {
        to_host(to, from, bytes, Wait::Stream(stream))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        unified(to, from, bytes, Wait::Stream(stream))
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize) {
        unified(to, from, bytes, Wait::Stream(stream))
    }
    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, stream: usize) {
        peer(to, to_context, from, from_context, bytes, Wait::Stream(stream))
    }
    fn cuMemcpy2D_v2(copy: In<Memcpy2D>) { copy_2d(copy, Wait::Done) }
    fn cuMemcpy2DUnaligned_v2(copy: In<Memcpy2D>) { copy_2d(copy, Wait::Done) }
    fn cuMemcpy2DAsync_v2(copy: In<Memcpy2D>, stream: usize) { copy_2d(copy, Wait::Stream(stream)) }
    fn cuMemcpy3D_v2(copy: In<Memcpy3D>) { copy_3d(copy, Wait::Done) }
    fn cuMemcpy3DAsync_v2(copy: In<Memcpy3D>, stream: usize) { copy_3d(copy, Wait::Stream(stream)) }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) { fill(to, 0, value.into(), 1, [count, 1], Wait::Done) }
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) { fill(to, 0, value.into(), 2, [count, 1], Wait::Done) }
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) { fill(to, 0, value, 4, [count, 1], Wait::Done) }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) {
        fill(to, 0, value.into(), 1, [count, 1], Wait::Stream(stream))
    }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) {
        fill(to, 0, value.into(), 2, [count, 1], Wait::Stream(stream))
    }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) {
        fill(to, 0, value, 4, [count, 1], Wait::Stream(stream))
    }
    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill(to, pitch, value.into(), 1, [width, height], Wait::Done)
    }
    fn cuMemsetD2D16_v2(to: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill(to, pitch, value.into(), 2, [width, height], Wait::Done)
    }
    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill(to, pitch, value, 4, [width, height], Wait::Done)
    }
    fn cuMemsetD2D8Async(to: u64, pitch: usize, value: u8, width: usize, height: usize, stream: usize) {
        fill(to, pitch, value.into(), 1, [width, height], Wait::Stream(stream))
    }
    fn cuMemsetD2D16Async(to: u64, pitch: usize, value: u16, width: usize, height: usize, stream: usize) {
        fill(to, pitch, value.into(), 2, [width, height], Wait::Stream(stream))
    }
    fn cuMemsetD2D32Async(to: u64, pitch: usize, value: u32, width: usize, height: usize, stream: usize) {
        fill(to, pitch, value, 4, [width, height], Wait::Stream(stream))
    }
}
