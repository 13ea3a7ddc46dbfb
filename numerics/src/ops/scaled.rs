//! A scale for each output of a layer.

use candle_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::layer::fitting;
use catelier_kernels::{AddedKernel2, Float, View, apply_added2, borrow, sum_of_products};

/// The dimension of a layer's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    /// In the last dimension: `[..., out]`.
    Last,
    /// In the second dimension: `[batch, out, height, width]`.
    Channels,
}

impl Outputs {
    fn axis(self, rank: usize) -> usize {
        match self {
            Self::Last => rank.saturating_sub(1),
            Self::Channels => 1,
        }
    }
}

/// `residual + bias + scale ⊙ y` as one node, with `scale` and `bias` for each output. Half precision is computed in
/// f32.
///
/// **Shapes** `y: [..., out]` or `[batch, out, height, width]`, `scale: [out]`, `bias: [out]`, the residual as `y`;
/// returns the shape and the element type of `y`.
///
/// **Gradient** to `y`, `scale` and the residual.
///
/// # Errors
/// For shapes that do not fit.
pub(super) fn scale_outputs(
    y: &Tensor,
    outputs: Outputs,
    scale: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let wide = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let residual = residual.map(|residual| residual.to_dtype(wide)).transpose()?;
    let (wide_y, scale) = (y.to_dtype(wide)?, scale.to_dtype(wide)?);
    let scaled = if y.device().is_cpu() {
        apply_added2(&wide_y, &scale, residual.as_ref(), ScaledOutputs { outputs, bias: bias.cloned() })
    } else {
        composed(&wide_y, outputs, &scale, bias, residual.as_ref())
    };
    scaled?.to_dtype(y.dtype())
}

/// The same result by candle's operations, for devices without kernels of this workspace.
fn composed(
    y: &Tensor,
    outputs: Outputs,
    scale: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let mut shape = vec![1; y.rank()];
    shape[outputs.axis(y.rank())] = scale.elem_count();
    let mut scaled = y.broadcast_mul(&scale.reshape(shape.as_slice())?)?;
    if let Some(bias) = bias {
        scaled = scaled.broadcast_add(&bias.to_dtype(y.dtype())?.reshape(shape)?)?;
    }
    match residual {
        Some(residual) => residual + scaled,
        None => Ok(scaled),
    }
}

struct ScaledOutputs {
    outputs: Outputs,
    bias: Option<Tensor>,
}

impl ScaledOutputs {
    /// Number of elements of `y` in one row (outputs last) or one map (outputs in the second dimension).
    fn stride(&self, dims: &[usize]) -> usize {
        match self.outputs {
            Outputs::Last => dims.last().copied().unwrap_or(1),
            Outputs::Channels => dims[2..].iter().product(),
        }
        .max(1)
    }

    /// `result += scale ⊙ y + bias`.
    fn add_to<T: Float>(&self, result: &mut [T], y: View<'_, T>, scale: &[T], bias: Option<&[T]>) {
        let stride = self.stride(y.dims);
        let bias_of = |output: usize| bias.map_or(T::ZERO, |bias| bias[output]);
        let rows = result.par_chunks_mut(stride).zip(y.data.par_chunks(stride)).enumerate();
        match self.outputs {
            Outputs::Last => rows.for_each(|(_, (result, y))| {
                for (output, (result, y)) in result.iter_mut().zip(y).enumerate() {
                    *result += *y * scale[output] + bias_of(output);
                }
            }),
            Outputs::Channels => rows.for_each(|(map, (result, y))| {
                let (scale, bias) = (scale[map % scale.len()], bias_of(map % scale.len()));
                result.iter_mut().zip(y).for_each(|(result, y)| *result += *y * scale + bias);
            }),
        }
    }

