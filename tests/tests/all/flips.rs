//! Single bits: each one that is flipped is a difference, or an error, or is named as one that no reader uses.
//!
//! Invariant: what is named comes from `bitnet_verify` alone and is asked before the first flip, of the whole
//! file; nothing is excused here. A flip that is named must not make a difference, though a reader may refuse it.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::OpenOptions;
use bitnet_cli::{ExitStatus, Progress};
use bitnet_formats::{Container, Encoding, Gguf, Limits, Pytorch};
use bitnet_kernels::Backend;
use bitnet_tests::fixtures::{Fixture, fixture, skips_foreign_fixtures};
use bitnet_tests::flips::flip;
use bitnet_tests::program::run;
use bitnet_tests::random::Random;
use bitnet_verify::{Input, Report, Side, Status, Subject, Thresholds, run_checks};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Positions per artifact; `BITNET_FLIPS` is another number.
const FLIPS: usize = 430;
const THREADS: usize = 2;

/// Every packing, container and rule there is: source, and the targets it is converted to.
const ARTIFACTS: &[(&str, &[&str])] = &[
    (
        "bitnet-2b4t-packed",
        &[
            "gguf-i2_s",
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-iq2_bn",
            "gguf-iq2_bn_r4",
            "gguf-iq1_bn",
            "gguf-pq2_0",
            "gguf-ptq1_0",
            "gguf-tl1",
            "gguf-tl2",
            "gguf-f32",
            "gguf-f16",
            "hf-packed",
            "packed",
            "packed-2bit",
            "mlx-2bit",
            "ms-gpu-int2",
            "hf-bf16",
        ],
    ),
    // master weights stay what they are; rotary rows change places, a head of its own
    ("falcon-e-bfloat16", &["hf-bf16", "gguf-i2_s"]),
    ("llama3-8b-1.58", &["gguf-i2_s", "hf-packed"]),
    // scales of groups, YaRN, norms of heads
    ("bonsai-8b", &["gguf-q2_0", "gguf-bf16"]),
    ("bitnet-b1.58-1bitllm", &["hf-bf16"]),
];

fn words(list: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    list.iter().map(|s| s.as_ref().to_owned()).collect()
}

fn options(source: &Fixture) -> OpenOptions {
    OpenOptions {
        ternary_trained: source.ternary_trained(),
        ..OpenOptions::default()
    }
}

/// Converts; `None` when the target cannot hold the source.
fn convert(source: &Fixture, target: &str, dir: &Path) -> Option<PathBuf> {
    let end = if target.starts_with("gguf") {
        ".gguf"
    } else {
        ""
    };
    let out = dir.join(format!("model{end}"));
    let from = &source.checkpoint;
    let mut args = words(&[from, &"-o", &out, &"--to", &target, &"--json"]);
    if source.ternary_trained() {
        args.push("--ternary-trained".into());
    }
    let ran = run(bitnet_convert::run, args);
    let code = ran.json()["error"]["code"].as_str().map(str::to_owned);
    match (ran.status, code.as_deref()) {
        (ExitStatus::Done, _) => Some(out),
        (_, Some("target-cannot-hold" | "scale-rounding")) => None,
        _ => panic!("{} to {target}: {}", source.name, ran.stdout),
    }
}

/// What a comparison says, and of an artifact that opens the whole report.
fn compare(artifact: &Path, source: &Input, padding: bool) -> (Status, Option<Report>) {
    let Ok(artifact) = Input::open(artifact, OpenOptions::default()) else {
        return (Status::Error, None);
    };
    let thresholds = Thresholds::default();
    let subject = Subject {
        source: Some(Side::Model(source)),
        kernels: &[Backend::best()],
        padding,
        ..Subject::alone(Side::Model(&artifact), &thresholds)
    };
    let report = run_checks(&subject, &Progress::hidden());
    (report.status(), Some(report))
}

/// Bytes of one kind in one file.
struct Place {
    kind: &'static str,
    file: PathBuf,
    range: Range<u64>,
}

