//! Does this artifact say, and compute, what its source does?
//!
//! Invariant: `same` is said only of what was compared. Trits, scales and dense values are compared
//! exactly; logits by the gates of `formats/numerics.md`, with an [`Oracle`] that shares no
//! arithmetic with the runtime. A new check is a file in `checks/` and a row in [`CHECKS`]; a new
//! form of report is a function over [`Report`].

#![forbid(unsafe_code)]

mod args;
mod blocks;
mod checks;
mod diagnose;
mod hash;
mod local;
mod reference;
mod report;
mod settings;
mod share;
mod verdict;

pub use args::Args;
pub use checks::padding::Padding;
pub use checks::report::{ComparedLogits, LinearFigures, MatrixFigures, Report};
pub use checks::side::{Input, Side};
pub use checks::unlike::Unlike;
pub use checks::{CHECKS, Check, Loaded, Signed, Subject, gates, run as run_checks};
pub use diagnose::doctor;
pub use diagnose::fault::{FAULTS, Fault, FaultName};
pub use reference::divergence::{Divergence, relative_error};
pub use reference::golden::{self, Golden};
pub use reference::oracle::{
    ClampAt, Deviation, Layer, Operator, Oracle, Replayed, RotatedAs, Rounding, RowOrder, ScaleAs,
    Trace,
};
pub use reference::other_runtime::OtherRuntime;
pub use reference::prompts::{Prompt, built_in_prompts, check_prompts, read_prompts};
pub use reference::thresholds::Thresholds;
pub use settings::Bounds;
pub use share::{Share, ShareRecord};
pub use verdict::{Difference, Findings, Status, Verdict};

use args::{Command, CompareArgs};
use bitnet_checkpoint::{Certificate, OpenOptions, TrustedKeys};
use bitnet_cli::{Console, ExitStatus, Failure, Progress, Reads};
use bitnet_formats::{Artifact, ErrorCode, FormatError, Inputs, Limits};
use bitnet_kernels::{Backend, KernelError};
use reference::certificate;
use report::provenance::{ModelFacts, Named, Provenance};
use report::{baseline, html, json, junit, markdown, text};
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs the program; `args` includes its name. Results go to stdout (`out`), messages to stderr (`err`).
///
/// ```
/// # use std::ffi::OsString;
/// use bitnet_cli::ExitStatus;
///
/// let model = "../../tests/fixtures/demo/packed";
/// let (mut out, mut err) = (Vec::new(), Vec::new());
/// let args = ["bitnet-verify", "doctor", model, "--json"].map(OsString::from);
/// let status = bitnet_verify::run(args.into_iter(), &mut out, &mut err);
/// assert_eq!(status, ExitStatus::Done);
/// let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
/// assert_eq!(report["status"], "sound");
/// ```
pub fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitStatus {
    let words: Vec<OsString> = args.collect();
    let parsed = bitnet_cli::parse_with(words.iter().cloned(), out, err, args::explain);
    let args: Args = match parsed {
        Ok(args) => args,
        Err(status) => return status,
    };
    if let Some(Command::Documents(documents)) = &args.command {
        let written = documents.write(command(), &args.global, out);
        let console = Console::new(&args.global, out, err);
        return console.finish(written.map(|()| ExitStatus::Done));
    }
    let mut console = Console::new(&args.global, out, err);
    let threads = args.global.thread_count();
    let result = match &args.command {
        Some(Command::Doctor(doctor)) => {
            let mut doctor = doctor.clone();
            let models = [&mut doctor.model];
            // held until the examination is over
            bitnet_cli::locate_all(models, Reads::Whole, &mut console).and_then(|_held| {
                doctor::run(&doctor, &mut console, threads, &compare_with_certificate)
            })
        }
        Some(Command::Merge(merge)) => share::merge(&merge.reports, &mut console),
        Some(Command::Documents(_)) => Ok(ExitStatus::Done),
        None => {
            let words = words.get(1..).unwrap_or_default();
            work(&args.compare, words, threads, &mut console)
        }
    };
    console.finish(result)
}

/// The definition of the command line, for tests of its help and documentation.
pub fn command() -> clap::Command {
    bitnet_cli::named(<args::Args as clap::CommandFactory>::command())
}

