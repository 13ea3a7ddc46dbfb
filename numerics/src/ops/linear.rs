//! Linear layers with a frozen weight.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Shape, Tensor};

use super::composed::widened;
use super::device;
use super::frozen::{Frozen, Source, single, single_start, stored};
use super::fusion::{Fusion, frozen_layer};
use super::layer::{Constants, Product, adapted_layer};
use super::low_rank::{LowRankLinear, check_low_rank, low_rank_linear};
use super::prepared::{Backward, with_backward};
use catelier_kernels::{Float, Job, Matrix, MatrixMut, Order, Start, Threads, Update, View, Window, borrow, multiply};

/// A linear layer that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    weight: Frozen,
    bias: Option<Tensor>,
    in_features: usize,
    out_features: usize,
    /// Squared norms of each output's weights; computed by the first decomposed update.
    norms: Arc<OnceLock<Tensor>>,
}

impl FrozenLinear {
    /// A layer with `weight: [out, in]` and `bias: [out]`. On a CPU with bf16 instructions, bf16 weights stay bf16
    /// (bf16 products, f32 sums); other half-precision weights on the CPU are widened to f32.
    ///
    /// # Errors
    /// For other shapes.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        check_bias("linear", bias, out_features)?;
        let frozen = match weight.device().is_cpu() {
            true => Frozen::new(&weight.reshape((out_features, 1, in_features))?)?,
            false => Frozen::Device(stored(weight)?),
        };
        let bias = bias.map(stored).transpose()?;
        Ok(Self { weight: frozen, bias, in_features, out_features, norms: Arc::default() })
    }

    /// `x · weightᵀ + bias`; `x: [..., in]`, contiguous or not; returns `[..., out]`.
    ///
    /// **Gradient** to `x` only.
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_fused(x, Fusion::default())
    }

    /// `residual + layer(prologue(x))` as one node.
    ///
    /// **Shapes** `prologue(x): [..., in]`; returns `[..., out]`, the shape of the residual.
    ///
    /// **Gradient** to `x` and the residual.
    ///
    /// # Errors
    /// For shapes that do not fit.
    pub fn forward_fused(&self, x: &Tensor, fusion: Fusion<'_>) -> Result<Tensor> {
        if computes_here(&self.weight, x) {
            frozen_layer(x, self.product(), self.constants(), fusion)
        } else {
            fusion.run(x, |x| self.alone(x))
        }
    }

    /// `residual + x · weightᵀ + bias + scale · (x · downᵀ) · upᵀ` as one node.
    ///
    /// **Shapes** `x: [..., in]`, `down: [rank, in]`, `up: [out, rank]`; returns `[..., out]`, the shape of the
    /// residual.
    ///
    /// **Gradient** to `x`, `down`, `up` and the residual.
    ///
    /// **Source** Hu et al., arXiv 2106.09685, with `down` for A and `up` for B.
    ///
    /// # Errors
    /// For shapes that do not fit.
    pub fn forward_adapted(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        scale: f64,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if !computes_adapted_here(&self.weight, [x, down, up]) {
            return self.forward_fused(x, Fusion { prologue: None, residual })? + low_rank_linear(x, down, up, scale)?;
        }
        check_low_rank(x, down, up)?;
        if up.dims()[0] != self.out_features {
            candle_core::bail!(
                "linear: expected an update to {} features, found up {:?}",
                self.out_features,
                up.dims()
            );
        }
        adapted_layer([x, down, up], self.product(), self.bias.clone(), LowRankLinear { scale }, residual)
    }

    pub(super) fn product(&self) -> Linear {
        let Self { weight, in_features, out_features, .. } = self;
        Linear { weight: weight.clone(), in_features: *in_features, out_features: *out_features }
    }

    pub(super) fn weight(&self) -> &Frozen {
        &self.weight
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn kept_norms(&self) -> &OnceLock<Tensor> {
        &self.norms
    }

    /// The layer without its bias; the weight is shared.
    pub(super) fn without_bias(&self) -> Self {
        Self { bias: None, ..self.clone() }
    }

    pub(super) fn constants(&self) -> Constants {
        Constants { bias: self.bias.clone(), shift: None }
    }

    /// The layer without fusion, on other devices or in half precision.
    fn alone(&self, x: &Tensor) -> Result<Tensor> {
        let Frozen::Device(weight) = &self.weight else {
            return widened(x, |x| frozen_layer(x, self.product(), self.constants(), Fusion::default()));
        };
        // Detached, because candle would also compute a gradient of the frozen weight.
        let y = device::linear(&x.detach(), weight, self.bias.as_ref())?;
        let weight = weight.clone();
        let backward: Backward = Arc::new(move |grad| device::linear(grad, &weight.t()?, None));
        with_backward(x, &y, backward)
    }

    /// The layer as another device would hold it, with its weight in half precision.
    #[cfg(test)]
    pub(super) fn on_device(self, weight: &Tensor, bias: &Tensor) -> Self {
        Self { weight: Frozen::Device(weight.clone()), bias: Some(bias.clone()), ..self }
    }

    /// Size of the last dimension of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Size of the last dimension of the output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }
}

