//! One conversion on many machines: a plan from the headers, jobs that each write one file, and the joining of what they
//! wrote.
//!
//! Invariant: plan, jobs in any order and with any repeats, and finish make the bytes that one machine makes, certificate
//! included. A job keeps no state: whatever happened before, it leaves its part whole or not at all.

mod finished;
mod parts;
mod place;
mod plan_file;
mod store_parts;

use self::finished::Asked;
use self::parts::Part;
use self::place::{Destination, Place};
use self::plan_file::{PlanFile, PlanPlace};
use crate::args::{FinishArgs, JobArgs, PlanArgs};
use crate::certificate::Digests;
use crate::convert;
use crate::look_ahead;
use crate::pipeline::{self, Passed, QuantizedMasters};
use crate::plan::{self, Loss, Plan, Request};
use crate::publish::{self, Output, Published, Records};
use bitnet_checkpoint::{
    Checkpoint, FileRecord, HashedFile, PartialCertificate, TernaryRecord, Verdict,
};
use bitnet_cli::{
    Console, Failure, GlobalArgs, Located, Progress, Reads, ResourceMonitor, human_bytes,
    human_duration, shell_word,
};
use bitnet_formats::{Artifact, ErrorCode, FileDigest, FormatError, Inputs, OutputLock};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Whether a text is a plan.
pub fn check_plan(path: &Path, text: &[u8]) -> Result<(), Failure> {
    PlanFile::parse(path, text).map(|_| ())
}

/// `bitnet-convert plan`.
pub fn plan(args: &PlanArgs, console: &mut Console<'_>) -> Result<(), Failure> {
    let conversion = &args.conversion;
    let (Some(source), Some(output)) = (&conversion.source, &conversion.output) else {
        return Err(Failure::usage("SRC and -o OUT are missing"));
    };
    let Some(target) = conversion.to else {
        let message = "a plan needs --to TARGET: all jobs write the same format";
        return Err(Failure::usage(message).hint("choose one that `bitnet-convert list` shows"));
    };
    if plan_file::absolute(&args.plan)? == plan_file::absolute(output)? {
        return Err(Failure::usage("the plan and the output have the same name")
            .hint("name another file with --plan"));
    }
    let written = PlanPlace::new(&args.plan, args.force)?;
    let destination = Destination::new(output)?;
    let given = output;
    let places = [plan_file::absolute(source)?, plan_file::absolute(output)?];
    let output = destination.path();
    publish::check_name(output)?;
    convert::check_target(target, output, given)?;
    let (held, local) = crate::locate(source, &conversion.how, Reads::Ranges, console)?;
    let opened = held.first().map_or(source.as_path(), Located::path);
    let checkpoint = crate::open(opened, &local)?;
    convert::say_layout(&checkpoint, console)?;
    crate::warn_of_the_source(&checkpoint, console)?;
    let inputs = publish::inputs(&checkpoint, &local)?;
    inputs.refuse(output)?;
    inputs.refuse(&args.plan)?;
    if conversion.unfold {
        let message = "--unfold: expected a conversion on one machine, found a plan for several";
        return Err(Failure::usage(message).hint("run bitnet-convert SRC -o OUT --unfold"));
    }
    let request = convert::request(conversion, output, target);
    let planned = plan::build(&checkpoint, &request)?;
    publish::refuse_objects_of_the_source(&checkpoint, &planned, output)?;
    publish::refuse_objects_of_the_source(&checkpoint, &planned, &args.plan)?;
    for note in &planned.notes {
        console.warn(&note.message)?;
    }
    let mut how = conversion.how.clone();
    if how.against.take().is_some() {
        how.layout = checkpoint
            .layout
            .as_ref()
            .map(|found| found.packing.to_owned());
    }
    let [source, output] = places;
    let file = PlanFile {
        plan_sha256: plan::plan_sha256(&checkpoint, &planned, request.rounding)?,
        source,
        output,
        target,
        embeddings: conversion.embeddings,
        allow_scale_rounding: conversion.allow_scale_rounding,
        split_max_size: conversion.split_max_size,
        layout: how.layout,
        ternary_trained: how.ternary_trained,
    };
    let count = planned.files.len();
    let jobs = (0..count).map(|index| {
        let items = planned.items.iter().filter(|item| item.file == index);
        let sources = hashed_by(&checkpoint, index, count);
        let names = checkpoint.file.parts.get(sources).unwrap_or(&[]).iter();
        let names = names.map(|part| file_name(part.path()));
        json!({
            "index": index,
            "file": planned.files.get(index).map(|file| file_name(&file.path)),
            "bytes": planned.files.get(index).map(|file| file.header.total),
            "tensors": items.count(),
            "hashes": names.collect::<Value>(),
        })
    });
    let jobs: Vec<Value> = jobs.collect();
    let mut object = file.to_json();
    object["tensors"] = planned.items.len().into();
    object["total_bytes"] = planned.total_bytes().into();
    object["jobs"] = jobs.into();
    written.write(&bitnet_checkpoint::pretty_json(&object))?;
    console.json(&json!({
        "status": "jobs-planned",
        "plan": written.name(),
        "plan_sha256": file.plan_sha256,
        "jobs": object["jobs"],
        "total_bytes": planned.total_bytes(),
        "peak_memory_bytes": planned.peak_memory,
    }))?;
    console.summary(format_args!(
        "{count} jobs write {} to {}; each needs about {} of memory",
        human_bytes(planned.total_bytes()),
        file.output.display(),
        human_bytes(planned.peak_memory)
    ))?;
    let plan = shell_word(written.name());
    console.summary(format_args!(
        "  bitnet-convert job {plan} --index I    for I from 0 to {}",
        count.saturating_sub(1)
    ))?;
    console.summary(format_args!("  bitnet-convert finish {plan}"))?;
    Ok(())
}

