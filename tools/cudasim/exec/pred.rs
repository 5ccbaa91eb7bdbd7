//! Logic on predicates.

use super::cx::Cx;
use super::inst::{ExecFn, Inst};

macro_rules! predicate_ops {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*) = $e:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name() -> ExecFn {
            unsafe fn run(cx: &mut Cx, i: &Inst, mask: u32) {
                // SAFETY: the decoder placed predicates.
                unsafe {
                    predicate_ops!(@load cx, i, $($arg),*);
                    cx.put_pred(i.ops[0], $e, mask);
                }
            }
            run
        }
    )*};
    (@load $cx:ident, $i:ident, $a:ident) => { let $a = $cx.pred($i.ops[1]); };
    (@load $cx:ident, $i:ident, $a:ident, $b:ident) => {
        let ($a, $b) = ($cx.pred($i.ops[1]), $cx.pred($i.ops[2]));
    };
    (@load $cx:ident, $i:ident, $a:ident, $b:ident, $c:ident) => {
        let ($a, $b, $c) = ($cx.pred($i.ops[1]), $cx.pred($i.ops[2]), $cx.pred($i.ops[3]));
    };
}

predicate_ops! {
    /// `d = a`
    mov(a) = a;
    /// `d = !a`
    not(a) = !a;
    /// `d = a & b`
    and(a, b) = a & b;
    /// `d = a | b`
    or(a, b) = a | b;
    /// `d = a ^ b`
    xor(a, b) = a ^ b;
    /// `d = c ? a : b`
    select(a, b, c) = (a & c) | (b & !c);
}
