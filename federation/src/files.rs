//! Files of a round: what a client gets ([`ClientRound`]), and what it sends ([`SentContribution`]).
//!
//! A simulation needs neither; a folder, a bucket or a network carries them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate};
use catelier_numerics::finite::is_finite;
use catelier_numerics::tensor_file::{self, Checksum, TensorFile};
use catelier_numerics::{atomic, bounded};
use serde::{Deserialize, Serialize};

use crate::contribution::Contribution;
use crate::error::{Error, Problem, Result};
use crate::instructions::Instructions;
use crate::payload::Payload;
use crate::plan::RoundPlan;

/// Name of the format of a contribution's file, in its header.
pub const CONTRIBUTION_FORMAT: &str = "catelier federation contribution";

/// Name of the format of an adapter's file in a client's folder, in its header.
const ADAPTER_FORMAT: &str = "catelier federation adapter";

/// Version of both formats, and of `round.json`.
const VERSION: &str = "1";

const ROUND: &str = "round.json";
const GLOBAL: &str = "global.safetensors";
const MERGED: &str = "merged.safetensors";

/// Most bytes of `round.json`: patterns of a head and similarities of clients, nothing larger.
const LARGEST_ROUND: u64 = 1 << 20;

/// Name of a module's alpha, beside the names of its tensors.
pub(crate) const ALPHA: &str = "alpha";

/// A round as a client gets it: a folder with `round.json`, `global.safetensors` and, where there is one, the update that
/// the client merges into its base, `merged.safetensors`.
#[derive(Debug, Clone)]
pub struct ClientRound {
    /// The plan, on which clients and server agree.
    pub plan: RoundPlan,
    /// What the server asks.
    pub instructions: Instructions,
    /// The global adapter; none before the first round of a run without a start adapter.
    pub global: Option<Adapter>,
}

/// `round.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoundFile {
    version: String,
    plan: RoundPlan,
    instructions: Instructions,
    /// Whether `global.safetensors` belongs to the round.
    global: bool,
    /// Whether `merged.safetensors` belongs to the round.
    merged: bool,
}

