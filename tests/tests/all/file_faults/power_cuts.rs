//! Power cuts, simulated: after any change of a run, whatever was not synced may be lost.
//!
//! Invariant: the model is stricter than file systems with a journal. A change of a directory that was not synced happened or
//! did not, in any combination in which no change is without an earlier one of the same name. Bytes of a file that were not
//! synced are absent, in part there, or there.

use super::scenarios::{Place, SCENARIOS, all};
use bitnet_tests::file_faults::{Call, Shim, Tree, plant, visible};
use bitnet_tests::fixtures::skips_foreign_fixtures;
use bitnet_tests::random::Random;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// A file or directory, whatever its names. Numbers of inodes are used again, these are not.
type Node = usize;
/// A name in a directory.
type Name = (Node, String);

/// So many changes of directories are combined in every way; of more, some combinations are tried.
const MOST_COMBINED: usize = 8;

#[derive(Clone, Default)]
struct File {
    data: Rc<Vec<u8>>,
    durable: Rc<Vec<u8>>,
}

/// A change of names, in one step.
#[derive(Clone)]
struct Change {
    updates: Vec<(Name, Option<Node>)>,
}

impl Change {
    fn touches(&self, other: &Self) -> bool {
        let touched = |name| other.updates.iter().any(|(other, _)| other == name);
        self.updates.iter().any(|(name, _)| touched(name))
    }
}

/// How much of the bytes that were not synced is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Bytes {
    Synced,
    Half,
    All,
}

/// A disk, as it is and as it would be after a power cut.
#[derive(Default)]
struct Disk {
    root: PathBuf,
    nodes: HashMap<u64, Node>,
    files: BTreeMap<Node, File>,
    /// Names that are there now, and names that survive.
    names: BTreeMap<Name, Node>,
    durable: BTreeMap<Name, Node>,
    pending: Vec<Change>,
    count: Node,
}

const ROOT: Node = 0;

