//! Faults on request: `CUDASIM_FAIL=alloc:3,launch:7`.
//!
//! Each rule is `kind:N`, the Nth operation of that kind counted from 1, `kind:N+` from the Nth on, and optionally
//! `=CODE` for a result code other than the usual one:
//!
//! | kind | what is counted | what happens |
//! |---|---|---|
//! | `alloc` | device and pinned allocations | 2, out of memory |
//! | `copy` | copies and memsets | 999, unknown error |
//! | `launch` | kernel launches, nodes of a replayed graph too | 701, too many resources |
//! | `module` | modules loaded | 2, out of memory |
//! | `sticky` | kernel launches | the kernel hits an illegal address (700): the context is lost |
//! | `device-lost` | all of the above on the device | 999 from then on, whatever is called |

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Error;

/// What a rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Device and pinned allocations.
    Alloc,
    /// Copies and memsets.
    Copy,
    /// Kernel launches that are to be refused.
    Launch,
    /// Modules loaded.
    Module,
    /// Kernel launches that are to hit an illegal address.
    Sticky,
    /// Every operation above: the device disappears.
    DeviceLost,
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What it counts.
    pub kind: Kind,
    /// Which occurrence fails, from 1.
    pub nth: u64,
    /// Whether those after it fail too.
    pub onwards: bool,
    /// With which code.
    pub error: Error,
}

/// Reads `alloc:3,launch:7+,copy:2=719`.
///
/// # Errors
/// What a rule should look like.
pub fn parse(text: &str) -> Result<Vec<Rule>, &'static str> {
    text.split(',').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect()
}

fn rule(text: &str) -> Result<Rule, &'static str> {
    const EXPECTED: &str = "a list of KIND:N, KIND:N+ or KIND:N=CODE with the kinds alloc, copy, launch, module, \
                            sticky and device-lost";
    let (kind, rest) = text.split_once(':').ok_or(EXPECTED)?;
    let (count, code) = match rest.split_once('=') {
        Some((count, code)) => (count, Some(code.parse().map_err(|_| EXPECTED)?)),
        None => (rest, None),
    };
    let (count, onwards) = match count.strip_suffix('+') {
        Some(count) => (count, true),
        None => (count, false),
    };
    let nth = count.parse().ok().filter(|nth| *nth > 0).ok_or(EXPECTED)?;
    let (kind, usual) = match kind {
        "alloc" => (Kind::Alloc, Error::OUT_OF_MEMORY),
        "copy" => (Kind::Copy, Error::UNKNOWN),
        "launch" => (Kind::Launch, Error::LAUNCH_OUT_OF_RESOURCES),
        "module" => (Kind::Module, Error::OUT_OF_MEMORY),
        "sticky" => (Kind::Sticky, Error::ILLEGAL_ADDRESS),
        "device-lost" => (Kind::DeviceLost, Error::UNKNOWN),
        _ => return Err(EXPECTED),
    };
    let error = match code {
        Some(0) => return Err(EXPECTED),
        Some(code) => Error(code),
        None => usual,
    };
    Ok(Rule { kind, nth, onwards, error })
}

/// The rules with their counts.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<(Rule, AtomicU64)>,
}

impl Faults {
    /// Starts counting.
    pub fn new(rules: &[Rule]) -> Faults {
        Faults { rules: rules.iter().map(|rule| (*rule, AtomicU64::new(0))).collect() }
    }

    /// Counts one operation; the code that it should fail with, if a rule says so.
    pub fn count(&self, kind: Kind) -> Option<Error> {
        let mut failed = None;
        for (rule, counter) in self.rules.iter().filter(|(rule, _)| rule.kind == kind) {
            let now = counter.fetch_add(1, Ordering::Relaxed) + 1;
            if now == rule.nth || (rule.onwards && now > rule.nth) {
                failed = failed.or(Some(rule.error));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_operation_fails_and_only_operations_of_its_kind_count() {
        let faults = Faults::new(&parse("alloc:2, copy:1+=719").unwrap());
        assert_eq!(faults.count(Kind::Alloc), None);
        assert_eq!(faults.count(Kind::Launch), None);
        assert_eq!(faults.count(Kind::Alloc), Some(Error::OUT_OF_MEMORY));
        assert_eq!(faults.count(Kind::Alloc), None);
        assert_eq!(faults.count(Kind::Copy), Some(Error::LAUNCH_FAILED));
        assert_eq!(faults.count(Kind::Copy), Some(Error::LAUNCH_FAILED));
    }

    #[test]
    fn a_rule_that_says_nothing_is_refused() {
        for text in ["alloc", "alloc:0", "alloc:x", "melt:1", "copy:1=0", "copy:1=many", "launch:-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse(""), Ok(vec![]));
    }
}
