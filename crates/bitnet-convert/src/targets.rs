//! What `--to` can name: one row per target.
//!
//! Invariant: a target is a container and a way of storing the linears; everything else (names,
//! metadata, dense tensors) follows from those two and the family. Adding a packing that GGUF can
//! hold is one row here.

use bitnet_checkpoint::Form;
use bitnet_checkpoint::rows::{Affine, Floats, GpuInt2, HfU8, Master, Packed, Tiles};
use bitnet_formats::{Container, Gguf, Packing, PlainType};

/// The kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One `.gguf` file, or several when split.
    Gguf,
    /// A checkpoint directory: weights, `config.json`, tokenizer.
    HuggingFace,
}

/// A container and a way of storing the linears.
#[derive(Debug)]
pub struct Target {
    /// The value of `--to`.
    pub name: &'static str,
    /// The kind of output.
    pub kind: Kind,
    /// How the linears are stored.
    pub form: Form,
    /// One line for `list`.
    pub about: &'static str,
}

impl Target {
    /// The packing of the linears, if they are packed.
    pub fn packing(&self) -> Option<&'static dyn Packing> {
        self.form.packing()
    }

    /// The packing of a linear, which group scales may change.
    pub fn packing_for(&self, grouped: bool) -> Option<&'static dyn Packing> {
        self.form.writer.packing_for(&self.form, grouped)
    }

    /// The packing in which readers of the target look rows up by token, too: embeddings and output head
    /// that are ternary stay so.
    pub fn table_packing(&self) -> Option<&'static dyn Packing> {
        self.form.writer.table_packing(&self.form)
    }

    /// `gguf`, `safetensors` or `pytorch`.
    pub fn container(&self) -> &'static str {
        match self.kind {
            Kind::Gguf => Gguf.name(),
            Kind::HuggingFace => self.form.writer.directory_container(),
        }
    }

    /// Whether the rows of q and k stand in the order of paired rotary dimensions, in a family that GGUF
    /// has (or has not) so.
    pub fn permutes_qk(&self, in_gguf: bool) -> bool {
        match self.kind {
            Kind::Gguf => in_gguf,
            Kind::HuggingFace => self.form.writer.is_fused(),
        }
    }

    /// `general.file_type` of a GGUF file (llama.cpp's `LLAMA_FTYPE`).
    pub fn gguf_file_type(&self) -> Option<u32> {
        match self.kind {
            Kind::Gguf => self.form.writer.gguf_file_type(&self.form),
            Kind::HuggingFace => None,
        }
    }
}

