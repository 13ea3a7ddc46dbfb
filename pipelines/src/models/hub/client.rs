//! Requests to the hub, through the `hf-hub` crate.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubId, HubSettings};
use crate::error::{Error, Result};

/// Progress of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchEvent<'a> {
    /// The transfer of a file begins.
    Started {
        /// The file, relative to the model folder.
        file: &'a str,
        /// Its size in bytes.
        bytes: usize,
    },
    /// More bytes of the file have arrived.
    Received {
        /// The number of bytes since the last event.
        bytes: usize,
    },
    /// The file is complete and in the cache.
    Finished {
        /// The file, relative to the model folder.
        file: &'a str,
    },
}

/// The commit of a revision, and its files.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

pub(super) struct Client<'a> {
    settings: &'a HubSettings,
    api: Api,
    cache: Cache,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Result<Self> {
        settings.guard_token()?;
        let cache = Cache::new(settings.cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.as_ref().map(|token| token.secret().to_owned()))
            .with_progress(false)
            .with_retries(2)
            .build()
            .map_err(|source| failure("hub".into(), settings, source))?;
        Ok(Self { settings, api, cache })
    }

    /// The commit and the files of `id` on the hub.
    pub(super) fn listing(&self, id: &HubId) -> Result<Listing> {
        let info = self
            .repository(id, id.revision())
            .info()
            .map_err(|source| failure(id.to_string(), self.settings, source))?;
        if !info.sha.chars().all(|letter| letter.is_ascii_alphanumeric()) || info.sha.is_empty() {
            return Err(Error::InvalidHubSetting {
                what: "commit from the hub",
                value: info.sha,
                rule: "expected letters and digits",
            });
        }
        let files = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// The folder of a commit in the cache.
    pub(super) fn snapshot(&self, id: &HubId, commit: &str) -> PathBuf {
        self.cache.repo(repo(id, commit)).pointer_path(commit)
    }

    /// Fetches `file` of a commit unless the cache has it.
    pub(super) fn ensure(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        on_event: &mut dyn FnMut(FetchEvent<'_>),
    ) -> Result<()> {
        if self.snapshot(id, commit).join(file).is_file() {
            return Ok(());
        }
        self.repository(id, commit)
            .download_with_progress(file, Reporter { on_event, begun: false })
            .map_err(|source| failure(format!("{id}: {file}"), self.settings, source))?;
        on_event(FetchEvent::Finished { file });
        Ok(())
    }

    /// Records the commit of the revision in the cache.
    pub(super) fn remember(&self, id: &HubId, commit: &str) -> Result<()> {
        let noted = self.cache.repo(repo(id, id.revision())).create_ref(commit);
        noted.map_err(|source| failure(id.to_string(), self.settings, ApiError::IoError(source)))
    }

    fn repository(&self, id: &HubId, revision: &str) -> ApiRepo {
        self.api.repo(repo(id, revision))
    }
}

fn repo(id: &HubId, revision: &str) -> Repo {
    Repo::with_revision(id.repository().into(), RepoType::Model, revision.into())
}

/// The snapshot folder of `id` in the cache: found through the recorded commit of a branch or tag, or by the commit
/// itself.
pub(super) fn cached_snapshot(id: &HubId, settings: &HubSettings) -> Option<PathBuf> {
    let folder = settings.cache.join(repo(id, id.revision()).folder_name());
    let noted = std::fs::read_to_string(folder.join("refs").join(id.revision()));
    let commit = noted.unwrap_or_else(|_| id.revision().into());
    let snapshot = folder.join("snapshots").join(commit.trim());
    snapshot.is_dir().then_some(snapshot)
}

/// Turns the client's progress into events.
struct Reporter<'a> {
    on_event: &'a mut dyn FnMut(FetchEvent<'_>),
    begun: bool,
}

impl Progress for Reporter<'_> {
    /// The client calls it when a file begins, and again when the transfer of its content begins.
    fn init(&mut self, size: usize, filename: &str) {
        if !std::mem::replace(&mut self.begun, true) {
            (self.on_event)(FetchEvent::Started { file: filename, bytes: size });
        }
    }

    fn update(&mut self, size: usize) {
        (self.on_event)(FetchEvent::Received { bytes: size });
    }

    fn finish(&mut self) {}
}

/// The error for a failed request about `id`, by the HTTP status.
fn failure(id: String, settings: &HubSettings, source: ApiError) -> Error {
    let endpoint = settings.endpoint.clone();
    match status(&source) {
        Some(status @ (401 | 403)) => Error::HubRefused { id, endpoint, status, with_token: settings.token.is_some() },
        Some(404) => Error::HubNotFound { id, endpoint },
        _ => Error::HubFailed { id, endpoint, source: Box::new(source) },
    }
}

/// The HTTP status of a client error; `None` if the hub did not answer.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}
