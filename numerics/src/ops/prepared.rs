//! Graph nodes with a result computed in advance and a backward pass given as a function.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp3, Error, Layout, MetalStorage, Result, Shape, Storage, Tensor,
};

use catelier_kernels::NeedsGrad;

/// The result of a node, computed before the node exists.
pub(super) struct Prepared {
    storage: Mutex<Option<Storage>>,
    shape: Shape,
}

impl Prepared {
    /// Copies the elements of `y`.
    pub(super) fn new(y: &Tensor) -> Result<Self> {
        let begins_its_storage = y.is_contiguous() && y.layout().start_offset() == 0;
        let y = if begins_its_storage { y.clone() } else { y.force_contiguous()? };
        let (storage, layout) = y.storage_and_layout();
        Ok(Self { storage: Mutex::new(Some(storage.try_clone(layout)?)), shape: y.shape().clone() })
    }

    fn take(&self) -> Result<Storage> {
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner).take();
        storage.ok_or_else(|| Error::msg("a prepared value can be used once"))
    }

    pub(super) fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(storage) => Ok((storage, self.shape.clone())),
            _ => candle_core::bail!("expected a value on the CPU"),
        }
    }

    pub(super) fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(storage) => Ok((storage, self.shape.clone())),
            _ => candle_core::bail!("expected a value on a CUDA device"),
        }
    }

    pub(super) fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            Storage::Metal(storage) => Ok((storage, self.shape.clone())),
            _ => candle_core::bail!("expected a value on a Metal device"),
        }
    }
}

/// Computes the argument's gradient from the result's gradient.
pub(super) type Backward = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// A node with argument `x`, result `y` and the given backward pass.
///
/// Frozen layers on devices without kernels of this workspace use it, because candle would compute a gradient of their
/// weight.
pub(super) fn with_backward(x: &Tensor, y: &Tensor, backward: Backward) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(Node { y: Prepared::new(y)?, backward }) } else { Ok(y.detach()) }
}

/// Computes the gradients of three arguments from the arguments, the result's gradient and the list of gradients
/// needed.
pub(super) type Backward3 = Arc<dyn Fn([&Tensor; 3], &Tensor, NeedsGrad) -> Result<[Option<Tensor>; 3]> + Send + Sync>;

/// A node with three arguments, result `y` and the given backward pass.
pub(super) fn with_backward3(arguments: [&Tensor; 3], y: &Tensor, backward: Backward3) -> Result<Tensor> {
    let [a, b, c] = arguments;
    match arguments.iter().any(|argument| argument.track_op()) {
        true => a.apply_op3(b, c, Node { y: Prepared::new(y)?, backward }),
        false => Ok(y.detach()),
    }
}

struct Node<B> {
    y: Prepared,
    backward: B,
}

impl CustomOp1 for Node<Backward> {
    fn name(&self) -> &'static str {
        "prepared"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.y.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.y.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.y.metal()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // Detached, because a gradient with a graph would keep that graph in memory.
        (self.backward)(&grad.detach()).map(|gradient| Some(gradient.detach()))
    }
}

impl CustomOp3 for Node<Backward3> {
    fn name(&self) -> &'static str {
        "prepared"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.y.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.y.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.y.metal()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let arguments = [a, b, c];
        let needs_grad = arguments.map(Tensor::track_op);
        let detached = arguments.map(Tensor::detach);
        let gradients = (self.backward)(detached.each_ref(), &grad.detach(), needs_grad)?;
        let [da, db, dc] = gradients.map(|gradient| gradient.map(|gradient| gradient.detach()));
        // Without the filter, the gradient of an argument outside the graph would stay in memory until the backward
        // pass ends.
        Ok((da.filter(|_| needs_grad[0]), db.filter(|_| needs_grad[1]), dc.filter(|_| needs_grad[2])))
    }
}
