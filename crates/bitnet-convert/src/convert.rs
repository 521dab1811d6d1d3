//! The conversion as a program: choose a target, plan, pass, publish, report.
//!
//! Invariant: the order is always check, write, publish, report; an error at any point before
//! publishing leaves nothing behind. One conversion at a time writes an output.

use crate::args::{Args, ConversionArgs, ConvertArgs};
use crate::look_ahead;
use crate::plan::{self, Loss, Plan, Request};
use crate::publish::{self, Published, Writing, certificate_path};
use crate::readers::{self, FileFacts};
use crate::targets::{self, GGUF_PREFERENCE, Kind, Target};
use bitnet_checkpoint::{Checkpoint, LayoutReason, SigningKey};
use bitnet_cli::{
    Console, Failure, Located, Location, Progress, Reads, ResourceMonitor, Table, human_bytes,
    human_duration, peak_rss_bytes,
};
use bitnet_formats::{
    ErrorCode, FileDigest, Inputs, OutputLock, ScaleRounding, named, names_directory, shell_word,
};
use bitnet_remote::StoreOutput;
use bitnet_text::TokenizerNote;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Runs a conversion.
pub fn run(args: &Args, console: &mut Console<'_>) -> Result<(), Failure> {
    let monitor = ResourceMonitor::start();
    let (convert, how) = (&args.convert, &args.convert.conversion.how);
    let (Some(source), Some(output)) = (&convert.conversion.source, &convert.conversion.output)
    else {
        return Err(Failure::usage("SRC and -o OUT are missing"));
    };
    let remote = match Location::parse(output)? {
        Some(location) => Some(StoreOutput::prepare(&location)?),
        None => None,
    };
    if let Some(remote) = remote.as_ref().filter(|_| !convert.force) {
        remote.refuse_existing()?;
    }
    let given = output.as_path();
    let output = remote.as_ref().map_or(given, StoreOutput::path);
    publish::check_name(output)?;
    let candidates = candidates(convert.conversion.to, output, given)?;
    let reads = match (convert.dry_run, how.stream) {
        (true, _) => Reads::Headers,
        (false, true) => Reads::Ranges,
        (false, false) => Reads::Whole,
    };
    let (held, how) = crate::locate(source, how, reads, console)?;
    let source = held.first().map_or(source.as_path(), Located::path);
    let located = Args {
        convert: ConvertArgs {
            conversion: ConversionArgs {
                how,
                ..convert.conversion.clone()
            },
            ..convert.clone()
        },
        command: None,
        global: args.global.clone(),
    };
    let (args, convert) = (&located, &located.convert);
    let how = &convert.conversion.how;
    let checkpoint = crate::open(source, how)?;
    say_layout(&checkpoint, console)?;
    crate::warn_of_the_source(&checkpoint, console)?;
    let mut inputs = publish::inputs(&checkpoint, how)?;
    let key = publish::signing_key(convert.sign.as_deref(), &mut inputs)?;
    inputs.refuse(output)?;
    // held until the output and its certificate are there
    let mut _lock = None;
    if !convert.dry_run {
        let kind = candidates[0].kind;
        inputs.refuse(&certificate_path(output, kind))?;
        _lock = Some(OutputLock::take(output)?);
        publish::refuse_existing_certificate(output, kind, convert.force)?;
    }
    let places = Places {
        inputs: &inputs,
        remote: remote.as_ref(),
        key: key.as_ref(),
    };
    let mut refusals: Vec<String> = Vec::new();
    for (n, &target) in candidates.iter().enumerate() {
        let request = request(&convert.conversion, output, target);
        let attempt = attempt(
            args,
            &checkpoint,
            &request,
            &places,
            &refusals,
            &monitor,
            console,
        );
        // if an input changed, also while the plan was made, every other error is a consequence
        let attempt = attempt.map_err(|e| match checkpoint.check_inputs() {
            Err(changed) => changed.into(),
            Ok(()) => e,
        });
        match attempt {
            // what one target cannot hold, the next one may
            Err(e) if n + 1 < candidates.len() && is_refusal(&e) => {
                refusals.push(format!("{}: {}", target.name, e.message));
            }
            done => return done,
        }
    }
    Ok(())
}

