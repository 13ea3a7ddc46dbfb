//! Contributions as files: which there are, and what is known of each before its values are read.

use std::path::{Path, PathBuf};

use catelier_adapters::file::{self, Integrity, MatchReport, TrainedOn};
use catelier_adapters::{Adapter, ModuleInfo};
use catelier_federation::{
    CONTRIBUTION_FORMAT, Problem, RejectedContribution, Roles, StoredContribution, StoredContributions,
};
use catelier_numerics::bounded;
use catelier_numerics::tensor_file::TensorFile;
use serde::{Deserialize, Serialize};

use super::AggregateRequest;
use crate::adapter::AdapterSource;
use crate::error::{Context, Error, Result, chain};

/// Largest list of replies: a hundred thousand clients.
const LARGEST_REPLIES: u64 = 32 << 20;

/// A client's reply to a round, in the list that `--replies` names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Name of the client.
    pub client: String,
    /// An adapter in any format, or a [`SentContribution`](catelier_federation::SentContribution); beside the list, if the path
    /// is relative.
    pub file: PathBuf,
    /// Weight in the mean [default: the file's own, or 1].
    #[serde(default)]
    pub weight: Option<f64>,
    /// Fingerprint of the base that the client trained on [default: the file's own].
    #[serde(default)]
    pub base: Option<String>,
}

/// A contribution that is asked for.
pub(super) struct Asked {
    reply: Reply,
    /// Whether it came by `--adapter`, so that it is told of by itself.
    is_alone: bool,
}

impl AggregateRequest {
    /// The contributions of the request, in its order.
    pub(super) fn asked(&self) -> Result<Vec<Asked>> {
        let by_path = |source: &AdapterSource| {
            let reply = Reply {
                client: source.to_string(),
                file: source.path.clone(),
                weight: Some(source.weight),
                base: None,
            };
            Asked { reply, is_alone: true }
        };
        let mut asked: Vec<Asked> = self.adapters.iter().map(by_path).collect();
        let replies = self.replies.as_deref().map(read_replies).transpose()?;
        asked.extend(replies.into_iter().flatten().map(|reply| Asked { reply, is_alone: false }));
        match asked.is_empty() {
            true => Err(Error::user("there is no reply in the list", "wait for clients to reply")),
            false => Ok(asked),
        }
    }
}

