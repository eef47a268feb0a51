//! Where the contents of a source Secret may be sent, as its owner says in an annotation: pure.

use url::{Host, Url};

/// A server that a request goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    host: Host,
    port: u16,
}

impl Server {
    /// The one that a URL names.
    pub(super) fn of(url: &Url) -> Option<Self> {
        Some(Self { host: plain(url.host()?.to_owned()), port: url.port_or_known_default()? })
    }

    /// Whether an annotation permits it: names, names with a wildcard (`*.example.com`, for all below that) or addresses,
    /// each with or without a port, separated by commas or spaces. What cannot be read permits nothing.
    pub(super) fn is_permitted(&self, annotation: &str) -> bool {
        let entries = annotation.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        entries.filter_map(Entry::read).any(|entry| entry.permits(self))
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The same name, written with a dot at its end or without.
fn plain(host: Host) -> Host {
    match host {
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').map_or(name.clone(), str::to_owned)),
        address => address,
    }
}

struct Entry {
    /// Only names below it are meant.
    is_wildcard: bool,
    host: Host,
    port: Option<u16>,
}

impl Entry {
    fn read(text: &str) -> Option<Self> {
        let (is_wildcard, text) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        let after_address = text.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match text[after_address..].split_once(':') {
            Some((rest, port)) => (&text[..after_address + rest.len()], Some(port.parse().ok()?)),
            None => (text, None),
        };
        let host = plain(Host::parse(host).ok()?);
        let is_name = matches!(host, Host::Domain(_));
        (is_name || !is_wildcard).then_some(Self { is_wildcard, host, port })
    }

    fn permits(&self, server: &Server) -> bool {
        let is_port = self.port.is_none_or(|port| port == server.port);
        let is_host = match (&self.host, &server.host) {
            (Host::Domain(parent), Host::Domain(name)) if self.is_wildcard => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (permitted, host) => permitted == host,
        };
        is_port && is_host
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn permits(annotation: &str, url: &str) -> bool {
        Server::of(&Url::parse(url).unwrap()).unwrap().is_permitted(annotation)
    }

    #[test]
    fn an_annotation_permits_the_hosts_that_it_lists() {
        let id = "https://id.example.com/token";
        for (annotation, url, permitted) in [
            ("id.example.com", id, true),
            ("ID.Example.com.", id, true),
            ("id.example.com", "https://ID.EXAMPLE.COM./token", true),
            ("id.example.com", "http://id.example.com:8080/", true),
            ("id.example.com:443", id, true),
            ("id.example.com:443", "https://id.example.com:8443/", false),
            ("id.example.com:8443", "https://id.example.com:8443/", true),
            ("a.example, id.example.com", id, true),
            ("a.example\n id.example.com\n", id, true),
            ("*.example.com", id, true),
            ("*.example.com", "https://a.b.example.com/", true),
            ("*.example.com:443", id, true),
            ("*.example.com", "https://example.com/", false),
            ("*.example.com", "https://evilexample.com/", false),
            ("*.example.com", "https://.example.com/", false),
            ("example.com", id, false),
            ("id.example.com", "https://id.example.com.evil.example/", false),
            ("id.example.com", "https://id.example.com@evil.example/", false),
            ("", id, false),
            (" , ", id, false),
            ("*", id, false),
            ("*.", id, false),
            ("https://id.example.com", id, false),
            ("id.example.com/", id, false),
            ("id.example.com:", id, false),
            ("id.example.com:99999", id, false),
            ("10.1.2.3", "http://10.1.2.3/", true),
            ("10.1.2.3", "http://0x0a010203/", true),
            ("*.2.3", "http://10.1.2.3/", false),
            ("[2001:db8::1]", "https://[2001:DB8:0::1]:8443/", true),
            ("[2001:db8::1]:443", "https://[2001:db8::1]:8443/", false),
            ("münchen.example", "https://xn--mnchen-3ya.example/", true),
        ] {
            assert_eq!(permits(annotation, url), permitted, "{annotation:?} {url}");
        }
    }

    proptest! {
        #[test]
        fn no_annotation_makes_it_panic_or_permits_what_it_does_not_name(annotation in "\\PC{0,30}") {
            let permitted = permits(&annotation, "https://never-there.example/");
            prop_assert!(!permitted || annotation.to_lowercase().contains("example"));
        }
    }
}
