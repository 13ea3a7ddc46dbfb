//! Requests to a hub. Redirects are followed here, so that no server but the hub itself sees the token.

use std::time::Duration;

use ureq::http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderMap, HeaderValue, StatusCode};
use ureq::{Agent, Body, Timeout};

use super::address::Address;
use super::error::HubError;
use super::listing::{Listing, shown};
use super::{HubId, HubSettings};

/// The most redirects of one request.
const MOST_REDIRECTS: usize = 8;

/// The most bytes of a listing: about a hundred thousand files.
const LARGEST_LISTING: u64 = 16 << 20;

pub(super) struct Client<'a> {
    settings: &'a HubSettings,
    endpoint: Address,
    agent: Agent,
}

/// An answer with a body.
pub(super) struct Answer {
    /// Scheme, host and port of the server that sends the body.
    pub(super) server: String,
    pub(super) status: StatusCode,
    /// The headers of all answers on the way, the last one's at the end.
    pub(super) headers: Vec<HeaderMap>,
    pub(super) body: Body,
}

/// What a request is about, and how long it may take.
#[derive(Clone, Copy)]
struct Request<'a> {
    /// The model, and the file if there is one.
    about: &'a str,
    /// The first byte asked for.
    from: u64,
    /// The time for all of it, redirects not counted; unlimited for files, whose bytes need only keep coming.
    within: Option<Duration>,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Result<Self, HubError> {
        let endpoint = settings.guarded_address()?;
        let limits = settings.timeouts;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(settings.proxy.clone())
            .user_agent(concat!("catelier/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.idle))
            .timeout_per_read(Some(limits.idle))
            .timeout_per_write(Some(limits.idle))
            .build()
            .new_agent();
        Ok(Self { settings, endpoint, agent })
    }

    /// The commit and the files of `id` on the hub.
    pub(super) fn listing(&self, id: &HubId) -> Result<Listing, HubError> {
        let about = id.to_string();
        let revision = id.revision().replace('/', "%2F");
        let path = format!("api/models/{}/revision/{revision}?blobs=true", id.repository());
        let within = Some(self.settings.timeouts.listing);
        let answer = self.get(&path, Request { about: &about, from: 0, within })?;
        let Answer { server, body, .. } = answer;
        let text = body.into_with_config().limit(LARGEST_LISTING).read_to_vec();
        let text = text.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(limit) => {
                HubError::TooLong { id: about.clone(), server: server.clone(), limit, rule: "the limit of a listing" }
            }
            error => self.failure(&about, &server, error),
        })?;
        Listing::parse(id, &server, &text)
    }

    /// The content of `file` of a commit from byte `from` on; `about` names it in errors.
    pub(super) fn file(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        about: &str,
        from: u64,
    ) -> Result<Answer, HubError> {
        let path = format!("{}/resolve/{commit}/{file}", id.repository());
        self.get(&path, Request { about, from, within: None })
    }

    fn get(&self, path: &str, request: Request<'_>) -> Result<Answer, HubError> {
        let text = format!("{}/{path}", self.settings.endpoint);
        let mut address = Address::parse(&text).ok_or_else(|| self.settings.invalid_endpoint())?;
        let mut headers = Vec::new();
        for _ in 0..=MOST_REDIRECTS {
            let (head, body) = self.ask(&address, request)?.into_parts();
            let location = head.headers.get(LOCATION).cloned();
            headers.push(head.headers);
            match (head.status.as_u16(), location) {
                (200 | 206 | 416, _) => {
                    return Ok(Answer { server: address.server(), status: head.status, headers, body });
                }
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    address = follow(&address, &location, request.about)?;
                }
                (status, _) => return Err(self.refusal(&address, status, request.about)),
            }
        }
        Err(too_many_redirects(&address, request.about))
    }

    /// One request to one server.
    fn ask(&self, address: &Address, about: Request<'_>) -> Result<ureq::http::Response<Body>, HubError> {
        let mut request = self.agent.get(address.as_str()).header(ACCEPT, "*/*");
        if let Some(token) = self.settings.token.as_ref().filter(|_| address.may_see_token_of(&self.endpoint)) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        if about.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", about.from));
        }
        let mut config = request.config().timeout_global(about.within);
        if address.is_loopback() {
            config = config.proxy(None);
        }
        config.build().call().map_err(|error| self.failure(about.about, &address.server(), error))
    }

    /// The error for a request that got no answer, or whose body broke off.
    pub(super) fn failure(&self, about: &str, server: &str, error: ureq::Error) -> HubError {
        let limits = self.settings.timeouts;
        let (what, limit) = match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => ("accept a connection", limits.connect),
            ureq::Error::Timeout(Timeout::Global) => ("send the listing", limits.listing),
            ureq::Error::Timeout(Timeout::RecvResponse) => ("answer", limits.idle),
            ureq::Error::Timeout(_) => ("send anything", limits.idle),
            error => {
                return HubError::Unreachable { id: about.into(), server: server.into(), source: Box::new(error) };
            }
        };
        HubError::TimedOut { id: about.into(), server: server.into(), what, limit }
    }

    /// The error for an answer without content.
    fn refusal(&self, address: &Address, status: u16, about: &str) -> HubError {
        let (id, endpoint) = (about.to_owned(), self.settings.endpoint.clone());
        let is_hub = address.server() == self.endpoint.server();
        match status {
            401 | 403 if is_hub => {
                HubError::Refused { id, endpoint, status, with_token: self.settings.token.is_some() }
            }
            404 if is_hub => HubError::NotFound { id, endpoint },
            _ => HubError::Status { id, server: address.server(), status },
        }
    }
}

/// The address that a redirect names.
fn follow(from: &Address, location: &HeaderValue, about: &str) -> Result<Address, HubError> {
    let refused = |location: &str, reason| HubError::Redirect {
        id: about.into(),
        server: from.server(),
        location: shown(location),
        reason,
    };
    let text = location.to_str().map_err(|_| refused("", "the address has characters that no address has"))?;
    let to = from.join(text).ok_or_else(|| refused(text, "it is neither an http address nor a path"))?;
    if from.is_encrypted() && !to.is_encrypted() {
        return Err(refused(text, "it leaves https"));
    }
    Ok(to)
}

fn too_many_redirects(last: &Address, about: &str) -> HubError {
    HubError::Redirect {
        id: about.into(),
        server: last.server(),
        location: shown(&last.as_str()),
        reason: "there were too many redirects before",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_https() {
        let followed = |from: &str, to: &str| {
            let from = Address::parse(from).unwrap();
            follow(&from, &HeaderValue::from_str(to).unwrap(), "a/b").map(|address| address.as_str())
        };
        let hub = "https://hub.example/a";
        assert_eq!(followed(hub, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(followed(hub, "/x").unwrap(), "https://hub.example/x");
        for clear in ["http://hub.example/x", "http://cdn.example/x", "http://localhost/x"] {
            let error = followed(hub, clear).unwrap_err();
            assert!(error.to_string().contains("it leaves https"), "{error}");
        }
        assert!(followed(hub, "gopher://cdn.example/x").is_err());
        assert_eq!(followed("http://localhost:1/a", "http://cdn.example/x").unwrap(), "http://cdn.example/x");
    }
}
