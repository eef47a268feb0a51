//! The connection to the API server.
//!
//! All clients of the API server are built here, so that none of them is without time limits.

mod proxy;
mod time_limit;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Request, Response, Uri, uri::Scheme};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        Builder,
        connect::{Connection as Connected, HttpConnector, proxy::Tunnel},
    },
    rt::TokioExecutor,
};
use kube::{
    Config,
    client::{Body, ClientBuilder, ConfigExt as _, retry::RetryPolicy},
};
use percent_encoding::percent_decode_str;
use rustls::crypto::CryptoProvider;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt as _, retry::RetryLayer, util::BoxService};

pub(crate) use self::time_limit::GivenUp;
use self::time_limit::TimeLimitLayer;
pub use self::time_limit::{TimeLimitedBody, TimeLimits};

/// Sends requests to the API server, and gives its answers.
pub type Connection = BoxService<Request<Body>, Response<TimeLimitedBody<Incoming>>, BoxError>;

/// TCP keepalive: after so long without data, and how often, a peer is asked whether it is still there. One that does not
/// answer is given up after [`KEEPALIVE_RETRIES`].
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// A client as kube's own would be, with these differences:
///
/// - Each request has a time limit: the answer must begin within 30 s, and nothing in it may take longer either. A watch
///   on which nothing arrives for 90 s is ended, and so started again. Only logs that are followed, and connections that
///   are upgraded, may be silent for as long as they like.
/// - TCP keepalive notices connections that are gone.
/// - `NO_PROXY` is heeded where the proxy is that of `HTTPS_PROXY`.
/// - Nagle's algorithm is off. With it, what is written on a connection may wait for the acknowledgment of what was
///   written before, which the API server's host delays by up to 40 ms (RFC 9293 §3.7.4 lets a program turn it off;
///   `TCP_NODELAY`).
///
/// # Errors
/// Where the settings cannot be used: certificates, credentials, or a proxy that is not asked by `http://`.
pub fn connect(config: Config) -> kube::Result<kube::Client> {
    connect_through(config, TimeLimits::default(), &tower::layer::util::Identity::new())
}

/// The same with other time limits, through a layer that sees all requests and answers.
///
/// # Errors
/// As [`connect`].
pub fn connect_through<L, B>(config: Config, limits: TimeLimits, layer: &L) -> kube::Result<kube::Client>
where
    L: Layer<Connection>,
    L::Service: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
{
    if CryptoProvider::get_default().is_none() {
        // Another thread may have been faster.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let connection = match proxy::proxy(&config) {
        None => connection(&config, limits, tcp)?,
        Some(proxy) if proxy.scheme() == Some(&Scheme::HTTP) => connection(&config, limits, tunnel(proxy, tcp))?,
        Some(proxy) => {
            // Without the user and password, since errors are shown.
            let place = format!("{}://{}", proxy.scheme_str().unwrap_or_default(), proxy.host().unwrap_or_default());
            let proxy_url = Box::new(place.parse().unwrap_or_default());
            return Err(kube::Error::ProxyProtocolUnsupported { proxy_url });
        }
    };
    Ok(ClientBuilder::new(connection, config.default_namespace).with_layer(layer).build())
}

/// Connections that a proxy opens (RFC 9110 §9.3.6), with the user and password of its URL.
fn tunnel(proxy: &Uri, tcp: HttpConnector) -> Tunnel<HttpConnector> {
    let user = proxy.authority().and_then(|authority| authority.as_str().rsplit_once('@')).map(|(user, _)| user);
    let credentials = user.map(|user| STANDARD.encode(percent_decode_str(user).collect::<Vec<u8>>()));
    // Base64 can stand in a header.
    match credentials.and_then(|text| HeaderValue::try_from(format!("Basic {text}")).ok()) {
        Some(header) => Tunnel::new(proxy.clone(), tcp).with_auth(header),
        None => Tunnel::new(proxy.clone(), tcp),
    }
}

fn connection<C>(config: &Config, limits: TimeLimits, connector: C) -> kube::Result<Connection>
where
    C: Service<
            Uri,
            Response: Read + Write + Connected + Send + Unpin,
            Future: Send,
            Error: Into<BoxError> + Send + Sync,
        >,
    C: Clone + Send + Sync + 'static,
{
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(Some(config.connect_timeout.unwrap_or(Duration::MAX).min(limits.request())));
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let connection = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .layer(TimeLimitLayer(limits))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build(connector));
    Ok(connection.boxed())
}

#[cfg(test)]
mod tests {
    use axum_server::tls_rustls::RustlsConfig;
    use serde_json::json;

    use super::*;
    use crate::k8s::error::message;

    #[tokio::test]
    async fn an_api_server_whose_url_has_an_ipv6_address_is_reached_and_its_certificate_is_verified() {
        let key = rcgen::generate_simple_self_signed(["::1".to_owned()]).expect("a certificate");
        let certificate = key.cert.der().to_vec();
        let listener = std::net::TcpListener::bind("[::1]:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket of tokio");
        let address = listener.local_addr().expect("an address");
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tls = RustlsConfig::from_der(vec![certificate.clone()], key.signing_key.serialize_der()).await;
        let version = json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "",
        })
        .to_string();
        let app = axum::Router::new().fallback(move || std::future::ready(version));
        let serving = axum_server::from_tcp_rustls(listener, tls.expect("settings")).expect("a server");
        tokio::spawn(serving.serve(app.into_make_service()));
        let ask = async |trusted: Option<Vec<u8>>| {
            let mut config = Config::new(format!("https://{address}").parse().expect("a URL"));
            (config.root_cert, config.default_retry) = (trusted.map(|certificate| vec![certificate]), false);
            connect(config).expect("a client").apiserver_version().await
        };
        assert_eq!(ask(Some(certificate)).await.expect("an answer").minor, "36");
        let error = message(&ask(None).await.expect_err("nobody vouches for it"));
        assert!(error.contains("certificate"), "{error}");
    }

    #[tokio::test]
    async fn of_a_connection_that_is_refused_the_last_cause_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let mut config = Config::new(format!("http://{address}").parse().expect("an address"));
        config.default_retry = false;
        let client = connect(config).expect("a client");
        let error = client.apiserver_version().await.expect_err("nobody listens");
        assert!(
            message(&error).ends_with("tcp connect error: Connection refused (os error 111)"),
            "{}",
            message(&error)
        );
    }
}
