//! What an aggregate's file says of itself.

use std::collections::BTreeMap;

use catelier_adapters::Fingerprint;
use catelier_adapters::file::{Metadata, TrainedOn};
use catelier_federation::{Contributions, RoundPlan};
use serde::{Deserialize, Serialize};

use super::open::{Client, Opened};
use crate::error::{Context, Error, Result};

/// Entry of an aggregate's header: its [`Contributor`]s as JSON.
pub const CONTRIBUTORS_ENTRY: &str = "catelier.contributors";

/// Most contributors whose names are written: the header of a file has a limit.
const NAMED: usize = 20_000;

/// Who contributed to an aggregate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contributor {
    /// Name of the file, and of its folder; of a reply, the client.
    pub name: String,
    /// SHA-256 of the bytes after the file's header; of a sent contribution, the checksum in its header.
    pub hash: String,
    /// Weight in the mean, before the weights are divided by their sum.
    pub weight: f64,
    /// The file's trigger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

impl Opened {
    /// What the aggregate's file says: the base that all agree on, who contributed, and the trigger where all have one.
    pub(super) fn metadata(&self, accepted: &Contributions<'_>, plan: &RoundPlan) -> Result<Metadata> {
        let by_name: BTreeMap<&str, &Client> =
            self.clients.iter().map(|client| (client.name.as_str(), client)).collect();
        let taken =
            accepted.iter().filter_map(|(header, weight, _)| Some((*by_name.get(header.client.as_str())?, weight)));
        let taken: Vec<(&Client, f64)> = taken.collect();
        let contributors: Vec<Contributor> =
            taken.iter().take(NAMED).map(|(client, weight)| Contributor::new(client, *weight)).collect();
        let same = taken.windows(2).all(|pair| pair[0].0.trigger == pair[1].0.trigger);
        let trigger = taken.first().filter(|_| same).and_then(|(client, _)| client.trigger.clone());
        let contributors = serde_json::to_string(&contributors).failed("cannot describe the contributors")?;
        Ok(Metadata {
            base: common_base(&taken)?,
            trigger,
            description: Some(format!("{} of {} adapters", plan.strategy.description(), taken.len())),
            other: [(CONTRIBUTORS_ENTRY.to_string(), contributors)].into(),
            ..Metadata::default()
        })
    }
}

impl Contributor {
    fn new(client: &Client, weight: f64) -> Self {
        let Client { file, hash, trigger, .. } = client;
        Self { name: file.clone(), hash: hash.clone(), weight, trigger: trigger.clone() }
    }
}

/// The base that the files name, each part from the first file that knows it.
fn common_base(clients: &[(&Client, f64)]) -> Result<TrainedOn> {
    let mut common = Common::default();
    for (client, _) in clients {
        let base = &client.base;
        let prediction = base.prediction.map(|prediction| format!("{prediction:?}").to_lowercase());
        common.agree(&client.name, "family", base.family.map(|family| family.to_string()), str::eq)?;
        common.agree(&client.name, "prediction", prediction, str::eq)?;
        common.agree(&client.name, "fingerprint", base.fingerprint.clone(), is_same_base)?;
    }
    let bases = || clients.iter().map(|(client, _)| &client.base);
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
        source: &str,
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
        let is_known = self.0.iter().any(|(known, _, other)| *known == part && *other == value);
        if !is_known {
            self.0.push((part, source.to_owned(), value));
        }
        Ok(())
    }
}