/// Which layout an ambiguous source was read in; loud where nothing decided it.
pub(crate) fn say_layout(
    checkpoint: &Checkpoint,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some(evidence) = &checkpoint.layout else {
        return Ok(());
    };
    let packing = evidence.packing;
    match evidence.reason {
        LayoutReason::Forced | LayoutReason::Recorded => Ok(()),
        LayoutReason::Source => {
            console.note(format!("layout {packing}: the trits of the other copy"))
        }
        LayoutReason::Evidence => console.note(format!("layout {packing}, by the data")),
        LayoutReason::Assumed if evidence.readings.iter().any(|r| r.is_tiling) => {
            console.warn(format!(
                "the file does not record its tiling; {packing} is assumed \
                 (--layout NAME or --against MODEL to be sure)"
            ))
        }
        LayoutReason::Assumed => console.warn(format!(
            "the data do not decide between {}; {packing} is assumed \
             (--layout NAME or --against MODEL to be sure)",
            evidence.candidates().join(", ")
        )),
    }
}

fn is_refusal(failure: &Failure) -> bool {
    matches!(
        failure.code,
        ErrorCode::TargetCannotHold | ErrorCode::ScaleRounding
    )
}

fn names_a_file(output: &Path) -> bool {
    let extension = output.extension();
    extension.is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Refuses the name of a file for a target that is a directory, and the other way round. `given` is the output as the
/// command line has it.
pub(crate) fn check_target(target: &Target, output: &Path, given: &Path) -> Result<(), Failure> {
    if target.kind == Kind::Gguf && names_directory(given) && !output.is_dir() {
        let message = format!(
            "{}: {} is a file, found the name of a directory (it ends in a slash)",
            given.display(),
            target.name
        );
        let file = shell_word(given.join("model.gguf"));
        let make = match Location::is_remote(given) {
            true => "",
            false => "; make the directory first if it does not exist",
        };
        return Err(Failure::usage(message).hint(format!("name the file: -o {file}{make}")));
    }
    if target.kind == Kind::HuggingFace && names_a_file(output) {
        let message = format!(
            "{} is a directory, found an output named .gguf",
            target.name
        );
        return Err(Failure::usage(message).hint("--to gguf-i2_s, or another output name"));
    }
    Ok(())
}

/// The targets to try, in order.
fn candidates(
    to: Option<&'static Target>,
    output: &Path,
    given: &Path,
) -> Result<Vec<&'static Target>, Failure> {
    let names_a_file = names_a_file(output);
    if let Some(target) = to {
        check_target(target, output, given)?;
        return Ok(vec![target]);
    }
    if names_a_file {
        let all = GGUF_PREFERENCE.iter();
        let all: Vec<_> = all.filter_map(|name| targets::by_name(name)).collect();
        if let Some(first) = all.first() {
            check_target(first, output, given)?;
        }
        return Ok(all);
    }
    let suffix = output
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    if ["safetensors", "bin", "pt", "pth", "json"].contains(&suffix.as_str()) {
        let message = format!("an output named .{suffix} says no target");
        return Err(Failure::usage(message)
            .hint("name a directory for a Hugging Face checkpoint, or a .gguf file")
            .hint("--to names the target; `bitnet-convert list` lists them"));
    }
    Ok(targets::by_name("hf-packed").into_iter().collect())
}

pub(crate) fn request<'a>(
    convert: &ConversionArgs,
    output: &'a Path,
    target: &'static Target,
) -> Request<'a> {
    Request {
        output,
        target,
        embeddings: convert.embeddings,
        rounding: match convert.allow_scale_rounding {
            true => ScaleRounding::Allow,
            false => ScaleRounding::Refuse,
        },
        split_max_size: convert.split_max_size,
        unfold: convert.unfold,
    }
}

