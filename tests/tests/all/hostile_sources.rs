//! PyTorch archives against truncation, flipped bits and named attacks.
//!
//! Every test opens through the public [`open`], from a real file, and measures what the thread allocated
//! meanwhile: a hostile file may cost memory in proportion to its own length, never in proportion to a
//! number written in it.

use bitnet_formats::{ErrorCode, FormatError, Limits, TensorFile, open};
use bitnet_tests::counting::asked;
use bitnet_tests::fixtures::repository;
use bitnet_tests::flips::open_flipped;
use bitnet_tests::torch_archive::{Pickle, Saved, archive_of, pickle_of, zip_of};
use tempfile::TempDir;

// ---- measuring ----

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Opens and asserts that the cost was in proportion to the file: an object of a pickle can be one byte
    /// there and has some 60 in memory, and what is used again is copied, up to a bound.
    fn open(&self, bytes: &[u8]) -> Result<TensorFile, FormatError> {
        let path = self.0.path().join("model.pt");
        // a new file each time: the one before may still be mapped
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        let before = asked();
        let result = open(&path, &Limits::default());
        let cost = asked() - before;
        assert!(
            cost <= 128 * 1024 + 1024 * bytes.len(),
            "{cost} bytes allocated for a file of {}",
            bytes.len()
        );
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(
                !text.contains('\n') && !text.is_empty() && text.len() < 2000,
                "{text:?}"
            );
            assert!(error.file.is_some(), "no file in `{text}`");
        }
        result
    }

    #[track_caller]
    fn refused(&self, bytes: &[u8]) -> FormatError {
        self.open(bytes)
            .map(|_| ())
            .expect_err("accepted a hostile file")
    }
}

fn by_torch() -> Vec<u8> {
    std::fs::read(repository().join("tests/files/pytorch/state_dict.pt")).unwrap()
}

/// An archive with this pickle and a storage `0` of `bytes` bytes.
fn with_pickle(pickle: Pickle, bytes: usize) -> Vec<u8> {
    zip_of(&[
        ("a/data.pkl".to_owned(), pickle.0),
        ("a/data/0".to_owned(), vec![0; bytes]),
    ])
}

/// A dict of one tensor `w` that is what `value` pushes.
fn dict_of(value: impl Fn(Pickle) -> Pickle) -> Pickle {
    value(Pickle::new().op(b"}").text("w")).op(b"s.")
}

