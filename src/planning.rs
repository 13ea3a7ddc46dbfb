//! What a training run will need, from the files' configurations alone.

use candle_core::Device;
use catelier_pipelines::base::BaseConfig;
use catelier_pipelines::model::{Recompute, encoding_bytes};
use catelier_pipelines::plan::{Bytes, DoesNotFit, Footprint, MemoryPlan, StepSizes, weight_bytes};
use catelier_pipelines::train::TrainConfig;

use crate::failure::{Failure, Outcome};
use crate::settings::{BaseDefaults, TrainSettings, stated};
use crate::{memory, terminal};

/// Share of what the machine has left that training may plan with: others need memory too.
const SHARE: f64 = 0.9;

/// A run's memory, and the operations of its steps.
pub(crate) struct Plan {
    pub(crate) recompute: Recompute,
    /// `None` on a GPU, whose memory is not planned.
    pub(crate) memory: Option<MemoryPlan>,
    pub(crate) limit: Option<u64>,
    /// Operations of one optimizer step, at least.
    pub(crate) step_flops: u64,
}

/// Settings of a training on a base that are not given, from its configuration.
pub(crate) fn defaults(base: &BaseConfig, embedded: bool) -> BaseDefaults {
    BaseDefaults { embedded, resolution: base.resolution() }
}

/// The plan of a run with complete `settings` on `device`.
pub(crate) fn plan(base: &BaseConfig, settings: &TrainSettings, device: &Device) -> Outcome<Plan> {
    let config = settings.train_config()?;
    let side = stated("resolution", settings.resolution)?;
    let cells = side / base.vae.factor();
    let sizes = StepSizes {
        latent: (cells, cells),
        batch: config.batch,
        tokens: base.tokens(),
        kind: config.kind,
        rank: config.rank,
        targets: config.targets.clone(),
        cat: config.uses_cat(),
        dropout: config.dropout > 0.0,
        weights: settings.weights_dtype()?,
    };
    let footprint = Footprint::of_step(&base.unet, &sizes);
    let step_flops = (footprint.forward_flops as f64 * passes(&config)) as u64;
    if !device.is_cpu() {
        let all = settings.gradient_checkpointing == Some(true);
        let recompute = if all { Recompute::All } else { Recompute::Nothing };
        return Ok(Plan { recompute, memory: None, limit: None, step_flops });
    }
    let limit = match settings.gradient_checkpointing {
        Some(false) => None,
        _ => limit(settings.memory_limit.as_deref().unwrap_or("auto"))?,
    };
    let memory = fit(base, settings, &footprint, limit)?;
    let memory = memory.beside(encoding_bytes(&base.vae, (side, side)));
    match limit {
        Some(limit) if memory.peak > limit => Err(too_much(&DoesNotFit { needed: memory.peak, limit })),
        _ => Ok(Plan { recompute: memory.recompute.clone(), memory: Some(memory), limit, step_flops }),
    }
}

/// Forward and backward passes of one optimizer step, at least; a backward pass through frozen weights costs about as much
/// as a forward pass.
fn passes(config: &TrainConfig) -> f64 {
    // With cached draws, the base's pass is made only when a draw is new.
    let of_cat = if config.cat_cached_draws > 0 { 2.0 } else { 3.0 };
    let cat = if config.uses_cat() { of_cat / config.cat_every as f64 } else { 0.0 };
    let prior = if config.uses_prior() { 2.0 } else { 0.0 };
    (2.0 + cat + prior) * config.accumulation as f64
}

fn fit(base: &BaseConfig, settings: &TrainSettings, footprint: &Footprint, limit: Option<u64>) -> Outcome<MemoryPlan> {
    let weights = footprint.weights + weight_bytes(base, settings.weights_dtype()?);
    match settings.gradient_checkpointing {
        Some(true) => Ok(MemoryPlan::recomputing_all(footprint, weights)),
        _ => MemoryPlan::fit(footprint, weights, limit).map_err(|error| too_much(&error)),
    }
}

fn too_much(error: &DoesNotFit) -> Failure {
    let hint = "lower `--resolution` or `--batch`, use `--dtype bf16`, or raise `--memory-limit`";
    Failure::request(error.to_string(), hint)
}

/// Bytes of a limit such as `8GB`, `7.5GiB`, `6000MB` or `auto`; `None` where the system does not tell what is left.
pub(crate) fn limit(text: &str) -> Outcome<Option<u64>> {
    if text == "auto" {
        return Ok(memory::available().map(|bytes| (bytes as f64 * SHARE) as u64));
    }
    let units = [
        ("KiB", 1u64 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
    match (number.trim().parse::<f64>(), unit) {
        (Ok(number), Some((_, size))) if number > 0.0 && number.is_finite() => Ok(Some((number * *size as f64) as u64)),
        _ => Err(Failure::request(
            format!("`--memory-limit {text}` is not an amount of memory"),
            "write it like `8GB`, `7.5GiB` or `auto`",
        )),
    }
}

impl Plan {
    /// Tells a person what was decided, if anything was.
    pub(crate) fn tell(&self) {
        if let Some(memory) = &self.memory
            && !memory.recomputed.is_empty()
        {
            let (peak, recomputed, blocks) = (Bytes(memory.peak), memory.recomputed.len(), memory.blocks);
            terminal::say(&format!("memory: about {peak}, {recomputed} of {blocks} blocks are recomputed"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_the_usual_units() {
        let bytes = |text| limit(text).unwrap().unwrap();
        assert_eq!(bytes("8GB"), 8_000_000_000);
        assert_eq!(bytes("1.5 gib"), 3 << 29);
        assert_eq!(bytes("6000MB"), 6_000_000_000);
        for wrong in ["", "8", "GB", "-1GB", "8 bananas", "nanGB"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