/// What an output may not replace, and where it goes if not to this disk.
struct Places<'a> {
    inputs: &'a Inputs,
    remote: Option<&'a StoreOutput>,
    key: Option<&'a SigningKey>,
}

/// Plans and, unless it is a dry run, converts to one target.
fn attempt(
    args: &Args,
    checkpoint: &Checkpoint,
    request: &Request<'_>,
    places: &Places<'_>,
    refusals: &[String],
    monitor: &ResourceMonitor,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let plan = plan::build(checkpoint, request)?;
    publish::refuse_objects_of_the_source(checkpoint, &plan, request.output)?;
    if args.convert.conversion.to.is_none() {
        for refusal in refusals {
            console.note(format_args!("not {refusal}"))?;
        }
        console.note(format_args!(
            "--to {}: {}",
            plan.target.name, plan.target.about
        ))?;
    }
    for note in &plan.notes {
        console.warn(&note.message)?;
    }
    for sentence in plan.not_computed.sentences() {
        console.warn(sentence)?;
    }
    let threads = args.global.thread_count();
    let progress = Progress::new(console);
    // also of a dry run: what the plan cannot promise without a look at the values is looked at
    look_ahead::run(checkpoint, &plan, request, threads, &progress)?;
    if args.convert.dry_run {
        return print_plan(checkpoint, &plan, request.output, console);
    }
    let published = publish::publish(
        checkpoint,
        &plan,
        request,
        places.inputs,
        Writing {
            force: args.convert.force,
            key: places.key,
            threads,
        },
        &progress,
    );
    progress.clear();
    let published = published?;
    if let Some(remote) = places.remote {
        // readers start at the first file: it is the last to be seen
        let outputs = published.outputs.iter().rev().map(|file| file.path.clone());
        let files: Vec<PathBuf> = [published.certificate.clone()]
            .into_iter()
            .chain(published.signed.clone().into_iter().flatten())
            .chain(outputs)
            .collect();
        bitnet_cli::publish(remote, &files, args.convert.force, console)?;
    }
    report(checkpoint, &plan, request, &published, monitor, console)
}

fn source_json(checkpoint: &Checkpoint, files: Option<&[FileDigest]>) -> Value {
    let mut object = json!({
        "path": named(&checkpoint.path).display().to_string(),
        "container": checkpoint.file.container,
        "family": checkpoint.family.name,
    });
    if let Some(origin) = bitnet_formats::origin_of(&checkpoint.path) {
        object["repository"] = json!(origin.repository);
        object["commit"] = json!(origin.commit);
    }
    if let Some(evidence) = &checkpoint.layout {
        object["layout"] = json!({
            "packing": evidence.packing,
            "reason": evidence.reason.as_str(),
            "candidates": evidence.candidates(),
        });
    }
    if let Some(files) = files {
        object["files"] = files.iter().map(digest_json).collect();
    }
    object
}

/// A file as reports name it.
pub fn digest_json(file: &FileDigest) -> Value {
    let path = named(&file.path);
    json!({"path": path.display().to_string(), "bytes": file.bytes, "sha256": file.sha256})
}

fn notes_json(plan: &Plan) -> Value {
    let note = |note: &TokenizerNote| json!({"code": note.code, "message": note.message});
    plan.notes.iter().map(note).collect()
}

fn bits_per_weight(checkpoint: &Checkpoint, plan: &Plan) -> f64 {
    let (bytes, weights) = plan.ternary_bits(checkpoint);
    if weights == 0 {
        0.0
    } else {
        bytes as f64 * 8.0 / weights as f64
    }
}

