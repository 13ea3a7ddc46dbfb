//! Memory of a graph that goes backward once: results are given up as their gradients pass them.

use std::cell::Cell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

thread_local! {
    static USING_UP: Cell<bool> = const { Cell::new(false) };
}

/// The gradients of `objective`, a single number, with respect to everything in its graph that is trained. The graph is used
/// up: on the processor, every result of an operation of this room is given up as soon as its gradient has been passed on,
/// instead of waiting for the end of the pass.
///
/// No tensor of the graph may be looked at afterwards, nor go backward again, unless it is a variable or was never part of
/// it; [`Tensor::backward`] leaves all as it was.
///
/// **Errors** those of the operations' backward passes.
pub fn backward(objective: Tensor) -> Result<GradStore> {
    let before = USING_UP.replace(true);
    let gradients = objective.backward();
    USING_UP.set(before);
    gradients
}

/// Gives up `result`, whose gradient has just been passed on: all that was computed from it has had its turn before.
pub fn spent(result: &Tensor) -> Result<()> {
    if USING_UP.get() && result.device().is_cpu() { result.inplace_op1(&GiveUp) } else { Ok(()) }
}

struct GiveUp;

impl InplaceOp1 for GiveUp {
    fn name(&self) -> &'static str {
        "give-up"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        *storage = CpuStorage::U8(Vec::new());
        Ok(())
    }
}
