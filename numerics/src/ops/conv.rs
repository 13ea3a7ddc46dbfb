//! Convolutions that are not trained.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Shape, Tensor};

use super::composed::widened;
use super::elsewhere;
use super::frozen::{Frozen, Source, single};
use super::linear::{check_bias, stored};
use super::prepared::with_backward;
use crate::kernel::{Convolution, Direction, Float, Kernel1, Order, View, apply1, lend};

/// A convolution that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenConv2d {
    weight: Frozen,
    bias: Option<Tensor>,
    sizes: Convolution,
    /// The weight of the way back on other devices, from the first backward pass on.
    turned: Arc<OnceLock<Tensor>>,
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
        Ok(Self { weight: frozen, bias: bias.map(stored).transpose()?, sizes, turned: Arc::default() })
    }

    /// Cross-correlation with the weight, plus bias; `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]` with
    /// `oh = (height + 2 · padding − kh) / stride + 1`, rounded down, and `ow` likewise.
    ///
    /// **Gradient** to `x` only. **Errors** for other channels, or images smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_channels(x, &self.sizes)?;
        match &self.weight {
            Frozen::Elsewhere(weight) => self.forward_elsewhere(x, weight),
            _ => widened(x, |x| apply1(x, Conv2d(self.clone()))),
        }
    }

    fn forward_elsewhere(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let Convolution { stride, padding, .. } = self.sizes;
        self.sizes.on((height, width))?;
        let y = elsewhere::conv2d(&x.detach(), weight, self.bias.as_ref(), stride, padding)?;
        let (layer, weight) = (self.clone(), weight.clone());
        let backward = move |grad: &Tensor| {
            elsewhere::input_gradient(grad, &layer.turned(&weight)?, &layer.sizes, (height, width))
        };
        with_backward(x, &y, Arc::new(backward))
    }

    /// Made once: turning the weight costs as much as a small convolution, and a picture needs no way back.
    fn turned(&self, weight: &Tensor) -> Result<Tensor> {
        if let Some(turned) = self.turned.get() {
            return Ok(turned.clone());
        }
        let turned = elsewhere::turned(weight)?;
        Ok(self.turned.get_or_init(|| turned).clone())
    }

    /// The same layer as it is on other devices, which keep half precision.
    #[cfg(test)]
    pub(super) fn elsewhere(self, weight: &Tensor, bias: &Tensor) -> Self {
        Self { weight: Frozen::Elsewhere(weight.clone()), bias: Some(bias.clone()), ..self }
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
