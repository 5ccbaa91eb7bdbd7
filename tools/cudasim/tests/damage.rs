//! Damaged PTX: whatever it says, it is refused or executed, and nothing panics, crashes or hangs.

mod common;

use std::time::Duration;

use cudasim::decode::Module;
use cudasim::exec::{self, ExecOptions, GlobalAddresses, Launch};
use cudasim::memory::GlobalMemory;
use proptest::prelude::*;

/// Modules with most instructions of the tests.
const MODULES: [&str; 10] = [
    "atomics.nvcc13.O3",
    "between_ctas.nvcc13.O3",
    "gemm.nvcc13.O3",
    "int4.nvrtc12.O3",
    "local.nvcc13.O0",
    "pipeline.nvcc13.O3",
    "reduction.nvcc13.O3",
    "softmax.nvrtc12.O3",
    "vector.nvcc13.O0",
    "wide.nvcc13.O3",
];

/// One change of a text.
#[derive(Clone, Debug)]
enum Damage {
    /// A token becomes another one of the same text.
    Replace(prop::sample::Index, prop::sample::Index),
    /// A token becomes this text.
    Put(prop::sample::Index, &'static str),
    /// A token is left out.
    Drop(prop::sample::Index),
    /// An opcode or a modifier becomes another one of the same text.
    Part(prop::sample::Index, prop::sample::Index),
    /// The text ends here.
    Cut(prop::sample::Index),
}

const ODD: [&str; 24] = [
    "0",
    "-1",
    "0xffffffffffffffff",
    "0f7FC00000",
    "0d7FF0000000000000",
    "%tid.x",
    "%clock64",
    "%envreg1",
    "{",
    "}",
    "[",
    "]",
    "_",
    "!",
    "@",
    "|",
    "(1",
    "%p1|%p2",
    "18446744073709551616",
    ".v4",
    "\"",
    "/*",
    "é",
    "\u{0}",
];

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    prop_oneof![
        4 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Damage::Replace(a, b)),
        4 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Damage::Part(a, b)),
        2 => (any::<Index>(), prop::sample::select(&ODD[..])).prop_map(|(a, text)| Damage::Put(a, text)),
        2 => any::<Index>().prop_map(Damage::Drop),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

/// Words with what stands between them.
fn tokens(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let word = |c: char| c.is_alphanumeric() || "_.%$:".contains(c);
    for c in text.chars() {
        match out.last_mut() {
            Some(last) if word(c) && last.ends_with(word) => last.push(c),
            _ => out.push(c.to_string()),
        }
    }
    out
}

fn damaged(text: &str, damages: &[Damage]) -> String {
    let mut tokens = tokens(text);
    for d in damages {
        let n = tokens.len().max(1);
        if tokens.is_empty() {
            break;
        }
        match d {
            Damage::Replace(a, b) => tokens[a.index(n)] = tokens[b.index(n)].clone(),
            Damage::Put(a, text) => tokens[a.index(n)] = (*text).to_owned(),
            Damage::Drop(a) => drop(tokens.remove(a.index(n))),
            Damage::Cut(a) => tokens.truncate(a.index(n)),
            Damage::Part(a, b) => {
                let dotted: Vec<usize> = (0..n).filter(|&i| tokens[i].contains('.')).collect();
                if dotted.is_empty() {
                    continue;
                }
                let (to, from) = (dotted[a.index(dotted.len())], dotted[b.index(dotted.len())]);
                let parts: Vec<&str> = tokens[from].split('.').collect();
                let part = parts[b.index(parts.len())].to_owned();
                let mut whole: Vec<String> = tokens[to].split('.').map(str::to_owned).collect();
                let at = a.index(whole.len());
                whole[at] = part;
                tokens[to] = whole.join(".");
            }
        }
    }
    tokens.concat()
}

/// Runs every kernel of a module with buffers for pointers and small numbers for numbers.
fn execute(module: &Module) {
    let memory = GlobalMemory::new(1 << 28).unwrap();
    let Some(globals) = GlobalAddresses::place(module, &memory) else { return };
    let buffer = memory.alloc(1 << 16).unwrap();
    memory.write(buffer, &[1; 1 << 16]).unwrap();
    let options =
        ExecOptions { threads: 1, watchdog: Some(Duration::from_millis(50)), ..ExecOptions::default() };
    for kernel in module.kernels() {
        let mut params = vec![0u8; kernel.param_bytes as usize];
        for p in &kernel.params {
            let value = if p.size == 8 { buffer } else { 40 };
            let bytes = value.to_le_bytes();
            let n = bytes.len().min(p.size as usize);
            params[p.offset as usize..][..n].copy_from_slice(&bytes[..n]);
        }
        let launch = Launch {
            kernel,
            grid: [2, 1, 1],
            block: [64, 1, 1],
            dynamic_shared_bytes: 16384,
            params: &params,
            cooperative: true,
            globals: &globals,
        };
        exec::run(&launch, &memory, &options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", body in "[-a-z0-9%.,;:{}()\\[\\]|@!<>=+*/ \\n\"$_]{0,300}") {
        let _ = Module::parse(&text);
        let _ = Module::parse(&format!(".version 8.0\n.target sm_80\n.address_size 64\n{body}"));
        let _ = Module::parse(&format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{ .reg .b32 %r<4>; {body} }}"
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn damaged_modules_are_refused_or_executed(
        name in prop::sample::select(&MODULES[..]),
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        if let Ok(module) = Module::parse(&damaged(&common::ptx(name), &damages)) {
            execute(&module);
        }
    }
}
