//! One HTTP exchange: to a checked address, without redirects, with a bounded answer.

use std::{collections::VecDeque, time::Duration};

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, Response, redirect};
use url::{Host, Url};
use zeroize::Zeroizing;

use super::{
    Failure, Phase,
    address_rules::AddressRules,
    body::{self, Unreadable},
    lookup,
    memory::SMALL,
    redact::Redactor,
    redirect as redirect_target,
    resolver::{Alias, CheckedResolver, Lookup, check_literal},
    tls::Settings,
    transport_error::{self, Peer},
};
use crate::{api::reason::Reason, time};

/// A response is read up to this many bytes.
pub(super) const MAX_BODY: usize = 1 << 20;

/// A server that asks for a longer pause is asked again after this one.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Within `fetch.timeout`: a dead address must not use up what the next one could need.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients that are kept for their connections.
const MAX_CLIENTS: usize = 64;

/// The clients, one for each set of settings, least recently used first.
pub(super) struct Clients {
    rules: AddressRules,
    lookup: Lookup,
    built: Mutex<VecDeque<([u8; 32], Client)>>,
}

/// A client and the URL to use it with.
pub(super) struct Connection {
    client: Client,
    url: Url,
    /// What the server is to be told as its name, where the URL says something else.
    host: Option<HeaderValue>,
    peer: Peer,
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// Where a redirect leads, in words.
    redirect: Option<String>,
    pub(super) peer: Peer,
}

/// `host:port` of a URL.
pub(super) fn host_and_port(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

impl Clients {
    pub(super) fn new(rules: AddressRules, lookup: Lookup) -> Self {
        Self { rules, lookup, built: Mutex::default() }
    }

    /// Makes ready what can be made ready without a connection, and checks addresses that no resolver will see.
    pub(super) fn connection(&self, url: &Url, settings: &Settings) -> Result<Connection, Failure> {
        let peer = Peer { target: host_and_port(url), proxy: settings.proxy().map(host_and_port) };
        for literal in [Some(url), settings.proxy()].into_iter().flatten().filter_map(literal) {
            check_literal(&self.rules, literal)
                .map_err(|refused| Failure::new(Reason::AddressNotAllowed, format!("{peer}: {refused}")))?;
        }
        let client = self.client(url, settings)?;
        match settings.server_name.as_deref().filter(|_| url.scheme() == "https") {
            None => Ok(Connection { client, url: url.clone(), host: None, peer }),
            Some(name) => {
                let host = authority(url);
                let host = HeaderValue::from_str(&host)
                    .map_err(|_| Failure::new(Reason::InvalidSpec, "the URL's host is no host name"))?;
                Ok(Connection { client, url: renamed(url, name)?, host: Some(host), peer })
            }
        }
    }

    fn client(&self, url: &Url, settings: &Settings) -> Result<Client, Failure> {
        let key = settings.fingerprint(url);
        // A panic elsewhere leaves the list whole: it is changed in single steps.
        let lock = || self.built.lock();
        let take = |built: &mut VecDeque<([u8; 32], Client)>| {
            let index = built.iter().position(|(other, _)| *other == key)?;
            built.remove(index)
        };
        let found = take(&mut lock());
        let client = match found {
            Some((_, client)) => client,
            // Outside the lock: it reads the system's certificates.
            None => self.build(url, settings)?,
        };
        let mut built = lock();
        // Another fetch may have been as quick.
        take(&mut built);
        if built.len() >= MAX_CLIENTS {
            built.pop_front();
        }
        built.push_back((key, client.clone()));
        Ok(client)
    }

    fn build(&self, url: &Url, settings: &Settings) -> Result<Client, Failure> {
        let alias = settings.server_name.as_ref().and_then(|name| {
            let host = literal(url).map(|ip| ip.to_string()).or_else(|| url.host_str().map(str::to_owned))?;
            Some(Alias { name: name.clone(), host })
        });
        let builder = Client::builder()
            // The environment's proxies are meant for the controller, and would evade the address rules.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("tokencache/", env!("CARGO_PKG_VERSION")))
            // Without this header, a server may choose any content coding (RFC 9110 §12.5.3).
            .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .connect_timeout(CONNECT_TIMEOUT)
            // Before the server closes it, in many by default after 5 s, perhaps in the moment in which it is used again.
            .pool_idle_timeout(Duration::from_secs(4))
            .pool_max_idle_per_host(4)
            // HTTP/2 would send `tls.serverName` as :authority, loses the type of TLS errors, and keeps a connection
            // that died silently for the next attempts, too. One request now and then gains nothing by it.
            .http1_only();
        let resolver = CheckedResolver { rules: self.rules.clone(), lookup: self.lookup.clone(), alias };
        let builder = settings.apply(url, builder.dns_resolver(resolver))?;
        builder.build().map_err(|error| settings.not_applicable(transport_error::find(&error)))
    }
}

/// The address, where a URL names one itself.
fn literal(url: &Url) -> Option<std::net::IpAddr> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
    }
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The URL with `tls.serverName` as host: what is in the URL decides the name that is asked for and verified.
///
/// # Errors
/// When the name would be taken for an address, which would then be connected to without the resolver.
pub(super) fn renamed(url: &Url, name: &str) -> Result<Url, Failure> {
    let mut renamed = url.clone();
    match renamed.set_host(Some(name)) {
        Ok(()) if matches!(renamed.host(), Some(Host::Domain(_))) => Ok(renamed),
        _ => Err(Failure::new(Reason::InvalidSpec, format!("tls.serverName: {name} is not a DNS name"))),
    }
}

