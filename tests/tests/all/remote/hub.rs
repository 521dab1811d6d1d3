//! Reading from a Hub: the cache, revisions, choices, refusals.

use super::*;
use bitnet_tests::servers::{Fault, Kind};
use std::fs;

#[test]
fn a_download_is_the_cache_of_huggingface_hub_and_is_made_once() {
    let (hub, commit) = hub();
    let user = User::of(&hub).and("HF_TOKEN", TOKEN);
    let expected = local(&checkpoint(FIXTURE), &[]);
    assert_eq!(user.convert("hf://o/n", &[]), expected);

    let repository = user.repository();
    assert_eq!(
        fs::read_to_string(repository.join("refs/main")).unwrap(),
        commit
    );
    let snapshot = repository.join("snapshots").join(&commit);
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    let blob = link.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(link, Path::new("../../blobs").join(&blob));
    let weights = fs::read(checkpoint(FIXTURE).join("model.safetensors")).unwrap();
    assert_eq!(blob, bitnet_tests::digest::sha256(&weights));
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        weights
    );
    for entry in fs::read_dir(repository.join("blobs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("incomplete"), "{name}");
    }
    let certificate =
        fs::read_to_string(user.home.path().join("out.gguf.certificate.json")).unwrap();
    let certificate: Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!(certificate["source"]["location"], "hf://o/n");
    assert_eq!(certificate["source"]["repository"], "o/n");
    assert_eq!(certificate["source"]["commit"], commit);

    // the token went to the Hub and nowhere else
    let log = hub.log();
    let sent = |l: &&bitnet_tests::servers::Logged| l.request.header("authorization").is_some();
    assert!(
        log.iter()
            .filter(sent)
            .all(|l| !l.request.target.starts_with("/content"))
    );
    assert!(log.iter().any(|l| l.request.target.starts_with("/content")));
    assert!(
        log.iter()
            .any(|l| l.request.header("authorization") == Some("Bearer hf_test"))
    );

    // the second time the revision is asked for, and nothing else
    hub.reset();
    assert_eq!(user.convert("hf://o/n", &[]), expected);
    let targets: Vec<String> = hub.log().iter().map(|l| l.request.target.clone()).collect();
    assert_eq!(targets, ["/api/models/o/n/revision/main"]);

    // without a network, and offline
    hub.reset();
    let offline = User {
        home: user.home,
        variables: vec![("HF_ENDPOINT".into(), "http://127.0.0.1:9".into())],
    };
    let offline = offline.and("HF_HUB_OFFLINE", "1");
    assert_eq!(offline.convert("hf://o/n", &[]), expected);
    assert_eq!(
        offline.convert(&format!("hf://o/n@{commit}"), &[]),
        expected
    );
    let (code, said) = offline.fails(CONVERT, &["hf://o/other", "-o", "x.gguf"]);
    assert_eq!(code, "offline", "{said}");
    assert!(hub.log().is_empty());
}

#[test]
fn a_damaged_file_of_the_cache_is_named_and_downloaded_again() {
    let (hub, commit) = hub();
    let user = User::of(&hub);
    let expected = user.convert("hf://o/n", &[]);
    let snapshot = user.repository().join("snapshots").join(&commit);
    let output = user.home.path().join("again.gguf");
    let words = ["hf://o/n", "-o", output.to_str().unwrap()];
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        // in the last tensor: every byte is a valid value
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        bytes
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 100].to_vec();
    type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let damages: [(&str, Damage<'_>, &[&str]); 4] = [
        ("model.safetensors", &cut, &["truncated", "malformed"]),
        ("model.safetensors", &flipped, &["checksum"]),
        (
            "model.safetensors",
            &|_| Vec::new(),
            &["truncated", "malformed", "unknown-container"],
        ),
        ("config.json", &cut, &["malformed"]),
    ];
    for (name, damage, codes) in damages {
        let blob = snapshot.join(name).canonicalize().unwrap();
        let whole = fs::read(&blob).unwrap();
        fs::write(&blob, damage(&whole)).unwrap();
        for source in ["hf://o/n", snapshot.to_str().unwrap()] {
            let (code, said) = user.fails(CONVERT, &[source, "-o", words[2]]);
            assert!(codes.contains(&code.as_str()), "{name}: {code} {said}");
            let remedy = format!(
                "remove {} and name the model hf://o/n, which downloads it again",
                blob.display()
            );
            assert!(said.contains(&remedy), "{name}: {said}");
            assert!(!output.exists());
        }
        // the remedy is one
        fs::remove_file(&blob).unwrap();
        user.ok(CONVERT, &words);
        assert!(fs::read(&output).unwrap() == expected, "{name}");
        assert!(fs::read(&blob).unwrap() == whole, "{name}");
        user.ok(CONVERT, &[&words[..], &["--force"]].concat());
        fs::remove_file(&output).unwrap();
        fs::remove_file(output.with_file_name("again.gguf.certificate.json")).unwrap();
    }
    // a whole file of a model that is wrong otherwise is not called damaged
    let (code, said) = user.fails(CONVERT, &["hf://o/n", "-o", words[2], "--to", "hf-packed"]);
    assert!(!said.contains("in the cache"), "{code} {said}");
}

