//! The state between rounds, in memory and on disk.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use catelier_adapters::Adapter;
use catelier_numerics::tensor_file::{self, Checksum, TensorFile};

use crate::error::{Error, Result};
use crate::files::{adapter_of, adapter_tensors, finite};
use crate::memory::Memory;
use crate::report::RoundReport;

/// Name of the state's file format, in its header.
pub const STATE_FORMAT: &str = "catelier federation state";

/// Version of the state's file format.
pub const STATE_VERSION: &str = "3";

/// The last version without a memory. A state whose strategy keeps nothing is still written in it, to the same bytes.
const VERSION_WITHOUT_MEMORY: &str = "2";

/// The last version without a checksum; it is still read.
const VERSION_WITHOUT_CHECKSUM: &str = "1";

/// Start of the names of the memory's tensors. No module path has a slash.
const MEMORY: &str = "memory/";

/// The state between rounds: the global adapter, a report of every round, and what the strategy keeps.
#[derive(Debug, Clone, Default)]
pub struct State {
    global: Option<Adapter>,
    history: Vec<RoundReport>,
    memory: Memory,
}

impl State {
    /// The state before the first round; clients start from fresh adapters of their own.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state before the first round, with an adapter that all clients start from.
    pub fn starting_from(global: Adapter) -> Self {
        Self { global: Some(global), ..Self::default() }
    }

    /// The global adapter; none before the first round of a run without a start adapter.
    pub fn global(&self) -> Option<&Adapter> {
        self.global.as_ref()
    }

    /// Number of completed rounds.
    pub fn completed(&self) -> usize {
        self.history.len()
    }

    /// The reports of all completed rounds.
    pub fn history(&self) -> &[RoundReport] {
        &self.history
    }

    /// What the strategy keeps between rounds.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The state after another round.
    pub fn advance(&mut self, global: Adapter, memory: Memory, report: RoundReport) {
        self.global = Some(global);
        self.memory = memory;
        self.history.push(report);
    }

    /// Writes the state to one file atomically: the adapter's tensors as `<module>.<tensor>`, its alphas as
    /// `<module>.alpha`, the memory's as `memory/<name>`, and the history and the memory's counts as JSON in the
    /// header, with a checksum over all of the file.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (tensors, header) = self.parts(path)?;
        tensor_file::write_checked(path, &tensors, &header)
            .map_err(Error::numerics(format!("writing `{}`", path.display())))
    }

    /// The bytes of the file that [`save`](Self::save) writes.
    ///
    /// # Errors
    /// [`Error::Numerics`] if a tensor has an element type that files do not have.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (tensors, header) = self.parts(Path::new("state"))?;
        tensor_file::to_checked_bytes(&tensors, &header).map_err(Error::numerics("writing the state"))
    }

    /// The tensors and the header of the file.
    fn parts(&self, path: &Path) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
        let mut tensors = self.global.as_ref().map(adapter_tensors).transpose()?.unwrap_or_default();
        tensors.extend(self.memory.tensors().iter().map(|(name, kept)| (format!("{MEMORY}{name}"), kept.clone())));
        let version = if self.memory.is_empty() { VERSION_WITHOUT_MEMORY } else { STATE_VERSION };
        let mut header = BTreeMap::from([
            ("format".to_owned(), STATE_FORMAT.to_owned()),
            ("version".to_owned(), version.to_owned()),
            ("history".to_owned(), json(path, &self.history)?),
        ]);
        if !self.memory.is_empty() {
            header.insert("memory".to_owned(), json(path, self.memory.counts())?);
        }
        Ok((tensors, header))
    }

    /// Reads a state back, with its factors on the CPU.
    ///
    /// # Errors
    /// [`Error::State`] for a file that is damaged, not a state or of another version; [`Error::Numerics`] for one that
    /// cannot be read.
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
        let reading = || Error::numerics(format!("reading `{}`", path.display()));
        let header = |name: &str| file.metadata().get(name).map_or("", String::as_str);
        match (file.checksum().map_err(reading())?, header("format"), header("version")) {
            (Checksum::Differs, _, _) => {
                return Err(unusable(path, "it is damaged: its checksum does not hold".into()));
            }
            (Checksum::Absent, STATE_FORMAT, STATE_VERSION | VERSION_WITHOUT_MEMORY) => {
                return Err(unusable(path, "it is damaged: its checksum is missing".into()));
            }
            (Checksum::Holds, STATE_FORMAT, STATE_VERSION | VERSION_WITHOUT_MEMORY)
            | (Checksum::Absent, STATE_FORMAT, VERSION_WITHOUT_CHECKSUM) => {}
            (_, format, version) => {
                let found = format!("`{format}` version `{version}`");
                let expected = format!("expected `{STATE_FORMAT}` version `{STATE_VERSION}`, found {found}");
                return Err(unusable(path, expected));
            }
        }
        let history: Vec<RoundReport> =
            serde_json::from_str(header("history")).map_err(|error| unusable(path, format!("`history`: {error}")))?;
        let global = adapter_of(path, file, |name| !name.starts_with(MEMORY))?;
        Ok(Self { global: (!global.is_empty()).then_some(global), history, memory: memory(path, file)? })
    }
}

/// What the strategy keeps, in the file.
fn memory(path: &Path, file: &TensorFile) -> Result<Memory> {
    let counts = match file.metadata().get("memory") {
        None => BTreeMap::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| unusable(path, format!("`memory`: {error}")))?,
    };
    let kept = file.names().filter_map(|name| name.strip_prefix(MEMORY));
    let read = |name: &str| Ok((name.to_owned(), finite(path, file, &format!("{MEMORY}{name}"))?));
    Ok(Memory::from_parts(kept.map(read).collect::<Result<_>>()?, counts))
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::State { path: path.to_owned(), reason }
}
