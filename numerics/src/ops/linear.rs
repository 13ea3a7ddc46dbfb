//! Linear layers that are not trained.

use std::sync::Arc;

use candle_core::{DType, Result, Shape, Tensor};

use super::composed::widened;
use super::elsewhere;
use super::frozen::{Frozen, Source, single};
use super::prepared::{Backward, with_backward};
use crate::kernel::{
    Direction, Float, Kernel1, Matrix, MatrixMut, Order, Threads, Update, View, Window, apply1, lend, multiply,
};

/// A linear layer that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    weight: Frozen,
    bias: Option<Tensor>,
    in_features: usize,
    out_features: usize,
}

impl FrozenLinear {
    /// From `weight: [out, in]` and `bias: [out]`. On the processor, bf16 weights stay bf16 if it has instructions for
    /// them (products of bf16, sums in f32); other half-precision weights are widened to f32.
    ///
    /// **Errors** for other shapes.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        check_bias("linear", bias, out_features)?;
        let frozen = match weight.device().is_cpu() {
            true => Frozen::new(&weight.reshape((out_features, 1, in_features))?)?,
            false => Frozen::Elsewhere(stored(weight)?),
        };
        Ok(Self { weight: frozen, bias: bias.map(stored).transpose()?, in_features, out_features })
    }

    /// `x · weightᵀ + bias`; `x: [..., in]`, contiguous or not; returns `[..., out]`.
    ///
    /// **Gradient** to `x` only. **Errors** if the last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.in_features) {
            candle_core::bail!("linear: expected [..., {}], found {:?}", self.in_features, x.dims());
        }
        let Frozen::Elsewhere(weight) = &self.weight else {
            return widened(x, |x| apply1(x, Linear(self.clone())));
        };
        let y = elsewhere::linear(&x.detach(), weight, self.bias.as_ref())?;
        let weight = weight.clone();
        let backward: Backward = Arc::new(move |grad| elsewhere::linear(grad, &weight.t()?, None));
        with_backward(x, &y, backward)
    }

    /// The same layer as it is on other devices, which keep half precision.
    #[cfg(test)]
    pub(super) fn elsewhere(self, weight: &Tensor, bias: &Tensor) -> Self {
        Self { weight: Frozen::Elsewhere(weight.clone()), bias: Some(bias.clone()), ..self }
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

/// Detached, contiguous, and f32 where the processor would have to compute in half precision.
pub(super) fn stored(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    match weight.dtype() {
        DType::F16 | DType::BF16 if weight.device().is_cpu() => weight.to_dtype(DType::F32)?.contiguous(),
        _ => weight.contiguous(),
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

struct Linear(FrozenLinear);

impl Kernel1 for Linear {
    const NAME: &'static str = "frozen-linear";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let FrozenLinear { weight, bias, in_features, out_features } = &self.0;
        let mut shape = x.dims.to_vec();
        shape[x.dims.len() - 1] = *out_features;
        let y = match weight {
            Frozen::Plain(weight) => self.plain(&lend::<T>(weight)?, x)?,
            packed => {
                let (x, rows) = (Source::Tokens { x: single(x.data)?, channels: *in_features }, x.rows().0);
                let window = Window::single(rows);
                T::from_f32s(packed.sweep(x, window, Direction::Forward, bias.as_ref(), Order::Tokens)?)
            }
        };
        Ok((y, shape.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let FrozenLinear { weight, in_features, out_features, .. } = &self.0;
        let rows = x.rows().0;
        let Frozen::Plain(weight) = weight else {
            let grad = Source::Tokens { x: single(grad.data)?, channels: *out_features };
            let window = Window::single(rows);
            return Ok(T::from_f32s(weight.sweep(grad, window, Direction::Backward, None, Order::Tokens)?));
        };
        let weight = lend::<T>(weight)?;
        let mut dx = vec![T::ZERO; x.data.len()];
        let grad = Matrix::new(grad.data, rows, *out_features);
        let weight = Matrix::new(&weight, *out_features, *in_features);
        multiply(MatrixMut::new(&mut dx, rows, *in_features), Update::Replace, T::ONE, grad, weight, Threads::All);
        Ok(dx)
    }
}

impl Linear {
    fn plain<T: Float>(&self, weight: &[T], x: View<'_, T>) -> Result<Vec<T>> {
        let FrozenLinear { bias, in_features, out_features, .. } = &self.0;
        let rows = x.rows().0;
        let (mut y, update) = match bias {
            Some(bias) => (lend::<T>(bias)?.repeat(rows), Update::Add),
            None => (vec![T::ZERO; rows * out_features], Update::Replace),
        };
        let x = Matrix::new(x.data, rows, *in_features);
        let weight = Matrix::new(weight, *out_features, *in_features);
        multiply(MatrixMut::new(&mut y, rows, *out_features), update, T::ONE, x, weight.t(), Threads::All);
        Ok(y)
    }
}