fn work(
    args: &CompareArgs,
    words: &[OsString],
    threads: usize,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let started = Instant::now();
    let named = args;
    let mut located = args.clone();
    let models = [&mut located.artifact, &mut located.against];
    let reads = match args.stream {
        true => Reads::Ranges,
        false => Reads::Whole,
    };
    check_request(args)?;
    // held until the report is written; a model that is not there is part of the report
    let held = bitnet_cli::locate_all(models.into_iter().flatten(), reads, console);
    let args = &located;
    check_report_paths(args)?;
    let (bounds, file) = Bounds::read(args.config.as_deref())?;
    if let Some(file) = &file {
        console.note(format_args!("thresholds of {}", file.display()))?;
    }
    let bounds = args.thresholds.clone().or(bounds);
    let progress = Progress::new(console);
    let report = held.and_then(|held| {
        let (report, models) = verify(args, &bounds, threads, &progress)?;
        Ok((report, models, held))
    });
    let (report, models, _held) = match report {
        Ok((report, models, held)) => (Ok(report), models, Some(held)),
        Err(error) => (Err(error), Vec::new(), None),
    };
    progress.clear();
    let took = started.elapsed();
    let provenance = asks_for_pages(named).then(|| {
        let names = names(named, args, words);
        Provenance::new(&names, models, took)
    });
    write_reports(named, &bounds, &report, provenance.as_ref(), took)?;
    let report = report?;
    console.line(text::of(&report).trim_end())?;
    let mut object = json::of(&report);
    if let Some(provenance) = &provenance {
        object["provenance"] = provenance.to_json();
    }
    if let Some(file) = &file {
        object["thresholds"] = file.display().to_string().into();
    }
    console.json(&object)?;
    Ok(match report.status() {
        Status::Same => ExitStatus::Done,
        Status::Different => ExitStatus::Different,
        Status::Skipped | Status::Error => ExitStatus::CouldNot,
    })
}

/// Whether the runtime is to be run.
fn wants_logits(args: &CompareArgs) -> bool {
    // with --logits-from prompts and kernels are for that comparison
    let only = args.logits_from.is_none();
    args.logits
        || args.golden.is_some()
        || only && (args.prompts.is_some() || args.kernel.is_some())
}

/// Refuses a request without anything to compare with.
fn check_request(args: &CompareArgs) -> Result<(), Failure> {
    let others = [&args.against, &args.certificate, &args.logits_from];
    if others.into_iter().all(Option::is_none) && !wants_logits(args) {
        return Err(Failure::usage("nothing to compare with")
            .hint("give --against SRC, --certificate FILE, --logits-from FILE, or --logits to run the model against the oracle"));
    }
    Ok(())
}

/// Refuses, before the work, a report that cannot be written, or that would replace an input or another report.
fn check_report_paths(args: &CompareArgs) -> Result<(), Failure> {
    let reports = [&args.junit, &args.html, &args.markdown];
    let reports: Vec<&Path> = reports.into_iter().flatten().map(|p| p.as_path()).collect();
    if reports.is_empty() {
        return Ok(());
    }
    let mut inputs = Inputs::new();
    let read = [
        &args.artifact,
        &args.against,
        &args.certificate,
        &args.trusted_keys,
        &args.golden,
        &args.logits_from,
        &args.prompts,
        &args.baseline,
        &args.config,
    ];
    for path in read.into_iter().flatten() {
        inputs.add_model(path);
    }
    // of split models all parts
    for path in [&args.artifact, &args.against].into_iter().flatten() {
        if let Ok(file) = bitnet_formats::open(path, &Limits::default()) {
            file.parts.iter().for_each(|part| inputs.add(part.path()));
        }
    }
    for (n, path) in reports.iter().enumerate() {
        Artifact::check(path, args.force)?;
        inputs.refuse(path)?;
        if reports.iter().take(n).any(|other| other == path) {
            let message = format!("{}: two reports cannot be one file", path.display());
            return Err(Failure::usage(message).hint("give each report its own file"));
        }
    }
    Ok(())
}

/// Whether people are to read the report on a page, which says where it comes from.
fn asks_for_pages(args: &CompareArgs) -> bool {
    args.html.is_some() || args.markdown.is_some()
}

/// What a report is made of: `named` as on the command line, `located` where it is on this machine.
fn names<'a>(named: &'a CompareArgs, located: &'a CompareArgs, words: &'a [OsString]) -> Named<'a> {
    let all = [
        ("artifact", &named.artifact),
        ("source", &named.against),
        ("certificate", &named.certificate),
        ("golden", &named.golden),
        ("logits from", &named.logits_from),
        ("prompts", &named.prompts),
        ("baseline", &named.baseline),
    ];
    let inputs = all.into_iter();
    let inputs = inputs.filter_map(|(role, path)| Some((role, path.as_deref()?)));
    let kernels = match wants_logits(named) {
        true => kernels(named.kernel.as_deref()).unwrap_or_default(),
        false => Vec::new(),
    };
    let here = [&located.artifact, &located.against];
    Named {
        words,
        inputs: inputs.collect(),
        located: here.into_iter().flatten().map(|p| p.as_path()).collect(),
        kernels: kernels.iter().map(|k| k.name().to_owned()).collect(),
    }
}