/// Reports a finished conversion.
pub(crate) fn report(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    published: &Published,
    monitor: &ResourceMonitor,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Published {
        sources,
        outputs,
        certificate,
        signed,
        ternary_sha256,
        source_ternary_sha256,
        losses,
        masters,
        is_older,
    } = published;
    let bytes: u64 = outputs.iter().map(|f| f.bytes).sum();
    let lossless = losses.is_empty();
    let bits = bits_per_weight(checkpoint, plan);
    let (seconds, anon) = (monitor.seconds(), monitor.rss_anon_peak_bytes());
    let mut object = json!({
        "status": "converted",
        "lossless": lossless,
        "target": plan.target.name,
        "source": source_json(checkpoint, Some(sources)),
        "output": {
            "path": named(written_at(plan, request)).display().to_string(),
            "container": plan.target.container(),
            "bytes": bytes,
            "files": outputs.iter().map(digest_json).collect::<Value>(),
            "certificate": named(certificate).display().to_string(),
            "statement": signed.as_ref().map(|[path, _]| named(path).display().to_string()),
            "signature": signed.as_ref().map(|[_, path]| named(path).display().to_string()),
        },
        "ternary_sha256": ternary_sha256,
        "source_ternary_sha256": source_ternary_sha256,
        "tensors": plan.items.len(),
        "bits_per_weight": bits,
        "losses": losses.iter().map(Loss::to_json).collect::<Value>(),
        "quantized_masters": masters.tensors,
        "masters_relative_change": masters.relative_change(),
        "unknown_keys": crate::unknown_keys_json(checkpoint),
        "skipped_parts": crate::skipped_parts(checkpoint),
        "tokenizer_notes": notes_json(plan),
        "not_computed": plan.not_computed.to_json(),
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_anon_peak_bytes": anon,
    });
    if *is_older {
        object["already_finished"] = true.into();
    }
    console.json(&object)?;
    if *is_older {
        console.summary("the output was finished before; this run wrote no file")?;
    }
    console.summary(format_args!(
        "{} from {} ({}, {}) in {}",
        console.bold(plan.target.name),
        named(&checkpoint.path).display(),
        checkpoint.family.name,
        checkpoint.file.container,
        human_duration(seconds),
    ))?;
    console.summary(format_args!(
        "  output          {} ({}, {} tensors, {bits:.2} bits per ternary weight)",
        named(written_at(plan, request)).display(),
        human_bytes(bytes),
        plan.items.len(),
    ))?;
    console.summary(format_args!(
        "  certificate     {}",
        named(certificate).display()
    ))?;
    if let Some([_, path]) = signed {
        console.summary(format_args!("  signature       {}", named(path).display()))?;
    }
    console.summary(format_args!("  ternary_sha256  {ternary_sha256}"))?;
    if let Some(change) = masters.relative_change() {
        console.summary(format_args!(
            "  quantized       {} master tensors by the absmean rule; relative change {change:.2}",
            masters.tensors
        ))?;
    }
    let yes = match masters.tensors {
        0 => "yes",
        _ => "yes, of the quantized weights",
    };
    let verdict = console.verdict(lossless, if lossless { yes } else { "no" });
    console.summary(format_args!(
        "  lossless        {verdict}{}",
        loss_summary(losses)
    ))?;
    if let Some(anon) = anon {
        console.note(format_args!("peak anonymous memory {}", human_bytes(anon)))?;
    }
    Ok(())
}

/// What opens the output: the first part of a split file.
fn written_at<'a>(plan: &'a Plan, request: &Request<'a>) -> &'a Path {
    match (plan.target.kind, plan.files.first()) {
        (Kind::Gguf, Some(first)) => &first.path,
        _ => request.output,
    }
}

