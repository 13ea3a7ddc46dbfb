//! Adapter files of several contributors, combined into one.

use std::path::PathBuf;

use catelier_adapters::Fingerprint;
use catelier_adapters::file::{self, Format, LoadedAdapter, Metadata, TrainedOn};
use catelier_federation::{Contribution, Strategy, TargetRank};
use serde::{Deserialize, Serialize};

use crate::adapter::{AdapterSource, warn_of_changes};
use crate::base::{BaseSource, EMBEDDED};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::output;
use crate::session::Session;

/// Entry of an aggregate's header: its [`Contributor`]s as JSON.
pub const CONTRIBUTORS_ENTRY: &str = "catelier.contributors";

/// An aggregation as it is asked for.
#[derive(Debug, Clone)]
pub struct AggregateRequest {
    /// The adapters and their weights; at least two.
    pub adapters: Vec<AdapterSource>,
    /// How they become one.
    pub strategy: Strategy,
    /// Rank of the result; `None` leaves it to the strategy.
    pub rank: Option<usize>,
    /// The base that they belong to: [`EMBEDDED`], a folder or a hub id.
    pub base: String,
    /// The new file.
    pub out: PathBuf,
    /// Replace the file if it is there.
    pub force: bool,
}

impl Default for AggregateRequest {
    /// No adapters yet, for the embedded base.
    fn default() -> Self {
        Self {
            adapters: Vec::new(),
            strategy: Strategy::product(),
            rank: None,
            base: EMBEDDED.into(),
            out: PathBuf::from("aggregate.safetensors"),
            force: false,
        }
    }
}

/// What `federate aggregate --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct AggregateReport {
    /// How the adapters became one.
    pub strategy: Strategy,
    /// Number of adapters.
    pub adapters: usize,
    /// Modules of the result.
    pub modules: usize,
    /// Distance from the exact mean of the updates, as a part of its norm.
    pub relative_distance: f64,
}

/// Who contributed to an aggregate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contributor {
    /// Name of the file, and of its folder.
    pub name: String,
    /// SHA-256 of the bytes after the file's header.
    pub hash: String,
    /// Weight in the mean, before the weights are divided by their sum.
    pub weight: f64,
    /// The file's trigger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// Combines adapters as `request` says.
///
/// # Errors
/// [`Error::User`] for files that do not fit the base or each other, each by name; [`Error::Failed`] when the result
/// cannot be written.
pub fn aggregate(request: &AggregateRequest, session: &Session<'_>) -> Result<AggregateReport> {
    if request.adapters.len() < 2 {
        return Err(Error::user("there is one adapter to aggregate", "give `--adapter` at least twice"));
    }
    let strategy = with_rank(request.strategy.clone(), request.rank)?;
    output::new_file(&request.out, request.force)?;
    let modules = BaseSource::parse(&request.base)?.open(session)?.modules();
    let mut loaded = Vec::new();
    for source in &request.adapters {
        let file = file::read(&source.path, &modules).user_error(format!("cannot read `{source}`"))?;
        session.note(format!("adapter: {source} ({}, weight {})", file.report, source.weight));
        warn_of_changes(source, &file, session);
        loaded.push((source, file));
    }
    let mut metadata = metadata(&loaded)?;
    metadata.description = Some(format!("{} of {} adapters", strategy.description(), loaded.len()));
    let contributions: Vec<Contribution> =
        loaded.into_iter().map(|(source, file)| contribution(source, file)).collect();
    let aggregate = strategy.aggregate(&contributions).user_error("cannot aggregate these adapters")?;
    file::write(&request.out, &aggregate.adapter, Format::Kohya, &metadata).failed("cannot save the aggregate")?;
    session.written(ArtefactKind::Adapter, &request.out);
    Ok(AggregateReport {
        strategy,
        adapters: contributions.len(),
        modules: aggregate.adapter.len(),
        relative_distance: aggregate.distance().relative(),
    })
}

