//! Clipping and Gaussian noise for each client, at the client or on the server.

use catelier_adapters::{Adapter, LayerUpdate};
use catelier_numerics::noise::{Noise, Stream, fnv1a};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::numbers::{numbers, positive, shaped};
use crate::roles::{Role, Roles};

/// Where noise is added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseAt {
    /// Every client adds it to what it sends (local privacy): nobody needs to be trusted, and any strategy works on the
    /// noisy contributions, since what is made of them reveals no more.
    #[default]
    Client,
    /// The server adds it to the mean (central privacy): the server is trusted, and noise shrinks with the number of
    /// clients. Only for strategies that are means of the tensors that clients send, with uniform weights.
    Server,
}

/// Privacy of clients: how far the presence of one client can change what others see.
///
/// A client's change of the shared tensors since the global adapter is shortened to the norm `clip`; then Gaussian
/// noise of standard deviation `noise * clip` covers it. [`Accountant`](crate::Accountant) says what that is worth over
/// rounds. Two federations are neighbours if one has a client more.
///
/// Noise is drawn from f32 normals of a seed. A seed that others know removes the noise, so that a client's seed must
/// stay its secret; and, as any sampling of floating-point noise, it leaks through the last bits (Mironov, 2012).
///
/// **Source** DP-FedAvg, arXiv 1710.06963, algorithm 1, with a fixed clipping norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Privacy {
    /// Largest norm of a client's change of all shared tensors together, finite and above 0.
    pub clip: f64,
    /// Standard deviation of the noise in units of `clip`, finite and 0 or more; 0 clips alone.
    pub noise: f64,
    /// Where noise is added.
    pub at: NoiseAt,
    /// Seed of the noise.
    pub seed: u64,
}

const NOISE: Stream = Stream("federation.privacy");

/// Name of the server among the clients, none of which has an empty name.
const SERVER: &str = "";

impl Privacy {
    /// Refuses a clipping norm or a noise that means nothing.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        positive("clipping norm", self.clip)?;
        if self.noise.is_finite() && self.noise >= 0.0 {
            return Ok(());
        }
        Err(Error::Setting { what: "noise multiplier", expected: "finite and 0 or more", found: self.noise })
    }

    /// What the client sends instead of `adapter`: its change since `global` (or since zero) clipped, and noisy under
    /// [`NoiseAt::Client`]. Tensors that are not shared stay as they are.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Tensor`] if a tensor cannot be read.
    pub fn protect(
        &self,
        adapter: &Adapter,
        global: Option<&Adapter>,
        roles: &Roles,
        round: usize,
        client: &str,
    ) -> Result<Adapter> {
        let clipped = self.clipped(adapter, global, roles)?;
        match self.at {
            NoiseAt::Client => self.noisy(&clipped, roles, self.noise * self.clip, round, client),
            NoiseAt::Server => Ok(clipped),
        }
    }

    /// The mean of clipped tensors of `clients` clients with the server's noise, `noise * clip / clients` for each
    /// element.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a tensor cannot be read.
    pub fn cover(&self, mean: &Adapter, roles: &Roles, round: usize, clients: usize) -> Result<Adapter> {
        match self.at {
            NoiseAt::Client => Ok(mean.clone()),
            NoiseAt::Server => self.noisy(mean, roles, self.noise * self.clip / clients.max(1) as f64, round, SERVER),
        }
    }

    /// The adapter with its change since `global` shortened to the clipping norm.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Tensor`] if a tensor cannot be read.
    pub fn clipped(&self, adapter: &Adapter, global: Option<&Adapter>, roles: &Roles) -> Result<Adapter> {
        self.validate()?;
        let norm = change_norm(adapter, global, roles)?;
        if norm <= self.clip {
            return Ok(adapter.clone());
        }
        // Rounding to f32 must not lengthen it again.
        let share = self.clip / norm * (1.0 - f64::from(f32::EPSILON));
        map_shared(adapter, roles, |module, name, values| {
            let start = start(global, module, name, values.len())?;
            Ok(values.iter().zip(start).map(|(value, start)| start + share * (value - start)).collect())
        })
    }

    fn noisy(&self, adapter: &Adapter, roles: &Roles, deviation: f64, round: usize, client: &str) -> Result<Adapter> {
        if deviation == 0.0 {
            return Ok(adapter.clone());
        }
        map_shared(adapter, roles, |module, name, values| {
            let sample = number(&[client, module, name]);
            let noise = Noise::new(self.seed).normals(NOISE, round as u64, sample, values.len());
            Ok(values.iter().zip(noise).map(|(value, noise)| value + deviation * f64::from(noise)).collect())
        })
    }
}

/// The norm of the change of the shared tensors since `global`.
fn change_norm(adapter: &Adapter, global: Option<&Adapter>, roles: &Roles) -> Result<f64> {
    let mut square = 0.0;
    for (module, update) in adapter.iter() {
        for (name, tensor) in update.tensors().filter(|(name, _)| roles.of(module, update, name) == Role::Shared) {
            let values = numbers(tensor)?;
            let start = start(global, module, name, values.len())?;
            square += values.iter().zip(&start).map(|(value, start)| (value - start).powi(2)).sum::<f64>();
        }
    }
    Ok(square.sqrt())
}

/// The adapter with the values of its shared tensors replaced.
fn map_shared(
    adapter: &Adapter,
    roles: &Roles,
    mut f: impl FnMut(&str, &str, Vec<f64>) -> Result<Vec<f64>>,
) -> Result<Adapter> {
    let mut map = |(module, update): (&str, &LayerUpdate)| {
        let mapped = update.try_map(|name, tensor| match roles.of(module, update, name) {
            Role::Shared => shaped(f(module, name, numbers(tensor)?)?, tensor),
            Role::Frozen | Role::Personal => Ok(tensor.clone()),
        });
        mapped.map(|update| (module.to_owned(), update))
    };
    adapter.iter().map(&mut map).collect()
}

/// The values of a tensor of the global adapter; zeros if there is none of that size.
fn start(global: Option<&Adapter>, module: &str, name: &str, count: usize) -> Result<Vec<f64>> {
    match global.and_then(|global| global.get(module)).and_then(|update| update.get(name)) {
        Some(tensor) if tensor.elem_count() == count => numbers(tensor),
        _ => Ok(vec![0.0; count]),
    }
}

/// A number for these words: 64-bit FNV-1a, with a byte between words that no UTF-8 text has.
pub(crate) fn number(words: &[&str]) -> u64 {
    fnv1a(words.iter().flat_map(|word| word.bytes().chain([0xff])))
}
