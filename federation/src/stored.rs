//! Contributions that stay in their files and are read module by module.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::file::AdapterFile;
use catelier_adapters::{Adapter, LayerUpdate};
use catelier_numerics::tensor_file::{CHECKSUM, ClosedFile, TensorPlace};

use crate::error::{Error, Problem, Result};
use crate::files::{ALPHA, CONTRIBUTION_FORMAT, alpha_of, open, unusable};
use crate::numbers::numbers;
use crate::roles::{Role, Roles};
use crate::source::{ContributionHeader, ContributionSource, ModuleHeader};

/// A contribution in a file: of its tensors nothing is in memory, and the file is open only while a module is read.
#[derive(Debug, Clone)]
pub struct StoredContribution {
    header: ContributionHeader,
    file: StoredFile,
    /// What did not travel, or was not the client's to change.
    template: Option<Adapter>,
    roles: Roles,
}

#[derive(Debug, Clone)]
enum StoredFile {
    Adapter(AdapterFile),
    Sent { path: PathBuf, file: ClosedFile, places: Arc<Places> },
}

/// The tensors of a sent contribution by module and name.
type Places = BTreeMap<String, BTreeMap<&'static str, TensorPlace>>;

/// The names of an update's tensors.
const TENSORS: [&str; 3] = ["down", "up", "magnitude"];

/// The header of a [`SentContribution`](crate::SentContribution)'s file.
#[derive(Debug, Clone, PartialEq)]
pub struct SentHeader {
    /// Name of the client.
    pub client: String,
    /// The round, from 1.
    pub round: usize,
    /// Weight in the mean.
    pub weight: f64,
    /// Fingerprint of the base that the adapter was trained on.
    pub base_fingerprint: Option<String>,
    /// The checksum of the file, 64 hex digits.
    pub checksum: String,
}

impl StoredContribution {
    /// A contribution that is an adapter's file, of which only the shared tensors count: the others are taken from the
    /// global adapter, and modules without a shared tensor are left out.
    ///
    /// # Errors
    /// [`Problem::Moved`] for each frozen tensor that differs from the global adapter's, as the inner error; the outer one
    /// if the file cannot be read.
    pub fn adapter(
        client: impl Into<String>,
        weight: f64,
        base_fingerprint: Option<String>,
        file: AdapterFile,
        roles: &Roles,
        global: Option<&Adapter>,
    ) -> Result<Result<Self, Vec<Problem>>> {
        let modules = file.updates().map(|(module, update)| {
            let tensors = update.tensors().map(|(name, shape)| (name, DType::F32, shape.to_vec())).collect();
            (module.to_owned(), ModuleHeader { alpha: update.alpha(), tensors })
        });
        let template = global.filter(|_| !roles.are_shared()).cloned();
        let header =
            ContributionHeader { client: client.into(), weight, base_fingerprint, modules: Arc::new(modules.collect()) };
        let mut stored = Self { header, file: StoredFile::Adapter(file), template, roles: roles.clone() };
        let problems = stored.moved()?;
        stored.leave_out_what_is_not_shared();
        Ok(if problems.is_empty() { Ok(stored) } else { Err(problems) })
    }

    /// A contribution in a file that [`SentContribution::save`](crate::SentContribution::save) wrote. What did not travel is
    /// taken from the global adapter.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is damaged or no contribution; [`Error::Numerics`] for one that cannot be read.
    pub fn sent(path: &Path, roles: &Roles, global: Option<&Adapter>) -> Result<(SentHeader, Self)> {
        let file = open(path, CONTRIBUTION_FORMAT)?;
        let sent = SentHeader::of(path, &file)?;
        let (mut places, mut alphas) = (Places::new(), BTreeMap::new());
        for name in file.names() {
            let (module, tensor) = name.rsplit_once('.').unwrap_or(("", name));
            match TENSORS.iter().find(|known| **known == tensor) {
                Some(known) => {
                    let place = file.place(name).map_err(Error::numerics(format!("reading `{name}`")))?;
                    places.entry(module.to_owned()).or_default().insert(*known, place);
                }
                None if tensor == ALPHA => drop(alphas.insert(module.to_owned(), alpha_of(&file, name)?)),
                None => return Err(unusable(path, format!("`{name}` is no tensor of an update"))),
            }
        }
        let closed = file.closed().ok_or_else(|| unusable(path, "it is no file on disk".into()))?;
        let modules = headers(path, &places, &alphas, global)?;
        let header = ContributionHeader {
            client: sent.client.clone(),
            weight: sent.weight,
            base_fingerprint: sent.base_fingerprint.clone(),
            modules: Arc::new(modules),
        };
        let file = StoredFile::Sent { path: path.to_path_buf(), file: closed, places: Arc::new(places) };
        let mut stored = Self { header, file, template: global.cloned(), roles: roles.clone() };
        stored.leave_out_what_is_not_shared();
        Ok((sent, stored))
    }