#[track_caller]
fn pickle_refused(pickle: Pickle, code: ErrorCode, says: &str) {
    let error = Bench::new().refused(&with_pickle(pickle, 16));
    assert_eq!(error.code, code, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

// ---- every byte, every bit ----

#[test]
fn truncated_anywhere() {
    let bench = Bench::new();
    for whole in [by_torch(), with_pickle(sound(), 16)] {
        assert!(bench.open(&whole).is_ok());
        for end in 0..whole.len() {
            bench.refused(&whole[..end]);
        }
    }
}

#[test]
fn any_bit_flipped() {
    let bench = Bench::new();
    let whole = by_torch();
    let (accepted, refused) =
        open_flipped(&whole, 0..8 * whole.len(), |flipped| bench.open(flipped));
    // data, padding and names may change; structure may not
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn any_byte_of_a_pickle_replaced_by_any_other() {
    let bench = Bench::new();
    let whole = with_pickle(sound(), 16);
    let start = whole.windows(2).position(|pair| pair == [0x80, 2]).unwrap();
    for at in start..start + sound().0.len() {
        for value in 0..=255 {
            let mut changed = whole.clone();
            changed[at] = value;
            if let Ok(file) = bench.open(&changed) {
                for tensor in file.tensors() {
                    assert_eq!(file.read(tensor).unwrap().len() as u64, tensor.len);
                }
            }
        }
    }
}

// ---- named attacks: pickles ----

/// Four floats.
fn sound() -> Pickle {
    dict_of(|p| p.tensor(("FloatStorage", "0", 4), 0, &[2, 2], &[2, 1]))
}

#[test]
fn calls_are_named_and_never_made() {
    for (module, name) in [("posix", "system"), ("builtins", "eval"), ("torch", "load")] {
        let call = dict_of(|p| p.global(module, name).op(b"(").text("touch x").op(b"tR"));
        pickle_refused(call, ErrorCode::WrongType, &format!("{module}.{name}"));
    }
    // inside a parameter, as the dict itself, and with state
    let inner = dict_of(|p| {
        let p = p.global("torch._utils", "_rebuild_parameter").op(b"(");
        p.global("os", "system").op(b")R").op(b"\x89}tR")
    });
    pickle_refused(inner, ErrorCode::WrongType, "os.system");
    let root = Pickle::new().global("os", "system").op(b")R.");
    pickle_refused(root, ErrorCode::Malformed, "os.system");
    let state = Pickle::new().global("os", "system").op(b")\x81}b.");
    pickle_refused(state, ErrorCode::Malformed, "an object with state");
}

#[test]
fn objects_that_nest_too_deep() {
    let deep = Pickle::new().op(b")").op(&[0x85; 100_000]).op(b".");
    pickle_refused(deep, ErrorCode::LimitExceeded, "nest deeper");
    let lists = Pickle::new().op(&b"]".repeat(1000)).op(&b"a".repeat(999));
    pickle_refused(lists.op(b"."), ErrorCode::LimitExceeded, "nest deeper");
}

#[test]
fn objects_that_double() {
    // x, (x, x), ((x, x), (x, x)), … : fifty bytes would be a petabyte
    let mut bomb = Pickle::new().op(b")q\x00");
    for _ in 0..50 {
        bomb = bomb.op(b"h\x00\x86q\x00");
    }
    pickle_refused(bomb.op(b"."), ErrorCode::LimitExceeded, "again and again");
    let mut wide = Pickle::new().op(b"(").op(&b"N".repeat(1000)).op(b"tq\x00(");
    for _ in 0..1000 {
        wide = wide.op(b"h\x00");
    }
    pickle_refused(wide.op(b"t."), ErrorCode::LimitExceeded, "again and again");
}

#[test]
fn lengths_beyond_the_pickle() {
    let text = Pickle::new()
        .op(b"X")
        .op(&u32::MAX.to_le_bytes())
        .op(b"abc.");
    pickle_refused(text, ErrorCode::Truncated, "4294967295");
    let long = Pickle::new().op(&[0x8a, 255]).op(&[1; 255]).op(b".");
    pickle_refused(long, ErrorCode::LimitExceeded, "255 bytes");
    pickle_refused(Pickle::new().op(b"cname"), ErrorCode::Truncated, "name");
    pickle_refused(Pickle(Vec::new()), ErrorCode::Truncated, "pickle");
    let endless = with_pickle(Pickle::new().op(&b"N0".repeat(3 << 20)), 16);
    let error = Bench::new().refused(&endless);
    assert_eq!(error.code, ErrorCode::LimitExceeded, "{error}");
}

#[test]
fn stacks_and_memos_that_are_not_there() {
    for operations in [
        &b"."[..],
        b"R.",
        b"N\x86.",
        b"t.",
        b"Nu.",
        b"(\x85.",
        b"Ns.",
        b"h\x05.",
        b"j\x05\0\0\0.",
        b"q\x00.",
        b"(q\x00.",
        b"Q.",
        b"(.",
        b"a.",
        b"e.",
    ] {
        let pickle = Pickle::new().op(operations);
        pickle_refused(pickle, ErrorCode::Malformed, "");
    }
    // operations of other protocols, and of the wrong kind of object
    for operations in [
        &b"\x8c\x01a."[..],
        b"\x95\0\0\0\0\0\0\0\0.",
        b"0.",
        b"I1\n.",
        b"(d.",
    ] {
        let pickle = Pickle::new().op(operations);
        pickle_refused(pickle, ErrorCode::Malformed, "operation");
    }
    for operations in [&b"NNNs."[..], b"NNa.", b"N(Ne.", b"}(Nu."] {
        pickle_refused(
            Pickle::new().op(operations),
            ErrorCode::Malformed,
            "cannot be read",
        );
    }
    pickle_refused(
        Pickle::new().op(b"}NNs."),
        ErrorCode::Malformed,
        "names as keys",
    );
}

#[test]
fn tensors_that_lie() {
    let float = ("FloatStorage", "0", 4);
    let huge = 1usize << 62;
    for (storage, first, shape, stride, code, says) in [
        (
            float,
            1,
            &[2usize, 2][..],
            &[2usize, 1][..],
            ErrorCode::Malformed,
            "4 elements from 1",
        ),
        (
            float,
            0,
            &[5],
            &[1],
            ErrorCode::Malformed,
            "its storage has 4",
        ),
        (
            float,
            0,
            &[huge, 4],
            &[4, 1],
            ErrorCode::Malformed,
            "overflows",
        ),
        (
            float,
            0,
            &[huge],
            &[1],
            ErrorCode::Malformed,
            "its storage has 4",
        ),
        (
            float,
            huge,
            &[4],
            &[1],
            ErrorCode::Malformed,
            "its storage has 4",
        ),
        (
            float,
            0,
            &[2, 2],
            &[1, 2],
            ErrorCode::Malformed,
            "strides [1, 2]",
        ),
        (float, 0, &[2, 2], &[0, 1], ErrorCode::Malformed, "strides"),
        (float, 0, &[2, 2], &[2], ErrorCode::Malformed, "strides"),
        (
            ("FloatStorage", "0", 5),
            0,
            &[4],
            &[1],
            ErrorCode::Malformed,
            "16 bytes",
        ),
        (
            ("DoubleStorage", "0", 4),
            0,
            &[4],
            &[1],
            ErrorCode::Malformed,
            "16 bytes",
        ),
        (
            ("FloatStorage", "0", huge),
            0,
            &[4],
            &[1],
            ErrorCode::Malformed,
            "16 bytes",
        ),
        (
            ("FloatStorage", "1", 4),
            0,
            &[4],
            &[1],
            ErrorCode::Truncated,
            "not in the archive",
        ),
        (
            ("FloatStorage", "../../0", 4),
            0,
            &[4],
            &[1],
            ErrorCode::Truncated,
            "not in the archive",
        ),
        (
            ("QInt8Storage", "0", 4),
            0,
            &[4],
            &[1],
            ErrorCode::UnknownType,
            "QInt8Storage",
        ),
        (
            ("UntypedStorage", "0", 4),
            0,
            &[4],
            &[1],
            ErrorCode::UnknownType,
            "UntypedStorage",
        ),
    ] {
        let pickle = dict_of(|p| p.tensor(storage, first, shape, stride));
        let error = Bench::new().refused(&with_pickle(pickle, 16));
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.tensor.as_deref(), Some("w"), "{error}");
    }
    // numbers below 0, parts that are missing, a device that is a number
    let rebuild = |args: fn(Pickle) -> Pickle| {
        dict_of(|p| args(p.global("torch._utils", "_rebuild_tensor_v2")).op(b"tR"))
    };
    let negative = rebuild(|p| {
        let p = p.storage("FloatStorage", "0", 4).int(-1);
        p.ints(&[4]).ints(&[1]).op(b"\x89}")
    });
    pickle_refused(negative, ErrorCode::Malformed, "negative");
    let short = rebuild(|p| p.storage("FloatStorage", "0", 4).int(0));
    pickle_refused(short, ErrorCode::Malformed, "6 parts");
    let none = rebuild(|p| p.op(b"(").op(b"NNNNNN"));
    pickle_refused(none, ErrorCode::Malformed, "a storage");
    let conjugated = rebuild(|p| {
        let p = p
            .storage("FloatStorage", "0", 4)
            .int(0)
            .ints(&[4])
            .ints(&[1]);
        p.op(b"\x89}}").text("neg").op(b"\x88s")
    });
    pickle_refused(conjugated, ErrorCode::Malformed, "settings");
    // the same name twice; something else than a tensor
    let one = |p: Pickle| p.text("w").tensor(("FloatStorage", "0", 4), 0, &[4], &[1]);
    let twice = one(one(Pickle::new().op(b"}("))).op(b"u.");
    pickle_refused(twice, ErrorCode::Malformed, "twice");
    pickle_refused(dict_of(|p| p.int(3)), ErrorCode::WrongType, "an integer");
    pickle_refused(
        Pickle::new().int(3).op(b"."),
        ErrorCode::Malformed,
        "an integer",
    );
}

// ---- named attacks: archives ----

fn saved(n: usize) -> Saved {
    Saved {
        name: "w".to_owned(),
        storage: "FloatStorage",
        size: 4,
        shape: vec![n],
        bytes: vec![0; 4 * n],
    }
}

/// The archive with some bytes changed: at a signature, plus an offset.
fn patched(
    mut file: Vec<u8>,
    signature: &[u8; 4],
    number: usize,
    at: usize,
    new: &[u8],
) -> Vec<u8> {
    let mut found = (0..file.len() - 3).filter(|&i| &file[i..i + 4] == signature);
    let start = found.nth(number).unwrap() + at;
    file[start..start + new.len()].copy_from_slice(new);
    file
}

#[test]
fn directories_that_lie() {
    let bench = Bench::new();
    let whole = archive_of(&[saved(4)]);
    assert!(bench.open(&whole).is_ok());
    let (local, central, end) = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06");
    let most = u32::MAX - 1;
    for (signature, number, at, new, says) in [
        (end, 0, 8, &[3, 0, 3, 0][..], "cannot have 3 entries"),
        (end, 0, 8, &[1, 0, 1, 0], "directory ends at"),
        (
            end,
            0,
            8,
            &[255, 255, 255, 255],
            "cannot have 65535 entries",
        ),
        (end, 0, 12, &most.to_le_bytes(), "does not end before"),
        (end, 0, 16, &most.to_le_bytes(), "does not end before"),
        (end, 0, 4, &[1, 0], "several parts"),
        (central, 1, 42, &most.to_le_bytes(), "header of a record"),
        (central, 1, 42, &[0; 4], "another name"),
        (central, 1, 8, &[1, 0], "encrypted"),
        (central, 1, 10, &[8, 0], "compressed"),
        (central, 1, 20, &[1, 0, 0, 0], "compressed"),
        (central, 1, 28, &[255, 255], "name of a record"),
        (central, 1, 30, &[255, 255], "entry of the directory"),
        (local, 1, 26, &[255, 255], "header of a record"),
        (local, 1, 28, &[255, 255], "header of a record"),
        (local, 1, 28, &[20, 0], "the directory begins at"),
    ] {
        let error = bench.refused(&patched(whole.clone(), signature, number, at, new));
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
    // sizes beyond the file
    let long = patched(
        whole.clone(),
        central,
        1,
        20,
        &[255, 255, 255, 0, 255, 255, 255, 0],
    );
    assert_eq!(bench.refused(&long).code, ErrorCode::Malformed);
    // two records of one name, two of one place
    let record = |name: &str| (name.to_owned(), vec![0; 64]);
    let pickle = ("a/data.pkl".to_owned(), sound().0);
    let twice = zip_of(&[pickle.clone(), record("a/data/0"), record("a/data/0")]);
    assert!(bench.refused(&twice).to_string().contains("twice"));
    let apart = zip_of(&[pickle.clone(), record("a/data/0"), record("a/data/1")]);
    let central_of_1 = apart.windows(4).rposition(|w| w == central).unwrap();
    let at_0 = apart.windows(8).position(|w| w == b"a/data/0").unwrap() - 30;
    let mut same = apart.clone();
    same[central_of_1 + 42..central_of_1 + 46].copy_from_slice(&(at_0 as u32).to_le_bytes());
    same[central_of_1 + 46 + 7] = b'0';
    assert_eq!(bench.refused(&same).code, ErrorCode::Malformed);
}

#[test]
fn sixty_four_bit_directories_that_lie() {
    let bench = Bench::new();
    let whole = by_torch();
    let (end_64, locator) = (b"PK\x06\x06", b"PK\x06\x07");
    for (signature, at, new) in [
        (end_64, 24, u64::MAX),      // entries on this disk
        (end_64, 32, u64::MAX),      // entries
        (end_64, 40, u64::MAX),      // bytes
        (end_64, 48, u64::MAX),      // offset
        (end_64, 48, 0),             // offset of no entry
        (locator, 8, u64::MAX),      // offset of the 64-bit end
        (locator, 8, u64::MAX - 10), // the same, wrapping
        (locator, 8, 0),             // offset of something else
    ] {
        let changed = patched(whole.clone(), signature, 0, at, &new.to_le_bytes());
        let error = bench.refused(&changed);
        let fine = [ErrorCode::Malformed, ErrorCode::Truncated].contains(&error.code);
        assert!(fine, "{error}");
    }
    let both = u64::from(u32::MAX).to_le_bytes().repeat(2);
    let many = patched(whole.clone(), end_64, 0, 24, &both);
    assert_eq!(bench.refused(&many).code, ErrorCode::LimitExceeded);
}

#[test]
fn archives_of_something_else() {
    let bench = Bench::new();
    let record = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    let pickle = pickle_of(&[saved(4)]);
    let data = [0; 16];
    for (records, says) in [
        (vec![record("readme.txt", b"hello")], "one data.pkl"),
        (
            vec![record("a/data.pkl", &pickle), record("b/data.pkl", &pickle)],
            "one data.pkl",
        ),
        (
            vec![
                record("a/data.pkl", &pickle),
                record("a/byteorder", b"big"),
                record("a/data/0", &data),
            ],
            "found `big`",
        ),
        (vec![record("a/data.pkl", &pickle)], "not in the archive"),
        (
            vec![record("a/data.pkl", &pickle), record("b/data/0", &data)],
            "not in the archive",
        ),
    ] {
        let error = bench.refused(&zip_of(&records));
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(
        bench
            .open(&zip_of(&[
                record("a/data.pkl", &pickle),
                record("a/byteorder", b"little"),
                record("a/data/0", &data),
            ]))
            .is_ok()
    );
}

#[test]
fn indices_that_lead_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("pytorch_model.bin.index.json");
    let part = dir.path().join("pytorch_model-00001-of-00001.bin");
    std::fs::write(&part, archive_of(&[saved(4)])).unwrap();
    let with = |map: &str| {
        std::fs::write(&index, format!("{{\"weight_map\": {map}}}")).unwrap();
        open(&index, &Limits::default()).map(|file| file.tensors().len())
    };
    let own = "pytorch_model-00001-of-00001.bin";
    assert_eq!(with(&format!("{{\"w\": \"{own}\"}}")).unwrap(), 1);
    for (map, code) in [
        ("{\"w\": \"../w.bin\"}".to_owned(), ErrorCode::Malformed),
        ("{\"w\": \"/etc/passwd\"}".to_owned(), ErrorCode::Malformed),
        ("{}".to_owned(), ErrorCode::Malformed),
        ("{\"w\": \"absent.bin\"}".to_owned(), ErrorCode::Io),
        (format!("{{\"v\": \"{own}\"}}"), ErrorCode::ExtraTensor),
        (
            format!("{{\"w\": \"{own}\", \"v\": \"{own}\"}}"),
            ErrorCode::MissingTensor,
        ),
    ] {
        match with(&map) {
            // an index of nothing is a model of nothing
            Ok(tensors) => assert_eq!((tensors, map.as_str()), (0, "{}")),
            Err(error) => assert_eq!(error.code, code, "{map}: {error}"),
        }
    }
}
