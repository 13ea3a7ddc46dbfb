//! FedRot: factors are rotated towards the last global ones before they are averaged.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, Matrices};
use catelier_numerics::linalg::nearest_rotation;

use super::fair::wide;
use super::fedavg::mean_of_tensors;
use super::one_factor::Factor;
use super::{Aggregate, fitting, lora_of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
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
/// As [`check`] with [`RankPolicy::Uniform`]; [`Error::Setting`] for the softness; [`Error::Global`] if the
/// contributions do not have the shapes of `global`; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn fedrot(
    contributions: &[Contribution],
    round: usize,
    global: Option<&Adapter>,
    softness: f64,
) -> Result<Aggregate> {
    refuse_softness(softness)?;
    check(contributions, RankPolicy::Uniform)?;
    let sorted = shares(contributions);
    for (module, _) in contributions[0].adapter.iter() {
        lora_of_module("fedrot", &sorted, module)?;
    }
    global.map_or(Ok(()), |global| fitting(global, &contributions[0].adapter))?;
    let first = &sorted[0].0.adapter;
    let factor = if round % 2 == 1 { Factor::Down } else { Factor::Up };
    let turned = |contribution: &Contribution| {
        let adapter = turned(&contribution.adapter, global, first, factor, softness)?;
        Ok(Contribution { adapter, ..contribution.clone() })
    };
    let turned = contributions.iter().map(turned).collect::<Result<Vec<_>>>()?;
    Aggregate::measured(mean_of_tensors(&shares(&turned))?, contributions)
}

pub(super) fn refuse_softness(softness: f64) -> Result<()> {
    if (0.0..=1.0).contains(&softness) {
        return Ok(());
    }
    Err(Error::Setting { what: "softness of `fedrot`", expected: "from 0 to 1", found: softness })
}

fn turned(
    adapter: &Adapter,
    global: Option<&Adapter>,
    first: &Adapter,
    factor: Factor,
    softness: f64,
) -> Result<Adapter> {
    let turned = |(module, update): (&str, &LayerUpdate)| {
        let own = update.low_rank();
        let of = |adapter: &Adapter| adapter.get(module).map(|update| update.low_rank().clone());
        let reference = match global.and_then(of) {
            Some(global) if !is_zero(&global, factor)? => global,
            _ => of(first).unwrap_or_else(|| own.clone()),
        };
        Ok((module.to_owned(), turned_factors(own, &reference, factor, softness)?))
    };
    adapter.iter().map(turned).collect()
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
