//! Element-wise non-linearities.

use std::marker::PhantomData;

use candle_core::{Result, Shape, Tensor};

use super::composed::widened;
use super::device;
use super::layer::PrologueKernel;
use catelier_kernels::{Float, Kernel1, Loop, Simd, View, apply1, map_rows, vectorized};

/// `x · σ(x)`, the sigmoid linear unit.
///
/// **Gradient** to `x`. **Source** Elfwing, Uchibe and Doya, arXiv 1702.03118.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    on_cpu(x, Pointwise::<Silu>(PhantomData), |x| device::pointwise(x, device::SILU))
}

/// `x · Φ(x)` with the exact normal distribution function (no tanh).
///
/// **Gradient** to `x`. **Source** Hendrycks and Gimpel, arXiv 1606.08415.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    on_cpu(x, Pointwise::<Gelu>(PhantomData), |x| device::pointwise(x, device::GELU))
}

/// `x · σ(1.702 x)`, the approximation that CLIP was trained with.
///
/// **Gradient** to `x`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    on_cpu(x, Pointwise::<QuickGelu>(PhantomData), |x| device::pointwise(x, device::QUICK_GELU))
}

/// `value · gelu(gate)`; `x: [..., 2n]` holds the value first, then the gate; returns `[..., n]`.
///
/// **Gradient** to `x`.
///
/// **Source** Shazeer, arXiv 2002.05202.
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    on_cpu(x, Geglu, device::geglu)
}

/// The kernel on the CPU, candle's operations on other devices.
pub(super) fn on_cpu<K: Kernel1>(x: &Tensor, kernel: K, device: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.device().is_cpu() { widened(x, |x| apply1(x, kernel)) } else { device(x) }
}

/// An element-wise function and its derivative. It is a type, so that each loop is compiled for it.
pub(super) trait Activation: Send + Sync + 'static {
    fn value<S: Simd, T: Float>(x: T) -> T;
    fn slope<S: Simd, T: Float>(x: T) -> T;
}

pub(super) struct Identity;

impl Activation for Identity {
    #[inline(always)]
    fn value<S: Simd, T: Float>(x: T) -> T {
        x
    }

    #[inline(always)]
    fn slope<S: Simd, T: Float>(_: T) -> T {
        T::ONE
    }
}

pub(super) struct Silu;

impl Activation for Silu {
    #[inline(always)]
    fn value<S: Simd, T: Float>(x: T) -> T {
        x * x.sigmoid::<S>()
    }

    #[inline(always)]
    fn slope<S: Simd, T: Float>(x: T) -> T {
        let s = x.sigmoid::<S>();
        s * (T::ONE + x * (T::ONE - s))
    }
}

struct QuickGelu;

/// Factor of the sigmoid's argument in [`quick_gelu`].
const QUICK: f64 = 1.702;

impl Activation for QuickGelu {
    #[inline(always)]
    fn value<S: Simd, T: Float>(x: T) -> T {
        x * (x * T::from_f64(QUICK)).sigmoid::<S>()
    }

    #[inline(always)]
    fn slope<S: Simd, T: Float>(x: T) -> T {
        let steep = x * T::from_f64(QUICK);
        let s = steep.sigmoid::<S>();
        s * (T::ONE + steep * (T::ONE - s))
    }
}

struct Gelu;

impl Activation for Gelu {
    #[inline(always)]
    fn value<S: Simd, T: Float>(x: T) -> T {
        x * x.normal::<S>().0
    }

    #[inline(always)]
    fn slope<S: Simd, T: Float>(x: T) -> T {
        let (cdf, density) = x.normal::<S>();
        cdf + x * density
    }
}

struct Pointwise<A>(PhantomData<A>);

impl<A: Activation> Kernel1 for Pointwise<A> {
    const NAME: &'static str = "activation";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let y = map_rows(x.data.len(), 1, |first, y| vectorized::<Values<A>, _>((&x.data[first..][..y.len()], y)));
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        Ok(map_rows(x.data.len(), 1, |first, dx| {
            let (x, grad) = (&x.data[first..][..dx.len()], &grad.data[first..][..dx.len()]);
            vectorized::<Chained<A>, _>((x, grad, dx));
        }))
    }
}

struct Values<A>(PhantomData<A>);

impl<A: Activation, T: Float> Loop<(&[T], &mut [T])> for Values<A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, y): (&[T], &mut [T])) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = A::value::<S, _>(*x);
        }
    }
}

struct Chained<A>(PhantomData<A>);

impl<A: Activation, T: Float> Loop<(&[T], &[T], &mut [T])> for Chained<A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (x, grad, dx): (&[T], &[T], &mut [T])) {
        for ((dx, x), grad) in dx.iter_mut().zip(x).zip(grad) {
            *dx = *grad * A::slope::<S, _>(*x);
        }
    }
}

pub(super) struct Geglu;

impl PrologueKernel for Geglu {
    fn output(&self, x: &[usize]) -> Vec<usize> {
        let (last, rows) = x.split_last().map_or((0, x), |(last, rows)| (*last, rows));
        [rows, &[last / 2]].concat()
    }
}

impl Kernel1 for Geglu {
    const NAME: &'static str = "geglu";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (rows, width) = x.rows();
        if x.dims.is_empty() || !width.is_multiple_of(2) {
            candle_core::bail!("geglu: expected an even last dimension, found shape {:?}", x.dims);
        }
        let half = width / 2;
        let y = map_rows(rows, half, |first, y| {
            for (row, y) in y.chunks_exact_mut(half).enumerate() {
                let (value, gate) = x.data[(first + row) * width..][..width].split_at(half);
                vectorized::<Gated, _>((value, gate, y));
            }
        });
        let mut shape = x.dims.to_vec();
        shape[x.dims.len() - 1] = half;
        Ok((y, shape.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (rows, width) = x.rows();
        let half = width / 2;
        Ok(map_rows(rows, width, |first, dx| {
            for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                let row = first + row;
                let (value, gate) = x.data[row * width..][..width].split_at(half);
                vectorized::<GatedBackward, _>((value, gate, &grad.data[row * half..][..half], dx));
            }
        }))
    }
}

struct Gated;

impl<T: Float> Loop<(&[T], &[T], &mut [T])> for Gated {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (value, gate, y): (&[T], &[T], &mut [T])) {
        for ((y, value), gate) in y.iter_mut().zip(value).zip(gate) {
            *y = *value * Gelu::value::<S, _>(*gate);
        }
    }
}

/// Backward pass of [`geglu`]: `dx` holds the gradient of the value, then the gradient of the gate.
struct GatedBackward;

impl<T: Float> Loop<(&[T], &[T], &[T], &mut [T])> for GatedBackward {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (value, gate, grad, dx): (&[T], &[T], &[T], &mut [T])) {
        let (d_value, d_gate) = dx.split_at_mut(value.len());
        let inputs = value.iter().zip(gate).zip(grad);
        for (((value, gate), grad), (d_value, d_gate)) in inputs.zip(d_value.iter_mut().zip(d_gate)) {
            let (cdf, density) = gate.normal::<S>();
            *d_value = *grad * *gate * cdf;
            *d_gate = *grad * *value * (cdf + *gate * density);
        }
    }
}
