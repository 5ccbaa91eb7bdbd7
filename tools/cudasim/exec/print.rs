//! `vprintf` and `__assertfail`, the two functions of the device runtime that compilers call.

use super::cx::Cx;
use super::inst::Inst;
use crate::check::FaultKind;

/// Longest string that is read from device memory.
const MAX_STRING: usize = 4096;

/// `len` bytes at a generic address, or `None` when they are nowhere.
fn bytes_at(cx: &mut Cx, lane: usize, address: u64, len: usize) -> Option<Vec<u8>> {
    use crate::decode::dec::{LOCAL_WINDOW, SHARED_WINDOW};
    let offset = address & 0xffff_ffff;
    let end = offset.checked_add(len as u64)?;
    let from = match address & !0xffff_ffff {
        LOCAL_WINDOW => {
            let stride = u64::from(cx.cta.local_bytes);
            if end > stride {
                return None;
            }
            cx.cta.local.as_mut_ptr() as u64 + (cx.warp as u64 * 32 + lane as u64) * stride + offset
        }
        SHARED_WINDOW => {
            if end > u64::from(cx.cta.shared.bytes) {
                return None;
            }
            cx.cta.shared.as_mut_ptr() as u64 + offset
        }
        _ => {
            let a = cx.launch.table.find(address)?;
            if !a.contains(address, len as u64) {
                return None;
            }
            address
        }
    };
    // SAFETY: the range was checked against the space that it lies in.
    Some(unsafe { std::slice::from_raw_parts(from as *const u8, len) }.to_vec())
}

fn string_at(cx: &mut Cx, lane: usize, address: u64) -> String {
    let mut out = Vec::new();
    while out.len() < MAX_STRING {
        match bytes_at(cx, lane, address.wrapping_add(out.len() as u64), 1).as_deref() {
            Some([0]) | None => break,
            Some(b) => out.extend_from_slice(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `vprintf(format, arguments)`: `ops` are the base of the frame with both pointers at `imm` and `target`, and the
/// return value at `pool` bytes into the frame.
pub(crate) unsafe fn vprintf(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed the frame's base, a 64-bit row.
    let base = unsafe { *cx.row::<u64>(i.ops[0]) };
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        let word = |cx: &mut Cx, at: u64| -> u64 {
            let address = crate::decode::dec::LOCAL_WINDOW + base[l].wrapping_add(at);
            bytes_at(cx, l, address, 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
        };
        let (format, arguments) = (word(cx, i.imm as u64), word(cx, u64::from(i.target)));
        let format = string_at(cx, l, format);
        let text = formatted(cx, l, &format, arguments);
        print!("{text}");
        let stride = u64::from(cx.cta.local_bytes);
        let at = base[l] + u64::from(i.pool);
        if at + 4 <= stride {
            let memory = cx.cta.local.as_mut_ptr() as u64 + (cx.warp as u64 * 32 + l as u64) * stride + at;
            // SAFETY: the four bytes lie in the lane's local memory; the decoder aligned them.
            unsafe { (memory as *mut u32).write(text.len() as u32) };
        }
    }
}

/// What C's `printf` prints, for the conversions that device code has.
fn formatted(cx: &mut Cx, lane: usize, format: &str, arguments: u64) -> String {
    let mut out = String::new();
    let mut at = 0u64;
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut flags, mut width, mut precision) = (String::new(), 0usize, None);
        while let Some(&f) = chars.peek().filter(|f| "-+ #0".contains(**f)) {
            flags.push(f);
            chars.next();
        }
        let mut next = |cx: &mut Cx, bytes: u64| -> u64 {
            at = at.next_multiple_of(bytes);
            let v = bytes_at(cx, lane, arguments.wrapping_add(at), bytes as usize).unwrap_or(vec![0; 8]);
            at += bytes;
            let mut full = [0; 8];
            full[..v.len().min(8)].copy_from_slice(&v[..v.len().min(8)]);
            u64::from_le_bytes(full)
        };
        let mut number = |cx: &mut Cx, chars: &mut std::iter::Peekable<std::str::Chars>| -> usize {
            if chars.peek() == Some(&'*') {
                chars.next();
                return next(cx, 4) as usize % 1000;
            }
            let mut n = 0;
            while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = (n * 10 + d as usize) % 1000;
                chars.next();
            }
            n
        };
        width += number(cx, &mut chars);
        if chars.peek() == Some(&'.') {
            chars.next();
            precision = Some(number(cx, &mut chars));
        }
        let mut long = false;
        while let Some(&m) = chars.peek().filter(|m| "hlzjtL".contains(**m)) {
            long |= m != 'h';
            chars.next();
        }
        let text = match chars.next() {
            Some('%') => {
                out.push('%');
                continue;
            }
            Some('d' | 'i') => {
                let v = if long { next(cx, 8) as i64 } else { i64::from(next(cx, 4) as i32) };
                if flags.contains('+') && v >= 0 { format!("+{v}") } else { v.to_string() }
            }
            Some(c @ ('u' | 'x' | 'X' | 'o')) => {
                let v = next(cx, if long { 8 } else { 4 });
                match c {
                    'u' => v.to_string(),
                    'x' => format!("{v:x}"),
                    'X' => format!("{v:X}"),
                    _ => format!("{v:o}"),
                }
            }
            Some('c') => char::from(next(cx, 4) as u8).to_string(),
            Some('s') => {
                let address = next(cx, 8);
                string_at(cx, lane, address)
            }
            Some('p') => format!("{:#x}", next(cx, 8)),
            Some(c @ ('f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a')) => {
                let v = f64::from_bits(next(cx, 8));
                let p = precision.unwrap_or(6);
                match c {
                    'f' | 'F' => format!("{v:.p$}"),
                    'e' | 'E' => format!("{v:.p$e}"),
                    _ => format!("{v}"),
                }
            }
            _ => String::new(),
        };
        let missing = width.saturating_sub(text.chars().count());
        if flags.contains('-') {
            out.push_str(&text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else {
            let pad = if flags.contains('0') { '0' } else { ' ' };
            out.extend(std::iter::repeat_n(pad, missing));
            out.push_str(&text);
        }
    }
    out
}

/// `__assertfail(message, file, line, function, size)`: `ops[0]` is the base of the frame; the parameters lie at `imm`.
pub(crate) unsafe fn assert_fail(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed the frame's base, a 64-bit row.
    let base = unsafe { *cx.row::<u64>(i.ops[0]) };
    let l = mask.trailing_zeros() as usize & 31;
    let at = crate::decode::dec::LOCAL_WINDOW + base[l].wrapping_add(i.imm as u64);
    let words = bytes_at(cx, l, at, 32).unwrap_or(vec![0; 32]);
    let word = |k: usize| u64::from_le_bytes(words[k * 8..k * 8 + 8].try_into().unwrap_or_default());
    let (message, file, function) =
        (string_at(cx, l, word(0)), string_at(cx, l, word(1)), string_at(cx, l, word(3)));
    let text = format!("{file}:{}: {function}: assertion `{message}` failed", word(2) as u32);
    cx.fail(FaultKind::Assert, l as u32, None, text);
}
