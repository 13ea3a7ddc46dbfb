//! Convolutions that are not trained.

use std::sync::Arc;

use candle_core::{Result, Shape, Tensor, Var};

use super::composed::{self, widened};
use super::frozen::{Frozen, Source, single};
use super::linear::{check_bias, stored};
use super::prepared::{Backward, with_backward};
use crate::kernel::{Convolution, Direction, Float, Kernel1, Order, View, apply1, lend};

/// A convolution that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenConv2d {
    weight: Frozen,
    bias: Option<Tensor>,
    sizes: Convolution,
}

impl FrozenConv2d {
    /// From `weight: [out, in, kh, kw]`, `bias: [out]`, the step between windows and the zeros added on each side.
    /// On the processor, bf16 weights stay bf16 if it has instructions for them (products of bf16, sums in f32); other
    /// half-precision weights are widened to f32.
    ///
    /// **Errors** for other shapes, and for stride 0.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Self> {
        let (out_channels, in_channels, height, width) = weight.dims4()?;
        check_bias("conv2d", bias, out_channels)?;
        if stride == 0 {
            candle_core::bail!("conv2d: expected a stride of 1 or more, found 0");
        }
        let sizes = Convolution { in_channels, out_channels, kernel: (height, width), stride, padding };
        let frozen = match weight.device().is_cpu() {
            true => Frozen::new(&taps_first(weight)?.reshape((out_channels, height * width, in_channels))?)?,
            false => Frozen::Elsewhere(stored(weight)?),
        };
        Ok(Self { weight: frozen, bias: bias.map(stored).transpose()?, sizes })
    }

    /// Cross-correlation with the weight, plus bias; `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]` with
    /// `oh = (height + 2 · padding − kh) / stride + 1`, rounded down, and `ow` likewise.
    ///
    /// **Gradient** to `x` only. **Errors** for other channels, or images smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels(x, &self.sizes)?;
        let Frozen::Elsewhere(weight) = &self.weight else {
            return widened(x, |x| apply1(x, Conv2d(self.clone())));
        };
        let Convolution { stride, padding, .. } = self.sizes;
        let y = composed::conv2d(&x.detach(), weight, self.bias.as_ref(), stride, padding)?;
        with_backward(x, &y, elsewhere(x, weight, self.sizes))
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        self.sizes.in_channels
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.sizes.out_channels
    }

    /// Height and width of the kernel.
    pub fn kernel(&self) -> (usize, usize) {
        self.sizes.kernel
    }

    /// Step between windows.
    pub fn stride(&self) -> usize {
        self.sizes.stride
    }

    /// Zeros added on each side.
    pub fn padding(&self) -> usize {
        self.sizes.padding
    }
}

pub(super) fn check_channels(x: &Tensor, sizes: &Convolution) -> Result<()> {
    let expected = sizes.in_channels;
    match x.dims() {
        [_, channels, _, _] if *channels == expected => Ok(()),
        found => candle_core::bail!("conv2d: expected [batch, {expected}, height, width], found {found:?}"),
    }
}

/// `[out, in, kh, kw]` to `[out, kh, kw, in]`.
pub(super) fn taps_first(weight: &Tensor) -> Result<Tensor> {
    weight.permute((0, 2, 3, 1))?.contiguous()
}

/// Gradient of `x` by candle's operations: for stride 1 another convolution, for others through the graph.
fn elsewhere(x: &Tensor, weight: &Tensor, sizes: Convolution) -> Backward {
    let (x, weight) = (x.detach(), weight.clone());
    let Convolution { kernel: (height, width), stride, padding, .. } = sizes;
    if stride == 1 && height == width && padding < height {
        return Arc::new(move |grad| {
            let turned = weight.transpose(0, 1)?.contiguous()?.flip(&[2, 3])?.contiguous()?;
            grad.contiguous()?.conv2d(&turned, height - 1 - padding, 1, 1, 1)
        });
    }
    Arc::new(move |grad| {
        let x = Var::from_tensor(&x)?;
        let product = (composed::conv2d(&x, &weight, None, stride, padding)? * grad)?.sum_all()?;
        let gradient = product.backward()?.remove(&x);
        gradient.ok_or_else(|| candle_core::Error::msg("conv2d: no gradient came back"))
    })
}

struct Conv2d(FrozenConv2d);

impl Kernel1 for Conv2d {
    const NAME: &'static str = "frozen-conv2d";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (sizes, size, bias) = (self.0.sizes, (x.dims[2], x.dims[3]), self.0.bias.as_ref());
        let placed = sizes.on(size)?;
        let output = placed.output();
        let y = match &self.0.weight {
            Frozen::Plain(weight) => {
                let bias = bias.map(lend::<T>).transpose()?;
                placed.forward(x.data, &lend::<T>(weight)?, bias.as_deref(), x.dims[0])
            }
            packed => {
                let (x, channels) = (single(x.data)?, sizes.in_channels);
                let x = Source::Planes { x, channels, size, frame: placed.frame() };
                T::from_f32s(packed.sweep(x, placed.window(), Direction::Forward, bias, Order::Planes)?)
            }
        };
        Ok((y, (x.dims[0], sizes.out_channels, output.0, output.1).into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let size = (x.dims[2], x.dims[3]);
        let placed = self.0.sizes.on(size)?;
        match &self.0.weight {
            Frozen::Plain(weight) => Ok(placed.input_gradient(grad.data, &lend::<T>(weight)?, x.dims[0])),
            packed => {
                let (x, channels) = (single(grad.data)?, self.0.sizes.out_channels);
                let grad = Source::Planes { x, channels, size: placed.output(), frame: placed.turned_frame() };
                Ok(T::from_f32s(packed.sweep(
                    grad,
                    placed.turned_window(),
                    Direction::Backward,
                    None,
                    Order::Planes,
                )?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::noise::{Noise, Stream};

    fn tensor(sample: u64, shape: (usize, usize, usize, usize)) -> Tensor {
        Noise::new(3).normal(Stream("conv"), 0, sample, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_by_candles_operations_agree_with_the_kernel() {
        for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 1), (1, 1, 0), (2, 1, 2), (4, 4, 0)] {
            let (x, weight) = (tensor(0, (2, 3, 9, 7)), tensor(1, (5, 3, kernel, kernel)));
            let layer = FrozenConv2d::new(&weight, None, stride, padding).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let y = layer.forward(&x).unwrap();
            let grad = tensor(2, y.dims4().unwrap());
            let loss = (y * &grad).unwrap().sum_all().unwrap();
            let fast = loss.backward().unwrap().remove(&x).unwrap();
            let slow = elsewhere(&x, &weight, layer.sizes)(&grad).unwrap();
            let difference = (fast - slow).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-4, "kernel {kernel} stride {stride}");
        }
    }
}
