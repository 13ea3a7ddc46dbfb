//! Normalisations with a frozen scale and shift.

use std::marker::PhantomData;

use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::{Activation, Identity, Silu};
use super::composed::widened;
use super::device::{self, Curve};
use super::frozen::stored;
use super::layer::PrologueKernel;
use catelier_kernels::{Float, Kernel1, Loop, Simd, View, apply1, borrow, map_rows, sum, sum_of_products, vectorized};

/// Layer normalisation over the last dimension, not trained.
#[derive(Debug, Clone)]
pub struct FrozenLayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl FrozenLayerNorm {
    /// A layer with `weight`, `bias`: `[last]`; `eps` is added to the variance.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn new(weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        check_affine("layer norm", weight, bias)?;
        Ok(Self { weight: stored(weight)?, bias: stored(bias)?, eps })
    }

    /// `(x − mean) / √(variance + eps) · weight + bias`; `x: [..., last]`.
    ///
    /// **Gradient** to `x`.
    ///
    /// **Source** Ba, Kiros and Hinton, arXiv 1607.06450.
    ///
    /// # Errors
    /// If the last dimension differs from the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kernel = self.kernel(x)?;
        if x.device().is_cpu() {
            widened(x, |x| apply1(x, kernel))
        } else {
            device::layer_norm(x, &self.weight, &self.bias, self.eps)
        }
    }

    /// The kernel for inputs like `x`.
    pub(super) fn kernel(&self, x: &Tensor) -> Result<LayerNorm> {
        if x.dims().last() != self.weight.dims().last() {
            candle_core::bail!("layer norm: expected [..., {}], found {:?}", self.weight.elem_count(), x.dims());
        }
        Ok(LayerNorm(self.clone()))
    }
}

/// Group normalisation over channels, not trained.
#[derive(Debug, Clone)]
pub struct FrozenGroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl FrozenGroupNorm {
    /// A layer with `weight`, `bias`: `[channels]`; `eps` is added to the variance.
    ///
    /// # Errors
    /// If the shapes differ or the channels do not divide into groups.
    pub fn new(weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        check_affine("group norm", weight, bias)?;
        let channels = weight.elem_count();
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!("group norm: expected channels divisible by {groups} groups, found {channels}");
        }
        Ok(Self { weight: stored(weight)?, bias: stored(bias)?, groups, eps })
    }

    /// Normalises each group of channels to mean 0 and variance 1, then computes `· weight + bias`;
    /// `x: [batch, channels, ...]`.
    ///
    /// **Gradient** to `x`.
    ///
    /// **Source** Wu and He, arXiv 1803.08494.
    ///
    /// # Errors
    /// If the number of channels differs from the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, self.kernel(x)?, None)
    }

    /// [`FrozenGroupNorm::forward`] followed by SiLU, in one pass.
    ///
    /// **Gradient** to `x`.
    ///
    /// # Errors
    /// As for [`FrozenGroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, self.kernel_silu(x)?, Some(device::SILU))
    }

    /// The kernel of [`forward`](Self::forward) for inputs like `x`.
    pub(super) fn kernel(&self, x: &Tensor) -> Result<GroupNorm<Identity>> {
        self.followed_by(x)
    }

    /// The kernel of [`forward_silu`](Self::forward_silu) for inputs like `x`.
    pub(super) fn kernel_silu(&self, x: &Tensor) -> Result<GroupNorm<Silu>> {
        self.followed_by(x)
    }

    fn followed_by<A>(&self, x: &Tensor) -> Result<GroupNorm<A>> {
        if x.rank() < 2 || x.dims()[1] != self.weight.elem_count() {
            let (channels, found) = (self.weight.elem_count(), x.dims());
            candle_core::bail!("group norm: expected [batch, {channels}, ...], found {found:?}");
        }
        Ok(GroupNorm { layer: self.clone(), then: PhantomData })
    }

    /// Runs `kernel` on the CPU and candle's operations on other devices, where `curve` is `A`.
    fn run<A: Activation>(&self, x: &Tensor, kernel: GroupNorm<A>, curve: Option<Curve>) -> Result<Tensor> {
        if x.device().is_cpu() {
            return widened(x, |x| apply1(x, kernel));
        }
        device::group_norm(x, (&self.weight, &self.bias), self.groups, self.eps, curve)
    }
}

