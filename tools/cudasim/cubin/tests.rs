use proptest::prelude::*;

use super::*;

/// Writes an ELF file with the given sections (name, type, info, data, size).
fn elf(sections: &[(&str, u32, u32, Vec<u8>, u64)]) -> Vec<u8> {
    let mut names = vec![0u8];
    let mut body = Vec::new();
    let mut headers = vec![0u8; 64];
    let mut all: Vec<(&str, u32, u32, Vec<u8>, u64)> = sections.to_vec();
    all.push((".shstrtab", 3, 0, Vec::new(), 0));
    let n = all.len();
    for (name, ..) in &all {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    all[n - 1].3 = names.clone();
    let mut name_at = 1u32;
    for (name, kind, info, data, bytes) in &all {
        let bytes = if *bytes > 0 { *bytes } else { data.len() as u64 };
        headers.extend_from_slice(&name_at.to_le_bytes());
        headers.extend_from_slice(&kind.to_le_bytes());
        headers.extend_from_slice(&[0; 16]);
        headers.extend_from_slice(&(64 + body.len() as u64).to_le_bytes());
        headers.extend_from_slice(&bytes.to_le_bytes());
        headers.extend_from_slice(&0u32.to_le_bytes());
        headers.extend_from_slice(&info.to_le_bytes());
        headers.extend_from_slice(&[0; 16]);
        body.extend_from_slice(data);
        name_at += name.len() as u32 + 1;
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18..20].copy_from_slice(&190u16.to_le_bytes());
    file[40..48].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
    file[60..62].copy_from_slice(&(n as u16 + 1).to_le_bytes());
    file[62..64].copy_from_slice(&(n as u16).to_le_bytes());
    file.extend(body);
    file.extend(headers);
    file
}

fn record(attribute: u8, symbol: u32, value: u32) -> Vec<u8> {
    let mut r = vec![4, attribute, 8, 0];
    r.extend_from_slice(&symbol.to_le_bytes());
    r.extend_from_slice(&value.to_le_bytes());
    r
}

fn cubin() -> Vec<u8> {
    let mut symbols = vec![0u8; SYMBOL_BYTES];
    for name_at in [1u32, 3] {
        symbols.extend_from_slice(&name_at.to_le_bytes());
        symbols.extend_from_slice(&[0; SYMBOL_BYTES - 4]);
    }
    let mut code = vec![0x35, 0x74];
    code.resize(32, 0);
    code.extend_from_slice(&[0x18, 0x79]);
    code.resize(64, 0);
    let info = [record(0x2f, 1, 40), record(0x11, 1, 0), record(0x12, 2, 584), record(0x2f, 2, 77)].concat();
    let own = [vec![1, 0x35, 0, 0], vec![3, 0x19, 0x18, 0], vec![4, 5, 12, 0], {
        [256u32, 1, 1].iter().flat_map(|d| d.to_le_bytes()).collect()
    }]
    .concat();
    elf(&[
        (".symtab", 2, 0, symbols, 0),
        (".strtab", 3, 0, b"\0k\0spill\0".to_vec(), 0),
        (".nv.info", 0x7000_0000, 0, info, 0),
        (".nv.info.k", 0x7000_0000, 0, own, 0),
        (".text.k", 1, 39 << 24 | 5, code.clone(), 0),
        (".text.spill", 1, 0, code.clone(), 0),
        (".text.old", 1, 24 << 24, code, 0),
        (".nv.shared.k", 8, 0, Vec::new(), 4096),
    ])
}

#[test]
fn a_cubin_tells_what_each_kernel_needs() {
    let found = kernels(&cubin()).unwrap();
    assert_eq!(
        found[0],
        KernelResources {
            name: "k".into(),
            registers: 40,
            static_shared_bytes: 4096,
            local_bytes: 0,
            param_bytes: Some(24),
            max_threads: Some([256, 1, 1]),
            machine_instructions: 3,
        }
    );
    assert_eq!((found[1].name.as_str(), found[1].registers, found[1].local_bytes), ("spill", 77, 584));
    assert_eq!((found[2].name.as_str(), found[2].registers), ("old", 24));
}

#[test]
fn other_files_are_refused() {
    assert_eq!(kernels(b""), Err(CubinError::NotElf));
    assert_eq!(kernels(b"//\n.version 8.0"), Err(CubinError::NotElf));
    let mut other = cubin();
    other[18] = 62;
    other[19] = 0;
    assert_eq!(kernels(&other), Err(CubinError::OtherMachine(62)));
    let whole = cubin();
    assert!(matches!(kernels(&whole[..whole.len() - 1]), Err(CubinError::Truncated(_))));
}

proptest! {
    #[test]
    fn any_prefix_is_refused_or_read_without_a_panic(n in 0usize..2000) {
        let whole = cubin();
        let _ = kernels(&whole[..n.min(whole.len())]);
    }

    #[test]
    fn damaged_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut file = cubin();
        for (at, byte) in changes {
            let n = file.len();
            file[at.index(n)] = byte;
        }
        let _ = kernels(&file);
    }

    #[test]
    fn any_bytes_behind_a_header_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(18, 0);
        file.extend_from_slice(&190u16.to_le_bytes());
        file.extend(bytes);
        let _ = kernels(&file);
    }
}
