//! Turns a kernel on slices into a node of candle's graph.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, Layout, Result, Shape, Storage, StorageRef,
    Tensor,
};

use super::{Float, release};

/// A contiguous tensor: its elements and dimensions.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    /// The elements, in row-major order.
    pub data: &'a [T],
    /// The dimensions.
    pub dims: &'a [usize],
}

impl<T> View<'_, T> {
    /// Size of the last dimension (1 for a scalar), and the number of rows of that size.
    pub fn rows(&self) -> (usize, usize) {
        let width = self.dims.last().copied().unwrap_or(1);
        (self.dims.iter().rev().skip(1).product(), width)
    }
}

/// A differentiable function of one tensor. Its fields are constants outside the graph and get no gradient.
pub trait Kernel1: Send + Sync + 'static {
    /// Name of the node, for error messages.
    const NAME: &'static str;

    /// The result and its shape.
    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)>;

    /// Gradient of `x`, from `x`, the result `y` and the result's gradient.
    fn backward<T: Float>(&self, x: View<'_, T>, y: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>>;
}

/// A differentiable function of one tensor that adds its result to a residual, if there is one.
pub trait AddedKernel: Send + Sync + 'static {
    /// Name of the node, for error messages.
    const NAME: &'static str;

    /// `residual + f(x)` and its shape.
    ///
    /// # Errors
    /// For a residual of another shape.
    fn forward<T: Float>(&self, x: View<'_, T>, residual: Option<View<'_, T>>) -> Result<(Vec<T>, Shape)>;

    /// Gradient of `x`. The residual's gradient equals the result's gradient.
    fn backward<T: Float>(&self, x: View<'_, T>, grad: &[T]) -> Result<Vec<T>>;
}

/// Which of three arguments need a gradient.
pub type NeedsGrad = [bool; 3];

/// A differentiable function of three tensors.
pub trait Kernel3: Send + Sync + 'static {
    /// Name of the node, for error messages.
    const NAME: &'static str;

    /// The result and its shape.
    fn forward<T: Float>(&self, arguments: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)>;

    /// Gradients of the arguments; a gradient that is not needed may be empty.
    fn backward<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        y: View<'_, T>,
        grad: View<'_, T>,
        needs_grad: NeedsGrad,
    ) -> Result<[Vec<T>; 3]>;
}

/// A differentiable function of two tensors that adds its result to a residual, if there is one.
pub trait AddedKernel2: Send + Sync + 'static {
    /// Name of the node, for error messages.
    const NAME: &'static str;

    /// `residual + f(x, y)` and its shape.
    ///
    /// # Errors
    /// For a residual of another shape.
    fn forward<T: Float>(&self, arguments: [View<'_, T>; 2], residual: Option<View<'_, T>>) -> Result<(Vec<T>, Shape)>;

    /// Gradients of `x` and `y`; a gradient that is not needed may be empty. The residual's gradient equals the
    /// result's gradient.
    fn backward<T: Float>(
        &self,
        arguments: [View<'_, T>; 2],
        grad: View<'_, T>,
        needs_grad: [bool; 2],
    ) -> Result<[Vec<T>; 2]>;
}

/// Applies a kernel to an f32 or f64 CPU tensor.
pub fn apply1<K: Kernel1>(x: &Tensor, kernel: K) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Node(kernel))
}

/// Applies a kernel to three CPU tensors of the same type, f32 or f64.
pub fn apply3<K: Kernel3>(x: &Tensor, y: &Tensor, z: &Tensor, kernel: K) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&y.contiguous()?, &z.contiguous()?, Node(kernel))
}

/// Applies a kernel to an f32 or f64 CPU tensor and adds `residual`, of the same type.
pub fn apply_added<K: AddedKernel>(x: &Tensor, residual: Option<&Tensor>, kernel: K) -> Result<Tensor> {
    match residual {
        None => x.contiguous()?.apply_op1(Added(kernel)),
        Some(residual) => x.contiguous()?.apply_op2(&residual.contiguous()?, Added(kernel)),
    }
}

