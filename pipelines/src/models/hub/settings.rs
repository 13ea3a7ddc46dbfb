//! Settings of the hub: endpoint, cache and token.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Proxy;

use super::address::Address;
use super::error::HubError;
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
    /// The proxy for all servers but this machine.
    pub proxy: Option<Proxy>,
    /// How long servers are waited for.
    pub timeouts: Timeouts,
}

/// How long servers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the name of a server to a connection.
    pub connect: Duration,
    /// Without an answer, without a byte of a file, or with less than a kilobyte a second.
    pub idle: Duration,
    /// For the listing of a model in all.
    pub listing: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), idle: Duration::from_secs(30), listing: Duration::from_secs(60) }
    }
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
    /// The token in `text`, without surrounding white space; `None` if nothing is left. `from` names its place in the
    /// error.
    ///
    /// # Errors
    /// [`HubError::InvalidToken`] for what can be no token.
    pub fn new(text: &str, from: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        let invalid = |rule| Err(HubError::InvalidToken { from: from.into(), rule });
        if !text.bytes().all(|letter| letter.is_ascii_graphic()) {
            return invalid("has spaces, line breaks or other characters that no token has");
        }
        if text.len() > LONGEST_TOKEN {
            return invalid("is longer than 1000 characters");
        }
        Ok((!text.is_empty()).then(|| Self(text.into())))
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

/// Letters of the longest token.
const LONGEST_TOKEN: usize = 1000;

/// The endpoint if `HF_ENDPOINT` is not set.
const ENDPOINT: &str = "https://huggingface.co";

impl HubSettings {
    /// Reads, through `lookup`, the environment variables of the hub's other clients.
    ///
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `XDG_CACHE_HOME/huggingface` or
    /// `~/.cache/huggingface`; `HF_TOKEN`, else the file `HF_TOKEN_PATH` or `token` in `HF_HOME`; `HF_HUB_OFFLINE`; and
    /// `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY` with `NO_PROXY`.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`] if the endpoint is no http address, the proxy is none or no home folder is known,
    /// [`HubError::InvalidToken`], and [`Error::ReadFile`] if the file of `HF_TOKEN_PATH` cannot be read.
    pub fn resolve(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let home = hub_home(&set);
        let cache = match (set("HF_HUB_CACHE"), &home) {
            (Some(cache), _) => expand(&cache, &set),
            (None, Some(home)) => home.join("hub"),
            (None, None) => return Err(no_home().into()),
        };
        let settings = Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim().trim_end_matches('/').into(),
            cache,
            token: find_token(&set, home.as_deref())?,
            connection: connection(set("HF_HUB_OFFLINE").as_deref()),
            proxy: find_proxy(&set)?,
            timeouts: Timeouts::default(),
        };
        settings.address()?;
        Ok(settings)
    }

    /// The endpoint's address; fails if the token would be sent to another machine without encryption.
    pub(super) fn guarded_address(&self) -> Result<Address, HubError> {
        let address = self.address()?;
        if self.token.is_some() && !address.is_private() {
            return Err(HubError::TokenInTheClear { endpoint: self.endpoint.clone() });
        }
        Ok(address)
    }

    fn address(&self) -> Result<Address, HubError> {
        let is_bare = !self.endpoint.contains(['?', '#', '\\']);
        Address::parse(&self.endpoint).filter(|_| is_bare).ok_or_else(|| self.invalid_endpoint())
    }

    pub(super) fn invalid_endpoint(&self) -> HubError {
        HubError::InvalidSetting {
            what: "hub endpoint",
            value: self.endpoint.clone(),
            rule: "expected an address like `https://huggingface.co`",
        }
    }
}

fn no_home() -> HubError {
    HubError::InvalidSetting {
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
        return Ok(Token::new(&token, "HF_TOKEN")?);
    }
    let named = set("HF_TOKEN_PATH").map(|path| expand(&path, set));
    let Some(path) = named.clone().or_else(|| home.map(|home| home.join("token"))) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Token::new(&text, &format!("`{}`", path.display()))?),
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