/// `bitnet-convert job`.
pub fn job(args: &JobArgs, global: &GlobalArgs, console: &mut Console<'_>) -> Result<(), Failure> {
    let indices = match args.index.is_empty() {
        true => vec![index_of_environment()?],
        false => args.index.clone(),
    };
    let opened = Opened::open(&args.plan, console)?;
    let count = opened.plan.files.len();
    if let Some(index) = indices.iter().find(|index| **index >= count) {
        let message = format!(
            "the plan has {count} jobs, from 0 to {}, found job {index}",
            count - 1
        );
        return Err(Failure::usage(message).hint("give --index a number in this range"));
    }
    let mut done = Vec::new();
    for index in indices {
        let monitor = ResourceMonitor::start();
        let progress = Progress::new(console);
        let ran = opened.run(index, global.thread_count(), &progress);
        progress.clear();
        let (part, skipped) = ran.map_err(|e| match opened.checkpoint.check_inputs() {
            Err(changed) => Failure::from(changed),
            Ok(()) => e.into(),
        })?;
        let (word, seconds) = (if skipped { "skipped" } else { "done" }, monitor.seconds());
        done.push(json!({
            "index": index,
            "status": word,
            "file": part.certificate.output.name,
            "bytes": part.certificate.output.bytes,
            "sha256": part.certificate.output.sha256,
            "seconds": seconds,
        }));
        console.summary(format_args!(
            "job {index} of {count} {}: {} ({}) in {}",
            if skipped {
                "was done before"
            } else {
                "is done"
            },
            part.certificate.output.name,
            human_bytes(part.certificate.output.bytes),
            human_duration(seconds),
        ))?;
    }
    console
        .json(&json!({"status": "jobs-done", "plan_sha256": opened.file.plan_sha256, "jobs": done}))
}