fn check_affine(what: &str, weight: &Tensor, bias: &Tensor) -> Result<()> {
    if weight.rank() != 1 || weight.dims() != bias.dims() {
        let (weight, bias) = (weight.dims(), bias.dims());
        candle_core::bail!("{what}: expected weight and bias of one equal dimension, found {weight:?} and {bias:?}");
    }
    Ok(())
}

/// Mean and `1 / √(variance + eps)`, in two passes so that a large mean costs no accuracy.
#[inline(always)]
fn moments<T: Float>(x: &[T], eps: f64) -> (T, T) {
    let n = x.len() as f64;
    let mean = T::from_f64(sum(x, |x| x) / n);
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    (mean, T::from_f64(1.0 / (variance + eps).sqrt()))
}

pub(super) struct LayerNorm(FrozenLayerNorm);

impl PrologueKernel for LayerNorm {
    fn output(&self, x: &[usize]) -> Vec<usize> {
        x.to_vec()
    }
}

impl Kernel1 for LayerNorm {
    const NAME: &'static str = "layer-norm";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (weight, bias) = (borrow::<T>(&self.0.weight)?, borrow::<T>(&self.0.bias)?);
        let (weight, bias): (&[T], &[T]) = (&weight, &bias);
        let (rows, width) = x.rows();
        let y = map_rows(rows, width, |first, y| {
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let x = &x.data[(first + row) * width..][..width];
                vectorized::<LayerNormRow, _>((x, weight, bias, self.0.eps, y));
            }
        });
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let weight = borrow::<T>(&self.0.weight)?;
        let weight: &[T] = &weight;
        let (rows, width) = x.rows();
        Ok(map_rows(rows, width, |first, dx| {
            for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                let at = (first + row) * width;
                let (x, grad) = (&x.data[at..][..width], &grad.data[at..][..width]);
                vectorized::<LayerNormRowBackward, _>((x, grad, weight, self.0.eps, dx));
            }
        }))
    }
}

struct LayerNormRow;

impl<T: Float> Loop<(&[T], &[T], &[T], f64, &mut [T])> for LayerNormRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, weight, bias, eps, y): (&[T], &[T], &[T], f64, &mut [T])) {
        let (mean, rate) = moments(x, eps);
        for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
            *y = (*x - mean) * rate * *weight + *bias;
        }
    }
}

struct LayerNormRowBackward;

impl<T: Float> Loop<(&[T], &[T], &[T], f64, &mut [T])> for LayerNormRowBackward {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, grad, weight, eps, dx): (&[T], &[T], &[T], f64, &mut [T])) {
        let (mean, rate) = moments(x, eps);
        for (dx, (grad, weight)) in dx.iter_mut().zip(grad.iter().zip(weight)) {
            *dx = *grad * *weight;
        }
        let correction = Correction::of(x, dx, mean, rate);
        correction.apply(x, dx, mean, rate);
    }
}

/// The two terms by which mean and variance, which depend on `x`, change the gradient `ds` of the normalised values:
/// `dx = rate · (ds − mean(ds) − x̂ · mean(ds · x̂))`.
struct Correction<T> {
    mean: T,
    slope: T,
}

impl<T: Float> Correction<T> {
    #[inline(always)]
    fn of(x: &[T], ds: &[T], mean: T, rate: T) -> Self {
        let n = x.len() as f64;
        let slope = sum_of_products(x, ds, |x, ds| ds * ((x - mean) * rate)) / n;
        Self { mean: T::from_f64(sum(ds, |ds| ds) / n), slope: T::from_f64(slope) }
    }

    #[inline(always)]
    fn apply(&self, x: &[T], ds: &mut [T], mean: T, rate: T) {
        for (ds, x) in ds.iter_mut().zip(x) {
            *ds = rate * (*ds - self.mean - (*x - mean) * rate * self.slope);
        }
    }
}