/// The variables that name a proxy, in order.
const PROXY_VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

fn find_proxy(set: &dyn Fn(&str) -> Option<String>) -> Result<Option<Proxy>, HubError> {
    let Some((name, address)) = PROXY_VARIABLES.into_iter().find_map(|name| Some((name, set(name)?))) else {
        return Ok(None);
    };
    // The address is not shown: it can have a password.
    let invalid = |_| HubError::InvalidSetting { what: "proxy", value: name.into(), rule: "its value is no address" };
    let proxy = Proxy::new(address.trim()).map_err(invalid)?;
    let direct = set("NO_PROXY").or_else(|| set("no_proxy")).unwrap_or_default();
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(user) = proxy.username() {
        builder = builder.username(user).password(proxy.password().unwrap_or_default());
    }
    for host in direct.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        builder = builder.no_proxy(host);
    }
    builder.build().map(Some).map_err(invalid)
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
        assert!(matches!(resolve(&[]), Err(Error::Hub(HubError::InvalidSetting { .. }))));
    }

    #[test]
    fn the_token_comes_from_the_variable_then_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert!(resolve(&[("HF_HOME", home)]).unwrap().token.is_none());
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        assert_eq!(resolve(&[("HF_HOME", home)]).unwrap().token, Token::new("from-file", "").unwrap());
        let both = resolve(&[("HF_HOME", home), ("HF_TOKEN", " given ")]).unwrap();
        assert_eq!(both.token, Token::new("given", "").unwrap());
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
            resolve(&variables).and_then(|settings| Ok(settings.guarded_address()?))
        };
        for safe in [
            "https://hub.example",
            "http://127.0.0.1:8080",
            "http://localhost/",
            "http://[::1]:9",
            "http://localhost.:1",
        ] {
            guard(safe).unwrap();
        }
        for clear in ["http://hub.example", "http://localhost.example", "http://127.0.0.1.example:80"] {
            assert!(matches!(guard(clear), Err(Error::Hub(HubError::TokenInTheClear { .. }))), "{clear}");
        }
        for invalid in
            ["hub.example", "ftp://hub.example", "http://127.0.0.1@hub.example", "https://", "https://hub.example/?a"]
        {
            assert!(matches!(guard(invalid), Err(Error::Hub(HubError::InvalidSetting { .. }))), "{invalid}");
        }
    }

    #[test]
    fn what_can_be_no_token_is_refused_and_not_shown() {
        for text in ["hf_one\nhf_two", "hf_se cret", "hf_s\u{e9}cret", "hf_s\u{1b}cret", &"s".repeat(5000)] {
            let error = resolve(&[("HOME", "/nobody"), ("HF_TOKEN", text)]).unwrap_err();
            assert!(matches!(&error, Error::Hub(HubError::InvalidToken { from, .. }) if from == "HF_TOKEN"), "{error}");
            assert!(error.to_string().contains("HF_TOKEN") && !error.to_string().contains("cret"), "{error}");
            assert!(error.hint().unwrap().contains("token"));
        }
    }

    #[test]
    fn a_proxy_comes_from_the_usual_variables() {
        let proxy = |variables: &[(&str, &str)]| {
            resolve(&[&[("HOME", "/h")], variables].concat()).map(|settings| settings.proxy)
        };
        assert!(proxy(&[]).unwrap().is_none());
        let variables =
            [("https_proxy", "http://user:pass%20word@proxy.example:3128"), ("NO_PROXY", "a.example, .local")];
        let found = proxy(&variables).unwrap().unwrap();
        assert_eq!((found.host(), found.port(), found.password()), ("proxy.example", 3128, Some("pass word")));
        let is_direct = |address: &str| found.is_no_proxy(&address.parse().unwrap());
        assert!(is_direct("https://a.example/") && is_direct("https://b.local/") && !is_direct("https://b.example/"));
        let error = proxy(&[("HTTPS_PROXY", "http://user:secret@")]).unwrap_err().to_string();
        assert!(error.contains("HTTPS_PROXY") && !error.contains("secret"), "{error}");
    }
}
