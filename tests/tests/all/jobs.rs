//! One conversion as the jobs of a plan.
//!
//! Invariant: whatever happens to the jobs, in whatever order and how often they run, the output is what one machine writes, to
//! the byte; or `finish` refuses and names the jobs to run again.

mod again;

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, read_json, repository};
use bitnet_tests::program::{self, Ran};
use bitnet_tests::random::Random;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(words: &[&str]) -> Ran {
    program::run(bitnet_convert::run, [words, &["--json"]].concat())
}

fn done(words: &[&str]) -> Value {
    let ran = run(words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let json = ran.json();
    let schema = read_json(&repository().join("formats/report.schema.json"));
    let valid = jsonschema::draft202012::validate(&schema, &json);
    assert!(valid.is_ok(), "{valid:?}");
    json
}

fn refused(words: &[&str]) -> (String, String, String) {
    let ran = run(words);
    assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    let error = ran.json()["error"].clone();
    let part = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (part("code"), part("message"), part("hint"))
}

/// A plan beside its output.
struct Planned {
    dir: tempfile::TempDir,
    jobs: usize,
}

impl Planned {
    fn new(source: &Path, name: &str, how: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (output, plan) = (dir.path().join(name), dir.path().join("plan.json"));
        let words = [
            "plan",
            text(source),
            "-o",
            text(&output),
            "--plan",
            text(&plan),
        ];
        let json = done(&[&words[..], how].concat());
        assert!(!output.exists());
        let jobs = json["jobs"].as_array().unwrap().len();
        Self { dir, jobs }
    }

    fn plan(&self) -> PathBuf {
        self.dir.path().join("plan.json")
    }

    fn job(&self, index: usize) -> Value {
        let plan = self.plan();
        done(&["job", text(&plan), "--index", &index.to_string()])["jobs"][0].clone()
    }

    fn start(&self, index: usize) -> Child {
        Command::new(env!("CARGO_BIN_EXE_convert_under_test"))
            .arg("job")
            .arg(self.plan())
            .args(["--quiet", "--index", &index.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn finish(&self, more: &[&str]) -> Value {
        let plan = self.plan();
        done(&[&["finish", text(&plan)], more].concat())
    }

    /// Every file but the plan and the parts.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = files(self.dir.path());
        // a job that is killed while it makes the directory of the parts leaves it under a temporary name
        let is_part = |name: &str| name.contains(".parts/") || name.contains(".parts.partial-");
        files.retain(|name, _| name != "plan.json" && !is_part(name));
        files
    }
}

/// The files of a directory and of directories in it.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let below = files(&path).into_iter();
            found.extend(below.map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

fn on_one_machine(source: &Path, name: &str, how: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join(name);
    done(&[&[text(source), "-o", text(&output)], how].concat());
    files(dir.path())
}

fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

/// A checkpoint whose weights lie in several files.
fn sharded(dir: &Path) -> PathBuf {
    let source = dir.join("sharded");
    let from = checkpoint("falcon3-1.58");
    done(&[
        text(&from),
        "-o",
        text(&source),
        "--to",
        "hf-packed",
        "--split-max-size",
        "30K",
    ]);
    assert!(source.join("model.safetensors.index.json").exists());
    source
}

#[test]
fn jobs_in_any_order_write_what_one_machine_writes() {
    let dir = tempfile::tempdir().unwrap();
    let sharded = sharded(dir.path());
    let bf16 = checkpoint("bitnet-2b4t-bf16");
    let cases: [(&Path, &str, &[&str]); 7] = [
        (
            &bf16,
            "m.gguf",
            &["--to", "gguf-i2_s", "--split-max-size", "100K"],
        ),
        (
            &bf16,
            "m.gguf",
            &[
                "--to",
                "gguf-tq2_0",
                "--split-max-size",
                "60K",
                "--allow-scale-rounding",
            ],
        ),
        (
            &bf16,
            "m",
            &["--to", "hf-packed", "--split-max-size", "100K"],
        ),
        (&bf16, "m", &["--to", "packed", "--split-max-size", "100K"]),
        (
            &sharded,
            "m.gguf",
            &[
                "--to",
                "gguf-f16",
                "--split-max-size",
                "50K",
                "--embeddings",
                "f16",
                "--allow-scale-rounding",
            ],
        ),
        (
            &sharded,
            "m",
            &[
                "--to",
                "hf-bf16",
                "--split-max-size",
                "70K",
                "--allow-scale-rounding",
            ],
        ),
        // one file, one job
        (&sharded, "m.gguf", &["--to", "gguf-i2_s"]),
    ];
    let mut random = Random(7);
    for (source, name, how) in cases {
        let expected = on_one_machine(source, name, how);
        let planned = Planned::new(source, name, how);
        assert_eq!(
            planned.jobs > 1,
            how.contains(&"--split-max-size"),
            "{how:?}"
        );
        let mut order: Vec<usize> = (0..planned.jobs).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, random.below(n + 1));
        }
        for index in &order {
            assert_eq!(planned.job(*index)["status"], "done");
            // nothing is visible before the end
            assert!(planned.files().is_empty());
        }
        assert_eq!(planned.job(order[0])["status"], "skipped");
        let report = planned.finish(&[]);
        assert_eq!(report["status"], "converted");
        assert_same(&planned.files(), &expected);
        // again: nothing is written without --force, the same with it
        again::assert_repeated(&planned.finish(&[]), &report);
        planned.finish(&["--force", "--remove-parts"]);
        assert_same(&planned.files(), &expected);
        let left = files(planned.dir.path()).len();
        assert_eq!(left, expected.len() + 1, "the plan and the output");
    }
}

#[test]
fn killed_jobs_leave_nothing_that_counts() {
    let source = checkpoint("falcon-e");
    let how = ["--to", "gguf-i2_s", "--split-max-size", "40K"];
    let expected = on_one_machine(&source, "m.gguf", &how);
    let planned = Planned::new(&source, "m.gguf", &how);
    assert!(planned.jobs >= 8, "{}", planned.jobs);
    let mut random = Random(11);
    for _round in 0..6 {
        // eight at once, two of each number
        let first = random.below(planned.jobs);
        let mut running: Vec<Child> = (0..8)
            .map(|n| planned.start((first + n / 2) % planned.jobs))
            .collect();
        for job in &mut running {
            std::thread::sleep(Duration::from_millis(random.below(8) as u64));
            job.kill().unwrap();
            job.wait().unwrap();
        }
        let plan = planned.plan();
        let ran = run(&["finish", text(&plan)]);
        if ran.status == ExitStatus::Done {
            break;
        }
        assert_eq!(
            ran.json()["error"]["code"],
            "missing-part",
            "{}",
            ran.stdout
        );
        assert!(planned.files().is_empty());
    }
    let mut running: Vec<Child> = (0..planned.jobs)
        .chain(0..planned.jobs)
        .map(|n| planned.start(n))
        .collect();
    for job in &mut running {
        assert!(job.wait().unwrap().success());
    }
    // what a job leaves that is killed between the two names of its file
    let left = planned
        .dir
        .path()
        .join("m.gguf.parts/.job-00000.part.partial-1-0");
    fs::write(left, "part of a part").unwrap();
    planned.finish(&["--force", "--remove-parts"]);
    assert_same(&planned.files(), &expected);
    assert_eq!(files(planned.dir.path()).len(), expected.len() + 1);
}

#[test]
fn missing_damaged_and_foreign_parts_are_named() {
    let source = checkpoint("falcon-e");
    let how = ["--to", "gguf-i2_s", "--split-max-size", "80K"];
    let planned = Planned::new(&source, "m.gguf", &how);
    let plan = planned.plan();
    assert!(planned.jobs >= 5);
    let (code, message, hint) = refused(&["finish", text(&plan)]);
    assert_eq!(code, "missing-part");
    assert!(
        message.contains(&format!("{} are missing: 0, 1, 2", planned.jobs)),
        "{message}"
    );
    assert!(hint.contains("--index 0 --index 1"), "{hint}");
    for index in 0..planned.jobs {
        planned.job(index);
    }
    let parts = planned.dir.path().join("m.gguf.parts");
    let part = |index: usize, ending: &str| parts.join(format!("job-{index:05}.{ending}"));
    // one missing, one damaged, one of another source
    fs::remove_file(part(1, "part")).unwrap();
    let mut bytes = fs::read(part(2, "part")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(part(2, "part"), bytes).unwrap();
    let other = Planned::new(
        &checkpoint("falcon-e-prequantized"),
        "m.gguf",
        &[&how[..], &["--ternary-trained"]].concat(),
    );
    other.job(3);
    for ending in ["part", "json"] {
        let name = format!("job-00003.{ending}");
        fs::copy(
            other.dir.path().join("m.gguf.parts").join(name),
            part(3, ending),
        )
        .unwrap();
    }
    let (code, message, hint) = refused(&["finish", text(&plan)]);
    assert_eq!(code, "missing-part");
    assert!(message.contains("3 are missing: 1, 2, 3;"), "{message}");
    assert!(
        message.contains("3 have a part of another plan, or a damaged one"),
        "{message}"
    );
    assert!(hint.ends_with("--index 1 --index 2 --index 3"), "{hint}");
    assert!(planned.files().is_empty());
    let again = done(&[
        "job",
        text(&plan),
        "--index",
        "1",
        "--index",
        "2",
        "--index",
        "3",
        "--index",
        "4",
    ]);
    let words: Vec<&str> = again["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["status"].as_str().unwrap())
        .collect();
    assert_eq!(words, ["done", "done", "done", "skipped"]);
    // what others put beside the parts stays
    fs::write(parts.join("notes.txt"), "mine").unwrap();
    planned.finish(&["--remove-parts"]);
    assert_same(&planned.files(), &on_one_machine(&source, "m.gguf", &how));
    assert_eq!(
        files(&parts).keys().collect::<Vec<_>>(),
        ["bitnet-convert-parts", "notes.txt"]
    );
}

#[test]
fn another_source_than_the_plan_s_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    let from = checkpoint("falcon-e");
    done(&[text(&from), "-o", text(&source), "--to", "gguf-i2_s"]);
    let planned = Planned::new(
        &source,
        "m.gguf",
        &[
            "--to",
            "gguf-tq1_0",
            "--allow-scale-rounding",
            "--split-max-size",
            "80K",
        ],
    );
    planned.job(0);
    let plan = planned.plan();
    // the same header, other weights
    let mut bytes = fs::read(&source).unwrap();
    let at = bytes.len() * 2 / 3;
    for byte in &mut bytes[at..at + 4096] {
        *byte = if *byte == 0x55 { 0x56 } else { 0x55 };
    }
    fs::write(&source, bytes).unwrap();
    for command in [
        &["job", text(&plan), "--index", "1"][..],
        &["finish", text(&plan)],
    ] {
        let (code, message, hint) = refused(command);
        assert_eq!(code, "input-changed");
        assert!(
            message.contains("source.gguf") && hint.starts_with("make the plan again"),
            "{message} {hint}"
        );
    }
}

/// Turns one bit of a file and leaves everything else, the length included.
fn turn_a_bit(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    let at = usize::try_from(at).unwrap();
    bytes[at] ^= 1;
    // times of some file systems have steps of some milliseconds
    std::thread::sleep(Duration::from_millis(20));
    fs::write(path, bytes).unwrap();
}

/// The last file of weights of a checkpoint.
fn last_shard(source: &Path) -> PathBuf {
    let paths = fs::read_dir(source).unwrap().map(|e| e.unwrap().path());
    let shards = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    shards.max().unwrap()
}

#[test]
fn a_source_that_changes_between_two_jobs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = sharded(dir.path());
    let how = ["--to", "gguf-i2_s", "--split-max-size", "64K"];
    let planned = Planned::new(&source, "m.gguf", &how);
    assert!(planned.jobs > 2);
    planned.job(0);
    planned.job(1);
    let shard = &last_shard(&source);
    let plan = planned.plan();
    let job = |index: usize| run(&["job", text(&plan), "--index", &index.to_string()]);
    // a bit that no sample of the plan covers: samples are of 1 KiB each
    let len = fs::metadata(shard).unwrap().len();
    let unseen = (1..20).map(|n| len - 700 * n).find(|at| {
        turn_a_bit(shard, *at);
        let is_unseen = job(2).status == ExitStatus::Done;
        if !is_unseen {
            turn_a_bit(shard, *at);
        }
        is_unseen
    });
    assert!(unseen.is_some());
    for index in 3..planned.jobs {
        assert_eq!(job(index).status, ExitStatus::Done);
    }
    let (code, message, hint) = refused(&["finish", text(&plan)]);
    assert_eq!(code, "input-changed");
    assert!(message.contains("--index 0 --index 1"), "{message}");
    assert!(!message.contains("--index 2"), "{message}");
    assert!(hint.contains("run `bitnet-convert job` again"), "{hint}");
    assert!(!planned.dir.path().join("m.gguf.certificate.json").exists());
    // the jobs that are named run again, though their parts are whole
    for index in 0..planned.jobs {
        let job = planned.job(index);
        let status = if index > 1 { "skipped" } else { "done" };
        assert_eq!(job["status"], status, "{job}");
    }
    planned.finish(&[]);
    assert_same(&planned.files(), &on_one_machine(&source, "m.gguf", &how));
}

#[test]
fn a_directory_that_no_job_made_stays_as_it_is() {
    let source = checkpoint("falcon-e");
    let planned = Planned::new(&source, "m.gguf", &["--to", "gguf-i2_s"]);
    let parts = planned.dir.path().join("m.gguf.parts");
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("job-00000.part"), "mine").unwrap();
    let plan = planned.plan();
    let (code, message, hint) = refused(&["job", text(&plan), "--index", "0"]);
    assert_eq!(code, "exists");
    assert!(
        message.contains("m.gguf.parts") && hint.starts_with("move it"),
        "{message}"
    );
    assert_eq!(fs::read(parts.join("job-00000.part")).unwrap(), b"mine");
    // a link leads elsewhere
    let elsewhere = planned.dir.path().join("elsewhere");
    fs::rename(&parts, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &parts).unwrap();
    assert_eq!(refused(&["job", text(&plan), "--index", "0"]).0, "exists");
    assert_eq!(
        files(&elsewhere).keys().collect::<Vec<_>>(),
        ["job-00000.part"]
    );
}

#[test]
fn an_address_with_a_secret_is_no_source_of_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.json");
    let output = dir.path().join("m.gguf");
    for source in [
        "http://user:5ec2e7@127.0.0.1:9/m",
        "http://127.0.0.1:9/m?X-Amz-Signature=5ec2e7",
    ] {
        let words = [
            "plan",
            source,
            "-o",
            text(&output),
            "--to",
            "gguf-i2_s",
            "--plan",
            text(&plan),
        ];
        let (code, message, _) = refused(&words);
        assert_eq!(code, "usage");
        assert!(
            message.contains("a plan would show") && !message.contains("5ec2e7"),
            "{message}"
        );
        assert!(!plan.exists());
    }
}

