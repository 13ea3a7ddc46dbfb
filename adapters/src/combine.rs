//! Adapters made from adapters: exact sums and changes of rank.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use catelier_numerics::linalg::{LowRankTerm, low_rank_svd};

use crate::adapter::{Adapter, check_rank, plain_lora};
use crate::error::{Error, Result};
use crate::factors::{LoraFactors, Matrices};

/// One adapter whose update is exactly the weighted sum of the adapters' updates. Factors are stacked, so ranks add up.
/// A module that only some adapters have is summed over those.
///
/// # Errors
/// [`Error::CombinedShapes`] if two adapters disagree about a module's shape; [`Error::NotLora`] for a module of
/// another kind, whose update depends on the base's weights.
pub fn sum(adapters: &[(&Adapter, f64)]) -> Result<Adapter> {
    let paths: BTreeSet<&str> = adapters.iter().flat_map(|(adapter, _)| adapter.iter().map(|(path, _)| path)).collect();
    paths
        .into_iter()
        .map(|path| {
            let updates = adapters.iter().filter_map(|(adapter, weight)| Some((adapter.get(path)?, *weight)));
            let terms = updates.map(|(update, weight)| Ok((plain_lora("adding", path, update)?, weight)));
            Ok((path.to_owned(), stacked(path, &terms.collect::<Result<Vec<_>>>()?)?))
        })
        .collect()
}

/// Factors whose product is the weighted sum of the terms' updates. `up` takes in each term's scale and weight; alpha
/// is the new rank, so the scale is 1.
fn stacked(path: &str, terms: &[(&LoraFactors, f64)]) -> Result<LoraFactors> {
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for (factors, weight) in terms {
        let Matrices { up, down } = factors.matrices()?;
        let up = (up * (factors.scale() * weight)).map_err(Error::tensor("weighing factors"))?;
        ups.push(up);
        downs.push(down);
    }
    let disagree = |_| Error::CombinedShapes { module: path.to_owned() };
    let up = Tensor::cat(&ups, 1).map_err(disagree)?;
    let down = Tensor::cat(&downs, 0).map_err(disagree)?;
    let rank = down.dims()[0] as f64;
    terms[0].0.with_matrices(&Matrices { up, down }, rank)
}

/// An adapter at another rank, and the part of each update that was cut off.
#[derive(Debug, Clone)]
pub struct Resized {
    /// The nearest adapter of the requested rank.
    pub adapter: Adapter,
    /// By module, the share of the squared Frobenius norm that was cut off, in `[0, 1]`.
    pub discarded: BTreeMap<String, f64>,
}

/// The nearest adapter, in Frobenius norm, whose modules all have rank `rank`: a truncated SVD of every update. Alpha
/// is the new rank, so the scale is 1.
///
/// # Errors
/// [`Error::InvalidRank`] for rank 0 or above [`LARGEST_RANK`](crate::LARGEST_RANK); [`Error::Numerics`] if the SVD
/// fails; [`Error::NotLora`] for a module of another kind, whose nearest update depends on the base's weights.
pub fn resize(adapter: &Adapter, rank: usize) -> Result<Resized> {
    check_rank(rank)?;
    let mut discarded = BTreeMap::new();
    let mut resized = Adapter::new();
    for (path, update) in adapter.iter() {
        let factors = plain_lora("resizing", path, update)?;
        let Matrices { up, down } = factors.matrices()?;
        let term = LowRankTerm { up, down, weight: factors.scale() };
        let cut = low_rank_svd(&[term], rank).map_err(Error::numerics(format!("resizing `{path}`")))?;
        let matrices = Matrices { up: cut.up, down: cut.down };
        resized.insert(path, factors.with_matrices(&matrices, rank as f64)?);
        discarded.insert(path.to_owned(), cut.discarded);
    }
    Ok(Resized { adapter: resized, discarded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn factors(rank: usize, alpha: f64, phase: f32) -> LoraFactors {
        let values = |rows: usize, columns: usize, phase: f32| {
            let wave = |i: usize| ((i as f32) * 1.3 + phase).sin();
            let values: Vec<f32> = (0..rows * columns).map(wave).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        LoraFactors::new(values(rank, 6, phase), values(5, rank, 2.0 * phase), alpha).unwrap()
    }

    fn adapter(rank: usize, alpha: f64, phase: f32) -> Adapter {
        let mut adapter = Adapter::new();
        adapter.insert("unet.a", factors(rank, alpha, phase));
        adapter
    }

    fn distance(left: &Tensor, right: &Tensor) -> f32 {
        let difference = (left - right).unwrap().abs().unwrap();
        difference.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_sum_is_the_weighted_sum_of_the_updates() {
        let (left, right) = (adapter(2, 4.0, 0.3), adapter(3, 1.0, 1.1));
        let sum = sum(&[(&left, 0.5), (&right, -2.0)]).unwrap();
        let delta = |adapter: &Adapter| adapter.get("unet.a").unwrap().low_rank().delta().unwrap();
        let expected = ((delta(&left) * 0.5).unwrap() - (delta(&right) * 2.0).unwrap()).unwrap();
        assert_eq!(sum.get("unet.a").unwrap().rank(), 5);
        assert!(distance(&delta(&sum), &expected) < 1e-5);
    }

    #[test]
    fn a_sum_keeps_modules_that_one_adapter_has() {
        let left = adapter(2, 4.0, 0.3);
        let mut right = Adapter::new();
        right.insert("unet.b", factors(1, 1.0, 0.1));
        let sum = sum(&[(&left, 1.0), (&right, 1.0)]).unwrap();
        assert_eq!(sum.len(), 2);
    }

    #[test]
    fn a_sum_of_different_modules_is_refused() {
        let mut other = Adapter::new();
        let down = Tensor::ones((1, 7), candle_core::DType::F32, &Device::Cpu).unwrap();
        let up = Tensor::ones((5, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        other.insert("unet.a", LoraFactors::new(down, up, 1.0).unwrap());
        let error = sum(&[(&adapter(2, 4.0, 0.3), 1.0), (&other, 1.0)]).unwrap_err();
        assert!(matches!(error, Error::CombinedShapes { .. }));
    }

    #[test]
    fn resizing_to_enough_rank_keeps_the_update() {
        let original = adapter(2, 4.0, 0.3);
        let larger = resize(&original, 4).unwrap();
        let delta = |adapter: &Adapter| adapter.get("unet.a").unwrap().low_rank().delta().unwrap();
        assert!(distance(&delta(&larger.adapter), &delta(&original)) < 1e-5);
        assert!(larger.discarded["unet.a"] < 1e-6);
    }

    #[test]
    fn resizing_says_what_it_cut_off() {
        let original = adapter(3, 3.0, 0.3);
        let smaller = resize(&original, 1).unwrap();
        let delta = |adapter: &Adapter| adapter.get("unet.a").unwrap().low_rank().delta().unwrap();
        let energy = |tensor: &Tensor| f64::from(tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let lost = energy(&(delta(&original) - delta(&smaller.adapter)).unwrap()) / energy(&delta(&original));
        assert!((lost - smaller.discarded["unet.a"]).abs() < 1e-5);
        assert!(lost > 1e-4, "{lost}");
    }
}
