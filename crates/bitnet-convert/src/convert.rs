//! The conversion as a program: choose a target, plan, pass, publish, report.
//!
//! Invariant: the order is always check, write, publish, report; an error at any point before
//! publishing leaves nothing behind. One conversion at a time writes an output.

mod publish;

use self::publish::Published;
use crate::args::{Args, ConvertArgs};
use crate::look_ahead::{self, Depth};
use crate::plan::{self, Loss, Plan, Request};
use crate::readers::{self, FileFacts};
use crate::targets::{self, GGUF_PREFERENCE, Kind, Target};
use bitnet_checkpoint::{Checkpoint, LayoutReason};
use bitnet_cli::{
    Console, Failure, Progress, ResourceMonitor, Table, human_bytes, human_duration, peak_rss_bytes,
};
use bitnet_formats::{ErrorCode, FileDigest, Inputs, OutputLock, ScaleRounding};
use bitnet_text::TokenizerNote;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Runs a conversion.
pub fn run(args: &Args, console: &mut Console<'_>) -> Result<(), Failure> {
    let monitor = ResourceMonitor::start();
    let convert = &args.convert;
    let (Some(source), Some(output)) = (&convert.source, &convert.output) else {
        return Err(Failure::usage("SRC and -o OUT are missing"));
    };
    publish::check_name(output)?;
    let candidates = candidates(convert.to, output)?;
    let checkpoint = crate::open(source, &convert.how)?;
    say_layout(&checkpoint, console)?;
    crate::warn_of_the_source(&checkpoint, console)?;
    let inputs = publish::inputs(&checkpoint, convert)?;
    inputs.refuse(output)?;
    // held until the output and its certificate are there
    let mut _lock = None;
    if !convert.dry_run {
        let kind = candidates[0].kind;
        inputs.refuse(&certificate_path(output, kind))?;
        _lock = Some(OutputLock::take(output)?);
        publish::refuse_existing_certificate(output, kind, convert.force)?;
    }
    let mut refusals: Vec<String> = Vec::new();
    for (n, &target) in candidates.iter().enumerate() {
        let request = request(convert, output, target);
        let attempt = attempt(
            args,
            &checkpoint,
            &request,
            &inputs,
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
fn say_layout(checkpoint: &Checkpoint, console: &mut Console<'_>) -> Result<(), Failure> {
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

/// The targets to try, in order.
fn candidates(to: Option<&'static Target>, output: &Path) -> Result<Vec<&'static Target>, Failure> {
    let names_a_file = output
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if let Some(target) = to {
        if target.kind == Kind::HuggingFace && names_a_file {
            let message = format!(
                "{} is a directory, found an output named .gguf",
                target.name
            );
            return Err(Failure::usage(message).hint("--to gguf-i2_s, or another output name"));
        }
        return Ok(vec![target]);
    }
    if names_a_file {
        return Ok(GGUF_PREFERENCE
            .iter()
            .filter_map(|name| targets::by_name(name))
            .collect());
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

fn request<'a>(convert: &ConvertArgs, output: &'a Path, target: &'static Target) -> Request<'a> {
    Request {
        output,
        target,
        embeddings: convert.embeddings,
        rounding: match convert.allow_scale_rounding {
            true => ScaleRounding::Allow,
            false => ScaleRounding::Refuse,
        },
        split_max_size: convert.split_max_size,
    }
}

/// `OUT.certificate.json`; for directories inside it.
fn certificate_path(output: &Path, kind: Kind) -> PathBuf {
    match kind {
        Kind::HuggingFace => output.join("certificate.json"),
        Kind::Gguf => {
            let mut name: OsString = output.file_name().unwrap_or_default().to_owned();
            name.push(".certificate.json");
            output.with_file_name(name)
        }
    }
}

/// Plans and, unless it is a dry run, converts to one target.
fn attempt(
    args: &Args,
    checkpoint: &Checkpoint,
    request: &Request<'_>,
    inputs: &Inputs,
    refusals: &[String],
    monitor: &ResourceMonitor,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let plan = plan::build(checkpoint, request)?;
    if args.convert.to.is_none() {
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
    let threads = args.global.thread_count();
    if args.convert.dry_run {
        look_ahead::run(checkpoint, &plan, request, Depth::Trits, threads)?;
        return print_plan(checkpoint, &plan, console);
    }
    let progress = Progress::new(console);
    look_ahead::run(checkpoint, &plan, request, Depth::All, threads)?;
    let published = publish::publish(
        checkpoint,
        &plan,
        request,
        inputs,
        args.convert.force,
        threads,
        &progress,
    );
    progress.clear();
    report(checkpoint, &plan, request, &published?, monitor, console)
}

fn source_json(checkpoint: &Checkpoint, files: Option<&[FileDigest]>) -> Value {
    let mut object = json!({
        "path": checkpoint.path.display().to_string(),
        "container": checkpoint.file.container,
        "family": checkpoint.family.name,
    });
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
    json!({"path": file.path.display().to_string(), "bytes": file.bytes, "sha256": file.sha256})
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

fn report(
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
        ternary_sha256,
        source_ternary_sha256,
        losses,
        masters,
    } = published;
    let bytes: u64 = outputs.iter().map(|f| f.bytes).sum();
    let lossless = losses.is_empty();
    let bits = bits_per_weight(checkpoint, plan);
    let (seconds, anon) = (monitor.seconds(), monitor.rss_anon_peak_bytes());
    console.json(&json!({
        "status": "converted",
        "lossless": lossless,
        "target": plan.target.name,
        "source": source_json(checkpoint, Some(sources)),
        "output": {
            "path": written_at(plan, request).display().to_string(),
            "container": plan.target.container(),
            "bytes": bytes,
            "files": outputs.iter().map(digest_json).collect::<Value>(),
            "certificate": certificate.display().to_string(),
        },
        "ternary_sha256": ternary_sha256,
        "source_ternary_sha256": source_ternary_sha256,
        "tensors": plan.items.len(),
        "bits_per_weight": bits,
        "losses": losses.iter().map(Loss::to_json).collect::<Value>(),
        "quantized_masters": masters.tensors,
        "masters_relative_change": masters.relative_change(),
        "unknown_keys": crate::unknown_keys_json(checkpoint),
        "tokenizer_notes": notes_json(plan),
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_anon_peak_bytes": anon,
    }))?;
    console.line(format_args!(
        "{} from {} ({}, {}) in {}",
        console.bold(plan.target.name),
        checkpoint.path.display(),
        checkpoint.family.name,
        checkpoint.file.container,
        human_duration(seconds),
    ))?;
    console.line(format_args!(
        "  output          {} ({}, {} tensors, {bits:.2} bits per ternary weight)",
        written_at(plan, request).display(),
        human_bytes(bytes),
        plan.items.len(),
    ))?;
    console.line(format_args!("  certificate     {}", certificate.display()))?;
    console.line(format_args!("  ternary_sha256  {ternary_sha256}"))?;
    if let Some(change) = masters.relative_change() {
        console.line(format_args!(
            "  quantized       {} master tensors by the absmean rule; relative change {change:.2}",
            masters.tensors
        ))?;
    }
    let yes = match masters.tensors {
        0 => "yes",
        _ => "yes, of the quantized weights",
    };
    let verdict = console.verdict(lossless, if lossless { yes } else { "no" });
    console.line(format_args!(
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
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let bits = bits_per_weight(checkpoint, plan);
    let readers = readers::judge(&FileFacts::of_plan(checkpoint, plan))?;
    let mut files: Vec<Value> = Vec::new();
    for file in &plan.files {
        files.push(json!({"path": file.path.display().to_string(), "bytes": file.header.total}));
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
        "tokenizer_notes": notes_json(plan),
        "readers": readers::to_json(&readers),
    }))?;
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
            file.path.display(),
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
