//! How the weight of a frozen layer is kept: in the order in which this processor multiplies by it.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use half::bf16;

use crate::kernel::{
    Direction, Field, Float, Frame, Order, Packed, Window, has_bf16_instructions, has_wide_vectors, lend, sweep,
};

/// A weight that is not trained, `[out, taps, in]`; a linear layer has one tap.
#[derive(Debug, Clone)]
pub(super) enum Frozen {
    /// On another device, in candle's order of dimensions.
    Elsewhere(Tensor),
    /// As a tensor in that order, for the general kernels.
    Plain(Tensor),
    /// For processors with 512-bit vectors.
    F32(Arc<Packed<f32>>),
    /// For processors that also multiply bf16. Products are of bf16, sums in f32.
    Bf16(Arc<Packed<bf16>>),
}

/// The left operand, before it is laid out for a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[rows, channels]`.
    Tokens { x: &'a [f32], channels: usize },
    /// `[batch, channels, height, width]`, in a frame of zeros.
    Planes { x: &'a [f32], channels: usize, size: (usize, usize), frame: Frame },
}

impl Frozen {
    /// From `weight: [out, taps, in]` on the processor. bf16 stays bf16 where there are instructions for it; other
    /// half-precision weights are widened to f32.
    pub(super) fn new(weight: &Tensor) -> Result<Self> {
        let dims = weight.dims3()?;
        match weight.dtype() {
            DType::BF16 if has_bf16_instructions() => Ok(Self::Bf16(Arc::new(packed_bf16(weight, dims)?))),
            DType::BF16 | DType::F16 => Self::new(&weight.to_dtype(DType::F32)?),
            DType::F32 if has_wide_vectors() => {
                let weight = weight.contiguous()?;
                let numbers = lend::<f32>(&weight)?;
                Ok(Self::F32(Arc::new(Packed::new(dims, |index| numbers[index]))))
            }
            _ => Ok(Self::Plain(weight.detach().contiguous()?)),
        }
    }

    /// The product with a packed weight. **Errors** if it is not packed, or the source is not f32.
    pub(super) fn sweep(
        &self,
        source: Source<'_>,
        window: Window,
        direction: Direction,
        bias: Option<&Tensor>,
        order: Order,
    ) -> Result<Vec<f32>> {
        let bias = bias.map(lend::<f32>).transpose()?;
        let bias = bias.as_deref();
        match self {
            Self::F32(weight) => Ok(sweep(&source.as_it_lies(), window, weight, direction, bias, order)),
            Self::Bf16(weight) => Ok(sweep(&source.rounded(), window, weight, direction, bias, order)),
            Self::Plain(_) | Self::Elsewhere(_) => candle_core::bail!("sweep: the weight is not packed"),
        }
    }
}

fn packed_bf16(weight: &Tensor, dims: (usize, usize, usize)) -> Result<Packed<bf16>> {
    let numbers = weight.flatten_all()?.to_vec1::<bf16>()?;
    Ok(Packed::new(dims, |index| numbers[index].to_f32()))
}

impl<'a> Source<'a> {
    fn as_it_lies(self) -> Field<'a, f32> {
        match self {
            Self::Tokens { x, channels } => Field::borrowed(x, channels),
            Self::Planes { x, channels, size, frame } => Field::planes(x, channels, size, frame),
        }
    }

    fn rounded(self) -> Field<'a, bf16> {
        match self {
            Self::Tokens { x, channels } => Field::tokens(x, channels),
            Self::Planes { x, channels, size, frame } => Field::planes(x, channels, size, frame),
        }
    }
}

/// The slice as f32. **Errors** for f64: a packed weight is not as accurate.
pub(super) fn single<T: Float>(x: &[T]) -> Result<&[f32]> {
    T::as_f32(x).ok_or_else(|| candle_core::Error::msg("expected f32 for a layer of f32 or bf16 weights, found f64"))
}
