//! Every container in memory: what is laid out reads as it was planned, and a file that ends early or has one other byte
//! is an error, or a file whose tensors lie inside.
//!
//! Invariant: no test touches the disk, so that Miri can run all of them.

use super::*;
use crate::encoding::PlainType;
use crate::every;
use crate::packing::packing_by_name;
use crate::source::{Memory, Source};
use crate::tensor_file::{MetaArray, MetaValue};
use bitnet_ternary::BlockType;
use std::sync::Arc;

/// Metadata and tensors of every kind that the container holds.
fn plan_for(container: &dyn Container) -> WritePlan {
    let mut plan = WritePlan::default();
    let mut add = |name: &str, encoding, shape: &[usize], len| {
        plan.tensors.push(PlannedTensor {
            name: name.to_owned(),
            encoding,
            shape: shape.to_vec(),
            len,
        });
    };
    add("a", Encoding::Plain(PlainType::F32), &[2, 3], 24);
    add("layers.0.b", Encoding::Plain(PlainType::F16), &[5], 10);
    add("c", Encoding::Plain(PlainType::I8), &[3, 1, 7], 21);
    match container.name() {
        "gguf" => {
            let tq2_0 = packing_by_name("tq2_0").unwrap();
            add("trits", Encoding::Ternary(tq2_0), &[2, 256], 132);
            add("blocks", Encoding::Block(BlockType::Q8_0), &[1, 64], 68);
            let entries = [
                ("general.architecture", MetaValue::text("llama")),
                ("n", MetaValue::U32(7)),
                ("x", MetaValue::F64(0.5)),
                ("ids", MetaValue::Array(MetaArray::I32(vec![-1, 2]))),
                (
                    "words",
                    MetaValue::Array(MetaArray::String(["a", "", "bc"].iter().collect())),
                ),
            ];
            for (key, value) in entries {
                plan.metadata.set(key, value);
            }
        }
        "safetensors" => plan.metadata.set("format", MetaValue::text("pt")),
        _ => {}
    }
    plan
}

/// Byte `at` of tensor `number`.
fn byte_of(number: usize, at: u64) -> u8 {
    (at as u8).wrapping_mul(7).wrapping_add(number as u8)
}

fn written(container: &dyn Container, plan: &WritePlan) -> (Header, Vec<u8>) {
    let header = container.header(plan).unwrap();
    let mut bytes = header.bytes.clone();
    let mut frames = header.frames.clone();
    for (number, (tensor, offset)) in plan.tensors.iter().zip(&header.offsets).enumerate() {
        bytes.resize(*offset as usize, 0);
        let data: Vec<u8> = (0..tensor.len).map(|at| byte_of(number, at)).collect();
        bytes.extend(&data);
        if let Some(frames) = &mut frames {
            frames.update(&data);
            bytes.extend(frames.next_tensor());
        }
    }
    bytes.resize(header.total as usize, 0);
    (header, bytes)
}

fn read(container: &dyn Container, bytes: &[u8]) -> Result<TensorFile, FormatError> {
    let source: Arc<dyn Source> = Arc::new(Memory::new("in memory", bytes.to_vec()));
    let open = |_: &Path| Ok(source.clone());
    let limits = Limits::default();
    let how = Reading {
        open: &open,
        ..Reading::new(&limits)
    };
    container.read_with(Path::new("in memory"), &how)
}

#[test]
fn what_is_laid_out_in_memory_reads_as_planned() {
    for container in CONTAINERS {
        let plan = plan_for(*container);
        let (header, bytes) = written(*container, &plan);
        assert!(container.recognises(&bytes), "{}", container.name());
        let file = read(*container, &bytes).unwrap();
        assert_eq!(file.metadata, plan.metadata, "{}", container.name());
        assert_eq!(file.tensors().len(), plan.tensors.len());
        for (number, (tensor, offset)) in plan.tensors.iter().zip(&header.offsets).enumerate() {
            let info = file.tensor(&tensor.name).unwrap();
            assert_eq!((info.offset, info.len), (*offset, tensor.len));
            assert_eq!(info.encoding, tensor.encoding);
            assert_eq!(info.shape, tensor.shape);
            let data: Vec<u8> = (0..tensor.len).map(|at| byte_of(number, at)).collect();
            assert_eq!(file.read(info).unwrap(), data);
        }
    }
}

#[test]
fn damaged_files_in_memory_are_errors_or_have_their_tensors_inside() {
    for container in CONTAINERS {
        let (_, bytes) = written(*container, &plan_for(*container));
        let mut refused = 0;
        let mut check = |bytes: &[u8]| match read(*container, bytes) {
            Err(_) => refused += 1,
            Ok(file) => {
                for info in file.tensors() {
                    let end = info.offset.checked_add(info.len).unwrap();
                    assert!(end <= bytes.len() as u64, "{info:?}");
                    assert_eq!(file.read(info).unwrap().len() as u64, info.len);
                }
                let unread = container.unread(&file).unwrap_or_default();
                assert!(unread.iter().all(|u| u.range.end <= bytes.len() as u64));
            }
        };
        for len in (0..bytes.len()).step_by(every(211)) {
            check(&bytes[..len]);
        }
        let mut damaged = bytes.clone();
        for at in (0..bytes.len()).step_by(every(151)) {
            for change in [1, 0x80, 0xff] {
                damaged[at] ^= change;
                check(&damaged);
                damaged[at] ^= change;
            }
        }
        let tries = bytes.len().div_ceil(every(211));
        assert!(refused >= tries, "{}: {refused}", container.name());
    }
}
