//! A gated feed-forward layer as one node that keeps only its input.

use candle_core::{Result, Shape, Tensor};

use super::activation::Geglu;
use super::fusion::{Fusion, Prologue};
use super::layer::Layer;
use super::linear::{FrozenLinear, Linear, computes_here};
use super::norm::{FrozenLayerNorm, LayerNorm};
use catelier_kernels::{AddedKernel, Float, Kernel1, View, apply1};

/// Rows that go through both layers at a time. The activation between the layers is the widest tensor of a transformer;
/// 512 rows of it stay in the cache.
const PIECE: usize = 512;

/// `x + narrow(geglu(widen(norm(x))))`, block by block. The backward pass recomputes the activations between the
/// layers.
///
/// **Shapes** `x: [..., n]`, `widen` from n to 2m, `narrow` from m to n features; returns `[..., n]`.
///
/// **Gradient** to `x`.
///
/// **Source** Shazeer, arXiv 2002.05202; recomputation as in Chen et al., arXiv 1604.06174.
///
/// # Errors
/// For shapes that do not fit.
pub fn feed_forward(x: &Tensor, norm: &FrozenLayerNorm, widen: &FrozenLinear, narrow: &FrozenLinear) -> Result<Tensor> {
    if !computes_here(widen.weight(), x) || !computes_here(narrow.weight(), x) {
        let wide = widen.forward_fused(x, Fusion::after(Prologue::LayerNorm(norm)))?;
        return narrow.forward_fused(&wide, Fusion::after(Prologue::Geglu).onto(x));
    }
    let (inner, width) = (2 * narrow.in_features(), x.dims().last());
    if widen.out_features() != inner || width != Some(&narrow.out_features()) {
        let (widened, narrowed) = (widen.out_features(), narrow.out_features());
        candle_core::bail!("feed-forward: {widened} features to {inner}, and {narrowed} onto {width:?}, do not fit");
    }
    let widen = Layer { prologue: norm.kernel(x)?, product: widen.product(), constants: widen.constants() };
    let narrow = Layer { prologue: Geglu, product: narrow.product(), constants: narrow.constants() };
    apply1(x, FeedForward { widen, narrow })
}

struct FeedForward {
    widen: Layer<LayerNorm, Linear>,
    narrow: Layer<Geglu, Linear>,
}

/// Blocks of [`PIECE`] rows of `x`, each with its shape and the same rows of `other`.
fn pieces<'a, T>(x: &View<'a, T>, other: &'a [T]) -> impl Iterator<Item = ([usize; 2], &'a [T], &'a [T])> + use<'a, T> {
    let (_, width) = x.rows();
    let piece = PIECE * width.max(1);
    x.data.chunks(piece).zip(other.chunks(piece)).map(move |(x, other)| ([x.len() / width, width], x, other))
}

impl Kernel1 for FeedForward {
    const NAME: &'static str = "feed-forward";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let mut y = Vec::with_capacity(x.data.len());
        for (dims, data, residual) in pieces(&x, x.data) {
            let (wide, shape) = self.widen.forward(View { data, dims: &dims }, None)?;
            let (wide, residual) = (View { data: &wide, dims: shape.dims() }, View { data: residual, dims: &dims });
            y.extend(self.narrow.forward(wide, Some(residual))?.0);
        }
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let mut gradient = Vec::with_capacity(x.data.len());
        for (dims, data, grad) in pieces(&x, grad.data) {
            let x = View { data, dims: &dims };
            let (wide, shape) = self.widen.forward(x, None)?;
            let d_wide = self.narrow.backward(View { data: &wide, dims: shape.dims() }, grad)?;
            let dx = self.widen.backward(x, &d_wide)?;
            gradient.extend(dx.into_iter().zip(grad).map(|(dx, grad)| dx + *grad));
        }
        Ok(gradient)
    }
}
