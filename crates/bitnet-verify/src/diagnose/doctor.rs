//! `bitnet-verify doctor MODEL`: what is wrong with a model that has no source to be compared with.
//!
//! A file whose network these programs do not compute (a block quantization of ordinary weights, another architecture, a
//! vocabulary without weights) is not called damaged for that: only what contradicts itself is.
//!
//! Invariant: a finding has a code, a severity, a sentence and a remedy, and comes from the file alone. Nothing is
//! mended but by `--fix`, into another file. An examination is a file in `doctor/` and a row of [`EXAMINATIONS`].

mod bundle;
mod certificate;
mod contents;
mod finding;
mod forward;
mod headers;
mod repair;
mod tokenizer;
mod weights;

pub use finding::{Compared, Examination, Finding, Patient, Severity};
pub use repair::Repair;

use bundle::Bundle;
use certificate::CertificateStatus;
use finding::Compare;

use crate::args::DoctorArgs;
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::{Console, ExitStatus, Failure, Progress};
use bitnet_formats::ErrorCode;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Every examination. Adding one is a file, a `mod` line and a row.
pub static EXAMINATIONS: &[Examination] = &[
    headers::EXAMINATION,
    tokenizer::EXAMINATION,
    weights::EXAMINATION,
    certificate::EXAMINATION,
    forward::EXAMINATION,
];

/// Runs the examinations and, if asked, the repairs.
pub(crate) fn run(
    args: &DoctorArgs,
    console: &mut Console<'_>,
    threads: usize,
    compare: &Compare,
) -> Result<ExitStatus, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| {
        Failure::new(ErrorCode::Io, format!("cannot start threads: {e}")).because(e)
    })?;
    if let Some(output) = &args.output {
        repair::refuse_to_replace(&args.model, output, args.force)?;
    }
    if let Some(bundle) = &args.bundle {
        bundle::refuse_to_replace(&args.model, bundle, args.force)?;
    }
    // a directory is never repaired
    let before = bitnet_formats::Input::of(&args.model).ok();
    let progress = Progress::new(console);
    let examined = pool.install(|| examine(&args.model, args, compare, &progress));
    progress.clear();
    let mut findings = match (examined, &args.bundle) {
        (Ok(findings), _) => findings,
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(path)) => {
            let progress = Progress::new(console);
            let (model, force) = (&args.model, args.force);
            let failure = bundle::about_failure(model, path, force, failure, &progress);
            progress.clear();
            return Err(failure);
        }
    };
    let mut fixed = None;
    if args.fix {
        let Some(output) = &args.output else {
            return Err(Failure::usage("--fix writes a copy").hint("name it: -o FIXED.gguf"));
        };
        let repairs: Vec<Repair> = findings.iter().filter_map(|f| f.repair.clone()).collect();
        let written = repair::write(&args.model, before.as_ref(), &repairs, output, args.force)?;
        // what is left is what the copy still has
        let progress = Progress::new(console);
        findings = pool.install(|| examine(output, args, compare, &progress))?;
        progress.clear();
        fixed = Some((output, repairs, written));
    }
    let examined = match &fixed {
        Some((output, _, _)) => output.as_path(),
        None => args.model.as_path(),
    };
    let named = args.certificate.clone().filter(|_| fixed.is_none());
    let certificate = named.or_else(|| certificate::beside(examined));
    let certificate = certificate.map(|path| (path, certificate::take_status(&mut findings)));
    let worst = findings.iter().map(|f| f.severity).max();
    let sound = worst
        .is_none_or(|worst| worst < Severity::Error && (!args.strict || worst < Severity::Warning));
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let mut object = json!({
        "status": if sound { "sound" } else { "unsound" },
        "errors": count(Severity::Error),
        "warnings": count(Severity::Warning),
        "notes": count(Severity::Note),
        "findings": findings.iter().map(Finding::to_json).collect::<Value>(),
    });
    object["verdict"] = verdict(&findings, sound, certificate.as_ref()).into();
    object["certificate"] = match &certificate {
        Some((path, status)) => {
            json!({"path": path.display().to_string(), "status": status.as_str()})
        }
        None => Value::Null,
    };
    if let Some((output, repairs, digest)) = &fixed {
        object["fixed"] = json!({
            "path": output.display().to_string(),
            "bytes": digest.bytes,
            "sha256": digest.sha256,
            "repairs": repairs.iter().map(ToString::to_string).collect::<Value>(),
        });
    }
    if let Some(path) = &args.bundle {
        let progress = Progress::new(console);
        let bundle = Bundle::of(&args.model, &object, &progress);
        progress.clear();
        object["bundle"] = bundle?.write(path, args.force)?;
    }
    console.json(&object)?;
    if let Some((output, repairs, _)) = &fixed {
        for repair in repairs {
            console.summary(format_args!("fixed: {repair}"))?;
        }
        console.summary(format_args!(
            "{}: {} repairs; left:",
            output.display(),
            repairs.len()
        ))?;
    }
    for f in &findings {
        let Finding {
            code,
            severity,
            place,
            what,
            remedy,
            ..
        } = f;
        console.line(format_args!("{severity:<7} {code}: `{place}`: {what}"))?;
        let by = if f.repair.is_some() {
            " (--fix -o OUT does it)"
        } else {
            ""
        };
        console.line(format_args!("        {remedy}{by}"))?;
    }
    let word = if sound { "sound" } else { "unsound" };
    console.line(format_args!(
        "{word}: {} errors, {} warnings, {} notes",
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Note)
    ))?;
    console.line(verdict(&findings, sound, certificate.as_ref()))?;
    if let Some(path) = &args.bundle {
        let bytes = &object["bundle"]["bytes"];
        let what = "headers, settings and hashes, no weights; look into it before you attach it";
        console.summary(format_args!("{}: {bytes} bytes: {what}", path.display()))?;
    }
    Ok(if sound {
        ExitStatus::Done
    } else {
        ExitStatus::Different
    })
}

