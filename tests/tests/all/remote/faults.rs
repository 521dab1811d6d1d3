//! What servers do wrong: every fault ends in the right bytes or in an error, never in wrong bytes.

use super::*;
use bitnet_tests::servers::{Fault, Kind};
use std::time::Duration;

fn retry_after(status: u16) -> Kind {
    Kind::Status(status, vec![("Retry-After".to_owned(), "0".to_owned())])
}

#[test]
fn passing_faults_change_nothing() {
    let expected = local(&checkpoint(FIXTURE), &[]);
    let faults: Vec<(&str, Vec<Fault>)> = vec![
        (
            "breaks",
            vec![Fault::new("GET", "/content", 2, Kind::Drop(100_000))],
        ),
        (
            "breaks at once",
            vec![Fault::new("GET", "/content", 2, Kind::Drop(0))],
        ),
        (
            "503 of the content network",
            vec![Fault::new("GET", "/content", 2, retry_after(503))],
        ),
        (
            "429 of the Hub",
            vec![Fault::new("GET", "/api/models", 2, retry_after(429))],
        ),
        (
            "500 of a HEAD",
            vec![Fault::new("HEAD", "model.safetensors", 1, retry_after(500))],
        ),
        (
            "502 without a wish",
            vec![Fault::new(
                "GET",
                "/api/models",
                1,
                Kind::Status(502, vec![]),
            )],
        ),
        (
            "slow",
            vec![Fault::new(
                "GET",
                "/content",
                9,
                Kind::Slow(400_000, Duration::from_millis(30)),
            )],
        ),
        (
            "no ranges",
            vec![Fault::new("GET", "/content", 9, Kind::WholeFile)],
        ),
        (
            "a signature that expired",
            vec![
                Fault::new("GET", "/content", 1, Kind::Drop(1000)),
                Fault::new("GET", "/content", 1, Kind::Status(403, vec![])),
            ],
        ),
    ];
    std::thread::scope(|scope| {
        for (name, faults) in faults {
            for stream in [false, true] {
                let (faults, expected) = (faults.clone(), &expected);
                scope.spawn(move || {
                    let (hub, _) = hub();
                    faults.into_iter().for_each(|fault| hub.fail(fault));
                    let more: &[&str] = if stream { &["--stream"] } else { &[] };
                    assert!(
                        User::of(&hub).convert("hf://o/n", more) == *expected,
                        "{name} {stream}"
                    );
                });
            }
        }
    });
}

#[test]
fn a_server_that_is_not_there_is_named_with_what_to_check() {
    // longer than a part of a name may be: no resolver has to be asked
    let unknown = format!("{}.invalid", "a".repeat(64));
    let unknown_url = format!("http://{unknown}");
    let refused = "127.0.0.1:9";
    let refused_url = format!("http://{refused}");
    let store = |endpoint: &str| {
        User::with(&[
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "5ec2e7516"),
            ("AWS_REGION", "us-east-1"),
        ])
    };
    let proxies = "then the network and the proxy variables (HTTPS_PROXY, NO_PROXY)";
    let runs = " and that a server runs there, ";
    let endpoint = "the endpoint of the store (AWS_ENDPOINT_URL, ";
    let hub = |host: &str| format!("check the name {host} (HF_ENDPOINT sets that of a Hub)");
    let cases: Vec<(User, String, Vec<String>)> = vec![
        (
            User::with(&[("HF_ENDPOINT", &unknown_url)]),
            "hf://o/n".to_owned(),
            vec![format!("cannot connect to {unknown}: "), hub(&unknown)],
        ),
        (
            User::with(&[("HF_ENDPOINT", &refused_url)]),
            "hf://o/n".to_owned(),
            vec![
                format!("cannot connect to {refused}: "),
                hub(refused),
                runs.to_owned(),
            ],
        ),
        (
            User::with(&[]),
            format!("{unknown_url}/m.gguf"),
            vec![format!("cannot connect to {unknown}: "), hub(&unknown)],
        ),
        (
            User::with(&[]),
            format!("{refused_url}/m.gguf"),
            vec![
                format!("cannot connect to {refused}: "),
                hub(refused),
                runs.to_owned(),
            ],
        ),
        (
            store(&unknown_url),
            "s3://bucket/m".to_owned(),
            vec![
                "no server of this name is known".to_owned(),
                endpoint.to_owned(),
            ],
        ),
        (
            store(&refused_url),
            "s3://bucket/m".to_owned(),
            vec![
                "the connection is refused".to_owned(),
                endpoint.to_owned(),
                runs.to_owned(),
            ],
        ),
    ];
    std::thread::scope(|scope| {
        for (user, source, expected) in cases {
            scope.spawn(move || {
                let output = user.home.path().join("out.gguf");
                let words = [source.as_str(), "-o", output.to_str().unwrap()];
                let (code, said) = user.fails(CONVERT, &words);
                assert_eq!(code, "network", "{source}: {said}");
                for part in expected.iter().map(String::as_str).chain([proxies]) {
                    assert!(said.contains(part), "{source}: `{part}` is not in {said}");
                }
                assert!(!output.exists());
            });
        }
    });
}

