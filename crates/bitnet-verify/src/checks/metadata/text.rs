//! Whether tokenizer and chat template are the same by their hashes, where one side is a certificate.
//!
//! Invariant: what a certificate does not say is never a difference, and is said to be not certified.

use crate::verdict::Findings;
use bitnet_checkpoint::{Certified, TextDigest};
use std::collections::{BTreeMap, BTreeSet};

/// Tokenizer and chat template; says what was compared.
pub(in crate::checks) fn compare_text(
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
pub(super) fn compare_named(
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
