//! Containers against truncation, bit flips and named attacks, and against the files of peers.
//!
//! Every test opens through the public [`open`], from a real file, and measures what the thread
//! allocated meanwhile: a hostile file may cost memory in proportion to its own length, never in
//! proportion to a number written in it.

use bitnet_formats::{
    Container, Encoding, ErrorCode, FormatError, GGUF_LAYOUT_KEY, Gguf, Header, Limits, MetaArray,
    MetaValue, Metadata, PlainType, PlannedTensor, Safetensors, TensorFile, WritePlan, open,
    open_as, packing_by_name,
};
use bitnet_tests::counting::asked;
use bitnet_tests::fixtures::{read_json, vectors_dir};
use bitnet_tests::flips::open_flipped;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// ---- measuring ----

/// Opens and asserts that the cost was in proportion to the file.
fn open_measured(path: &Path, len: usize) -> Result<TensorFile, FormatError> {
    let before = asked();
    let result = open(path, &Limits::default());
    let cost = asked() - before;
    assert!(
        cost <= 64 * 1024 + 32 * len,
        "{cost} bytes allocated for a file of {len}"
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

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str, bytes: &[u8]) -> Result<TensorFile, FormatError> {
        let path = self.path(name);
        // a new file each time: the one before may still be mapped
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        open_measured(&path, bytes.len())
    }

    fn refused(&self, name: &str, bytes: &[u8]) -> FormatError {
        self.open(name, bytes)
            .map(|_| ())
            .expect_err("accepted a hostile file")
    }
}

// ---- small valid files ----

fn planned(name: &str, encoding: Encoding, shape: &[usize], len: u64) -> PlannedTensor {
    PlannedTensor {
        name: name.to_owned(),
        encoding,
        shape: shape.to_vec(),
        len,
    }
}

/// Header and data, every data byte different from its neighbors.
fn assemble(plan: &WritePlan, header: &Header) -> Vec<u8> {
    let mut bytes = header.bytes.clone();
    for (tensor, &offset) in plan.tensors.iter().zip(&header.offsets) {
        bytes.resize(offset as usize, 0);
        bytes.extend((0..tensor.len).map(|i| (i % 251) as u8));
    }
    bytes.resize(header.total as usize, 0);
    bytes
}

fn gguf_plan() -> WritePlan {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", MetaValue::text("bitnet"));
    metadata.set("u8", MetaValue::U8(1));
    metadata.set("i8", MetaValue::I8(-1));
    metadata.set("u16", MetaValue::U16(2));
    metadata.set("i16", MetaValue::I16(-2));
    metadata.set("u32", MetaValue::U32(3));
    metadata.set("i32", MetaValue::I32(-3));
    metadata.set("u64", MetaValue::U64(4));
    metadata.set("i64", MetaValue::I64(-4));
    metadata.set("f32", MetaValue::F32(0.5));
    metadata.set("f64", MetaValue::F64(0.25));
    metadata.set("yes", MetaValue::Bool(true));
    metadata.set("bytes", MetaValue::String(vec![0xff, 0xfe, 0]));
    for (key, array) in [
        ("a.u8", MetaArray::U8(vec![1, 2])),
        ("a.i8", MetaArray::I8(vec![-1, 2])),
        ("a.u16", MetaArray::U16(vec![1, 2])),
        ("a.i16", MetaArray::I16(vec![1, -2])),
        ("a.u32", MetaArray::U32(vec![1, 2])),
        ("a.i32", MetaArray::I32(vec![1, -2])),
        ("a.u64", MetaArray::U64(vec![1, 2])),
        ("a.i64", MetaArray::I64(vec![1, -2])),
        ("a.f32", MetaArray::F32(vec![1.0, -2.0])),
        ("a.f64", MetaArray::F64(vec![1.0, -2.0])),
        ("a.bool", MetaArray::Bool(vec![true, false])),
        (
            "a.string",
            MetaArray::String([&b"a"[..], b"", b"\xe2\x96"].into_iter().collect()),
        ),
        ("a.none", MetaArray::U32(vec![])),
    ] {
        metadata.set(key, MetaValue::Array(array));
    }
    let i2_s = packing_by_name("i2_s").unwrap();
    WritePlan {
        metadata,
        tensors: vec![
            planned(
                "token_embd.weight",
                Encoding::Plain(PlainType::F16),
                &[5, 3],
                30,
            ),
            planned(
                "blk.0.attn_q.weight",
                Encoding::Ternary(i2_s),
                &[4, 128],
                160,
            ),
            planned(
                "output_norm.weight",
                Encoding::Plain(PlainType::F32),
                &[3],
                12,
            ),
        ],
    }
}

fn safetensors_plan() -> WritePlan {
    let mut metadata = Metadata::default();
    metadata.set("made_by", MetaValue::text("a \"test\"\n\u{1}é"));
    WritePlan {
        metadata,
        tensors: vec![
            planned(
                "embed.weight",
                Encoding::Plain(PlainType::Bf16),
                &[5, 3],
                30,
            ),
            planned("norm.weight", Encoding::Plain(PlainType::F32), &[3], 12),
            planned("empty", Encoding::Plain(PlainType::F32), &[0, 7], 0),
            planned(
                "q.weight",
                Encoding::Ternary(packing_by_name("hf_u8").unwrap()),
                &[2, 6],
                12,
            ),
            planned("scalar", Encoding::Plain(PlainType::I64), &[], 8),
        ],
    }
}

fn written(container: &dyn Container, plan: &WritePlan) -> (Header, Vec<u8>) {
    let header = container.header(plan).unwrap();
    let bytes = assemble(plan, &header);
    (header, bytes)
}

