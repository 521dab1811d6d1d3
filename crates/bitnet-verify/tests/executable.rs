//! The real executable: that it starts, and that its exit status reaches the shell.

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-verify"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn exit_status_and_streams() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(version.stdout.starts_with(b"bitnet-verify "));
    assert!(version.stderr.is_empty());

    let nothing = run(&["none.gguf", "--against", "none"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(nothing.stdout.is_empty());
    assert!(nothing.stderr.starts_with(b"error: none.gguf: "));

    let json = run(&["none.gguf", "--json"]);
    assert_eq!(json.status.code(), Some(2));
    assert!(
        json.stdout
            .starts_with(b"{\"status\":\"error\",\"error\":{\"code\":\"usage\"")
    );
}
