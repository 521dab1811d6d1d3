//! Properties of random small networks of every family.
//!
//! Invariant: a network follows from its number. `BITNET_NETWORKS=400` tries more of them, `BITNET_NETWORKS=17..18` one of them;
//! `--nocapture` prints what was compared.

#![allow(clippy::print_stdout)]

mod mutants;

use self::mutants::{Means, Mutant, kind};
use bitnet_checkpoint::{Checkpoint, OpenOptions, ScaleDirection, Slot};
use bitnet_cli::ExitStatus;
use bitnet_ternary::Scales;
use bitnet_tests::program::run;
use bitnet_tests::random::Random;
use bitnet_tests::random_network::{Files, Form, Network};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Networks of a usual run.
const NETWORKS: u64 = 22;
/// Networks with which something was wrong once.
const WRONG_ONCE: [u64; 1] = [314];
/// Targets that are tried for a network, until two of them hold it.
const TARGETS: usize = 8;

/// Counts of what was compared.
type Counts = BTreeMap<String, usize>;

/// What is wrong, or nothing.
type Checked = Result<(), String>;

/// The numbers of the networks to try.
fn numbers() -> Vec<u64> {
    let Ok(said) = std::env::var("BITNET_NETWORKS") else {
        return (0..NETWORKS).chain(WRONG_ONCE).collect();
    };
    let number = |text: &str| text.trim().parse::<u64>().expect("a number of networks");
    match said.split_once("..") {
        Some((first, end)) => (number(first)..number(end)).collect(),
        None => (0..number(&said)).collect(),
    }
}

