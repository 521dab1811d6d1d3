//! The jobs of a plan whose output is in an object store.
//!
//! Invariant: whatever happens to jobs and store, the objects are the files of a conversion to this disk, or none of them is
//! visible and the jobs to run again are named. Objects that jobs did not write stay.

use super::stores::{put, user};
use super::*;
use bitnet_tests::random::Random;
use bitnet_tests::servers::s3::S3;
use bitnet_tests::servers::{Fault, Kind};
use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Duration;

const SPLIT: [&str; 4] = ["--to", "gguf-i2_s", "--split-max-size", "80K"];

/// A plan in a store, with its output beside it.
struct Planned<'a> {
    store: &'a S3,
    user: User,
    plan: String,
    /// `s3://bucket/out/NAME`
    output: String,
    jobs: usize,
}

impl<'a> Planned<'a> {
    fn new(store: &'a S3, source: &str, name: &str, how: &[&str]) -> Self {
        let user = user(store);
        let (plan, output) = (
            format!("s3://bucket/plans/{name}.json"),
            format!("s3://bucket/out/{name}"),
        );
        let words = ["plan", source, "-o", &output, "--plan", &plan, "--json"];
        let json = user.ok(CONVERT, &[&words[..], how].concat()).json();
        assert_eq!(json["plan"], plan.as_str());
        let jobs = json["jobs"].as_array().unwrap().len();
        Self {
            store,
            user,
            plan,
            output,
            jobs,
        }
    }

    fn job(&self, index: usize) -> String {
        let index = index.to_string();
        let words = ["job", &self.plan, "--index", &index, "--json"];
        let json = self.user.ok(CONVERT, &words).json();
        json["jobs"][0]["status"].as_str().unwrap().to_owned()
    }

    fn all_jobs(&self) {
        for index in 0..self.jobs {
            assert_eq!(self.job(index), "done");
        }
    }

    fn finish(&self, more: &[&str]) -> Value {
        let words = ["finish", &self.plan, "--json"];
        self.user.ok(CONVERT, &[&words[..], more].concat()).json()
    }

    fn finish_fails(&self) -> (String, String) {
        self.user.fails(CONVERT, &["finish", &self.plan])
    }

    /// The key of a part's object.
    fn part(&self, index: usize, ending: &str) -> String {
        let key = self.output.strip_prefix("s3://").unwrap();
        format!("{key}.parts/job-{index:05}.{ending}")
    }

    /// What is at the names of the output, by the name below `out/`.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let objects = self.store.objects().into_iter();
        let files = objects.filter_map(|(key, bytes)| {
            let name = key.strip_prefix("bucket/out/")?;
            (!name.contains(".parts/")).then(|| (name.to_owned(), bytes.to_vec()))
        });
        files.collect()
    }

    fn parts_left(&self) -> Vec<String> {
        let objects = self.store.objects().into_keys();
        objects.filter(|key| key.contains(".parts/")).collect()
    }
}

/// The files of a conversion to this disk.
fn on_this_disk(user: &User, source: &str, name: &str, how: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join(name);
    let words = [source, "-o", output.to_str().unwrap(), "--quiet"];
    user.ok(CONVERT, &[&words[..], how].concat());
    let mut found = BTreeMap::new();
    let mut directories = vec![dir.path().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap();
            found.insert(name.to_owned(), std::fs::read(&path).unwrap());
        }
    }
    found
}

fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

fn fixture() -> String {
    checkpoint(FIXTURE).to_str().unwrap().to_owned()
}

