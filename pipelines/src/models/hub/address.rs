//! Addresses of servers: who may see the token, and which redirects are followed.

use std::net::IpAddr;

use ureq::http::Uri;

/// An http or https address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(Uri);

impl Address {
    /// The address in `text`; `None` for other schemes, and for user names before the host.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority()?.as_str();
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        (has_scheme && has_host && !authority.contains('@')).then_some(Self(uri))
    }

    /// The address that a redirect of this one names: a whole address, or a path on the same server.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Self::parse(&format!("{}{location}", self.server()));
        }
        Self::parse(location)
    }

    /// Scheme, host and port: who answers.
    pub(super) fn server(&self) -> String {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let host = self.0.host().unwrap_or_default().to_ascii_lowercase();
        match self.0.port_u16() {
            Some(port) if port != self.default_port() => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// Whether the server is this machine.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.0.host().unwrap_or_default().to_ascii_lowercase();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        host.strip_suffix('.').unwrap_or(host) == "localhost" || host.parse().is_ok_and(is_loopback)
    }

    /// Whether nobody but the server can read a request.
    pub(super) fn is_private(&self) -> bool {
        self.is_encrypted() || self.is_loopback()
    }

    /// Whether a request may carry the token of `endpoint`.
    pub(super) fn may_see_token_of(&self, endpoint: &Self) -> bool {
        self.is_private() && self.server() == endpoint.server()
    }

    pub(super) fn as_str(&self) -> String {
        self.0.to_string()
    }

    fn default_port(&self) -> u16 {
        if self.is_encrypted() { 443 } else { 80 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn a_redirect_names_a_path_or_a_whole_address() {
        let here = address("https://hub.example:444/a/b?c=1");
        let joined = |location: &str| here.join(location).map(|address| address.as_str());
        assert_eq!(joined("/x/y?z=2").as_deref(), Some("https://hub.example:444/x/y?z=2"));
        assert_eq!(joined("http://cdn.example/x").as_deref(), Some("http://cdn.example/x"));
        for refused in ["//cdn.example/x", "x/y", "", "ftp://cdn.example/x", "https://user@cdn.example/", "file:///x"] {
            assert_eq!(joined(refused), None, "{refused}");
        }
    }

    #[test]
    fn only_the_endpoint_itself_sees_the_token() {
        let hub = address("https://hub.example/mirror");
        for same in ["https://hub.example/x", "https://HUB.example:443/"] {
            assert!(address(same).may_see_token_of(&hub), "{same}");
        }
        for other in ["http://hub.example/x", "https://hub.example:444/", "https://cdn.hub.example/", "https://hub/"] {
            assert!(!address(other).may_see_token_of(&hub), "{other}");
        }
        let clear = address("http://hub.example");
        assert!(!clear.may_see_token_of(&clear));
    }

    #[test]
    fn this_machine_has_many_names() {
        for local in
            ["localhost:1", "localhost.", "LOCALHOST", "127.0.0.1:80", "127.9.9.9", "[::1]:9", "[::ffff:127.0.0.1]"]
        {
            assert!(address(&format!("http://{local}/")).is_loopback(), "{local}");
        }
        for other in ["localhost.example", "127.0.0.1.example", "[::2]", "0.0.0.0", "10.0.0.1"] {
            assert!(!address(&format!("http://{other}/")).is_loopback(), "{other}");
        }
    }
}
