//! What a certificate claims of a network, held against what another one claims or a file holds.
//!
//! Invariant: both uses compare through these functions, so a model and its certificate pass or fail
//! in the same places as two certificates. What a certificate does not say is never a difference, and
//! is said to be not certified.

use crate::checks::sizes;
use crate::checks::unlike::Unlike;
use crate::report::Findings;
use bitnet_checkpoint::{Certified, Config, TensorDigest, TextDigest};
use std::collections::{BTreeMap, BTreeSet};

/// Sizes of a network.
pub(crate) fn compare_sizes(expected: &Config, found: &Config, findings: &mut Findings) {
    for ((key, expected), (_, found)) in sizes(expected).into_iter().zip(sizes(found)) {
        findings.expect(key, expected, found);
    }
}

/// Notes the sizes that differ.
pub(crate) fn note_sizes(expected: &Config, found: &Config, unlike: &mut Unlike) {
    for ((key, expected), (_, found)) in sizes(expected).into_iter().zip(sizes(found)) {
        unlike.size(key, expected, found);
    }
}

/// Pairs the tensors of two sides by name; those that one side lacks are differences. `sides` are what
/// the sides are called.
pub(crate) fn pairs<'a, T>(
    expected: impl Iterator<Item = (&'a str, T)>,
    found: impl Iterator<Item = (&'a str, T)>,
    sides: [&str; 2],
    findings: &mut Findings,
) -> Vec<(&'a str, T, T)> {
    let mut rest: BTreeMap<&str, T> = found.collect();
    let mut both = Vec::new();
    for (name, expected) in expected {
        match rest.remove(name) {
            Some(found) => both.push((name, expected, found)),
            None => findings.different(name, format!("in {}, not in {}", sides[0], sides[1])),
        }
    }
    for name in rest.into_keys() {
        findings.different(name, format!("in {}, not in {}", sides[1], sides[0]));
    }
    both
}

/// Digests by their names.
pub(crate) fn named<'a>(
    digests: impl Iterator<Item = &'a TensorDigest>,
) -> impl Iterator<Item = (&'a str, &'a TensorDigest)> {
    digests.map(|digest| (digest.name.as_str(), digest))
}

/// How the trits of two linears differ; their shape counts.
pub(crate) fn trits(expected: &TensorDigest, found: &TensorDigest) -> Option<String> {
    let (e, f) = ((expected.rows, expected.cols), (found.rows, found.cols));
    if e != f {
        return Some(format!("expected shape {e:?}, found {f:?}"));
    }
    let (e, f) = (&expected.trits_sha256, &found.trits_sha256);
    (e != f).then(|| format!("expected trits of sha256 {e}, found {f}"))
}

/// How the scales of two linears differ.
pub(crate) fn scales(expected: &TensorDigest, found: &TensorDigest) -> Option<String> {
    let says = |d: &TensorDigest| match d.scale_bits {
        Some(bits) => format!("one scale {:e} (0x{bits:08x})", f32::from_bits(bits)),
        None => format!(
            "scales per {} of sha256 {}",
            d.scale_structure, d.scales_sha256
        ),
    };
    let key = |d: &TensorDigest| {
        let (structure, sha256) = (d.scale_structure.clone(), d.scales_sha256.clone());
        (structure, sha256, d.scale_bits)
    };
    (key(expected) != key(found))
        .then(|| format!("expected {}, found {}", says(expected), says(found)))
}

/// Tokenizer and chat template; says what was compared.
pub(crate) fn compare_text(
    expected: &TextDigest,
    found: &TextDigest,
    findings: &mut Findings,
) -> String {
    let tokenizer = pair(
        "tokenizer",
        &expected.tokenizer,
        &found.tokenizer,
        findings,
        |expected, found, findings| {
            let parts = expected.parts().into_iter().zip(found.parts());
            for ((key, expected), (_, found)) in parts {
                findings.expect(&format!("tokenizer.{key}"), expected, found);
            }
        },
    );
    let template = pair(
        "chat_template_sha256",
        &expected.chat_template_sha256,
        &found.chat_template_sha256,
        findings,
        |expected, found, findings| findings.expect("chat_template_sha256", expected, found),
    );
    if let (Certified::Said(_), Certified::Said(_)) =
        (&expected.chat_template_sha256, &found.chat_template_sha256)
    {
        compare_named(
            &expected.additional_chat_templates,
            &found.additional_chat_templates,
            findings,
        );
    }
    format!("tokenizer {tokenizer}, chat template {template}")
}

/// Chat templates that have names, whole or as their hashes.
pub(crate) fn compare_named(
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
    findings: &mut Findings,
) {
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    for name in names {
        let place = format!("additional_chat_templates.{name}");
        match (expected.get(name), found.get(name)) {
            (Some(expected), Some(found)) if expected == found => {}
            (Some(_), Some(_)) => findings.different(place, "another template"),
            (Some(_), None) => findings.different(place, "expected one, found none"),
            (None, _) => findings.different(place, "expected none, found one"),
        }
    }
}

/// One of the two; says what was compared.
fn pair<T>(
    place: &str,
    expected: &Certified<T>,
    found: &Certified<T>,
    findings: &mut Findings,
    compare: impl Fn(&T, &T, &mut Findings),
) -> String {
    use Certified::{Refused, Said, Unsaid};
    match (expected, found) {
        (Unsaid, _) | (_, Unsaid) => "not certified".to_owned(),
        (Refused(why), _) => format!("not certified ({why})"),
        (Said(_), Refused(why)) => {
            findings.different(
                place,
                format!("expected one that is certified, found {why}"),
            );
            "compared".to_owned()
        }
        (Said(None), Said(None)) => "none".to_owned(),
        (Said(Some(expected)), Said(Some(found))) => {
            compare(expected, found, findings);
            "compared".to_owned()
        }
        (Said(expected), Said(_)) => {
            let what = match expected {
                Some(_) => "expected one, found none",
                None => "expected none, found one",
            };
            findings.different(place, what);
            "compared".to_owned()
        }
    }
}
