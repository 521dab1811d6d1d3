//! The documentation site: `scripts/docs_pages.py` writes its pages, `scripts/docs_links.py` checks its links.
//!
//! Invariant: every page of the repository and every subcommand is in the table of contents or on a page that is.

use super::guides::programs;
use bitnet_tests::fixtures::repository;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str, words: &[&Path]) -> Output {
    Command::new("python3")
        .arg(repository().join("scripts").join(name))
        .args(words)
        .output()
        .unwrap()
}

/// The files below a directory, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let name = folder.join(entry.unwrap().file_name());
            match root.join(&name).is_dir() {
                true => folders.push(name),
                false => found.push(name),
            }
        }
    }
    found
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let place = tempfile::tempdir().unwrap();
    let (programs, out) = (programs(place.path()), place.path().join("src"));
    let ran = script(
        "docs_pages.py",
        &["--programs".as_ref(), &programs, "--out".as_ref(), &out],
    );
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let summary = fs::read_to_string(out.join("SUMMARY.md")).unwrap();
    let written = files(&out);
    for page in written
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "md"))
    {
        let entries = summary.matches(&format!("]({})", page.display())).count();
        let expected = usize::from(page.as_path() != Path::new("SUMMARY.md"));
        assert_eq!(entries, expected, "entries of {}", page.display());
    }
    let pages = |root: &str| {
        let all = files(&repository().join(root));
        all.iter()
            .filter(|f| f.extension().is_some_and(|e| e == "md"))
            .count()
    };
    // and the five pages of the reference, README.md, crates/README.md, CHANGELOG.md, the card of the demo model, SUMMARY.md
    let expected = pages("formats")
        + 10
        + fs::read_dir(repository().join(".github"))
            .unwrap()
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .path()
                    .extension()
                    .is_some_and(|e| e == "md")
            })
            .count();
    let found = written
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "md"))
        .count();
    assert_eq!(found, expected);
    // links lead to the names of the copies, and what pages link to is there
    let guide = fs::read_to_string(out.join("formats/guides/convert.md")).unwrap();
    assert!(guide.contains("](../index.md#what-survives)"), "{guide}");
    assert!(
        out.join("formats/speed.svg").is_file() && out.join("formats/report.schema.json").is_file()
    );
    // a directory that exists is left alone
    let again = script(
        "docs_pages.py",
        &["--programs".as_ref(), &programs, "--out".as_ref(), &out],
    );
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn the_reference_has_every_subcommand_and_every_key() {
    let place = tempfile::tempdir().unwrap();
    let (programs, out) = (programs(place.path()), place.path().join("src"));
    let ran = script(
        "docs_pages.py",
        &["--programs".as_ref(), &programs, "--out".as_ref(), &out],
    );
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    for (program, subcommands) in [
        (
            "bitnet-convert",
            &["inspect", "list", "plan", "job", "finish", "push"][..],
        ),
        ("bitnet-verify", &["doctor", "merge"]),
        (
            "bitnet-run",
            &["logits", "embed", "perplexity", "bench", "serve", "kernels"],
        ),
    ] {
        let page = fs::read_to_string(out.join(format!("reference/{program}.md"))).unwrap();
        for sub in subcommands {
            let heading = format!("\n## {program} {sub}\n");
            let (_, behind) = page
                .split_once(&heading)
                .unwrap_or_else(|| panic!("{heading}"));
            assert!(
                behind.contains(&format!("Usage: {program} {sub} ")),
                "{program} {sub}"
            );
        }
    }
    let page = fs::read_to_string(out.join("reference/certificate.schema.md")).unwrap();
    for row in [
        "| `ternary_sha256` | [`sha256`](#sha256) | yes |  |",
        "| `source.commit` | string |  |  |",
        "| `ternary` | list of [`ternary`](#ternary) | yes |  |",
    ] {
        assert!(page.contains(row), "{row}\n{page}");
    }
}

#[test]
fn broken_links_are_found() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    fs::create_dir(root.join("a")).unwrap();
    fs::write(
        root.join("index.html"),
        "<h1 id=\"top\">x</h1><a href=\"a/b.html#there\">b</a>",
    )
    .unwrap();
    let page = |body: &str| {
        fs::write(root.join("a/b.html"), format!("<p id=\"there\">{body}</p>")).unwrap()
    };
    page(
        "<a href=\"../index.html#top\">a</a><a href=\"#there\">b</a><a href=\"https://example.org/x?y#z\">c</a><a href=\"../\">d</a>",
    );
    let good = script("docs_links.py", &[root]);
    assert_eq!(
        (
            good.status.code(),
            String::from_utf8_lossy(&good.stdout).as_ref()
        ),
        (Some(0), "2 pages, 5 links, 0 broken\n")
    );
    for (link, what) in [
        ("c.html", "leads to no file"),
        ("../index.html#bottom", "leads to no element `bottom`"),
        ("#nowhere", "leads to no element `nowhere`"),
        ("../../x.html", "leads out of the directory"),
        ("https://", "names no host"),
        ("https://a b.org/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("htps://example.org/", "has the unknown scheme htps"),
        ("//example.org/", "names a host without a scheme"),
    ] {
        page(&format!("<a href=\"{link}\">x</a>"));
        let bad = script("docs_links.py", &[root]);
        let said = String::from_utf8_lossy(&bad.stdout).into_owned();
        assert_eq!(bad.status.code(), Some(1), "{link}: {said}");
        assert!(
            said.contains(what) && said.contains("2 pages, 2 links, 1 broken"),
            "{link}: {said}"
        );
    }
    fs::remove_dir_all(root.join("a")).unwrap();
    fs::remove_file(root.join("index.html")).unwrap();
    assert_eq!(script("docs_links.py", &[root]).status.code(), Some(2));
}
