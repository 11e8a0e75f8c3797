//! What an explanation holds. Serialised, it is what the page reads.

use super::Bias;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

/// Numbers in row-major order. In JSON: `{"shape": [...], "f32": "base64 of little-endian numbers"}`, which is a third of the
/// digits' length and loses nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The numbers, as many as the product of `shape`.
    pub data: Vec<f32>,
}

impl Serialize for Array {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Encoded<'a> {
            shape: &'a [usize],
            f32: String,
        }
        let bytes: Vec<u8> = self.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Encoded { shape: &self.shape, f32: STANDARD.encode(bytes) }.serialize(serializer)
    }
}

/// A model's attention on one text, or on two, or before and after a change.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// `conjure.attention/1`.
    pub format: &'static str,
    /// The model's name, for the title.
    pub model: String,
    /// Family of the model, in words.
    pub family: String,
    /// Layers of the model.
    pub layers: usize,
    /// What is shown first.
    pub focus: Focus,
    /// The original, then what it is compared with.
    pub runs: Vec<Run>,
}

/// What a page shows first. All are counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Focus {
    /// Index in [`Run::attentions`].
    pub attention: usize,
    /// Layer.
    pub layer: usize,
    /// Head.
    pub head: usize,
    /// Position whose row is shown.
    pub token: usize,
    /// In the run to compare with, if there is one.
    pub compared_token: Option<usize>,
}

/// Why a run is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The text that was asked for.
    Original,
    /// Another text beside it.
    Compared,
    /// The same text with words hidden or heads switched off.
    Changed,
}

/// One pass of one text through the model.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Why it is there.
    pub role: Role,
    /// The text.
    pub text: String,
    /// What was changed; only where `role` is [`Role::Changed`].
    pub change: Option<Change>,
    /// The sequences of tokens: one, or input and output.
    pub sequences: Vec<Sequence>,
    /// The kinds of attention that the model has.
    pub attentions: Vec<Attention>,
    /// What the model would say next, where it has a head for that; later positions come last.
    pub predictions: Vec<Prediction>,
    /// For each token of the first sequence, the cosine between the last layer's output here and in the original; only of a
    /// changed run.
    pub output_cosines: Vec<f32>,
    /// The cosine between the text's embedding here and that of the original; only where the model embeds texts.
    pub embedding_cosine: Option<f32>,
}

/// What is different from the original.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Change {
    /// Positions of the first sequence that no other position sees, in any layer.
    pub hidden: Vec<usize>,
    /// Layer and head of the heads that add nothing.
    pub silent: Vec<(usize, usize)>,
}

/// Tokens in a row.
#[derive(Clone, Debug, Serialize)]
pub struct Sequence {
    /// `Input` or `Output`.
    pub name: String,
    /// The tokens.
    pub tokens: Vec<Token>,
}

/// A token.
#[derive(Clone, Debug, Serialize)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// What it spells, without spaces around.
    pub text: String,
}

/// Which positions an attention connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every position of a sequence sees every other.
    #[serde(rename = "self")]
    Full,
    /// Every position sees itself and earlier ones.
    Causal,
    /// One sequence sees another.
    Cross,
}

/// One kind of attention in all its layers.
#[derive(Clone, Debug, Serialize)]
pub struct Attention {
    /// As tensor2tensor says it: `Input - Input`.
    pub name: String,
    /// Which positions it connects.
    pub kind: Kind,
    /// The sequence that looks: index in [`Run::sequences`].
    pub queries: usize,
    /// The sequence that is looked at.
    pub keys: usize,
    /// The layers in order.
    pub layers: Vec<Layer>,
}

/// One layer's attention.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Its path in the model, the prefix of its checkpoint keys.
    pub path: String,
    /// Heads.
    pub heads: usize,
    /// Heads of keys and values; head `h` reads `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Features per head of queries and keys.
    pub head_dim: usize,
    /// Features per head of values.
    pub value_dim: usize,
    /// Positions that look.
    pub time: usize,
    /// Positions that are looked at.
    pub source: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// `c` where scores become `c tanh(score / c)` after scaling.
    pub soft_cap: Option<f64>,
    /// What is added to the scores.
    pub bias: Bias,
    /// Norms of the values after the head's part of the output projection, `(heads, source)`: Kobayashi et al. 2020, equation 4.
    pub norms: Array,
    /// What follows is there unless the text is so long that the page would be too large.
    pub whole: Option<Whole>,
    /// Small pictures of the heads, where they are too many numbers to draw from `whole`.
    pub thumbnails: Option<Thumbnails>,
}

/// All numbers from which a layer's attention is computed again, and what the model itself computed.
#[derive(Clone, Debug, Serialize)]
pub struct Whole {
    /// Queries as they enter the product, `(heads, time, head_dim)`.
    pub q: Array,
    /// Keys, `(kv_heads, source, head_dim)`.
    pub k: Array,
    /// Values, `(kv_heads, source, value_dim)`.
    pub v: Array,
    /// What the model computed itself.
    pub recorded: Recorded,
}

/// The model's own numbers, to compare with.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// The positions whose rows were kept: all of a short text, some of a long one.
    pub rows: Vec<usize>,
    /// Probabilities, `(heads, rows, source)`.
    pub weights: Array,
    /// Weighted sums of the values, from the fused kernel, `(heads, rows, value_dim)`.
    pub sums: Array,
}

/// The largest weights of small regions, `(heads, height, width)`, 255 being 1.
#[derive(Clone, Debug, Serialize)]
pub struct Thumbnails {
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
    /// The pixels in base64.
    #[serde(serialize_with = "bytes")]
    pub u8: Vec<u8>,
}

fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

/// What the model would say after a position.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The position, in the last sequence.
    pub position: usize,
    /// The most probable tokens, best first.
    pub top: Vec<Candidate>,
}

/// A token that might come next.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// Its number in the vocabulary.
    pub id: u32,
    /// What it spells.
    pub text: String,
    /// Its probability.
    pub probability: f32,
}
