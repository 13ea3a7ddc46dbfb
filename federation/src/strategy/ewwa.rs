//! EWWA-FL: every element of the model has a weight of its own for every client.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate};
use catelier_numerics::finite::is_finite;
use serde::{Deserialize, Serialize};

use super::dense::{dense, from_dense};
use super::{Aggregate, fitting};
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Problem, RejectedContribution, Result};
use crate::memory::Memory;
use crate::numbers::{numbers, positive};

/// Tensors by name: a whole model, or the tensors of an adapter.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Settings of EWWA-FL.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ewwa {
    /// How a contribution is made from the change of an element.
    pub moments: Moments,
    /// How contributions become weights.
    pub form: EwwaForm,
    /// Whether the sign of a contribution counts.
    pub contribution: ContributionSign,
    /// Inverse temperature of the softmax, above 0; 1 in the paper.
    pub alpha: f64,
}

/// The second moment, as in the optimizer of that name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// `v <- b2 v + (1 - b2) g^2`.
    #[default]
    Adam,
    /// `v <- v + g^2`.
    Adagrad,
    /// `v <- v - (1 - b2) g^2 sign(v - g^2)`.
    Yogi,
}

/// How contributions become weights that add up to 1 over the clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EwwaForm {
    /// The paper's: moments for every client, and a softmax over the clients.
    #[default]
    Softmax,
    /// The released code's: one state that all clients update in turn, and logarithms above the smallest contribution
    /// of all elements. It depends on the order of the clients, which is that of their names.
    SharedLog,
}

/// Whether the sign of a contribution counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContributionSign {
    /// As published: a client that makes a value smaller has a larger weight than one that makes it larger.
    #[default]
    Signed,
    /// The magnitude alone, without that asymmetry; not in the paper.
    Magnitude,
}

/// What of an adapter EWWA-FL acts on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// On `up` and `down` by themselves, from a common start. The mean is inexact as that of `fedavg`.
    Factors,
    /// On `up` beside a `down` that stays at the common start: elements mean the same for all clients.
    #[default]
    Up,
    /// On `scale * up * down`, cut to the global rank. The moments take twice the size of the base's layer for each
    /// client.
    Product,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Added to every logarithm in the released code, so that no weight is 0.
const LOG_FLOOR: f64 = 1e-8;

impl Default for Ewwa {
    /// The paper's form with Adam.
    fn default() -> Self {
        Self {
            moments: Moments::default(),
            form: EwwaForm::default(),
            contribution: ContributionSign::default(),
            alpha: 1.0,
        }
    }
}

