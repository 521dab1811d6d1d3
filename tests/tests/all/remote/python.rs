//! The Python client of the Hub, against the same server and the same cache.

use super::*;
use bitnet_tests::fixtures::skipped;

/// A Python with `huggingface_hub`: `scripts/hub-check` names one.
fn python() -> Option<String> {
    let named = std::env::var("BITNET_HUB_PYTHON").ok();
    if named.is_none() {
        skipped("huggingface_hub against the Hub of the tests: run scripts/hub-check");
    }
    named
}

fn run_python(user: &User, python: &str, script: &str, words: &[&str]) -> String {
    let mut all = vec!["-c", script];
    all.extend(words);
    let output = user
        .command(python, &all)
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_cache_is_shared_in_both_directions() {
    let Some(python) = python() else {
        return;
    };
    let snapshot = "import sys; from huggingface_hub import snapshot_download as s; print(s('o/n', local_files_only=sys.argv[1] == 'local'))";
    let expected = local(&checkpoint(FIXTURE), &[]);
    // Python downloads, this project reads without asking for a file
    let (hub, commit) = hub();
    let user = User::of(&hub).and("HF_TOKEN", TOKEN);
    let path = run_python(&user, &python, snapshot, &["remote"]);
    assert_eq!(
        Path::new(&path),
        user.repository().join("snapshots").join(&commit)
    );
    hub.reset();
    assert!(user.convert("hf://o/n", &[]) == expected);
    assert_eq!(hub.log().len(), 1);
    let offline = User {
        home: user.home,
        variables: user.variables,
    }
    .and("HF_HUB_OFFLINE", "1");
    assert!(offline.convert("hf://o/n", &[]) == expected);

    // this project downloads, Python reads without asking for a file
    let user = User::of(&hub);
    assert!(user.convert("hf://o/n", &[]) == expected);
    hub.reset();
    let path = run_python(&user, &python, snapshot, &["local"]);
    let found = std::fs::read(Path::new(&path).join("model.safetensors")).unwrap();
    assert!(found == std::fs::read(checkpoint(FIXTURE).join("model.safetensors")).unwrap());
    let path = run_python(&user, &python, snapshot, &["remote"]);
    assert_eq!(
        Path::new(&path),
        user.repository().join("snapshots").join(&commit)
    );
    let fetched = |l: &&bitnet_tests::servers::Logged| {
        l.request.target.contains("safetensors") && l.request.method == "GET"
    };
    assert_eq!(hub.log().iter().filter(fetched).count(), 0);

    // each goes on where the other stopped
    let weights = std::fs::read(checkpoint(FIXTURE).join("model.safetensors")).unwrap();
    let name = bitnet_tests::digest::sha256(&weights);
    let user = User::of(&hub);
    let blobs = user.repository().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(
        blobs.join(format!("{name}.incomplete")),
        &weights[..weights.len() / 2],
    )
    .unwrap();
    let path = run_python(&user, &python, snapshot, &["remote"]);
    assert!(std::fs::read(Path::new(&path).join("model.safetensors")).unwrap() == weights);
}

#[test]
fn the_python_client_uploads_to_the_server_of_the_tests() {
    let Some(python) = python() else {
        return;
    };
    let hub = Hub::start();
    let user = User::of(&hub).and("HF_TOKEN", TOKEN);
    let script = "import sys; from huggingface_hub import HfApi; a = HfApi(); a.create_repo('o/up'); a.upload_folder(repo_id='o/up', folder_path=sys.argv[1]); print(a.model_info('o/up').sha)";
    let source = checkpoint(FIXTURE);
    let commit = run_python(&user, &python, script, &[source.to_str().unwrap()]);
    assert_eq!(hub.repository("o/up").unwrap().refs["main"], commit);
    assert!(user.convert("hf://o/up", &[]) == local(&source, &[]));
}