#[test]
fn a_branch_that_moves_is_another_commit_and_both_stay() {
    let (hub, first) = hub();
    let user = User::of(&hub);
    let one = user.convert("hf://o/n", &[]);
    let second = hub.commit_directory("o/n", &checkpoint("bitcpm"));
    assert_ne!(first, second);
    let two = user.convert("hf://o/n", &[]);
    assert_ne!(one, two);
    assert_eq!(user.convert(&format!("hf://o/n@{first}"), &[]), one);
    hub.change("o/n", |r| {
        r.refs.insert("refs/pr/7".to_owned(), first.clone());
        r.refs.insert("feature/x".to_owned(), first.clone());
    });
    assert_eq!(user.convert("hf://o/n@refs/pr/7", &[]), one);
    assert_eq!(user.convert("hf://o/n@feature%2Fx", &[]), one);
    assert_eq!(
        fs::read_to_string(user.repository().join("refs/refs/pr/7")).unwrap(),
        first
    );
}

#[test]
fn only_what_the_model_needs_is_downloaded() {
    let (hub, commit) = hub();
    let files = hub.files("o/n", "main");
    let mut more: Vec<(String, Vec<u8>)> =
        files.iter().map(|(n, b)| (n.clone(), b.to_vec())).collect();
    for name in [
        "model.gguf",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "demo.mp4",
        "original/params.json",
    ] {
        more.push((name.to_owned(), vec![7; 5000]));
    }
    hub.commit("o/n", more);
    let user = User::of(&hub);
    assert_eq!(
        user.convert("hf://o/n", &[]),
        local(&checkpoint(FIXTURE), &[])
    );
    let asked: Vec<String> = hub.log().iter().map(|l| l.request.target.clone()).collect();
    for name in [
        "model.gguf",
        "pytorch_model.bin",
        "onnx",
        "demo.mp4",
        "original",
    ] {
        assert!(
            asked.iter().all(|target| !target.contains(name)),
            "{name}: {asked:?}"
        );
    }
    assert!(!commit.is_empty());
}

