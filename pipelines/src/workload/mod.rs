//! What a benchmark repeats: one unit of work on a model of a given shape, made of the very code that trains and draws.
//!
//! Inputs are random and drawn once, so every run of a workload does the same arithmetic. Nothing here looks at a clock:
//! time, memory and [operations](catelier_numerics::work::flops) are for the caller to measure.

mod drawing;
mod encoding;
mod inputs;
mod prediction;
mod product;
mod shape;
mod training;

pub use drawing::Drawing;
pub use encoding::{Autoencoding, TextEncoding};
pub use inputs::WorkloadSizes;
pub use prediction::Prediction;
pub use product::MatrixProduct;
pub use shape::Shape;
pub use training::{StepLoss, TrainingStep};

use crate::train::TrainError;

/// One unit of work that can be repeated.
pub trait Workload {
    /// Does it once more.
    ///
    /// # Errors
    /// What the model, the optimizer or the machine refuses.
    fn run(&mut self) -> Result<(), TrainError>;
}
