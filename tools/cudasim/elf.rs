//! As much of 64-bit little-endian ELF as images need: where a section lies, and where the file ends.

/// Bytes of an ELF header.
pub const HEADER_BYTES: usize = 64;

/// The contents of the section called `name`.
pub fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let names = contents(elf, &header(elf, field(elf, 62, 2)?)?)?;
    (0..field(elf, 60, 2)?).find_map(|index| {
        let section = header(elf, index)?;
        let start = names.get(section.name..)?;
        let own = start.split(|&byte| byte == 0).next()?;
        if own == name.as_bytes() { contents(elf, &section) } else { None }
    })
}

/// Length of the file that starts with this header: the end of its section or program header table, whichever is
/// last. Cubins end with one of the two.
pub fn file_bytes(start: &[u8]) -> Option<u64> {
    let sections = field(start, 40, 8)?.checked_add(field(start, 58, 2)? * field(start, 60, 2)?)?;
    let programs = field(start, 32, 8)?.checked_add(field(start, 54, 2)? * field(start, 56, 2)?)?;
    Some(sections.max(programs).max(HEADER_BYTES as u64))
}

struct Section {
    name: usize,
    offset: usize,
    bytes: usize,
}

fn header(elf: &[u8], index: u64) -> Option<Section> {
    let at = field(elf, 40, 8)?.checked_add(field(elf, 58, 2)?.checked_mul(index)?)?;
    let at = usize::try_from(at).ok()?;
    Some(Section {
        name: field(elf, at, 4)? as usize,
        offset: usize::try_from(field(elf, at.checked_add(24)?, 8)?).ok()?,
        bytes: usize::try_from(field(elf, at.checked_add(32)?, 8)?).ok()?,
    })
}

fn contents<'a>(elf: &'a [u8], section: &Section) -> Option<&'a [u8]> {
    elf.get(section.offset..section.offset.checked_add(section.bytes)?)
}

fn field(elf: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = elf.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}