#[test]
fn of_several_gguf_files_one_has_to_be_named() {
    let user = User::with(&[]);
    let one = user.convert(checkpoint(FIXTURE).to_str().unwrap(), &[]);
    let hub = Hub::start();
    hub.commit(
        "o/n",
        [
            ("a.gguf", one.clone()),
            ("sub/b.gguf", one.clone()),
            ("c.gguf", one.clone()),
        ],
    );
    let user = User::of(&hub);
    let (code, said) = user.fails(CONVERT, &["inspect", "hf://o/n"]);
    assert_eq!(code, "unknown-container");
    assert!(said.contains("2 .gguf files: a.gguf, c.gguf"), "{said}");
    assert!(said.contains("hf://o/n/a.gguf"), "{said}");
    let ran = user.ok(
        RUN,
        &[
            "hf://o/n/c.gguf",
            "--tokens",
            "1,2,3",
            "--greedy",
            "-n",
            "2",
            "--json",
        ],
    );
    assert!(
        ran.json()["tokens"].is_array() || ran.json()["token_ids"].is_array(),
        "{ran:?}"
    );
    user.ok(CONVERT, &["inspect", "hf://o/n/sub"]);
    user.ok(CONVERT, &["inspect", "hf://o/n/sub/b.gguf"]);
    let (code, said) = user.fails(CONVERT, &["inspect", "hf://o/n/d.gguf"]);
    assert_eq!(code, "not-found");
    assert!(said.contains("a.gguf"), "{said}");
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, _) = hub();
    let stranger = User::of(&hub);
    let known = User::of(&hub).and("HF_TOKEN", TOKEN);
    let inspect = |user: &User, name: &str| user.fails(CONVERT, &["inspect", name]);
    let (code, said) = inspect(&stranger, "hf://o/absent");
    assert_eq!(code, "access-denied");
    assert!(said.contains("HF_TOKEN") && said.contains("401"), "{said}");
    let (code, said) = inspect(&known, "hf://o/absent");
    assert_eq!(code, "not-found");
    assert!(said.contains("no such repository"), "{said}");
    let (code, said) = inspect(&known, "hf://o/n@v9");
    assert_eq!(code, "not-found");
    assert!(said.contains("no such revision"), "{said}");
    hub.change("o/n", |r| r.gated = true);
    for user in [&stranger, &known] {
        let (code, said) = inspect(user, "hf://o/n");
        assert_eq!(code, "access-denied");
        assert!(said.contains("accept the conditions"), "{said}");
    }
    hub.change("o/n", |r| (r.gated, r.private) = (false, true));
    assert_eq!(inspect(&stranger, "hf://o/n").0, "access-denied");
    known.ok(CONVERT, &["inspect", "hf://o/n"]);
    // the token of `hf auth login`
    let login = User::of(&hub);
    fs::create_dir_all(login.home.path().join("hf")).unwrap();
    fs::write(login.home.path().join("hf/token"), format!("{TOKEN}\n")).unwrap();
    login.ok(CONVERT, &["inspect", "hf://o/n"]);
    let wrong = User::of(&hub).and("HF_TOKEN", "hf_other");
    let (code, said) = inspect(&wrong, "hf://o/n");
    assert_eq!(code, "access-denied");
    assert!(
        said.contains("token") && !said.contains("hf_other"),
        "{said}"
    );
    let (code, said) = inspect(&known, "ftp://o/n");
    assert_eq!(code, "usage", "{said}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let hub = Hub::start();
    let dir = tempfile::tempdir().unwrap();
    let source = large(dir.path());
    hub.commit_directory("o/n", &source);
    let weights = fs::read(source.join("model.safetensors")).unwrap();
    let user = User::of(&hub);
    // every range breaks once, and then the content network fails for good
    hub.fail(Fault::new("GET", "/content", 5, Kind::Drop(3_000_000)));
    let wait = vec![("Retry-After".to_owned(), "0".to_owned())];
    hub.fail(Fault::new(
        "GET",
        "/content",
        usize::MAX,
        Kind::Status(503, wait),
    ));
    let output = user.home.path().join("out.gguf");
    let (code, said) = user.fails(CONVERT, &["hf://o/n", "-o", output.to_str().unwrap()]);
    assert_eq!(code, "network", "{said}");
    assert!(!output.exists());
    let blobs: Vec<PathBuf> = fs::read_dir(user.repository().join("blobs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let partial = blobs
        .iter()
        .find(|p| p.extension().is_some_and(|e| e == "incomplete"))
        .unwrap();
    let kept = fs::read(partial).unwrap();
    assert!(
        !kept.is_empty() && weights.starts_with(&kept),
        "{}",
        kept.len()
    );
    // what huggingface_hub may have left: any beginning
    fs::write(partial, &weights[..20_000_000]).unwrap();
    hub.reset();
    assert_eq!(user.convert("hf://o/n", &[]), local(&source, &[]));
    let sent: u64 = hub
        .log()
        .iter()
        .filter(|l| l.request.target.starts_with("/content"))
        .map(|l| l.bytes)
        .sum();
    assert_eq!(sent, weights.len() as u64 - 20_000_000);
    let ranges = hub
        .log()
        .iter()
        .filter(|l| l.request.header("range").is_some())
        .count();
    assert!(ranges > 2, "{ranges}");
}

#[test]
fn a_damaged_beginning_is_fetched_anew() {
    let (hub, _) = hub();
    let user = User::of(&hub);
    let weights = fs::read(checkpoint(FIXTURE).join("model.safetensors")).unwrap();
    let blobs = user.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let name = format!("{}.incomplete", bitnet_tests::digest::sha256(&weights));
    fs::write(blobs.join(name), vec![9; 1000]).unwrap();
    assert_eq!(
        user.convert("hf://o/n", &[]),
        local(&checkpoint(FIXTURE), &[])
    );
}

#[test]
fn proxies_are_those_of_the_usual_variables() {
    use bitnet_tests::servers::http::{Reply, Server};
    let (hub, _) = hub();
    let proxy = Server::start(|_| Reply::new(502, ""));
    proxy.fail(Fault::new(
        "",
        "http://hub.test/api/models/o/n",
        usize::MAX,
        Kind::Status(404, vec![]),
    ));
    let user = User::with(&[
        ("HF_ENDPOINT", "http://hub.test"),
        ("HTTP_PROXY", &proxy.url()),
        ("http_proxy", &proxy.url()),
    ]);
    assert_eq!(user.fails(CONVERT, &["inspect", "hf://o/n"]).0, "not-found");
    assert!(
        proxy
            .log()
            .iter()
            .all(|l| l.request.target.starts_with("http://hub.test/"))
    );
    assert!(!proxy.log().is_empty());
    let user = User::of(&hub)
        .and("HTTP_PROXY", &proxy.url())
        .and("NO_PROXY", "127.0.0.1");
    user.ok(CONVERT, &["inspect", "hf://o/n"]);
}

#[test]
fn verify_doctor_and_run_read_from_a_hub() {
    let (hub, commit) = hub();
    let user = User::of(&hub);
    let gguf = user.convert("hf://o/n", &[]);
    let output = user.home.path().join("out.gguf");
    let output = output.to_str().unwrap();
    for more in [&[][..], &["--stream"]] {
        let mut words = vec![output, "--against", "hf://o/n", "--json"];
        words.extend(more);
        assert_eq!(user.ok(VERIFY, &words).json()["status"], "same");
    }
    let certificate = format!("{output}.certificate.json");
    hub.commit("o/g", [("m.gguf", gguf)]);
    let remote = [
        "hf://o/g",
        "--certificate",
        &certificate,
        "--stream",
        "--json",
    ];
    assert_eq!(user.ok(VERIFY, &remote).json()["status"], "same");
    let bundle = user.home.path().join("report.zip");
    let bundle = bundle.to_str().unwrap();
    let words = ["doctor", "hf://o/g", "--no-run", "--bundle", bundle];
    user.ok(VERIFY, &words);
    let bundle = String::from_utf8_lossy(&fs::read(bundle).unwrap()).into_owned();
    assert!(bundle.contains("\"repository\": \"o/g\""), "{bundle}");
    assert!(bundle.contains("\"name\": \"m.gguf\""), "{bundle}");
    for local in [user.home.path().to_str().unwrap(), "snapshots", &hub.url()] {
        assert!(!bundle.contains(local), "{local}");
    }
    let words = |model| [model, "--tokens", "1,2,3", "--greedy", "-n", "3", "--json"];
    let (here, there) = (
        user.ok(RUN, &words(output)),
        user.ok(RUN, &words("hf://o/g")),
    );
    let of = |ran: &Ran| {
        let mut json = ran.json();
        let object = json.as_object_mut().unwrap();
        object.retain(|key, _| key.contains("token") && !key.contains("second"));
        json
    };
    assert_eq!(of(&here), of(&there));
    assert_eq!(commit.len(), 40);
}

#[test]
fn without_a_home_directory_nothing_is_written_below_the_working_directory() {
    let (hub, _) = hub();
    let user = User::of(&hub);
    let place = tempfile::tempdir().unwrap();
    let entries = || std::fs::read_dir(place.path()).unwrap().count();
    // without the variable the system knows the home directory; a named cache needs none
    let mut command = user.command(RUN, &["hf://o/n", "--tokens", "1", "-n", "1", "--quiet"]);
    command.env_remove("HOME").env("HF_HUB_CACHE", user.cache());
    let ran = command.current_dir(place.path()).output().unwrap();
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(entries(), 0);
}

#[test]
fn a_token_that_is_no_header_is_refused_before_anything_is_sent() {
    let (hub, _) = hub();
    for token in ["hf_a\nhf_b", "hf_a hf_b", "hf_\u{e4}"] {
        let user = User::of(&hub).and("HF_TOKEN", token);
        let (code, said) = user.fails(RUN, &["hf://o/n", "--tokens", "1"]);
        assert_eq!(code, "usage", "{said}");
        assert!(
            said.contains("HF_TOKEN: ") && !said.contains("hf_"),
            "{said}"
        );
    }
    assert!(hub.log().is_empty());
}