impl Ewwa {
    /// One round on named tensors of any shapes: adapters, or whole models. Returns the new global tensors, in the
    /// dtype of the old ones, and the memory for the next round.
    ///
    /// Per client and element, with the pseudo-gradient `g = w_global - w_client`: `m <- b1 m + (1 - b1) g`, `v` as in
    /// [`Moments`], both corrected for their start from zero, the contribution `alpha m / (sqrt(v) + eps)`, and the
    /// softmax of the contributions as weights of the mean. `b1 = 0.9`, `b2 = 0.999`, `eps = 1e-8`. Numbers of examples
    /// are not used. Rounds are counted per client, so that one that missed rounds or comes late is corrected rightly.
    ///
    /// Every new value lies between the smallest and the largest of the clients. In a client's first round the
    /// contribution of Adam and Yogi is the sign of the change alone, so that of three clients none weighs less than
    /// 0.063 or more than 0.787; Adagrad's is 0.032 of it. Tensors that are not floating-point are copied from
    /// `global`, and `running_mean` and `running_var` of norms are averaged plainly.
    ///
    /// **Source** EWWA-FL, arXiv 2404.15919; constants, Adagrad, Yogi and [`EwwaForm::SharedLog`] from its released
    /// code.
    ///
    /// # Errors
    /// [`Error::NoContributions`]; [`Error::Contributions`] names every client with values that are not finite;
    /// [`Error::Setting`]; [`Error::Global`] for tensors that `global` lacks or has in another
    /// shape; [`Error::Memory`] for a memory of another federation.
    pub fn step(
        &self,
        global: &NamedTensors,
        replies: &BTreeMap<String, NamedTensors>,
        memory: &Memory,
    ) -> Result<(NamedTensors, Memory)> {
        self.validate()?;
        if replies.is_empty() {
            return Err(Error::NoContributions);
        }
        refuse_infinite(replies)?;
        for (name, tensor) in global.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
            replies.values().try_for_each(|reply| refuse_other_shape(name, tensor, reply.get(name)))?;
        }
        let clients: Vec<&str> = replies.keys().map(String::as_str).collect();
        self.step_by_tensor(global, &clients, memory, |name| replies.values().map(|reply| numbers(&reply[name])).collect())
    }

    /// A round of which one tensor of all clients is in memory at a time. `read` returns the values of the tensor of a name
    /// for each client, in the order of `clients`, which is that of their names.
    fn step_by_tensor(
        &self,
        global: &NamedTensors,
        clients: &[&str],
        memory: &Memory,
        read: impl Fn(&str) -> Result<Vec<Vec<f64>>>,
    ) -> Result<(NamedTensors, Memory)> {
        let changes = || {
            let named = global.iter().filter(|(_, tensor)| tensor.dtype().is_float());
            named.map(|(name, tensor)| Ok((name, tensor, Change { global: numbers(tensor)?, clients: read(name)? })))
        };
        let round = Round { settings: self, clients, memory };
        let mut smallest = f64::INFINITY;
        if self.form == EwwaForm::SharedLog {
            // The smallest contribution of all tensors has to be known before the first weight.
            let mut tried = memory.clone();
            for change in changes().filter(|change| change.as_ref().map_or(true, |(name, ..)| !is_statistic(name))) {
                let (name, _, change): (&String, _, _) = change?;
                let contributions = round.contributions(name, &change, &mut tried)?;
                smallest = contributions.iter().flatten().copied().fold(smallest, f64::min);
            }
        }
        let (mut result, mut after) = (global.clone(), memory.clone());
        for change in changes() {
            let (name, tensor, change) = change?;
            let weights = match is_statistic(name) {
                true => vec![vec![1.0; change.global.len()]; clients.len()],
                false => self.weights(round.contributions(name, &change, &mut after)?, smallest),
            };
            result.insert(name.clone(), change.mean(&weights, tensor)?);
        }
        round.count_in(&mut after);
        Ok((result, after))
    }

    /// Refuses a temperature that is not finite and above 0.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        positive("alpha of `ewwa`", self.alpha)
    }

    /// The contribution of a client's elements of one tensor; the moments in the memory move on.
    fn contribution(
        &self,
        change: &Change,
        client: usize,
        key: &str,
        round: u64,
        memory: &mut Memory,
    ) -> Result<Vec<f64>> {
        let count = change.global.len();
        let (mut first, mut second) =
            (memory.values(&format!("{key}.m"), count)?, memory.values(&format!("{key}.v"), count)?);
        let mut contributions = Vec::with_capacity(count);
        for (element, own) in change.clients[client].iter().enumerate() {
            let gradient = change.global[element] - own;
            first[element] = BETA1 * first[element] + (1.0 - BETA1) * gradient;
            second[element] = self.moments.second(BETA2, second[element], gradient * gradient);
            contributions.push(self.signed(first[element], second[element], round));
        }
        memory.set_values(format!("{key}.m"), first)?;
        memory.set_values(format!("{key}.v"), second)?;
        Ok(contributions)
    }

    fn signed(&self, first: f64, second: f64, round: u64) -> f64 {
        let round = round.min(i32::MAX as u64) as i32;
        let (bias1, bias2) = (1.0 - BETA1.powi(round), 1.0 - BETA2.powi(round));
        let contribution = match self.form {
            EwwaForm::Softmax => self.alpha * (first / bias1) / ((second.max(0.0) / bias2).sqrt() + EPSILON),
            EwwaForm::SharedLog => self.alpha * bias2.sqrt() / bias1 * first / (second.max(0.0).sqrt() + EPSILON),
        };
        match self.contribution {
            ContributionSign::Signed => contribution,
            ContributionSign::Magnitude => contribution.abs(),
        }
    }

    /// Weights by client and element, not yet divided by their sums, from the contributions. `smallest` is the smallest
    /// contribution of all tensors.
    fn weights(&self, mut contributions: Vec<Vec<f64>>, smallest: f64) -> Vec<Vec<f64>> {
        let weigh = |contribution: f64, largest: f64| match self.form {
            EwwaForm::Softmax => (contribution - largest).exp(),
            EwwaForm::SharedLog => (contribution - smallest + 1.0).ln() + LOG_FLOOR,
        };
        for element in 0..contributions[0].len() {
            let largest = contributions.iter().map(|own| own[element]).fold(f64::NEG_INFINITY, f64::max);
            contributions.iter_mut().for_each(|own| own[element] = weigh(own[element], largest));
        }
        contributions
    }
}

