//! `finish` that runs again.
//!
//! Invariant: a complete output of the plan is left as it is, and the report is that of the first run; everything else is
//! refused as if nobody had run `finish` before.

use super::*;
use std::time::SystemTime;

/// The report of a run that found everything done is that of the first run, apart from what only reading weights tells.
pub(super) fn assert_repeated(again: &Value, first: &Value) {
    assert_eq!(again["already_finished"], true);
    assert!(first.get("already_finished").is_none());
    let plain = |report: &Value| {
        let mut report = report.clone();
        let keys = report.as_object_mut().unwrap();
        keys.remove("already_finished");
        for key in [
            "seconds",
            "peak_rss_bytes",
            "rss_anon_peak_bytes",
            "masters_relative_change",
        ] {
            assert!(keys.contains_key(key), "{key}");
            keys.insert(key.to_owned(), Value::Null);
        }
        for loss in report["losses"].as_array_mut().unwrap() {
            loss["max_absolute"] = Value::Null;
        }
        report
    };
    assert_eq!(plain(again), plain(first));
}

/// When each file below a directory was written.
fn times(directory: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(times(&path));
        } else {
            let written = fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path, written);
        }
    }
    found
}

fn all_jobs(planned: &Planned) {
    for index in 0..planned.jobs {
        planned.job(index);
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

const I2_S: [&str; 4] = ["--to", "gguf-i2_s", "--split-max-size", "80K"];

#[test]
fn a_complete_output_is_left_as_it_is() {
    let rounded = [
        "--to",
        "gguf-tq2_0",
        "--split-max-size",
        "60K",
        "--allow-scale-rounding",
    ];
    let cases: [(&str, &str, &[&str]); 4] = [
        ("falcon-e", "m.gguf", &I2_S),
        ("bitnet-2b4t-bf16", "m.gguf", &rounded),
        (
            "bitnet-2b4t-bf16",
            "m",
            &["--to", "hf-packed", "--split-max-size", "100K"],
        ),
        ("falcon-e", "m", &["--to", "packed"]),
    ];
    for (source, name, how) in cases {
        let planned = Planned::new(&checkpoint(source), name, how);
        all_jobs(&planned);
        let first = planned.finish(&[]);
        let before = times(planned.dir.path());
        // with the parts and without them
        assert_repeated(&planned.finish(&[]), &first);
        assert_eq!(times(planned.dir.path()), before);
        assert_repeated(&planned.finish(&["--remove-parts"]), &first);
        assert!(!planned.dir.path().join(format!("{name}.parts")).exists());
        let before = times(planned.dir.path());
        for more in [&[][..], &["--force"], &["--remove-parts"]] {
            assert_repeated(&planned.finish(more), &first);
        }
        assert_eq!(times(planned.dir.path()), before);
        // the text says so too
        let plan = planned.plan();
        let ran = program::run(bitnet_convert::run, ["finish", text(&plan)]);
        assert!(ran.stdout.contains("finished before"), "{}", ran.stdout);
    }
}

#[test]
fn a_damaged_or_foreign_output_is_not_taken_for_the_plan_s() {
    let source = checkpoint("falcon-e");
    let planned = Planned::new(&source, "m.gguf", &I2_S);
    all_jobs(&planned);
    planned.finish(&["--remove-parts"]);
    let plan = planned.plan();
    let right = planned.files();
    let at = |name: &str| planned.dir.path().join(name);
    let is_refused = || {
        let before = planned.files();
        for more in [&[][..], &["--force"]] {
            let (code, message, hint) = refused(&[&["finish", text(&plan)], more].concat());
            assert_eq!(code, "missing-part", "{message}");
            assert!(hint.contains("--index 0"), "{hint}");
        }
        assert_same(&planned.files(), &before);
    };
    let mend = || {
        for name in planned.files().keys() {
            fs::remove_file(at(name)).unwrap();
        }
        for (name, bytes) in &right {
            fs::write(at(name), bytes).unwrap();
        }
        assert_eq!(planned.finish(&[])["already_finished"], true);
    };
    for (name, bytes) in &right {
        for place in [0, bytes.len() / 2, bytes.len() - 1] {
            flip(&at(name), place);
            is_refused();
            flip(&at(name), place);
        }
        fs::write(at(name), &bytes[..bytes.len() - 1]).unwrap();
        is_refused();
        fs::remove_file(at(name)).unwrap();
        is_refused();
        mend();
    }
    // a model of the whole's name, which readers would take for another
    fs::write(at("m.gguf"), right.values().next().unwrap()).unwrap();
    is_refused();
    mend();
    // outputs of other plans under the same names, each with a certificate of its own
    let others: [(&str, &[&str]); 2] = [
        ("falcon-e-prequantized", &["--ternary-trained"]),
        ("falcon-e", &["--embeddings", "f32"]),
    ];
    for (other, more) in others {
        let other = checkpoint(other);
        for (name, bytes) in on_one_machine(&other, "m.gguf", &[&I2_S[..], more].concat()) {
            fs::write(at(&name), bytes).unwrap();
        }
        is_refused();
        mend();
    }
    // what one machine wrote is what the jobs write
    for (name, bytes) in on_one_machine(&source, "m.gguf", &I2_S) {
        fs::write(at(&name), bytes).unwrap();
    }
    assert_eq!(planned.finish(&[])["already_finished"], true);
}

#[test]
fn parts_of_another_plan_stay() {
    let planned = Planned::new(&checkpoint("falcon-e"), "m.gguf", &I2_S);
    all_jobs(&planned);
    planned.finish(&["--remove-parts"]);
    // a second plan for the same output, with one job done
    let (source, output) = (checkpoint("falcon-e"), planned.dir.path().join("m.gguf"));
    let other = planned.dir.path().join("other.json");
    let words = ["plan", text(&source), "-o", text(&output), "--plan"];
    let how = [text(&other), "--to", "gguf-f16", "--allow-scale-rounding"];
    done(&[&words[..], &how].concat());
    done(&["job", text(&other), "--index", "0"]);
    let again = planned.finish(&["--remove-parts"]);
    assert_eq!(again["already_finished"], true);
    let words = ["job", text(&other), "--index", "0"];
    assert_eq!(done(&words)["jobs"][0]["status"], "skipped");
}

#[test]
fn a_source_that_is_newer_than_the_certificate_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = sharded(dir.path());
    let planned = Planned::new(&source, "m.gguf", &["--to", "gguf-i2_s"]);
    all_jobs(&planned);
    planned.finish(&["--remove-parts"]);
    let shard = &last_shard(&source);
    // written again, the same
    std::thread::sleep(Duration::from_millis(20));
    fs::write(shard, fs::read(shard).unwrap()).unwrap();
    assert_eq!(planned.finish(&[])["already_finished"], true);
    // a bit that no sample of the plan covers, or one that a sample covers
    let plan = planned.plan();
    let len = fs::metadata(shard).unwrap().len();
    let mut codes = Vec::new();
    for n in 1..20 {
        turn_a_bit(shard, len - 700 * n);
        codes.push(refused(&["finish", text(&plan)]).0);
        turn_a_bit(shard, len - 700 * n);
    }
    // another source than that of the plan, or of the certificate
    let is_known = |code: &String| ["input-changed", "missing-part"].contains(&code.as_str());
    assert!(codes.iter().all(is_known), "{codes:?}");
    assert!(codes.iter().any(|code| code == "missing-part"), "{codes:?}");
    assert_eq!(planned.finish(&[])["already_finished"], true);
}

#[test]
fn a_signed_output_is_finished_for_its_key() {
    let key = |name: &str| {
        let path = repository().join("tests/keys").join(name);
        text(&path).to_owned()
    };
    let (own, other) = (key("signer"), key("stranger"));
    for (name, how) in [("m.gguf", &I2_S[..]), ("m", &["--to", "packed"])] {
        let planned = Planned::new(&checkpoint("falcon-e"), name, how);
        all_jobs(&planned);
        let first = planned.finish(&["--sign", &own, "--remove-parts"]);
        assert!(first["output"]["signature"].is_string());
        assert_repeated(&planned.finish(&["--sign", &own]), &first);
        let plan = planned.plan();
        let (code, _, _) = refused(&["finish", text(&plan), "--sign", &other]);
        assert_eq!(code, "missing-part");
        // who does not ask for a signature is not told of one
        let unsigned = planned.finish(&[]);
        assert_eq!(unsigned["already_finished"], true);
        assert_eq!(unsigned["output"]["signature"], Value::Null);
    }
}