impl ClientRound {
    /// Writes the files of the round into a folder that is there. Each is written atomically, `round.json` last.
    ///
    /// # Errors
    /// [`Error::Numerics`] if a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in self.to_files()? {
            let path = folder.join(name);
            atomic::write(&path, |file| file.write_all(&bytes))
                .map_err(Error::numerics(format!("writing `{}`", path.display())))?;
        }
        Ok(())
    }

    /// The files that [`save`](Self::save) writes, by name and in its order: `round.json` last. Equal rounds have equal
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Numerics`] if a tensor has an element type that files do not have.
    pub fn to_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let adapters = [(GLOBAL, &self.global), (MERGED, &self.instructions.merged)];
        let adapters = adapters.into_iter().filter_map(|(name, adapter)| Some((name, adapter.as_ref()?)));
        let tensors = |(name, adapter)| Ok((name, to_bytes(&adapter_tensors(adapter)?, &header(ADAPTER_FORMAT))?));
        let mut files: Vec<_> = adapters.map(tensors).collect::<Result<_>>()?;
        let file = RoundFile {
            version: VERSION.to_owned(),
            plan: self.plan.clone(),
            instructions: self.instructions.clone(),
            global: self.global.is_some(),
            merged: self.instructions.merged.is_some(),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| unusable(Path::new(ROUND), error.to_string()))?;
        files.push((ROUND, text));
        Ok(files)
    }

    /// Reads a round that [`save`](Self::save) wrote. Both adapters are checked: checksums and finite values.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is damaged, missing or of another version; the errors of [`RoundPlan::validate`].
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(ROUND);
        let text = bounded::read(&path, LARGEST_ROUND).map_err(|error| unusable(&path, error.to_string()))?;
        Self::read(folder, &text, |path| {
            TensorFile::open(path).map_err(Error::numerics(format!("reading `{}`", path.display())))
        })
    }

    /// As [`load`](Self::load), from the bytes of the files; `folder` stands in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_files(folder: &Path, mut files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let missing = |path: &Path| unusable(path, "it is missing".into());
        let text = files.remove(ROUND).ok_or_else(|| missing(&folder.join(ROUND)))?;
        Self::read(folder, &text, |path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let bytes = files.remove(name).ok_or_else(|| missing(path))?;
            let shown = path.display().to_string();
            TensorFile::from_bytes(shown.clone(), bytes).map_err(Error::numerics(format!("reading `{shown}`")))
        })
    }

    fn read(folder: &Path, text: &[u8], mut open: impl FnMut(&Path) -> Result<TensorFile>) -> Result<Self> {
        let path = folder.join(ROUND);
        let RoundFile { version, plan, mut instructions, global, merged } =
            serde_json::from_slice(text).map_err(|error| unusable(&path, error.to_string()))?;
        if version != VERSION {
            return Err(unusable(&path, format!("expected version `{VERSION}`, found `{version}`")));
        }
        plan.validate()?;
        let mut adapter = |name: &str| {
            let path = folder.join(name);
            let file = open(&path)?;
            check_format(&path, &file, ADAPTER_FORMAT)?;
            adapter_of(&path, &file, |_| true)
        };
        instructions.merged = merged.then(|| adapter(MERGED)).transpose()?;
        Ok(Self { plan, instructions, global: global.then(|| adapter(GLOBAL)).transpose()? })
    }

    /// What leaves the client of a trained adapter, as [`RoundPlan::leaving`] says. `noise_seed` is the client's own secret,
    /// which stands in for the seed of the plan, since others know that one.
    ///
    /// # Errors
    /// All problems of what was about to leave, as the inner error; the outer one if a tensor cannot be read.
    pub fn leaving(
        &self,
        contribution: Contribution,
        noise_seed: u64,
    ) -> Result<Result<SentContribution, Vec<Problem>>> {
        let mut plan = self.plan.clone();
        if let Some(privacy) = &mut plan.privacy {
            privacy.seed = noise_seed;
        }
        let Contribution { client, weight, base_fingerprint, .. } = contribution.clone();
        let payload = plan.leaving(&self.instructions, contribution, self.global.as_ref())?;
        let round = self.instructions.round;
        Ok(payload.map(|payload| SentContribution { client, round, weight, base_fingerprint, payload }))
    }
}

/// A contribution as it travels: the tensors that may leave the client, and the numbers beside them.
#[derive(Debug, Clone)]
pub struct SentContribution {
    /// Name of the client.
    pub client: String,
    /// The round, from 1.
    pub round: usize,
    /// Weight in the mean; usually the number of training images.
    pub weight: f64,
    /// Fingerprint of the base that the adapter was trained on.
    pub base_fingerprint: Option<String>,
    /// The tensors.
    pub payload: Payload,
}

impl SentContribution {
    /// Writes one file atomically: the tensors by name, alphas as `<module>.alpha`, the rest in the header, with a checksum
    /// over all of the file.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (tensors, header) = self.parts()?;
        write(path, &tensors, &header)
    }

    /// The bytes of the file that [`save`](Self::save) writes.
    ///
    /// # Errors
    /// [`Error::Numerics`] if a tensor has an element type that files do not have.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (tensors, header) = self.parts()?;
        to_bytes(&tensors, &header)
    }

    fn parts(&self) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
        let mut tensors = self.payload.tensors.clone();
        for (module, alpha) in &self.payload.alphas {
            tensors.insert(format!("{module}.{ALPHA}"), scalar(*alpha)?);
        }
        let mut header = header(CONTRIBUTION_FORMAT);
        header.insert("client".to_owned(), self.client.clone());
        header.insert("round".to_owned(), self.round.to_string());
        header.insert("weight".to_owned(), self.weight.to_string());
        header.extend(self.base_fingerprint.iter().map(|base| ("base".to_owned(), base.clone())));
        Ok((tensors, header))
    }

    /// Reads a contribution that [`save`](Self::save) wrote. Its checksum is checked; its values are the server's to judge.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is damaged or no contribution; [`Error::Numerics`] for one that cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path).map_err(Error::numerics(format!("reading `{}`", path.display())))?;
        Self::read(path, &file)
    }

    /// As [`load`](Self::load), from the bytes of a file; `name` stands in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        let file = TensorFile::from_bytes(name, bytes).map_err(Error::numerics(format!("reading `{name}`")))?;
        Self::read(Path::new(name), &file)
    }

    fn read(path: &Path, file: &TensorFile) -> Result<Self> {
        check_format(path, file, CONTRIBUTION_FORMAT)?;
        let text = |name: &str| file.metadata().get(name).cloned();
        let missing = |name: &str| unusable(path, format!("its header has no usable `{name}`"));
        let mut payload = Payload::default();
        for name in file.names() {
            let tensor = read_tensor(file, name)?;
            match name.rsplit_once('.') {
                Some((module, ALPHA)) => drop(payload.alphas.insert(module.to_owned(), alpha_in(&tensor)?)),
                _ => drop(payload.tensors.insert(name.to_owned(), tensor)),
            }
        }
        Ok(Self {
            client: text("client").ok_or_else(|| missing("client"))?,
            round: text("round").and_then(|round| round.parse().ok()).ok_or_else(|| missing("round"))?,
            weight: text("weight").and_then(|weight| weight.parse().ok()).ok_or_else(|| missing("weight"))?,
            base_fingerprint: text("base"),
            payload,
        })
    }

    /// The contribution as the server uses it: what did not travel is taken from the global adapter.
    ///
    /// # Errors
    /// As [`Payload::complete`].
    pub fn complete(&self, global: Option<&Adapter>) -> Result<Contribution> {
        let Self { client, weight, base_fingerprint, payload, .. } = self;
        let adapter = payload.complete(global)?;
        let (client, base_fingerprint) = (client.clone(), base_fingerprint.clone());
        Ok(Contribution { client, adapter, weight: *weight, base_fingerprint })
    }
}

/// The tensors of an adapter by name, with alphas as `<module>.alpha`.
pub(crate) fn adapter_tensors(adapter: &Adapter) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (module, update) in adapter.iter() {
        tensors.extend(update.tensors().map(|(name, tensor)| (format!("{module}.{name}"), tensor.detach())));
        tensors.insert(format!("{module}.{ALPHA}"), scalar(update.alpha())?);
    }
    Ok(tensors)
}

/// The adapter whose tensors a file has under names that `is_its` chooses, all of whose values are finite.
pub(crate) fn adapter_of(path: &Path, file: &TensorFile, is_its: impl Fn(&str) -> bool) -> Result<Adapter> {
    let mut modules = BTreeMap::<_, BTreeMap<String, Tensor>>::new();
    for (module, tensor) in file.names().filter(|name| is_its(name)).filter_map(|name| name.rsplit_once('.')) {
        let values = finite(path, file, &format!("{module}.{tensor}"))?;
        modules.entry(module).or_default().insert(tensor.to_owned(), values);
    }
    modules.into_iter().map(|(module, tensors)| Ok((module.to_owned(), update(module, tensors)?))).collect()
}

fn update(module: &str, mut tensors: BTreeMap<String, Tensor>) -> Result<LayerUpdate> {
    let missing = || candle_core::Error::msg(format!("`{module}.{ALPHA}` is missing"));
    let alpha = tensors.remove(ALPHA).ok_or_else(missing).and_then(|alpha| alpha.to_scalar::<f64>());
    let alpha = alpha.map_err(Error::tensor("reading alpha"))?;
    LayerUpdate::from_tensors(tensors, alpha).map_err(Error::adapters(&format!("reading `{module}`")))
}

/// The tensor of this name, all of whose values are finite.
pub(crate) fn finite(path: &Path, file: &TensorFile, name: &str) -> Result<Tensor> {
    let values = read_tensor(file, name)?;
    match is_finite(&values).map_err(Error::tensor("checking a file"))? {
        true => Ok(values),
        false => Err(unusable(path, format!("`{name}` has values that are not finite"))),
    }
}

/// The alpha of this name.
pub(crate) fn alpha_of(file: &TensorFile, name: &str) -> Result<f64> {
    match file.shape(name).map_err(Error::numerics(format!("reading `{name}`")))? {
        [] => alpha_in(&read_tensor(file, name)?),
        shape => {
            let problem = candle_core::Error::msg(format!("`{name}`: expected a single number, found shape {shape:?}"));
            Err(Error::tensor("reading alpha")(problem))
        }
    }
}

fn alpha_in(tensor: &Tensor) -> Result<f64> {
    let alpha = tensor.to_dtype(DType::F64).and_then(|alpha| alpha.to_scalar::<f64>());
    alpha.map_err(Error::tensor("reading alpha"))
}

fn read_tensor(file: &TensorFile, name: &str) -> Result<Tensor> {
    file.tensor(name, &Device::Cpu).map_err(Error::numerics(format!("reading `{name}`")))
}

/// A file of this format whose checksum holds.
pub(crate) fn open(path: &Path, format: &str) -> Result<TensorFile> {
    let file = TensorFile::open(path).map_err(Error::numerics(format!("reading `{}`", path.display())))?;
    check_format(path, &file, format)?;
    Ok(file)
}

/// Refuses a file of another format, or one whose checksum does not hold.
fn check_format(path: &Path, file: &TensorFile, format: &str) -> Result<()> {
    let header = |name: &str| file.metadata().get(name).map_or("", String::as_str);
    let (found, version) = (header("format"), header("version"));
    if (found, version) != (format, VERSION) {
        let expected = format!("expected `{format}` version `{VERSION}`, found `{found}` version `{version}`");
        return Err(unusable(path, expected));
    }
    match file.checksum().map_err(Error::numerics(format!("reading `{}`", path.display())))? {
        Checksum::Holds => Ok(()),
        Checksum::Absent | Checksum::Differs => Err(unusable(path, "its checksum does not hold".into())),
    }
}

fn header(format: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), format.to_owned()), ("version".to_owned(), VERSION.to_owned())])
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, header: &BTreeMap<String, String>) -> Result<()> {
    tensor_file::write_checked(path, tensors, header).map_err(Error::numerics(format!("writing `{}`", path.display())))
}

fn to_bytes(tensors: &BTreeMap<String, Tensor>, header: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    tensor_file::to_checked_bytes(tensors, header).map_err(Error::numerics("writing tensors"))
}

fn scalar(alpha: f64) -> Result<Tensor> {
    Tensor::new(alpha, &Device::Cpu).map_err(Error::tensor("writing alpha"))
}

pub(crate) fn unusable(path: &Path, reason: String) -> Error {
    Error::File { path: PathBuf::from(path), reason }
}