fn check_round_trip(container: &dyn Container, plan: &WritePlan) {
    let (header, bytes) = written(container, plan);
    assert_eq!(bytes.len() as u64, header.total);
    let bench = Bench::new();
    let file = bench.open("model", &bytes).unwrap();
    assert_eq!(file.container, container.name());
    assert_eq!(file.tensors().len(), plan.tensors.len());
    for ((found, expected), &offset) in file
        .tensors()
        .iter()
        .zip(&plan.tensors)
        .zip(&header.offsets)
    {
        assert_eq!(found.name, expected.name);
        assert_eq!(found.shape, expected.shape);
        assert_eq!((found.offset, found.len), (offset, expected.len));
        let range = offset as usize..(offset + expected.len) as usize;
        assert_eq!(file.read(found).unwrap(), bytes[range]);
        assert_eq!(file.tensor(&found.name), Some(found));
    }
}

#[test]
fn gguf_round_trip() {
    let plan = gguf_plan();
    check_round_trip(&Gguf, &plan);
    let (header, bytes) = written(&Gguf, &plan);
    assert!(header.offsets.iter().all(|o| o % 32 == 0));
    assert_eq!(header.total % 32, 0);
    let file = Bench::new().open("model.gguf", &bytes).unwrap();
    assert_eq!(file.metadata, plan.metadata);
    for (found, expected) in file.tensors().iter().zip(&plan.tensors) {
        assert_eq!(found.encoding, expected.encoding);
    }
}

#[test]
fn gguf_alignment_of_the_plan() {
    for alignment in [1, 8, 64, 4096] {
        let mut plan = gguf_plan();
        plan.metadata
            .set("general.alignment", MetaValue::U32(alignment));
        check_round_trip(&Gguf, &plan);
        let (header, _) = written(&Gguf, &plan);
        assert!(header.offsets.iter().all(|o| o % u64::from(alignment) == 0));
    }
    for bad in [
        MetaValue::U32(0),
        MetaValue::U32(48),
        MetaValue::U64(32),
        MetaValue::U32(1 << 31),
    ] {
        let mut plan = gguf_plan();
        plan.metadata.set("general.alignment", bad);
        assert_eq!(Gguf.header(&plan).unwrap_err().code, ErrorCode::Usage);
    }
}

#[test]
fn gguf_last_tensor_may_be_unpadded() {
    let (header, bytes) = written(&Gguf, &gguf_plan());
    let end = *header.offsets.last().unwrap() as usize + 12;
    assert!(end < bytes.len());
    let bench = Bench::new();
    assert_eq!(
        bench.open("m.gguf", &bytes[..end]).unwrap().tensors().len(),
        3
    );
    assert_eq!(
        bench.refused("m.gguf", &bytes[..end - 1]).code,
        ErrorCode::Truncated
    );
}

#[test]
fn safetensors_round_trip_and_the_reference_reader_agrees() {
    let plan = safetensors_plan();
    check_round_trip(&Safetensors, &plan);
    let (header, bytes) = written(&Safetensors, &plan);
    assert_eq!(header.bytes.len() % 64, 0);
    let file = Bench::new().open("model.safetensors", &bytes).unwrap();
    assert_eq!(file.metadata.get("format"), Some(&MetaValue::text("pt")));
    assert_eq!(file.metadata.get("made_by"), plan.metadata.get("made_by"));

    // other people's code
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), plan.tensors.len());
    for (info, planned) in file.tensors().iter().zip(&plan.tensors) {
        let view = reference.tensor(&info.name).unwrap();
        assert_eq!(file.read(info).unwrap(), view.data());
        assert_eq!(view.shape(), planned.shape);
    }
}

#[test]
fn writers_refuse_what_the_container_cannot_hold() {
    let gguf = |tensor: PlannedTensor| {
        let plan = WritePlan {
            metadata: Metadata::default(),
            tensors: vec![tensor],
        };
        Gguf.header(&plan).unwrap_err().code
    };
    let f32 = Encoding::Plain(PlainType::F32);
    let hf = Encoding::Ternary(packing_by_name("hf_u8").unwrap());
    assert_eq!(
        gguf(planned(&"n".repeat(64), f32, &[1], 4)),
        ErrorCode::TargetCannotHold
    );
    assert_eq!(gguf(planned("", f32, &[1], 4)), ErrorCode::TargetCannotHold);
    assert_eq!(gguf(planned("t", f32, &[], 4)), ErrorCode::TargetCannotHold);
    assert_eq!(
        gguf(planned("t", f32, &[1, 1, 1, 1, 1], 4)),
        ErrorCode::TargetCannotHold
    );
    assert_eq!(gguf(planned("t", f32, &[3], 4)), ErrorCode::WrongShape);
    assert_eq!(
        gguf(planned("t", Encoding::Plain(PlainType::U8), &[4], 4)),
        ErrorCode::TargetCannotHold
    );
    assert_eq!(
        gguf(planned("t", hf, &[1, 4], 4)),
        ErrorCode::TargetCannotHold
    );
    assert_eq!(
        gguf(planned("t", Encoding::Unknown(99), &[4], 4)),
        ErrorCode::TargetCannotHold
    );

    let safetensors = |tensors: Vec<PlannedTensor>| {
        let plan = WritePlan {
            metadata: Metadata::default(),
            tensors,
        };
        Safetensors.header(&plan).unwrap_err().code
    };
    assert_eq!(
        safetensors(vec![planned("t", f32, &[3], 4)]),
        ErrorCode::WrongShape
    );
    assert_eq!(
        safetensors(vec![planned("__metadata__", f32, &[1], 4)]),
        ErrorCode::TargetCannotHold
    );
    assert_eq!(
        safetensors(vec![planned("t", f32, &[1], 4), planned("t", f32, &[1], 4)]),
        ErrorCode::TargetCannotHold
    );
    let mut plan = safetensors_plan();
    plan.metadata.set("n", MetaValue::U32(1));
    assert_eq!(
        Safetensors.header(&plan).unwrap_err().code,
        ErrorCode::TargetCannotHold
    );
}

