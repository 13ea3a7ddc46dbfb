//! Linear layers from maps to tokens and back, without a transposed copy of the activations.

use candle_core::{DType, Result, Shape, Tensor};

use super::conv::FrozenConv2d;
use super::frozen::{Frozen, Source, single, single_start};
use super::fusion::{Fusion, frozen_layer};
use super::layer::Product;
use super::linear::FrozenLinear;
use catelier_kernels::{
    AddedKernel, Float, Frame, Job, Kernel1, Matrix, Order, Start, View, Window, apply_added, apply1,
};

impl FrozenLinear {
    /// Applies the layer to every pixel of `x: [batch, in, height, width]`; returns tokens
    /// `[batch, height · width, out]`.
    ///
    /// **Gradient** to `x` and the residual.
    ///
    /// # Errors
    /// For shapes that do not fit.
    pub fn map_to_tokens(&self, x: &Tensor, fusion: Fusion<'_>) -> Result<Tensor> {
        if let Some(product) = ToTokens::of(self.weight(), (self.in_features(), self.out_features()), x) {
            return frozen_layer(x, product, self.constants(), fusion);
        }
        let tokens = map_to_tokens(&fusion.apply_prologue(x)?)?;
        self.forward_fused(&tokens, Fusion { prologue: None, ..fusion })
    }

    /// Applies the layer to tokens `x: [batch, height · width, in]`; returns a map `[batch, out, height, width]`.
    ///
    /// **Gradient** to `x` and the residual.
    ///
    /// # Errors
    /// For shapes that do not fit.
    pub fn tokens_to_map(&self, x: &Tensor, size: (usize, usize), fusion: Fusion<'_>) -> Result<Tensor> {
        if let Some(product) = ToMap::of(self.weight(), (self.in_features(), self.out_features()), size, x) {
            return frozen_layer(x, product, self.constants(), fusion);
        }
        let tokens = self.forward_fused(x, Fusion { residual: None, ..fusion })?;
        tokens_to_map_onto(&tokens, size, fusion.residual)
    }
}

impl FrozenConv2d {
    /// [`FrozenLinear::map_to_tokens`] for a 1×1 convolution.
    ///
    /// # Errors
    /// For shapes that do not fit, and for other convolutions.
    pub fn map_to_tokens(&self, x: &Tensor, fusion: Fusion<'_>) -> Result<Tensor> {
        self.check_pointwise()?;
        if let Some(product) = ToTokens::of(self.weight(), (self.in_channels(), self.out_channels()), x) {
            return frozen_layer(x, product, self.constants(), fusion);
        }
        let map = self.forward_fused(x, None, Fusion { residual: None, ..fusion })?;
        Fusion { prologue: None, ..fusion }.run(&map, map_to_tokens)
    }

    /// [`FrozenLinear::tokens_to_map`] for a 1×1 convolution.
    ///
    /// # Errors
    /// For shapes that do not fit, and for other convolutions.
    pub fn tokens_to_map(&self, x: &Tensor, size: (usize, usize), fusion: Fusion<'_>) -> Result<Tensor> {
        self.check_pointwise()?;
        if let Some(product) = ToMap::of(self.weight(), (self.in_channels(), self.out_channels()), size, x) {
            return frozen_layer(x, product, self.constants(), fusion);
        }
        let map = tokens_to_map(&fusion.apply_prologue(x)?, size)?;
        self.forward_fused(&map, None, Fusion { prologue: None, ..fusion })
    }

    fn check_pointwise(&self) -> Result<()> {
        if (self.kernel(), self.stride(), self.padding()) != ((1, 1), 1, 0) {
            candle_core::bail!("conv2d: expected a 1×1 kernel between maps and tokens, found {:?}", self.kernel());
        }
        Ok(())
    }
}

/// `[batch, channels, height, width]` to `[batch, height · width, channels]`, copied.
///
/// **Gradient** to `map`.
pub fn map_to_tokens(map: &Tensor) -> Result<Tensor> {
    match computes(map) {
        true => apply1(map, CopiedToTokens),
        false => map.flatten_from(2)?.transpose(1, 2)?.contiguous(),
    }
}

/// `[batch, height · width, channels]` to `[batch, channels, height, width]`, copied.
///
/// **Gradient** to `tokens`.
///
/// # Errors
/// If the number of tokens is not `height · width`.
pub fn tokens_to_map(tokens: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    tokens_to_map_onto(tokens, size, None)
}

/// [`tokens_to_map`], added to a residual.
fn tokens_to_map_onto(tokens: &Tensor, size: (usize, usize), residual: Option<&Tensor>) -> Result<Tensor> {
    let (height, width) = size;
    let (batch, count, channels) = tokens.dims3()?;
    if count != height * width {
        candle_core::bail!("expected {height} · {width} tokens, found {count}");
    }
    match computes(tokens) {
        true => apply_added(tokens, residual, CopiedToMap { size }),
        false => Fusion { prologue: None, residual }
            .run(tokens, |tokens| tokens.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))),
    }
}