fn with_rank(mut strategy: Strategy, rank: Option<usize>) -> Result<Strategy> {
    let Some(rank) = rank else { return Ok(strategy) };
    match &mut strategy {
        Strategy::Product { rank: target, .. }
        | Strategy::Median { rank: target }
        | Strategy::TrimmedMean { rank: target, .. } => *target = TargetRank::Fixed(rank),
        Strategy::Fedavg => {
            return Err(Error::user(
                "`fedavg` keeps the rank of its adapters",
                "leave `--rank` out, or use `--strategy product`",
            ));
        }
        other => {
            return Err(Error::user(
                format!("`{other}` decides the rank of its result itself"),
                "leave `--rank` out, or use `--strategy product`",
            ));
        }
    }
    Ok(strategy)
}

fn contribution(source: &AdapterSource, file: LoadedAdapter) -> Contribution {
    Contribution {
        client: source.to_string(),
        adapter: file.adapter,
        weight: source.weight,
        base_fingerprint: file.metadata.base.fingerprint,
    }
}

/// What the aggregate's file says: the base that all agree on, who contributed, and the trigger where all have one.
fn metadata(loaded: &[(&AdapterSource, LoadedAdapter)]) -> Result<Metadata> {
    let contributors: Vec<Contributor> = loaded.iter().map(|(source, file)| Contributor::new(source, file)).collect();
    let same = contributors.windows(2).all(|pair| pair[0].trigger == pair[1].trigger);
    let trigger = contributors.first().filter(|_| same).and_then(|contributor| contributor.trigger.clone());
    let contributors = serde_json::to_string(&contributors).failed("cannot describe the contributors")?;
    Ok(Metadata {
        base: common_base(loaded)?,
        trigger,
        other: [(CONTRIBUTORS_ENTRY.to_string(), contributors)].into(),
        ..Metadata::default()
    })
}

impl Contributor {
    fn new(source: &AdapterSource, file: &LoadedAdapter) -> Self {
        let names: Vec<_> = source.path.iter().map(|name| name.to_string_lossy()).collect();
        Self {
            name: names[names.len().saturating_sub(2)..].join("/"),
            hash: file.model_hash.clone(),
            weight: source.weight,
            trigger: file.metadata.trigger.clone(),
        }
    }
}

/// The base that the files name, each part from the first file that knows it.
fn common_base(loaded: &[(&AdapterSource, LoadedAdapter)]) -> Result<TrainedOn> {
    let mut common = Common::default();
    for (source, file) in loaded {
        let base = &file.metadata.base;
        let prediction = base.prediction.map(|prediction| format!("{prediction:?}").to_lowercase());
        common.agree(source, "family", base.family.map(|family| family.to_string()), str::eq)?;
        common.agree(source, "prediction", prediction, str::eq)?;
        common.agree(source, "fingerprint", base.fingerprint.clone(), is_same_base)?;
    }
    let bases = || loaded.iter().map(|(_, file)| &file.metadata.base);
    let resolutions: Vec<_> = bases().filter_map(|base| base.resolution).collect();
    Ok(TrainedOn {
        family: bases().find_map(|base| base.family),
        prediction: bases().find_map(|base| base.prediction),
        resolution: resolutions.first().copied().filter(|first| resolutions.iter().all(|other| other == first)),
        name: bases().find_map(|base| base.name.clone()),
        fingerprint: bases().find_map(|base| base.fingerprint.clone()),
    })
}

/// Whether two fingerprints can be of one base: those of different versions cannot be compared.
pub(crate) fn is_same_base(one: &str, other: &str) -> bool {
    Fingerprint::parse(one).agrees_with(Fingerprint::parse(other))
}

/// Statements of the files so far about their base: the part, the file, and the value.
#[derive(Default)]
struct Common(Vec<(&'static str, String, String)>);

impl Common {
    /// Refuses a value that is not `same` as those of earlier files.
    fn agree(
        &mut self,
        source: &AdapterSource,
        part: &'static str,
        value: Option<String>,
        same: fn(&str, &str) -> bool,
    ) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let differs = |(known, _, expected): &&(&str, String, String)| *known == part && !same(expected, &value);
        if let Some((_, other, expected)) = self.0.iter().find(differs) {
            return Err(Error::user(
                format!("`{source}` and `{other}` were trained on different bases: {part} `{value}` and `{expected}`"),
                "aggregate adapters of one base",
            ));
        }
        self.0.push((part, source.to_string(), value));
        Ok(())
    }
}