#[test]
fn what_a_plan_cannot_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let source = checkpoint("falcon-e");
    let (output, plan) = (place("m.gguf"), place("plan.json"));
    let words = [
        "plan",
        text(&source),
        "-o",
        text(&output),
        "--plan",
        text(&plan),
    ];
    let (code, message, _) = refused(&words);
    assert_eq!(
        (code.as_str(), message.contains("--to TARGET")),
        ("usage", true)
    );
    let with_target = [&words[..], &["--to", "gguf-i2_s"]].concat();
    done(&with_target);
    assert_eq!(refused(&with_target).0, "exists");
    done(&[&with_target[..], &["--force"]].concat());
    let (code, message, hint) = refused(&["job", text(&plan), "--index", "1"]);
    assert_eq!(code, "usage");
    assert!(
        message.contains("1 jobs, from 0 to 0, found job 1") && hint.contains("--index"),
        "{message}"
    );
    // without a number
    let job = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convert_under_test"));
        command.args(["job", "--json"]).arg(&plan);
        command
            .env_remove("SLURM_ARRAY_TASK_ID")
            .env_remove("JOB_COMPLETION_INDEX");
        command.envs(variables.iter().copied());
        let ran = command.output().unwrap();
        serde_json::from_slice::<Value>(&ran.stdout).unwrap()
    };
    let none = job(&[]);
    assert!(
        none["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("SLURM_ARRAY_TASK_ID")
    );
    let wrong = job(&[("SLURM_ARRAY_TASK_ID", "first")]);
    assert!(
        wrong["error"]["message"]
            .as_str()
            .unwrap()
            .contains("SLURM_ARRAY_TASK_ID, found `first`")
    );
    // the first variable decides
    let slurm = job(&[("SLURM_ARRAY_TASK_ID", "0"), ("JOB_COMPLETION_INDEX", "9")]);
    assert_eq!(slurm["jobs"][0]["status"], "done", "{slurm}");
    assert_eq!(
        job(&[("JOB_COMPLETION_INDEX", "0")])["jobs"][0]["status"],
        "skipped"
    );
    // every key of the file is read
    let whole: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    for key in [
        "plan",
        "plan_sha256",
        "source",
        "output",
        "target",
        "embeddings",
        "allow_scale_rounding",
        "split_max_size",
        "layout",
        "ternary_trained",
    ] {
        let mut broken = whole.clone();
        broken[key] = Value::from(vec![1]);
        fs::write(&plan, broken.to_string()).unwrap();
        let (code, message, _) = refused(&["job", text(&plan), "--index", "0"]);
        assert_eq!(code, "malformed");
        assert!(
            message.contains(&format!("`{key}` of the plan is [1]")),
            "{message}"
        );
    }
    for junk in ["", "{", "[]", "null"] {
        fs::write(&plan, junk).unwrap();
        assert_eq!(refused(&["finish", text(&plan)]).0, "malformed");
    }
}