#[test]
fn jobs_in_any_order_write_what_a_conversion_to_this_disk_writes() {
    let cases: [(&str, &[&str]); 3] = [
        ("m.gguf", &SPLIT),
        ("m", &["--to", "hf-packed", "--split-max-size", "60K"]),
        // one file, one job
        ("m.gguf", &["--to", "gguf-tq2_0", "--allow-scale-rounding"]),
    ];
    let mut random = Random(5);
    for (name, how) in cases {
        let store = S3::start();
        put(&store, "bucket/in/model", &checkpoint(FIXTURE));
        let source = "s3://bucket/in/model";
        let planned = Planned::new(&store, source, name, how);
        let expected = on_this_disk(&planned.user, source, name, how);
        assert_eq!(planned.jobs > 2, how.contains(&"--split-max-size"));
        let mut order: Vec<usize> = (0..planned.jobs).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, random.below(n + 1));
        }
        for index in &order {
            assert_eq!(planned.job(*index), "done");
            assert!(planned.files().is_empty());
        }
        let before = store.objects();
        assert_eq!(planned.job(order[0]), "skipped");
        assert_eq!(before.len(), store.objects().len());
        store.reset();
        let report = planned.finish(&[]);
        assert_eq!(report["status"], "converted");
        let path = report["output"]["path"].as_str().unwrap();
        assert!(path.starts_with("s3://bucket/out/m"), "{path}");
        assert_same(&planned.files(), &expected);
        assert_eq!(store.open_uploads(), 0);
        // all bytes were there before the first object was visible, and the certificate was the last to be
        let log = store.log();
        let last_part = log.iter().rposition(|l| l.request.method == "PUT").unwrap();
        let completed = log
            .iter()
            .enumerate()
            .filter(|(_, l)| l.request.method == "POST" && l.request.target.contains("uploadId"));
        let completed: Vec<(usize, String)> =
            completed.map(|(n, l)| (n, l.request.path())).collect();
        assert_eq!(completed.len(), expected.len());
        assert!(completed[0].0 > last_part, "{completed:?}");
        assert!(
            completed.last().unwrap().1.ends_with("certificate.json"),
            "{completed:?}"
        );
        // again: nothing is written without --force, the same with it; parts that are gone are not missed
        let begun = store.begun_uploads();
        for more in [&[][..], &["--force", "--remove-parts"], &["--force"], &[]] {
            let again = planned.finish(more);
            assert_eq!(again["ternary_sha256"], report["ternary_sha256"]);
            assert_eq!(again["output"], report["output"]);
            let is_written = more.len() == 2;
            assert_eq!(again.get("already_finished").is_none(), is_written);
            assert_same(&planned.files(), &expected);
        }
        assert!(store.begun_uploads() > begun);
        assert!(planned.parts_left().is_empty());
        // damage is found behind the same lengths
        for key in planned.files().into_keys() {
            let key = format!("bucket/out/{key}");
            store.flip(&key);
            assert_eq!(planned.finish_fails().0, "missing-part");
            store.flip(&key);
        }
        planned.finish(&[]);
        let (artifact, words) = (path.to_owned(), ["--against", source, "--json"]);
        let artifact = if name == "m" {
            &planned.output
        } else {
            &artifact
        };
        if !how.contains(&"--allow-scale-rounding") {
            let same = planned
                .user
                .ok(VERIFY, &[&[artifact.as_str()], &words[..]].concat());
            assert_eq!(same.json()["status"], "same");
        }
    }
}

#[test]
fn killed_jobs_and_two_runners_of_one_job_leave_nothing_wrong() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    let expected = on_this_disk(&planned.user, &source, "m.gguf", &SPLIT);
    // what killed programs leave in their directory for temporary files is no matter
    let runner = user(&store);
    let start = |index: usize| -> Child {
        let index = index.to_string();
        let words = ["job", &planned.plan, "--quiet", "--index", &index];
        let mut command = runner.command(CONVERT, &words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut random = Random(3);
    for _round in 0..4 {
        let first = random.below(planned.jobs);
        let mut running: Vec<Child> = (0..6)
            .map(|n| start((first + n / 2) % planned.jobs))
            .collect();
        for job in &mut running {
            std::thread::sleep(Duration::from_millis(random.below(60) as u64));
            job.kill().unwrap();
            job.wait().unwrap();
        }
        assert!(planned.files().is_empty());
    }
    let mut running: Vec<Child> = (0..planned.jobs)
        .chain(0..planned.jobs)
        .map(start)
        .collect();
    for job in &mut running {
        assert!(job.wait().unwrap().success());
    }
    planned.finish(&["--remove-parts"]);
    assert_same(&planned.files(), &expected);
    assert!(planned.parts_left().is_empty());
}

#[test]
fn parts_that_cannot_be_removed_do_not_hide_that_the_output_is_complete() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    let expected = on_this_disk(&planned.user, &source, "m.gguf", &SPLIT);
    for index in 0..planned.jobs {
        planned.job(index);
    }
    store.fail(Fault::new(
        "DELETE",
        ".parts/",
        usize::MAX,
        Kind::Status(403, vec![]),
    ));
    let words = ["finish", &planned.plan, "--remove-parts"];
    let (code, said) = planned.user.fails(CONVERT, &words);
    assert_eq!(code, "access-denied", "{said}");
    let complete = "the output is complete, but its parts stay: ";
    assert!(said.contains(complete) && said.contains("hint: "), "{said}");
    assert_same(&planned.files(), &expected);
    assert!(!planned.parts_left().is_empty());
}