// ---- every byte, every bit ----

fn truncate_everywhere(container: &dyn Container, plan: &WritePlan) {
    let (header, bytes) = written(container, plan);
    let bench = Bench::new();
    let ends = 0..=header.bytes.len();
    for end in ends {
        bench.refused("model", &bytes[..end]);
    }
}

fn flip_everywhere(container: &dyn Container, plan: &WritePlan) {
    let (header, bytes) = written(container, plan);
    let bench = Bench::new();
    let bits = 0..8 * header.bytes.len();
    let (accepted, refused) = open_flipped(&bytes, bits, |flipped| bench.open("model", flipped));
    // names and values may change to other valid ones; structure may not
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn gguf_truncated_anywhere() {
    truncate_everywhere(&Gguf, &gguf_plan());
}

#[test]
fn gguf_any_bit_flipped() {
    flip_everywhere(&Gguf, &gguf_plan());
}

#[test]
fn safetensors_truncated_anywhere() {
    truncate_everywhere(&Safetensors, &safetensors_plan());
}

#[test]
fn safetensors_any_bit_flipped() {
    flip_everywhere(&Safetensors, &safetensors_plan());
}

// ---- named attacks: gguf ----

/// GGUF bytes, spelled by hand.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn string(self, s: &str) -> Self {
        self.u64(s.len() as u64).bytes(s.as_bytes())
    }
    fn tensor(self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let head = self.string(name).u32(sizes.len() as u32);
        sizes
            .iter()
            .fold(head, |raw, &size| raw.u64(size))
            .u32(kind)
            .u64(offset)
    }
    fn pad(mut self, extra: usize) -> Vec<u8> {
        let len = self.0.len().next_multiple_of(32) + extra;
        self.0.resize(len, 0);
        self.0
    }
}

fn gguf_attack(bytes: Vec<u8>) -> FormatError {
    Bench::new().refused("attack.gguf", &bytes)
}

#[test]
fn gguf_versions() {
    let version = |v: u32| gguf_attack(Raw(b"GGUF".to_vec()).u32(v).u64(0).u64(0).0);
    assert_eq!(version(1).code, ErrorCode::UnknownContainer);
    assert_eq!(version(4).code, ErrorCode::UnknownContainer);
    assert_eq!(version(0).code, ErrorCode::UnknownContainer);
    let swapped = version(3u32.swap_bytes());
    assert_eq!(swapped.code, ErrorCode::UnknownContainer);
    assert!(swapped.message.contains("big-endian") && swapped.hint.is_some());
    // version 2 has the layout of 3
    let mut two = written(&Gguf, &gguf_plan()).1;
    two[4] = 2;
    assert_eq!(
        Bench::new().open("two.gguf", &two).unwrap().tensors().len(),
        3
    );
}

#[test]
fn gguf_huge_counts() {
    for (tensors, entries) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 0), (0, 1 << 40)] {
        assert_eq!(
            gguf_attack(Raw::new(tensors, entries).pad(64)).code,
            ErrorCode::LimitExceeded
        );
    }
    for (tensors, entries) in [(1 << 17, 0), (0, 1 << 16), (3, 0), (0, 6)] {
        assert_eq!(
            gguf_attack(Raw::new(tensors, entries).pad(32)).code,
            ErrorCode::Truncated
        );
    }
}

#[test]
fn gguf_string_and_array_lengths() {
    for (len, code) in [
        (u64::MAX, ErrorCode::LimitExceeded),
        (i64::MAX as u64, ErrorCode::LimitExceeded),
        ((1 << 30) + 1, ErrorCode::LimitExceeded),
        (1 << 30, ErrorCode::Truncated),
        (65, ErrorCode::Truncated),
    ] {
        let string = Raw::new(0, 1).string("k").u32(8).u64(len).bytes(&[0; 64]).0;
        assert_eq!(gguf_attack(string).code, code, "string of {len}");
        for (kind, size) in [(0, 1), (4, 4), (8, 8), (12, 8)] {
            let array = Raw::new(0, 1)
                .string("k")
                .u32(9)
                .u32(kind)
                .u64(len)
                .bytes(&[0; 64])
                .0;
            let error = gguf_attack(array);
            assert_eq!(error.code, code, "array of {len} of size {size}");
            assert_eq!(error.tensor.as_deref(), Some("k"));
        }
    }
    let key = Raw::new(0, 1)
        .u64(65536)
        .bytes(&[b'k'; 65536])
        .u32(0)
        .bytes(&[1])
        .pad(0);
    assert_eq!(gguf_attack(key).code, ErrorCode::LimitExceeded);
}

#[test]
fn gguf_malformed_metadata() {
    let nested = Raw::new(0, 1)
        .string("k")
        .u32(9)
        .u32(9)
        .u64(1)
        .u32(9)
        .u64(0)
        .pad(64);
    let empty_key = Raw::new(0, 1).string("").u32(0).pad(64);
    let not_text = Raw::new(0, 1).u64(2).bytes(&[0xff, 0xff]).u32(0).pad(64);
    let twice = Raw::new(0, 2)
        .string("k")
        .u32(0)
        .bytes(&[1])
        .string("k")
        .u32(0)
        .pad(64);
    let kind = Raw::new(0, 1).string("k").u32(13).pad(64);
    let element = Raw::new(0, 1).string("k").u32(9).u32(13).u64(1).pad(64);
    let boolean = Raw::new(0, 1).string("k").u32(7).bytes(&[2]).pad(64);
    let booleans = Raw::new(0, 1)
        .string("k")
        .u32(9)
        .u32(7)
        .u64(2)
        .bytes(&[1, 3])
        .pad(64);
    for bytes in [
        nested, empty_key, not_text, twice, kind, element, boolean, booleans,
    ] {
        assert_eq!(gguf_attack(bytes).code, ErrorCode::Malformed);
    }
}

