//! Files beside the weights: links, pipes, devices, and files that are too long.
//!
//! Invariant: no program reads a file outside of the model's repository because a side file links there, and none waits for a
//! pipe or reads a device.

#![cfg(unix)]

use bitnet_checkpoint::side_file_names;
use bitnet_cli::ExitStatus;
use bitnet_formats::{ErrorCode, Limits};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::packed_model;
use bitnet_tests::program::{Program, Ran, run};
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of a checkpoint.
fn copy_of(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn pipe(path: &Path) {
    let _ = std::fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn words(list: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    list.iter().map(|word| word.as_ref().to_owned()).collect()
}

fn refused(program: Program, list: &[&dyn AsRef<std::ffi::OsStr>], code: &str, says: &str) {
    let ran: Ran = run(program, words(list));
    let json = ran.json();
    assert_eq!(ran.status, ExitStatus::CouldNot, "{json}");
    let error = &json["error"];
    let error = if error.is_null() {
        &json["checks"][0]
    } else {
        error
    };
    assert_eq!(error["code"], code, "{json}");
    let message = json.to_string();
    assert!(message.contains(says), "{message} does not say {says}");
}

#[test]
fn a_side_file_that_links_outside_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "{\"secret\": 1}").unwrap();
    for name in [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "README.md",
    ] {
        for (target, out) in [("gguf-i2_s", "out.gguf"), ("hf-packed", "out")] {
            let model = dir.path().join(format!("{name}-{target}"));
            copy_of("bitnet-2b4t-packed", &model);
            let _ = std::fs::remove_file(model.join(name));
            symlink(&secret, model.join(name)).unwrap();
            let out = dir.path().join(out);
            let args: [&dyn AsRef<std::ffi::OsStr>; 6] =
                [&model, &"-o", &out, &"--to", &target, &"--json"];
            refused(bitnet_convert::run, &args, "outside-link", name);
            assert!(!out.exists());
        }
    }
    let model = dir.path().join("run");
    copy_of("demo", &model);
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    symlink(
        checkpoint("demo").join("tokenizer.json"),
        model.join("tokenizer.json"),
    )
    .unwrap();
    refused(
        bitnet_run::run,
        &[&model, &"-p", &"x", &"-n", &"1", &"--json"],
        "outside-link",
        "tokenizer.json",
    );
}

#[test]
fn links_of_the_hub_cache_and_links_of_weights_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--a--b");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123"));
    copy_of("demo", &blobs);
    std::fs::create_dir_all(&snapshot).unwrap();
    for entry in std::fs::read_dir(&blobs).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let convert = |model: &Path, out: &str| -> PathBuf {
        let out = dir.path().join(out);
        let ran = run(
            bitnet_convert::run,
            words(&[&model, &"-o", &out, &"--to", &"gguf-i2_s"]),
        );
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
        out
    };
    let from_cache = std::fs::read(convert(&snapshot, "cache.gguf")).unwrap();
    let plain = std::fs::read(convert(&checkpoint("demo"), "plain.gguf")).unwrap();
    assert!(from_cache == plain);

    // weights may be kept anywhere
    let model = dir.path().join("model");
    copy_of("demo", &model);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    symlink(
        checkpoint("demo").join("model.safetensors"),
        model.join("model.safetensors"),
    )
    .unwrap();
    let linked = std::fs::read(convert(&model, "linked.gguf")).unwrap();
    assert!(linked == plain);
}

#[test]
fn pipes_and_devices_are_refused_at_once_wherever_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    pipe(&fifo);
    let model = checkpoint("demo");
    let gguf = dir.path().join("demo.gguf");
    let ran = run(
        bitnet_convert::run,
        words(&[&model, &"-o", &gguf, &"--to", &"gguf-i2_s"]),
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let zero = PathBuf::from("/dev/zero");
    let says = "expected a regular file";
    for special in [&fifo, &zero] {
        let (verify, program) = (bitnet_verify::run as Program, bitnet_run::run as Program);
        refused(
            bitnet_convert::run,
            &[&special, &"-o", &"x.gguf", &"--json"],
            "io",
            says,
        );
        refused(
            bitnet_convert::run,
            &[&"inspect", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--certificate", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--against", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&special, &"--against", &model, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--logits", &"--prompts", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--logits", &"--config", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--logits", &"--baseline", &special, &"--json"],
            "io",
            says,
        );
        refused(
            verify,
            &[&gguf, &"--logits-from", &special, &"--json"],
            "io",
            says,
        );
        refused(
            program,
            &[&"logits", &model, &"--prompts", &special, &"--json"],
            "io",
            says,
        );
        refused(
            program,
            &[&"perplexity", &model, &special, &"--json"],
            "io",
            says,
        );
        refused(program, &[&special, &"-p", &"x", &"--json"], "io", says);
    }
    let golden = dir.path().join("golden");
    std::fs::create_dir(&golden).unwrap();
    pipe(&golden.join("prompts.json"));
    refused(
        bitnet_verify::run,
        &[&gguf, &"--golden", &golden, &"--json"],
        "io",
        says,
    );
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "modules.json",
        "model.safetensors",
    ] {
        let special = dir.path().join(name.replace('.', "-"));
        copy_of("demo", &special);
        pipe(&special.join(name));
        for target in ["gguf-i2_s", "hf-packed"] {
            let out = dir.path().join("unwritten");
            let args: [&dyn AsRef<std::ffi::OsStr>; 6] =
                [&special, &"-o", &out, &"--to", &target, &"--json"];
            refused(bitnet_convert::run, &args, "io", says);
        }
    }
}

#[test]
fn a_side_file_that_is_too_long_is_an_error_and_not_left_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("merges.txt"), b"12345").unwrap();
    let limits = |side_file_bytes| Limits {
        side_file_bytes,
        ..Limits::default()
    };
    let names = side_file_names(dir.path(), &limits(5)).unwrap();
    assert_eq!(names, ["merges.txt"]);
    let error = side_file_names(dir.path(), &limits(4)).unwrap_err();
    assert_eq!(error.code, ErrorCode::LimitExceeded);
    assert!(
        error.message.contains("at most 4 bytes, found 5"),
        "{error}"
    );

    // a configuration of two megabytes is none
    packed_model::write(dir.path(), 100);
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        config + &" ".repeat(2 << 20),
    )
    .unwrap();
    let out = dir.path().join("out.gguf");
    refused(
        bitnet_convert::run,
        &[&dir.path(), &"-o", &out, &"--json"],
        "limit-exceeded",
        "expected at most 1048576 bytes",
    );
}
