#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod drawing;
mod encoding;
mod error;
mod inputs;
mod meter;
mod prediction;
pub mod process;
mod product;
mod report;
mod shape;
mod training;
mod work;

use catelier_pipelines::training::TrainError;

pub use drawing::Drawing;
pub use encoding::{Autoencoding, TextEncoding};
pub use error::{Error, Result};
pub use inputs::WorkloadSizes;
pub use meter::{Measured, measure};
pub use prediction::Prediction;
pub use product::{MatrixProduct, ProductRates, product_rate, product_rates};
pub use report::{Rate, Report};
pub use shape::Shape;
pub use training::{StepLoss, TrainingStep};
pub use work::{Loaded, Precision, Request, Work};

/// One unit of work that can be repeated.
pub trait Workload {
    /// Runs the unit of work once.
    ///
    /// # Errors
    /// An error of the model or the optimizer, or a device without free memory.
    fn run(&mut self) -> std::result::Result<(), TrainError>;
}
