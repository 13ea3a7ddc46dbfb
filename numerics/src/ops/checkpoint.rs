//! Gradient checkpointing: the backward pass recomputes activations that the graph does not keep.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, MetalStorage, Result, Shape, Tensor, Var,
};

use super::prepared::Prepared;
use catelier_kernels::{backward, release};

/// A part of a network, `(inputs, parameters) -> output`.
///
/// It must be deterministic: the recomputation must give the same result for the same tensors, so dropout must draw
/// from a fixed seed.
pub type Segment = Arc<dyn Fn(&[Tensor], &[Tensor]) -> Result<Tensor> + Send + Sync>;

/// Runs `f` as one node; the backward pass runs it again.
///
/// The graph keeps the inputs, the parameters and the output, but no activation inside `f`.
///
/// **Gradient** to every tensor of `inputs` and `parameters` that is a variable or part of a graph; tensors that `f`
/// captures get none. Tracked tensors of one list must share their element type and device; constants, such as indices,
/// need not.
///
/// **Source** Chen et al., arXiv 1604.06174.
///
/// # Errors
/// Errors of `f`, in the forward or the backward pass.
pub fn checkpoint(inputs: &[Tensor], parameters: &[Tensor], f: Segment) -> Result<Tensor> {
    // candle requires both arguments of a node on one device, even if one is empty.
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

/// The layout by which a list of tensors becomes one tensor: a node of candle has room for only a few arguments.
struct Pack {
    parts: Vec<Part>,
    /// A single tracked tensor is passed on unchanged, without a copy.
    single: bool,
}

enum Part {
    /// A constant: not differentiated and not packed.
    Constant(Tensor),
    /// The next elements of the packed tensor, in this shape.
    Tracked(Shape),
}

impl Pack {
    /// The layout, and all tracked tensors packed into one; candle's own operations pack, so they return the gradients.
    fn new(tensors: &[Tensor], device: &Device) -> Result<(Self, Tensor)> {
        let tracked: Vec<_> = tensors.iter().filter(|tensor| tensor.track_op()).collect();
        let part = |tensor: &Tensor| match tensor.track_op() {
            true => Part::Tracked(tensor.shape().clone()),
            false => Part::Constant(tensor.detach()),
        };
        let packed = match tracked.as_slice() {
            // One element and not zero, because CUDA allocates no empty tensor.
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

    /// The unpacked tensors; the tracked ones become variables of a new graph.
    fn variables(&self, packed: &Tensor) -> Result<Vec<Tensor>> {
        let tensors = self.unpack(packed)?;
        let variable = |(part, tensor): (&Part, Tensor)| match part {
            Part::Constant(_) => Ok(tensor),
            Part::Tracked(_) => Ok(Var::from_tensor(&tensor)?.into_inner()),
        };
        self.parts.iter().zip(tensors).map(variable).collect()
    }

    /// The gradient of the packed tensor, or `None` if no tensor in it is tracked.
    fn gradient(&self, variables: &[Tensor], store: &GradStore) -> Result<Option<Tensor>> {
        let tracked = self.parts.iter().zip(variables).filter(|(part, _)| matches!(part, Part::Tracked(_)));
        let gradient = |(_, variable): (&Part, &Tensor)| match store.get(variable) {
            // Detached, because the gradient would keep the inner graph in memory.
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
