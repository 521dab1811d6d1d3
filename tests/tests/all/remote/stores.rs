//! Object stores as sources and as places for outputs.

use super::*;
use bitnet_tests::servers::s3::S3;
use bitnet_tests::servers::{Fault, Kind};

pub(super) fn user(store: &S3) -> User {
    User::with(&[
        ("AWS_ENDPOINT_URL", &store.url()),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "5ec2e7516"),
        ("AWS_REGION", "us-east-1"),
    ])
}

pub(super) fn put(store: &S3, prefix: &str, directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        store.put(&format!("{prefix}/{name}"), std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_conversion_from_a_store_into_it_is_the_local_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let store = S3::start();
    put(&store, "bucket/in/model", &source);
    let user = user(&store);
    let expected = local(&source, &[]);
    let words = [
        "s3://bucket/in/model",
        "-o",
        "s3://bucket/out/m.gguf",
        "--json",
    ];
    let json = user.ok(CONVERT, &words).json();
    assert_eq!(json["output"]["path"], "s3://bucket/out/m.gguf");
    assert_eq!(json["source"]["path"], "s3://bucket/in/model");
    let objects = store.objects();
    assert!(*objects["bucket/out/m.gguf"] == expected);
    let certificate: Value =
        serde_json::from_slice(&objects["bucket/out/m.gguf.certificate.json"]).unwrap();
    assert_eq!(certificate["source"]["location"], "s3://bucket/in/model");
    assert_eq!(store.open_uploads(), 0);
    // nothing is visible before all parts of all files are there
    let log = store.log();
    let is_part = |l: &&bitnet_tests::servers::Logged| l.request.method == "PUT";
    let last_part = log.iter().rposition(|l| is_part(&l)).unwrap();
    let first_complete = log
        .iter()
        .position(|l| l.request.method == "POST" && !l.request.target.contains("uploads"));
    assert!(last_part < first_complete.unwrap());
    assert!(log.iter().filter(is_part).count() >= 3);

    let (code, _) = user.fails(CONVERT, &words[..3]);
    assert_eq!(code, "exists");
    user.ok(
        CONVERT,
        &[
            "s3://bucket/in/model",
            "-o",
            "s3://bucket/out/m.gguf",
            "--force",
        ],
    );
    user.ok(
        CONVERT,
        &[
            "s3://bucket/in/model/model.safetensors",
            "-o",
            "s3://bucket/dir",
            "--to",
            "hf-packed",
        ],
    );
    assert!(store.objects().contains_key("bucket/dir/certificate.json"));
    let same = [
        "s3://bucket/dir",
        "--against",
        "s3://bucket/in/model",
        "--json",
    ];
    assert_eq!(user.ok(VERIFY, &same).json()["status"], "same");
}

#[test]
fn an_upload_that_fails_leaves_nothing_visible() {
    let store = S3::start();
    let user = user(&store);
    let source = checkpoint(FIXTURE);
    store.fail(Fault::new(
        "PUT",
        "partNumber",
        usize::MAX,
        Kind::Status(403, vec![]),
    ));
    let (code, said) = user.fails(
        CONVERT,
        &[source.to_str().unwrap(), "-o", "s3://bucket/m.gguf"],
    );
    assert_eq!(code, "access-denied", "{said}");
    assert!(store.objects().is_empty());
    assert_eq!(store.open_uploads(), 0);
    assert!(store.begun_uploads() > 0);
}

#[test]
fn faults_of_a_store() {
    let store = S3::start();
    put(&store, "bucket/m", &checkpoint(FIXTURE));
    let user = user(&store);
    let expected = local(&checkpoint(FIXTURE), &[]);
    store.fail(Fault::new(
        "GET",
        "model.safetensors",
        2,
        Kind::Drop(100_000),
    ));
    store.fail(Fault::new("GET", "tokenizer", 1, Kind::Status(503, vec![])));
    assert!(user.convert("s3://bucket/m", &[]) == expected);
    let (code, _) = user.fails(CONVERT, &["inspect", "s3://bucket/absent"]);
    assert_eq!(code, "not-found");
    store.reset();
    store.fail(Fault::new(
        "GET",
        "list-type",
        usize::MAX,
        Kind::Status(403, vec![]),
    ));
    let (code, said) = user.fails(CONVERT, &["inspect", "s3://bucket/m"]);
    assert_eq!(code, "access-denied", "{said}");
    // an object that is replaced while it is read
    store.reset();
    store.fail(Fault::new(
        "GET",
        "model.safetensors",
        usize::MAX,
        Kind::Status(412, vec![]),
    ));
    let (code, said) = user.fails(CONVERT, &["s3://bucket/m", "-o", "x.gguf"]);
    assert_eq!(code, "input-changed", "{said}");
}

#[test]
fn places_that_take_no_output() {
    let user = User::with(&[]);
    let source = checkpoint(FIXTURE);
    for output in ["hf://o/n", "https://h/x.gguf", "s3://bucket"] {
        let (code, said) = user.fails(CONVERT, &[source.to_str().unwrap(), "-o", output]);
        assert_eq!(code, "usage", "{said}");
    }
}