#[test]
fn missing_damaged_and_foreign_parts_are_named() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    let expected = on_this_disk(&planned.user, &source, "m.gguf", &SPLIT);
    assert!(planned.jobs >= 5, "{}", planned.jobs);
    let (code, said) = planned.finish_fails();
    assert_eq!(code, "missing-part");
    assert!(
        said.starts_with("s3://bucket/out/m.gguf.parts: expected the parts of all jobs"),
        "{said}"
    );
    assert!(
        said.contains("are missing: 0, 1, 2") && said.contains("--index 0 --index 1"),
        "{said}"
    );
    planned.all_jobs();
    // one missing, one of another length, one of another source
    store.remove(&planned.part(1, "part"));
    store.put(&planned.part(2, "part"), b"short".to_vec());
    let other = checkpoint("falcon-e-prequantized");
    let how = [&SPLIT[..], &["--ternary-trained"]].concat();
    let other = Planned::new(&store, other.to_str().unwrap(), "other.gguf", &how);
    other.job(3);
    for ending in ["part", "json"] {
        let objects = store.objects();
        store.put(
            &planned.part(3, ending),
            objects[&other.part(3, ending)].to_vec(),
        );
    }
    let (code, said) = planned.finish_fails();
    assert_eq!(code, "missing-part");
    assert!(said.contains("3 are missing: 1, 2, 3;"), "{said}");
    assert!(
        said.contains("3 have a part of another plan, or a damaged one"),
        "{said}"
    );
    assert!(said.ends_with("--index 1 --index 2 --index 3"), "{said}");
    for (index, status) in [(1, "done"), (2, "done"), (3, "done"), (4, "skipped")] {
        assert_eq!(planned.job(index), status, "{index}");
    }
    // other bytes behind the metadata of the right ones: only reading tells
    store.flip(&planned.part(0, "part"));
    store.flip(&planned.part(2, "part"));
    let (code, said) = planned.finish_fails();
    assert_eq!(code, "missing-part");
    assert!(said.contains("2 are missing: 0, 2;"), "{said}");
    assert!(planned.files().is_empty());
    assert_eq!(store.open_uploads(), 0);
    for (index, status) in [(0, "done"), (1, "skipped"), (2, "done")] {
        assert_eq!(planned.job(index), status, "{index}");
    }
    // what others put beside the parts stays
    store.put("bucket/out/m.gguf.parts/notes.txt", b"mine".to_vec());
    planned.finish(&["--remove-parts"]);
    assert_same(&planned.files(), &expected);
    let left: Vec<String> = planned.parts_left();
    let left: Vec<&str> = left
        .iter()
        .map(|key| key.rsplit('/').next().unwrap())
        .collect();
    assert!(
        left.contains(&"notes.txt") && left.contains(&"bitnet-convert-parts"),
        "{left:?}"
    );
    assert!(
        !planned
            .parts_left()
            .iter()
            .any(|key| key.contains("/m.gguf.parts/job-")),
        "{left:?}"
    );
    // the part of the other plan is the other plan's
    assert!(store.objects().contains_key(&other.part(3, "part")));
}