#[test]
fn lasting_faults_are_errors_and_leave_nothing() {
    let always =
        |method: &str, target: &str, kind| vec![Fault::new(method, target, usize::MAX, kind)];
    let faults: Vec<(&str, Vec<Fault>, &[&str])> = vec![
        (
            "other bytes",
            always("GET", "/content", Kind::Corrupt),
            &["checksum"],
        ),
        (
            "a login page for the list",
            always("GET", "/api/models", Kind::LoginPage),
            &["bad-response"],
        ),
        (
            "a login page for a file",
            always("HEAD", "/resolve/", Kind::LoginPage),
            &["bad-response"],
        ),
        (
            "a login page for content",
            always("GET", "/content", Kind::LoginPage),
            &["bad-response"],
        ),
        (
            "a length that is too small",
            always("HEAD", "model.safetensors", Kind::Length(1000)),
            &["input-changed", "checksum"],
        ),
        (
            "a length that is too large",
            always("HEAD", "model.safetensors", Kind::Length(1 << 30)),
            &["input-changed"],
        ),
        (
            "bodies that end early",
            always("GET", "/content", Kind::Drop(0)),
            &["network"],
        ),
        (
            "503",
            always("GET", "/api/models", retry_after(503)),
            &["network"],
        ),
        (
            "403",
            always("GET", "/content", Kind::Status(403, vec![])),
            &["access-denied"],
        ),
        (
            "a wait of an hour",
            always(
                "GET",
                "/api/models",
                Kind::Status(429, vec![("Retry-After".to_owned(), "3600".to_owned())]),
            ),
            &["network"],
        ),
        (
            "more than the disk",
            always("HEAD", "model.safetensors", Kind::Length(1 << 60)),
            &["no-space"],
        ),
    ];
    std::thread::scope(|scope| {
        for (name, faults, expected) in faults {
            scope.spawn(move || {
                let (hub, commit) = hub();
                faults.into_iter().for_each(|fault| hub.fail(fault));
                let user = User::of(&hub);
                let output = user.home.path().join("out.gguf");
                let words = ["hf://o/n", "-o", output.to_str().unwrap()];
                let (code, said) = user.fails(CONVERT, &words);
                assert!(expected.contains(&code.as_str()), "{name}: {code} {said}");
                let file = user
                    .repository()
                    .join("snapshots")
                    .join(commit)
                    .join("model.safetensors");
                assert!(!file.exists() && !output.exists(), "{name}");
                let certificate = user.home.path().join("out.gguf.certificate.json");
                assert!(!certificate.exists());
            });
        }
    });
}

#[test]
fn a_stream_of_other_bytes_than_announced_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let hub = Hub::start();
    hub.commit_directory("o/n", &source);
    // one bit in the middle of a table: everything is read, and nothing else can tell
    hub.fail(Fault::new("GET", "/content", 1, Kind::Corrupt).after(4));
    let user = User::of(&hub);
    let output = user.home.path().join("out.gguf");
    let words = ["hf://o/n", "-o", output.to_str().unwrap(), "--stream"];
    let (code, said) = user.fails(CONVERT, &words);
    assert_eq!(code, "checksum", "{said}");
    assert!(!output.exists());
    assert!(!user.home.path().join("out.gguf.certificate.json").exists());
}

#[test]
fn a_hub_that_is_not_there_leaves_the_cache() {
    let (hub, _) = hub();
    let user = User::of(&hub);
    let expected = user.convert("hf://o/n", &[]);
    drop(hub);
    let ran = {
        let output = user.home.path().join("again.gguf");
        user.ok(CONVERT, &["hf://o/n", "-o", output.to_str().unwrap()])
    };
    assert!(ran.stderr.contains("cannot be reached"), "{ran:?}");
    assert_eq!(
        std::fs::read(user.home.path().join("again.gguf")).unwrap(),
        expected
    );
}

#[test]
fn hostile_names_are_refused() {
    for name in [
        "../x.json",
        "/etc/x.json",
        "a/../../x",
        "a\\b.json",
        "config\n.json",
    ] {
        let hub = Hub::start();
        hub.commit(
            "o/n",
            [(name, b"{}".to_vec()), ("model.safetensors", vec![0; 100])],
        );
        let user = User::of(&hub);
        let (code, said) = user.fails(CONVERT, &["hf://o/n", "-o", "x.gguf"]);
        assert_eq!(code, "bad-response", "{name}: {said}");
    }
}

#[test]
fn servers_without_ranges_give_whole_files() {
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    let hub = Hub::start();
    hub.commit_directory("o/n", &source);
    hub.fail(Fault::new("GET", "/content", usize::MAX, Kind::WholeFile));
    let user = User::of(&hub);
    assert!(user.convert("hf://o/n", &[]) == local(&source, &[]));
    let (code, said) = user.fails(CONVERT, &["hf://o/n", "-o", "x.gguf", "--stream"]);
    assert_eq!(code, "bad-response", "{said}");
}
