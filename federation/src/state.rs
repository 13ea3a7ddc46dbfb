//! The state between rounds, in memory and on disk.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LoraFactors};
use catelier_numerics::tensor_file::{self, TensorFile};

use crate::error::{Error, Result};
use crate::report::RoundReport;

/// Name of the state's file format, in its header.
pub const STATE_FORMAT: &str = "catelier federation state";

/// Version of the state's file format.
pub const STATE_VERSION: &str = "1";

/// Endings of a module's tensors.
const DOWN: &str = ".down";
const UP: &str = ".up";
const ALPHA: &str = ".alpha";

/// The state between rounds: the global adapter, and a report of every round.
#[derive(Debug, Clone, Default)]
pub struct State {
    global: Option<Adapter>,
    history: Vec<RoundReport>,
}

impl State {
    /// Before the first round: clients start from fresh adapters of their own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Before the first round, with an adapter that all clients start from.
    pub fn starting_from(global: Adapter) -> Self {
        Self { global: Some(global), history: Vec::new() }
    }

    /// The global adapter; none before the first round of a run without a start adapter.
    pub fn global(&self) -> Option<&Adapter> {
        self.global.as_ref()
    }

    /// Number of rounds that are over.
    pub fn completed(&self) -> usize {
        self.history.len()
    }

    /// The reports of all rounds that are over.
    pub fn history(&self) -> &[RoundReport] {
        &self.history
    }

    pub(crate) fn advance(&mut self, global: Adapter, report: RoundReport) {
        self.global = Some(global);
        self.history.push(report);
    }

    /// Writes the state to one file, whole or not at all: tensors `<module>.down`, `<module>.up`
    /// and `<module>.alpha`, and the history as JSON in the header.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (module, factors) in self.global.iter().flat_map(Adapter::iter) {
            let alpha = Tensor::new(factors.alpha, &Device::Cpu).map_err(Error::tensor("writing alpha"))?;
            tensors.insert(format!("{module}{DOWN}"), factors.down.detach());
            tensors.insert(format!("{module}{UP}"), factors.up.detach());
            tensors.insert(format!("{module}{ALPHA}"), alpha);
        }
        let header = BTreeMap::from([
            ("format".to_owned(), STATE_FORMAT.to_owned()),
            ("version".to_owned(), STATE_VERSION.to_owned()),
            ("history".to_owned(), json(path, &self.history)?),
        ]);
        tensor_file::write(path, &tensors, &header).map_err(Error::numerics(format!("writing `{}`", path.display())))
    }

    /// Reads a state back, with its factors on the CPU.
    ///
    /// # Errors
    /// [`Error::State`] for a file that is not a state, or of another version; [`Error::Numerics`]
    /// for a damaged file.
    pub fn load(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path).map_err(Error::numerics(format!("reading `{}`", path.display())))?;
        let header = |name: &str| file.metadata().get(name).map_or("", String::as_str);
        if (header("format"), header("version")) != (STATE_FORMAT, STATE_VERSION) {
            let found = format!("`{}` version `{}`", header("format"), header("version"));
            return Err(unusable(path, format!("expected `{STATE_FORMAT}` version `{STATE_VERSION}`, found {found}")));
        }
        let history: Vec<RoundReport> =
            serde_json::from_str(header("history")).map_err(|error| unusable(path, format!("`history`: {error}")))?;
        let mut global = Adapter::new();
        for module in file.names().filter_map(|name| name.strip_suffix(DOWN)) {
            global.insert(module, factors(&file, module)?);
        }
        Ok(Self { global: (!global.is_empty()).then_some(global), history })
    }
}

fn factors(file: &TensorFile, module: &str) -> Result<LoraFactors> {
    let tensor = |end: &str| {
        let name = format!("{module}{end}");
        file.tensor(&name, &Device::Cpu).map_err(Error::numerics(format!("reading `{name}`")))
    };
    let alpha = tensor(ALPHA)?.to_scalar::<f64>().map_err(Error::tensor("reading alpha"))?;
    LoraFactors::new(tensor(DOWN)?, tensor(UP)?, alpha).map_err(Error::adapters("reading the state"))
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::State { path: path.to_owned(), reason }
}
