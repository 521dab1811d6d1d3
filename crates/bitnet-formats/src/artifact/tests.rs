//! Outputs appear whole or not at all, whatever happens in between.

use super::os::{exchange_in_steps, rename_unless_there, replace, replace_open};
use super::*;
use sha2::{Digest, Sha256};
use std::sync::Barrier;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn put(path: &Path, bytes: &[u8], force: bool) -> Result<FileDigest, FormatError> {
    let mut artifact = Artifact::create(path, force)?;
    artifact.write(bytes)?;
    artifact.finish()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// An artifact as on a file system that has no unnamed files.
fn beside(path: &Path, force: bool) -> Artifact {
    let target = Target::new(path).unwrap();
    let (partial, file) = target.new_partial(create_new).unwrap();
    file.lock().unwrap();
    Artifact::with(target, force, file, Place::Beside(partial))
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn appears_whole_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for named in [false, true] {
        let mut artifact = if named {
            beside(&path, false)
        } else {
            Artifact::create(&path, false).unwrap()
        };
        artifact.set_len(1 << 20).unwrap();
        artifact.write(b"abc").unwrap();
        artifact.write_zeros(5000).unwrap();
        artifact.write(b"d").unwrap();
        assert_eq!(artifact.position(), 5004);
        assert!(!path.exists());
        let digest = artifact.finish().unwrap();
        let expected = [b"abc".as_slice(), &[0; 5000], b"d"].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        let sha256 = sha256(&expected);
        assert_eq!(
            digest,
            FileDigest {
                path: path.clone(),
                bytes: 5004,
                sha256
            }
        );
        assert_eq!(names(dir.path()), ["model.gguf"]);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "megabytes of hashes")]
fn hashes_of_every_length() {
    let bytes: Vec<u8> = (0..5 * HASH_BUFFER + 3)
        .map(|i| (i * 7 % 253) as u8)
        .collect();
    for len in [
        0,
        1,
        HASH_BUFFER - 1,
        HASH_BUFFER,
        HASH_BUFFER + 1,
        bytes.len(),
    ] {
        for step in [bytes.len(), 100_001] {
            let mut stream = Sha256Stream::new();
            bytes[..len]
                .chunks(step)
                .for_each(|chunk| stream.update(chunk));
            assert_eq!(
                stream.finish().unwrap(),
                sha256(&bytes[..len]),
                "{len} {step}"
            );
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn replaces_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    put(&path, b"old", false).unwrap();
    let refused = put(&path, b"new", false).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Exists);
    assert_eq!(refused.hint.as_deref(), Some("--force replaces it"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    put(&path, b"new", true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let mut artifact = beside(&path, true);
    artifact.write(b"newer").unwrap();
    artifact.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"newer");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn what_appears_meanwhile_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    for named in [false, true] {
        let mut artifact = if named {
            beside(&path, false)
        } else {
            Artifact::create(&path, false).unwrap()
        };
        artifact.write(b"ours").unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert_eq!(artifact.finish().unwrap_err().code, ErrorCode::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(dir.path()), ["out"]);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs::write(&path, b"old").unwrap();
    for named in [false, true] {
        let mut artifact = if named {
            beside(&path, true)
        } else {
            Artifact::create(&path, true).unwrap()
        };
        artifact.write(&[1; 3 * HASH_BUFFER]).unwrap();
        drop(artifact);
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn odd_targets() {
    let dir = tempfile::tempdir().unwrap();
    let code = |path: &Path| Artifact::create(path, true).unwrap_err().code;
    assert_eq!(code(dir.path()), ErrorCode::Exists);
    assert_eq!(code(Path::new("/dev/null")), ErrorCode::Exists);
    assert_eq!(code(&dir.path().join("absent/out")), ErrorCode::Io);
    assert_eq!(code(Path::new("/")), ErrorCode::Usage);
    // a link stays a link
    #[cfg(unix)]
    {
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        put(&link, b"new", true).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(link.is_symlink());
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn directory_appears_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let directory = ArtifactDirectory::create(&path, false, Vec::new()).unwrap();
    let mut first = directory.file("a.bin").unwrap();
    first.write(b"one").unwrap();
    let second = directory.file("b.bin").unwrap();
    // unfinished, so not in it
    let mut third = directory.file("c.bin").unwrap();
    third.write(b"three").unwrap();
    drop(third);
    assert!(!path.exists());
    let digest = first.finish().unwrap();
    assert_eq!((digest.path, digest.bytes), (path.join("a.bin"), 3));
    second.finish().unwrap();
    assert_eq!(directory.file("a.bin").unwrap_err().code, ErrorCode::Exists);
    for bad in ["", "..", "/x", "x/", "../x", "x/..", "x/y/z", "x\\y"] {
        let error = directory.file(bad).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage, "{bad}");
    }
    // the settings of a stage
    let settings = directory.file("stage/config.json").unwrap();
    let digest = settings.finish().unwrap();
    assert_eq!(digest.path, path.join("stage/config.json"));
    assert_eq!(directory.finish().unwrap(), path);
    assert_eq!(names(&path), ["a.bin", "b.bin", "stage"]);
    assert_eq!(names(&path.join("stage")), ["config.json"]);
    // which is replaced like the rest of a checkpoint
    let again = ArtifactDirectory::create(
        &path,
        true,
        ["a.bin", "b.bin", "stage/config.json"]
            .map(String::from)
            .to_vec(),
    )
    .unwrap();
    again.file("c.bin").unwrap().finish().unwrap();
    again.finish().unwrap();
    assert_eq!(names(&path), ["c.bin"]);
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn directory_replaces_only_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let write = |force: bool, name: &str| {
        let directory =
            ArtifactDirectory::create(&path, force, vec![name.to_owned(), "first".to_owned()])?;
        directory.file(name)?.finish()?;
        directory.finish()
    };
    // an empty directory is no output
    fs::create_dir(&path).unwrap();
    write(false, "first").unwrap();
    assert_eq!(write(false, "second").unwrap_err().code, ErrorCode::Exists);
    write(true, "second").unwrap();
    assert_eq!(names(&path), ["second"]);
    // a file that no conversion wrote
    fs::write(path.join("notes.txt"), b"mine").unwrap();
    fs::rename(path.join("second"), path.join("first")).unwrap();
    let refused = write(true, "third").unwrap_err();
    assert!(refused.code == ErrorCode::Exists && refused.message.contains("notes.txt"));
    assert_eq!(names(&path), ["first", "notes.txt"]);
    // unless a certificate says that one did, of this length
    let certificate = |bytes: u64| {
        let json = format!(
            r#"{{"certificate": 1, "tool": "bitnet-convert 0.1.0",
                "output": {{"files": [{{"name": "notes.txt", "bytes": {bytes}, "sha256": ""}}]}}}}"#
        );
        fs::write(path.join("certificate.json"), json).unwrap();
    };
    certificate(5);
    assert_eq!(write(true, "third").unwrap_err().code, ErrorCode::Exists);
    certificate(4);
    write(true, "second").unwrap();
    assert_eq!(names(&path), ["second"]);
    fs::rename(path.join("second"), path.join("first")).unwrap();
    // or that came while the new one was written
    let directory = ArtifactDirectory::create(&path, true, vec!["first".to_owned()]).unwrap();
    directory.file("first").unwrap().finish().unwrap();
    fs::write(path.join("notes.txt"), b"mine").unwrap();
    assert_eq!(directory.finish().unwrap_err().code, ErrorCode::Exists);
    assert_eq!(names(&path), ["first", "notes.txt"]);
    fs::remove_file(path.join("notes.txt")).unwrap();
    fs::rename(path.join("first"), path.join("second")).unwrap();
    // a directory in it: more than a checkpoint would be deleted
    fs::create_dir(path.join("photos")).unwrap();
    let refused = write(true, "third").unwrap_err();
    assert!(refused.code == ErrorCode::Exists && refused.message.contains("photos"));
    assert_eq!(names(&path), ["photos", "second"]);
    // a file
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, b"file").unwrap();
    assert_eq!(write(true, "fourth").unwrap_err().code, ErrorCode::Exists);
    assert_eq!(names(dir.path()), ["model"]);
    // dropped
    fs::remove_file(&path).unwrap();
    let directory = ArtifactDirectory::create(&path, false, Vec::new()).unwrap();
    directory.file("x").unwrap().finish().unwrap();
    drop(directory);
    assert!(names(dir.path()).is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn leftovers_of_the_dead_are_swept_and_the_living_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let living = ArtifactDirectory::create(&path, false, Vec::new()).unwrap();
    living.file("x").unwrap().finish().unwrap();
    // what kill -9 leaves has no lock
    fs::create_dir(dir.path().join(".model.partial-1-0")).unwrap();
    fs::write(dir.path().join(".model.partial-1-0/x"), b"x").unwrap();
    fs::write(dir.path().join(".model.partial-1-1"), b"x").unwrap();
    fs::write(dir.path().join(".other.partial-1-1"), b"x").unwrap();
    let second = ArtifactDirectory::create(&path, false, Vec::new()).unwrap();
    assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
    drop(second);
    living.finish().unwrap();
    assert_eq!(names(dir.path()), [".other.partial-1-1", "model"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn two_steps_where_the_file_system_cannot_swap() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("new"), dir.path().join("out"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("n"), b"").unwrap();
    fs::write(to.join("o"), b"").unwrap();
    exchange_in_steps(&from, &to).unwrap();
    assert_eq!(
        (names(&from), names(&to)),
        (vec!["o".to_owned()], vec!["n".to_owned()])
    );
    assert_eq!(
        rename_unless_there(&from, &to).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(names(dir.path()), ["new", "out"]);
}

/// In a process of its own, because the registry is one per process: the test runs itself.
#[test]
#[cfg_attr(miri, ignore = "files")]
fn interrupted() {
    const CHILD: &str = "BITNET_TEST_INTERRUPTED";
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "artifact::tests::interrupted"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return assert!(names(dir.path()).is_empty());
    };
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = beside(&dir.join("file"), false);
            let directory =
                ArtifactDirectory::create(&dir.join("directory"), false, Vec::new()).unwrap();
            let mut inside = directory.file("inside").unwrap();
            inside.write(b"x").unwrap();
            barrier.wait();
            barrier.wait();
            // too late: nothing of it may appear
            let _ = inside.finish();
            assert!(directory.finish().is_err());
            assert!(file.finish().is_err());
        });
        barrier.wait();
        assert_eq!(names(&dir).len(), 2);
        remove_partial_outputs();
        barrier.wait();
    });
    assert!(names(&dir).is_empty());
}

/// `cargo test --release -p bitnet-formats sha256_speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr)]
fn sha256_speed() {
    let bytes = vec![7u8; 1 << 30];
    let gb_per_s = |seconds: f64| bytes.len() as f64 / 1e9 / seconds;
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let direct = sha256(&bytes);
        let direct_speed = gb_per_s(start.elapsed().as_secs_f64());
        let start = std::time::Instant::now();
        let mut stream = Sha256Stream::new();
        stream.update(&bytes);
        assert_eq!(stream.finish().unwrap(), direct);
        let stream_speed = gb_per_s(start.elapsed().as_secs_f64());
        let dir = tempfile::tempdir().unwrap();
        let start = std::time::Instant::now();
        let mut artifact = Artifact::create(&dir.path().join("out"), false).unwrap();
        artifact.set_len(bytes.len() as u64).unwrap();
        artifact.write(&bytes).unwrap();
        let written = gb_per_s(start.elapsed().as_secs_f64());
        artifact.finish().unwrap();
        let synced = gb_per_s(start.elapsed().as_secs_f64());
        eprintln!(
            "direct {direct_speed:.2} GB/s, helper thread {stream_speed:.2} GB/s, \
             artifact {written:.2} GB/s before and {synced:.2} GB/s after fsync"
        );
    }
}

/// What does not work under `NO_LINKS` is naming an unnamed file, as on some network file systems.
#[test]
#[cfg_attr(miri, ignore = "files")]
fn an_unnamed_file_that_cannot_be_named_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    os::NO_LINKS.set(true);
    let bytes = vec![7; 2 * HASH_BUFFER + 5];
    let digest = put(&path, &bytes, false).unwrap();
    let replaced = put(&path, b"new", true);
    os::NO_LINKS.set(false);
    assert_eq!(
        (digest.bytes, digest.sha256),
        (bytes.len() as u64, sha256(&bytes))
    );
    replaced.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn a_finished_file_gets_a_second_name_and_keeps_its_first() {
    let dir = tempfile::tempdir().unwrap();
    let part = put(&dir.path().join("part"), b"weights", false).unwrap();
    assert_eq!(file_digest(&part.path).unwrap(), part);
    let output = dir.path().join("out");
    // dropped before it is published, it leaves nothing
    drop(Staged::existing(&part, &output, false).unwrap());
    assert_eq!(names(dir.path()), ["part"]);
    let staged = Staged::existing(&part, &output, false).unwrap();
    assert_eq!(
        (&staged.digest().path, &staged.digest().sha256),
        (&output, &part.sha256)
    );
    publish(vec![staged]).unwrap();
    assert_eq!(fs::read(&output).unwrap(), b"weights");
    assert_eq!(fs::read(&part.path).unwrap(), b"weights");
    let exists = Staged::existing(&part, &output, false).unwrap_err();
    assert_eq!(exists.code, ErrorCode::Exists);

    let target = dir.path().join("directory");
    let directory = ArtifactDirectory::create(&target, false, Vec::new()).unwrap();
    let staged = directory.existing(&part, "model.safetensors").unwrap();
    let twice = directory.existing(&part, "model.safetensors").unwrap_err();
    assert_eq!(twice.code, ErrorCode::Exists);
    publish(vec![staged]).unwrap();
    directory.finish().unwrap();
    assert_eq!(
        fs::read(target.join("model.safetensors")).unwrap(),
        b"weights"
    );
    assert_eq!(names(dir.path()), ["directory", "out", "part"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn a_set_that_cannot_be_published_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a"), b"old a").unwrap();
    fs::write(path("c"), b"old c").unwrap();
    let stage = |name: &str, force: bool| {
        let mut artifact = Artifact::create(&path(name), force).unwrap();
        artifact.write(b"new").unwrap();
        artifact.stage().unwrap()
    };
    let staged = vec![
        stage("a", true),
        stage("b", false),
        stage("c", true),
        stage("d", false),
    ];
    // somebody else's
    fs::write(path("d"), b"theirs").unwrap();
    assert_eq!(publish(staged).unwrap_err().code, ErrorCode::Exists);
    let read = |name: &str| String::from_utf8(fs::read(path(name)).unwrap()).unwrap();
    assert_eq!(names(dir.path()), ["a", "c", "d"]);
    assert_eq!(
        (read("a"), read("c"), read("d")),
        ("old a".into(), "old c".into(), "theirs".into())
    );
    // a directory is never exchanged for a file
    let staged = vec![stage("a", true), stage("c", true)];
    fs::remove_file(path("c")).unwrap();
    fs::create_dir(path("c")).unwrap();
    assert!(publish(staged).is_err());
    assert_eq!(read("a"), "old a");
    assert_eq!(names(dir.path()), ["a", "c", "d"]);
    fs::remove_dir(path("c")).unwrap();
    publish(vec![stage("a", true), stage("c", true)]).unwrap();
    assert_eq!((read("a"), read("c")), ("new".into(), "new".into()));
    assert_eq!(names(dir.path()), ["a", "c", "d"]);
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn names_that_are_no_outputs() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "-", ".", "..", "/"] {
        let error = Artifact::create(Path::new(name), true).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage, "{name}");
        let error = ArtifactDirectory::create(Path::new(name), true, Vec::new()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage, "{name}");
    }
    let absent = Artifact::create(&dir.path().join("absent/out"), true).unwrap_err();
    assert!(absent.message.contains("does not exist"), "{absent}");
    fs::write(dir.path().join("file"), b"x").unwrap();
    let under = Artifact::create(&dir.path().join("file/out"), true).unwrap_err();
    assert!(
        under.code == ErrorCode::Io && under.message.contains("not a directory"),
        "{under}"
    );
    // as long as a name may be
    let long = dir.path().join("n".repeat(255));
    put(&long, b"old", false).unwrap();
    put(&long, b"new", true).unwrap();
    assert_eq!(fs::read(&long).unwrap(), b"new");
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere/out", &link).unwrap();
        let error = Artifact::create(&link, true).unwrap_err();
        assert!(
            error.code == ErrorCode::Exists && error.message.contains("nowhere/out"),
            "{error}"
        );
    }
    assert_eq!(names(dir.path()).len(), if cfg!(unix) { 3 } else { 2 });
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn names_that_windows_takes_for_something_else_are_refused_there() {
    for name in [
        "nul",
        "con.gguf",
        "LPT1",
        "model.gguf:stream",
        "model.gguf.",
        "model ",
    ] {
        let (path, name) = (Path::new(name), OsStr::new(name));
        let error = check_system_name(path, name, true).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage, "{error}");
        assert_eq!(error.file.as_deref(), Some(path));
        check_system_name(path, name, false).unwrap();
    }
    for name in ["model.gguf", "nully", ".hidden", "a b", "モデル.gguf"] {
        check_system_name(Path::new(name), OsStr::new(name), true).unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn a_file_that_is_open_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("new"), dir.path().join("old"));
    for how in [replace, replace_open] {
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        let mut open = File::open(&to).unwrap();
        how(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(names(dir.path()), ["old"]);
        // who reads the old one goes on
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
        // what cannot be moved changes nothing
        assert!(how(&from, &to).is_err());
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(names(dir.path()), ["old"]);
    }
}
