//! What is particular to one connection: trusted authorities, client certificate, server name, proxy. Read from the
//! spec and the objects that it names, and turned into the HTTP library's types.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use url::Url;
use zeroize::Zeroizing;

use super::{Failure, pem, source_objects::Sources};
use crate::api::{
    oauth2::{Proxy, Tls},
    reason::Reason,
};

/// Settings of a connection that differ from the default's. Does not print.
#[derive(Default)]
pub(super) struct Settings {
    /// Trusted instead of the system's authorities: DER.
    roots: Option<Vec<CertificateDer<'static>>>,
    client: Option<ClientCertificate>,
    /// The name that the certificate must bear.
    pub(super) server_name: Option<String>,
    proxy: Option<HttpProxy>,
}

struct ClientCertificate {
    /// Certificate chain and key in PEM.
    pem: Zeroizing<Vec<u8>>,
    title: String,
}

struct HttpProxy {
    url: Url,
    /// User name and password.
    credentials: Option<(Zeroizing<String>, Zeroizing<String>)>,
}

impl Settings {
    /// Reads what the spec names.
    pub(super) async fn load(tls: Option<&Tls>, proxy: Option<&Proxy>, sources: &mut Sources) -> Result<Self, Failure> {
        let mut settings = Self::default();
        if let Some(tls) = tls {
            settings.roots = roots(tls, sources).await?;
            if let Some(reference) = &tls.client_cert_ref {
                let secret = sources.secret(&reference.name).await?;
                let certificate = secret.bytes("tls.crt")?.expose_secret();
                certificates(certificate).map_err(|why| secret.unusable("tls.crt", why))?;
                let key = secret.bytes("tls.key")?.expose_secret();
                if PrivateKeyDer::from_pem_slice(&pem::tidy(key)).is_err() {
                    return Err(secret.unusable("tls.key", pem::no_private_key(key)));
                }
                let pem = pem::tidy(&Zeroizing::new([certificate, b"\n", key].concat()));
                settings.client = Some(ClientCertificate { pem, title: secret.title().to_owned() });
            }
            settings.server_name.clone_from(&tls.server_name);
        }
        if let Some(proxy) = proxy {
            let url = parse_url("proxy.url", &proxy.url)?;
            let credentials = match &proxy.credentials_ref {
                None => None,
                Some(reference) => {
                    let secret = sources.secret_of_proxy(&reference.name).await?;
                    let text = |key| secret.credential(key).map(|text| Zeroizing::new(text.expose_secret().to_owned()));
                    Some((text("username")?, text("password")?))
                }
            };
            settings.proxy = Some(HttpProxy { url, credentials });
        }
        Ok(settings)
    }

    /// The proxy's URL.
    pub(super) fn proxy(&self) -> Option<&Url> {
        self.proxy.as_ref().map(|proxy| &proxy.url)
    }

    /// A number for all of it, so that a changed certificate or password gets a client of its own.
    pub(super) fn fingerprint(&self, url: &Url) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: Option<&[u8]>| {
            hash.update(bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_be_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        for root in self.roots.iter().flatten() {
            part(Some(root));
        }
        part(None);
        part(self.client.as_ref().map(|client| client.pem.as_slice()));
        part(self.server_name.as_deref().map(str::as_bytes));
        // Its client resolves the name to this very host.
        part(self.server_name.as_ref().and_then(|_| url.host_str()).map(str::as_bytes));
        part(self.proxy().map(|url| url.as_str().as_bytes()));
        let credentials = self.proxy.as_ref().and_then(|proxy| proxy.credentials.as_ref());
        part(credentials.map(|(user, _)| user.as_bytes()));
        part(credentials.map(|(_, password)| password.as_bytes()));
        // Without TLS no authority is needed, see `apply`.
        part(Some(&[u8::from(self.speaks_tls(url))]));
        hash.finalize().into()
    }

    fn speaks_tls(&self, url: &Url) -> bool {
        url.scheme() == "https" || self.proxy().is_some_and(|proxy| proxy.scheme() == "https")
    }

    /// Puts it all into a client.
    pub(super) fn apply(&self, url: &Url, mut builder: ClientBuilder) -> Result<ClientBuilder, Failure> {
        if let Some(roots) = &self.roots {
            let roots: Result<Vec<_>, _> = roots.iter().map(|root| Certificate::from_der(root)).collect();
            builder = builder
                .tls_certs_only(roots.map_err(|_| unusable("tls", "a certificate of an authority is not valid"))?);
        } else if !self.speaks_tls(url) {
            // The system's are read at once, and a system that has none must not stop a plain connection.
            builder = builder.tls_certs_only([]);
        }
        if let Some(client) = &self.client {
            let identity = Identity::from_pem(&client.pem)
                .map_err(|_| unusable(&client.title, "tls.crt and tls.key cannot be read"))?;
            builder = builder.identity(identity);
        }
        if let Some(proxy) = &self.proxy {
            let mut http =
                reqwest::Proxy::all(proxy.url.clone()).map_err(|_| unusable("proxy.url", "is not usable"))?;
            if let Some((user, password)) = &proxy.credentials {
                http = http.basic_auth(user, password);
            }
            builder = builder.proxy(http);
        }
        Ok(builder)
    }

    /// Why no client can be made of it.
    pub(super) fn not_applicable(&self, error: Option<&rustls::Error>) -> Failure {
        match (&self.client, error) {
            (Some(client), Some(rustls::Error::InconsistentKeys(_))) => {
                unusable(&client.title, "tls.key is not the key of the first certificate in tls.crt")
            }
            (Some(client), _) => unusable(&client.title, "tls.crt and tls.key make no usable client certificate"),
            (None, _) if self.roots.is_none() => Failure::new(
                Reason::TlsFailed,
                "no certificates of authorities are installed where tokencache runs: set tls.caBundle or tls.caRef",
            ),
            (None, _) => unusable("tls", "no client can be made of these settings"),
        }
    }
}

fn unusable(what: &str, why: &str) -> Failure {
    Failure::new(Reason::InvalidSpec, format!("{what}: {why}"))
}

/// A URL of the spec, which the CRD's rules have looked at.
pub(super) fn parse_url(field: &str, text: &str) -> Result<Url, Failure> {
    Url::parse(text).map_err(|error| unusable(field, &format!("is not a URL: {error}")))
}

async fn roots(tls: &Tls, sources: &mut Sources) -> Result<Option<Vec<CertificateDer<'static>>>, Failure> {
    if let Some(bundle) = &tls.ca_bundle {
        return decode_bundle(bundle).map(Some).map_err(|why| unusable("tls.caBundle", why));
    }
    let Some(reference) = &tls.ca_ref else { return Ok(None) };
    let (pem, title) = sources.certificates(reference).await?;
    certificates(&pem).map(Some).map_err(|why| unusable(&title, why))
}

