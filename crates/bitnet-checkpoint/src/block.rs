//! What a layer is made of: a mixer, which looks at other positions, and an MLP, which looks at each by itself.
//!
//! Invariant: the tensors of a layer, their order and their shapes follow from its block alone. Whatever walks
//! layers asks the block; no list of tensors stands anywhere else.

use crate::slot::LayerSlot;

/// The MLP's activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `relu(x)^2`, BitNet b1.58 2B4T (`relu2`).
    Relu2,
    /// `x * sigmoid(x)`, Llama, Falcon, 1bitLLM (`silu`).
    Silu,
    /// The tanh form of GELU, Gemma 3 (`gelu_pytorch_tanh`).
    GeluTanh,
}

impl Activation {
    /// As `config.json` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relu2 => "relu2",
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// One decoder layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// What looks at other positions.
    pub mixer: Mixer,
    /// What looks at each position by itself.
    pub mlp: Mlp,
}

/// The first half of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// Softmax attention to keys and values.
    Attention(Attention),
}

/// The second half of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated(Gated),
}

/// Sizes and wiring of grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides the query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Times attention scores.
    pub factor: f32,
    /// Tokens that a token sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Whether q, k and v each have an input norm of their own.
    pub input_norms: bool,
    /// Whether every head of queries and keys is normed before rotation.
    pub head_norms: bool,
    /// Whether `o_proj` has an input norm.
    pub sub_norm: bool,
    /// Whether what it adds to the residual stream is normed first.
    pub branch_norm: bool,
}

/// Sizes and wiring of the gated MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gated {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// The activation function.
    pub act: Activation,
    /// Whether gate and up each have an input norm of their own.
    pub input_norms: bool,
    /// Whether `down_proj` has an input norm.
    pub sub_norm: bool,
    /// Whether what it adds to the residual stream is normed first.
    pub branch_norm: bool,
}

impl Block {
    /// Its tensors with their shapes, outermost first, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(LayerSlot, Vec<usize>)> {
        let Mixer::Attention(attention) = self.mixer;
        let Mlp::Gated(gated) = self.mlp;
        let tensors = attention.tensors().into_iter().chain(gated.tensors());
        tensors
            .filter_map(|(there, slot, shape)| there.then_some((slot, shape)))
            .collect()
    }

    /// Its ternary linears, in the order of the forward pass.
    pub fn linears(&self) -> Vec<LayerSlot> {
        let slots = self.tensors().into_iter().map(|(slot, _)| slot);
        slots.filter(|slot| slot.is_ternary()).collect()
    }

    /// The shape of a tensor, outermost first, whether or not this block has it; `None` if no block of this kind
    /// does.
    pub fn shape(&self, slot: LayerSlot) -> Option<Vec<usize>> {
        let Mixer::Attention(attention) = self.mixer;
        let Mlp::Gated(gated) = self.mlp;
        let mut tensors = attention.tensors().into_iter().chain(gated.tensors());
        tensors
            .find(|(_, found, _)| *found == slot)
            .map(|(_, _, shape)| shape)
    }
}

/// Whether a block has a tensor, which one, and its shape.
type Place = (bool, LayerSlot, Vec<usize>);

impl Attention {
    /// Width of the queries of all heads.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys, and of the values, of all heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn tensors(&self) -> [Place; 12] {
        use LayerSlot::*;
        let (hidden, width, kv) = (self.hidden_size, self.width(), self.kv_width());
        let (own, heads) = (self.input_norms, self.head_norms);
        [
            (true, InputNorm, vec![hidden]),
            (own, QProjNorm, vec![hidden]),
            (true, QProj, vec![width, hidden]),
            (own, KProjNorm, vec![hidden]),
            (true, KProj, vec![kv, hidden]),
            (own, VProjNorm, vec![hidden]),
            (true, VProj, vec![kv, hidden]),
            (heads, QNorm, vec![self.head_dim]),
            (heads, KNorm, vec![self.head_dim]),
            (self.sub_norm, AttnSubNorm, vec![width]),
            (true, OProj, vec![hidden, width]),
            (self.branch_norm, AttnBranchNorm, vec![hidden]),
        ]
    }
}

impl Gated {
    fn tensors(&self) -> [Place; 8] {
        use LayerSlot::*;
        let (hidden, inter, own) = (self.hidden_size, self.intermediate_size, self.input_norms);
        [
            (true, PostAttentionNorm, vec![hidden]),
            (own, GateProjNorm, vec![hidden]),
            (true, GateProj, vec![inter, hidden]),
            (own, UpProjNorm, vec![hidden]),
            (true, UpProj, vec![inter, hidden]),
            (self.sub_norm, FfnSubNorm, vec![inter]),
            (true, DownProj, vec![hidden, inter]),
            (self.branch_norm, FfnBranchNorm, vec![hidden]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(all: bool) -> Block {
        Block {
            mixer: Mixer::Attention(Attention {
                hidden_size: 64,
                heads: 6,
                kv_heads: 2,
                head_dim: 20,
                factor: 0.5,
                window: None,
                input_norms: all,
                head_norms: all,
                sub_norm: all,
                branch_norm: all,
            }),
            mlp: Mlp::Gated(Gated {
                hidden_size: 64,
                intermediate_size: 96,
                act: Activation::Silu,
                input_norms: all,
                sub_norm: all,
                branch_norm: all,
            }),
        }
    }

    #[test]
    fn tensors_and_shapes_are_those_of_the_wiring() {
        use LayerSlot::*;
        let plain = [
            (InputNorm, vec![64]),
            (QProj, vec![120, 64]),
            (KProj, vec![40, 64]),
            (VProj, vec![40, 64]),
            (OProj, vec![64, 120]),
            (PostAttentionNorm, vec![64]),
            (GateProj, vec![96, 64]),
            (UpProj, vec![96, 64]),
            (DownProj, vec![64, 96]),
        ];
        assert_eq!(block(false).tensors(), plain);
        let all = block(true);
        assert_eq!(all.tensors().len(), 20);
        for (slot, shape) in all.tensors() {
            assert_eq!(all.shape(slot).as_ref(), Some(&shape));
            // a tensor that the block lacks has the shape that it would have
            assert_eq!(block(false).shape(slot), Some(shape));
        }
        assert_eq!(all.shape(FfnSubNorm), Some(vec![96]));
        assert_eq!(
            all.linears(),
            [QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj]
        );
    }
}