#[test]
fn objects_that_no_job_wrote_stay_as_they_are() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    let job = |index: &str| {
        planned
            .user
            .fails(CONVERT, &["job", &planned.plan, "--index", index])
    };
    // a prefix that is not of jobs
    store.put(&planned.part(0, "part"), b"mine".to_vec());
    let (code, said) = job("1");
    assert_eq!(code, "exists", "{said}");
    assert!(
        said.contains("s3://bucket/out/m.gguf.parts") && said.contains("hint: move them"),
        "{said}"
    );
    assert_eq!(planned.parts_left().len(), 1);
    store.remove(&planned.part(0, "part"));
    // a name alone is no mark
    let mark = "bucket/out/m.gguf.parts/bitnet-convert-parts";
    store.put(mark, b"mine".to_vec());
    assert_eq!(job("1").0, "exists");
    store.remove(mark);
    // an object of a part's name among those of jobs
    assert_eq!(planned.job(1), "done");
    for ending in ["part", "json"] {
        store.put(&planned.part(0, ending), b"mine".to_vec());
        let (code, said) = job("0");
        assert_eq!(code, "exists", "{said}");
        assert!(said.contains(&format!("job-00000.{ending}")), "{said}");
        assert_eq!(*store.objects()[&planned.part(0, ending)], b"mine");
        store.remove(&planned.part(0, ending));
    }
    // an object of the output's name, which only --force replaces
    for index in (0..planned.jobs).filter(|index| *index != 1) {
        assert_eq!(planned.job(index), "done");
    }
    let expected = on_this_disk(&planned.user, &source, "m.gguf", &SPLIT);
    let last = format!(
        "bucket/out/{}",
        expected.keys().nth(planned.jobs - 1).unwrap()
    );
    store.put(&last, b"mine".to_vec());
    assert_eq!(planned.finish_fails().0, "exists");
    assert_eq!(planned.files().len(), 1);
    assert_eq!(*store.objects()[&last], b"mine");
    assert_eq!(store.open_uploads(), 0);
    store.remove(&last);
    planned.finish(&[]);
    assert_same(&planned.files(), &expected);
}

#[test]
fn a_store_that_keeps_no_metadata_serves_as_well() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    planned.all_jobs();
    store.forget_notes();
    assert_eq!(planned.job(1), "skipped");
    store.flip(&planned.part(1, "part"));
    store.remove(&planned.part(2, "json"));
    assert_eq!(planned.job(1), "done");
    store.forget_notes();
    assert_eq!(planned.job(2), "done");
    store.forget_notes();
    planned.finish(&["--remove-parts"]);
    assert_same(
        &planned.files(),
        &on_this_disk(&planned.user, &source, "m.gguf", &SPLIT),
    );
    assert!(planned.parts_left().is_empty());
}

