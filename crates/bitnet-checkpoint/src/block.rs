//! What a layer is made of: a mixer, which looks at other positions, and an MLP, which looks at each by itself.
//!
//! Invariant: the tensors of a layer, their order and their shapes follow from its block alone. Whatever walks
//! layers asks the block; no list of tensors stands anywhere else.

use crate::slot::{ExpertLinear, LayerSlot};

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
    /// A recurrent state that every token decays, corrects and reads.
    GatedDeltaNet(GatedDeltaNet),
}

/// The second half of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated(Gated),
    /// Some of many gated MLPs, chosen for each token.
    Experts(Experts),
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
    /// Dimensions of a head that are rotated, the first ones; 0: none.
    pub rotary_dim: usize,
    /// Whether q, k and v each have an input norm of their own.
    pub input_norms: bool,
    /// Whether q, k and v have biases.
    pub biases: bool,
    /// Whether every head of queries and keys is normed.
    pub head_norms: bool,
    /// Whether heads are normed after rotation; before it otherwise.
    pub norms_after_rope: bool,
    /// Whether `o_proj` has an input norm.
    pub sub_norm: bool,
    /// Whether what it adds to the residual stream is normed first.
    pub branch_norm: bool,
    /// Whether `q_proj` has a gate behind the query of every head, whose sigmoid multiplies what the head found.
    pub output_gate: bool,
}

/// Sizes of a Gated DeltaNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatedDeltaNet {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads of queries and keys; divides the value heads.
    pub key_heads: usize,
    /// Heads of values; each has a state of its own.
    pub value_heads: usize,
    /// Width of a query and of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Taps of the convolution over queries, keys and values, the current token's included.
    pub conv_kernel: usize,
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

/// Sizes and wiring of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Experts.
    pub count: usize,
    /// Experts that each token goes to.
    pub used: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// The activation function.
    pub act: Activation,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalize: bool,
    /// What bounds the gate from above and the other factor on both sides, in front of the activation function.
    pub clamp: Option<f32>,
}

impl Block {
    /// Its tensors with their shapes, outermost first, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(LayerSlot, Vec<usize>)> {
        let tensors = self.places().into_iter();
        tensors
            .filter_map(|(there, slot, shape)| there.then_some((slot, shape)))
            .collect()
    }

    /// Its ternary linears, in the order of the forward pass.
    pub fn linears(&self) -> Vec<LayerSlot> {
        let slots = self.tensors().into_iter().map(|(slot, _)| slot);
        slots.filter(|slot| slot.is_ternary()).collect()
    }

    /// Linears that read the same input, group by group.
    pub fn shared_inputs(&self) -> Vec<Vec<LayerSlot>> {
        use LayerSlot::*;
        let mut groups = Vec::new();
        match self.mixer {
            Mixer::Attention(attention) if attention.input_norms => {}
            Mixer::Attention(_) => groups.push(vec![QProj, KProj, VProj]),
            Mixer::GatedDeltaNet(_) => groups.push(vec![InProjQkv, InProjZ]),
        }
        match self.mlp {
            Mlp::Gated(gated) if gated.input_norms => {}
            Mlp::Gated(_) => groups.push(vec![GateProj, UpProj]),
            Mlp::Experts(_) => {
                // all experts read what the router reads
                let reads_input = |slot: &LayerSlot| matches!(slot, Expert(_, linear) if *linear != ExpertLinear::Down);
                groups.push(self.linears().into_iter().filter(reads_input).collect());
            }
        }
        groups
    }

    /// The shape of a tensor, outermost first, whether or not this block has it; `None` if no block of this kind
    /// does.
    pub fn shape(&self, slot: LayerSlot) -> Option<Vec<usize>> {
        // one of thousands is not looked for among them
        if let Mlp::Experts(experts) = self.mlp
            && let Some(shape) = experts.shape(slot)
        {
            return Some(shape);
        }
        let mut tensors = self.places().into_iter();
        tensors
            .find(|(_, found, _)| *found == slot)
            .map(|(_, _, shape)| shape)
    }

    /// Every tensor that a block of this kind may have, in the order of the forward pass.
    fn places(&self) -> Vec<Place> {
        let mut places = match self.mixer {
            Mixer::Attention(attention) => attention.tensors().to_vec(),
            Mixer::GatedDeltaNet(delta) => delta.tensors().to_vec(),
        };
        match self.mlp {
            Mlp::Gated(gated) => places.extend(gated.tensors()),
            Mlp::Experts(experts) => places.extend(experts.tensors()),
        }
        places
    }
}

/// Whether a block has a tensor, which one, and its shape.
type Place = (bool, LayerSlot, Vec<usize>);