/// Everything an artifact is made of, in pieces that are hit equally often whatever their size.
fn places(artifact: &Path, input: &Input) -> Vec<Vec<Place>> {
    let file = &input.checkpoint.file;
    let (mut tensors, mut header, mut side) = (Vec::new(), Vec::new(), Vec::new());
    for (number, part) in file.parts.iter().enumerate() {
        let place = |kind, range| Place {
            kind,
            file: part.path().to_owned(),
            range,
        };
        let mut first = part.len();
        for info in file.tensors().iter().filter(|info| info.part == number) {
            let kind = match (info.encoding, &info.shape[..]) {
                _ if info.name.contains("scale") || info.name.ends_with(".biases") => "scales",
                (_, [_]) => "norms",
                _ if info.name.contains("embd") || info.name.contains("embed") => "embeddings",
                _ if info.name.starts_with("output") || info.name.contains("head") => "head",
                (Encoding::Ternary(_), _) => "packed linears",
                _ => "linears",
            };
            first = first.min(info.offset);
            let range = info.offset..info.offset + info.len;
            if range.is_empty() {
                continue;
            }
            // scales stand at the ends of packed tensors, and gaps behind them
            let end = range.end.saturating_sub(40).max(range.start);
            let behind = (range.end + 32).min(part.len());
            tensors.push(place(kind, range.clone()));
            if kind == "packed linears" {
                tensors.push(place("ends of linears", end..behind));
            }
        }
        let mut at = 0;
        if file.container == Gguf.name() {
            for entry in Gguf::entries(&**part, &Limits::default()).unwrap() {
                let kind = match entry.key.starts_with("tokenizer.") {
                    true => "tokenizer keys",
                    false => "metadata",
                };
                header.push(place(kind, at..entry.value_range.end));
                at = entry.value_range.end;
            }
        }
        // a pickle and the zip around it are full of what nobody reads; nothing of it is named
        if file.container != Pytorch.name() {
            header.push(place("tensor infos", at..first));
        }
    }
    if artifact.is_dir() {
        for (name, kind) in [
            ("config.json", "config.json"),
            ("tokenizer.json", "tokenizer.json"),
            ("tokenizer_config.json", "tokenizer_config.json"),
            ("tokenizer.model", "tokenizer.model"),
            ("generation_config.json", "generation_config.json"),
            ("special_tokens_map.json", "special_tokens_map.json"),
        ] {
            let path = artifact.join(name);
            if let Ok(found) = fs::metadata(&path) {
                side.push(Place {
                    kind,
                    file: path,
                    range: 0..found.len(),
                });
            }
        }
    }
    let mut all = vec![tensors, header, side];
    all.retain(|places| !places.is_empty());
    all
}