/// What the findings come to, in a sentence.
fn verdict(
    findings: &[Finding],
    sound: bool,
    certificate: Option<&(PathBuf, CertificateStatus)>,
) -> String {
    if !sound {
        return "problems found".to_owned();
    }
    let found = match findings.iter().map(|f| f.severity).max() {
        Some(Severity::Warning) => "no damage found, see the warnings",
        _ => "no problems found",
    };
    match certificate {
        Some((path, CertificateStatus::Same)) => format!(
            "{found}; settings, trits, scales and dense values are those of {}",
            path.display()
        ),
        Some((path, _)) => format!(
            "{found}; {} was not checked, because the file is not opened as a model",
            path.display()
        ),
        None => format!("{found}; changed weights need --against or --certificate"),
    }
}

/// Everything found about the model at `path`, worst first.
fn examine(
    path: &Path,
    args: &DoctorArgs,
    compare: &Compare,
    progress: &Progress,
) -> Result<Vec<Finding>, Failure> {
    let options = OpenOptions {
        layout: args.layout.clone(),
        ternary_trained: args.ternary_trained,
        ..OpenOptions::default()
    };
    let file = match bitnet_formats::open(path, &options.limits) {
        Ok(file) => file,
        // no file to examine is no finding about it
        Err(error) if error.code == ErrorCode::Io => return Err(error.into()),
        Err(error) => {
            return Ok(vec![Finding::unreadable(
                path.display().to_string(),
                &error,
            )]);
        }
    };
    let mut findings = Vec::new();
    let checkpoint = Checkpoint::open_with_evidence(path, &options, None);
    if let Err(error) = &checkpoint {
        contents::judge(path, &file, error, &mut findings);
    }
    // a tokenizer or a chat template that may harm the reader is no finding about the model
    if let Ok(checkpoint) = &checkpoint {
        match checkpoint.tokenizer() {
            Err(error) if bitnet_text::is_refused_tokenizer(&error) => return Err(error.into()),
            Ok(Some(tokenizer)) => match tokenizer.chat_templates().check() {
                Err(error) if error.code == ErrorCode::LimitExceeded => return Err(error.into()),
                _ => {}
            },
            _ => {}
        }
    }
    let patient = Patient {
        path,
        file: &file,
        checkpoint: checkpoint.as_ref().ok(),
        run: !args.no_run,
        certificate: args.certificate.as_deref(),
        compare,
    };
    let bar = progress.steps("examinations", EXAMINATIONS.len() as u64);
    for examination in EXAMINATIONS {
        bar.name(examination.name);
        (examination.examine)(&patient, &mut findings);
        bar.advance(1);
    }
    bar.finish();
    // what was found in a file that changed meanwhile is no finding
    file.check()?;
    if let Ok(checkpoint) = &checkpoint {
        checkpoint.check_inputs()?;
    }
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    Ok(findings)
}