    /// What is known of it without its values.
    pub fn header(&self) -> &ContributionHeader {
        &self.header
    }

    /// The same contribution with another weight or base.
    #[must_use]
    pub fn with(mut self, weight: f64, base_fingerprint: Option<String>) -> Self {
        (self.header.weight, self.header.base_fingerprint) = (weight, base_fingerprint);
        self
    }

    /// Modules of which the plan shares nothing, such as those of a head, do not belong to the contribution.
    fn leave_out_what_is_not_shared(&mut self) {
        if self.roles.head.is_none() {
            return;
        }
        let is_shared = |module: &String, header: &ModuleHeader| {
            let is_shared = |(name, ..): &(&str, _, _)| self.roles.of_shape(module, &header.weight_shape(), name) == Role::Shared;
            header.tensors.iter().any(is_shared)
        };
        let modules = self.header.modules.iter().filter(|(module, header)| is_shared(module, header));
        self.header.modules = Arc::new(modules.map(|(module, header)| (module.clone(), header.clone())).collect());
    }

    /// The frozen tensors that differ from those of the global adapter.
    fn moved(&self) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        let Some(global) = &self.template else { return Ok(problems) };
        for module in self.header.modules.keys() {
            let Some(common) = global.get(module) else { continue };
            let is_frozen = |name: &&str| self.roles.of(module, common, name) == Role::Frozen;
            let frozen: Vec<&str> = common.tensors().map(|(name, _)| name).filter(is_frozen).collect();
            let own = if frozen.is_empty() { None } else { self.file.read(module, None)? };
            for name in frozen {
                if let (Some(own), Some(common)) = (own.as_ref().and_then(|own| own.get(name)), common.get(name))
                    && !have_same_bits(own, common)?
                {
                    problems.push(Problem::Moved { tensor: format!("{module}.{name}") });
                }
            }
        }
        Ok(problems)
    }

    fn read(&self, module: &str) -> Result<Option<LayerUpdate>> {
        let common = self.template.as_ref().and_then(|template| template.get(module));
        let Some(own) = self.file.read(module, common)? else { return Ok(None) };
        let Some(common) = common else { return Ok(Some(own)) };
        let completed = own.try_map(|name, tensor| match self.roles.of(module, &own, name) {
            Role::Shared => Ok::<_, Error>(tensor.clone()),
            Role::Frozen | Role::Personal => Ok(common.get(name).unwrap_or(tensor).clone()),
        });
        completed.map(Some)
    }
}

fn have_same_bits(one: &Tensor, other: &Tensor) -> Result<bool> {
    if one.dims() != other.dims() {
        return Ok(false);
    }
    Ok(numbers(one)?.iter().zip(numbers(other)?).all(|(one, other)| one.to_bits() == other.to_bits()))
}

/// What is known of each module, with the tensors that stayed at home as the global adapter has them.
fn headers(
    path: &Path,
    places: &Places,
    alphas: &BTreeMap<String, f64>,
    global: Option<&Adapter>,
) -> Result<BTreeMap<String, ModuleHeader>> {
    let header = |(module, places): (&String, &BTreeMap<&'static str, TensorPlace>)| {
        let common = global.and_then(|global| global.get(module));
        let mut tensors = Vec::new();
        for name in TENSORS {
            if let Some(place) = places.get(name) {
                // Tensors of other types are refused when the contribution is checked.
                let dtype = place.dtype().ok_or_else(|| unusable(path, format!("`{module}.{name}` cannot be read")))?;
                tensors.push((name, dtype, place.shape().to_vec()));
            } else if let Some(tensor) = common.and_then(|common| common.get(name)) {
                tensors.push((name, tensor.dtype(), tensor.dims().to_vec()));
            }
        }
        let alpha = alphas.get(module).copied().or(common.map(LayerUpdate::alpha)).unwrap_or(1.0);
        fits(path, module, alpha, &tensors)?;
        Ok((module.clone(), ModuleHeader { alpha, tensors }))
    };
    places.iter().map(header).collect()
}