/// A flip: kind, file (relative to the artifact), byte, bit.
type Flip = (&'static str, PathBuf, u64, usize);

fn draw(artifact: &Path, places: &[Vec<Place>], count: usize, seed: u64) -> Vec<Flip> {
    let mut random = Random(seed);
    let flips = (0..count).map(|n| {
        // every other one in a tensor
        let group = match n % 2 {
            0 => &places[0],
            _ => &places[1 + n / 2 % (places.len() - 1)],
        };
        let place = &group[random.below(group.len())];
        let len = place.range.end - place.range.start;
        let at = place.range.start + random.below(len as usize) as u64;
        let file = place.file.strip_prefix(artifact).unwrap().to_owned();
        (place.kind, file, at, random.below(8))
    });
    flips.collect()
}

fn copy(artifact: &Path, to: &Path) {
    if artifact.is_file() {
        fs::copy(artifact, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(artifact).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The file of a flip; the artifact itself where it is one.
fn file_in(artifact: &Path, file: &Path) -> PathBuf {
    match file.as_os_str().is_empty() {
        true => artifact.to_owned(),
        false => artifact.join(file),
    }
}

/// What became of the flips of a kind: different, refused, silent and named.
type Counts = BTreeMap<&'static str, [usize; 3]>;

/// Flips bits of copies of one artifact on several threads.
fn flip_all(
    artifact: &Path,
    source: &Input,
    count: usize,
    seed: u64,
    failures: &mut Vec<String>,
) -> Counts {
    let (status, report) = compare(artifact, source, true);
    let report = report.unwrap();
    assert_eq!(status, Status::Same, "{report:#?}");
    let mut masks: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for padding in &report.padding {
        let unread = &padding.unread;
        let bytes = fs::read(&unread.file).unwrap();
        let range = unread.range.start as usize..unread.range.end as usize;
        let masks = masks
            .entry(unread.file.strip_prefix(artifact).unwrap().to_owned())
            .or_insert_with(|| vec![0; bytes.len()]);
        unread.mark(&bytes[range.clone()], &mut masks[range]);
    }
    let input = Input::open(artifact, OpenOptions::default()).unwrap();
    let flips = draw(artifact, &places(artifact, &input), count, seed);
    drop(input);
    let next = AtomicUsize::new(0);
    // a thread of its own for each copy: work that another thread took over would see its flip
    let work = || {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(artifact.file_name().unwrap());
        copy(artifact, &own);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.unwrap();
        let mut counts = Counts::new();
        let mut failures = Vec::new();
        while let Some((kind, file, at, bit)) = flips.get(next.fetch_add(1, Ordering::Relaxed)) {
            let flipped = flip(&file_in(&own, file), *at, *bit);
            let (status, report) = pool.install(|| compare(&own, source, false));
            drop(flipped);
            let mask = masks.get(file).map_or(0, |masks| masks[*at as usize]);
            let named = mask & 1 << bit != 0;
            let entry = counts.entry(*kind).or_default();
            match (status, named) {
                (Status::Different, false) => entry[0] += 1,
                (Status::Error, _) => entry[1] += 1,
                (Status::Same, true) => entry[2] += 1,
                (status, _) => failures.push(format!(
                    "{kind} {}, byte {at}, bit {bit}: {status}, {} ({})",
                    file.display(),
                    if named { "named" } else { "not named" },
                    report.map_or(String::new(), |r| r.sentence())
                )),
            }
        }
        (counts, failures)
    };
    let mut all = Counts::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (counts, failed) = thread.join().unwrap();
            failures.extend(failed);
            for (kind, found) in counts {
                let sum = all.entry(kind).or_default();
                sum.iter_mut().zip(found).for_each(|(sum, n)| *sum += n);
            }
        }
    });
    assert_eq!(compare(artifact, source, false).0, Status::Same, "whole");
    all
}

#[test]
fn every_flipped_bit_is_found_or_named() {
    if skips_foreign_fixtures() {
        return;
    }
    let count = std::env::var("BITNET_FLIPS").ok();
    let count = count.and_then(|n| n.parse().ok()).unwrap_or(FLIPS);
    let (mut total, mut failures) = (Counts::new(), Vec::new());
    let (mut flipped, mut held) = (0, 0);
    for (name, targets) in ARTIFACTS {
        let source = fixture(name).unwrap();
        let input = Input::open(&source.checkpoint, options(&source)).unwrap();
        for (n, target) in targets.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let Some(artifact) = convert(&source, target, dir.path()) else {
                println!("{name} to {target}: cannot hold it");
                continue;
            };
            let started = std::time::Instant::now();
            let seed = 1000 * name.len() as u64 + n as u64;
            let mut failed = Vec::new();
            let counts = flip_all(&artifact, &input, count, seed, &mut failed);
            failures.extend(
                failed
                    .into_iter()
                    .map(|f| format!("{name} to {target}: {f}")),
            );
            held += 1;
            let mut sums = [0; 3];
            for (kind, found) in counts {
                let sum = total.entry(kind).or_default();
                for ((sum, all), n) in sum.iter_mut().zip(&mut sums).zip(found) {
                    *sum += n;
                    *all += n;
                    flipped += n;
                }
            }
            println!(
                "{name} to {target}, seed {seed}: {} different, {} refused, {} silent and named ({:.1} s)",
                sums[0],
                sums[1],
                sums[2],
                started.elapsed().as_secs_f64()
            );
        }
    }
    println!("{flipped} flips in {held} artifacts: different, refused, silent and named");
    for (kind, [different, refused, named]) in &total {
        println!("  {kind:<24} {different:6} {refused:6} {named:6}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(flipped >= 10_000 || count != FLIPS, "{flipped} flips");
}