/// Applies a kernel to two CPU tensors and adds `residual`, all of the same type, f32 or f64.
pub fn apply_added2<K: AddedKernel2>(x: &Tensor, y: &Tensor, residual: Option<&Tensor>, kernel: K) -> Result<Tensor> {
    let (x, y, kernel) = (x.contiguous()?, y.contiguous()?, Added2(kernel));
    match residual {
        None => x.apply_op2(&y, kernel),
        Some(residual) => x.apply_op3(&y, &residual.contiguous()?, kernel),
    }
}

/// The elements of a tensor, borrowed from its storage.
pub struct Borrowed<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

/// Borrows the elements of a contiguous CPU tensor of type `T`.
pub fn borrow<T: Float>(tensor: &Tensor) -> Result<Borrowed<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*storage {
        Storage::Cpu(cpu) => T::cpu_storage_as_slice(cpu)?,
        _ => candle_core::bail!("kernel: expected a tensor on the CPU"),
    };
    Ok(Borrowed { storage, range, element: PhantomData })
}

impl<T: Float> Deref for Borrowed<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(cpu) => match T::cpu_storage_as_slice(cpu) {
                Ok(slice) => &slice[self.range.clone()],
                Err(_) => unreachable!("the element type was checked when the tensor was borrowed"),
            },
            _ => unreachable!("the device was checked when the tensor was borrowed"),
        }
    }
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::msg("kernel: expected a contiguous tensor"))?;
    Ok(start..end)
}

fn view<'a, T: Float>(storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a, T>> {
    let data = &T::cpu_storage_as_slice(storage)?[contiguous(layout)?];
    Ok(View { data, dims: layout.dims() })
}

/// Runs `$body` with `$type` as the element type `$dtype`.
macro_rules! for_dtype {
    ($dtype:expr, $name:expr, $type:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $type = f32;
                $body
            }
            DType::F64 => {
                type $type = f64;
                $body
            }
            other => candle_core::bail!("{}: expected f32 or f64, found {other:?}", $name),
        }
    };
}

struct Node<K>(K);

impl<K: Kernel1> CustomOp1 for Node<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_dtype!(dtype_of(storage), K::NAME, T => {
            let (values, shape) = self.0.forward::<T>(view(storage, layout)?)?;
            Ok((own(values), shape))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let values = for_dtype!(x.dtype(), K::NAME, T => {
            let (x_data, y_data, grad_data) = (borrow::<T>(x)?, borrow::<T>(y)?, borrow::<T>(&grad)?);
            let (y, grad) = (see(&y_data, y), see(&grad_data, &grad));
            own(self.0.backward(see(&x_data, x), y, grad)?)
        });
        release(y)?;
        tensor(values, x.shape()).map(Some)
    }
}

struct Added<K>(K);

impl<K: AddedKernel> Added<K> {
    fn forward(&self, (x, layout): (&CpuStorage, &Layout), residual: Option<(&CpuStorage, &Layout)>) -> Forwarded {
        for_dtype!(dtype_of(x), K::NAME, T => {
            let residual = residual.map(|(storage, layout)| view::<T>(storage, layout)).transpose()?;
            let (values, shape) = self.0.forward::<T>(view(x, layout)?, residual)?;
            Ok((own(values), shape))
        })
    }

    fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let values = for_dtype!(x.dtype(), K::NAME, T => {
            let (x_data, grad) = (borrow::<T>(x)?, borrow::<T>(&grad)?);
            own(self.0.backward(see(&x_data, x), &grad)?)
        });
        tensor(values, x.shape()).map(Some)
    }
}

/// The result of a forward pass, in candle's form.
type Forwarded = Result<(CpuStorage, Shape)>;

impl<K: AddedKernel> CustomOp1 for Added<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Forwarded {
        self.forward((storage, layout), None)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.backward(x, grad)?;
        release(y)?;
        Ok(gradient)
    }
}