impl Connection {
    /// A request without a body yet.
    pub(super) fn request(&self, method: Method) -> RequestBuilder {
        let request = self.client.request(method, self.url.clone());
        match &self.host {
            Some(host) => request.header(header::HOST, host),
            None => request,
        }
    }

    /// Sends it and reads the answer.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        phase: &Phase,
        now: impl Fn() -> DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        tracing::debug!(peer = %self.peer, "sending the request");
        phase.set(format!("waiting for {}", self.peer));
        let failed = |error| transport_error::failure(&error, &self.peer);
        let mut request = request.build().map_err(failed)?;
        announce_no_body(&mut request);
        let response = lookup::within(phase.namespace.clone(), self.client.execute(request)).await.map_err(failed)?;
        let headers = response.headers();
        let mut answer = Answer {
            status: response.status(),
            headers: headers.clone(),
            retry_after: retry_after(headers, now()),
            redirect: redirect_target::words(headers, &self.url),
            body: Zeroizing::default(),
            peer: self.peer.clone(),
        };
        phase.set(format!("reading the answer of {}", self.peer));
        let body = match read(response, &self.peer, phase).await {
            Ok(body) => body::plain(&answer.headers, body).map_err(|why| answer.unreadable(&why)),
            Err(failure) => Err(failure),
        };
        match body {
            Ok(body) => answer.body = body,
            // The status says more about a failure than what became of its body.
            Err(_) if !answer.status.is_success() => {}
            Err(failure) => return Err(failure),
        }
        Ok(answer)
    }
}

