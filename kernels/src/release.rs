//! Memory of a graph that goes backward once: a result is released as soon as its gradient has been passed on.

use std::cell::Cell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

thread_local! {
    /// Whether the backward pass that runs on this thread releases results.
    static RELEASING: Cell<bool> = const { Cell::new(false) };
}

/// Gradients of `objective`, a scalar, with respect to every variable in its graph. The graph is used up: on the CPU, the
/// result of every operation of this crate is released as soon as its gradient has been passed on, instead of at the end of
/// the pass. Memory falls from the first layer that goes backward to the last.
///
/// No tensor of the graph may be read afterwards or go backward again, except variables; [`Tensor::backward`] releases
/// nothing.
///
/// # Errors
/// Those of the operations' backward passes.
pub fn backward(objective: Tensor) -> Result<GradStore> {
    // Backward passes nest: a recomputed segment goes backward inside the pass of the whole graph.
    let outer = RELEASING.replace(true);
    let gradients = objective.backward();
    RELEASING.set(outer);
    gradients
}

/// Releases the memory of `result` if the pass that runs now is [`backward`]. A node calls it when it has computed its
/// gradients: candle visits a node after all nodes that use its result, so nobody reads the result again.
///
/// # Errors
/// Those of candle.
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