impl<K: AddedKernel> CustomOp2 for Added<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Forwarded {
        self.forward((s1, l1), Some((s2, l2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = self.backward(x, grad)?;
        release(y)?;
        Ok((gradient, residual.track_op().then(|| grad.clone())))
    }
}

struct Added2<K>(K);

impl<K: AddedKernel2> Added2<K> {
    fn forward(&self, arguments: [(&CpuStorage, &Layout); 2], residual: Option<(&CpuStorage, &Layout)>) -> Forwarded {
        let [(x, x_layout), (y, y_layout)] = arguments;
        for_dtype!(dtype_of(x), K::NAME, T => {
            let residual = residual.map(|(storage, layout)| view::<T>(storage, layout)).transpose()?;
            let (values, shape) = self.0.forward::<T>([view(x, x_layout)?, view(y, y_layout)?], residual)?;
            Ok((own(values), shape))
        })
    }

    fn backward(&self, [x, y]: [&Tensor; 2], result: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let needs_grad = [x, y].map(Tensor::track_op);
        let [dx, dy] = for_dtype!(x.dtype(), K::NAME, T => {
            let (x_data, y_data, grad_data) = (borrow::<T>(x)?, borrow::<T>(y)?, borrow::<T>(grad)?);
            let arguments = [see(&x_data, x), see(&y_data, y)];
            self.0.backward(arguments, see(&grad_data, grad), needs_grad)?.map(own)
        });
        release(result)?;
        Ok([gradient_of(needs_grad[0], dx, x)?, gradient_of(needs_grad[1], dy, y)?])
    }
}

impl<K: AddedKernel2> CustomOp2 for Added2<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Forwarded {
        self.forward([(s1, l1), (s2, l2)], None)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, result: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dy] = self.backward([x, y], result, &grad.contiguous()?)?;
        Ok((dx, dy))
    }
}

impl<K: AddedKernel2> CustomOp3 for Added2<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Forwarded {
        self.forward([(s1, l1), (s2, l2)], Some((s3, l3)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        residual: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [dx, dy] = self.backward([x, y], result, &grad)?;
        Ok((dx, dy, residual.track_op().then_some(grad)))
    }
}

impl<K: Kernel3> CustomOp3 for Node<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_dtype!(dtype_of(s1), K::NAME, T => {
            let (values, shape) = self.0.forward::<T>([view(s1, l1)?, view(s2, l2)?, view(s3, l3)?])?;
            Ok((own(values), shape))
        })
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad, needs_grad) = (grad.contiguous()?, [a, b, c].map(Tensor::track_op));
        let [da, db, dc] = for_dtype!(a.dtype(), K::NAME, T => {
            let (a_data, b_data, c_data) = (borrow::<T>(a)?, borrow::<T>(b)?, borrow::<T>(c)?);
            let (y_data, grad_data) = (borrow::<T>(y)?, borrow::<T>(&grad)?);
            let arguments = [see(&a_data, a), see(&b_data, b), see(&c_data, c)];
            let gradients = self.0.backward(arguments, see(&y_data, y), see(&grad_data, &grad), needs_grad)?;
            gradients.map(own)
        });
        release(y)?;
        Ok((gradient_of(needs_grad[0], da, a)?, gradient_of(needs_grad[1], db, b)?, gradient_of(needs_grad[2], dc, c)?))
    }
}

/// The gradient of an argument, if it needs one.
fn gradient_of(needs_grad: bool, values: CpuStorage, like: &Tensor) -> Result<Option<Tensor>> {
    needs_grad.then(|| tensor(values, like.shape())).transpose()
}

fn dtype_of(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

fn see<'a, T>(data: &'a [T], tensor: &'a Tensor) -> View<'a, T> {
    View { data, dims: tensor.dims() }
}

fn own<T: Float>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

fn tensor(values: CpuStorage, shape: &Shape) -> Result<Tensor> {
    match values {
        CpuStorage::F32(values) => Tensor::from_vec(values, shape, &Device::Cpu),
        CpuStorage::F64(values) => Tensor::from_vec(values, shape, &Device::Cpu),
        other => candle_core::bail!("kernel: unexpected gradient of type {:?}", dtype_of(&other)),
    }
}