#[test]
fn gguf_alignment() {
    let with = |raw: Raw| raw.tensor("t", &[8], 0, 0).pad(64);
    let head = Raw::new(1, 1).string("general.alignment");
    for bad in [0, 3, 48, u32::MAX] {
        let error = gguf_attack(with(head.clone().u32(4).u32(bad)));
        assert_eq!(error.code, ErrorCode::Malformed);
        assert_eq!(error.tensor.as_deref(), Some("general.alignment"));
    }
    // another type than u32, whatever the value
    assert_eq!(
        gguf_attack(with(head.clone().u32(10).u64(32))).code,
        ErrorCode::Malformed
    );
    // a power of two that leaves no data section
    assert_eq!(
        gguf_attack(with(head.u32(4).u32(1 << 31))).code,
        ErrorCode::Truncated
    );
}

#[test]
fn gguf_tensor_names() {
    let twice = Raw::new(2, 0)
        .tensor("t", &[8], 0, 0)
        .tensor("t", &[8], 0, 32)
        .pad(64);
    assert_eq!(gguf_attack(twice).code, ErrorCode::Malformed);
    let empty = Raw::new(1, 0).tensor("", &[8], 0, 0).pad(64);
    assert_eq!(gguf_attack(empty).code, ErrorCode::Malformed);
    let long = Raw::new(1, 0)
        .tensor(&"n".repeat(65537), &[8], 0, 0)
        .pad(64);
    assert_eq!(gguf_attack(long).code, ErrorCode::LimitExceeded);
    // terminal escapes of a name are spelled out
    let escape = Raw::new(1, 0).tensor("\u{1b}[2J\n", &[8], 0, 0).pad(0);
    let text = gguf_attack(escape).to_string();
    assert!(
        text.contains(r"\u{1b}[2J\n") && !text.contains('\u{1b}'),
        "{text}"
    );
}

#[test]
fn gguf_shapes() {
    let tensor =
        |sizes: &[u64], kind| gguf_attack(Raw::new(1, 0).tensor("t", sizes, kind, 0).pad(64));
    assert_eq!(tensor(&[], 0).code, ErrorCode::Malformed);
    assert_eq!(tensor(&[1, 1, 1, 1, 1], 0).code, ErrorCode::Malformed);
    assert_eq!(tensor(&[u64::MAX], 0).code, ErrorCode::Malformed);
    assert_eq!(tensor(&[1 << 32, 1 << 32], 0).code, ErrorCode::Malformed);
    assert_eq!(tensor(&[1 << 62], 0).code, ErrorCode::Malformed); // elements fit, bytes do not
    assert_eq!(tensor(&[1 << 60], 0).code, ErrorCode::Truncated);
    assert_eq!(tensor(&[33], 8).code, ErrorCode::Malformed); // not whole blocks
    assert_eq!(tensor(&[17], 0).code, ErrorCode::Truncated); // 68 bytes of 64
    let many = Raw::new(1, 0).string("t").u32(u32::MAX).bytes(&[1; 256]).0;
    assert_eq!(gguf_attack(many).code, ErrorCode::Malformed);

    // a size of zero is a tensor without bytes
    let file = Raw::new(2, 0)
        .tensor("zero", &[4, 0], 0, 0)
        .tensor("t", &[16], 0, 0)
        .pad(64);
    let file = Bench::new().open("zero.gguf", &file).unwrap();
    assert_eq!(file.tensors()[0].shape, [0, 4]);
    assert_eq!(file.tensors()[0].len, 0);
    assert_eq!(file.read(&file.tensors()[1]).unwrap().len(), 64);
}

#[test]
fn gguf_offsets() {
    let pair = |first, second| {
        gguf_attack(
            Raw::new(2, 0)
                .tensor("a", &[8], 0, first)
                .tensor("b", &[8], 0, second)
                .pad(256),
        )
    };
    for (first, second, word) in [
        (0, 0, "overlaps"),
        (0, 64, "gap"),
        (32, 64, "gap"),
        (0, 33, "aligned"),
        (32, 0, "gap"),
        (!31, 0, "gap"),
        (0, !31, "gap"),
    ] {
        let error = pair(first, second);
        assert_eq!(error.code, ErrorCode::Malformed);
        assert!(error.message.contains(word), "{error}");
        assert!(error.tensor.is_some() && error.offset.is_some() && error.hint.is_some());
    }
    // no data section at all
    let none = Raw::new(1, 0).tensor("a", &[8], 0, 0).0;
    assert_eq!(gguf_attack(none).code, ErrorCode::Truncated);
}

#[test]
fn gguf_unknown_types_take_what_lies_between() {
    let bench = Bench::new();
    let bytes = Raw::new(3, 0)
        .tensor("a", &[99], 77, 0)
        .tensor("b", &[8], 0, 96)
        .tensor("c", &[99], 78, 128)
        .pad(128 + 40);
    let file = bench.open("unknown.gguf", &bytes).unwrap();
    let lens: Vec<_> = file.tensors().iter().map(|t| (t.encoding, t.len)).collect();
    assert_eq!(lens[0], (Encoding::Unknown(77), 96));
    assert_eq!(lens[1], (Encoding::Plain(PlainType::F32), 32));
    assert_eq!(lens[2], (Encoding::Unknown(78), 40));

    let pair = |first, second| {
        gguf_attack(
            Raw::new(2, 0)
                .tensor("a", &[9], 77, first)
                .tensor("b", &[9], 77, second)
                .pad(64),
        )
    };
    assert_eq!(pair(0, 0).code, ErrorCode::Truncated); // elements without bytes
    assert_eq!(pair(0, 33).code, ErrorCode::Malformed);
    assert_eq!(pair(0, 96).code, ErrorCode::Truncated);
    assert_eq!(pair(0, !31).code, ErrorCode::Truncated);
}