impl Attention {
    /// Width of the queries of all heads.
    pub fn width(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Width of the keys, and of the values, of all heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    fn tensors(&self) -> [Place; 15] {
        use LayerSlot::*;
        let (hidden, width, kv) = (self.hidden_size, self.width(), self.kv_width());
        let (own, heads) = (self.input_norms, self.head_norms);
        let queries = match self.output_gate {
            true => 2 * width,
            false => width,
        };
        let biases = self.biases;
        [
            (true, InputNorm, vec![hidden]),
            (own, QProjNorm, vec![hidden]),
            (true, QProj, vec![queries, hidden]),
            (biases, QBias, vec![queries]),
            (own, KProjNorm, vec![hidden]),
            (true, KProj, vec![kv, hidden]),
            (biases, KBias, vec![kv]),
            (own, VProjNorm, vec![hidden]),
            (true, VProj, vec![kv, hidden]),
            (biases, VBias, vec![kv]),
            (heads, QNorm, vec![self.head_dim]),
            (heads, KNorm, vec![self.head_dim]),
            (self.sub_norm, AttnSubNorm, vec![width]),
            (true, OProj, vec![hidden, width]),
            (self.branch_norm, AttnBranchNorm, vec![hidden]),
        ]
    }
}

impl GatedDeltaNet {
    /// Width of the queries, and of the keys, of all heads.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of the values of all heads.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Value heads that read one key head.
    pub fn repeats(&self) -> usize {
        self.value_heads / self.key_heads.max(1)
    }

    fn tensors(&self) -> [Place; 10] {
        use LayerSlot::*;
        let (hidden, values) = (self.hidden_size, self.value_width());
        let (channels, heads) = (self.channels(), self.value_heads);
        [
            (true, InputNorm, vec![hidden]),
            (true, InProjQkv, vec![channels, hidden]),
            (true, InProjZ, vec![values, hidden]),
            (true, InProjB, vec![heads, hidden]),
            (true, InProjA, vec![heads, hidden]),
            (true, Conv1d, vec![channels, self.conv_kernel]),
            (true, ALog, vec![heads]),
            (true, DtBias, vec![heads]),
            (true, GatedNorm, vec![self.value_dim]),
            (true, OutProj, vec![hidden, values]),
        ]
    }
}

impl Experts {
    fn tensors(&self) -> Vec<Place> {
        let experts = (0..self.count)
            .flat_map(|expert| ExpertLinear::ALL.map(|linear| LayerSlot::expert(expert, linear)));
        let slots = [LayerSlot::PostAttentionNorm, LayerSlot::Router];
        let slots = slots.into_iter().chain(experts);
        slots
            .filter_map(|slot| Some((true, slot, self.shape(slot)?)))
            .collect()
    }

    fn shape(&self, slot: LayerSlot) -> Option<Vec<usize>> {
        let (hidden, inter) = (self.hidden_size, self.intermediate_size);
        match slot {
            LayerSlot::PostAttentionNorm => Some(vec![hidden]),
            LayerSlot::Router => Some(vec![self.count, hidden]),
            LayerSlot::Expert(expert, _) if usize::from(expert) >= self.count => None,
            LayerSlot::Expert(_, ExpertLinear::Down) => Some(vec![hidden, inter]),
            LayerSlot::Expert(..) => Some(vec![inter, hidden]),
            _ => None,
        }
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
                biases: all,
                head_norms: all,
                norms_after_rope: false,
                sub_norm: all,
                branch_norm: all,
                rotary_dim: 20,
                output_gate: false,
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
    fn experts_have_three_linears_each_and_a_router() {
        let experts = Block {
            mlp: Mlp::Experts(Experts {
                hidden_size: 64,
                count: 3,
                used: 2,
                intermediate_size: 32,
                act: Activation::Silu,
                normalize: true,
                clamp: None,
            }),
            ..block(false)
        };
        let tensors = experts.tensors();
        assert_eq!(tensors.len(), 5 + 2 + 9);
        for (slot, shape) in &tensors {
            assert_eq!(experts.shape(*slot).as_ref(), Some(shape), "{slot:?}");
        }
        let last = LayerSlot::Expert(2, ExpertLinear::Down);
        assert_eq!(tensors.last(), Some(&(last, vec![64, 32])));
        assert_eq!(last.canonical(), "mlp.experts.2.down_proj");
        assert_eq!(experts.shape(LayerSlot::Router), Some(vec![3, 64]));
        assert_eq!(experts.shape(LayerSlot::expert(3, ExpertLinear::Up)), None);
        assert_eq!(experts.shape(LayerSlot::GateProj), None);
        assert_eq!(experts.linears().len(), 4 + 9);
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
        assert_eq!(all.tensors().len(), 23);
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

    #[test]
    fn a_delta_net_has_states_of_value_heads_and_a_gated_head_two_runs_of_rows() {
        use LayerSlot::*;
        let delta = GatedDeltaNet {
            hidden_size: 64,
            key_heads: 2,
            value_heads: 6,
            key_dim: 8,
            value_dim: 16,
            conv_kernel: 4,
        };
        assert_eq!((delta.channels(), delta.repeats()), (2 * 16 + 96, 3));
        let mut hybrid = block(false);
        hybrid.mixer = Mixer::GatedDeltaNet(delta);
        assert_eq!(hybrid.shape(InProjQkv), Some(vec![128, 64]));
        assert_eq!(hybrid.shape(Conv1d), Some(vec![128, 4]));
        assert_eq!(hybrid.shape(GatedNorm), Some(vec![16]));
        assert_eq!(hybrid.shape(QProj), None);
        assert_eq!(
            hybrid.linears(),
            [InProjQkv, InProjZ, OutProj, GateProj, UpProj, DownProj]
        );
        let mut gated = block(false);
        if let Mixer::Attention(attention) = &mut gated.mixer {
            attention.output_gate = true;
        }
        assert_eq!(gated.shape(QProj), Some(vec![240, 64]));
        assert_eq!(gated.shape(OProj), Some(vec![64, 120]));
    }
}
