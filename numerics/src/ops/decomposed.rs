//! Weight-decomposed low-rank updates (DoRA) of frozen layers.
//!
//! The layer's weight is packed and never written out again. Its row norms are taken once, and the rest of
//! `‖W + scale·up·down‖²` follows from `W·downᵀ`, which is the layer's own product with `down` as its input.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

use super::conv::FrozenConv2d;
use super::frozen::Frozen;
use super::linear::FrozenLinear;
use super::low_rank::{low_rank_conv2d, low_rank_linear};
use super::scaled::{Outputs, scale_outputs};

/// A weight-decomposed low-rank update: it replaces the weight `W` by
/// `magnitude / ‖W + scale·up·down‖ · (W + scale·up·down)`, with the norm of each output's weights. The bias stays as it is.
///
/// **Gradient** The norm counts as a constant, as in section 4.3 of the paper.
///
/// **Source** DoRA, arXiv 2402.09353, equations 5 and 11.
#[derive(Debug, Clone, Copy)]
pub struct Decomposed<'a> {
    /// `[rank, in]`, or `[rank, in, kh, kw]` for a convolution.
    pub down: &'a Tensor,
    /// `[out, rank]`, or `[out, rank, 1, 1]` for a convolution.
    pub up: &'a Tensor,
    /// The norm of each output's weights in the adapted layer, `[out]`.
    pub magnitude: &'a Tensor,
    /// `alpha / rank`.
    pub scale: f64,
    /// `strength · (adapted layer − layer)` is added to the layer: 1 for the adapted layer itself.
    pub strength: f64,
}

impl FrozenLinear {
    /// Norm of the weights of each output, `[out]`, in f64; computed at the first call and kept.
    pub fn row_norms(&self) -> Result<Tensor> {
        squared_norms(self)?.sqrt()
    }

    /// `residual + layer(x) + strength · (adapted layer(x) − layer(x))`.
    ///
    /// **Shapes** `x: [..., in]`; returns `[..., out]`, the shape of the residual.
    ///
    /// **Gradient** to `x`, `down`, `up`, `magnitude` and the residual.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_decomposed(&self, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        forward(self, x, update, residual)
    }

    /// `strength · (adapted layer(x) − layer(x))`; shapes and gradients as in
    /// [`forward_decomposed`](Self::forward_decomposed).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn decomposed_change(&self, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor> {
        change(self, x, update)
    }
}

impl FrozenConv2d {
    /// Norm of the weights of each output, `[out]`, in f64; computed at the first call and kept.
    pub fn row_norms(&self) -> Result<Tensor> {
        squared_norms(self)?.sqrt()
    }

    /// `residual + layer(x) + strength · (adapted layer(x) − layer(x))`.
    ///
    /// **Shapes** `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]`, the shape of the residual.
    ///
    /// **Gradient** to `x`, `down`, `up`, `magnitude` and the residual.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_decomposed(&self, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        forward(self, x, update, residual)
    }

    /// `strength · (adapted layer(x) − layer(x))`; shapes and gradients as in
    /// [`forward_decomposed`](Self::forward_decomposed).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn decomposed_change(&self, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor> {
        change(self, x, update)
    }
}

/// A frozen layer whose weight can be taken apart into norms and directions.
trait Layer {
    const OUTPUTS: Outputs;

    fn weight(&self) -> &Frozen;
    fn bias(&self) -> Option<&Tensor>;

    /// Where the squared norms of the weights are kept.
    fn kept_norms(&self) -> &OnceLock<Tensor>;

    /// The product of each output's weights with each row of `down`, `[rank, out]`.
    fn products_with(&self, down: &Tensor) -> Result<Tensor>;

    /// The layer without its bias.
    fn product(&self, x: &Tensor) -> Result<Tensor>;

    /// The same of the layer with `scale·up·down` added to its weight.
    fn updated_product(&self, x: &Tensor, factors: [&Tensor; 2], scale: f64) -> Result<Tensor>;

    /// The update alone.
    fn low_rank(&self, x: &Tensor, factors: [&Tensor; 2], scale: f64) -> Result<Tensor>;
}

impl Layer for FrozenLinear {
    const OUTPUTS: Outputs = Outputs::Last;

    fn weight(&self) -> &Frozen {
        self.weight()
    }

    fn bias(&self) -> Option<&Tensor> {
        self.bias()
    }

    fn kept_norms(&self) -> &OnceLock<Tensor> {
        self.kept_norms()
    }

    fn products_with(&self, down: &Tensor) -> Result<Tensor> {
        self.without_bias().forward(down)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.without_bias().forward(x)
    }

    fn updated_product(&self, x: &Tensor, [down, up]: [&Tensor; 2], scale: f64) -> Result<Tensor> {
        self.without_bias().forward_adapted(x, down, up, scale, None)
    }

    fn low_rank(&self, x: &Tensor, [down, up]: [&Tensor; 2], scale: f64) -> Result<Tensor> {
        low_rank_linear(x, down, up, scale)
    }
}

impl Layer for FrozenConv2d {
    const OUTPUTS: Outputs = Outputs::Channels;

    fn weight(&self) -> &Frozen {
        self.weight()
    }

    fn bias(&self) -> Option<&Tensor> {
        self.bias()
    }

    fn kept_norms(&self) -> &OnceLock<Tensor> {
        self.kept_norms()
    }

    /// `down` is a batch of images of the kernel's size, each of which the kernel meets in one place.
    fn products_with(&self, down: &Tensor) -> Result<Tensor> {
        self.on_kernel_sized_images().forward(down)?.flatten_from(1)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.without_bias().forward(x)
    }

