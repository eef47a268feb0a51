//! TLS and proxies.

use axum_server::tls_rustls::RustlsConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ResolvesServerCertUsingSni, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::fetch::test_keys as keys;

/// An authority and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn bundle(&self) -> String {
        BASE64_STANDARD.encode(self.pem())
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

fn parts((certificate, key): (rcgen::Certificate, KeyPair)) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

fn config(signed: (rcgen::Certificate, KeyPair)) -> ServerConfig {
    let (chain, key) = parts(signed);
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
}

impl Server {
    async fn start_tls(mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let router = Self::router(server.seen.clone(), token);
        let config = RustlsConfig::from_config(Arc::new(config));
        let serving = axum_server::from_tcp_rustls(listener.into_std().unwrap(), config).unwrap();
        tokio::spawn(serving.serve(router.into_make_service()));
        server
    }

    fn https(&self, host: &str) -> String {
        format!("https://{host}:{}/token?tenant=hidden", self.address.port())
    }
}

#[tokio::test]
async fn a_server_is_trusted_by_the_bundle_or_by_the_object_that_is_named() {
    let authority = Authority::new();
    let server = Server::start_tls(config(authority.sign("127.0.0.1", |_| {}))).await;
    let world = World::new();
    world.objects.secret("ca", &[("ca.crt", &authority.pem())]);
    world.objects.config_map("ca", &[("ca.crt", &authority.pem())]);
    for tls in [
        json!({"caBundle": authority.bundle()}),
        json!({"caRef": {"kind": "Secret", "name": "ca", "key": "ca.crt"}}),
        json!({"caRef": {"kind": "ConfigMap", "name": "ca", "key": "ca.crt"}}),
    ] {
        assert_token(world.fetch(&cache(&server.https("127.0.0.1"), json!({"tls": tls}))).await);
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_right_is_told_with_what_would_help() {
    let authority = Authority::new();
    let past = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let future = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    };
    let right = Server::start_tls(config(authority.sign("127.0.0.1", |_| {}))).await;
    let named = Server::start_tls(config(authority.sign("id.internal", |_| {}))).await;
    let old = Server::start_tls(config(authority.sign("127.0.0.1", past))).await;
    let early = Server::start_tls(config(authority.sign("127.0.0.1", future))).await;
    let trusted = json!({"tls": {"caBundle": authority.bundle()}});
    let other = json!({"tls": {"caBundle": Authority::new().bundle()}});
    for (server, change, words) in [
        (&right, json!({}), vec!["tls.caBundle or tls.caRef"]),
        (&right, other, vec!["not signed by a trusted CA", "tls.caBundle or tls.caRef"]),
        (&named, trusted.clone(), vec!["is for id.internal, not for 127.0.0.1", "tls.serverName"]),
        (&old, trusted.clone(), vec!["expired at 2021-01-01T00:00:00Z"]),
        (&early, trusted, vec!["not valid before 2090-01-01T00:00:00Z"]),
    ] {
        let fetched = World::new().fetch(&cache(&server.https("127.0.0.1"), change)).await;
        assert_failed(fetched, Reason::TlsFailed, &words);
        assert!(server.seen().is_empty());
    }
    let plain = Server::start(token).await;
    let fetched =
        World::new().fetch(&cache(&plain.https("127.0.0.1"), json!({"tls": {"caBundle": authority.bundle()}}))).await;
    assert_failed(fetched, Reason::TlsFailed, &[&plain.address.to_string(), "does not speak TLS"]);
}

/// Serves with a certificate that rustls itself would not load.
fn unchecked(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> ServerConfig {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
    let certificate = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(certificate))
}

#[tokio::test]
async fn a_certificate_that_is_not_a_servers_is_told_by_what_it_is() {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let ca_key = PrivateKeyDer::Pkcs8(ca.key().serialize_der().into());
    let itself = Server::start_tls(unchecked(vec![ca.der().clone()], &ca_key)).await;

    let authority = Authority::new();
    let nameless = |params: &mut CertificateParams| params.subject_alt_names.clear();
    let nameless = Server::start_tls(config(authority.sign("127.0.0.1", nameless))).await;
    let clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    };
    let clients = Server::start_tls(config(authority.sign("127.0.0.1", clients))).await;

    let pem = |name: &str| std::fs::read(format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let leaf = CertificateDer::from_pem_slice(&pem("x509-v1.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&pem("x509-v1-key.pem")).unwrap();
    let first_version = Server::start_tls(unchecked(vec![leaf], &key)).await;
    let old_authority = BASE64_STANDARD.encode(pem("x509-v1-ca.pem"));

    let trusting = |bundle: String| json!({"tls": {"caBundle": bundle}});
    let named = json!({"tls": {"caBundle": authority.bundle(), "serverName": "id.internal"}});
    for (server, change, words, not) in [
        (
            &itself,
            trusting(BASE64_STANDARD.encode(ca.pem())),
            vec!["is a CA certificate", "basicConstraints=CA:FALSE"],
            "CaUsed",
        ),
        (
            &nameless,
            trusting(authority.bundle()),
            vec!["no subjectAltName", "subjectAltName=IP:127.0.0.1"],
            "tls.serverName",
        ),
        (&nameless, named, vec!["no subjectAltName", "subjectAltName=DNS:id.internal"], "tls.serverName"),
        (&clients, trusting(authority.bundle()), vec!["extendedKeyUsage", "serverAuth"], "InvalidPurpose"),
        (&first_version, trusting(old_authority), vec!["X.509 version", "version 3", "subjectAltName"], "Unsupported"),
    ] {
        let fetched = World::new().fetch(&cache(&server.https("127.0.0.1"), change)).await;
        let failure = assert_failed(fetched, Reason::TlsFailed, &words);
        assert!(!failure.message.contains(not), "{failure}");
        assert!(server.seen().is_empty());
    }
}

#[tokio::test]
async fn certificates_are_read_as_people_paste_them() {
    let [authority, other] = [Authority::new(), Authority::new()];
    let server = Server::start_tls(config(authority.sign("127.0.0.1", |_| {}))).await;
    let world = World::new();
    let [own, other] = [authority.pem(), other.pem()].map(|pem| pem.trim().replace('\r', ""));
    let indented = own.lines().map(|line| format!("    {line}  ")).collect::<Vec<_>>().join("\n");
    for pem in [
        format!("{other}{own}"),
        format!("{other}\n{own}\n\n"),
        format!("\u{feff}{other}\n\u{feff}{own}"),
        format!("{other}\n{own}").replace('\n', "\r\n"),
        format!("# other\nsubject=CN = other\n{other}\n# own\n{own}"),
        indented,
        own.replace('\n', "\\n"),
    ] {
        world.objects.config_map("ca", &[("ca.crt", &pem)]);
        let reference = json!({"kind": "ConfigMap", "name": "ca", "key": "ca.crt"});
        for tls in [json!({ "caRef": reference }), json!({"caBundle": BASE64_STANDARD.encode(&pem)})] {
            let fetched = world.fetch(&cache(&server.https("127.0.0.1"), json!({"tls": tls}))).await;
            assert_eq!(fetched.map(|_| ()), Ok(()), "{pem}");
        }
    }
}

#[tokio::test]
async fn a_client_key_that_cannot_be_used_is_told_by_what_it_is() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("a client", |_| {});
    let server = Server::start_tls(config(authority.sign("127.0.0.1", |_| {}))).await;
    let world = World::new();
    let cache = cache(
        &server.https("127.0.0.1"),
        json!({"tls": {"caBundle": authority.bundle(), "clientCertRef": {"name": "cert"}}}),
    );
    for (key, words) in [
        (keys::ENCRYPTED, "encrypted"),
        (keys::ENCRYPTED_PKCS1, "openssl pkey"),
        (keys::OPENSSH, "ssh-keygen"),
        (keys::RSA_PUBLIC, "is a public key"),
        (keys::CERTIFICATE, "is a certificate"),
    ] {
        world.objects.secret("cert", &[("tls.crt", &certificate.pem()), ("tls.key", key)]);
        let wanted = ["Secret b/cert, key tls.key: the value", words];
        assert_failed(world.fetch(&cache).await, Reason::InvalidSpec, &wanted);
    }
    for pasted in [
        key.serialize_pem().replace('\n', "\\n"),
        format!("\u{feff}  {}", key.serialize_pem().trim()),
        format!("{}{}", certificate.pem().trim(), key.serialize_pem()),
    ] {
        world.objects.secret("cert", &[("tls.crt", &certificate.pem()), ("tls.key", &pasted)]);
        assert_token(world.fetch(&cache).await);
    }
}

#[tokio::test]
async fn a_rotated_authority_takes_effect_at_the_next_fetch() {
    let [old, new] = [Authority::new(), Authority::new()];
    let server = Server::start_tls(config(new.sign("127.0.0.1", |_| {}))).await;
    let world = World::new();
    let fetcher = world.fetcher();
    let tls = json!({"caRef": {"kind": "ConfigMap", "name": "ca", "key": "ca.crt"}});
    let cache = cache(&server.https("127.0.0.1"), json!({"tls": tls}));
    world.objects.config_map("ca", &[("ca.crt", &old.pem())]);
    assert_failed(fetcher.fetch(&cache).await, Reason::TlsFailed, &[]);
    world.objects.config_map("ca", &[("ca.crt", &new.pem())]);
    assert_token(fetcher.fetch(&cache).await);
    world.objects.config_map("ca", &[("ca.crt", &old.pem())]);
    assert_failed(fetcher.fetch(&cache).await, Reason::TlsFailed, &[]);
}

#[tokio::test]
async fn a_server_name_is_asked_for_and_verified_and_the_host_stays_the_urls() {
    let authority = Authority::new();
    let (chain, key) = parts(authority.sign("id.internal", |_| {}));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    // It gives its certificate only to who asks for that name.
    let mut resolver = ResolvesServerCertUsingSni::new();
    resolver.add("id.internal", CertifiedKey::new(chain, key)).unwrap();
    let server =
        Server::start_tls(ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver))).await;
    let world = World { lookup: names(&[("id.example.com", &[&["127.0.0.1"]])]), ..World::new() };
    let port = server.address.port();
    for host in ["id.example.com", "127.0.0.1"] {
        let tls = json!({"caBundle": authority.bundle(), "serverName": "ID.internal"});
        assert_token(world.fetch(&cache(&server.https(host), json!({"tls": tls}))).await);
        let seen = server.seen().pop().unwrap();
        assert_eq!(
            (seen.header(header::HOST), seen.target.as_str()),
            (&*format!("{host}:{port}"), "/token?tenant=hidden")
        );
    }
    let tls = json!({"caBundle": authority.bundle(), "serverName": "other.internal"});
    let fetched = world.fetch(&cache(&server.https("id.example.com"), json!({"tls": tls}))).await;
    assert_failed(fetched, Reason::TlsFailed, &[]);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_wants_one() {
    let [authority, stranger] = [Authority::new(), Authority::new()];
    let (chain, key) = parts(authority.sign("127.0.0.1", |_| {}));
    let verifier = WebPkiClientVerifier::builder(Arc::new(authority.roots())).build().unwrap();
    let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
    let server = Server::start_tls(config).await;
    let world = World::new();
    let fetcher = world.fetcher();
    let put = |certificate: &rcgen::Certificate, key: &KeyPair| {
        world.objects.secret("cert", &[("tls.crt", &certificate.pem()), ("tls.key", &key.serialize_pem())]);
    };
    let with = |tls: Value| cache(&server.https("127.0.0.1"), json!({"tls": tls}));
    let without = with(json!({"caBundle": authority.bundle()}));
    let cache = with(json!({"caBundle": authority.bundle(), "clientCertRef": {"name": "cert"}}));

    assert_failed(
        fetcher.fetch(&without).await,
        Reason::TlsFailed,
        &["wants a client certificate", "tls.clientCertRef"],
    );
    let (certificate, key) = authority.sign("a client", |_| {});
    put(&certificate, &key);
    assert_token(fetcher.fetch(&cache).await);
    let (other, other_key) = stranger.sign("a client", |_| {});
    put(&other, &other_key);
    assert_failed(
        fetcher.fetch(&cache).await,
        Reason::TlsFailed,
        &["refused the client certificate", "tls.clientCertRef"],
    );
    put(&certificate, &other_key);
    assert_failed(fetcher.fetch(&cache).await, Reason::InvalidSpec, &["Secret b/cert", "tls.key is not the key"]);
    world.objects.secret("cert", &[("tls.crt", "x"), ("tls.key", "y")]);
    assert_failed(fetcher.fetch(&cache).await, Reason::InvalidSpec, &["Secret b/cert, key tls.crt", "no certificate"]);
}

/// A proxy that opens tunnels to whoever shows the right password, always to one address, and keeps what was asked.
async fn proxy(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let keep = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let password = BASE64_STANDARD.encode("user:pass w\u{f6}rd");
            let welcome =
                head.to_lowercase().contains(&format!("proxy-authorization: basic {password}").to_lowercase());
            keep.lock().push(head.lines().next().unwrap().to_owned());
            if welcome {
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            } else {
                client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
            }
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_proxy_resolves_the_name_and_tls_goes_through_it_to_the_server() {
    let authority = Authority::new();
    let server = Server::start_tls(config(authority.sign("id.example.com", |_| {}))).await;
    let (address, asked) = proxy(server.address).await;
    let world = World::new();
    let fetcher = world.fetcher();
    let change = json!({
        "tls": {"caBundle": authority.bundle()},
        "proxy": {"url": format!("http://{address}"), "credentialsRef": {"name": "proxy"}},
    });
    // The name is unknown here: only the proxy can reach it.
    let cache = cache("https://id.example.com/token", change);
    world.objects.secret("proxy", &[("username", "user\n"), ("password", "pass w\u{f6}rd\r\n")]);
    assert_token(fetcher.fetch(&cache).await);
    assert_eq!(*asked.lock(), ["CONNECT id.example.com:443 HTTP/1.1"]);
    let seen = server.seen().pop().unwrap();
    assert_eq!(seen.header(header::PROXY_AUTHORIZATION), "", "the proxy's password is not the server's");

    world.objects.secret("proxy", &[("username", "user"), ("password", "wrong")]);
    let failure = assert_failed(
        fetcher.fetch(&cache).await,
        Reason::Rejected,
        &["id.example.com:443 through the proxy", &address.to_string(), "see proxy.credentialsRef"],
    );
    assert!(!failure.message.contains("wrong"), "{failure}");
}

#[tokio::test]
async fn a_proxy_of_plain_requests_that_wants_a_password_is_told_as_the_proxy() {
    let proxy = Server::start(|_| answer(407, "")).await;
    let change = json!({"proxy": {"url": format!("http://{}", proxy.address)}});
    let fetched = World::new().fetch(&cache("http://id.example.com/token", change)).await;
    assert_failed(fetched, Reason::Rejected, &["through the proxy", "answered 407", "Check proxy.credentialsRef"]);
    let fetched = World::new().fetch(&cache(&proxy.url(), json!({}))).await;
    let failure = assert_failed(fetched, Reason::Rejected, &["answered 407"]);
    assert!(!failure.message.contains("credentialsRef"), "{failure}");
}