/// `: scales of 210 tensors rounded, relative error up to 2.3e-4`
fn loss_summary(losses: &[Loss]) -> String {
    let mut parts = Vec::new();
    for (kind, what) in [("scale-rounding", "scales"), ("dense-rounding", "values")] {
        let of_kind = || losses.iter().filter(|l| l.kind == kind);
        let worst = of_kind().filter_map(|l| l.max_relative).fold(0.0, f64::max);
        let mut text = match of_kind().count() {
            0 => continue,
            1 => format!(
                "{what} of {}",
                of_kind().map(|l| l.tensor.as_str()).collect::<String>()
            ),
            n => format!("{what} of {n} tensors"),
        };
        text.push_str(" rounded");
        if worst > 0.0 {
            text.push_str(&format!(", relative error up to {worst:.1e}"));
        }
        parts.push(text);
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join("; "))
    }
}

fn print_plan(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Path,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let bits = bits_per_weight(checkpoint, plan);
    let readers = readers::judge(&FileFacts::of_plan(checkpoint, plan))?;
    let mut files: Vec<Value> = Vec::new();
    for file in &plan.files {
        files.push(
            json!({"path": named(&file.path).display().to_string(), "bytes": file.header.total}),
        );
    }
    for (name, bytes) in &plan.side_files {
        files.push(json!({"path": name, "bytes": bytes.len()}));
    }
    let tensors = plan.items.iter().map(|item| {
        json!({
            "name": item.tensor.name,
            "source_name": item.source_name,
            "from": item.from,
            "to": item.to,
            "shape": item.tensor.shape,
            "bytes": item.tensor.len,
        })
    });
    console.json(&json!({
        "status": "planned",
        "target": plan.target.name,
        "source": source_json(checkpoint, None),
        "output": {"container": plan.target.container(), "files": files},
        "tensors": tensors.collect::<Value>(),
        "total_bytes": plan.total_bytes(),
        "bits_per_weight": bits,
        "peak_memory_bytes": plan.peak_memory,
        "losses": plan.losses.iter().map(Loss::to_json).collect::<Value>(),
        "quantized_masters": plan.quantized_masters(checkpoint),
        "unknown_keys": crate::unknown_keys_json(checkpoint),
        "skipped_parts": crate::skipped_parts(checkpoint),
        "tokenizer_notes": notes_json(plan),
        "not_computed": plan.not_computed.to_json(),
        "readers": readers::to_json(&readers),
    }))?;
    console.line(format_args!(
        "would convert {} ({}, {}) -> {} ({}, {})",
        named(&checkpoint.path).display(),
        checkpoint.family.name,
        checkpoint.file.container,
        named(output).display(),
        plan.target.name,
        human_bytes(plan.total_bytes()),
    ))?;
    console.line("")?;
    let mut table = Table::new(&["tensor", "from", "to", ">shape", ">bytes"]);
    for item in &plan.items {
        let shape: Vec<_> = item.tensor.shape.iter().map(usize::to_string).collect();
        table.row([
            item.tensor.name.clone(),
            item.from.clone(),
            item.to.clone(),
            shape.join(" x "),
            item.tensor.len.to_string(),
        ]);
    }
    console.line(table)?;
    console.line("")?;
    for file in &plan.files {
        console.line(format_args!(
            "{} ({} bytes)",
            named(&file.path).display(),
            file.header.total
        ))?;
    }
    for (name, bytes) in &plan.side_files {
        console.line(format_args!("{name} ({} bytes)", bytes.len()))?;
    }
    console.line(format_args!(
        "{} tensors, {} in all, {bits:.2} bits per ternary weight, about {} of memory; nothing was written",
        plan.items.len(),
        human_bytes(plan.total_bytes()),
        human_bytes(plan.peak_memory),
    ))?;
    let masters = plan.quantized_masters(checkpoint);
    if masters > 0 {
        console.line(format_args!(
            "would quantize {masters} master tensors by the absmean rule"
        ))?;
    }
    if plan.losses.is_empty() {
        console.line("no loss is known before the weights are read")?;
    } else {
        console.line(format_args!("would lose{}", loss_summary(&plan.losses)))?;
    }
    Ok(())
}