    fn updated_product(&self, x: &Tensor, [down, up]: [&Tensor; 2], scale: f64) -> Result<Tensor> {
        self.without_bias().forward_adapted(x, down, up, scale, None)
    }

    fn low_rank(&self, x: &Tensor, [down, up]: [&Tensor; 2], scale: f64) -> Result<Tensor> {
        low_rank_conv2d(x, down, up, scale, self.stride(), self.padding())
    }
}

fn forward<L: Layer>(layer: &L, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
    let gain = gain(layer, update)?;
    if update.strength == 1.0 {
        // Layer and update share a gain, so they share a node: the graph keeps one map less than below.
        let [down, up] = factors_like(x, update)?;
        let y = layer.updated_product(x, [&down, &up], update.scale)?;
        return scale_outputs(&y, L::OUTPUTS, &gain, layer.bias(), residual);
    }
    let of_update = (gain * update.strength)?;
    let of_weight = (&of_update + (1.0 - update.strength))?;
    scaled_parts(layer, x, update, [&of_weight, &of_update], (layer.bias(), residual))
}

fn change<L: Layer>(layer: &L, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor> {
    let of_update = (gain(layer, update)? * update.strength)?;
    let of_weight = (&of_update - update.strength)?;
    scaled_parts(layer, x, update, [&of_weight, &of_update], (None, None))
}

/// `residual + bias + of_weight ⊙ W·x + of_update ⊙ scale·up·down·x`, with gains for each output.
fn scaled_parts<L: Layer>(
    layer: &L,
    x: &Tensor,
    update: Decomposed<'_>,
    [of_weight, of_update]: [&Tensor; 2],
    (bias, residual): (Option<&Tensor>, Option<&Tensor>),
) -> Result<Tensor> {
    let [down, up] = factors_like(x, update)?;
    let frozen = scale_outputs(&layer.product(x)?, L::OUTPUTS, of_weight, bias, residual)?;
    let low_rank = layer.low_rank(x, [&down, &up], update.scale)?;
    frozen + scale_outputs(&low_rank, L::OUTPUTS, of_update, None, None)?
}

/// The factors in the element type that the layer computes in.
fn factors_like(x: &Tensor, update: Decomposed<'_>) -> Result<[Tensor; 2]> {
    Ok([update.down.to_dtype(x.dtype())?, update.up.to_dtype(x.dtype())?])
}

/// `magnitude / ‖W + scale·up·down‖` of each output, `[out]`. **Gradient** to the magnitude.
fn gain<L: Layer>(layer: &L, update: Decomposed<'_>) -> Result<Tensor> {
    let norms = updated_norms(layer, update)?;
    if update.magnitude.dims() != norms.dims() {
        let (expected, found) = (norms.dims(), update.magnitude.dims());
        candle_core::bail!("decomposed update: expected magnitudes {expected:?}, found {found:?}");
    }
    // Weights that are all zero point nowhere and give zero whatever their magnitude is.
    let norms = norms.eq(0.0)?.where_cond(&norms.ones_like()?, &norms)?;
    // In the magnitude's own type: a fresh update, whose magnitude is this norm rounded, has a gain of exactly 1.
    update.magnitude / norms.to_dtype(update.magnitude.dtype())?
}

/// `‖W + scale·up·down‖` of each output, `[out]`, in f64 and without a gradient.
///
/// The square is `‖W‖² + 2·scale·⟨W, up·down⟩ + scale²·‖up·down‖²`, output by output.
fn updated_norms<L: Layer>(layer: &L, update: Decomposed<'_>) -> Result<Tensor> {
    let (down, up) = (update.down.detach(), update.up.detach());
    let products = precise_products(layer, &down)?.to_dtype(DType::F64)?.t()?;
    let [down, up] = [down, up].map(|factor| factor.flatten_from(1)?.to_dtype(DType::F64));
    let (down, up) = (down?, up?);
    let crossed = (&up * products)?.sum(1)?;
    let squares = (up.matmul(&down.matmul(&down.t()?)?)? * &up)?.sum(1)?;
    let squared = (squared_norms(layer)? + (crossed * (2.0 * update.scale))?)? + (squares * update.scale.powi(2))?;
    // Rounding must not make a square negative.
    squared?.relu()?.sqrt()
}

/// The product of each output's weights with each row of `down`, as exact as f32 where the layer itself is not.
fn precise_products<L: Layer>(layer: &L, down: &Tensor) -> Result<Tensor> {
    match layer.weight() {
        // The layer's product rounds its input to bf16; what that cuts off goes through a second time.
        Frozen::Bf16(_) => {
            let coarse = down.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
            let rest = (down.to_dtype(DType::F32)? - &coarse)?;
            layer.products_with(&coarse)? + layer.products_with(&rest)?
        }
        Frozen::Device(weight) => {
            let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let wide = |tensor: &Tensor| tensor.flatten_from(1)?.to_dtype(dtype);
            wide(down)?.matmul(&wide(weight)?.t()?)
        }
        Frozen::Plain(weight) => layer.products_with(&down.to_dtype(weight.dtype())?),
        Frozen::F32(_) => layer.products_with(&down.to_dtype(DType::F32)?),
    }
}

fn squared_norms<L: Layer>(layer: &L) -> Result<Tensor> {
    if let Some(kept) = layer.kept_norms().get() {
        return Ok(kept.clone());
    }
    let norms = layer.weight().squared_norms()?;
    Ok(layer.kept_norms().get_or_init(|| norms).clone())
}