/// Every target.
pub static TARGETS: &[Target] = &[
    Target {
        name: "gguf-i2_s",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "i2_s"),
        about: "2 bits and one f32 scale per tensor; bitnet.cpp",
    },
    Target {
        name: "gguf-tq2_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "tq2_0"),
        about: "2.06 bits, f16 scale per 256; llama.cpp",
    },
    Target {
        name: "gguf-tq1_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "tq1_0"),
        about: "1.69 bits, f16 scale per 256; llama.cpp",
    },
    Target {
        name: "gguf-iq2_bn",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "iq2_bn"),
        about: "2 bits and one f32 scale per row; ik_llama.cpp, from 512 columns",
    },
    Target {
        name: "gguf-iq2_bn_r4",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "iq2_bn_r4"),
        about: "iq2_bn with four rows interleaved; ik_llama.cpp, not repacked on loading",
    },
    Target {
        name: "gguf-iq1_bn",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "iq1_bn"),
        about: "1.63 bits, f16 scale per row; ik_llama.cpp, from 512 columns",
    },
    Target {
        name: "gguf-q2_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "q2_0"),
        about: "2.25 bits, f16 scale per 64; llama.cpp",
    },
    Target {
        name: "gguf-pq2_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "pq2_0"),
        about: "2.13 bits, f16 scale per 128; PrismML's llama.cpp",
    },
    Target {
        name: "gguf-ptq1_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "ptq1_0"),
        about: "1.75 bits, f16 scale per 128; PrismML's llama.cpp",
    },
    Target {
        name: "gguf-stq1_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "stq1_0"),
        about: "1.31 bits, f16 scale per 256, one zero in four; llama.cpp with PR 22836",
    },
    Target {
        name: "gguf-q1_0",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "q1_0"),
        about: "1.13 bits, f16 scale per 128, no zeros; llama.cpp",
    },
    Target {
        name: "gguf-tl1",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "tl1"),
        about: "2 bits in tiles, one f32 scale per tensor; bitnet.cpp on ARM",
    },
    Target {
        name: "gguf-tl2",
        kind: Kind::Gguf,
        form: Form::packed(&Packed, "tl2"),
        about: "1.67 bits in tiles, one f32 scale per tensor; bitnet.cpp on x86",
    },
    Target {
        name: "gguf-f32",
        kind: Kind::Gguf,
        form: Form::numbers(&Floats, PlainType::F32),
        about: "dequantized to f32, always exact",
    },
    Target {
        name: "gguf-f16",
        kind: Kind::Gguf,
        form: Form::numbers(&Floats, PlainType::F16),
        about: "dequantized to f16",
    },
    Target {
        name: "gguf-bf16",
        kind: Kind::Gguf,
        form: Form::numbers(&Floats, PlainType::Bf16),
        about: "dequantized to bf16",
    },
    Target {
        name: "hf-packed",
        kind: Kind::HuggingFace,
        form: Form::packed(&HfU8, "hf_u8"),
        about: "transformers' packed uint8 with weight_scale, 2 bits",
    },
    Target {
        name: "packed",
        kind: Kind::HuggingFace,
        form: Form::packed(&Tiles, "tile32-1.6bit"),
        about: "1.6 bits in tiles, f32 scales of any structure; mapped by amx_int8, avx512_vbmi",
    },
    Target {
        name: "packed-2bit",
        kind: Kind::HuggingFace,
        form: Form::packed(&Tiles, "tile32-2bit"),
        about: "2 bits in tiles, f32 scales of any structure; mapped by avx512_vnni, avx_vnni, avx2, ssse3, neon_dotprod, neon",
    },
    Target {
        name: "mlx-2bit",
        kind: Kind::HuggingFace,
        form: Form::packed(&Affine, "mlx_2bit"),
        about: "2 bits, f16 or bf16 scale and bias per 128 or fewer; mlx",
    },
    Target {
        name: "ms-gpu-int2",
        kind: Kind::HuggingFace,
        form: Form::packed(&GpuInt2, "ms_gpu_int2"),
        about: "2 bits in tiles, one bf16 scale per matrix, 2B4T's network only; bitnet.cpp on GPUs",
    },
    Target {
        name: "hf-bf16",
        kind: Kind::HuggingFace,
        form: Form::numbers(&Master, PlainType::Bf16),
        about: "master weights as they are, otherwise dequantized to bf16",
    },
    Target {
        name: "hf-f16",
        kind: Kind::HuggingFace,
        form: Form::numbers(&Floats, PlainType::F16),
        about: "dequantized to f16; what PrismML's converter takes, with hadamard_packing.json if rotated",
    },
];

/// What `.gguf` without `--to` tries, best first: what every known reader of BitNet files takes, then those with finer
/// scales (one bit before two, llama.cpp before its forks), then the one that holds anything.
pub static GGUF_PREFERENCE: [&str; 9] = [
    "gguf-i2_s",
    "gguf-tq2_0",
    "gguf-tq1_0",
    "gguf-q1_0",
    "gguf-q2_0",
    "gguf-pq2_0",
    "gguf-ptq1_0",
    "gguf-iq2_bn",
    "gguf-f32",
];

/// The target of this name.
pub fn by_name(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_writable_packing_that_its_container_holds() {
        for target in TARGETS {
            if let Some(packing) = target.packing() {
                let name = target.name;
                assert!(packing.is_writable(), "{name}");
                assert_eq!(
                    packing.gguf_type().is_some(),
                    target.kind == Kind::Gguf,
                    "{name}"
                );
            }
            assert_eq!(target.gguf_file_type().is_some(), target.kind == Kind::Gguf);
        }
        let packed = TARGETS.iter().filter(|t| t.packing().is_some()).count();
        let numbers = TARGETS.iter().filter(|t| t.form.packing.is_none()).count();
        assert_eq!(packed + numbers, TARGETS.len());
        for name in GGUF_PREFERENCE {
            assert!(
                by_name(name).is_some_and(|t| t.kind == Kind::Gguf),
                "{name}"
            );
        }
    }
}
