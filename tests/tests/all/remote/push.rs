//! Uploads to a Hub.

use super::*;
use bitnet_tests::servers::{Fault, Kind};
use sha2::Digest;
use std::collections::BTreeMap;
use std::fs;

/// A user with an output that was converted from a Hub.
fn output() -> (Hub, User, String) {
    let hub = Hub::start();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for entry in fs::read_dir(checkpoint(FIXTURE)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push((
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            ));
        }
    }
    files.retain(|(name, _)| name != "README.md");
    files.push((
        "README.md".to_owned(),
        b"---\nlicense: other\nlicense_name: x-1\nlanguage:\n- en\n---\n# N\n".to_vec(),
    ));
    hub.commit("o/n", files);
    let user = User::of(&hub).and("HF_TOKEN", TOKEN);
    user.convert("hf://o/n", &["--stream"]);
    let output = user
        .home
        .path()
        .join("out.gguf")
        .to_str()
        .unwrap()
        .to_owned();
    (hub, user, output)
}

#[test]
fn an_output_is_uploaded_with_certificate_and_card() {
    let (hub, user, output) = output();
    hub.reset();
    let json = user
        .ok(
            CONVERT,
            &["push", &output, "hf://o/new", "--dry-run", "--json"],
        )
        .json();
    assert_eq!(json["status"], "planned");
    let card = json["card"].as_str().unwrap().to_owned();
    for line in [
        "license: other",
        "license_name: x-1",
        "language:\n- en",
        "base_model: o/n",
        "library_name: gguf",
        "- bitnet",
        "lossless",
    ] {
        assert!(card.contains(line), "{line}: {card}");
    }
    assert!(hub.repository("o/new").is_none());
    assert!(
        hub.log()
            .iter()
            .all(|l| l.request.method == "GET" || l.request.method == "HEAD")
    );

    let words = [
        "push",
        &output,
        "hf://o/new",
        "--private",
        "--message",
        "first",
        "--json",
    ];
    let json = user.ok(CONVERT, &words).json();
    assert_eq!(json["status"], "pushed");
    let files = hub.files("o/new", "main");
    assert!(*files["out.gguf"] == fs::read(&output).unwrap());
    assert!(
        *files["out.gguf.certificate.json"]
            == fs::read(format!("{output}.certificate.json")).unwrap()
    );
    assert_eq!(
        String::from_utf8(files["README.md"].to_vec()).unwrap(),
        card
    );
    let repository = hub.repository("o/new").unwrap();
    assert!(repository.private);
    assert_eq!(repository.messages, ["initial commit", "first"]);
    assert_eq!(json["commit"], repository.refs["main"]);
    // the token is not sent to the store behind the signed URLs, which would refuse it
    assert!(
        hub.log()
            .iter()
            .any(|l| l.request.method == "PUT" && l.status == 200)
    );
    // what was uploaded verifies
    let certificate = format!("{output}.certificate.json");
    let same = ["hf://o/new", "--certificate", &certificate, "--json"];
    assert_eq!(user.ok(VERIFY, &same).json()["status"], "same");

    // another branch, in a directory, of what is there already
    let json = user
        .ok(
            CONVERT,
            &[
                "push",
                &output,
                "hf://o/new/sub",
                "--revision",
                "v2",
                "--json",
            ],
        )
        .json();
    assert_eq!(json["bytes_sent"], 0);
    assert!(hub.files("o/new", "v2").contains_key("sub/out.gguf"));
    assert!(!hub.files("o/new", "main").contains_key("sub/out.gguf"));
}

#[test]
fn an_upload_in_parts_that_breaks_makes_no_commit_and_goes_on() {
    let (hub, user, _) = output();
    let directory = user.home.path().join("packed");
    let directory = directory.to_str().unwrap();
    user.ok(
        CONVERT,
        &[
            "hf://o/n",
            "-o",
            directory,
            "--to",
            "hf-packed",
            "--split-max-size",
            "100KB",
        ],
    );
    let shards = fs::read_dir(directory).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(".safetensors")
    });
    let shards = shards.count();
    assert!(shards > 2, "{shards}");
    hub.upload_in_parts_of(60_000);
    hub.fail(Fault::new(
        "PUT",
        "/upload",
        1,
        Kind::Status(503, vec![("Retry-After".into(), "0".into())]),
    ));
    hub.fail(Fault::new("PUT", "/upload", usize::MAX, Kind::Status(403, vec![])).after(8));
    let (code, said) = user.fails(CONVERT, &["push", directory, "hf://o/packed"]);
    assert_eq!(code, "access-denied", "{said}");
    assert_eq!(hub.repository("o/packed").unwrap().messages.len(), 1);
    assert!(!hub.files("o/packed", "main").contains_key("config.json"));
    hub.reset();
    let json = user
        .ok(CONVERT, &["push", directory, "hf://o/packed", "--json"])
        .json();
    let total: u64 = hub
        .files("o/packed", "main")
        .iter()
        .filter(|(n, _)| n.ends_with(".safetensors"))
        .map(|(_, b)| b.len() as u64)
        .sum();
    let sent = json["bytes_sent"].as_u64().unwrap();
    assert!(sent > 0 && sent < total, "{sent} of {total}");
    for (name, bytes) in hub.files("o/packed", "main") {
        let path = Path::new(directory).join(&name);
        if name != "README.md" && name != ".gitattributes" {
            assert!(*bytes == fs::read(path).unwrap(), "{name}");
        }
    }
    let same = ["hf://o/packed", "--against", "hf://o/n", "--json"];
    assert_eq!(user.ok(VERIFY, &same).json()["status"], "same");
}

