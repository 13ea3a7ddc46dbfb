//! Where the contributions of a round are: in memory, or in files that are read module by module.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use catelier_adapters::{LayerUpdate, UpdateKind};

use crate::contribution::Contribution;
use crate::error::Result;

/// Where the contributions of a round are. Strategies read one module of one contribution at a time, so that not all
/// values have to be in memory together.
pub trait ContributionSource: Sync {
    /// What is known of each contribution without its values, in the order of arrival.
    fn headers(&self) -> &[ContributionHeader];

    /// The update of a module in the contribution at this position; `None` if it has none.
    ///
    /// # Errors
    /// The source's, where an update cannot be read.
    fn update(&self, position: usize, module: &str) -> Result<Option<LayerUpdate>>;
}

/// What is known of a contribution without the values of its tensors.
#[derive(Debug, Clone)]
pub struct ContributionHeader {
    /// Name of the client, unique in its round.
    pub client: String,
    /// Weight of the adapter in the mean.
    pub weight: f64,
    /// Fingerprint of the base model that the adapter was trained on, where it is known.
    pub base_fingerprint: Option<String>,
    /// The modules by path. Contributions of one structure can share it.
    pub modules: Arc<BTreeMap<String, ModuleHeader>>,
}

/// What is known of one module's update without its values.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleHeader {
    /// Numerator of the scale.
    pub alpha: f64,
    /// Name, element type and shape of each tensor, as [`LayerUpdate::tensors`] has them: `down` `[rank, in]`, `up`
    /// `[out, rank]`, of a DoRA `magnitude` `[out]` too.
    pub tensors: Vec<(&'static str, DType, Vec<usize>)>,
}

impl ContributionHeader {
    /// The header of a contribution in memory.
    pub fn of(contribution: &Contribution) -> Self {
        let header = |(module, update): (&str, &LayerUpdate)| (module.to_owned(), ModuleHeader::of(update));
        Self {
            client: contribution.client.clone(),
            weight: contribution.weight,
            base_fingerprint: contribution.base_fingerprint.clone(),
            modules: Arc::new(contribution.adapter.iter().map(header).collect()),
        }
    }

    /// Takes the structure of `other` in the place of an equal one.
    pub(crate) fn share_structure(&mut self, other: &Self) {
        if self.modules == other.modules {
            self.modules = Arc::clone(&other.modules);
        }
    }
}

impl ModuleHeader {
    /// The header of an update in memory.
    pub fn of(update: &LayerUpdate) -> Self {
        let tensors = update.tensors().map(|(name, tensor)| (name, tensor.dtype(), tensor.dims().to_vec()));
        Self { alpha: update.alpha(), tensors: tensors.collect() }
    }

    /// The kind of update.
    pub fn kind(&self) -> UpdateKind {
        if self.shape("magnitude").is_empty() { UpdateKind::Lora } else { UpdateKind::Dora }
    }

    /// Number of rows of `down`.
    pub fn rank(&self) -> usize {
        self.shape("down").first().copied().unwrap_or(0)
    }

    /// `alpha / rank`, the scale of the low-rank product.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank().max(1) as f64
    }

    /// Shape of the module's weight: `[out, in]` or `[out, in, kernel, kernel]`.
    pub fn weight_shape(&self) -> Vec<usize> {
        let (up, down) = (self.shape("up"), self.shape("down"));
        up.iter().take(1).chain(down.iter().skip(1)).copied().collect()
    }

    /// Sides of the update as a matrix: `out`, and `in` or `in * kernel * kernel`.
    pub(crate) fn sides(&self) -> (usize, usize) {
        let shape = self.weight_shape();
        (shape.first().copied().unwrap_or(0), shape.iter().skip(1).product())
    }

    /// Shape of the tensor of this name; empty if there is none.
    fn shape(&self, name: &str) -> &[usize] {
        self.tensors.iter().find(|(own, ..)| *own == name).map_or(&[], |(_, _, shape)| shape)
    }
}

/// Contributions in memory as a source.
#[derive(Debug)]
pub struct InMemory<'c> {
    contributions: &'c [Contribution],
    headers: Vec<ContributionHeader>,
}

impl<'c> InMemory<'c> {
    /// A source of these contributions.
    pub fn new(contributions: &'c [Contribution]) -> Self {
        Self { contributions, headers: contributions.iter().map(ContributionHeader::of).collect() }
    }
}

impl ContributionSource for InMemory<'_> {
    fn headers(&self) -> &[ContributionHeader] {
        &self.headers
    }

    fn update(&self, position: usize, module: &str) -> Result<Option<LayerUpdate>> {
        Ok(self.contributions[position].adapter.get(module).cloned())
    }
}