pub(super) struct GroupNorm<A> {
    layer: FrozenGroupNorm,
    then: PhantomData<A>,
}

impl<A: Activation> PrologueKernel for GroupNorm<A> {
    fn output(&self, x: &[usize]) -> Vec<usize> {
        x.to_vec()
    }
}

impl<A> GroupNorm<A> {
    /// Runs `f(group index, output of that group)` over all groups of all samples.
    fn for_groups<T: Float>(&self, dims: &[usize], f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        let mut output = vec![T::ZERO; dims.iter().product()];
        if !output.is_empty() {
            let size = output.len() / (dims[0] * self.layer.groups);
            output.par_chunks_mut(size).enumerate().for_each(|(index, output)| f(index, output));
        }
        output
    }

    /// Number of channels in a group, and the first channel of the group at `index`.
    fn channels(&self, index: usize) -> (usize, usize) {
        let count = self.layer.weight.elem_count() / self.layer.groups;
        (count, index % self.layer.groups * count)
    }
}

impl<A: Activation> Kernel1 for GroupNorm<A> {
    const NAME: &'static str = "group-norm";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (weight, bias) = (borrow::<T>(&self.layer.weight)?, borrow::<T>(&self.layer.bias)?);
        let (weight, bias): (&[T], &[T]) = (&weight, &bias);
        let y = self.for_groups(x.dims, |index, y| {
            let (count, first) = self.channels(index);
            let affine = (&weight[first..][..count], &bias[first..][..count]);
            let x = &x.data[index * y.len()..][..y.len()];
            vectorized::<GroupNormGroup<A>, _>((x, affine, self.layer.eps, y));
        });
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (weight, bias) = (borrow::<T>(&self.layer.weight)?, borrow::<T>(&self.layer.bias)?);
        let (weight, bias): (&[T], &[T]) = (&weight, &bias);
        Ok(self.for_groups(x.dims, |index, dx| {
            let (count, first) = self.channels(index);
            let affine = (&weight[first..][..count], &bias[first..][..count]);
            let at = index * dx.len();
            let (x, grad) = (&x.data[at..][..dx.len()], &grad.data[at..][..dx.len()]);
            vectorized::<GroupNormGroupBackward<A>, _>((x, grad, affine, self.layer.eps, dx));
        }))
    }
}

/// Weight and bias of the channels of a group.
type Affine<'a, T> = (&'a [T], &'a [T]);

/// Normalises one group, applies weight and bias by channel, then the activation `A`.
struct GroupNormGroup<A>(PhantomData<A>);

impl<A: Activation, T: Float> Loop<(&[T], Affine<'_, T>, f64, &mut [T])> for GroupNormGroup<A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, (weight, bias), eps, y): (&[T], Affine<'_, T>, f64, &mut [T])) {
        let area = x.len() / weight.len();
        let (mean, rate) = moments(x, eps);
        let channels = x.chunks_exact(area).zip(y.chunks_exact_mut(area));
        for ((x, y), (weight, bias)) in channels.zip(weight.iter().zip(bias)) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = A::value::<S, _>((*x - mean) * rate * *weight + *bias);
            }
        }
    }
}

/// Gradient of one group.
struct GroupNormGroupBackward<A>(PhantomData<A>);

impl<A: Activation, T: Float> Loop<(&[T], &[T], Affine<'_, T>, f64, &mut [T])> for GroupNormGroupBackward<A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, grad, (weight, bias), eps, dx): (&[T], &[T], Affine<'_, T>, f64, &mut [T])) {
        let area = x.len() / weight.len();
        let (mean, rate) = moments(x, eps);
        let channels = x.chunks_exact(area).zip(grad.chunks_exact(area)).zip(dx.chunks_exact_mut(area));
        for (((x, grad), dx), (weight, bias)) in channels.zip(weight.iter().zip(bias)) {
            for ((dx, x), grad) in dx.iter_mut().zip(x).zip(grad) {
                *dx = *grad * A::slope::<S, _>((*x - mean) * rate * *weight + *bias) * *weight;
            }
        }
        let correction = Correction::of(x, dx, mean, rate);
        correction.apply(x, dx, mean, rate);
    }
}
