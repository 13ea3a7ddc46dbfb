//! `catelier bench`: what the parts cost on this machine.

use catelier_bench::{Precision, Report, Request, Shape, StepLoss, Work, measure, product_rates};
use catelier_pipelines::models::UNetConfig;
use catelier_pipelines::models::files::ModelFiles;
use catelier_workflows::value::MemoryLimit;
use catelier_workflows::{Context, Error, Session, embedded};

use crate::cli::{BenchArgs, BenchCommand, BenchLoss, BenchPrecision, ShapeName};
use crate::failure::Outcome;
use crate::{device, memory, terminal};

/// Seed of the made-up weights.
const SEED: u64 = 1;
/// Side of the latents unless told otherwise: 256 pixels for Stable Diffusion.
const USUAL_LATENT: usize = 32;

pub(super) fn run(command: &BenchCommand, session: &Session<'_>) -> Outcome<()> {
    let args = command.args();
    if args.repeat == 0 {
        return Err(Error::user("`--repeat` is 0", "measure at least once").into());
    }
    if cfg!(debug_assertions) {
        terminal::warn("this is a debug build; its times say nothing about a release build");
    }
    let files = args.shape.files();
    let request = command.request(&files)?;
    let device = session.open_device(args.device)?;
    let limit = command.memory_limit().and_then(MemoryLimit::bytes);
    let mut loaded = request.load(&files, &device, limit).map_err(cannot_set_up)?;
    memory::settle();
    let measured = measure(loaded.workload.as_mut(), &device, args.warmup, args.repeat).failed("the work failed")?;
    drop(loaded.workload);
    let rates = product_rates(&device).failed("cannot measure a matrix product")?;
    let report = Report::new(&request, device::name(&device), &measured, loaded.planned_bytes, rates);
    if args.json { terminal::json(&report) } else { terminal::lines(report.table().lines()) }
}

/// The workflows know no errors of benchmarks, so the hint is asked for here.
fn cannot_set_up(error: catelier_bench::Error) -> Error {
    Error::User { message: "cannot set up the work".into(), hint: error.hint(), source: Some(error.into()) }
}

impl BenchCommand {
    fn args(&self) -> &BenchArgs {
        match self {
            Self::Step { args, .. } | Self::Generate { args, .. } | Self::Vae { args, .. } | Self::Text { args } => {
                args
            }
        }
    }

    fn request(&self, files: &ModelFiles) -> Outcome<Request> {
        let &BenchArgs { shape, batch, dtype, warmup, repeat, .. } = self.args();
        let (work, precision) = (self.work(), dtype.into());
        Ok(Request { work, shape: shape.to_string(), latent: self.latent(files)?, batch, precision, warmup, repeat })
    }

    fn work(&self) -> Work {
        match self {
            Self::Step { loss: BenchLoss::None, .. } => Work::Prediction,
            Self::Step { loss: BenchLoss::Lora, rank, .. } => Work::Step { loss: StepLoss::Lora, rank: *rank },
            Self::Step { loss: BenchLoss::Cat, rank, .. } => Work::Step { loss: StepLoss::Cat, rank: *rank },
            Self::Generate { steps, .. } => Work::Drawing { steps: *steps },
            Self::Vae { .. } => Work::Autoencoding,
            Self::Text { .. } => Work::TextEncoding,
        }
    }

    /// The side of the latents, as asked for or as usual; `None` for work without latents.
    fn latent(&self, files: &ModelFiles) -> Outcome<Option<usize>> {
        let asked = match self {
            Self::Step { latent, .. } | Self::Generate { latent, .. } | Self::Vae { latent, .. } => *latent,
            Self::Text { .. } => return Ok(None),
        };
        if asked.is_some() || self.args().shape != ShapeName::Embedded {
            return Ok(asked.or(Some(USUAL_LATENT)));
        }
        let config = UNetConfig::load(files).failed("cannot read the configuration")?;
        Ok(config.sample_size.or(Some(USUAL_LATENT)))
    }

    fn memory_limit(&self) -> Option<MemoryLimit> {
        match self {
            Self::Step { memory_limit, .. } => *memory_limit,
            _ => None,
        }
    }
}

impl ShapeName {
    fn files(self) -> ModelFiles {
        match self {
            Self::Sd15 => Shape::Sd15.files(SEED),
            Self::Sd21 => Shape::Sd21.files(SEED),
            Self::Sdxl => Shape::Sdxl.files(SEED),
            Self::Embedded => embedded::files(),
        }
    }
}

impl std::fmt::Display for ShapeName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sd15 => Shape::Sd15.fmt(out),
            Self::Sd21 => Shape::Sd21.fmt(out),
            Self::Sdxl => Shape::Sdxl.fmt(out),
            Self::Embedded => out.write_str("embedded"),
        }
    }
}

impl From<BenchPrecision> for Precision {
    fn from(precision: BenchPrecision) -> Self {
        match precision {
            BenchPrecision::F32 => Self::F32,
            BenchPrecision::Mixed => Self::Mixed,
        }
    }
}