/// Tries a property on every network, each in a directory of its own, on two threads.
fn try_all(property: impl Fn(&Network, &mut Random, &Path, &mut Counts) -> Checked + Sync) {
    let numbers = numbers();
    let next = Mutex::new(numbers.iter().copied());
    let all = Mutex::new((Counts::new(), Vec::new()));
    let work = || {
        loop {
            let Some(number) = next.lock().unwrap().next() else {
                break;
            };
            let network = Network::random(number);
            let dir = tempfile::tempdir().unwrap();
            network.write(&dir.path().join("source"), Files::default());
            let mut own = Counts::new();
            let random = &mut Random(number ^ 0x5eed);
            let found = property(&network, random, dir.path(), &mut own);
            let (counts, wrong) = &mut *all.lock().unwrap();
            for (what, count) in own {
                *counts.entry(what).or_default() += count;
            }
            if let Err(what) = found {
                wrong.push(format!("network {number}, {}: {what}", network.describe()));
            }
        }
    };
    // no pool: a program that waits for its own threads would begin the next network on the same stack
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let (counts, wrong) = all.into_inner().unwrap();
    for (what, count) in counts {
        println!("{count:6} {what}");
    }
    let of = numbers.len();
    assert!(of > 0, "no networks");
    assert!(
        wrong.is_empty(),
        "{} of {of}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn count(counts: &mut Counts, what: impl Into<String>) {
    *counts.entry(what.into()).or_default() += 1;
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, found: T) -> Checked {
    match expected == found {
        true => Ok(()),
        false => Err(format!("{what}: expected {expected:?}, found {found:?}")),
    }
}

/// Converts on one thread: the report, or the code of a refusal.
fn convert(source: &Path, target: &str, output: &Path) -> Result<Result<Value, String>, String> {
    let words = [source.as_os_str(), "-o".as_ref(), output.as_os_str()];
    let words = words.into_iter().map(OsString::from);
    let more = ["--to", target, "--json", "--threads", "1"].map(OsString::from);
    let ran = run(bitnet_convert::run, words.chain(more));
    let report = ran.json();
    let code = report["error"]["code"].as_str().unwrap_or_default();
    match ran.status {
        ExitStatus::Done => Ok(Ok(report)),
        ExitStatus::CouldNot if ["target-cannot-hold", "scale-rounding"].contains(&code) => {
            Ok(Err(code.to_owned()))
        }
        _ => Err(format!("{target} of {}: {report:#}", source.display())),
    }
}

/// Converts to the target that holds every network; its certificate and the hash of its trits and scales.
fn certified(source: &Path, output: &Path) -> Result<(Value, String), String> {
    let report = convert(source, "packed", output)?;
    let report = report.map_err(|code| format!("packed refuses the network: {code}"))?;
    expect("lossless", &report["lossless"], &Value::Bool(true))?;
    let hash = report["ternary_sha256"].as_str().unwrap_or_default();
    let text = std::fs::read(output.join("certificate.json")).map_err(|e| e.to_string())?;
    let certificate = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    Ok((certificate, hash.to_owned()))
}

/// Verifies on one thread, with an option and its value, if any: status, report.
fn verify(artifact: &Path, words: &[&str], value: Option<&Path>) -> (ExitStatus, Value) {
    let first = ["--json", "--threads", "1"].map(OsString::from);
    let artifact = [artifact.as_os_str().to_owned()];
    let words = words.iter().map(OsString::from);
    let value = value.map(|path| path.as_os_str().to_owned());
    let all = first.into_iter().chain(artifact).chain(words).chain(value);
    let ran = run(bitnet_verify::run, all);
    (ran.status, ran.json())
}

/// What a report says that is not `same`.
fn complaints(report: &Value) -> String {
    let checks = report["checks"].as_array().into_iter().flatten();
    let other = checks.filter(|check| check["status"] != "same" && check["status"] != "skipped");
    let other: Vec<String> = other
        .map(|check| {
            format!(
                "{} {}: {} {}",
                check["name"], check["status"], check["detail"], check["differences"]
            )
        })
        .collect();
    format!("{} {}", report["error"], other.join("; "))
}

/// Places of all differences.
fn places(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().into_iter().flatten();
    let lists = checks.filter_map(|check| check["differences"].as_array());
    let places = lists
        .flatten()
        .filter_map(|difference| difference["place"].as_str());
    places.map(str::to_owned).collect()
}

// ---------------------------------------------------------------------- what is read

/// The bits of the weights, by the page of the form.
fn weights(trits: &[i8], scales: &Scales, cols: usize, divides: bool) -> Vec<(i8, u32)> {
    let weight = |(at, trit): (usize, &i8)| {
        let scale = scales.at(at / cols, at % cols, cols);
        let scale = if divides { 1.0 / scale } else { scale };
        (*trit, if *trit == 0 { 0 } else { scale.to_bits() })
    };
    trits.iter().enumerate().map(weight).collect()
}

fn is_read_as_written(network: &Network, source: &Path, counts: &mut Counts) -> Checked {
    let checkpoint = Checkpoint::open(source, &OpenOptions::default());
    let checkpoint = checkpoint.map_err(|e| format!("{e}"))?;
    expect("family", network.family.name, checkpoint.family.name)?;
    let divides = matches!(network.form, Form::Packed(_, ScaleDirection::Divide));
    for linear in &network.linears {
        let name = linear.slot.to_string();
        let found = checkpoint
            .ternary(linear.slot)
            .map_err(|e| format!("{e}"))?;
        expect(&name, linear.shape, (found.rows(), found.cols()))?;
        let cols = found.cols();
        let expected = weights(&linear.trits, &linear.scales, cols, divides);
        let found = weights(found.trits(), found.scales(), cols, false);
        let differs = expected.iter().zip(&found).position(|(e, f)| e != f);
        if let Some(at) = differs {
            let what = format!("{name}, element {at}");
            expect(&what, expected[at], found[at])?;
        }
        count(counts, "matrices read as written");
    }
    for dense in &network.dense {
        let name = dense.slot.to_string();
        expect(&name, false, checkpoint.is_ternary(dense.slot))?;
        count(counts, "tensors of numbers");
    }
    Ok(())
}

#[test]
fn logits_are_those_of_the_oracle_on_every_kernel() {
    try_all(|network, _, dir, counts| {
        let source = dir.join("source");
        is_read_as_written(network, &source, counts)?;
        let (status, report) = verify(&source, &["--logits", "--kernel", "all"], None);
        if status != ExitStatus::Done {
            return Err(complaints(&report));
        }
        for name in ["kernels", "logits-kernels", "logits-oracle"] {
            let checks = report["checks"].as_array().into_iter().flatten();
            let found: Vec<&Value> = checks.filter(|check| check["name"] == name).collect();
            let [check] = found[..] else {
                return Err(format!("{name}: {report:#}"));
            };
            expect(name, &Value::from("same"), &check["status"])?;
        }
        count(counts, format!("networks of {}", network.family.name));
        let form = match network.form {
            Form::Values(_) => "numbers",
            Form::Packed(_, ScaleDirection::Multiply) => "packed codes, scales that multiply",
            Form::Packed(..) => "packed codes, scales that divide",
            Form::Affine(..) => "codes of mlx",
        };
        count(counts, format!("networks stored as {form}"));
        Ok(())
    });
}

// ---------------------------------------------------------------------- packings

/// Where an output of a target lies.
fn place(dir: &Path, name: &str, target: &str) -> PathBuf {
    let end = if target.starts_with("gguf") {
        ".gguf"
    } else {
        ""
    };
    dir.join(format!("{name}{end}"))
}

#[test]
fn a_packing_holds_a_network_there_and_back_or_says_that_it_does_not() {
    try_all(|_, random, dir, counts| {
        let source = dir.join("source");
        let (_, hash) = certified(&source, &dir.join("packed"))?;
        let same = |what: &str, report: &Value| {
            expect(
                &format!("lossless {what}"),
                &Value::Bool(true),
                &report["lossless"],
            )?;
            let found = report["ternary_sha256"].as_str().unwrap_or_default();
            expect(&format!("ternary_sha256 {what}"), hash.as_str(), found)
        };
        let mut held = 0;
        for n in 0..TARGETS {
            let first = mutants::target(random).name;
            let there = place(dir, &format!("there-{n}"), first);
            match convert(&source, first, &there)? {
                Ok(report) => same(&format!("to {first}"), &report)?,
                Err(code) => {
                    expect("an output of a refusal", false, there.exists())?;
                    count(counts, format!("times {code}"));
                    continue;
                }
            }
            held += 1;
            // the runtime once for each network
            let words: &[&str] = match held {
                1 => &["--logits", "--against"],
                _ => &["--against"],
            };
            let (status, report) = verify(&there, words, Some(&source));
            if status != ExitStatus::Done {
                return Err(format!(
                    "{first} against its source: {}",
                    complaints(&report)
                ));
            }
            count(counts, format!("times held by {first}"));
            // on to another one, and to the one that holds everything
            for (step, second) in [mutants::target(random).name, "packed"]
                .into_iter()
                .enumerate()
            {
                let back = place(dir, &format!("back-{n}-{step}"), second);
                match convert(&there, second, &back)? {
                    Ok(report) => same(&format!("from {first} to {second}"), &report)?,
                    Err(code) if second == "packed" => {
                        return Err(format!("packed refuses {first}: {code}"));
                    }
                    Err(_) => continue,
                }
                count(counts, "times converted on");
            }
            if held == 2 {
                break;
            }
        }
        Ok(())
    });
}

// ---------------------------------------------------------------------- certificates

/// What a certificate says of a network, by its places.
fn said(certificate: &Value) -> BTreeMap<String, Value> {
    let mut said = BTreeMap::new();
    for key in [
        "family",
        "wiring",
        "ternary_sha256",
        "source_ternary_sha256",
    ] {
        said.insert(key.to_owned(), certificate[key].clone());
    }
    for list in ["ternary", "dense"] {
        for record in certificate[list].as_array().into_iter().flatten() {
            let name = record["name"].as_str().unwrap_or_default();
            said.insert(format!("{list} {name}"), record.clone());
        }
    }
    said
}

/// Places where two certificates differ.
fn changed(one: &Value, other: &Value) -> Vec<String> {
    let (one, other) = (said(one), said(other));
    let mut places: Vec<String> = one
        .iter()
        .filter(|(place, value)| other.get(*place) != Some(value))
        .map(|(place, _)| place.clone())
        .collect();
    let new = other.keys().filter(|place| !one.contains_key(*place));
    places.extend(new.cloned());
    places
}

/// Places that have to differ, and one that a report has to name.
fn expected(mutant: &Mutant) -> (Vec<String>, Option<String>) {
    match &mutant.means {
        Means::Nothing => (Vec::new(), None),
        Means::Wiring(setting) => (vec!["wiring".to_owned()], Some((*setting).to_owned())),
        Means::Dense(slot) => (vec![format!("dense {slot}")], Some(slot.to_string())),
        Means::Ternary(slot) => {
            let hashes = ["source_ternary_sha256", "ternary_sha256"].map(str::to_owned);
            let mut places = vec![format!("ternary {slot}")];
            places.extend(hashes);
            (places, Some(slot.to_string()))
        }
    }
}

/// The bias whose number is the product with a scale.
fn bias_of(mutant: &Mutant) -> Option<String> {
    let Means::Ternary(Slot::Layer(layer, linear)) = mutant.means else {
        return None;
    };
    let multiplies = matches!(
        mutant.network.form,
        Form::Packed(_, ScaleDirection::Multiply)
    );
    let bias = linear.bias().filter(|_| multiplies)?;
    Some(format!("dense {}", Slot::Layer(layer, bias)))
}

fn judge(mutant: &Mutant, original: &Path, certificate: &Path, dir: &Path) -> Checked {
    let source = dir.join("source");
    mutant.network.write(&source, mutant.files);
    let (places_expected, named) = expected(mutant);
    let (status, report) = verify(&source, &["--against"], Some(original));
    let same = mutant.means == Means::Nothing;
    let wanted = if same {
        ExitStatus::Done
    } else {
        ExitStatus::Different
    };
    if status != wanted {
        return Err(format!(
            "against its original, expected {wanted:?}, found {status:?}: {}",
            complaints(&report)
        ));
    }
    if let Some(named) = &named
        && !places(&report).iter().any(|place| place.contains(named))
    {
        return Err(format!("{named} is not named: {}", complaints(&report)));
    }
    let (own, _) = certified(&source, &dir.join("packed"))?;
    let text = std::fs::read(certificate).map_err(|e| e.to_string())?;
    let first: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let mut found = changed(&first, &own);
    if let Some(bias) = bias_of(mutant) {
        found.retain(|place| *place != bias);
    }
    let mut expected = places_expected;
    expected.sort();
    found.sort();
    expect("changes of the certificate", &expected, &found)?;
    let own = dir.join("packed/certificate.json");
    let (status, report) = verify(&own, &["--certificate"], Some(certificate));
    if status != wanted {
        return Err(format!(
            "of certificates, expected {wanted:?}, found {status:?}: {}",
            complaints(&report)
        ));
    }
    if let Some(named) = &named
        && !places(&report).iter().any(|place| place.contains(named))
    {
        return Err(format!(
            "{named} is not named by certificates: {}",
            complaints(&report)
        ));
    }
    Ok(())
}

#[test]
fn a_certificate_changes_with_a_value_or_a_setting_and_with_nothing_else() {
    try_all(|network, random, dir, counts| {
        let (source, packed) = (dir.join("source"), dir.join("packed"));
        certified(&source, &packed)?;
        let certificate = packed.join("certificate.json");
        let mut mutants = vec![
            mutants::trit(network, random),
            mutants::scale(network, random),
            mutants::number(network, random),
            mutants::spelling(network, random),
        ];
        mutants.extend(mutants::some_settings(network, 2, random));
        for (n, mutant) in mutants.iter().enumerate() {
            let dir = dir.join(n.to_string());
            judge(mutant, &source, &certificate, &dir)
                .map_err(|what| format!("{}: {what}", mutant.what))?;
            count(counts, kind(&mutant.means));
        }
        Ok(())
    });
}
