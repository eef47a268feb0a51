//! What a failed exchange means, in words that a stranger can act on. Found by the types of the errors, not their texts.

use std::{error::Error, fmt, io};

use rustls::AlertDescription;

use super::{Failure, certificate, redact::Redactor, resolver::NotAllowed};
use crate::api::reason::Reason;

/// Who is talked to: host and port, and the proxy's.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) target: String,
    pub(super) proxy: Option<String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proxy {
            Some(proxy) => write!(f, "{} through the proxy {proxy}", self.target),
            None => f.write_str(&self.target),
        }
    }
}

/// Why a request got no answer.
pub(super) fn failure(error: &reqwest::Error, peer: &Peer) -> Failure {
    if let Some(refused) = find::<NotAllowed>(error) {
        return Failure::new(Reason::AddressNotAllowed, format!("{peer}: {refused}"));
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        return Failure::new(Reason::TlsFailed, format!("TLS with {peer}: {}", tls_words(tls)));
    }
    let words = io_words(error);
    let hint = proxy_hint(peer, |name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if error.is_timeout() {
        return Failure::new(Reason::Timeout, format!("no connection to {peer} in time{hint}"));
    }
    // The type of this error is hyper's own secret. A test sees to it that the words are still these.
    if peer.proxy.is_some() && words.contains("proxy authorization required") {
        let message = format!("{peer}: the proxy wants another user name and password: see proxy.credentialsRef");
        return Failure::new(Reason::Rejected, message);
    }
    if let Some(failure) = not_http(error, peer, &words) {
        return failure;
    }
    let what = match () {
        () if error.is_dns() => "its name cannot be resolved",
        () if error.is_connect() => "no connection",
        () => "the connection broke before the answer was complete",
    };
    Failure::new(Reason::Unreachable, format!("{peer}: {what}: {words}{hint}"))
}

/// What to add where a person expects that a proxy of the environment is used, as it is for the API server.
fn proxy_hint(peer: &Peer, is_set: impl Fn(&str) -> bool) -> String {
    const VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let variable = VARIABLES.into_iter().find(|name| peer.proxy.is_none() && is_set(name));
    variable.map_or_else(String::new, |name| format!("; {name} is not used for fetches: to use a proxy, set proxy.url"))
}

/// An answer that came, but breaks the rules of HTTP. Neither the network nor the connection is at fault.
fn not_http(error: &reqwest::Error, peer: &Peer, words: &str) -> Option<Failure> {
    let invalid = |message| Some(Failure::new(Reason::InvalidResponse, message));
    let hyper = find::<hyper::Error>(error)?;
    if hyper.is_parse_too_large() {
        let message = format!("The headers of the response of {peer} are too large");
        return Some(Failure::new(Reason::ResponseTooLarge, message));
    }
    if hyper.is_parse() {
        // A status line that is none comes from a server of another protocol.
        let other_protocol = hyper.is_parse_version_h2() || words.contains("HTTP version");
        let cure = if other_protocol { ". Check the port, and whether the URL should begin with https" } else { "" };
        return invalid(format!("The response of {peer} is not valid HTTP: {words}{cure}"));
    }
    let malformed =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData);
    let body = find::<io::Error>(hyper).is_some_and(malformed);
    body.then(|| invalid(format!("The body of the response of {peer} is not valid HTTP: {words}"))).flatten()
}

/// The first error of a type in the chain of causes. `io::Error` hides the one that it was made from.
pub(super) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = inner(error);
    }
    None
}

fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The innermost cause. These are the libraries' and the system's texts, which quote nothing of what was sent.
fn io_words(error: &reqwest::Error) -> String {
    let mut leaf: &(dyn Error + 'static) = error;
    while let Some(next) = inner(leaf) {
        leaf = next;
    }
    // reqwest's own text holds the whole URL.
    let text = if leaf.is::<reqwest::Error>() { "no further cause is known".to_owned() } else { leaf.to_string() };
    Redactor::default().clean(&text)
}

fn tls_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate::words(error),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "the server wants a client certificate: set tls.clientCertRef".to_owned()
            }
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError => {
                format!(
                    "the server refused the client certificate, or that there is none: see tls.clientCertRef ({alert:?})"
                )
            }
            AlertDescription::UnrecognisedName => {
                "the server knows no site of that name (see tls.serverName)".to_owned()
            }
            AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => {
                format!("the server found no common version or cipher, or wants a client certificate ({alert:?})")
            }
            _ => format!("the server ended the handshake ({alert:?})"),
        },
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS at this port".to_owned(),
        rustls::Error::PeerIncompatible(_) => "no common version or cipher: TLS 1.2 or 1.3 is needed".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_url_is_named_where_a_proxy_of_the_environment_is_not_used() {
        let peer = |proxy: Option<&str>| Peer { target: "a:443".into(), proxy: proxy.map(str::to_owned) };
        for (proxy, set, expected) in [
            (None, None, ""),
            (None, Some("HTTPS_PROXY"), "; HTTPS_PROXY is not used for fetches: to use a proxy, set proxy.url"),
            (None, Some("all_proxy"), "; all_proxy is not used for fetches: to use a proxy, set proxy.url"),
            (None, Some("NO_PROXY"), ""),
            (Some("b:3128"), Some("HTTPS_PROXY"), ""),
        ] {
            assert_eq!(proxy_hint(&peer(proxy), |name| Some(name) == set), expected, "{proxy:?} {set:?}");
        }
    }
}
