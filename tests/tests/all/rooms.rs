//! `scripts/circles.py` finds the circles that it is there for, and no others.
//!
//! Invariant: each crate here is as small as shows one rule.

use bitnet_tests::fixtures::repository;
use std::fs;
use std::process::Command;

/// What the script says of a crate of these files, and whether it is content.
fn circles(name: &str, files: &[(&str, &str)]) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = dir.path().join("crates").join(name).join("src").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let output = Command::new("python3")
        .arg(repository().join("scripts/circles.py"))
        .arg("--root")
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().is_some_and(|c| c < 2) && failed.is_empty(),
        "{failed}"
    );
    (output.status.success(), said)
}

const ROOT: (&str, &str) = ("lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;\n");

#[test]
fn a_circle_is_told_with_its_lines() {
    // through the re-export of the root, and by a path
    let a = ("a.rs", "//! A.\nuse crate::B;\npub struct A(B);\n");
    let b = ("b.rs", "pub struct B;\nfn f() -> crate::a::A { todo!() }\n");
    let (fine, said) = circles("x", &[ROOT, a, b]);
    assert!(!fine, "{said}");
    assert_eq!(
        said,
        "circle of 2 modules in x: a, b\n  \
         crates/x/src/a.rs:2: uses crate::B of crates/x/src/b.rs\n  \
         crates/x/src/b.rs:2: uses crate::a::A of crates/x/src/a.rs\n"
    );
}

#[test]
fn what_is_no_use_makes_no_circle() {
    let a = ("a.rs", "use super::B;\npub struct A(B);\n");
    for b in [
        "pub struct B;\n",
        "pub struct B; // crate::a::A\n",
        "pub struct B;\nconst TEXT: &str = \"crate::a::A\";\n",
        "pub struct B;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n",
        "pub struct B;\n#[cfg(test)]\nuse crate::A;\n",
    ] {
        let (fine, said) = circles("x", &[ROOT, a, ("b.rs", b)]);
        assert!(fine && said.is_empty(), "{b}\n{said}");
    }
    // a parent lists its children, and these use what it defines
    let parent = "mod c;\npub struct A;\npub static ROWS: &[A] = &[c::ROW];\npub use c::ROW;\n";
    let child = ("a/c.rs", "use super::A;\npub const ROW: A = A;\n");
    let (fine, said) = circles(
        "x",
        &[ROOT, ("a.rs", parent), child, ("b.rs", "pub struct B;\n")],
    );
    assert!(fine && said.is_empty(), "{said}");
    // but a child that uses another file which uses the parent closes a circle
    let child = (
        "a/c.rs",
        "use crate::b::B;\npub const ROW: super::A = super::A;\n",
    );
    let b = ("b.rs", "use crate::a::ROW;\npub struct B;\n");
    let (fine, said) = circles("x", &[ROOT, ("a.rs", parent), child, b]);
    assert!(
        !fine && said.contains("circle of 2 modules in x: c, b"),
        "{said}"
    );
}

#[test]
fn a_floor_above_is_refused() {
    let lib = ("lib.rs", "mod backend;\nmod lanes;\n");
    let lanes = ("lanes.rs", "use crate::backend::Backend;\n");
    let backend = ("backend.rs", "pub struct Backend;\n");
    let (fine, said) = circles("bitnet-kernels", &[lib, lanes, backend]);
    assert!(!fine, "{said}");
    assert!(
        said.contains("lanes.rs:1 of bitnet-kernels: uses crate::backend::Backend of backend, a floor above its own"),
        "{said}"
    );
    let lib = ("lib.rs", "mod attic;\n");
    let (fine, said) = circles("bitnet-kernels", &[lib, ("attic.rs", "")]);
    assert!(
        !fine && said.contains("attic.rs of bitnet-kernels has no floor"),
        "{said}"
    );
}
