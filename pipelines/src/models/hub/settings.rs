//! Settings of the hub: endpoint, cache and token.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The settings of a fetch.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's address, without a slash at the end: `https://huggingface.co`.
    pub endpoint: String,
    /// The cache folder, which contains the `models--org--name` folders.
    pub cache: PathBuf,
    /// The user's token, for private and gated models.
    pub token: Option<Token>,
    /// Whether the network may be used.
    pub connection: Connection,
}

/// Whether the network may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// The hub is asked.
    Online,
    /// Only the cache is used.
    Offline,
}

/// The user's secret for the hub; `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in `text`, without surrounding white space; `None` if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.into()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// The endpoint if `HF_ENDPOINT` is not set.
const ENDPOINT: &str = "https://huggingface.co";

impl HubSettings {
    /// Reads, through `lookup`, the environment variables of the hub's other clients.
    ///
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `XDG_CACHE_HOME/huggingface` or
    /// `~/.cache/huggingface`; `HF_TOKEN`, else the file `HF_TOKEN_PATH` or `token` in `HF_HOME`; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::InvalidHubSetting`] if the endpoint is no http address or no home folder is known, [`Error::ReadFile`]
    /// if the file of `HF_TOKEN_PATH` cannot be read.
    pub fn resolve(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let home = hub_home(&set);
        let cache = match (set("HF_HUB_CACHE"), &home) {
            (Some(cache), _) => expand(&cache, &set),
            (None, Some(home)) => home.join("hub"),
            (None, None) => return Err(no_home()),
        };
        let settings = Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim().trim_end_matches('/').into(),
            cache,
            token: find_token(&set, home.as_deref())?,
            connection: connection(set("HF_HUB_OFFLINE").as_deref()),
        };
        host(&settings.endpoint)?;
        Ok(settings)
    }

    /// Fails if the token would be sent to another machine without encryption.
    pub(super) fn guard_token(&self) -> Result<()> {
        let local = is_loopback(host(&self.endpoint)?);
        if self.token.is_some() && !self.endpoint.starts_with("https://") && !local {
            return Err(Error::TokenInTheClear { endpoint: self.endpoint.clone() });
        }
        Ok(())
    }
}

fn no_home() -> Error {
    Error::InvalidHubSetting {
        what: "cache folder",
        value: String::new(),
        rule: "set HF_HUB_CACHE or HF_HOME where there is no home folder",
    }
}

/// The folder that the hub's clients share.
fn hub_home(set: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if let Some(home) = set("HF_HOME") {
        return Some(expand(&home, set));
    }
    let caches = match set("XDG_CACHE_HOME") {
        Some(caches) => PathBuf::from(caches),
        None => user_home(set)?.join(".cache"),
    };
    Some(caches.join("huggingface"))
}

fn user_home(set: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from)
}

/// The path with a leading `~/` replaced by the home folder.
fn expand(path: &str, set: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (path.strip_prefix("~/"), user_home(set)) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

fn find_token(set: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> Result<Option<Token>> {
    if let Some(token) = set("HF_TOKEN") {
        return Ok(Token::new(&token));
    }
    let named = set("HF_TOKEN_PATH").map(|path| expand(&path, set));
    let Some(path) = named.clone().or_else(|| home.map(|home| home.join("token"))) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Token::new(&text)),
        // The token file in the home folder exists only after a login.
        Err(_) if named.is_none() => Ok(None),
        Err(source) => Err(Error::ReadFile { path, source }),
    }
}

fn connection(offline: Option<&str>) -> Connection {
    let offline = offline.map(|value| value.trim().to_ascii_lowercase());
    match offline.as_deref() {
        Some("1" | "true" | "yes" | "on") => Connection::Offline,
        _ => Connection::Online,
    }
}

/// The host of an http address.
fn host(endpoint: &str) -> Result<&str> {
    let invalid = || Error::InvalidHubSetting {
        what: "hub endpoint",
        value: endpoint.into(),
        rule: "expected an address like `https://huggingface.co`",
    };
    let rest = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .filter(|rest| !rest.contains(['@', '\\', ' ', '?', '#']))
        .ok_or_else(invalid)?;
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(bracketed),
        None => authority.split(':').next().unwrap_or(authority),
    };
    if host.is_empty() { Err(invalid()) } else { Ok(host) }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::resolve(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into()))
    }

    #[test]
    fn the_cache_follows_the_usual_variables_in_order() {
        let cache = |variables: &[(&str, &str)]| resolve(variables).unwrap().cache;
        let home = ("HOME", "/home/artist");
        assert_eq!(cache(&[home]), Path::new("/home/artist/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/xdg")]), Path::new("/xdg/huggingface/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), Path::new("/home/artist/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]), Path::new("/cache"));
        assert!(matches!(resolve(&[]), Err(Error::InvalidHubSetting { .. })));
    }

    #[test]
    fn the_token_comes_from_the_variable_then_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert!(resolve(&[("HF_HOME", home)]).unwrap().token.is_none());
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        assert_eq!(resolve(&[("HF_HOME", home)]).unwrap().token, Token::new("from-file"));
        let both = resolve(&[("HF_HOME", home), ("HF_TOKEN", " given ")]).unwrap();
        assert_eq!(both.token, Token::new("given"));
        let named = resolve(&[("HF_HOME", home), ("HF_TOKEN_PATH", "/no/such/file")]);
        assert!(matches!(named, Err(Error::ReadFile { .. })));
    }

    #[test]
    fn a_token_is_never_shown() {
        let settings = resolve(&[("HOME", "/nobody"), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn offline_is_whatever_the_hub_calls_true() {
        let connection = |value| resolve(&[("HOME", "/h"), ("HF_HUB_OFFLINE", value)]).unwrap().connection;
        assert_eq!(["1", "YES", "on", "True"].map(connection), [Connection::Offline; 4]);
        assert_eq!(["0", "", "no"].map(connection), [Connection::Online; 3]);
    }

    #[test]
    fn a_token_goes_in_the_clear_to_this_machine_only() {
        let guard = |endpoint: &str| {
            let variables = [("HOME", "/h"), ("HF_TOKEN", "t"), ("HF_ENDPOINT", endpoint)];
            resolve(&variables).and_then(|settings| settings.guard_token())
        };
        for safe in ["https://hub.example", "http://127.0.0.1:8080", "http://localhost/", "http://[::1]:9"] {
            guard(safe).unwrap();
        }
        for clear in ["http://hub.example", "http://localhost.example", "http://127.0.0.1.example:80"] {
            assert!(matches!(guard(clear), Err(Error::TokenInTheClear { .. })), "{clear}");
        }
        for invalid in ["hub.example", "ftp://hub.example", "http://127.0.0.1@hub.example", "https://"] {
            assert!(matches!(guard(invalid), Err(Error::InvalidHubSetting { .. })), "{invalid}");
        }
    }
}
