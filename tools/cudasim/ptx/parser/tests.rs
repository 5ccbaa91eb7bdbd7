//! Modules that parse, and texts that do not.

use super::super::ast::{Init, Instruction, Operand, Place, Statement};
use super::*;

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

fn body(text: &str) -> Vec<Statement> {
    let module = parse(&format!("{HEADER}.visible .entry k(.param .u64 p) {{ {text} }}")).unwrap();
    module.functions[0].body.clone().unwrap()
}

fn instruction(text: &str) -> Instruction {
    match &body(text)[0] {
        Statement::Instruction(i) => i.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn operands_of_every_kind() {
    let i = instruction("@!%p1 shfl.sync.down.b32 %r1|%p2, %r2, 0x10, 31, -1;");
    assert_eq!(i.guard, Some(("%p1".into(), true)));
    assert_eq!(i.opcode, "shfl.sync.down.b32");
    assert_eq!(
        i.operands[0],
        Operand::Pair(Box::new(Operand::Name("%r1".into())), Box::new(Operand::Name("%p2".into())))
    );
    assert_eq!(i.operands[4], Operand::Int(-1));
    let i = instruction("st.global.v2.f32 [%rd1+-8], {%f1, 0f3F800000};");
    assert_eq!(i.operands[0], Operand::Address { base: Some("%rd1".into()), offset: -8 });
    assert_eq!(i.operands[1], Operand::Vector(vec![Operand::Name("%f1".into()), Operand::F32(0x3f80_0000)]));
    let i = instruction("call.uni (retval0), f, (param0, param1);");
    assert_eq!(i.operands[0], Operand::List(vec![Operand::Name("retval0".into())]));
}

#[test]
fn scopes_labels_and_lines() {
    let b = body(
        ".reg .b32 %r<4>, x; { .reg .pred p; L: bra L; } .loc 1 7 3, function_name $a, inlined_at 1 2 3\n ret;",
    );
    assert!(matches!(&b[0], Statement::Reg { names, .. } if names[0].1 == Some(4) && names[1].1.is_none()));
    assert!(
        matches!(&b[1], Statement::Block(inner) if matches!(&inner[1], Statement::Label(n, _) if n == "L"))
    );
    assert!(matches!(&b[2], Statement::Loc { at: Place { file: 1, line: 7, .. }, .. }));
}

#[test]
fn initialisers_with_addresses() {
    let text = format!(
        "{HEADER}.global .align 8 .u64 t[3] = {{generic(a)+8, f, -1}};
         .global .align 8 .b8 b[2] = {{0xFF(a), 0xFF00(a)}}; .const .f32 c = 0f40000000;
         .extern .shared .align 16 .b8 dyn[];"
    );
    let m = parse(&text).unwrap();
    assert_eq!(m.variables[0].init[0], Init::Address { symbol: "a".into(), offset: 8, mask: None });
    assert_eq!(m.variables[0].init[2], Init::Bits(u64::MAX));
    assert_eq!(m.variables[1].init[1], Init::Address { symbol: "a".into(), offset: 0, mask: Some(0xff00) });
    assert_eq!(m.variables[2].init[0], Init::Float(2.0));
    assert!(m.variables[3].external && m.variables[3].count.is_none());
}

#[test]
fn errors_say_where_and_what() {
    let error = parse(&format!("{HEADER}.visible .entry k() {{\n  add.s32 %r1, ; }}")).unwrap_err();
    assert_eq!(error.to_string(), "5:16: found `;`, expected a constant");
    let error = parse(&format!("{HEADER}.global .texref t;")).unwrap_err();
    assert!(matches!(error, PtxError::Unsupported { line: 4, .. }), "{error}");
    for bad in ["", ".version", ".version 8.0 .target", ".version 8.0 .target sm_80 .entry k( {"] {
        assert!(parse(bad).is_err());
    }
    let deep = format!("{HEADER}.func f {{ {}", "{".repeat(100_000));
    assert!(parse(&deep).is_err());
    let deep = format!("{HEADER}.global .u32 x = {}", "(".repeat(100_000));
    assert!(parse(&deep).is_err());
}

/// The value of the last operand of an `add` with this text in its place.
fn value(text: &str) -> i64 {
    match instruction(&format!("add.s64 %rd1, %rd2, {text};")).operands[2] {
        Operand::Int(value) => value,
        ref other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn constant_expressions() {
    for (text, want) in [
        ("(2 + 3) * 4 - 1", 19),
        ("-(2 + 3)", -5),
        ("((7))", 7),
        ("1 + 2 * 3 % 4", 3),
        ("7 & 3 ^ 1", 2),
        ("(1 | 6) << 2", 28),
        ("-16 >> 2", -4),
        ("0xfffffffffffffff0U >> 60", 15),
        ("-1 < 1", 1),
        ("-1 < 1U", 0),
        ("(.u64) -1 / 2", i64::MAX),
        ("-7 / 2", -3),
        ("~0", -1),
        ("!5 + !0", 1),
        ("(1 == 1 && 0 || 2 >= 3)", 0),
        ("(1 != 2 ? 10 : 20)", 10),
        ("(1 <= 0 ? 10 : 2 > 1 ? 30 : 40)", 30),
        ("1 << 64", 0),
    ] {
        assert_eq!(value(text), want, "{text}");
    }
    let error = parse(&format!("{HEADER}.global .u32 x = 1 / (2 - 2);")).unwrap_err();
    assert!(error.to_string().contains("divided by zero"), "{error}");
}

#[test]
fn calls_take_lists_of_one_element() {
    for (text, want) in
        [("(3)", Operand::Int(3)), ("(%r1)", Operand::Name("%r1".into())), ("(-1)", Operand::Int(-1))]
    {
        let i = instruction(&format!("call f, {text};"));
        assert_eq!(i.operands[1], Operand::List(vec![want]), "{text}");
    }
    assert_eq!(instruction("call.uni f, ();").operands[1], Operand::List(Vec::new()));
}