/// The clients of a round, and the memory before it.
struct Round<'r> {
    settings: &'r Ewwa,
    clients: &'r [&'r str],
    memory: &'r Memory,
}

impl Round<'_> {
    /// Whose moments a client's changes move: its own, or the ones that all share.
    fn owner(&self, client: &str) -> String {
        if self.settings.form == EwwaForm::SharedLog { "ewwa".to_owned() } else { format!("ewwa/{client}") }
    }

    /// The round of a client's moments. All clients of shared ones are in one round of them.
    fn number(&self, client: &str) -> u64 {
        self.memory.count(&self.owner(client)) + 1
    }

    /// By client, the contribution of every element of a tensor; the moments in `after` move on.
    fn contributions(&self, name: &str, change: &Change, after: &mut Memory) -> Result<Vec<Vec<f64>>> {
        let of_client = |(index, client): (usize, &&str)| {
            let key = format!("{}/{name}", self.owner(client));
            self.settings.contribution(change, index, &key, self.number(client), after)
        };
        self.clients.iter().enumerate().map(of_client).collect()
    }

    /// Counts the round.
    fn count_in(&self, after: &mut Memory) {
        self.clients.iter().for_each(|client| after.set_count(self.owner(client), self.number(client)));
    }
}

impl Moments {
    /// The second moment, which decays by `beta2`, after a change with this square.
    pub(super) fn second(self, beta2: f64, second: f64, square: f64) -> f64 {
        match self {
            Self::Adam => beta2 * second + (1.0 - beta2) * square,
            Self::Adagrad => second + square,
            Self::Yogi => second - (1.0 - beta2) * square * sign(second - square),
        }
    }
}

/// -1, 0 or 1; `signum` has no 0.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

/// Refuses values that are not finite, and names all clients that sent some.
fn refuse_infinite(replies: &BTreeMap<String, NamedTensors>) -> Result<()> {
    let mut rejected = Vec::new();
    for (client, tensors) in replies {
        let mut bad = Vec::new();
        for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
            if !is_finite(tensor).map_err(Error::tensor("checking values"))? {
                bad.push(name.clone());
            }
        }
        if let Some(first) = bad.first().cloned() {
            let problems = vec![Problem::NotFinite { count: bad.len(), first }];
            rejected.push(RejectedContribution { client: client.clone(), problems });
        }
    }
    if rejected.is_empty() { Ok(()) } else { Err(Error::Contributions { total: replies.len(), rejected }) }
}

/// Running statistics of normalisation layers, which no gradient moves.
fn is_statistic(name: &str) -> bool {
    ["running_mean", "running_var"].iter().any(|end| name == *end || name.ends_with(&format!(".{end}")))
}

/// Refuses a client's tensor that is missing or has another shape than the global one.
fn refuse_other_shape(name: &str, global: &Tensor, own: Option<&Tensor>) -> Result<()> {
    match own {
        Some(own) if own.dims() == global.dims() => Ok(()),
        own => {
            let (expected, found) = (global.dims().to_vec(), own.map_or(&[][..], Tensor::dims).to_vec());
            Err(Error::Global { module: name.to_owned(), expected, found })
        }
    }
}

/// The values of one tensor: the global ones, and those of every client in the order of their names.
struct Change {
    global: Vec<f64>,
    clients: Vec<Vec<f64>>,
}

impl Change {
    /// The weighted mean of the clients, element by element, in the shape and dtype of `like`.
    fn mean(&self, weights: &[Vec<f64>], like: &Tensor) -> Result<Tensor> {
        let element = |element: usize| {
            let total: f64 = weights.iter().map(|own| own[element]).sum();
            let mean: f64 =
                weights.iter().zip(&self.clients).map(|(weight, own)| weight[element] / total * own[element]).sum();
            // Rounding must not leave the hull of the clients.
            let ends = self.clients.iter().map(|own| own[element]);
            mean.clamp(ends.clone().fold(f64::INFINITY, f64::min), ends.fold(f64::NEG_INFINITY, f64::max))
        };
        let values: Vec<f64> = (0..self.global.len()).map(element).collect();
        let write = || Tensor::from_vec(values, like.dims(), like.device())?.to_dtype(like.dtype());
        write().map_err(Error::tensor("writing values"))
    }
}

