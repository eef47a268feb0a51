//! How the target of a redirect differs from the URL that was requested. Pure.

use http::{HeaderMap, header};
use url::Url;

use super::redact::Redactor;

/// Where a redirect leads, to be said after "a redirect". Of its target only the host is told, and which parts differ:
/// path and query often hold a secret.
pub(super) fn words(headers: &HeaderMap, url: &Url) -> Option<String> {
    let target = url.join(headers.get(header::LOCATION)?.to_str().ok()?).ok()?;
    let host = Redactor::default().clean(target.host_str()?);
    if target.host_str() != url.host_str() {
        return Some(format!("to {host}"));
    }
    let mut differences = Vec::new();
    if target.scheme() != url.scheme() {
        differences.push(format!("with {}", target.scheme()));
    }
    // The port of another scheme is another one by itself.
    if target.port() != url.port() {
        differences.push(format!("at port {}", target.port_or_known_default().unwrap_or_default()));
    }
    let (from, to) = (url.path(), target.path());
    let whole = match () {
        () if from == to => true,
        () if to.strip_suffix('/') == Some(from) => {
            differences.push("with a slash at the end of its path".to_owned());
            true
        }
        () if from.strip_suffix('/') == Some(to) => {
            differences.push("without the slash at the end of its path".to_owned());
            true
        }
        () => false,
    };
    if whole && differences.is_empty() && target.query() != url.query() {
        differences.push("with another query".to_owned());
    }
    let place = if whole { "to the same URL".to_owned() } else { format!("to another path of {host}") };
    Some(if differences.is_empty() { place } else { format!("{place} {}", differences.join(", ")) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn told(location: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
        words(&headers, &"https://id.example.com/v1/token?a=hunter2".parse().unwrap())
    }

    #[test]
    fn of_a_redirect_only_the_host_is_told_and_what_differs() {
        for (location, wanted) in [
            ("https://evil.example/?code=hunter2", Some("to evil.example")),
            ("//other.example/hunter2", Some("to other.example")),
            ("https://user:hunter2@h.example", Some("to h.example")),
            ("https://ID.example.com./v1/token", Some("to id.example.com.")),
            ("/login?code=hunter2", Some("to another path of id.example.com")),
            ("hunter2", Some("to another path of id.example.com")),
            ("http://id.example.com/hunter2", Some("to another path of id.example.com with http")),
            ("https://id.example.com/v1/token/?a=hunter2", Some("to the same URL with a slash at the end of its path")),
            ("http://id.example.com/v1/token", Some("to the same URL with http")),
            ("https://id.example.com:8443/v1/token", Some("to the same URL at port 8443")),
            ("http://id.example.com:443/v1/token", Some("to the same URL with http, at port 443")),
            ("?b=hunter2", Some("to the same URL with another query")),
            ("https://id.example.com:443/v1/token?a=hunter2", Some("to the same URL")),
            ("data:hunter2", None),
            ("https://[", None),
        ] {
            assert_eq!(told(location).as_deref(), wanted, "{location}");
        }
        assert_eq!(words(&HeaderMap::new(), &"https://a/".parse().unwrap()), None);
    }

    #[test]
    fn a_slash_too_many_is_told_too() {
        let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static("/v1/token"))]);
        let told = words(&headers, &"https://a/v1/token/".parse().unwrap());
        assert_eq!(told.as_deref(), Some("to the same URL without the slash at the end of its path"));
    }

    proptest! {
        #[test]
        fn no_location_makes_it_panic(location in "[ -~]{0,60}") {
            let _ = told(&location);
        }
    }
}