/// Writes the files that were asked for. A CI server is to see what could not even be opened.
fn write_reports(
    args: &CompareArgs,
    bounds: &Bounds,
    report: &Result<Report, Failure>,
    provenance: Option<&Provenance>,
    took: Duration,
) -> Result<(), Failure> {
    let cannot = |e: &Failure| Verdict::error("open", &FormatError::new(e.code, e.message.clone()));
    let broken = |e| Report {
        checks: vec![cannot(e)],
        ..Report::default()
    };
    let report = &report.as_ref().map_or_else(broken, Report::clone);
    if let Some(path) = &args.junit {
        let artifact = args.artifact().display().to_string();
        let text = junit::of(report, &artifact, took)?;
        write_new(path, args.force, &text)?;
    }
    let Some(provenance) = provenance else {
        return Ok(());
    };
    if let Some(path) = &args.html {
        let text = html::of(report, provenance, &bounds.thresholds());
        write_new(path, args.force, &text)?;
    }
    if let Some(path) = &args.markdown {
        write_new(path, args.force, &markdown::of(report, provenance))?;
    }
    Ok(())
}

/// Opens what the command line names and runs the checks it calls for.
fn verify(
    args: &CompareArgs,
    bounds: &Bounds,
    threads: usize,
    progress: &Progress,
) -> Result<(Report, Vec<ModelFacts>), Failure> {
    let logits = wants_logits(args);
    let other = args.logits_from.as_deref();
    if let Some(found) = certificate::read_if_one(args.artifact())? {
        let report = compare_certificates(args, bounds, &found)?;
        return Ok((report, Vec::new()));
    }
    let options = |layout: Option<&String>, ternary_trained| OpenOptions {
        layout: layout.cloned(),
        ternary_trained,
        ..OpenOptions::default()
    };
    let alone = args.against.is_none();
    let layout = args
        .artifact_layout
        .as_ref()
        .or(args.layout.as_ref().filter(|_| alone));
    let artifact = Input::open(
        args.artifact(),
        options(layout, alone && args.ternary_trained),
    )?;
    let source = args.against.as_deref();
    let source = source
        .map(|path| Input::open(path, options(args.layout.as_ref(), args.ternary_trained)))
        .transpose()?;
    let certificate = args
        .certificate
        .as_deref()
        .map(certificate::read)
        .transpose()?;
    let signed = signed(args)?;
    let golden = args.golden.as_deref().map(Golden::read).transpose()?;
    let config = &artifact.checkpoint.config;
    let prompts = match (&args.prompts, &golden) {
        (Some(path), _) => read_prompts(path).and_then(|p| {
            check_prompts(&p, config)
                .map(|()| p)
                .map_err(|e| e.in_file(path))
        })?,
        (None, Some(golden)) => {
            check_prompts(&golden.prompts, config)?;
            golden.prompts.clone()
        }
        (None, None) => built_in_prompts(config),
    };
    let given = args.prompts.is_some() || golden.is_some();
    let other = other.map(|path| {
        let other = OtherRuntime::read(path, given.then_some(&prompts))?;
        check_prompts(&other.recorded.prompts, config).map_err(|e| e.in_file(path))?;
        Ok::<_, FormatError>(other)
    });
    let other = other.transpose()?;
    let kernels = kernels(args.kernel.as_deref())?;
    let baseline = read_baseline(args)?;
    let thresholds = bounds.thresholds();
    let subject = Subject {
        artifact: Side::Model(&artifact),
        source: source.as_ref().map(Side::Model),
        certificate: certificate.as_ref(),
        signed,
        logits,
        golden: golden.as_ref(),
        other: other.as_ref(),
        prompts: &prompts,
        kernels: &kernels,
        thresholds: &thresholds,
        figures: args.html.is_some(),
        padding: args.against.is_some() && args.shard.is_none(),
        share: args.shard,
        loaded: Loaded::default(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| {
        Failure::new(ErrorCode::Io, format!("cannot start threads: {e}")).because(e)
    })?;
    let mut report = pool.install(|| run_checks(&subject, progress));
    add_baseline(&mut report, baseline.as_ref(), bounds);
    let mut models = Vec::new();
    if asks_for_pages(args) {
        let sides = [("artifact", Some(&artifact)), ("source", source.as_ref())];
        for (role, side) in sides {
            let facts = side.map(|side| ModelFacts::of(role, side, progress));
            models.extend(facts.transpose()?);
        }
        models.extend(certificate.as_ref().map(ModelFacts::certified));
    }
    // what was read of a file that changed meanwhile proves nothing
    for input in [Some(&artifact), source.as_ref()].into_iter().flatten() {
        input.checkpoint.check_inputs()?;
    }
    Ok((report, models))
}

/// What `--trusted-keys` asks for.
fn signed(args: &CompareArgs) -> Result<Option<Signed>, FormatError> {
    let both = args.trusted_keys.as_ref().zip(args.certificate.as_ref());
    let signed = both.map(|(keys, certificate)| {
        Ok(Signed {
            certificate: certificate.clone(),
            keys: TrustedKeys::read(keys)?,
        })
    });
    signed.transpose()
}

/// The artifact is a certificate itself.
fn compare_certificates(
    args: &CompareArgs,
    bounds: &Bounds,
    found: &Certificate,
) -> Result<Report, Failure> {
    let needs_model = [
        (args.against.is_some(), "compare with --against"),
        (args.logits || args.golden.is_some(), "run"),
        (args.prompts.is_some() || args.kernel.is_some(), "run"),
    ];
    let hint = "give --certificate FILE alone to compare two certificates";
    if let Some((_, what)) = needs_model.into_iter().find(|(asked, _)| *asked) {
        return Err(Failure::from(refuse_certificate(what)).hint(hint));
    }
    let Some(path) = &args.certificate else {
        return Err(Failure::from(refuse_certificate("compare")).hint(hint));
    };
    let baseline = read_baseline(args)?;
    let expected = certificate::read(path)?;
    let mut report = run_checks(
        &Subject {
            source: Some(Side::Certificate(&expected)),
            signed: signed(args)?,
            ..Subject::alone(Side::Certificate(found), &bounds.thresholds())
        },
        &Progress::hidden(),
    );
    add_baseline(&mut report, baseline.as_ref(), bounds);
    Ok(report)
}

/// What has to be asked differently when the artifact is a certificate.
fn refuse_certificate(what: &str) -> FormatError {
    FormatError::new(
        ErrorCode::Usage,
        format!("ARTIFACT is a certificate: there is no model to {what}"),
    )
}

/// Compares a model with a certificate, for the doctor.
fn compare_with_certificate(
    path: &Path,
    options: OpenOptions,
    certificate: &Certificate,
) -> Result<doctor::Compared, FormatError> {
    let artifact = Input::open(path, options)?;
    let thresholds = Thresholds::default();
    let subject = Subject {
        certificate: Some(certificate),
        ..Subject::alone(Side::Model(&artifact), &thresholds)
    };
    let report = run_checks(&subject, &Progress::hidden());
    let other_model = report.different_models();
    let differences = report.checks.into_iter().flat_map(|c| c.differences);
    Ok(doctor::Compared {
        other_model,
        differences: differences.collect(),
    })
}

/// What an earlier run reported, if there is one to compare with.
fn read_baseline(args: &CompareArgs) -> Result<Option<Value>, FormatError> {
    let path = args.baseline.as_deref();
    path.map(baseline::read).transpose()
}

fn add_baseline(report: &mut Report, before: Option<&Value>, bounds: &Bounds) {
    if let Some(before) = before {
        let slack = bounds.baseline_slack.unwrap_or(baseline::SLACK);
        let worse = baseline::compare(report, before, slack);
        report.checks.push(worse);
    }
}

/// The kernels that `--kernel` names.
fn kernels(name: Option<&str>) -> Result<Vec<Backend>, Failure> {
    match name {
        None => Ok(vec![Backend::best()]),
        Some("all") => Ok(Backend::available().collect()),
        Some(name) => match Backend::by_name(name) {
            Ok(backend) => Ok(vec![backend]),
            Err(error) => {
                let names: Vec<&str> = Backend::available().map(|b| b.name()).collect();
                let failure = Failure::new(ErrorCode::Kernel, error.to_string());
                let meant = match &error {
                    KernelError::Unknown { known, .. } => {
                        bitnet_cli::did_you_mean(name, known.iter().copied())
                    }
                    KernelError::Unavailable { .. } => None,
                };
                let failure = meant.into_iter().fold(failure, Failure::hint);
                Err(failure.hint(format!(
                    "name a kernel of this machine ({}), or `all` of them",
                    names.join(", ")
                )))
            }
        },
    }
}

fn write_new(path: &Path, force: bool, text: &str) -> Result<(), FormatError> {
    let mut file = Artifact::create(path, force)?;
    file.write(text.as_bytes())?;
    file.finish().map(|_| ())
}
