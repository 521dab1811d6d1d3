//! Models that are read in ranges: nothing is stored, and little is read twice.

use super::*;
use bitnet_tests::servers::http::{Reply, Request, Server};
use bitnet_tests::servers::{Fault, Kind};
use std::sync::Arc;

/// A web server with the files of a directory, with or without listings.
fn files_server(directory: &Path, lists: bool) -> Server {
    let directory = directory.to_owned();
    Server::start(move |request: &Request| {
        let path = request.path();
        let path = path.strip_prefix("/models/").unwrap_or("absent/x");
        if path.is_empty() && lists {
            let names = std::fs::read_dir(&directory)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap());
            let links: String = names
                .map(|n| format!("<li><a href=\"{n}\">{n}</a></li>"))
                .collect();
            return Reply::new(200, format!("<html>{links}</html>"))
                .with("Content-Type", "text/html");
        }
        match std::fs::read(directory.join(path)) {
            Ok(bytes) => {
                let etag = format!("\"{}\"", &bitnet_tests::digest::sha256(&bytes)[..16]);
                Reply {
                    status: 200,
                    body: Arc::new(bytes),
                    ranges: true,
                    ..Reply::default()
                }
                .with("ETag", etag)
            }
            Err(_) => Reply::new(404, "<html>not found</html>").with("Content-Type", "text/html"),
        }
    })
}

#[test]
fn a_streamed_conversion_is_the_local_one_and_reads_every_byte_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let bytes = std::fs::metadata(source.join("model.safetensors"))
        .unwrap()
        .len();
    let expected = local(&source, &["--to", "gguf-tq2_0"]);
    let hub = Hub::start();
    let commit = hub.commit_directory("o/n", &source);
    // one connection breaks in the middle
    hub.fail(Fault::new("GET", "/content", 1, Kind::Drop(1_500_000)).after(3));
    let user = User::of(&hub).and("HF_TOKEN", TOKEN);
    assert!(user.convert("hf://o/n", &["--to", "gguf-tq2_0", "--stream"]) == expected);
    assert!(!user.cache().exists());
    let sent: u64 = hub
        .log()
        .iter()
        .filter(|l| l.request.target.starts_with("/content"))
        .map(|l| l.bytes)
        .sum();
    assert!(
        sent >= bytes && sent < bytes + bytes / 50,
        "{sent} of {bytes}"
    );
    let certificate =
        std::fs::read_to_string(user.home.path().join("out.gguf.certificate.json")).unwrap();
    let certificate: Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!(certificate["source"]["commit"], commit);
    let weights = std::fs::read(source.join("model.safetensors")).unwrap();
    assert_eq!(
        certificate["source"]["files"][0]["sha256"],
        bitnet_tests::digest::sha256(&weights)
    );
}

#[test]
fn inspect_reads_headers_only() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let bytes = std::fs::metadata(source.join("model.safetensors"))
        .unwrap()
        .len();
    let hub = Hub::start();
    hub.commit_directory("o/n", &source);
    let user = User::of(&hub);
    let gguf = user.convert(source.to_str().unwrap(), &["--to", "gguf-i2_s"]);
    hub.commit("o/g", [("m.gguf", gguf.clone())]);
    for (name, total) in [("hf://o/n", bytes), ("hf://o/g", gguf.len() as u64)] {
        for more in [&[][..], &["--stream"], &["--tensors"]] {
            hub.reset();
            let mut words = vec!["inspect", name, "--json"];
            words.extend(more);
            let json = user.ok(CONVERT, &words).json();
            assert_eq!(json["path"], name);
            assert_eq!(json["bytes"], total);
            assert!(
                hub.bytes() * 200 < total,
                "{name}: {} of {total}",
                hub.bytes()
            );
        }
    }
    hub.reset();
    let ran = user.ok(
        CONVERT,
        &["hf://o/n", "-o", "planned.gguf", "--dry-run", "--json"],
    );
    assert_eq!(ran.json()["status"], "planned");
    assert!(hub.bytes() * 100 < bytes, "{}", hub.bytes());
    assert!(!user.cache().exists());
}

#[test]
fn a_source_that_changes_is_an_error_and_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    for kind in [Kind::OtherEtag, Kind::Length(5)] {
        let server = files_server(&source, true);
        let is_length = matches!(kind, Kind::Length(_));
        let fault = Fault::new("GET", "model.safetensors", usize::MAX, kind);
        server.fail(if is_length {
            fault.after(4)
        } else {
            fault.after(3)
        });
        let user = User::with(&[]);
        let output = user.home.path().join("out.gguf");
        let words = [
            &format!("{}/models", server.url()),
            "-o",
            output.to_str().unwrap(),
            "--stream",
        ];
        let (code, said) = user.fails(CONVERT, &words);
        // bodies that always end early are a broken network
        let expected = if is_length {
            "network"
        } else {
            "input-changed"
        };
        assert_eq!(code, expected, "{said}");
        assert!(!output.exists());
    }
}

#[test]
fn web_servers_with_and_without_listings() {
    let source = checkpoint(FIXTURE);
    let expected = local(&source, &[]);
    for lists in [true, false] {
        let server = files_server(&source, lists);
        let user = User::with(&[]);
        for name in ["/models", "/models/", "/models/model.safetensors"] {
            assert!(
                user.convert(&format!("{}{name}", server.url()), &[]) == expected,
                "{lists} {name}"
            );
        }
        let url = server.url().replace("http://", "http://user:5ec2e7516@");
        let signed = format!("{url}/models/model.safetensors?sig=5ec2e7516");
        let (_, said) = user.fails(CONVERT, &[&signed, "-o", "x.gguf"]);
        assert!(said.contains("config.json"), "{said}");
        let (code, _) = user.fails(CONVERT, &["inspect", &format!("{}/absent", server.url())]);
        assert_eq!(code, "not-found");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.gguf"), &expected).unwrap();
    let server = files_server(dir.path(), false);
    let user = User::with(&[]);
    let signed = format!("{}/models/m.gguf?X-Amz-Signature=5ec2e7516", server.url());
    let json = user.ok(CONVERT, &["inspect", &signed, "--json"]).json();
    assert_eq!(json["path"], format!("{}/models/m.gguf", server.url()));
    let output = user.home.path().join("o.gguf");
    let json = user
        .ok(
            CONVERT,
            &[
                &signed,
                "-o",
                output.to_str().unwrap(),
                "--to",
                "gguf-f32",
                "--json",
            ],
        )
        .json();
    assert_eq!(
        json["source"]["path"],
        format!("{}/models/m.gguf", server.url())
    );
    user.ok(RUN, &[&signed, "--tokens", "1,2", "--greedy", "-n", "2"]);
}

#[test]
fn a_file_url_is_a_path() {
    let source = checkpoint(FIXTURE);
    let user = User::with(&[]);
    let url = format!("file://{}", source.canonicalize().unwrap().display());
    assert!(user.convert(&url, &[]) == local(&source, &[]));
}
