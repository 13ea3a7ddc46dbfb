//! Convolutions with a frozen weight.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Shape, Tensor};

use super::composed::widened;
use super::device;
use super::frozen::{Frozen, Source, check_channels, single, single_start, stored, taps_first};
use super::fusion::{Fusion, frozen_layer};
use super::layer::{Constants, Product, adapted_layer};
use super::linear::{check_bias, computes_adapted_here, computes_here};
use super::low_rank::{LowRankConv2d, low_rank_conv2d, low_rank_sizes};
use super::prepared::with_backward;
use catelier_kernels::{Convolution, Float, Job, OnImages, Order, Start, View, borrow};

/// A convolution that is not trained: its weight never enters the graph and never gets a gradient.
#[derive(Debug, Clone)]
pub struct FrozenConv2d {
    weight: Frozen,
    bias: Option<Tensor>,
    sizes: Convolution,
    /// The transposed weight on other devices; computed by the first backward pass.
    turned: Arc<OnceLock<Tensor>>,
    /// Squared norms of each output's weights; computed by the first decomposed update.
    norms: Arc<OnceLock<Tensor>>,
}

impl FrozenConv2d {
    /// A layer with `weight: [out, in, kh, kw]`, `bias: [out]`, `stride` pixels between windows and `padding` zeros on
    /// each side. On a CPU with bf16 instructions, bf16 weights stay bf16 (f32 sums; bf16 products, but f32 products in
    /// most 3 × 3 convolutions); other half-precision weights on the CPU are widened to f32.
    ///
    /// # Errors
    /// For other shapes, and for stride 0.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Self> {
        let (out_channels, in_channels, height, width) = weight.dims4()?;
        check_bias("conv2d", bias, out_channels)?;
        if stride == 0 {
            candle_core::bail!("conv2d: expected a stride of 1 or more, found 0");
        }
        let sizes = Convolution { in_channels, out_channels, kernel: (height, width), stride, padding };
        let frozen = match weight.device().is_cpu() {
            true => Frozen::new(&taps_first(weight)?.reshape((out_channels, height * width, in_channels))?)?,
            false => Frozen::Device(stored(weight)?),
        };
        let bias = bias.map(stored).transpose()?;
        Ok(Self { weight: frozen, bias, sizes, turned: Arc::default(), norms: Arc::default() })
    }

    /// Cross-correlation with the weight, plus bias; `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]`
    /// with `oh = (height + 2 · padding − kh) / stride + 1`, rounded down, and `ow` likewise.
    ///
    /// **Gradient** to `x` only.
    ///
    /// # Errors
    /// For other channels, or images smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_fused(x, None, Fusion::default())
    }

    /// `residual + layer(prologue(x)) + shift` as one node, with `shift: [batch, out]` added to every pixel of a
    /// channel; a shift that needs a gradient is added by a separate node.
    ///
    /// **Shapes** `prologue(x): [batch, in, height, width]`; returns `[batch, out, oh, ow]`, the shape of the residual.
    ///
    /// **Gradient** to `x`, the shift and the residual.
    ///
    /// # Errors
    /// For shapes that do not fit.
    pub fn forward_fused(&self, x: &Tensor, shift: Option<&Tensor>, fusion: Fusion<'_>) -> Result<Tensor> {
        let tracked = shift.is_some_and(Tensor::track_op);
        if computes_here(&self.weight, x) && !tracked {
            return frozen_layer(x, self.product(), self.constants_with(shift, x)?, fusion);
        }
        fusion.run(x, |x| shifted(self.alone(x)?, shift))
    }

    /// `residual + layer(x) + scale · up ∗ (down ∗ x)` as one node; `down` has the layer's stride and padding.
    ///
    /// **Shapes** `x: [batch, in, height, width]`, `down: [rank, in, kh, kw]`, `up: [out, rank, 1, 1]`; returns
    /// `[batch, out, oh, ow]`, the shape of the residual.
    ///
    /// **Gradient** to `x`, `down`, `up` and the residual.
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
        let Convolution { stride, padding, .. } = self.sizes;
        if !computes_adapted_here(&self.weight, [x, down, up]) {
            let layer = self.forward_fused(x, None, Fusion { prologue: None, residual })?;
            return layer + low_rank_conv2d(x, down, up, scale, stride, padding)?;
        }
        let sizes = low_rank_sizes(x, down, up, stride, padding)?;
        if sizes.kernel != self.sizes.kernel || up.dims()[0] != self.sizes.out_channels {
            let (down, up) = (down.dims(), up.dims());
            candle_core::bail!("conv2d: down {down:?} and up {up:?} are no update of {:?}", self.sizes);
        }
        let update = LowRankConv2d { scale, sizes };
        adapted_layer([x, &taps_first(down)?, up], self.product(), self.bias.clone(), update, residual)
    }

    fn product(&self) -> Conv2d {
        Conv2d { weight: self.weight.clone(), sizes: self.sizes }
    }

    /// The bias and `shift: [batch, out]`.
    fn constants_with(&self, shift: Option<&Tensor>, x: &Tensor) -> Result<Constants> {
        let expected = [x.dims().first().copied().unwrap_or(0), self.sizes.out_channels];
        match shift {
            Some(shift) if shift.dims() != expected => {
                candle_core::bail!("conv2d: expected a shift {expected:?}, found {:?}", shift.dims())
            }
            _ => Ok(Constants { shift: shift.map(Tensor::contiguous).transpose()?, ..self.constants() }),
        }
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

    /// The layer for images of the kernel's size, with a single output position; the weight is shared.
    pub(super) fn on_kernel_sized_images(&self) -> Self {
        Self { sizes: Convolution { stride: 1, padding: 0, ..self.sizes }, ..self.without_bias() }
    }

    pub(super) fn constants(&self) -> Constants {
        Constants { bias: self.bias.clone(), shift: None }
    }

    /// The layer without fusion, on other devices or in half precision.
    fn alone(&self, x: &Tensor) -> Result<Tensor> {
        check_channels(x, &self.sizes)?;
        match &self.weight {
            Frozen::Device(weight) => self.forward_on_device(x, weight),
            _ => widened(x, |x| frozen_layer(x, self.product(), self.constants(), Fusion::default())),
        }
    }

    fn forward_on_device(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let Convolution { stride, padding, .. } = self.sizes;
        self.sizes.on((height, width))?;
        let y = device::conv2d(&x.detach(), weight, self.bias.as_ref(), stride, padding)?;
        let (layer, weight) = (self.clone(), weight.clone());
        let backward =
            move |grad: &Tensor| device::input_gradient(grad, &layer.turned(&weight)?, &layer.sizes, (height, width));
        with_backward(x, &y, Arc::new(backward))
    }

    /// The transposed weight, computed once: transposing costs as much as a small convolution, and inference never
    /// needs it.
    fn turned(&self, weight: &Tensor) -> Result<Tensor> {
        if let Some(turned) = self.turned.get() {
            return Ok(turned.clone());
        }
        let turned = device::transposed(weight)?;
        Ok(self.turned.get_or_init(|| turned).clone())
    }

    /// The layer as another device would hold it, with its weight in half precision.
    #[cfg(test)]
    pub(super) fn on_device(self, weight: &Tensor, bias: &Tensor) -> Self {
        Self { weight: Frozen::Device(weight.clone()), bias: Some(bias.clone()), ..self }
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

    /// Pixels from one window to the next.
    pub fn stride(&self) -> usize {
        self.sizes.stride
    }

    /// Zeros added on each side.
    pub fn padding(&self) -> usize {
        self.sizes.padding
    }
}

/// Adds `shift: [batch, channels]` to every pixel of `map: [batch, channels, height, width]`.
///
/// **Gradient** to `map` and `shift`.
///
/// # Errors
/// For shapes that do not fit.
pub fn shifted(map: Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
    match shift {
        Some(shift) => map.broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?),
        None => Ok(map),
    }
}

