//! The work to repeat, and how it is loaded.

use candle_core::{DType, Device};
use catelier_pipelines::models::files::ModelFiles;
use serde::Serialize;

use crate::error::Result;
use crate::{Autoencoding, Drawing, Prediction, StepLoss, TextEncoding, TrainingStep, Workload, WorkloadSizes};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A forward pass of the UNet.
    Prediction,
    /// A training step.
    Step {
        /// The terms in the objective.
        loss: StepLoss,
        /// Rank of the adapter.
        rank: usize,
    },
    /// Image generation from a prompt.
    Drawing {
        /// Number of sampler steps.
        steps: usize,
    },
    /// Encoding and decoding of images.
    Autoencoding,
    /// Encoding of prompts.
    TextEncoding,
}

impl Work {
    /// Names of the work and its loss, its rank and its number of sampler steps; `None` for work without them.
    pub(crate) fn words(self) -> (&'static str, Option<&'static str>, Option<usize>, Option<usize>) {
        match self {
            Self::Prediction => ("step", Some("none"), None, None),
            Self::Step { loss: StepLoss::Lora, rank } => ("step", Some("lora"), Some(rank), None),
            Self::Step { loss: StepLoss::Cat, rank } => ("step", Some("cat"), Some(rank), None),
            Self::Drawing { steps } => ("generate", None, None, Some(steps)),
            Self::Autoencoding => ("vae", None, None, None),
            Self::TextEncoding => ("text", None, None, None),
        }
    }
}

/// The element types of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in f32.
    F32,
    /// Frozen weights in bf16; activations in f32 on the CPU and in bf16 on other devices.
    Mixed,
}

impl Precision {
    /// The type of the frozen weights after loading.
    #[must_use]
    pub fn weights(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Mixed => DType::BF16,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::F32 => "f32",
            Self::Mixed => "mixed",
        })
    }
}

/// A measurement to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The work.
    pub work: Work,
    /// Name of the model's shape, for the report.
    pub shape: String,
    /// Height and width of the square latents in cells; `None` for work without latents.
    pub latent: Option<usize>,
    /// Samples computed together.
    pub batch: usize,
    /// Types of weights and activations.
    pub precision: Precision,
    /// Unmeasured iterations before the measured ones.
    pub warmup: usize,
    /// Measured iterations, at least one.
    pub repeat: usize,
}

/// Loaded work.
pub struct Loaded {
    /// The work to run.
    pub workload: Box<dyn Workload>,
    /// The planner's estimate of memory in bytes, for a training step on the CPU.
    pub planned_bytes: Option<u64>,
}

impl Request {
    /// Loads only the parts of the model that the work needs. A training step on the CPU is fitted into `memory_limit`
    /// bytes.
    ///
    /// # Errors
    /// Those of the model's parts; [`catelier_pipelines::Error::InvalidSetting`] for sizes outside 1..=1024;
    /// [`Error::DoesNotFit`](crate::Error::DoesNotFit).
    pub fn load(&self, files: &ModelFiles, device: &Device, memory_limit: Option<u64>) -> Result<Loaded> {
        let sizes = WorkloadSizes { latent: self.latent.unwrap_or(1), batch: self.batch };
        let dtype = self.precision.weights();
        let mut planned_bytes = None;
        let workload: Box<dyn Workload> = match self.work {
            Work::Step { loss, rank } => {
                let mut step = TrainingStep::new(files, sizes, loss, rank, dtype, device)?;
                if device.is_cpu() {
                    planned_bytes = Some(step.plan(dtype, memory_limit)?.peak);
                }
                Box::new(step)
            }
            Work::Prediction => Box::new(Prediction::new(files, sizes, dtype, device)?),
            Work::Drawing { steps } => Box::new(Drawing::new(files, sizes, steps, dtype, device)?),
            Work::Autoencoding => Box::new(Autoencoding::new(files, sizes, dtype, device)?),
            Work::TextEncoding => Box::new(TextEncoding::new(files, self.batch, dtype, device)?),
        };
        Ok(Loaded { workload, planned_bytes })
    }
}