#[test]
fn faults_of_the_store_are_waited_for_or_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let source = source.to_str().unwrap();
    let store = S3::start();
    let how = ["--to", "gguf-f32"];
    let planned = Planned::new(&store, source, "m.gguf", &how);
    let job = ["job", &planned.plan, "--index", "0"];
    // a part that cannot be sent
    let forever = usize::MAX;
    let refuse = |method: &str, target: &str| {
        store.fail(Fault::new(method, target, forever, Kind::Refused(403)).after(2));
    };
    refuse("PUT", "partNumber");
    let (code, said) = planned.user.fails(CONVERT, &job);
    assert_eq!(code, "access-denied", "{said}");
    let is_mark = |keys: Vec<String>| keys.len() == 1 && keys[0].ends_with("bitnet-convert-parts");
    assert!(is_mark(planned.parts_left()));
    assert_eq!(store.open_uploads(), 0);
    // the partial certificate cannot be written: the file alone does not count
    store.reset();
    store.fail(Fault::new(
        "PUT",
        "job-00000.json",
        forever,
        Kind::Refused(403),
    ));
    assert_eq!(planned.user.fails(CONVERT, &job).0, "access-denied");
    assert_eq!(planned.finish_fails().0, "missing-part");
    // a store that is overloaded, and connections that break
    store.reset();
    store.fail(Fault::new("PUT", "partNumber=2", 2, Kind::Refused(503)));
    store.fail(Fault::new("POST", "uploads", 1, Kind::Refused(500)).after(1));
    store.fail(Fault::new("PUT", "job-00000.json", 1, Kind::Refused(503)));
    assert_eq!(planned.job(0), "done");
    // the same while the parts get their names
    store.reset();
    store.fail(Fault::new(
        "GET",
        "job-00000.part",
        2,
        Kind::Drop(3_000_000),
    ));
    store.fail(Fault::new("PUT", "partNumber=3", 1, Kind::Refused(503)));
    planned.finish(&[]);
    let expected = on_this_disk(&planned.user, source, "m.gguf", &how);
    assert!(expected["m.gguf"].len() > 3 * (8 << 20));
    assert_same(&planned.files(), &expected);
    // the second object cannot be completed: the first goes again
    for key in planned.files().into_keys() {
        store.remove(&format!("bucket/out/{key}"));
    }
    store.reset();
    let target = "certificate.json?uploadId";
    store.fail(Fault::new("POST", target, forever, Kind::Refused(403)));
    let (code, said) = planned.finish_fails();
    assert_eq!(code, "access-denied", "{said}");
    assert!(planned.files().is_empty());
    assert_eq!(store.open_uploads(), 0);
    store.reset();
    planned.finish(&["--remove-parts"]);
    assert_same(&planned.files(), &expected);
}

#[test]
fn an_upload_whose_end_is_answered_with_an_error_counts_by_what_is_there() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    let expected = on_this_disk(&planned.user, &source, "m.gguf", &SPLIT);
    // served, and answered with an error or not at all: parts, partial certificates, and the files of the output
    for kind in [
        Kind::Status(403, vec![]),
        Kind::Status(500, vec![]),
        Kind::Drop(0),
    ] {
        store.fail(Fault::new("POST", "uploadId", 1, kind));
    }
    store.fail(Fault::new(
        "PUT",
        "job-00001.json",
        1,
        Kind::Status(403, vec![]),
    ));
    planned.all_jobs();
    store.reset();
    for _ in 0..3 {
        store.fail(Fault::new("POST", "uploadId", 1, Kind::Status(403, vec![])));
    }
    planned.finish(&[]);
    assert_same(&planned.files(), &expected);
    assert_eq!(store.open_uploads(), 0);
    // an object of the same length that was there before is none of this upload's
    store.reset();
    let (name, right) = expected.iter().next().unwrap();
    let key = format!("bucket/out/{name}");
    store.flip(&key);
    store.fail(Fault::new(
        "POST",
        "uploadId",
        usize::MAX,
        Kind::Refused(403),
    ));
    let words = ["finish", &planned.plan, "--force"];
    assert_eq!(planned.user.fails(CONVERT, &words).0, "access-denied");
    assert!(planned.files()[name] != *right);
    assert_eq!(planned.files().len(), expected.len());
    assert_eq!(store.open_uploads(), 0);
    // what cannot be looked at afterwards is not left behind
    for key in planned.files().into_keys() {
        store.remove(&format!("bucket/out/{key}"));
    }
    store.reset();
    store.fail(Fault::new("POST", "uploadId", 1, Kind::Status(403, vec![])));
    let first = format!("out/{}", expected.keys().rev().nth(1).unwrap());
    store.fail(Fault::new("GET", &first, usize::MAX, Kind::Refused(403)));
    let (code, said) = planned.finish_fails();
    assert_eq!(code, "access-denied", "{said}");
    assert!(planned.files().is_empty(), "{:?}", planned.files().keys());
    store.reset();
    planned.finish(&["--remove-parts"]);
    assert_same(&planned.files(), &expected);
}

