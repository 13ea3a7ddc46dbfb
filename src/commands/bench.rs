//! `catelier bench`: what the parts cost on this machine.

mod report;

use candle_core::{DType, Device};
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::model::UNetConfig;
use catelier_pipelines::train::TrainError;
use catelier_pipelines::workload::{
    Autoencoding, Drawing, MatrixProduct, Prediction, Shape, StepLoss, TextEncoding, TrainingStep, Workload,
    WorkloadSizes,
};
use catelier_workflows::value::MemoryLimit;
use catelier_workflows::{Context, Error, Session, embedded};

use crate::cli::{BenchArgs, BenchCommand, BenchLoss, BenchPrecision, ShapeName};
use crate::failure::Outcome;
use crate::meter::{Measured, measure};
use crate::{memory, terminal};
use report::{MachinePeaks, Rate, Report};

/// Seed of the made-up weights.
const SEED: u64 = 1;
/// Side of the latents unless told otherwise: 256 pixels for Stable Diffusion.
const USUAL_LATENT: usize = 32;
/// Side of the matrices whose product shows how fast the processor is, and another device.
const PRODUCT_SIDE: usize = 1024;
const DEVICE_PRODUCT_SIDE: usize = 8192;
const PRODUCT_REPEATS: usize = 8;

pub(super) fn run(command: &BenchCommand, session: &Session<'_>) -> Outcome<()> {
    let args = command.args();
    if args.repeat == 0 {
        return Err(Error::user("`--repeat` is 0", "measure at least once").into());
    }
    if cfg!(debug_assertions) {
        terminal::warn("this is a debug build; its times say nothing about a release build");
    }
    let files = args.shape.files();
    let latent = latent(command, &files)?;
    let device = session.open_device(args.device)?;
    let (mut work, planned) = load(command, &files, latent, &device)?;
    memory::settle();
    let measured = measure(work.as_mut(), &device, args.warmup, args.repeat)?;
    drop(work);
    let report = Report::new(command, latent, &device, &measured, machine_peaks(&device)?).with_plan(planned);
    if args.json { terminal::json(&report) } else { terminal::data(&report.table()) }
}

impl BenchCommand {
    fn args(&self) -> &BenchArgs {
        match self {
            Self::Step { args, .. } | Self::Generate { args, .. } | Self::Vae { args, .. } | Self::Text { args } => {
                args
            }
        }
    }

    /// The side of the latents that was asked for; `None` for work without latents.
    fn latent(&self) -> Option<Option<usize>> {
        match self {
            Self::Step { latent, .. } | Self::Generate { latent, .. } | Self::Vae { latent, .. } => Some(*latent),
            Self::Text { .. } => None,
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

impl BenchPrecision {
    /// The type that frozen weights are loaded in; activations are f32 on the processor.
    fn weights(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Mixed => DType::BF16,
        }
    }
}

/// The side of the latents, as asked for or as usual; `None` for work without latents.
fn latent(command: &BenchCommand, files: &ModelFiles) -> Outcome<Option<usize>> {
    let usual = || match command.args().shape {
        ShapeName::Embedded => UNetConfig::load(files).map(|config| config.sample_size.unwrap_or(USUAL_LATENT)),
        _ => Ok(USUAL_LATENT),
    };
    let side = command.latent().map(|asked| asked.map_or_else(usual, Ok));
    Ok(side.transpose().failed("cannot read the configuration")?)
}

/// Loads no more of the model than the work needs; with it, the memory that a training step was planned for.
fn load(command: &BenchCommand, files: &ModelFiles, latent: Option<usize>, device: &Device) -> Outcome<Loaded> {
    let sizes = WorkloadSizes { latent: latent.unwrap_or(1), batch: command.args().batch };
    let without_training =
        || Ok((inference(command, files, sizes, device).user_error("cannot set up the work")?, None));
    let BenchCommand::Step { loss, rank, memory_limit, .. } = command else {
        return without_training();
    };
    let loss = match loss {
        BenchLoss::None => return without_training(),
        BenchLoss::Lora => StepLoss::Lora,
        BenchLoss::Cat => StepLoss::Cat,
    };
    training(command, files, sizes, (loss, *rank), *memory_limit, device)
}

/// Some work, and the memory that it was planned for.
type Loaded = (Box<dyn Workload>, Option<u64>);

fn training(
    command: &BenchCommand,
    files: &ModelFiles,
    sizes: WorkloadSizes,
    (loss, rank): (StepLoss, usize),
    memory_limit: Option<MemoryLimit>,
    device: &Device,
) -> Outcome<Loaded> {
    let dtype = command.args().dtype.weights();
    let step = TrainingStep::new(files, sizes, loss, rank, dtype, device);
    let mut step = step.user_error("cannot set up the work")?;
    if !device.is_cpu() {
        return Ok((Box::new(step), None));
    }
    let limit = memory_limit.and_then(MemoryLimit::bytes);
    let planned = step.plan(dtype, limit).user_error("cannot set up the work")?.peak;
    Ok((Box::new(step), Some(planned)))
}

fn inference(
    command: &BenchCommand,
    files: &ModelFiles,
    sizes: WorkloadSizes,
    device: &Device,
) -> Result<Box<dyn Workload>, TrainError> {
    let dtype = command.args().dtype.weights();
    Ok(match command {
        BenchCommand::Step { .. } => Box::new(Prediction::new(files, sizes, dtype, device)?),
        BenchCommand::Generate { steps, .. } => Box::new(Drawing::new(files, sizes, *steps, dtype, device)?),
        BenchCommand::Vae { .. } => Box::new(Autoencoding::new(files, sizes, dtype, device)?),
        BenchCommand::Text { .. } => Box::new(TextEncoding::new(files, sizes.batch, dtype, device)?),
    })
}

/// How fast large matrix products are here, at best, by element type.
fn machine_peaks(device: &Device) -> Outcome<MachinePeaks> {
    let side = if device.is_cpu() { PRODUCT_SIDE } else { DEVICE_PRODUCT_SIDE };
    let peak = |weights| -> Outcome<Rate> {
        let mut product = MatrixProduct::new(side, weights, device).failed("cannot set up the product")?;
        Ok(best_rate(&measure(&mut product, device, 1, PRODUCT_REPEATS)?))
    };
    Ok(MachinePeaks { f32: peak(DType::F32)?, bf16: peak(DType::BF16)? })
}

fn best_rate(measured: &Measured) -> Rate {
    Rate {
        gflop_per_second: measured.gflop() / measured.best_wall_seconds(),
        gflop_per_cpu_second: measured.best_cpu_seconds().map(|seconds| measured.gflop() / seconds),
    }
}
