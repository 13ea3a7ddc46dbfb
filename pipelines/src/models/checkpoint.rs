//! Gradient checkpointing: a block's activations are recomputed in the backward pass instead of kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::checkpoint;

/// A part of a network that can be recomputed from its inputs alone.
pub(super) trait Block: Send + Sync + 'static {
    /// The module path that all of the block's slots are under.
    fn path(&self) -> &str;

    /// One tensor from `inputs`.
    fn forward(&self, inputs: &[Tensor], pass: Pass<'_>) -> TensorResult<Tensor>;
}

/// Arguments of a forward pass that every block takes.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) adapters: &'a AdapterSet,
    pub(super) recompute: &'a Arc<Recompute>,
}

/// Which blocks' inner activations are recomputed in the backward pass instead of kept: the same result and gradients with
/// less memory, for one more forward pass of these blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Recompute {
    /// None.
    #[default]
    Nothing,
    /// Every one, and every feed-forward layer in it.
    All,
    /// The blocks and feed-forward layers at these module paths.
    Blocks(BTreeSet<String>),
}

impl Recompute {
    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Blocks(paths) => paths.contains(path),
        }
    }
}

impl Pass<'_> {
    /// Runs `block`; if it is to be recomputed, only its inputs are kept for the backward pass. The bits are the same.
    pub(super) fn run<B: Block>(&self, block: &Arc<B>, inputs: &[&Tensor]) -> TensorResult<Tensor> {
        if !self.recompute.has(block.path()) {
            let inputs = inputs.iter().map(|input| own_node(input)).collect::<TensorResult<Vec<Tensor>>>()?;
            return block.forward(&inputs, *self);
        }
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        let (block, adapters, recompute) = (block.clone(), self.adapters.clone(), self.recompute.clone());
        let parameters = adapters.parameters_under(block.path());
        let recompute_block = move |inputs: &[Tensor], parameters: &[Tensor]| {
            let adapters = adapters.with_parameters(block.path(), parameters);
            block.forward(inputs, Pass { adapters: &adapters, recompute: &recompute })
        };
        checkpoint(&inputs, &parameters, Arc::new(recompute_block))
    }
}

/// The same tensor as a node of its own: the gradients that come from within a block are added up there before others
/// join them, as they are when the block is recomputed.
fn own_node(input: &Tensor) -> TensorResult<Tensor> {
    if input.track_op() { input.reshape(input.shape()) } else { Ok(input.clone()) }
}
