//! Gradient checkpointing: the backward pass recomputes a block's activations instead of keeping them.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::checkpoint;

/// A part of a network whose activations can be recomputed from its inputs.
pub(super) trait Block: Send + Sync + 'static {
    /// The module path above all layers of the block.
    fn path(&self) -> &str;

    /// Computes one output from `inputs`.
    fn forward(&self, inputs: &[Tensor], pass: Pass<'_>) -> TensorResult<Tensor>;
}

/// Arguments of a forward pass that are the same for every block.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) adapters: &'a AdapterSet,
    pub(super) recompute: &'a Arc<Recompute>,
}

/// The blocks whose inner activations are recomputed in the backward pass: results and gradients have the same bits,
/// memory falls, and these blocks cost one more forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Recompute {
    /// No block.
    #[default]
    Nothing,
    /// Every block, and every feed-forward layer in it.
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
    /// Runs `block`. If it is to be recomputed, the graph keeps only its inputs; the bits are the same.
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

/// The input as a node of its own.
///
/// Gradients from within a block are added up at that node before gradients from elsewhere join them. A recomputed
/// block adds them in this order, so a kept one must too: floating-point sums depend on the order.
fn own_node(input: &Tensor) -> TensorResult<Tensor> {
    if input.track_op() { input.reshape(input.shape()) } else { Ok(input.clone()) }
}