/// A request of a method that gives a body its meaning says that it has none (RFC 9110 §8.6): some servers answer 411
/// otherwise. The HTTP library leaves the header out.
fn announce_no_body(request: &mut reqwest::Request) {
    let is_empty = request.body().is_none_or(|body| body.as_bytes().is_some_and(<[u8]>::is_empty));
    if is_empty && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

async fn read(mut response: Response, peer: &Peer, phase: &Phase) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let too_large =
        || Failure::new(Reason::ResponseTooLarge, format!("the answer of {peer} is larger than {MAX_BODY} bytes"));
    let length = response.content_length().unwrap_or_default();
    if length > MAX_BODY as u64 {
        return Err(too_large());
    }
    let of_peer = format!("the answer of {peer}");
    if length > SMALL as u64 {
        phase.need_memory(&of_peer).await;
    }
    // A buffer that grows by itself would leave copies behind that nobody wipes.
    let mut body = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default().max(16 * 1024)));
    while let Some(chunk) = response.chunk().await.map_err(|error| transport_error::failure(&error, peer))? {
        let length = body.len() + chunk.len();
        if length > MAX_BODY {
            return Err(too_large());
        }
        if length > SMALL {
            phase.need_memory(&of_peer).await;
        }
        if length > body.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(length.max(body.capacity() * 2)));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl Answer {
    #[cfg(test)]
    pub(super) fn for_test(status: u16, body: Vec<u8>) -> Self {
        let peer = Peer { target: "id.example.com:443".to_owned(), proxy: None };
        let status = StatusCode::from_u16(status).unwrap_or_default();
        Self { status, headers: HeaderMap::new(), retry_after: None, body: body.into(), redirect: None, peer }
    }

    /// The failure that the status means; `None` for 2xx. The detail is what may be told of the body.
    pub(super) fn refusal(&self, detail: Option<&str>) -> Option<Failure> {
        (!self.status.is_success()).then(|| self.refused(detail))
    }

    /// The failure that the status means, where it does not mean success.
    pub(super) fn refused(&self, detail: Option<&str>) -> Failure {
        let status = self.status;
        let reason = match status.as_u16() {
            429 => Reason::RateLimited,
            500..=599 => Reason::ServerError,
            _ => Reason::Rejected,
        };
        let mut message = self.to_string();
        if let Some(detail) = detail {
            message = format!("{message}: {detail}");
        }
        if status.is_redirection() {
            message = match &self.redirect {
                Some(target) => {
                    format!("{message}, a redirect {target}. Redirects are not followed: change the URL in the spec")
                }
                None => format!("{message}. Redirects are not followed"),
            };
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED && self.peer.proxy.is_some() {
            message += ". Check proxy.credentialsRef";
        }
        self.failure(reason, message)
    }

    fn unreadable(&self, why: &Unreadable) -> Failure {
        let reason = match why {
            Unreadable::TooLarge => Reason::ResponseTooLarge,
            Unreadable::Coding(_) | Unreadable::Damaged => Reason::InvalidResponse,
        };
        self.failure(reason, format!("The response of {} {}", self.peer, why.words()))
    }

    /// A failure that this answer means, with the pause that it asks for.
    pub(super) fn failure(&self, reason: Reason, message: String) -> Failure {
        Failure { reason, message, retry_after: self.retry_after }
    }

    /// The kind of content that the server says it sent.
    pub(super) fn content_type(&self) -> String {
        content_type(&self.headers).unwrap_or_else(|| "no content type".to_owned())
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} answered {}", self.peer, self.status.as_u16())?;
        self.status.canonical_reason().map_or(Ok(()), |words| write!(f, " {words}"))
    }
}

/// `Retry-After` in either form (RFC 9110 §10.2.3), at most an hour.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time, too.
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        time::until(httpdate::parse_http_date(text).ok()?.into(), now)
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(Redactor::default().clean(text.split(';').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_pause_is_read_in_both_forms_and_is_at_most_an_hour() {
        let now = time::parse_rfc3339("2026-01-02T03:00:00Z").unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("86400", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Fri, 02 Jan 2026 03:02:00 GMT", Some(120)),
            ("Fri, 02 Jan 2026 02:00:00 GMT", Some(0)),
            ("Sat, 03 Jan 2026 03:00:00 GMT", Some(3600)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let pause = retry_after(&headers(header::RETRY_AFTER, text), now);
            assert_eq!(pause, seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn clients_are_kept_by_their_settings_and_only_so_many() {
        let clients = Clients::new(AddressRules::default(), crate::fetch::lookup::system_lookup());
        let url: Url = "http://id.example.com".parse().unwrap();
        let kept = || clients.built.lock().len();
        for number in 0..MAX_CLIENTS + 10 {
            let mut settings = Settings::default();
            settings.server_name = Some(format!("n{number}"));
            for _ in 0..2 {
                clients.client(&url, &settings).map_err(|failure| failure.to_string()).unwrap();
                assert_eq!(kept(), MAX_CLIENTS.min(number + 1));
            }
        }
    }

    #[test]
    fn a_server_name_that_would_be_taken_for_an_address_is_refused() {
        let url: Url = "https://10.0.0.1:8443/token?a=b".parse().unwrap();
        assert_eq!(renamed(&url, "id.example.com").unwrap().as_str(), "https://id.example.com:8443/token?a=b");
        for name in ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "a.0x7f", "127.0.0.1."] {
            assert_eq!(renamed(&url, name).unwrap_err().reason, Reason::InvalidSpec, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "[ -~]{0,60}") {
            let headers = HeaderMap::from_iter(
                [header::RETRY_AFTER, header::CONTENT_TYPE]
                    .map(|name| (name, HeaderValue::from_str(&text).unwrap())),
            );
            let pause = retry_after(&headers, DateTime::UNIX_EPOCH);
            prop_assert!(pause.is_none_or(|pause| pause <= MAX_RETRY_AFTER));
            let _ = content_type(&headers);
        }
    }
}
