//! Gradient checkpointing: activations are recomputed in the backward pass instead of kept.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, MetalStorage, Result, Shape, Tensor, Var,
};

use super::prepared::Prepared;
use catelier_kernels::{backward, release};

/// A stretch of computation, `(inputs, parameters) -> output`.
///
/// It must be a function: called again with the same tensors it must give the same result, so randomness (dropout)
/// has to come from a fixed seed.
pub type Segment = Arc<dyn Fn(&[Tensor], &[Tensor]) -> Result<Tensor> + Send + Sync>;

/// Runs `f` without keeping what happens inside; the backward pass runs it again.
///
/// The graph holds the inputs, the parameters and the output, nothing in between.
///
/// **Gradient** to every tensor of `inputs` and `parameters` that is part of a graph or a variable; tensors that `f`
/// uses by capture get none. Tracked tensors of one list must share their element type and device, constants
/// (such as indices) need not.
///
/// **Errors** those of `f`, in the forward or the backward pass.
///
/// **Source** Chen et al., arXiv 1604.06174.
pub fn checkpoint(inputs: &[Tensor], parameters: &[Tensor], f: Segment) -> Result<Tensor> {
    // Both arguments of the node must be on one device, even one that is empty.
    let device = inputs.iter().chain(parameters).next().map_or(&Device::Cpu, Tensor::device);
    let (inputs, packed_inputs) = Pack::new(inputs, device)?;
    let (parameters, packed_parameters) = Pack::new(parameters, device)?;
    let y = f(&inputs.unpack(&packed_inputs.detach())?, &parameters.unpack(&packed_parameters.detach())?)?;
    if !packed_inputs.track_op() && !packed_parameters.track_op() {
        return Ok(y.detach());
    }
    let y = Prepared::new(&y)?;
    packed_inputs.apply_op2(&packed_parameters, Checkpoint { f, inputs, parameters, y })
}

/// How a list of tensors becomes one: a node of the graph has room for only a few arguments.
struct Pack {
    parts: Vec<Part>,
    /// A single tracked tensor is passed as it is, without a copy.
    single: bool,
}

enum Part {
    /// Not differentiated, kept as it is.
    Constant(Tensor),
    /// The next elements of the packed tensor, in this shape.
    Tracked(Shape),
}

impl Pack {
    /// The plan, and all tracked tensors as one; candle's own flattening and joining route the gradients back.
    fn new(tensors: &[Tensor], device: &Device) -> Result<(Self, Tensor)> {
        let tracked: Vec<_> = tensors.iter().filter(|tensor| tensor.track_op()).collect();
        let part = |tensor: &Tensor| match tensor.track_op() {
            true => Part::Tracked(tensor.shape().clone()),
            false => Part::Constant(tensor.detach()),
        };
        let packed = match tracked.as_slice() {
            // Not of no elements, for which CUDA gives no memory.
            [] => Tensor::zeros(1, DType::F32, device)?,
            [single] => (*single).clone(),
            many => Tensor::cat(&many.iter().map(|tensor| tensor.flatten_all()).collect::<Result<Vec<_>>>()?, 0)?,
        };
        Ok((Self { parts: tensors.iter().map(part).collect(), single: tracked.len() == 1 }, packed))
    }

    fn unpack(&self, packed: &Tensor) -> Result<Vec<Tensor>> {
        let mut start = 0;
        let take = |part: &Part| match part {
            Part::Constant(tensor) => Ok(tensor.clone()),
            Part::Tracked(_) if self.single => Ok(packed.clone()),
            Part::Tracked(shape) => {
                let piece = packed.narrow(0, start, shape.elem_count())?;
                start += shape.elem_count();
                piece.reshape(shape)
            }
        };
        self.parts.iter().map(take).collect()
    }

    /// The tensors, with the tracked ones as variables of a graph of their own.
    fn variables(&self, packed: &Tensor) -> Result<Vec<Tensor>> {
        let tensors = self.unpack(packed)?;
        let variable = |(part, tensor): (&Part, Tensor)| match part {
            Part::Constant(_) => Ok(tensor),
            Part::Tracked(_) => Ok(Var::from_tensor(&tensor)?.into_inner()),
        };
        self.parts.iter().zip(tensors).map(variable).collect()
    }

    /// The gradient of the packed tensor, or nothing if nothing in it is tracked.
    fn gradient(&self, variables: &[Tensor], store: &GradStore) -> Result<Option<Tensor>> {
        let tracked = self.parts.iter().zip(variables).filter(|(part, _)| matches!(part, Part::Tracked(_)));
        let gradient = |(_, variable): (&Part, &Tensor)| match store.get(variable) {
            // Detached, or the gradient would keep the inner graph alive.
            Some(gradient) => Ok(gradient.detach()),
            None => variable.zeros_like(),
        };
        let gradients = tracked.map(gradient).collect::<Result<Vec<_>>>()?;
        match gradients.as_slice() {
            [] => Ok(None),
            [single] if self.single => Ok(Some(single.clone())),
            many => {
                let flat = many.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&flat, 0).map(Some)
            }
        }
    }
}

struct Checkpoint {
    f: Segment,
    inputs: Pack,
    parameters: Pack,
    y: Prepared,
}

impl CustomOp2 for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.y.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.y.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.y.metal()
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        parameters: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        release(result)?;
        let inputs = self.inputs.variables(&inputs.detach())?;
        let parameters = self.parameters.variables(&parameters.detach())?;
        let y = (self.f)(&inputs, &parameters)?;
        let store = backward((y * grad.detach())?.sum_all()?)?;
        Ok((self.inputs.gradient(&inputs, &store)?, self.parameters.gradient(&parameters, &store)?))
    }
}