pub(super) fn check_bias(what: &str, bias: Option<&Tensor>, out: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [out] => {
            candle_core::bail!("{what}: expected a bias of shape [{out}], found {:?}", bias.dims())
        }
        _ => Ok(()),
    }
}

/// Whether the CPU kernels accept this weight and the element type of `x`.
pub(super) fn computes_here(weight: &Frozen, x: &Tensor) -> bool {
    !matches!(weight, Frozen::Device(_)) && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// Whether one CPU node can compute both the layer and its low-rank update.
pub(super) fn computes_adapted_here(weight: &Frozen, [x, down, up]: [&Tensor; 3]) -> bool {
    computes_here(weight, x) && down.dtype() == x.dtype() && up.dtype() == x.dtype()
}

#[derive(Clone)]
pub(super) struct Linear {
    weight: Frozen,
    in_features: usize,
    out_features: usize,
}

impl Product for Linear {
    const NAME: &'static str = "frozen-linear";

    fn output(&self, x: &[usize]) -> Result<Shape> {
        match x.split_last() {
            Some((last, rows)) if *last == self.in_features => Ok([rows, &[self.out_features]].concat().into()),
            _ => candle_core::bail!("linear: expected [..., {}], found {x:?}", self.in_features),
        }
    }

    fn forward<T: Float>(&self, x: View<'_, T>, start: Start<'_, T>) -> Result<Vec<T>> {
        let rows = self.output(x.dims)?.elem_count() / self.out_features.max(1);
        let Frozen::Plain(weight) = &self.weight else {
            let start = single_start(start)?;
            let x = Source::Tokens { x: single(x.data)?, channels: self.in_features, size: (1, rows) };
            let y = self.weight.sweep(x, Job::forward(Window::single(rows), start, Order::Tokens))?;
            return Ok(T::from_f32s(y));
        };
        let weight = borrow::<T>(weight)?;
        let (mut y, update) = match start.bias {
            Some(bias) => (bias.repeat(rows), Update::Add),
            None => (vec![T::ZERO; rows * self.out_features], Update::Replace),
        };
        let x = Matrix::new(x.data, rows, self.in_features);
        let weight = Matrix::new(&weight, self.out_features, self.in_features);
        multiply(MatrixMut::new(&mut y, rows, self.out_features), update, T::ONE, x, weight.t(), Threads::All);
        y.iter_mut().zip(start.residual.unwrap_or(&[])).for_each(|(y, residual)| *y += *residual);
        Ok(y)
    }

    fn backward<T: Float>(&self, x: &[usize], grad: &[T]) -> Result<Vec<T>> {
        let Self { weight, in_features, out_features } = self;
        let rows = x.iter().product::<usize>() / (*in_features).max(1);
        let Frozen::Plain(weight) = weight else {
            let grad = Source::Tokens { x: single(grad)?, channels: *out_features, size: (1, rows) };
            let dx = weight.sweep(grad, Job::backward(Window::single(rows), Order::Tokens))?;
            return Ok(T::from_f32s(dx));
        };
        let weight = borrow::<T>(weight)?;
        let mut dx = vec![T::ZERO; rows * in_features];
        let grad = Matrix::new(grad, rows, *out_features);
        let weight = Matrix::new(&weight, *out_features, *in_features);
        multiply(MatrixMut::new(&mut dx, rows, *in_features), Update::Replace, T::ONE, grad, weight, Threads::All);
        Ok(dx)
    }
}
