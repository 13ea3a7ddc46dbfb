//! Image generation from a prompt.

use candle_core::{DType, Device};
use catelier_adapters::AdapterSet;
use catelier_pipelines::Result;
use catelier_pipelines::diffusion::sampler::SamplerKind;
use catelier_pipelines::generation::{GenerateRequest, generate};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::training::TrainError;

use crate::Workload;
use crate::inputs::{WorkloadSizes, check_range};

/// Generation with DDIM and guidance: encodes prompts, samples latents, decodes images.
#[derive(Debug)]
pub struct Drawing {
    base: BaseModel,
    request: GenerateRequest,
}

impl Drawing {
    /// Loads a whole base. `steps` is the number of sampler steps; each calls the UNet once for both conditions of the
    /// guidance.
    ///
    /// # Errors
    /// Those of [`BaseModel::load`], and [`catelier_pipelines::Error::InvalidSetting`] for sizes or steps
    /// outside 1..=1024.
    pub fn new(files: &ModelFiles, sizes: WorkloadSizes, steps: usize, dtype: DType, device: &Device) -> Result<Self> {
        sizes.check()?;
        check_range("steps", steps)?;
        let base = BaseModel::load(files, dtype, device)?;
        let side = (sizes.latent * base.vae.factor()) as u32;
        let request = GenerateRequest {
            prompts: vec!["a red house in a field".into(); sizes.batch],
            seeds: (1..=sizes.batch as u64).collect(),
            steps,
            sampler: SamplerKind::Ddim,
            width: side,
            height: side,
            batch: sizes.batch,
            ..GenerateRequest::default()
        };
        Ok(Self { base, request })
    }
}

impl Workload for Drawing {
    fn run(&mut self) -> Result<(), TrainError> {
        generate(&self.base, &self.request, &AdapterSet::base())?;
        Ok(())
    }
}
