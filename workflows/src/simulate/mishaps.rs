//! What goes wrong in a simulated federation, drawn from its seed: clients that drop out, stragglers, poisoned clients.

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate};
use catelier_federation::Participation;
use catelier_numerics::noise::{Noise, Stream};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::settings::ResolvedSimulate;

/// What a poisoned client sends instead of its adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poison {
    /// Its update with the opposite sign.
    #[default]
    SignFlip,
    /// Its update a hundred times as large.
    Scale,
    /// Normal noise of ten times the norm of each `up`.
    Noise,
    /// A value that is not a number.
    NotFinite,
}

/// Factor of [`Poison::Scale`].
const SCALE: f64 = 100.0;

/// Norm of the noise of [`Poison::Noise`] in norms of the tensor.
const LOUD: f64 = 10.0;

const POISON: Stream = Stream("simulate.poison");

/// Seeds of the draws are this far apart from each other.
const DROP_OUTS: u64 = 1;
const STRAGGLERS: u64 = 2;

/// What goes wrong, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mishaps {
    drop_out: f64,
    stragglers: f64,
    poisoned: usize,
    poison: Poison,
    seed: u64,
    clients: usize,
}

impl Mishaps {
    pub(super) fn new(settings: &ResolvedSimulate) -> Self {
        Self {
            drop_out: settings.drop_out,
            stragglers: settings.stragglers,
            poisoned: settings.poisoned,
            poison: settings.poison,
            seed: settings.seed,
            clients: settings.artists.len(),
        }
    }

    pub(super) fn drops_out(&self, round: usize, client: usize) -> bool {
        self.is_drawn(self.drop_out, DROP_OUTS, round, client)
    }

    pub(super) fn is_late(&self, round: usize, client: usize) -> bool {
        self.is_drawn(self.stragglers, STRAGGLERS, round, client)
    }

    fn is_drawn(&self, share: f64, draw: u64, round: usize, client: usize) -> bool {
        let drawn = Participation::Drawn { share, seed: self.seed.wrapping_add(draw) };
        share > 0.0 && drawn.of_round(round, self.clients).contains(&client)
    }

    /// What the client sends instead of `adapter`; the first clients are the poisoned ones.
    pub(super) fn sent(&self, adapter: Adapter, round: usize, client: usize) -> Result<Adapter> {
        if client >= self.poisoned {
            return Ok(adapter);
        }
        let mut number = (client as u64) << 32;
        let poisoned = |up: &Tensor| {
            number += 1;
            match self.poison {
                Poison::SignFlip => up.neg(),
                Poison::Scale => up * SCALE,
                Poison::NotFinite => up * f64::NAN,
                Poison::Noise => self.noise(up, round as u64, number),
            }
        };
        with_ups(&adapter, poisoned)
    }

    fn noise(&self, up: &Tensor, round: u64, number: u64) -> candle_core::Result<Tensor> {
        let noise = Noise::new(self.seed).normal(POISON, round, number, up.shape(), &Device::Cpu);
        let noise = noise.map_err(candle_core::Error::wrap)?;
        let spread = up.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
        noise * (LOUD * f64::from(spread.max(1e-3)))
    }
}

/// The adapter with every `up` replaced by `f(up)`.
fn with_ups(adapter: &Adapter, mut f: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) -> Result<Adapter> {
    let mut replaced = |(path, update): (&str, &LayerUpdate)| {
        let update = update.try_map(|name, tensor| if name == "up" { f(tensor) } else { Ok(tensor.clone()) });
        Ok((path.to_owned(), update.failed("cannot poison an adapter")?))
    };
    adapter.iter().map(&mut replaced).collect()
}