impl Disk {
    /// A directory whose files are all durable.
    fn of(root: &Path) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            count: 1,
            ..Self::default()
        };
        disk.nodes.insert(fs::metadata(root).unwrap().ino(), ROOT);
        disk.add(root, ROOT);
        disk.durable = disk.names.clone();
        disk
    }

    fn add(&mut self, directory: &Path, node: Node) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let new = self.node(metadata.ino());
            let name = entry.file_name().to_str().unwrap().to_owned();
            self.names.insert((node, name), new);
            if metadata.is_dir() {
                self.add(&entry.path(), new);
            } else {
                let data = Rc::new(fs::read(entry.path()).unwrap());
                let durable = data.clone();
                self.files.insert(new, File { data, durable });
            }
        }
    }

    fn node(&mut self, inode: u64) -> Node {
        let node = self.count;
        self.count += 1;
        self.nodes.insert(inode & !(1 << 63), node);
        node
    }

    fn known(&self, inode: u64) -> Node {
        self.nodes[&(inode & !(1 << 63))]
    }

    /// The directory that a path lies in, and its name there.
    fn name(&self, path: &Path) -> Name {
        let below = path.strip_prefix(&self.root).unwrap();
        let mut parts: Vec<String> = below
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str().unwrap().to_owned(),
                other => panic!("{other:?} in {}", path.display()),
            })
            .collect();
        let name = parts.pop().unwrap();
        let step = |node, part: String| self.names[&(node, part)];
        (parts.into_iter().fold(ROOT, step), name)
    }

    fn change(&mut self, updates: Vec<(Name, Option<Node>)>) {
        let change = Change { updates };
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    /// Follows a call.
    fn follow(&mut self, call: &Call) {
        if call.result < 0 {
            return;
        }
        let [one, two] = &call.paths;
        match call.name.as_str() {
            "create" | "mkdir" => {
                let (name, node) = (self.name(one), self.node(call.inode));
                if call.name == "create" {
                    self.files.insert(node, File::default());
                }
                self.change(vec![(name, Some(node))]);
            }
            "unnamed" => {
                let node = self.node(call.inode);
                self.files.insert(node, File::default());
            }
            "open" => self.resize(call.inode, 0),
            "ftruncate" => self.resize(call.inode, call.offset),
            "write" | "pwrite" => {
                let node = self.known(call.inode);
                let data = Rc::make_mut(&mut self.files.get_mut(&node).unwrap().data);
                let start = usize::try_from(call.offset).unwrap();
                let end = start + call.data.len();
                data.resize(data.len().max(end), 0);
                data[start..end].copy_from_slice(&call.data);
            }
            // blocks beyond the end of a file change nothing that is read
            "fallocate" => assert_eq!(call.flags, 1),
            "fsync" | "fdatasync" => self.sync(self.known(call.inode)),
            "link" => {
                let (name, node) = (self.name(two), self.known(call.inode));
                self.change(vec![(name, Some(node))]);
            }
            "unlink" | "rmdir" => {
                let name = self.name(one);
                self.change(vec![(name, None)]);
            }
            "rename" => {
                let (from, to) = (self.name(one), self.name(two));
                let (moved, replaced) = (self.names[&from], self.names.get(&to).copied());
                // both names are of one file: nothing happens
                if replaced == Some(moved) {
                    return;
                }
                let left = if call.flags & 2 == 2 { replaced } else { None };
                self.change(vec![(from, left), (to, Some(moved))]);
            }
            other => panic!("a call {other}"),
        }
    }

    fn resize(&mut self, inode: u64, length: u64) {
        let node = self.known(inode);
        let data = Rc::make_mut(&mut self.files.get_mut(&node).unwrap().data);
        data.resize(usize::try_from(length).unwrap(), 0);
    }

    fn sync(&mut self, node: Node) {
        if let Some(file) = self.files.get_mut(&node) {
            file.durable = file.data.clone();
            return;
        }
        let mut synced = vec![false; self.pending.len()];
        for n in (0..self.pending.len()).rev() {
            let is_here = self.pending[n]
                .updates
                .iter()
                .any(|((directory, _), _)| *directory == node);
            // what comes before a change of the same name
            let is_needed = || {
                (n + 1..synced.len())
                    .any(|later| synced[later] && self.pending[later].touches(&self.pending[n]))
            };
            synced[n] = is_here || is_needed();
        }
        let pending = std::mem::take(&mut self.pending);
        for (change, is_synced) in pending.into_iter().zip(synced) {
            match is_synced {
                true => apply(&mut self.durable, &change),
                false => self.pending.push(change),
            }
        }
    }

    /// Combinations of the changes that may have happened: for each change whether it did.
    fn combinations(&self, random: &mut Random) -> Vec<Vec<bool>> {
        let count = self.pending.len();
        let close = |mut kept: Vec<bool>| {
            for n in 0..count {
                let lost = (0..n).any(|earlier| {
                    !kept[earlier] && self.pending[earlier].touches(&self.pending[n])
                });
                kept[n] &= !lost;
            }
            kept
        };
        let mut found: Vec<Vec<bool>> = Vec::new();
        if count <= MOST_COMBINED {
            for bits in 0..1usize << count {
                found.push(close((0..count).map(|n| (bits >> n) & 1 == 1).collect()));
            }
        } else {
            for n in 0..=count {
                found.push(close((0..count).map(|other| other < n).collect()));
                found.push(close((0..count).map(|other| other != n).collect()));
            }
            for _ in 0..200 {
                found.push(close((0..count).map(|_| random.below(2) == 1).collect()));
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// The names after a power cut.
    fn survivors(&self, kept: &[bool]) -> BTreeMap<Name, Node> {
        let mut names = self.durable.clone();
        for (change, _) in self.pending.iter().zip(kept).filter(|(_, kept)| **kept) {
            apply(&mut names, change);
        }
        names
    }

    /// What is read of a file after a power cut.
    fn bytes(&self, node: Node, bytes: Bytes) -> &[u8] {
        let Some(file) = self.files.get(&node) else {
            return &[];
        };
        match bytes {
            _ if Rc::ptr_eq(&file.data, &file.durable) => &file.data,
            Bytes::All => &file.data,
            Bytes::Synced => &file.durable,
            Bytes::Half => &file.data[..file.data.len() / 2],
        }
    }

    /// Gives files the order of time in which they were made.
    fn set_times(&self, root: &Path, paths: &BTreeMap<String, Node>) {
        for (path, node) in paths.iter().filter(|(path, _)| !path.ends_with('/')) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + *node as u64);
            let file = fs::File::options()
                .write(true)
                .open(root.join(path))
                .unwrap();
            file.set_modified(time).unwrap();
        }
    }

    /// Files by their paths; directories by paths that end in `/`.
    fn paths(&self, names: &BTreeMap<Name, Node>) -> BTreeMap<String, Node> {
        let mut found = BTreeMap::new();
        let mut open = vec![(ROOT, String::new())];
        while let Some((directory, prefix)) = open.pop() {
            let inside = names.range((directory, String::new())..(directory + 1, String::new()));
            let mut is_empty = true;
            for ((_, name), node) in inside {
                is_empty = false;
                let path = format!("{prefix}{name}");
                match self.files.contains_key(node) {
                    true => {
                        found.insert(path, *node);
                    }
                    false => open.push((*node, path + "/")),
                }
            }
            if is_empty && !prefix.is_empty() {
                found.insert(prefix, directory);
            }
        }
        found
    }
}

fn apply(names: &mut BTreeMap<Name, Node>, change: &Change) {
    for (name, node) in &change.updates {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

/// Replays a run up to every change and looks at the states that a power cut can leave: at a sample of those with a whole
/// output, and at all others. At how many.
fn replay(place: &Place<'_>, mut disk: Disk, calls: &[Call]) -> (usize, Vec<String>) {
    let mut seen: HashSet<Vec<(String, Node, usize)>> = HashSet::new();
    let mut random = Random(7);
    let mut complaints = Vec::new();
    let (mut wholes, mut checked) = (0, 0);
    for n in 0..=calls.len() {
        let after = n.checked_sub(1).map(|n| &calls[n]);
        if let Some(call) = after {
            disk.follow(call);
            // bytes of a file alone are cut in three ways at every other change
            if call.name == "write" {
                continue;
            }
        }
        for kept in disk.combinations(&mut random) {
            let paths = disk.paths(&disk.survivors(&kept));
            for how in [Bytes::Synced, Bytes::Half, Bytes::All] {
                let key = paths
                    .iter()
                    .map(|(path, node)| (path.clone(), *node, disk.bytes(*node, how).len()));
                if !seen.insert(key.collect()) {
                    continue;
                }
                let files = paths
                    .iter()
                    .map(|(path, node)| (path.clone(), disk.bytes(*node, how).to_vec()));
                let state: Tree = files.collect();
                // the same output beside other temporary files
                let shown = visible(&state);
                let is_whole = shown == place.old || shown == place.new;
                wholes += usize::from(is_whole);
                if is_whole && !all() && wholes % 16 != 1 {
                    continue;
                }
                checked += 1;
                plant(&place.out(), &state);
                disk.set_times(&place.out(), &paths);
                let next = all() || checked % 8 == 0;
                if let Err(what) = place.check_cut(next) {
                    let after = after.map(|call| format!("{} {:?}", call.name, call.paths));
                    let named: Vec<&String> = state.keys().collect();
                    complaints.push(format!(
                        "{}: after change {n}, {after:?}: {what}; {named:?}",
                        place.scenario.name
                    ));
                }
            }
        }
    }
    // the model is right: it ends as the disk does
    let names = disk.names.clone();
    let end = disk.paths(&names).into_iter().map(|(path, node)| {
        let data = disk.files.get(&node).map(|file| file.data.to_vec());
        (path, data.unwrap_or_default())
    });
    assert_eq!(
        end.collect::<Tree>().keys().collect::<Vec<_>>(),
        place.new.keys().collect::<Vec<_>>()
    );
    (checked, complaints)
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_output() {
    if skips_foreign_fixtures() {
        return;
    }
    let Some(shim) = Shim::build() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut complaints = Vec::new();
    for (n, scenario) in SCENARIOS.iter().enumerate() {
        let place = Place::new(scenario, dir.path(), n);
        let disk = Disk::of(&place.out());
        let calls = shim.record(place.command(), &place.out());
        assert_eq!(place.output(), place.new, "{}", scenario.name);
        let (states, found) = replay(&place, disk, &calls);
        println!(
            "{:32} {:4} changes, {states:5} states",
            scenario.name,
            calls.len()
        );
        assert!(states > 0);
        let root = place.root.to_str().unwrap();
        complaints.extend(found.into_iter().map(|what| what.replace(root, "")));
    }
    assert!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}