    /// `Σ grad ⊙ y` for each of the `count` outputs; sums are in f64 and in a fixed order at any number of threads.
    fn scale_gradient<T: Float>(&self, y: View<'_, T>, grad: &[T], count: usize) -> Vec<T> {
        /// Rows summed by one task; fixed, so that bits do not depend on the number of threads.
        const ROWS: usize = 128;
        let stride = self.stride(y.dims);
        let partial: Vec<Vec<f64>> = match self.outputs {
            Outputs::Last => {
                let pieces = y.data.par_chunks(ROWS * stride).zip(grad.par_chunks(ROWS * stride));
                pieces.map(|(y, grad)| column_sums(y, grad, count)).collect()
            }
            Outputs::Channels => {
                let maps = y.data.par_chunks(stride).zip(grad.par_chunks(stride));
                let sums: Vec<f64> = maps.map(|(y, grad)| sum_of_products(y, grad, |y, grad| y * grad)).collect();
                sums.chunks(count).map(<[f64]>::to_vec).collect()
            }
        };
        let total = |output: usize| T::from_f64(partial.iter().map(|sums| sums[output]).sum());
        (0..count).map(total).collect()
    }
}

/// Sums of `y ⊙ grad` over each column of matrices with `columns` columns.
fn column_sums<T: Float>(y: &[T], grad: &[T], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for (y, grad) in y.chunks_exact(columns).zip(grad.chunks_exact(columns)) {
        sums.iter_mut().zip(y.iter().zip(grad)).for_each(|(sum, (y, grad))| *sum += (*y * *grad).to_f64());
    }
    sums
}

impl AddedKernel2 for ScaledOutputs {
    const NAME: &'static str = "scaled-outputs";

    fn forward<T: Float>(
        &self,
        [y, scale]: [View<'_, T>; 2],
        residual: Option<View<'_, T>>,
    ) -> Result<(Vec<T>, Shape)> {
        let count = scale.data.len();
        if y.dims.get(self.outputs.axis(y.dims.len())) != Some(&count) {
            candle_core::bail!("{}: {count} scales do not fit the outputs of {:?}", Self::NAME, y.dims);
        }
        let shape: Shape = y.dims.into();
        let mut result = match fitting(Self::NAME, &shape, residual)? {
            Some(residual) => residual.to_vec(),
            None => vec![T::ZERO; y.data.len()],
        };
        let bias = self.bias.as_ref().map(borrow::<T>).transpose()?;
        self.add_to(&mut result, y, scale.data, bias.as_deref());
        Ok((result, shape))
    }

    fn backward<T: Float>(
        &self,
        [y, scale]: [View<'_, T>; 2],
        grad: View<'_, T>,
        [of_y, of_scale]: [bool; 2],
    ) -> Result<[Vec<T>; 2]> {
        let mut dy = if of_y { vec![T::ZERO; y.data.len()] } else { Vec::new() };
        self.add_to(&mut dy, grad, scale.data, None);
        let d_scale = if of_scale { self.scale_gradient(y, grad.data, scale.data.len()) } else { Vec::new() };
        Ok([dy, d_scale])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::noise::{Noise, Stream};

    fn normal(sample: u64, shape: &[usize]) -> Tensor {
        Noise::new(29).normal(Stream("scaled"), 0, sample, shape, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The result and the gradients of `y`, the scales and the residual.
    fn run(inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
        let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let tracked: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let y = f(&tracked).unwrap();
        let store = (&y * normal(9, y.dims())).unwrap().sum_all().unwrap().backward().unwrap();
        [y].into_iter().chain(tracked.iter().map(|input| store.get(input).unwrap().clone())).collect()
    }

    #[test]
    fn the_kernel_is_what_the_operations_of_other_devices_are() {
        for (outputs, shape) in [(Outputs::Last, &[2, 150, 5][..]), (Outputs::Channels, &[2, 5, 3, 7])] {
            for residual in [false, true] {
                let mut inputs = vec![normal(0, shape), normal(1, &[5])];
                inputs.extend(residual.then(|| normal(2, shape)));
                let bias = normal(3, &[5]);
                let kernel = run(&inputs, &|t| scale_outputs(&t[0], outputs, &t[1], Some(&bias), t.get(2)));
                let plain = run(&inputs, &|t| composed(&t[0], outputs, &t[1], Some(&bias), t.get(2)));
                for (kernel, plain) in kernel.iter().zip(&plain) {
                    let pairs = values(kernel).into_iter().zip(values(plain));
                    pairs.for_each(|(kernel, plain)| assert!((kernel - plain).abs() < 1e-4, "{kernel} and {plain}"));
                }
            }
        }
    }
}