#[derive(Clone)]
struct Conv2d {
    weight: Frozen,
    sizes: Convolution,
}

impl Conv2d {
    fn placed(&self, x: &[usize]) -> Result<OnImages> {
        match x {
            [_, channels, height, width] if *channels == self.sizes.in_channels => self.sizes.on((*height, *width)),
            _ => candle_core::bail!("conv2d: expected [batch, {}, height, width], found {x:?}", self.sizes.in_channels),
        }
    }
}

impl Product for Conv2d {
    const NAME: &'static str = "frozen-conv2d";

    fn output(&self, x: &[usize]) -> Result<Shape> {
        let (height, width) = self.placed(x)?.output();
        Ok((x[0], self.sizes.out_channels, height, width).into())
    }

    fn forward<T: Float>(&self, x: View<'_, T>, start: Start<'_, T>) -> Result<Vec<T>> {
        let placed = self.placed(x.dims)?;
        let Frozen::Plain(weight) = &self.weight else {
            let (start, data, channels) = (single_start(start)?, single(x.data)?, self.sizes.in_channels);
            let x = Source::Planes { x: data, channels, size: (x.dims[2], x.dims[3]), frame: placed.frame() };
            let y = self.weight.sweep(x, Job::forward(placed.window(), start, Order::Planes))?;
            return Ok(T::from_f32s(y));
        };
        let area = placed.output().0 * placed.output().1;
        let mut y = placed.forward(x.data, &borrow::<T>(weight)?, None, x.dims[0]);
        for (plane, y) in y.chunks_exact_mut(area).enumerate() {
            let bias = start.bias.map_or(T::ZERO, |bias| bias[plane % bias.len()]);
            let shift = start.shift.map_or(T::ZERO, |shift| shift[plane]);
            y.iter_mut().for_each(|y| *y = *y + bias + shift);
        }
        y.iter_mut().zip(start.residual.unwrap_or(&[])).for_each(|(y, residual)| *y += *residual);
        Ok(y)
    }

    fn backward<T: Float>(&self, x: &[usize], grad: &[T]) -> Result<Vec<T>> {
        let placed = self.placed(x)?;
        let Frozen::Plain(weight) = &self.weight else {
            let (data, channels) = (single(grad)?, self.sizes.out_channels);
            let grad = Source::Planes { x: data, channels, size: placed.output(), frame: placed.backward_frame() };
            let window = placed.backward_window();
            let dx = self.weight.sweep(grad, Job::backward(window, Order::Planes))?;
            return Ok(T::from_f32s(dx));
        };
        Ok(placed.input_gradient(grad, &borrow::<T>(weight)?, x[0]))
    }
}