/// `bitnet-convert finish`.
pub fn finish(
    args: &FinishArgs,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let monitor = ResourceMonitor::start();
    let opened = Opened::open(&args.plan, console)?;
    let Opened {
        checkpoint,
        plan,
        file,
        output,
        place,
        ..
    } = &opened;
    let _lock = OutputLock::take(output)?;
    let progress = Progress::new(console);
    let mut inputs = publish::inputs(checkpoint, &file.how())?;
    let key = publish::signing_key(args.sign.as_deref(), &mut inputs)?;
    let request = file.request(output);
    let finished = || -> Result<Option<Published>, FormatError> {
        let asked = Asked {
            checkpoint,
            plan,
            output,
            place,
            key: key.as_ref(),
            threads: global.thread_count(),
        };
        let found = finished::find(asked, &progress);
        progress.clear();
        found
    };
    let end = |published: &Published, console: &mut Console<'_>| -> Result<(), Failure> {
        if args.remove_parts {
            place.remove(plan.files.len())?;
        }
        convert::report(checkpoint, plan, &request, published, &monitor, console)
    };
    if !args.force
        && let Some(published) = finished()?
    {
        return end(&published, console);
    }
    let found = place.all(plan, global.thread_count(), &progress);
    progress.clear();
    let found = match found? {
        Ok(found) => found,
        // parts that an earlier run removed are not missed
        Err(missing) => match args.force.then(finished).transpose()?.flatten() {
            Some(published) => return end(&published, console),
            None => return Err(place.missing(&missing, &args.plan)),
        },
    };
    // no job reads all of the source: a change between two of them would make a certificate of a source that never was
    let times = opened.source_modified();
    let stale = found
        .iter()
        .filter(|p| p.certificate.source_modified != times);
    let stale: Vec<usize> = stale.map(|part| part.certificate.job).collect();
    if !stale.is_empty() {
        return Err(changed_between_jobs(&stale).into());
    }
    let records = records(checkpoint, &found)?;
    let output = Output::start(plan, request.output, &inputs, args.force, key.as_ref())?;
    let published = match place {
        Place::Disk(_) => {
            let mut staged = Vec::with_capacity(found.len());
            for (part, planned) in found.iter().zip(&plan.files) {
                staged.push(output.existing(&part.file, &planned.path)?);
            }
            output.publish(checkpoint, Vec::new(), staged, records)?
        }
        Place::Store(parts) => {
            // the weights are in the store; everything else is written here first
            let weights = found
                .iter()
                .zip(&plan.files)
                .map(|(part, planned)| FileDigest {
                    path: planned.path.clone(),
                    ..part.file.clone()
                });
            let published = output.publish(checkpoint, weights.collect(), Vec::new(), records)?;
            let files = beside_the_weights(&published, plan.files.len());
            let sent = parts.publish(&found, &plan.files, &files, args.force, &progress);
            progress.clear();
            let damaged = sent?;
            if !damaged.is_empty() {
                return Err(place.missing(&damaged, &args.plan));
            }
            published
        }
    };
    end(&published, console)
}

/// The files of an output that are no weights, in the order in which they become visible: an index after the others, the
/// certificate last.
fn beside_the_weights(published: &Published, weights: usize) -> Vec<PathBuf> {
    let beside = published.outputs.iter().skip(weights);
    let mut files: Vec<PathBuf> = beside.map(|file| file.path.clone()).collect();
    files.sort_by_key(|path| path.to_string_lossy().ends_with(".index.json"));
    files.extend(published.signed.iter().flatten().cloned());
    files.push(published.certificate.clone());
    files
}

/// What all jobs found out, together.
fn records(checkpoint: &Checkpoint, parts: &[Part]) -> Result<Records, FormatError> {
    let mut digests = Digests::default();
    let (mut losses, mut masters) = (Vec::new(), QuantizedMasters::default());
    let mut sources: Vec<Option<FileDigest>> = vec![None; checkpoint.file.parts.len()];
    for Part { certificate, .. } in parts {
        for TernaryRecord { digest, verdict } in &certificate.ternary {
            if let Verdict::Rounded(error) = verdict {
                digests.rounded.insert(digest.name.clone(), *error);
            }
            digests.output.insert(digest.clone());
            digests.source.insert(digest.clone());
        }
        // a source digest of its own replaces that of the output
        for record in &certificate.source_ternary {
            digests.source.insert(record.digest.clone());
        }
        for record in &certificate.dense {
            digests.dense.insert(record.name.clone(), record.clone());
        }
        for loss in &certificate.losses {
            losses.extend(Loss::from_json(loss));
        }
        let (tensors, change, total) = certificate.masters;
        masters.tensors += tensors;
        masters.change += change;
        masters.total += total;
        for HashedFile { number, file } in &certificate.source {
            let part = checkpoint.file.parts.get(*number);
            if let (Some(part), Some(place)) = (part, sources.get_mut(*number)) {
                *place = Some(FileDigest {
                    path: part.path().to_owned(),
                    bytes: file.bytes,
                    sha256: file.sha256.clone(),
                });
            }
        }
    }
    let sources: Option<Vec<FileDigest>> = sources.into_iter().collect();
    let Some(sources) = sources else {
        let message = "the jobs together did not hash every file of the source";
        return Err(FormatError::new(ErrorCode::Malformed, message)
            .hint("make the plan again, and run its jobs"));
    };
    Ok(Records {
        sources,
        digests,
        losses,
        masters,
    })
}

