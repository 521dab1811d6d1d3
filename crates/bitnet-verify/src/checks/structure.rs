//! Whether both are the same network: sizes, and which tensors of which shape.
//!
//! Invariant: compares what an open checkpoint promises; opening has already held every tensor of
//! the file against the configuration.

use super::{Check, Running, Subject};
use crate::report::{Findings, Report};
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
pub(crate) fn sizes(config: &Config) -> [(&'static str, usize); 7] {
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

impl Running for Structure {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some(source) = subject.source else { return };
        let (source, artifact) = (&source.checkpoint, &subject.artifact.checkpoint);
        let (s, a) = (&source.config, &artifact.config);
        let mut findings = Findings::default();
        findings.expect("family", source.family.name, artifact.family.name);
        for ((key, s), (_, a)) in sizes(s).into_iter().zip(sizes(a)) {
            report.unlike.size(key, s, a);
            findings.expect(key, s, a);
        }
        let (expected, found) = (source.slots(), artifact.slots());
        for slot in &expected {
            let (s, a) = (s.shape(*slot), a.shape(*slot));
            if !found.contains(slot) {
                findings.different(slot.to_string(), "expected in the artifact, not there");
            } else if s != a {
                findings.different(
                    slot.to_string(),
                    format!("expected shape {s:?}, found {a:?}"),
                );
            }
        }
        for slot in found.iter().filter(|slot| !expected.contains(slot)) {
            findings.different(slot.to_string(), "not in the source");
        }
        let compared = format!("{}, {} tensors", source.family.name, expected.len());
        report
            .checks
            .push(findings.into_result(CHECK.name, compared));
    }
}
