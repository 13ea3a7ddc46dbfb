//! Linear layers that are not trained.

use std::sync::Arc;

use candle_core::{DType, Result, Shape, Tensor};

use super::composed::{self, widened};
use super::prepared::{Backward, with_backward};
use crate::kernel::{Float, Kernel1, Matrix, MatrixMut, Threads, Update, View, apply1, lend, multiply};

/// A linear layer that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    /// From `weight: [out, in]` and `bias: [out]`. Half-precision weights on the processor are widened to f32.
    ///
    /// **Errors** for other shapes.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out_features, _) = weight.dims2()?;
        check_bias("linear", bias, out_features)?;
        Ok(Self { weight: stored(weight)?, bias: bias.map(stored).transpose()? })
    }

    /// `x · weightᵀ + bias`; `x: [..., in]`, contiguous or not; returns `[..., out]`.
    ///
    /// **Gradient** to `x` only. **Errors** if the last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.in_features()) {
            candle_core::bail!("linear: expected [..., {}], found {:?}", self.in_features(), x.dims());
        }
        if x.device().is_cpu() {
            return widened(x, |x| apply1(x, Linear(self.clone())));
        }
        let y = composed::linear(&x.detach(), &self.weight, self.bias.as_ref())?;
        with_backward(x, &y, self.backward())
    }

    fn backward(&self) -> Backward {
        let weight = self.weight.clone();
        Arc::new(move |grad| composed::linear(grad, &weight.t()?, None))
    }

    /// Size of the last dimension of the input.
    pub fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Size of the last dimension of the output.
    pub fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The weight, `[out, in]`, without a copy.
    pub fn weight(&self) -> Result<Tensor> {
        Ok(self.weight.clone())
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
        let (in_features, out_features) = (self.0.in_features(), self.0.out_features());
        let (rows, _) = x.rows();
        let weight = lend::<T>(&self.0.weight)?;
        let (mut y, update) = match &self.0.bias {
            Some(bias) => (repeated(&lend::<T>(bias)?, rows), Update::Add),
            None => (vec![T::ZERO; rows * out_features], Update::Replace),
        };
        let (x_rows, weight) =
            (Matrix::new(x.data, rows, in_features), Matrix::new(&weight, out_features, in_features));
        multiply(MatrixMut::new(&mut y, rows, out_features), update, T::ONE, x_rows, weight.t(), Threads::All);
        let mut shape = x.dims.to_vec();
        shape[x.dims.len() - 1] = out_features;
        Ok((y, shape.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (in_features, out_features) = (self.0.in_features(), self.0.out_features());
        let (rows, _) = x.rows();
        let weight = lend::<T>(&self.0.weight)?;
        let mut dx = vec![T::ZERO; x.data.len()];
        let (grad, weight) =
            (Matrix::new(grad.data, rows, out_features), Matrix::new(&weight, out_features, in_features));
        multiply(MatrixMut::new(&mut dx, rows, in_features), Update::Replace, T::ONE, grad, weight, Threads::All);
        Ok(dx)
    }
}

fn repeated<T: Float>(row: &[T], times: usize) -> Vec<T> {
    row.repeat(times)
}
