//! Adapters drawn from seeds, and measures on them.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, DoraFactors, LayerUpdate, LoraFactors, Matrices};
use catelier_federation::Contribution;
use catelier_numerics::linalg::nearest_rotation;
use catelier_numerics::noise::{Noise, Stream};

/// One linear layer and one convolution.
pub(crate) const MODULES: [(&str, &[usize], usize); 2] =
    [("unet.mid_block.attentions.0.proj_in", &[7], 5), ("unet.mid_block.resnets.0.conv1", &[3, 3, 3], 4)];

pub(crate) fn adapter(rank: usize, alpha: f64, seed: u64) -> Adapter {
    let module = |(index, (path, inputs, outputs)): (usize, &(&str, &[usize], usize))| {
        let draw = |sample, shape: Vec<usize>| {
            Noise::new(seed).normal(Stream("clients"), index as u64, sample, shape, &Device::Cpu).unwrap()
        };
        let kernel = vec![1; inputs.len() - 1];
        let down = draw(0, [&[rank], *inputs].concat());
        let up = draw(1, [vec![*outputs, rank], kernel].concat());
        ((*path).to_owned(), LoraFactors::new(down, up, alpha).unwrap())
    };
    MODULES.iter().enumerate().map(module).collect()
}

/// A DoRA with the same factors and magnitudes around 1.
pub(crate) fn dora(rank: usize, alpha: f64, seed: u64) -> Adapter {
    let decomposed = |(index, (path, update)): (usize, (&str, &LayerUpdate))| {
        let shape = &update.weight_shape()[..1];
        let noise = Noise::new(seed).normal(Stream("magnitudes"), index as u64, 0, shape, &Device::Cpu).unwrap();
        let magnitude = ((noise * 0.1).unwrap() + 1.0).unwrap();
        (path.to_owned(), DoraFactors::new(update.low_rank().clone(), magnitude).unwrap())
    };
    adapter(rank, alpha, seed).iter().enumerate().map(decomposed).collect()
}

/// Every tensor by name, and every alpha.
pub(crate) fn tensors(adapter: &Adapter) -> Vec<(String, Vec<f64>)> {
    let named = |(path, update): (&str, &LayerUpdate)| -> Vec<(String, Vec<f64>)> {
        let named = update.tensors().map(|(name, tensor)| (format!("{path}.{name}"), values(tensor)));
        named.chain([(format!("{path}.alpha"), vec![update.alpha()])]).collect()
    };
    adapter.iter().flat_map(named).collect()
}

pub(crate) fn contribution(client: &str, adapter: Adapter, weight: f64) -> Contribution {
    Contribution { client: client.to_owned(), adapter, weight, base_fingerprint: None }
}

/// The updates of all modules, as f64 values.
pub(crate) fn update(adapter: &Adapter) -> Vec<f64> {
    adapter.iter().flat_map(|(_, update)| values(&update.low_rank().delta().unwrap())).collect()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The exact weighted mean of the contributions' updates.
pub(crate) fn mean_update(contributions: &[Contribution]) -> Vec<f64> {
    let total: f64 = contributions.iter().map(|c| c.weight).sum();
    let mut mean = vec![0.0; update(&contributions[0].adapter).len()];
    for contribution in contributions {
        for (sum, value) in mean.iter_mut().zip(update(&contribution.adapter)) {
            *sum += contribution.weight / total * value;
        }
    }
    mean
}

pub(crate) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

pub(crate) fn distance(left: &[f64], right: &[f64]) -> f64 {
    assert_eq!(left.len(), right.len());
    norm(&left.iter().zip(right).map(|(l, r)| l - r).collect::<Vec<_>>())
}

/// The same update from other factors: a rotation `R` drawn from the seed turns every pair into `R down` and `up R^T`.
pub(crate) fn rotated(adapter: &Adapter, seed: u64) -> Adapter {
    rebased(adapter, |rank| {
        let drawn = Noise::new(seed).normal(Stream("rotations"), 0, 0, (rank, rank), &Device::Cpu).unwrap();
        let rotation = nearest_rotation(&drawn).unwrap();
        (rotation.clone(), rotation.t().unwrap().contiguous().unwrap())
    })
}

/// The same update with `basis down` and `up inverse`.
fn rebased(adapter: &Adapter, basis: impl Fn(usize) -> (Tensor, Tensor)) -> Adapter {
    let turned = |(path, update): (&str, &LayerUpdate)| {
        let factors = update.low_rank();
        let (basis, inverse) = basis(factors.rank());
        let Matrices { up, down } = factors.matrices().unwrap();
        let wide = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap();
        let narrow = |tensor: Tensor| tensor.to_dtype(DType::F32).unwrap();
        let down = narrow(basis.matmul(&wide(down)).unwrap());
        let up = narrow(wide(up).matmul(&inverse).unwrap());
        (path.to_owned(), factors.with_matrices(&Matrices { up, down }, factors.alpha).unwrap())
    };
    adapter.iter().map(turned).collect()
}

/// The adapter with the `down`s, or the `up`s, of another of its rank.
pub(crate) fn with_factor(adapter: &Adapter, name: &str, of: &Adapter) -> Adapter {
    let taken = |(path, update): (&str, &LayerUpdate)| {
        let other = of.get(path).unwrap();
        let update = update
            .try_map(|own, tensor| Ok::<_, ()>(if own == name { other.get(own).unwrap() } else { tensor }.clone()));
        (path.to_owned(), update.unwrap())
    };
    adapter.iter().map(taken).collect()
}