/// EWWA-FL on adapters; see [`Ewwa::step`] and [`Placement`].
///
/// # Errors
/// As [`check`](crate::check()), with [`RankPolicy::Mixed`] for products and [`RankPolicy::Uniform`] otherwise; [`Error::Global`] if
/// the contributions do not have the global adapter's shapes; the errors of [`Ewwa::step`].
pub fn ewwa(
    contributions: &Contributions<'_>,
    global: &Adapter,
    settings: Ewwa,
    placement: Placement,
    memory: &Memory,
) -> Result<(Aggregate, Memory)> {
    settings.validate()?;
    contributions.check(if placement == Placement::Product { RankPolicy::Mixed } else { RankPolicy::Uniform })?;
    if placement != Placement::Product {
        fitting(global, contributions)?;
    }
    contributions.refuse_other_kinds("ewwa")?;
    let (shares, before) = (contributions.shares(), named_tensors(global, placement)?);
    let clients: Vec<&str> =
        shares.iter().map(|(position, _)| contributions.header(*position).client.as_str()).collect();
    let read = |name: &str| values_of(contributions, &shares, name, &before[name]);
    let (tensors, memory) = settings.step_by_tensor(&before, &clients, memory, read)?;
    let adapter = global.iter().map(|(module, update)| moved(module, update, &tensors)).collect::<Result<Adapter>>()?;
    Ok((Aggregate::measured(adapter, contributions)?, memory))
}

/// The values of the tensor `<module>.<tensor>` in every contribution.
fn values_of(
    contributions: &Contributions<'_>,
    shares: &Shares,
    name: &str,
    global: &Tensor,
) -> Result<Vec<Vec<f64>>> {
    let (module, tensor) = name.rsplit_once('.').unwrap_or((name, ""));
    let mut values = Vec::with_capacity(shares.len());
    contributions.each_update(module, shares, |update, _| {
        let own = tensor_of(&update, tensor)?;
        refuse_other_shape(name, global, own.as_ref())?;
        values.push(own.map_or(Ok(Vec::new()), |own| numbers(&own))?);
        Ok(())
    })?;
    match values.len() == shares.len() {
        true => Ok(values),
        false => Err(Error::Global { module: name.to_owned(), expected: global.dims().to_vec(), found: Vec::new() }),
    }
}

/// A tensor that EWWA-FL acts on.
fn tensor_of(update: &LayerUpdate, name: &str) -> Result<Option<Tensor>> {
    match name {
        "product" => dense(update.low_rank()).map(Some),
        _ => Ok(update.get(name).cloned()),
    }
}

/// The tensors that EWWA-FL acts on: `<module>.down`, `<module>.up` or `<module>.product` [out, in].
fn named_tensors(adapter: &Adapter, placement: Placement) -> Result<NamedTensors> {
    let mut named = NamedTensors::new();
    for (module, update) in adapter.iter() {
        let factors = update.low_rank();
        if placement == Placement::Product {
            named.insert(format!("{module}.product"), dense(factors)?);
            continue;
        }
        named.insert(format!("{module}.up"), factors.up.clone());
        if placement == Placement::Factors {
            named.insert(format!("{module}.down"), factors.down.clone());
        }
    }
    Ok(named)
}

/// The update of a module with the tensors of a step.
fn moved(module: &str, update: &LayerUpdate, tensors: &NamedTensors) -> Result<(String, LayerUpdate)> {
    let factors = update.low_rank();
    if let Some(product) = tensors.get(&format!("{module}.product")) {
        let cut = from_dense(module, product, factors, factors.rank(), factors.scale())?;
        return Ok((module.to_owned(), cut.into()));
    }
    let update = update.try_map(|name, own| match tensors.get(&format!("{module}.{name}")) {
        Some(tensor) => tensor.to_dtype(DType::F32).map_err(Error::tensor("writing values")),
        None => Ok(own.clone()),
    })?;
    Ok((module.to_owned(), update))
}
