//! The weight of a frozen layer, packed in the order in which this CPU's kernels read it.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use catelier_kernels::{
    Convolution, Field, Float, Frame, Job, KEPT_TRANSPOSED, Packed, Start, borrow, has_bf16_instructions,
    has_wide_vectors, pays, scratch_bytes, sweep, winograd, winograd_bytes,
};

/// Bytes that a frozen weight of `elements` elements of type `dtype` takes on this CPU after its first backward pass,
/// which keeps a transposed copy of a small weight.
pub fn weight_bytes(elements: u64, dtype: DType) -> u64 {
    let bytes = match dtype {
        DType::BF16 if has_bf16_instructions() => 2 * elements,
        DType::F64 => 8 * elements,
        _ => 4 * elements,
    };
    if has_wide_vectors() && bytes <= KEPT_TRANSPOSED as u64 { 2 * bytes } else { bytes }
}

/// Estimate of the bytes that a 3 × 3 convolution of stride 1 allocates on this CPU for one map of `pixels` pixels,
/// from `inputs` to `outputs` channels, in addition to its padded input and its result.
pub fn convolution_scratch_bytes([inputs, outputs]: [usize; 2], pixels: usize) -> u64 {
    let threads = rayon::current_num_threads();
    let bytes = match has_wide_vectors() {
        true => winograd_bytes(inputs, pixels, threads),
        false => scratch_bytes([inputs, outputs], pixels, threads),
    };
    bytes as u64
}

/// Detached, contiguous, and f32 where the CPU would have to compute in half precision.
pub(super) fn stored(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    match weight.dtype() {
        DType::F16 | DType::BF16 if weight.device().is_cpu() => weight.to_dtype(DType::F32)?.contiguous(),
        _ => weight.contiguous(),
    }
}

/// Refuses maps that are not `[batch, in_channels, height, width]`.
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

/// A weight that is not trained, `[out, taps, in]`; a linear layer has one tap.
#[derive(Debug, Clone)]
pub(super) enum Frozen {
    /// A weight on another device, as candle stores it.
    Device(Tensor),
    /// A plain tensor `[out, taps, in]`, for the portable kernels.
    Plain(Tensor),
    /// A packed f32 weight, for CPUs with 512-bit vectors.
    F32(Arc<Packed<f32>>),
    /// A packed bf16 weight, for CPUs with bf16 instructions. Sums are f32; factors are bf16, except in Winograd
    /// convolutions, whose transforms would enlarge the rounding errors.
    Bf16(Arc<Packed<bf16>>),
}

/// The left operand, before it is converted to a kernel's layout.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[batch · height · width, channels]`, in samples of `size`.
    Tokens { x: &'a [f32], channels: usize, size: (usize, usize) },
    /// `[batch, channels, height, width]`, in a frame of zeros.
    Planes { x: &'a [f32], channels: usize, size: (usize, usize), frame: Frame },
}

impl Frozen {
    /// From `weight: [out, taps, in]` on the CPU. bf16 stays bf16 where there are instructions for it; other
    /// half-precision weights are widened to f32.
    pub(super) fn new(weight: &Tensor) -> Result<Self> {
        let dims = weight.dims3()?;
        match weight.dtype() {
            DType::BF16 if has_bf16_instructions() => Ok(Self::Bf16(Arc::new(packed_bf16(weight, dims)?))),
            DType::BF16 | DType::F16 => Self::new(&weight.to_dtype(DType::F32)?),
            DType::F32 if has_wide_vectors() => {
                let weight = weight.contiguous()?;
                let borrowed = borrow::<f32>(&weight)?;
                let values: &[f32] = &borrowed;
                Ok(Self::F32(Arc::new(Packed::new(dims, |index| values[index]))))
            }
            _ => Ok(Self::Plain(weight.detach().contiguous()?)),
        }
    }

    /// Squared norm of the weights of each output, `[out]`, in f64.
    pub(super) fn squared_norms(&self) -> Result<Tensor> {
        match self {
            Self::F32(weight) => Tensor::new(weight.squared_norms(), &Device::Cpu),
            Self::Bf16(weight) => Tensor::new(weight.squared_norms(), &Device::Cpu),
            Self::Plain(weight) | Self::Device(weight) => weight.flatten_from(1)?.to_dtype(DType::F64)?.sqr()?.sum(1),
        }
    }

    /// The product of `source` with a packed weight.
    ///
    /// # Errors
    /// If the weight is not packed.
    pub(super) fn sweep(&self, source: Source<'_>, job: Job<'_>) -> Result<Vec<f32>> {
        match self {
            Self::F32(weight) if pays::<f32>(job.window) => Ok(winograd(&source.as_it_lies(), weight, job)),
            Self::Bf16(weight) if pays::<bf16>(job.window) => Ok(winograd(&source.as_it_lies(), weight, job)),
            Self::F32(weight) => Ok(sweep(&source.as_it_lies(), weight, job)),
            Self::Bf16(weight) => Ok(sweep(&source.rounded(), weight, job)),
            Self::Plain(_) | Self::Device(_) => candle_core::bail!("sweep: the weight is not packed"),
        }
    }
}

fn packed_bf16(weight: &Tensor, dims: (usize, usize, usize)) -> Result<Packed<bf16>> {
    let values = weight.flatten_all()?.to_vec1::<bf16>()?;
    Ok(Packed::new(dims, |index| values[index].to_f32()))
}

impl<'a> Source<'a> {
    fn as_it_lies(self) -> Field<'a, f32> {
        match self {
            Self::Tokens { x, channels, size } => Field::borrowed(x, channels, size),
            Self::Planes { x, channels, size, frame } => Field::planes(x, channels, size, frame),
        }
    }

    fn rounded(self) -> Field<'a, bf16> {
        match self {
            Self::Tokens { x, channels, size } => Field::tokens(x, channels, size),
            Self::Planes { x, channels, size, frame } => Field::planes(x, channels, size, frame),
        }
    }
}

/// The values that a product with a packed weight is added to, as f32.
pub(super) fn single_start<T: Float>(start: Start<'_, T>) -> Result<Start<'_, f32>> {
    let [bias, shift, residual] =
        [start.bias, start.shift, start.residual].map(|values| values.map(single).transpose());
    Ok(Start { bias: bias?, shift: shift?, residual: residual? })
}

/// The slice as f32.
///
/// # Errors
/// If `T` is f64, because a packed weight is less accurate.
pub(super) fn single<T: Float>(x: &[T]) -> Result<&[f32]> {
    T::as_f32(x).ok_or_else(|| candle_core::Error::msg("expected f32 for a layer of f32 or bf16 weights, found f64"))
}
