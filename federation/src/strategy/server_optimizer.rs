//! Adaptive server optimizers: the mean change of the clients is a gradient for an optimizer on the server.

use catelier_adapters::{Adapter, LayerUpdate};
use serde::{Deserialize, Serialize};

use super::ewwa::Moments;
use super::fedavg::mean_of_tensors;
use super::{Aggregate, fitting};
use crate::check::RankPolicy;
use crate::contributions::Contributions;
use crate::error::Result;
use crate::memory::Memory;
use crate::numbers::{numbers, positive, shaped};

/// Settings of a server optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ServerOptimizer {
    /// The second moment.
    pub moments: Moments,
    /// The server's learning rate, above 0.
    pub learning_rate: f64,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.99;
/// `tau`: bounds the step where the second moment is small; also the root of its first value.
const ADAPTIVITY: f64 = 1e-3;

impl ServerOptimizer {
    /// An optimizer with the learning rate 0.01, at which an element moves by about 0.01 in a round.
    pub fn new(moments: Moments) -> Self {
        Self { moments, learning_rate: 0.01 }
    }

    /// Refuses a learning rate that is not finite and above 0.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting).
    pub fn validate(&self) -> Result<()> {
        positive("learning rate of the server", self.learning_rate)
    }
}

/// FedAdam, FedAdagrad and FedYogi on the factors. With the mean change `d = sum p_k w_k - w` of a tensor:
/// `m <- 0.9 m + 0.1 d`, `v` as in [`Moments`] with `b2 = 0.99`, and `w <- w + rate m / (sqrt(v) + 1e-3)`.
///
/// Every element has its own step, so that a rotation of the factors changes the result; a common start is needed.
///
/// **Source** arXiv 2003.00295, algorithm 2; no bias correction, `v` starts at `tau^2`.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`]; [`Error::Setting`](crate::Error::Setting); [`Error::Global`](crate::Error::Global) if the contributions do not have
/// the global adapter's shapes; [`Error::Memory`](crate::Error::Memory) for a memory of another federation.
pub fn server_optimizer(
    contributions: &Contributions<'_>,
    global: &Adapter,
    settings: ServerOptimizer,
    memory: &Memory,
) -> Result<(Aggregate, Memory)> {
    settings.validate()?;
    contributions.check(RankPolicy::Uniform)?;
    fitting(global, contributions)?;
    let mean = mean_of_tensors(contributions)?;
    let mut memory = memory.clone();
    let first_round = memory.count(ROUNDS) == 0;
    let mut moved = |(module, update): (&str, &LayerUpdate)| {
        let moved = update.try_map(|name, tensor| {
            let goal = mean.get(module).and_then(|mean| mean.get(name)).unwrap_or(tensor);
            let key = format!("server/{module}.{name}");
            let values = step(&numbers(tensor)?, &numbers(goal)?, &key, settings, first_round, &mut memory)?;
            shaped(values, tensor)
        });
        moved.map(|update| (module.to_owned(), update))
    };
    let adapter = global.iter().map(&mut moved).collect::<Result<Adapter>>()?;
    memory.set_count(ROUNDS, memory.count(ROUNDS) + 1);
    Ok((Aggregate::measured(adapter, contributions)?, memory))
}

/// Name of the count of rounds in the memory.
const ROUNDS: &str = "server";

fn step(
    values: &[f64],
    goals: &[f64],
    key: &str,
    settings: ServerOptimizer,
    first_round: bool,
    memory: &mut Memory,
) -> Result<Vec<f64>> {
    let mut first = memory.values(&format!("{key}.m"), values.len())?;
    let mut second = memory.values(&format!("{key}.v"), values.len())?;
    if first_round {
        second.fill(ADAPTIVITY * ADAPTIVITY);
    }
    let mut moved = Vec::with_capacity(values.len());
    for (element, (value, goal)) in values.iter().zip(goals).enumerate() {
        let change = goal - value;
        first[element] = BETA1 * first[element] + (1.0 - BETA1) * change;
        second[element] = settings.moments.second(BETA2, second[element], change * change);
        moved.push(value + settings.learning_rate * first[element] / (second[element].max(0.0).sqrt() + ADAPTIVITY));
    }
    memory.set_values(format!("{key}.m"), first)?;
    memory.set_values(format!("{key}.v"), second)?;
    Ok(moved)
}
