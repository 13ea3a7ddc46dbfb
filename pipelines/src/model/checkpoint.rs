//! Gradient checkpointing: a block's activations are computed again in the backward pass instead of kept.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::checkpoint;

/// A part of a network that can be computed again from its inputs alone.
pub(super) trait Block: Send + Sync + 'static {
    /// The module path that all of the block's slots are under.
    fn path(&self) -> &str;

    /// One tensor from `inputs`.
    fn forward(&self, inputs: &[Tensor], adapters: &AdapterSet) -> TensorResult<Tensor>;
}

/// What a forward pass carries through every block.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) adapters: &'a AdapterSet,
    pub(super) activations: Activations,
}

/// What becomes of a block's inner activations until the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activations {
    Keep,
    Recompute,
}

impl Pass<'_> {
    /// Runs `block`; with [`Activations::Recompute`] only its inputs are kept for the backward pass.
    pub(super) fn run<B: Block>(&self, block: &Arc<B>, inputs: &[&Tensor]) -> TensorResult<Tensor> {
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        if self.activations == Activations::Keep {
            return block.forward(&inputs, self.adapters);
        }
        let (block, adapters) = (block.clone(), self.adapters.clone());
        let parameters = adapters.parameters_under(block.path());
        let again = move |inputs: &[Tensor], parameters: &[Tensor]| {
            block.forward(inputs, &adapters.rebound(block.path(), parameters))
        };
        checkpoint(&inputs, &parameters, Arc::new(again))
    }
}