/// A plan with the source that it was made of.
struct Opened {
    file: PlanFile,
    checkpoint: Checkpoint,
    plan: Plan,
    /// The path of the output, or one that stands for it.
    output: PathBuf,
    place: Place,
    /// Keeps the paths of a remote source.
    _held: Vec<Located>,
}

impl Opened {
    /// Reads a plan, plans again, and refuses a source that would give another output.
    fn open(path: &Path, console: &mut Console<'_>) -> Result<Self, Failure> {
        let file = PlanFile::read(path)?;
        let (held, how) = crate::locate(&file.source, &file.how(), Reads::Ranges, console)?;
        let source = held.first().map_or(file.source.as_path(), Located::path);
        let checkpoint = crate::open(source, &how)?;
        let destination = Destination::new(&file.output)?;
        let output = destination.path().to_owned();
        let request = file.request(&output);
        let plan = plan::build(&checkpoint, &request)?;
        let found = plan::plan_sha256(&checkpoint, &plan, request.rounding)?;
        if found != file.plan_sha256 {
            let message = format!(
                "{} is not what the plan was made of: expected plan_sha256 {}, found {found}",
                file.source.display(),
                file.plan_sha256
            );
            return Err(Failure::new(ErrorCode::InputChanged, message)
                .hint("make the plan again with this version of bitnet-convert, and run all of its jobs again"));
        }
        publish::refuse_objects_of_the_source(&checkpoint, &plan, &output)?;
        Ok(Self {
            file,
            checkpoint,
            plan,
            output,
            place: destination.of_plan(&found),
            _held: held,
        })
    }