#[test]
fn a_finish_that_was_killed_between_two_objects_is_ended_by_the_next() {
    let store = S3::start();
    let source = fixture();
    let planned = Planned::new(&store, &source, "m.gguf", &SPLIT);
    planned.all_jobs();
    planned.finish(&[]);
    let expected = planned.files();
    assert!(expected.len() > 3);
    // objects become visible from the last part to the first, then the certificate
    let mut keys: Vec<String> = expected.keys().map(|n| format!("bucket/out/{n}")).collect();
    keys.reverse();
    keys.rotate_left(1);
    let certificate = keys.last().unwrap().clone();
    assert!(certificate.ends_with("certificate.json"), "{keys:?}");
    assert!(keys[0] > keys[1], "{keys:?}");
    for visible in 1..keys.len() {
        keys[visible..].iter().for_each(|key| store.remove(key));
        planned.finish(&[]);
        assert_same(&planned.files(), &expected);
    }
    // an object that is not this output's stays: a part, or a certificate
    for (foreign, missing) in [(&keys[0], &certificate), (&certificate, &keys[1])] {
        store.remove(missing);
        store.flip(foreign);
        let before = planned.files();
        let (code, said) = planned.finish_fails();
        assert_eq!(code, "exists", "{said}");
        assert_same(&planned.files(), &before);
        assert_eq!(store.open_uploads(), 0);
        planned.finish(&["--force"]);
        assert_same(&planned.files(), &expected);
    }
}

#[test]
fn places_that_take_no_plan_or_no_output() {
    let store = S3::with_bucket("bucket");
    put(&store, "bucket/in/model", &checkpoint(FIXTURE));
    let user_of_it = user(&store);
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("plan.json");
    let local = local.to_str().unwrap();
    let source = fixture();
    let fails = |user: &User, source: &str, output: &str, plan: &str| {
        let words = [
            "plan",
            source,
            "-o",
            output,
            "--to",
            "hf-packed",
            "--plan",
            plan,
        ];
        let (code, said) = user.fails(CONVERT, &words);
        assert!(!Path::new(local).exists());
        (code, said)
    };
    let out = "s3://bucket/out/m";
    for (output, plan, expected) in [
        ("hf://o/n", local, "usage"),
        ("https://h/m", local, "usage"),
        ("file:///m", local, "usage"),
        ("s3://bucket", local, "usage"),
        (out, "hf://o/n", "usage"),
        (out, "https://h/plan.json", "usage"),
        (out, "s3://bucket", "usage"),
        ("s3://absent/m", local, "not-found"),
        (out, "s3://absent/plan.json", "not-found"),
    ] {
        let (code, said) = fails(&user_of_it, &source, output, plan);
        assert_eq!(code, expected, "{output} {plan}: {said}");
    }
    // the output is the source
    let place = "s3://bucket/in/model";
    let (code, said) = fails(&user_of_it, place, place, local);
    assert_eq!(code, "usage", "{said}");
    assert!(
        said.contains("the output is an input of this run"),
        "{said}"
    );
    let words = [place, "-o", place, "--to", "hf-packed", "--force"];
    assert_eq!(user_of_it.fails(CONVERT, &words).0, "usage");
    // a plan that exists
    store.put("bucket/plan.json", b"mine".to_vec());
    let plan = "s3://bucket/plan.json";
    assert_eq!(fails(&user_of_it, &source, out, plan).0, "exists");
    let (code, said) = user_of_it.fails(CONVERT, &["job", plan, "--index", "0"]);
    assert_eq!(code, "malformed", "{said}");
    let (code, said) = user_of_it.fails(CONVERT, &["finish", "s3://bucket/no-plan.json"]);
    assert_eq!(code, "not-found", "{said}");
    // no access
    store.fail(Fault::new(
        "POST",
        "uploads",
        usize::MAX,
        Kind::Refused(403),
    ));
    let (code, said) = fails(&user_of_it, &source, out, local);
    assert_eq!(code, "access-denied", "{said}");
    let nobody = User::with(&[
        ("AWS_ENDPOINT_URL", &store.url()),
        ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9"),
    ]);
    let (code, said) = fails(&nobody, &source, out, local);
    assert_eq!(code, "access-denied", "{said}");
    assert!(said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}