fn read_replies(path: &Path) -> Result<Vec<Reply>> {
    let text = bounded::read(path, LARGEST_REPLIES).user_error(format!("cannot read `{}`", path.display()))?;
    let replies: Vec<Reply> =
        serde_json::from_slice(&text).user_error(format!("`{}` is no list of replies", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(replies.into_iter().map(|reply| Reply { file: folder.join(&reply.file), ..reply }).collect())
}

/// A contribution whose file was opened.
pub(super) struct Client {
    pub(super) name: String,
    /// Name of the file, and of its folder; of a reply, the client.
    pub(super) file: String,
    /// SHA-256 of the bytes after the file's header, or the checksum of a sent contribution.
    pub(super) hash: String,
    pub(super) trigger: Option<String>,
    pub(super) base: TrainedOn,
    /// What to tell of a file that was named by itself.
    pub(super) told: Option<(AdapterSource, MatchReport, Integrity)>,
}

/// All contributions of a round, as far as their files can be used.
pub(super) struct Opened {
    /// In the order of `source`.
    pub(super) clients: Vec<Client>,
    pub(super) source: StoredContributions,
    /// Those that cannot be used at all, with what is wrong.
    pub(super) unusable: Vec<(String, Vec<Problem>)>,
}

impl Opened {
    /// Those that cannot be used at all.
    pub(super) fn rejected(&self) -> Vec<RejectedContribution> {
        let rejected = |(client, problems): &(String, Vec<Problem>)| RejectedContribution {
            client: client.clone(),
            problems: problems.clone(),
        };
        self.unusable.iter().map(rejected).collect()
    }
}

/// Opens files for a round.
pub(super) struct Opener<'a> {
    pub(super) modules: &'a [ModuleInfo],
    pub(super) roles: &'a Roles,
    pub(super) global: Option<&'a Adapter>,
    pub(super) round: usize,
}

impl Opener<'_> {
    /// Opens all files. The only one that is asked for by its own flag and cannot be used is told with all of its causes.
    pub(super) fn open(&self, asked: &[Asked]) -> Result<Opened> {
        let mut opened = Opened { clients: Vec::new(), source: StoredContributions::new(), unusable: Vec::new() };
        let mut errors = Vec::new();
        for Asked { reply, is_alone } in asked {
            match self.open_one(reply, *is_alone) {
                Ok(Ok((client, stored))) => {
                    opened.clients.push(client);
                    opened.source.push(stored);
                }
                Ok(Err(problems)) => opened.unusable.push((reply.client.clone(), problems)),
                Err(error) => {
                    let reason: Vec<String> = chain(&error).skip(1).map(ToString::to_string).collect();
                    let problem = Problem::Unreadable { reason: reason.join(": ") };
                    opened.unusable.push((reply.client.clone(), vec![problem]));
                    errors.push((error, *is_alone));
                }
            }
        }
        match (errors.pop(), opened.unusable.len()) {
            (Some((error, true)), 1) => Err(error),
            _ => Ok(opened),
        }
    }

    fn open_one(
        &self,
        reply: &Reply,
        is_alone: bool,
    ) -> Result<std::result::Result<(Client, StoredContribution), Vec<Problem>>> {
        if is_sent(&reply.file) { self.open_sent(reply, is_alone) } else { self.open_adapter(reply, is_alone) }
    }

    fn open_sent(
        &self,
        reply: &Reply,
        is_alone: bool,
    ) -> Result<std::result::Result<(Client, StoredContribution), Vec<Problem>>> {
        let (sent, stored) = StoredContribution::sent(&reply.file, self.roles, self.global)
            .user_error(format!("cannot read `{}`", reply.file.display()))?;
        let mut problems = Vec::new();
        if sent.round != self.round {
            problems.push(Problem::OtherRound { expected: self.round, found: sent.round });
        }
        if !is_alone && sent.client != reply.client {
            problems.push(Problem::OtherClient { found: sent.client.clone() });
        }
        if !problems.is_empty() {
            return Ok(Err(problems));
        }
        let fingerprint = reply.base.clone().or(sent.base_fingerprint);
        let stored = stored.with(reply.weight.unwrap_or(sent.weight), fingerprint.clone());
        let client = Client {
            name: sent.client,
            file: reply.client.clone(),
            hash: sent.checksum,
            trigger: None,
            base: TrainedOn { fingerprint, ..TrainedOn::default() },
            told: None,
        };
        Ok(Ok((client, stored)))
    }

    fn open_adapter(
        &self,
        reply: &Reply,
        is_alone: bool,
    ) -> Result<std::result::Result<(Client, StoredContribution), Vec<Problem>>> {
        let attempt = format!("cannot read `{}`", reply.file.display());
        let opened = file::open(&reply.file, self.modules).user_error(&attempt)?;
        let weight = reply.weight.unwrap_or(1.0);
        let mut base = opened.metadata.base;
        base.fingerprint = reply.base.clone().or(base.fingerprint);
        let stored = StoredContribution::adapter(
            reply.client.clone(),
            weight,
            base.fingerprint.clone(),
            opened.file,
            self.roles,
            self.global,
        );
        let told = is_alone.then(|| AdapterSource { path: reply.file.clone(), weight });
        let client = Client {
            name: reply.client.clone(),
            file: if is_alone { short_name(&reply.file) } else { reply.client.clone() },
            hash: opened.model_hash,
            trigger: opened.metadata.trigger,
            base,
            told: told.map(|source| (source, opened.report, opened.integrity)),
        };
        Ok(stored.user_error(attempt)?.map(|stored| (client, stored)))
    }
}

/// Name of a file, and of its folder.
fn short_name(path: &Path) -> String {
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    names[names.len().saturating_sub(2)..].join("/")
}

/// Whether a file says that it is a sent contribution. One that cannot be read is told of later.
fn is_sent(path: &Path) -> bool {
    let format = |file: TensorFile| file.metadata().get("format").cloned();
    path.is_file() && TensorFile::open(path).ok().and_then(format).as_deref() == Some(CONTRIBUTION_FORMAT)
}