#[test]
fn gguf_split_files() {
    let bench = Bench::new();
    let whole = bench.path("m.gguf");
    let part = |number: u16, count: u16, total: i32, tensor: &str| {
        let mut plan = WritePlan::default();
        plan.metadata.set(
            "general.architecture",
            MetaValue::text(format!("part {number}")),
        );
        plan.metadata.set("split.no", MetaValue::U16(number));
        plan.metadata.set("split.count", MetaValue::U16(count));
        plan.metadata
            .set("split.tensors.count", MetaValue::I32(total));
        if !tensor.is_empty() {
            plan.tensors
                .push(planned(tensor, Encoding::Plain(PlainType::F32), &[3], 12));
        }
        written(&Gguf, &plan).1
    };
    let put = |number: usize, bytes: &[u8]| {
        let path = Gguf::split_name(&whole, number, 3);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let first = put(0, &part(0, 3, 2, ""));
    assert!(first.ends_with("m-00001-of-00003.gguf"));
    let second = put(1, &part(1, 3, 2, "a"));
    let third = put(2, &part(2, 3, 2, "b"));
    // any part, and the directory
    for path in [&first, &second, &third, &bench.directory.path().to_owned()] {
        let file = open_measured(path, 1000).unwrap();
        assert_eq!(file.parts.len(), 3);
        let places: Vec<_> = file
            .tensors()
            .iter()
            .map(|t| (t.name.as_str(), t.part))
            .collect();
        assert_eq!(places, [("a", 1), ("b", 2)]);
        assert_eq!(
            file.metadata.get("general.architecture"),
            Some(&MetaValue::text("part 0"))
        );
        assert_eq!(file.read(&file.tensors()[1]).unwrap().len(), 12);
    }
    for bad in [
        part(1, 3, 2, "b"),             // wrong number
        part(2, 2, 2, "b"),             // wrong count
        part(2, 3, 3, "b"),             // wrong total here
        part(2, 3, 2, "a"),             // a again
        part(2, 3, 2, ""),              // one tensor too few
        written(&Gguf, &gguf_plan()).1, // no split keys
    ] {
        put(2, &bad);
        let error = open_measured(&first, 5000).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed);
        assert!(error.hint.is_some());
    }
    std::fs::remove_file(&third).unwrap();
    let error = open_measured(&second, 1000).unwrap_err();
    assert_eq!(error.code, ErrorCode::Io);
    assert_eq!(error.file.as_deref(), Some(third.as_path()));
    // a part under another name
    let error = bench.refused("lonely.gguf", &part(1, 3, 2, "a"));
    assert_eq!(error.code, ErrorCode::Malformed);
    assert!(error.hint.unwrap().contains("lonely-00001-of-00003.gguf"));
}

// ---- named attacks: safetensors ----

fn safetensors_bytes(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn safetensors_attack(header: &str, data: usize) -> FormatError {
    Bench::new().refused("attack.safetensors", &safetensors_bytes(header, data))
}

#[test]
fn safetensors_header_length() {
    let bench = Bench::new();
    for (len, code) in [
        (u64::MAX, ErrorCode::LimitExceeded),
        (100_000_001, ErrorCode::LimitExceeded),
        (100_000_000, ErrorCode::Truncated),
        (3, ErrorCode::Truncated),
    ] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert_eq!(bench.refused("m.safetensors", &bytes).code, code, "{len}");
    }
    assert!(
        bench
            .open("m.safetensors", &safetensors_bytes("{}", 0))
            .unwrap()
            .tensors()
            .is_empty()
    );
    assert!(
        bench
            .open("m.safetensors", &safetensors_bytes("{}   ", 0))
            .is_ok()
    );
    assert_eq!(
        bench.refused("m.safetensors", &[]).code,
        ErrorCode::UnknownContainer
    );
}

