//! Weight-decomposed low-rank updates (DoRA) of frozen layers.
//!
//! The layer never unpacks its weight `W`. It computes the row norms of `W` once; the other terms of
//! `‖W + scale·up·down‖²` follow from `W·downᵀ`, which is the layer's own product with `down` as its input.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

use super::conv::FrozenConv2d;
use super::frozen::Frozen;
use super::linear::FrozenLinear;
use super::low_rank::{low_rank_conv2d, low_rank_linear};
use super::scaled::{Outputs, scale_outputs};

/// A weight-decomposed low-rank update: it replaces the weight `W` by
/// `magnitude / ‖W + scale·up·down‖ · (W + scale·up·down)`, where `‖·‖` is the norm of each output's weights. The bias
/// does not change.
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
    /// The norm of each output's weights in the adapted layer, `[out]`; trained.
    pub magnitude: &'a Tensor,
    /// `alpha / rank`.
    pub scale: f64,
    /// The layer adds `strength · (adapted layer − layer)` to its own result; 1 gives the adapted layer.
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

/// A frozen layer with the products that DoRA needs.
trait Layer {
    const OUTPUTS: Outputs;

    fn weight(&self) -> &Frozen;
    fn bias(&self) -> Option<&Tensor>;

    /// Where the squared norms of the weights are kept.
    fn kept_norms(&self) -> &OnceLock<Tensor>;

    /// The product of each row of `down` with each output's weights, `[rank, out]`.
    fn products_with(&self, down: &Tensor) -> Result<Tensor>;

    /// The layer's result without the bias.
    fn product(&self, x: &Tensor) -> Result<Tensor>;

    /// The layer's result without the bias, with `scale·up·down` added to the weight.
    fn updated_product(&self, x: &Tensor, factors: [&Tensor; 2], scale: f64) -> Result<Tensor>;

    /// The low-rank update's result.
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

    /// `down` acts as a batch of images of the kernel's size: each has a single output position.
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
        // Layer and update have the same gain here, so they share a node and the graph keeps one map less than with
        // `scaled_parts`.
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

/// `down` and `up` in the element type of `x`.
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
    // A zero weight has no direction: it gives zero for any magnitude, so any norm but 0 will do.
    let norms = norms.eq(0.0)?.where_cond(&norms.ones_like()?, &norms)?;
    // In the magnitude's type: the magnitude of a new update is this norm, rounded, so that its gain is exactly 1.
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
    // Rounding can make a square slightly negative.
    squared?.relu()?.sqrt()
}

/// The product of each row of `down` with each output's weights, in f32 precision even if the weight is bf16.
fn precise_products<L: Layer>(layer: &L, down: &Tensor) -> Result<Tensor> {
    match layer.weight() {
        // The layer rounds its input to bf16, so the rounding error of `down` is multiplied in a second product.
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
