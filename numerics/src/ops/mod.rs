//! Differentiable tensor operations whose gradients are tested, and frozen layers that compute no gradient of their
//! weights.

mod activation;
mod attention;
mod checkpoint;
pub mod composed;
mod conv;
mod decomposed;
mod device;
mod feed_forward;
mod frozen;
mod fusion;
mod layer;
mod linear;
mod low_rank;
mod norm;
mod prepared;
mod scaled;
mod softmax;
mod transposed;
mod upsample;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::{AttentionMask, attention, attention_rounded};
pub use checkpoint::{Segment, checkpoint};
pub use conv::{FrozenConv2d, shifted};
pub use decomposed::Decomposed;
pub use feed_forward::feed_forward;
pub use frozen::{convolution_scratch_bytes, weight_bytes};
pub use fusion::{Fusion, Prologue};
pub use linear::FrozenLinear;
pub use low_rank::{low_rank_conv2d, low_rank_linear};
pub use norm::{FrozenGroupNorm, FrozenLayerNorm};
pub use softmax::softmax;
pub use transposed::{map_to_tokens, tokens_to_map};
pub use upsample::upsample_nearest;

pub use catelier_kernels::backward;