/// Certificates of `tls.caBundle`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode_bundle(bundle: &str) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    // YAML breaks long lines.
    let compact: String = bundle.split_ascii_whitespace().collect();
    let pem = BASE64_STANDARD
        .decode(compact)
        .map_err(|_| "is not base64. Set it to PEM in base64, as printed by base64 -w0 ca.pem")?;
    certificates(&pem)
}

/// The certificates of a text in PEM that can be trusted, at least one. Others are passed over, as everywhere: one odd
/// authority in a system's bundle must not make the bundle useless.
fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem::tidy(text)).collect();
    let found = found.map_err(|_| pem::no_certificate(text))?;
    if found.is_empty() {
        return Err(pem::no_certificate(text));
    }
    let mut store = RootCertStore::empty();
    let usable: Vec<_> = found.into_iter().filter(|certificate| store.add(certificate.clone()).is_ok()).collect();
    if usable.is_empty() { Err("holds no certificate that is valid X.509") } else { Ok(usable) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn self_signed() -> String {
        rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn a_bundle_is_base64_of_pem_with_certificates() {
        let one = BASE64_STANDARD.encode(self_signed());
        let broken =
            one.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>().join("\n ");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (bundle, expected) in [
            (one, Ok(1)),
            (broken, Ok(1)),
            (BASE64_STANDARD.encode(self_signed() + &self_signed()), Ok(2)),
            (self_signed(), Err("base64")),
            (String::new(), Err("no certificate")),
            (BASE64_STANDARD.encode("hello"), Err("no certificate")),
            (BASE64_STANDARD.encode(key), Err("no certificate")),
            (BASE64_STANDARD.encode(garbage), Err("no certificate that is valid")),
            (BASE64_STANDARD.encode(self_signed() + garbage), Ok(1)),
        ] {
            match (decode_bundle(&bundle), expected) {
                (Ok(found), Ok(number)) => assert_eq!(found.len(), number),
                (Err(why), Err(wanted)) => assert!(why.contains(wanted), "{why}"),
                (found, expected) => assert_eq!(found.map(|found| found.len()), expected.map_err(|_| "")),
            }
        }
    }

    #[test]
    fn whatever_decides_a_connection_is_in_the_fingerprint() {
        let url: Url = "https://a/".parse().unwrap();
        let proxy = |url: &str, password: Option<&str>| {
            let credentials = password.map(|password| (Zeroizing::new("u".into()), Zeroizing::new(password.into())));
            Some(HttpProxy { url: url.parse().unwrap(), credentials })
        };
        let client = |pem: &str| Some(ClientCertificate { pem: Zeroizing::new(pem.into()), title: String::new() });
        let root = |byte: u8| Some(vec![CertificateDer::from(vec![byte])]);
        let name = |name: &str| Some(name.to_owned());
        let settings = [
            Settings::default(),
            Settings { roots: root(1), ..Settings::default() },
            Settings { roots: root(2), ..Settings::default() },
            Settings { roots: Some(vec![vec![1].into(), vec![2].into()]), ..Settings::default() },
            Settings { client: client("a"), ..Settings::default() },
            Settings { client: client("b"), ..Settings::default() },
            Settings { server_name: name("a"), ..Settings::default() },
            Settings { server_name: name("b"), ..Settings::default() },
            Settings { proxy: proxy("http://a", None), ..Settings::default() },
            Settings { proxy: proxy("http://b", None), ..Settings::default() },
            Settings { proxy: proxy("http://a", Some("x")), ..Settings::default() },
            Settings { proxy: proxy("http://a", Some("y")), ..Settings::default() },
        ];
        let prints: Vec<_> = settings.iter().map(|settings| settings.fingerprint(&url)).collect();
        for (index, print) in prints.iter().enumerate() {
            assert!(!prints[..index].contains(print), "{index}");
        }
        let other: Url = "https://b/".parse().unwrap();
        assert_eq!(
            settings[0].fingerprint(&url),
            settings[0].fingerprint(&other),
            "the default is shared by all hosts"
        );
        assert_ne!(settings[6].fingerprint(&url), settings[6].fingerprint(&other));
    }
}