    /// When each file of the source was last changed, where that tells one content from another: a file of this disk that
    /// is no part of a commit.
    fn source_modified(&self) -> Vec<Option<String>> {
        let parts = self.checkpoint.file.parts.iter();
        let of_part = |path: &Path| {
            if bitnet_formats::origin_of(path).is_some() {
                return None;
            }
            let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok()?;
            let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(format!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
        };
        parts.map(|part| of_part(part.path())).collect()
    }

    /// Runs a job, unless its part is there. Whether it was.
    fn run(
        &self,
        index: usize,
        threads: usize,
        progress: &Progress,
    ) -> Result<(Part, bool), FormatError> {
        let Self {
            file,
            checkpoint,
            plan,
            output,
            place,
            ..
        } = self;
        let Some(planned) = plan.files.get(index) else {
            return Err(FormatError::new(
                ErrorCode::Usage,
                format!("the plan has no job {index}"),
            ));
        };
        let source_modified = self.source_modified();
        if let Some(part) = place.part(index, planned, progress)?
            && part.certificate.source_modified == source_modified
        {
            return Ok((part, true));
        }
        let inputs: Inputs = checkpoint.inputs();
        inputs.refuse(place.directory())?;
        place.prepare(index)?;
        let request: Request<'_> = file.request(output);
        let share = plan.share(index);
        look_ahead::run(checkpoint, &share, &request, threads, progress)?;
        let hashed = hashed_by(checkpoint, index, plan.files.len());
        let walked = (0..checkpoint.file.parts.len())
            .map(|n| hashed.contains(&n))
            .collect();
        let artifact = Artifact::create(&place.file(index), true)?;
        let passed = pipeline::run(
            checkpoint,
            &share,
            &request,
            vec![artifact],
            walked,
            threads,
            progress,
        );
        // if an input changed, every other error is a consequence
        checkpoint.check_inputs()?;
        if self.source_modified() != source_modified {
            return Err(changed_between_jobs(&[index]));
        }
        let Passed {
            sources,
            artifacts,
            digests,
            losses,
            masters,
        } = passed?;
        let mut written = None;
        for artifact in artifacts {
            written = Some(artifact.finish()?);
        }
        let Some(written) = written else {
            return Err(FormatError::new(ErrorCode::Io, "the job wrote nothing"));
        };
        let source = sources
            .into_iter()
            .enumerate()
            .filter_map(|(number, digest)| {
                let digest = digest?;
                Some(HashedFile {
                    number,
                    file: record(&digest, file_name(&digest.path)),
                })
            });
        let verdict = |name: &str| {
            digests
                .rounded
                .get(name)
                .map_or(Verdict::Exact, |e| Verdict::Rounded(*e))
        };
        let source_ternary = digests
            .source
            .tensors()
            .filter(|digest| digests.rounded.contains_key(&digest.name));
        let certificate = PartialCertificate {
            plan_sha256: file.plan_sha256.clone(),
            job: index,
            source: source.collect(),
            source_modified,
            output: record(&written, file_name(&planned.path)),
            ternary: digests
                .output
                .tensors()
                .map(|digest| TernaryRecord {
                    digest: digest.clone(),
                    verdict: verdict(&digest.name),
                })
                .collect(),
            source_ternary: source_ternary
                .map(|digest| TernaryRecord {
                    digest: digest.clone(),
                    verdict: Verdict::Exact,
                })
                .collect(),
            dense: digests.dense.values().cloned().collect(),
            losses: losses.iter().map(Loss::to_json).collect(),
            masters: (masters.tensors, masters.change, masters.total),
        };
        place.put(&certificate, &written, progress)?;
        Ok((
            Part {
                certificate,
                file: written,
            },
            false,
        ))
    }
}

fn changed_between_jobs(jobs: &[usize]) -> FormatError {
    const NAMED: usize = 20;
    let named = jobs.iter().take(NAMED);
    let named: Vec<String> = named.map(|job| format!("--index {job}")).collect();
    let (more, which) = match jobs.len().saturating_sub(NAMED) {
        0 => (String::new(), "these indices"),
        more => (
            format!(" and {more} more, {} jobs in all", jobs.len()),
            "the indices of all of them, or make the plan again",
        ),
    };
    let message = format!(
        "the source changed since these jobs read it: {}{more}",
        named.join(" ")
    );
    FormatError::new(ErrorCode::InputChanged, message).hint(format!(
        "run `bitnet-convert job` again with {which}; a copy of the source on another machine needs the times of the \
         original (cp -p, rsync -t)"
    ))
}

/// Which files of the source a job hashes: each is hashed by one job, in the order of both.
fn hashed_by(checkpoint: &Checkpoint, index: usize, jobs: usize) -> Range<usize> {
    let files = checkpoint.file.parts.len();
    let first = |job: usize| (job * files).div_ceil(jobs.max(1));
    first(index)..first(index + 1)
}

fn record(file: &FileDigest, name: String) -> FileRecord {
    FileRecord {
        name,
        bytes: file.bytes,
        sha256: file.sha256.clone(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The number of the job that a cluster's scheduler set.
fn index_of_environment() -> Result<usize, Failure> {
    const VARIABLES: [&str; 2] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"];
    for name in VARIABLES {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let value = value.to_string_lossy();
        return value.parse().map_err(|_| {
            Failure::usage(format!(
                "expected the number of a job in {name}, found `{value}`"
            ))
            .hint("set it to a number from 0 on, or give --index")
        });
    }
    Err(Failure::usage("which job to run is not given")
        .hint("give --index I, or set SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_changed_for_many_jobs_names_a_few_and_counts_all() {
        let few = changed_between_jobs(&[3, 5]);
        assert!(
            few.message.ends_with("read it: --index 3 --index 5"),
            "{few}"
        );
        let hint = few.hint.unwrap_or_default();
        assert!(
            hint.contains("with these indices; a copy of the source"),
            "{hint}"
        );
        assert!(hint.ends_with("(cp -p, rsync -t)"), "{hint}");
        let all: Vec<usize> = (0..10_000).collect();
        let many = changed_between_jobs(&all);
        assert!(many.message.contains("--index 0 --index 1 "), "{many}");
        assert!(
            many.message
                .ends_with("--index 19 and 9980 more, 10000 jobs in all"),
            "{many}"
        );
        assert!(many.hint.unwrap_or_default().contains("of all of them"));
    }
}