/// Refuses a module whose tensors are no update, by shapes of no elements.
fn fits(path: &Path, module: &str, alpha: f64, tensors: &[(&'static str, DType, Vec<usize>)]) -> Result<()> {
    let shape = |name: &str| tensors.iter().find(|(own, ..)| *own == name).map_or(&[][..], |(_, _, shape)| shape);
    let (down, up, magnitude) = (shape("down"), shape("up"), shape("magnitude"));
    let are_factors = match (down, up) {
        ([rank, _], [_, columns]) => rank == columns && *rank > 0,
        ([rank, _, height, width], [_, columns, 1, 1]) => rank == columns && *rank > 0 && *height > 0 && *width > 0,
        _ => false,
    };
    if are_factors && (magnitude.is_empty() || magnitude == &up[..1]) && (alpha as f32).is_finite() {
        return Ok(());
    }
    let problem = format!("`{module}`: `down` {down:?}, `up` {up:?} and alpha {alpha} are no update");
    Err(unusable(path, problem))
}

impl StoredFile {
    /// The update of a module in the file. Tensors that the file lacks are those of `common`.
    fn read(&self, module: &str, common: Option<&LayerUpdate>) -> Result<Option<LayerUpdate>> {
        let (path, file, places) = match self {
            Self::Adapter(file) => return file.read(module).map_err(Error::adapters("reading a contribution")),
            Self::Sent { path, file, places } => (path, file, places),
        };
        let Some(places) = places.get(module) else { return Ok(None) };
        let failed = || Error::numerics(format!("reading `{}`", path.display()));
        let file = file.reopen().map_err(failed())?;
        let mut tensors = BTreeMap::new();
        for (name, place) in places {
            let tensor = file.tensor(&format!("{module}.{name}"), place, &Device::Cpu).map_err(failed())?;
            tensors.insert((*name).to_owned(), tensor);
        }
        for (name, tensor) in common.into_iter().flat_map(LayerUpdate::tensors) {
            tensors.entry(name.to_owned()).or_insert_with(|| tensor.clone());
        }
        Ok(Some(LayerUpdate::from_tensors(tensors, 1.0).map_err(Error::adapters("reading a contribution"))?))
    }
}

impl SentHeader {
    fn of(path: &Path, file: &catelier_numerics::tensor_file::TensorFile) -> Result<Self> {
        let text = |name: &str| file.metadata().get(name).cloned();
        let missing = |name: &str| unusable(path, format!("its header has no usable `{name}`"));
        Ok(Self {
            client: text("client").ok_or_else(|| missing("client"))?,
            round: text("round").and_then(|round| round.parse().ok()).ok_or_else(|| missing("round"))?,
            weight: text("weight").and_then(|weight| weight.parse().ok()).ok_or_else(|| missing("weight"))?,
            base_fingerprint: text("base"),
            checksum: text(CHECKSUM).ok_or_else(|| missing(CHECKSUM))?,
        })
    }
}

/// The stored contributions of a round.
#[derive(Debug, Default)]
pub struct StoredContributions {
    headers: Vec<ContributionHeader>,
    files: Vec<StoredContribution>,
}

impl StoredContributions {
    /// A source of no contributions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a contribution. One of the structure of the first takes next to no memory.
    pub fn push(&mut self, mut contribution: StoredContribution) {
        if let Some(first) = self.files.first() {
            contribution.header.share_structure(&first.header);
            contribution.file.share_structure(&first.file);
        }
        self.headers.push(contribution.header.clone());
        self.files.push(contribution);
    }
}

impl StoredFile {
    fn share_structure(&mut self, other: &Self) {
        match (self, other) {
            (Self::Adapter(own), Self::Adapter(other)) => own.share_structure(other),
            (Self::Sent { places: own, .. }, Self::Sent { places: other, .. }) if own == other => *own = Arc::clone(other),
            _ => {}
        }
    }
}

impl ContributionSource for StoredContributions {
    fn headers(&self) -> &[ContributionHeader] {
        &self.headers
    }

    fn update(&self, position: usize, module: &str) -> Result<Option<LayerUpdate>> {
        let stored = &self.files[position];
        match stored.header.modules.get(module) {
            None => Ok(None),
            Some(header) => Ok(stored.read(module)?.map(|update| with_alpha(update, header.alpha))),
        }
    }
}

/// The update at the alpha of its header.
fn with_alpha(update: LayerUpdate, alpha: f64) -> LayerUpdate {
    match update {
        LayerUpdate::Lora(factors) => LayerUpdate::Lora(catelier_adapters::LoraFactors { alpha, ..factors }),
        LayerUpdate::Dora(mut dora) => {
            dora.low_rank.alpha = alpha;
            LayerUpdate::Dora(dora)
        }
    }
}