fn verify(words: &[&str]) -> Ran {
    program::run(bitnet_verify::run, [words, &["--json"]].concat())
}

/// The reports of all shares, as files.
fn shares(dir: &Path, artifact: &Path, source: &Path, count: usize) -> Vec<PathBuf> {
    let share = |index: usize| {
        let words = [
            text(artifact),
            "--against",
            text(source),
            "--shard",
            &format!("{index}/{count}"),
        ];
        let path = dir.join(format!("{index}-of-{count}.json"));
        fs::write(&path, verify(&words).stdout).unwrap();
        path
    };
    (1..=count).map(share).collect()
}

fn merge(reports: &[PathBuf]) -> Ran {
    let words: Vec<&str> = reports.iter().map(|path| text(path)).collect();
    verify(&[&["merge"], &words[..]].concat())
}

#[test]
fn reports_of_shares_join_to_that_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("falcon-e");
    let artifact = dir.path().join("m.gguf");
    done(&[text(&source), "-o", text(&artifact), "--to", "gguf-i2_s"]);
    let whole = verify(&[text(&artifact), "--against", text(&source)]).json();
    let status = |json: &Value, name: &str| {
        let checks = json["checks"].as_array().unwrap().iter();
        checks.clone().find(|check| check["name"] == name).unwrap()["status"].clone()
    };
    let hash = whole["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "digest")
        .unwrap();
    let hash = hash["detail"]
        .as_str()
        .unwrap()
        .strip_prefix("ternary_sha256 ")
        .unwrap();
    for count in [1, 3, 40] {
        let mut reports = shares(dir.path(), &artifact, &source, count);
        reports.reverse();
        let joined = merge(&reports);
        assert_eq!(joined.status, ExitStatus::Done, "{}", joined.stdout);
        let joined = joined.json();
        assert_eq!(
            (&joined["status"], &joined["ternary_sha256"]),
            (&"same".into(), &hash.into())
        );
        for name in [
            "structure",
            "metadata",
            "trits",
            "scales",
            "dense",
            "digest",
        ] {
            assert_eq!(status(&joined, name), status(&whole, name), "{name}");
        }
        if count > 1 {
            let left_out = reports.remove(1);
            let error = merge(&reports).json()["error"].clone();
            assert_eq!(error["code"], "missing-part");
            assert!(
                error["hint"]
                    .as_str()
                    .unwrap()
                    .contains(&format!("--shard {}/{count}", count - 1)),
                "{error}"
            );
            reports.extend([left_out.clone(), left_out]);
            let error = merge(&reports).json()["error"].clone();
            assert!(
                error["message"]
                    .as_str()
                    .unwrap()
                    .contains("of the same share"),
                "{error}"
            );
        }
    }
    // a flipped trit is found by exactly one share, and by the whole
    let bytes = fs::read(&artifact).unwrap();
    let file = bitnet_formats::open(&artifact, &bitnet_formats::Limits::default()).unwrap();
    let tensor = file.tensor("blk.1.ffn_up.weight").unwrap();
    let at = (tensor.offset + tensor.len / 3) as usize;
    let changed = dir.path().join("changed.gguf");
    let mut flipped = bytes.clone();
    flipped[at] = if flipped[at] == 0x55 { 0x56 } else { 0x55 };
    fs::write(&changed, flipped).unwrap();
    let reports = shares(dir.path(), &changed, &source, 4);
    let found = reports.iter().filter(|path| {
        let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        json["status"] == "different"
    });
    assert_eq!(found.count(), 1);
    let joined = merge(&reports);
    assert_eq!(joined.status, ExitStatus::Different);
    let joined = joined.json();
    assert_eq!(status(&joined, "trits"), "different");
    assert_eq!(status(&joined, "digest"), "different");
    assert!(joined.to_string().contains("mlp.up_proj"), "{joined}");
    // reports of two artifacts
    let other = shares(dir.path(), &checkpoint("falcon-e-prequantized"), &source, 2);
    let mixed = [reports[0].clone(), other[1].clone()];
    assert_eq!(merge(&mixed).json()["error"]["code"], "missing-part");
    // a report that contradicts itself
    let mut sound = shares(dir.path(), &artifact, &source, 3);
    let json: Value = serde_json::from_slice(&fs::read(&sound[1]).unwrap()).unwrap();
    let wrong = dir.path().join("contradicts.json");
    sound[1] = wrong.clone();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        fs::write(&wrong, json.to_string()).unwrap();
        merge(&sound)
    };
    assert_eq!(with(&|_| {}).status, ExitStatus::Done);
    let changes: [&dyn Fn(&mut Value); 6] = [
        &|json| json["status"] = "different".into(),
        &|json| json["status"] = "error".into(),
        &|json| json["status"] = Value::Null,
        &|json| json["checks"][1]["status"] = "different".into(),
        &|json| json["checks"][1]["status"] = "error".into(),
        &|json| json["error"] = serde_json::json!({"code": "io", "message": "m", "hint": null}),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let ran = with(change);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{n}: {}", ran.stdout);
        let error = ran.json()["error"].clone();
        assert_eq!(error["code"], "malformed", "{n}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("contradicts itself"), "{n}: {message}");
    }
    // what is no report
    for junk in ["", "[]", "{}", r#"{"shard": {"index": 1}}"#] {
        let path = dir.path().join("junk.json");
        fs::write(&path, junk).unwrap();
        assert_eq!(
            merge(&[path]).json()["error"]["code"],
            "malformed",
            "{junk}"
        );
    }
    let refused = verify(&[
        text(&artifact),
        "--against",
        text(&source),
        "--shard",
        "3/2",
    ]);
    assert_eq!(refused.status, ExitStatus::CouldNot);
    let refused = verify(&[text(&artifact), "--shard", "1/2"]);
    assert_eq!(refused.json()["error"]["code"], "usage");
}