#[test]
fn safetensors_json() {
    for header in [
        "{",
        "{}}",
        "{\"t\":1}",
        "{\"t\":{}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1]}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,1]}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}",
        "{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        "{\"__metadata__\":{\"a\":1}}",
        "{\"__metadata__\":null}",
        "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}",
        "{\"__metadata__\":{},\"__metadata__\":{}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
    ] {
        let error = safetensors_attack(header, 1);
        assert_eq!(error.code, ErrorCode::Malformed, "{header}");
        assert!(error.offset.is_some(), "{error}");
    }
    // deeper than any recursion limit
    let deep = format!("{{\"t\":{}", "[".repeat(100_000));
    assert_eq!(safetensors_attack(&deep, 0).code, ErrorCode::Malformed);
    // an unknown key of a tensor is skipped, unless it is deeper than the format's own library goes
    let with_unknown_key = |depth| {
        format!(
            "{{\"t\":{{\"x\":{}{},\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let shallow = safetensors_bytes(&with_unknown_key(3), 1);
    assert!(Bench::new().open("m", &shallow).is_ok());
    let deep = safetensors_attack(&with_unknown_key(100_000), 1);
    assert_eq!(deep.code, ErrorCode::Malformed);
    let mut not_text = safetensors_bytes(
        "{\"t \":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        1,
    );
    not_text[11] = 0xff;
    assert_eq!(
        Bench::new().refused("m", &not_text).code,
        ErrorCode::Malformed
    );
}

#[test]
fn safetensors_ranges() {
    let one = |dtype: &str, shape: &str, start: u64, end: u64, data| {
        let header = format!(
            "{{\"t\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}}}"
        );
        let error = safetensors_attack(&header, data);
        assert_eq!(error.tensor.as_deref().unwrap_or("t"), "t");
        error.code
    };
    assert_eq!(one("F32", "[4]", 0, 15, 15), ErrorCode::Malformed); // too short for its shape
    assert_eq!(one("F32", "[4]", 0, 16, 15), ErrorCode::Truncated);
    assert_eq!(one("F32", "[4]", 0, 16, 17), ErrorCode::Malformed); // bytes after it
    assert_eq!(one("F32", "[4]", 4, 20, 20), ErrorCode::Malformed); // a hole before it
    assert_eq!(one("F32", "[4]", 16, 0, 16), ErrorCode::Malformed); // backwards
    assert_eq!(one("F32", "[4]", 0, u64::MAX, 16), ErrorCode::Truncated);
    assert_eq!(
        one("F32", "[4]", u64::MAX, u64::MAX, 16),
        ErrorCode::Truncated
    );
    assert_eq!(
        one("U8", "[4294967296,4294967296]", 0, 0, 0),
        ErrorCode::Malformed
    ); // wraps to 0
    assert_eq!(
        one("F64", "[2305843009213693952]", 0, 0, 0),
        ErrorCode::Malformed
    ); // so does this
    assert_eq!(one("F4", "[4]", 0, 2, 2), ErrorCode::UnknownType);
    assert_eq!(one("F8_E4M3", "[4]", 0, 4, 4), ErrorCode::UnknownType);
    assert_eq!(one("f32", "[4]", 0, 16, 16), ErrorCode::UnknownType);

    let two = |a: (u64, u64), b: (u64, u64)| {
        let t = |n: &str, (s, e): (u64, u64)| {
            format!(
                "\"{n}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{s},{e}]}}",
                e - s
            )
        };
        safetensors_attack(&format!("{{{},{}}}", t("a", a), t("b", b)), 16)
    };
    let overlap = two((0, 9), (8, 16));
    assert_eq!(
        (overlap.code, overlap.tensor.as_deref()),
        (ErrorCode::Malformed, Some("b"))
    );
    assert!(overlap.message.contains("overlaps"));
    let same = two((0, 16), (0, 16));
    assert_eq!(
        (same.code, same.tensor.as_deref()),
        (ErrorCode::Malformed, Some("b"))
    );
    let hole = two((0, 7), (8, 16));
    assert!(hole.code == ErrorCode::Malformed && hole.message.contains("hole"));
}

#[test]
fn safetensors_limits() {
    let bench = Bench::new();
    let path = bench.path("m.safetensors");
    std::fs::write(&path, &written(&Safetensors, &safetensors_plan()).1).unwrap();
    let code = |limits: &Limits| open(&path, limits).map(|_| ()).map_err(|e| e.code);
    let limits = Limits::default();
    assert_eq!(code(&limits), Ok(()));
    let exceeded = Err(ErrorCode::LimitExceeded);
    assert_eq!(
        code(&Limits {
            header_bytes: 50,
            ..limits.clone()
        }),
        exceeded
    );
    assert_eq!(
        code(&Limits {
            tensors: 4,
            ..limits.clone()
        }),
        exceeded
    );
    assert_eq!(
        code(&Limits {
            metadata_entries: 1,
            ..limits.clone()
        }),
        exceeded
    );
    assert_eq!(
        code(&Limits {
            name_bytes: 11,
            ..limits
        }),
        exceeded
    );
}

fn shard(tensors: &[&str]) -> Vec<u8> {
    let mut plan = WritePlan::default();
    for name in tensors {
        plan.tensors
            .push(planned(name, Encoding::Plain(PlainType::F32), &[2], 8));
    }
    written(&Safetensors, &plan).1
}

#[test]
fn safetensors_shards() {
    let bench = Bench::new();
    let put = |name: &str, bytes: &[u8]| {
        let path = bench.path(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let index = |map: &str| put("model.safetensors.index.json", map.as_bytes());
    let first = put("model-00001-of-00002.safetensors", &shard(&["z", "a"]));
    let second = put("model-00002-of-00002.safetensors", &shard(&["m"]));
    let path = index(
        "{\n  \"metadata\": {\"total_size\": 24, \"x\": [1, {}]},\n  \"weight_map\": {
        \"m\": \"model-00002-of-00002.safetensors\",
        \"a\": \"model-00001-of-00002.safetensors\",
        \"z\": \"model-00001-of-00002.safetensors\"}\n}\n",
    );
    for way in [&path, &first, &second, &bench.directory.path().to_owned()] {
        let file = open_measured(way, 2000).unwrap();
        let places: Vec<_> = file
            .tensors()
            .iter()
            .map(|t| (t.name.as_str(), t.part))
            .collect();
        assert_eq!(places, [("z", 0), ("a", 0), ("m", 1)]);
        assert_eq!(
            file.parts.iter().map(|p| p.path()).collect::<Vec<_>>(),
            [&first, &second]
        );
    }

    let refused = |map: &str| open_measured(&index(map), 2000).unwrap_err();
    let one = |tensor: &str, file: &str| format!("{{\"weight_map\":{{\"{tensor}\":\"{file}\"}}}}");
    for outside in [
        "../x",
        "..",
        ".",
        "",
        "/etc/passwd",
        "sub/x.safetensors",
        "..\\\\x",
        "c:x",
        "a\\u0000",
    ] {
        let error = refused(&one("t", outside));
        assert_eq!(error.code, ErrorCode::Malformed, "{outside}");
        assert_eq!(error.tensor.as_deref(), Some("t"));
        assert_eq!(error.file.as_deref(), Some(path.as_path()));
    }
    assert_eq!(refused(&one("t", "absent.safetensors")).code, ErrorCode::Io);
    let extra = refused(&one("z", "model-00001-of-00002.safetensors"));
    assert_eq!(
        (extra.code, extra.tensor.as_deref()),
        (ErrorCode::ExtraTensor, Some("a"))
    );
    let missing = refused(
        "{\"weight_map\":{\"m\":\"model-00002-of-00002.safetensors\",\"n\":\"model-00002-of-00002.safetensors\"}}",
    );
    assert_eq!(
        (missing.code, missing.tensor.as_deref()),
        (ErrorCode::MissingTensor, Some("n"))
    );
    put("again.safetensors", &shard(&["m"]));
    let twice = refused(
        "{\"weight_map\":{\"m\":\"again.safetensors\",\"q\":\"model-00002-of-00002.safetensors\"}}",
    );
    assert_eq!(
        (twice.code, twice.tensor.as_deref()),
        (ErrorCode::ExtraTensor, Some("m"))
    );
    for map in [
        "{}",
        "[]",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{}",
        "",
    ] {
        assert_eq!(refused(map).code, ErrorCode::Malformed, "{map}");
    }
    let repeated = "{\"weight_map\":{\"m\":\"a.safetensors\",\"m\":\"b.safetensors\"}}";
    assert_eq!(refused(repeated).code, ErrorCode::Malformed);
    assert_eq!(
        refused("{\"weight_map\":{},\"weight_map\":{}}").code,
        ErrorCode::Malformed
    );
    // a broken shard is named, not its index
    put("model-00002-of-00002.safetensors", &shard(&["m"])[..20]);
    let broken = refused(&one("m", "model-00002-of-00002.safetensors"));
    assert_eq!(
        (broken.code, broken.file),
        (ErrorCode::Truncated, Some(second.into_boxed_path()))
    );
}

// ---- opening ----

#[test]
fn directories() {
    let bench = Bench::new();
    let directory = bench.directory.path();
    let code = || {
        open(directory, &Limits::default())
            .map(|f| f.container)
            .map_err(|e| e.code)
    };
    assert_eq!(code(), Err(ErrorCode::UnknownContainer));
    let gguf = written(&Gguf, &gguf_plan()).1;
    std::fs::write(bench.path("a.gguf"), &gguf).unwrap();
    std::fs::write(bench.path(".b.gguf.partial-1"), b"").unwrap();
    assert_eq!(code(), Ok("gguf"));
    std::fs::write(bench.path("b.gguf"), &gguf).unwrap();
    assert_eq!(code(), Err(ErrorCode::UnknownContainer));
    std::fs::write(bench.path("x.safetensors"), shard(&["a"])).unwrap();
    assert_eq!(code(), Ok("safetensors"));
    std::fs::write(bench.path("y.safetensors"), shard(&["a"])).unwrap();
    assert_eq!(code(), Err(ErrorCode::UnknownContainer));
    std::fs::write(bench.path("model.safetensors"), shard(&["b"])).unwrap();
    assert_eq!(code(), Ok("safetensors"));
}

#[test]
fn files_of_other_kinds() {
    let bench = Bench::new();
    for (bytes, word) in [
        (b"".as_slice(), "empty"),
        (b"\x80\x02 and so on", "PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"<html>", "something else"),
        (b"GGU", "something else"),
    ] {
        let error = bench.refused("model.bin", bytes);
        assert_eq!(error.code, ErrorCode::UnknownContainer);
        assert!(error.message.contains(word), "{error}");
    }
    let absent = open(&bench.path("absent"), &Limits::default()).unwrap_err();
    assert_eq!(absent.code, ErrorCode::Io);
}

// ---- type ids with several layouts ----

#[test]
fn type_ids_with_several_layouts_are_resolved() {
    let pq2_0 = Encoding::Ternary(packing_by_name("pq2_0").unwrap());
    let bench = Bench::new();
    // Prism's first files are these with another id: nothing else in them differs
    let retagged = |tensors: &[(&str, [usize; 2])]| {
        let planned = |&(name, [rows, cols]): &(&str, [usize; 2])| {
            let len = (rows * cols / 128 * 34) as u64;
            planned(name, pq2_0, &[rows, cols], len)
        };
        let plan = WritePlan {
            metadata: Metadata::default(),
            tensors: tensors.iter().map(planned).collect(),
        };
        let (_, mut bytes) = written(&Gguf, &plan);
        for (name, _) in tensors {
            let info = [&1u64.to_le_bytes(), name.as_bytes(), &2u32.to_le_bytes()].concat();
            let found = bytes.windows(info.len()).position(|w| w == info);
            let at = found.unwrap() + info.len() + 16;
            assert_eq!(bytes[at..at + 4], 142u32.to_le_bytes());
            bytes[at..at + 4].copy_from_slice(&42u32.to_le_bytes());
        }
        bytes
    };
    let names = |file: TensorFile| -> Vec<String> {
        let encodings = file.tensors().iter().map(|t| t.encoding.name());
        encodings.collect()
    };
    let two = retagged(&[("a", [16, 128]), ("b", [4, 256])]);
    assert_eq!(
        names(bench.open("m.gguf", &two).unwrap()),
        ["q2_0-g128", "q2_0-g128"]
    );
    // padded, 34 and 36 bytes are the same
    let tiny = retagged(&[("a", [1, 128])]);
    let error = bench.refused("m.gguf", &tiny);
    assert_eq!(error.code, ErrorCode::UnknownType);
    assert_eq!(error.tensor.as_deref(), Some("a"));
    assert!(error.hint.unwrap().contains("--layout"));
    for told in ["q2_0", "q2_0-g128"] {
        let layout = packing_by_name(told);
        let file = open_as(&bench.path("m.gguf"), &Limits::default(), layout).unwrap();
        assert_eq!(names(file), [told]);
    }
    // a tiling that the file records
    let with = |layout: &str| {
        let mut metadata = Metadata::default();
        metadata.set(GGUF_LAYOUT_KEY, MetaValue::text(layout));
        let tl1 = Encoding::Ternary(packing_by_name("tl1").unwrap());
        let tensors = vec![planned("a", tl1, &[64, 64], 1024 + 32)];
        written(&Gguf, &WritePlan { metadata, tensors }).1
    };
    let name = "tl1-64x64=64-64-32";
    assert_eq!(names(bench.open("m.gguf", &with(name)).unwrap()), [name]);
    for (good, bad, code) in [
        ("tl1", "tl9", ErrorCode::Malformed),
        ("tl1-64-64-32", "tl1-96-64-32", ErrorCode::TargetCannotHold),
    ] {
        let mut file = with(good);
        let at = file.windows(good.len()).position(|w| w == good.as_bytes());
        let at = at.unwrap();
        file[at..at + bad.len()].copy_from_slice(bad.as_bytes());
        assert_eq!(bench.refused("m.gguf", &file).code, code);
    }
}

/// A reader could not tell which layout an id means: then the file is not written, unless its metadata say so.
#[test]
fn a_gguf_that_could_be_read_as_another_layout_is_not_written() {
    let bench = Bench::new();
    let q2_0 = Encoding::Ternary(packing_by_name("q2_0").unwrap());
    let plan = |layout: Option<&str>, alignment: u32, columns: usize| {
        let mut metadata = Metadata::default();
        metadata.set("general.alignment", MetaValue::U32(alignment));
        if let Some(layout) = layout {
            metadata.set(GGUF_LAYOUT_KEY, MetaValue::text(layout));
        }
        let tensors = vec![planned("a", q2_0, &[1, columns], columns as u64 / 64 * 18)];
        WritePlan { metadata, tensors }
    };
    // 36 and 34 bytes, or 2304 and 2176, take as much as each other once they are padded
    for (alignment, columns) in [(32, 128), (4096, 8192)] {
        let error = Gguf.header(&plan(None, alignment, columns)).unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold, "{error}");
        assert_eq!(error.tensor.as_deref(), Some("a"));
        assert!(error.message.contains("q2_0, q2_0-g128"), "{error}");
        assert!(error.hint.unwrap().contains(GGUF_LAYOUT_KEY));
        let file = written(&Gguf, &plan(Some("q2_0"), alignment, columns)).1;
        let tensors = bench.open("m.gguf", &file).unwrap();
        assert_eq!(tensors.tensors()[0].encoding.name(), "q2_0");
        // and not as what it is not
        let error = Gguf.header(&plan(Some("q2_0-g128"), alignment, columns));
        let error = error.unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold, "{error}");
        assert!(error.message.contains("read as q2_0-g128"), "{error}");
    }
    // what no padding hides needs no key
    let file = written(&Gguf, &plan(None, 32, 8192)).1;
    let tensors = bench.open("m.gguf", &file).unwrap();
    assert_eq!(tensors.tensors()[0].encoding.name(), "q2_0");
}

// ---- the files of peers ----

#[test]
fn whole_files_of_peers() {
    let directory = vectors_dir().join("gguf-files");
    let manifest = read_json(&directory.join("manifest.json"));
    let entries = manifest["entries"].as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        let name = entry["file"].as_str().unwrap();
        let path = directory.join(name);
        let file = open_measured(&path, entry["bytes"].as_u64().unwrap() as usize).unwrap();
        assert_eq!(file.container, "gguf");
        assert_eq!(
            file.metadata.0.len() as u64,
            entry["n_kv"].as_u64().unwrap(),
            "{name}"
        );
        assert_eq!(
            file.metadata
                .get("general.architecture")
                .and_then(MetaValue::as_str),
            entry["architecture"].as_str()
        );
        let data_offset = entry["data_offset"].as_u64().unwrap();
        let expected = entry["tensors"].as_array().unwrap();
        assert_eq!(file.tensors().len(), expected.len());
        for (found, expected) in file.tensors().iter().zip(expected) {
            assert_eq!(found.name, expected["name"].as_str().unwrap());
            let mut ne: Vec<u64> = found.shape.iter().map(|&size| size as u64).collect();
            ne.reverse();
            assert_eq!(
                serde_json::json!(ne),
                expected["ne"],
                "{name} {}",
                found.name
            );
            assert_eq!(
                found.offset - data_offset,
                expected["offset"].as_u64().unwrap()
            );
            let id = expected["type"].as_u64().unwrap() as u32;
            match found.encoding {
                Encoding::Plain(PlainType::F32) => assert_eq!(id, 0),
                Encoding::Plain(PlainType::F16) => assert_eq!(id, 1),
                Encoding::Ternary(packing) => assert_eq!(packing.gguf_type(), Some(id)),
                // layouts that no packing reads yet
                Encoding::Unknown(unknown) => assert_eq!(unknown, id),
                other => panic!("{name} {}: {other:?}", found.name),
            }
        }
        // every byte belongs to somebody, but for padding
        let last = file.tensors().last().unwrap();
        let end = (last.offset + last.len).next_multiple_of(32);
        assert_eq!(end, entry["bytes"].as_u64().unwrap(), "{name}");
    }
}

/// Truncations and flips of a real header, thinned out: some thousand each.
#[test]
fn whole_files_of_peers_damaged() {
    let bytes = std::fs::read(vectors_dir().join("gguf-files/onebit-tq1_0.gguf")).unwrap();
    let bench = Bench::new();
    for end in (0..4000).step_by(7) {
        bench.refused("m.gguf", &bytes[..end]);
    }
    // the data section is not parsed: keep one page of it to make writing cheap
    let bits = (0..4096 * 8).step_by(13);
    open_flipped(&bytes, bits, |flipped| bench.open("m.gguf", flipped));
}