/// Whether the copy is a node of this crate, which releases its result in the backward pass.
fn computes(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// A copy of a map in the order of tokens.
struct CopiedToTokens;

impl Kernel1 for CopiedToTokens {
    const NAME: &'static str = "map to tokens";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let &[batch, channels, height, width] = x.dims else {
            candle_core::bail!("expected a map [batch, channels, height, width], found {:?}", x.dims);
        };
        Ok((transposed(x.data, channels, height * width), (batch, height * width, channels).into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        Ok(transposed(grad.data, x.dims[2] * x.dims[3], x.dims[1]))
    }
}

/// A copy of tokens in the order of a map.
struct CopiedToMap {
    size: (usize, usize),
}

impl AddedKernel for CopiedToMap {
    const NAME: &'static str = "tokens to map";

    fn forward<T: Float>(&self, x: View<'_, T>, residual: Option<View<'_, T>>) -> Result<(Vec<T>, Shape)> {
        let (tokens, channels, (height, width)) = (x.dims[1], x.dims[2], self.size);
        let mut map = transposed(x.data, tokens, channels);
        let shape = [x.dims[0], channels, height, width];
        if let Some(residual) = residual {
            if residual.dims != shape {
                candle_core::bail!("expected a residual {shape:?}, found {:?}", residual.dims);
            }
            map.iter_mut().zip(residual.data).for_each(|(value, residual)| *value += *residual);
        }
        Ok((map, shape.to_vec().into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, grad: &[T]) -> Result<Vec<T>> {
        Ok(transposed(grad, x.dims[2], x.dims[1]))
    }
}

/// Each matrix of `rows` by `columns` in `x`, transposed.
fn transposed<T: Float>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let (mut result, elements) = (vec![T::ZERO; x.len()], (rows * columns).max(1));
    for (matrix, result) in x.chunks_exact(elements).zip(result.chunks_exact_mut(elements)) {
        Matrix::new(matrix, rows, columns).transpose_into(result);
    }
    result
}

/// The weight, if it is packed and `x` is f32: packed kernels read and write tokens and maps in either order.
fn packed(weight: &Frozen, x: &Tensor) -> Option<Frozen> {
    let fits = matches!(weight, Frozen::F32(_) | Frozen::Bf16(_)) && x.dtype() == DType::F32;
    fits.then(|| weight.clone())
}

/// A window of one pixel.
fn pixels(size: (usize, usize)) -> Window {
    Window { kernel: (1, 1), stride: 1, output: size }
}

fn planes<T: Float>(x: &[T], channels: usize, size: (usize, usize)) -> Result<Source<'_>> {
    Ok(Source::Planes { x: single(x)?, channels, size, frame: Frame { size, origin: (0, 0), spread: 1 } })
}

fn tokens<T: Float>(x: &[T], channels: usize, size: (usize, usize)) -> Result<Source<'_>> {
    Ok(Source::Tokens { x: single(x)?, channels, size })
}

#[derive(Clone)]
struct ToTokens {
    weight: Frozen,
    in_channels: usize,
    out_channels: usize,
}

impl ToTokens {
    fn of(weight: &Frozen, (in_channels, out_channels): (usize, usize), x: &Tensor) -> Option<Self> {
        packed(weight, x).map(|weight| Self { weight, in_channels, out_channels })
    }

    fn size(&self, x: &[usize]) -> Result<(usize, usize)> {
        match x {
            [_, channels, height, width] if *channels == self.in_channels => Ok((*height, *width)),
            _ => candle_core::bail!("expected a map [batch, {}, height, width], found {x:?}", self.in_channels),
        }
    }
}

impl Product for ToTokens {
    const NAME: &'static str = "map-to-tokens";

    fn output(&self, x: &[usize]) -> Result<Shape> {
        let (height, width) = self.size(x)?;
        Ok((x[0], height * width, self.out_channels).into())
    }

    fn forward<T: Float>(&self, x: View<'_, T>, start: Start<'_, T>) -> Result<Vec<T>> {
        let size = self.size(x.dims)?;
        let (start, x) = (single_start(start)?, planes(x.data, self.in_channels, size)?);
        self.weight.sweep(x, Job::forward(pixels(size), start, Order::Tokens)).map(T::from_f32s)
    }

    fn backward<T: Float>(&self, x: &[usize], grad: &[T]) -> Result<Vec<T>> {
        let size = self.size(x)?;
        let grad = tokens(grad, self.out_channels, size)?;
        self.weight.sweep(grad, Job::backward(pixels(size), Order::Planes)).map(T::from_f32s)
    }
}

#[derive(Clone)]
struct ToMap {
    weight: Frozen,
    in_channels: usize,
    out_channels: usize,
    size: (usize, usize),
}

impl ToMap {
    fn of(
        weight: &Frozen,
        (in_channels, out_channels): (usize, usize),
        size: (usize, usize),
        x: &Tensor,
    ) -> Option<Self> {
        packed(weight, x).map(|weight| Self { weight, in_channels, out_channels, size })
    }
}

impl Product for ToMap {
    const NAME: &'static str = "tokens-to-map";

    fn output(&self, x: &[usize]) -> Result<Shape> {
        let (height, width) = self.size;
        match x {
            [batch, count, channels] if (*count, *channels) == (height * width, self.in_channels) => {
                Ok((*batch, self.out_channels, height, width).into())
            }
            _ => candle_core::bail!("expected tokens [batch, {height} · {width}, {}], found {x:?}", self.in_channels),
        }
    }

    fn forward<T: Float>(&self, x: View<'_, T>, start: Start<'_, T>) -> Result<Vec<T>> {
        self.output(x.dims)?;
        let (start, x) = (single_start(start)?, tokens(x.data, self.in_channels, self.size)?);
        self.weight.sweep(x, Job::forward(pixels(self.size), start, Order::Planes)).map(T::from_f32s)
    }

    fn backward<T: Float>(&self, _: &[usize], grad: &[T]) -> Result<Vec<T>> {
        let grad = planes(grad, self.out_channels, self.size)?;
        self.weight.sweep(grad, Job::backward(pixels(self.size), Order::Tokens)).map(T::from_f32s)
    }
}
