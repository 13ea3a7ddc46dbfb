//! A backward pass that frees memory: a node releases its result as soon as its gradient has been passed on.

use std::cell::Cell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

thread_local! {
    /// Whether the backward pass on this thread releases results.
    static RELEASING: Cell<bool> = const { Cell::new(false) };
}

/// Gradients of `objective`, a scalar, with respect to every variable in its graph. It uses up the graph: on the CPU,
/// every operation of this crate releases its result as soon as its gradient has been passed on, instead of at the end
/// of the pass. Memory falls from the first layer that goes backward to the last.
///
/// Afterwards no tensor of the graph except variables may be read or go backward again. [`Tensor::backward`] releases
/// nothing.
///
/// # Errors
/// Errors of the operations' backward passes.
pub fn backward(objective: Tensor) -> Result<GradStore> {
    // Backward passes nest: a recomputed segment goes backward inside the pass of the whole graph.
    let outer = RELEASING.replace(true);
    let gradients = objective.backward();
    RELEASING.set(outer);
    gradients
}

/// Releases the memory of `result` if the current pass is [`backward`]. A node calls it after it has computed its
/// gradients: candle visits a node after all nodes that use its result, so nothing reads the result again.
///
/// # Errors
/// Errors of candle.
pub fn release(result: &Tensor) -> Result<()> {
    if RELEASING.get() && result.device().is_cpu() { result.inplace_op1(&Release) } else { Ok(()) }
}

struct Release;

impl InplaceOp1 for Release {
    fn name(&self) -> &'static str {
        "release"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        // The tensor stays in the graph, so only its storage can be replaced, by one without elements.
        *storage = CpuStorage::U8(Vec::new());
        Ok(())
    }
}
