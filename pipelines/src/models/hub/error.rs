//! Errors between a hub and the cache.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::quoted;

/// Why a model could not be had from a hub or from the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A hub id, a revision or a hub setting has an invalid form.
    #[error("`{value}` is not a valid {what}: {rule}")]
    InvalidSetting {
        /// The kind of value: id, revision or setting.
        what: &'static str,
        /// The value that the user gave.
        value: String,
        /// The form that it must have.
        rule: &'static str,
    },

    /// The token has characters that no token has. The message never shows the token.
    #[error("the token of {from} is not a valid token: it {rule}")]
    InvalidToken {
        /// The variable or the file that holds it.
        from: String,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// The token would have been sent without encryption.
    #[error("the token is not sent to `{endpoint}`: plain http is allowed for this machine only")]
    TokenInTheClear {
        /// The endpoint.
        endpoint: String,
    },

    /// The hub refused access (401 or 403).
    #[error("the hub at `{endpoint}` refused access to `{id}` (status {status})")]
    Refused {
        /// The model's id.
        id: String,
        /// The endpoint that was asked.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The hub lacks the model, the revision or the file (404).
    #[error("the hub at `{endpoint}` has no `{id}`")]
    NotFound {
        /// The model's id, with its revision or file.
        id: String,
        /// The endpoint that was asked.
        endpoint: String,
    },

    /// The server answered with a status that is neither an answer nor a redirect.
    #[error("`{server}` answered the request for `{id}` with status {status}")]
    Status {
        /// The model's id, with its file.
        id: String,
        /// The server that was asked.
        server: String,
        /// The HTTP status.
        status: u16,
    },

    /// The server could not be reached, or the connection broke.
    #[error("cannot fetch `{id}` from `{server}`")]
    Unreachable {
        /// The model's id, with its file.
        id: String,
        /// The server that was asked.
        server: String,
        /// The HTTP client's error.
        source: Box<ureq::Error>,
    },

    /// The server let the client wait too long.
    #[error("`{server}` did not {what} within {} s, for `{id}`", .limit.as_secs_f64())]
    TimedOut {
        /// The model's id, with its file.
        id: String,
        /// The server that was asked.
        server: String,
        /// What was waited for.
        what: &'static str,
        /// The time that the server had.
        limit: Duration,
    },

    /// A redirect that is not followed.
    #[error("`{server}` redirects the request for `{id}` to `{location}`, which is not followed: {reason}")]
    Redirect {
        /// The model's id, with its file.
        id: String,
        /// The server that redirects.
        server: String,
        /// Where to.
        location: String,
        /// The rule that the redirect breaks.
        reason: &'static str,
    },

    /// A header of an answer, or a value of the listing, has no valid form or contradicts the other ones.
    #[error("`{server}` sends `{what}: {value}` for `{id}`, expected {expected}")]
    Contradiction {
        /// The model's id, with its file.
        id: String,
        /// The server that was asked.
        server: String,
        /// The header or the key of the listing.
        what: &'static str,
        /// Its value.
        value: String,
        /// The form or the value that it must have.
        expected: String,
    },

    /// The listing of the model is not JSON of the known form.
    #[error("`{server}` describes `{id}` in a way that is not understood")]
    Listing {
        /// The model's id.
        id: String,
        /// The server that was asked.
        server: String,
        /// The parser's reason.
        source: serde_json::Error,
    },

    /// The hub lists a file of the model under a name that could lead out of the model's folder.
    #[error("the hub lists a file of `{id}` under the name `{name}`, which is no plain path inside the model's folder")]
    UnsafeName {
        /// The model's id.
        id: String,
        /// The name, escaped.
        name: String,
    },

    /// A file or a listing is larger than such a file may be, or than the hub said.
    #[error("`{id}` from `{server}` is longer than {limit} bytes, {rule}")]
    TooLong {
        /// The model's id, with its file.
        id: String,
        /// The server that was asked.
        server: String,
        /// The most bytes that are taken.
        limit: u64,
        /// Where the limit comes from.
        rule: &'static str,
    },

    /// The fetched bytes are not those that the hub names; they are not kept.
    #[error("`{id}` from `{server}` has other bytes than the hub names: their digest is {found}, not {expected}")]
    WrongBytes {
        /// The model's id, with its file.
        id: String,
        /// The server that sent them.
        server: String,
        /// The digest that the hub names.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },

    /// A cached file is damaged, and the network may not be used.
    #[error("offline, and `{}` is damaged: its bytes do not have the digest in its name", .path.display())]
    DamagedCache {
        /// The file.
        path: PathBuf,
    },

    /// The hub has the model, but not all files of a diffusers folder.
    #[error("`{id}` is not a complete diffusers folder: it lacks {}", quoted(.missing))]
    Incomplete {
        /// The model's id.
        id: String,
        /// The files that are missing.
        missing: Vec<String>,
    },

    /// The cache lacks files of the model, and the network may not be used.
    #[error("offline, and the cache `{}` lacks {} of `{id}`", .cache.display(), quoted(.missing))]
    NotCached {
        /// The model's id.
        id: String,
        /// The cache folder.
        cache: PathBuf,
        /// The files that are missing.
        missing: Vec<String>,
    },

    /// The cache cannot be written.
    #[error("cannot write `{}` in the cache", .path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl HubError {
    /// Whether the user must change the request; otherwise the hub, the connection or the disk is at fault.
    pub fn is_user_error(&self) -> bool {
        matches!(
            self,
            Self::InvalidSetting { .. }
                | Self::InvalidToken { .. }
                | Self::TokenInTheClear { .. }
                | Self::Refused { .. }
                | Self::NotFound { .. }
                | Self::Incomplete { .. }
                | Self::NotCached { .. }
        )
    }

    /// Whether the hub could not be asked: it is away, too slow or busy.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// What the user can do about the error, if that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::InvalidSetting { .. } => return None,
            Self::InvalidToken { .. } => "copy the token again from the hub's settings, as one line; or unset it",
            Self::TokenInTheClear { .. } => "use an https endpoint, or unset the token",
            Self::Refused { id, with_token, .. } => return Some(access_hint(id, *with_token)),
            Self::NotFound { .. } => "check the spelling `organisation/name@revision`; private models need HF_TOKEN",
            Self::Status { .. } => "try again later; if it stays so, check HF_ENDPOINT",
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                "check the connection and HF_ENDPOINT; a second try goes on where this one stopped"
            }
            Self::Redirect { .. }
            | Self::Contradiction { .. }
            | Self::Listing { .. }
            | Self::UnsafeName { .. }
            | Self::TooLong { .. } => {
                "nothing was kept of it; the hub or a proxy before it is broken or hostile: check HF_ENDPOINT"
            }
            Self::WrongBytes { .. } => {
                "the bytes were thrown away; try again, and check HF_ENDPOINT if the error comes back"
            }
            Self::DamagedCache { .. } => "fetch the model again while online (unset HF_HUB_OFFLINE)",
            Self::Incomplete { .. } => {
                "choose a model or revision in the diffusers layout, with `model_index.json` at its root"
            }
            Self::NotCached { .. } => "fetch the model once while online (unset HF_HUB_OFFLINE)",
            Self::Cache { source, .. } => return cache_hint(source),
        };
        Some(hint.into())
    }
}

fn access_hint(id: &str, with_token: bool) -> String {
    if with_token {
        format!("check that the token may read `{id}` and that its terms are accepted")
    } else {
        format!("check the spelling of `{id}`; if it is private or gated, accept its terms on the hub and set HF_TOKEN")
    }
}

fn cache_hint(source: &io::Error) -> Option<String> {
    let hint = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on the disk, or choose another one with HF_HUB_CACHE; a second try goes on where this one stopped"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a cache folder that you may write with HF_HUB_CACHE"
        }
        io::ErrorKind::NotADirectory => "remove what is in the way: inside a model's cache, folders are plain folders",
        _ => return None,
    };
    Some(hint.into())
}
