//! Whether both are the same network: sizes, and which tensors of which shape.
//!
//! Invariant: compares what an open checkpoint or a certificate promises; opening has already held every tensor of
//! the file against the configuration.

use super::check::{Check, Running, Subject};
use super::report::Report;
use super::side::{self, Side};
use super::unlike::Unlike;
use crate::verdict::Findings;
use bitnet_checkpoint::Config;

pub(super) const CHECK: Check = Check {
    name: "structure",
    what: "family, sizes, the set of tensors and their shapes",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::new(Structure) as Box<dyn Running>)
    },
};

struct Structure;

/// Every size of a network; what else it is made of is the business of `metadata`.
fn sizes(config: &Config) -> [(&'static str, usize); 7] {
    [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
    ]
}

/// Sizes of two networks.
pub(super) fn compare_sizes(
    (expected, found): (Side<'_>, Side<'_>),
    findings: &mut Findings,
    unlike: &mut Unlike,
) {
    let found = sizes(found.config());
    for ((key, expected), (_, found)) in sizes(expected.config()).into_iter().zip(found) {
        unlike.size(key, expected, found);
        findings.expect(key, expected, found);
    }
}

impl Running for Structure {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some((expected, found)) = subject.sides() else {
            return;
        };
        let mut findings = Findings::default();
        findings.expect("family", expected.family(), found.family());
        compare_sizes((expected, found), &mut findings, &mut report.unlike);
        let paired = side::pairs((expected, found), Side::shapes);
        findings.extend(paired.alone);
        for (name, e, f) in paired.both {
            if e != f {
                findings.different(name, format!("expected shape {e:?}, found {f:?}"));
            }
        }
        let tensors = expected.shapes().len();
        let compared = format!("{}, {tensors} tensors", expected.family());
        report
            .checks
            .push(findings.into_verdict(CHECK.name, compared));
    }
}
