//! FedRot: factors are rotated towards the last global ones before they are averaged.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, LoraFactors, Matrices};
use catelier_numerics::linalg::nearest_rotation;

use super::dense::{layout, wide};
use super::fedavg::MeanUpdate;
use super::one_factor::Factor;
use super::{Aggregate, fitting};
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};

/// Means of the factors after each client's pair was rotated towards the global one: `up R^T · R down` is the same
/// update for every rotation `R`, so clients that agree up to a rotation agree after it.
///
/// `R` solves the orthogonal Procrustes problem for `down` in odd rounds and for `up` in even ones, with determinant
/// +1. `softness`, from 0 to 1, is the share of the way: 0 is [`fedavg()`](crate::fedavg); at 1 a rotation of a
/// client's factors changes nothing. Without a global adapter, or beside global factors of zero, the reference is the
/// client whose name sorts first. The rule is still inexact.
///
/// **Source** FedRot-LoRA, arXiv 2602.23638, **reconstructed** from notes: how the paper softens the rotation was not
/// available; here it is the rotation nearest to `(1 - softness) I + softness R`.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`]; [`Error::Setting`] for the softness; [`Error::Global`] if the
/// contributions do not have the shapes of `global`; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn fedrot(
    contributions: &Contributions<'_>,
    round: usize,
    global: Option<&Adapter>,
    softness: f64,
) -> Result<Aggregate> {
    refuse_softness(softness)?;
    contributions.check(RankPolicy::Uniform)?;
    contributions.refuse_other_kinds("fedrot")?;
    global.map_or(Ok(()), |global| fitting(global, contributions))?;
    let shares = contributions.shares();
    let factor = if round % 2 == 1 { Factor::Down } else { Factor::Up };
    let mean = |module: &str| {
        let reference = reference(contributions, module, &shares, global, factor)?;
        let mut mean = MeanUpdate::default();
        contributions.each_lora("fedrot", module, &shares, |own, share| {
            mean.add(&turned_factors(own, &reference, factor, softness)?.into(), share)
        })?;
        Ok((module.to_owned(), mean.finish()?))
    };
    Aggregate::measured(contributions.modules().map(mean).collect::<Result<Adapter>>()?, contributions)
}

pub(super) fn refuse_softness(softness: f64) -> Result<()> {
    if (0.0..=1.0).contains(&softness) {
        return Ok(());
    }
    Err(Error::Setting { what: "softness of `fedrot`", expected: "from 0 to 1", found: softness })
}

/// The factors that a module's factors are rotated towards.
fn reference(
    contributions: &Contributions<'_>,
    module: &str,
    shares: &Shares,
    global: Option<&Adapter>,
    factor: Factor,
) -> Result<LoraFactors> {
    match global.and_then(|global| global.get(module)).map(|update| update.low_rank()) {
        Some(global) if !is_zero(global, factor)? => Ok(global.clone()),
        _ => layout(contributions, module, shares),
    }
}

fn is_zero(factors: &LoraFactors, factor: Factor) -> Result<bool> {
    let tensor = if factor == Factor::Down { &factors.down } else { &factors.up };
    let largest = catelier_numerics::finite::largest_magnitude(tensor);
    Ok(largest.map_err(Error::tensor("reading the global factors"))? == 0.0)
}

fn turned_factors(own: &LoraFactors, reference: &LoraFactors, factor: Factor, softness: f64) -> Result<LoraFactors> {
    let ((up, down), (up_reference, down_reference)) = (wide(own)?, wide(reference)?);
    let failed = || Error::tensor("rotating factors");
    let cross = match factor {
        Factor::Down => down.t().and_then(|own| down_reference.matmul(&own)),
        Factor::Up => up_reference.t().and_then(|reference| reference.matmul(&up)),
    };
    let rotation = softened(&cross.map_err(failed())?, softness)?;
    let down = rotation.matmul(&down).and_then(|down| down.to_dtype(DType::F32)).map_err(failed())?;
    let up = rotation.t().and_then(|inverse| up.matmul(&inverse)?.to_dtype(DType::F32)).map_err(failed())?;
    own.with_matrices(&Matrices { up, down }, own.alpha).map_err(Error::adapters("rotating factors"))
}

/// A share of the rotation nearest to `cross`.
fn softened(cross: &Tensor, softness: f64) -> Result<Tensor> {
    let decomposing = || Error::numerics("rotating factors");
    let rotation = nearest_rotation(cross).map_err(decomposing())?;
    if softness == 1.0 {
        return Ok(rotation);
    }
    let rank = rotation.dims()[0];
    let mixed = Tensor::eye(rank, DType::F64, &Device::Cpu)
        .and_then(|identity| (identity * (1.0 - softness))? + (rotation * softness)?)
        .map_err(Error::tensor("softening a rotation"))?;
    nearest_rotation(&mixed).map_err(decomposing())
}