/// The large files that a server got, as it noted them: their SHA-256 and their length.
fn received(hub: &Hub) -> Vec<(String, u64)> {
    let uploads = hub.log().into_iter().filter(|l| {
        let target = &l.request.target;
        l.request.method == "PUT" && target.starts_with("/upload/") && l.status == 200
    });
    let uploads = uploads.map(|l| {
        let oid = l.request.path().rsplit('/').next().unwrap().to_owned();
        (oid, l.request.body.len() as u64)
    });
    uploads.collect()
}

#[test]
fn an_upload_whose_connection_breaks_sends_the_other_files_only() {
    let (hub, user, _) = output();
    let directory = user.home.path().join("packed");
    let words = [
        "hf://o/n",
        "-o",
        directory.to_str().unwrap(),
        "--to",
        "hf-packed",
        "--split-max-size",
        "100KB",
    ];
    user.ok(CONVERT, &words);
    let mut shards: BTreeMap<String, u64> = BTreeMap::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            let sha256 = bitnet_formats::hex(&sha2::Sha256::digest(&bytes));
            shards.insert(sha256, bytes.len() as u64);
        }
    }
    let total: u64 = shards.values().sum();
    let first = 2;
    assert!(shards.len() > first + 1, "{shards:?}");
    hub.reset();
    // two files arrive; from then on every connection breaks before the server has a file
    hub.fail(Fault::new("PUT", "/upload", usize::MAX, Kind::Closed).after(first));
    let push = ["push", directory.to_str().unwrap(), "hf://o/packed"];
    let (code, said) = user.fails(CONVERT, &push);
    assert_eq!(code, "network", "{said}");
    let before = received(&hub);
    assert_eq!(before.len(), first);
    assert_eq!(hub.repository("o/packed").unwrap().messages.len(), 1);
    hub.reset();
    let words = [&push[..], &["--json"]].concat();
    let json = user.ok(CONVERT, &words).json();
    let after = received(&hub);
    let mut all: Vec<&String> = before.iter().chain(&after).map(|(oid, _)| oid).collect();
    all.sort();
    // each file once, in both runs together
    assert_eq!(all, shards.keys().collect::<Vec<_>>());
    let rest: u64 = after.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(rest, total - before.iter().map(|(_, b)| b).sum::<u64>());
    assert_eq!(json["bytes_sent"], rest);
    for (name, bytes) in hub.files("o/packed", "main") {
        if name != "README.md" && name != ".gitattributes" {
            assert!(*bytes == fs::read(directory.join(&name)).unwrap(), "{name}");
        }
    }
    // what the revision has is not even asked for; one file that is another is sent
    hub.reset();
    assert_eq!(user.ok(CONVERT, &words).json()["bytes_sent"], 0);
    let asked = |hub: &Hub| -> usize {
        let batches = hub.log().into_iter();
        let batches = batches.filter(|l| l.request.target.ends_with("/info/lfs/objects/batch"));
        let objects = batches.map(|l| {
            let body: Value = serde_json::from_slice(&l.request.body).unwrap();
            body["objects"].as_array().unwrap().len()
        });
        objects.sum()
    };
    assert_eq!((asked(&hub), received(&hub)), (0, Vec::new()));
    let mut files = hub.files("o/packed", "main");
    let name = files.keys().find(|name| name.ends_with(".safetensors"));
    let name = name.unwrap().clone();
    let right = files[&name].clone();
    let files = {
        files.insert(name.clone(), vec![7; right.len()].into());
        files
            .into_iter()
            .map(|(name, bytes)| (name, bytes.to_vec()))
    };
    hub.commit("o/packed", files);
    hub.reset();
    user.ok(CONVERT, &words);
    assert_eq!(asked(&hub), 1);
    assert!(*hub.files("o/packed", "main")[&name] == *right);
}

#[test]
fn uploads_that_are_refused() {
    let (hub, user, output) = output();
    let stranger = User::of(&hub);
    let (code, said) = stranger.fails(CONVERT, &["push", &output, "hf://o/new"]);
    assert_eq!(code, "access-denied");
    assert!(said.contains("HF_TOKEN"), "{said}");
    let (code, _) = user.fails(CONVERT, &["push", &output, "./somewhere"]);
    assert_eq!(code, "usage");
    let (code, _) = user.fails(
        CONVERT,
        &["push", &output, "hf://o/new@a", "--revision", "b"],
    );
    assert_eq!(code, "usage");
    let mut bytes = fs::read(&output).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&output, bytes).unwrap();
    let (code, said) = user.fails(CONVERT, &["push", &output, "hf://o/new"]);
    assert_eq!(code, "checksum", "{said}");
    fs::remove_file(format!("{output}.certificate.json")).unwrap();
    let (code, said) = user.fails(CONVERT, &["push", &output, "hf://o/new"]);
    assert_eq!(code, "io", "{said}");
    assert!(hub.repository("o/new").is_none());
}
