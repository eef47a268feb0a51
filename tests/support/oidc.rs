//! npm's `oidc-provider`, a certified OpenID provider, as a process of its own (`tests/oidc-provider/server.mjs`).

use std::{path::Path, process::Stdio};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::{Value, json};
use tokencache::api::names::LABEL_SOURCE;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

use super::{Namespace, within};

macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../keys/", $name, ".pem"))
    };
}

/// A running provider. Dropping it ends it.
pub struct OidcProvider {
    /// Its URL, which is its issuer.
    pub issuer: String,
    secret: String,
    authority: CertifiedIssuer<'static, KeyPair>,
    self_signed: (String, String),
    http: reqwest::Client,
    _child: Child,
}

/// What became of a client's refresh tokens.
#[derive(Debug)]
pub struct Family {
    /// The newest one.
    pub newest: String,
    /// When that was issued, in milliseconds of Unix time.
    pub at: u64,
    /// How many were issued.
    pub issued: u64,
    /// How many requests of the client were refused.
    pub refused: u64,
    /// How many requests of anybody are being answered.
    pub inside: u64,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl OidcProvider {
    /// Starts it. `cluster` is for the keys by which service accounts' tokens are verified.
    pub async fn start(cluster: &kube::Client) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = Command::new(root.join("hack/oidc-provider.sh")).stderr(Stdio::inherit()).output();
        let installed = within("the provider is installed", installed).await.expect("hack/oidc-provider.sh");
        assert!(installed.status.success(), "hack/oidc-provider.sh failed");
        let modules = String::from_utf8(installed.stdout).expect("a path");

        let mut params = named("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let server = server.signed_by(&key, &authority).expect("a certificate");
        let self_signed_key = KeyPair::generate().expect("a key");
        let self_signed = named("self-signed").self_signed(&self_signed_key).expect("a certificate");

        let request = http::Request::get("/openid/v1/jwks").body(Vec::new()).expect("a request");
        let jwks = cluster.request_text(request).await.expect("the cluster's keys");
        // What a Basic credential has to encode.
        let secret = format!("s+{:016x}/%:&= {:016x}", rand::random::<u64>(), rand::random::<u64>());
        let settings = json!({
            "tls": {"key": key.serialize_pem(), "cert": server.pem(), "ca": authority.pem()},
            "selfSigned": self_signed.pem(), "secret": secret,
            "keys": {"rsa": key!("rsa-public"), "p256": key!("p256-public"), "ed25519": key!("ed25519-public")},
            "jwks": serde_json::from_str::<Value>(&jwks).expect("a JWK set"),
        });
        let mut child = Command::new("node")
            .arg(root.join("tests/oidc-provider/server.mjs"))
            .env("OIDC_PROVIDER_MODULES", modules.trim())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node is started");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(format!("{settings}\n").as_bytes()).await.expect("the settings are read");
        child.stdin = Some(input);
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = within("the provider listens", lines.next_line()).await.expect("its output").expect("a line");
        let told: Value = serde_json::from_str(&line).expect("JSON");
        let issuer = told["issuer"].as_str().expect("an issuer").to_owned();
        let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).expect("a certificate");
        // Node closes a connection that rests for 5 s, perhaps in the very moment in which it is used again.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).tls_certs_only([root]).build();
        let http = http.expect("a client");
        let self_signed = (self_signed.pem(), self_signed_key.serialize_pem());
        Self { issuer, secret, authority, self_signed, http, _child: child }
    }

    async fn ask(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.issuer)).send().await.expect("an answer");
        serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
    }

    /// What a person does in a browser: gives a client a refresh token.
    pub async fn sign_in(&self, client: &str) -> String {
        let answer = self.ask(&format!("/test/sign-in?client={client}")).await;
        answer["refresh_token"].as_str().expect("a token").to_owned()
    }

    /// What became of a client's refresh tokens.
    pub async fn family(&self, client: &str) -> Family {
        let state = self.ask(&format!("/test/state?client={client}")).await;
        let number = |name: &str| state[name].as_u64().expect("a number");
        Family {
            newest: state["newest"].as_str().expect("a token").to_owned(),
            at: number("at"),
            issued: number("issued"),
            refused: number("refused"),
            inside: number("inside"),
        }
    }

    /// A TokenCache that gets its token here.
    pub fn cache(&self, name: &str, settings: Value) -> Value {
        let mut oauth2 = json!({
            "tokenUrl": format!("{}/token", self.issuer),
            "tls": {"caBundle": BASE64_STANDARD.encode(self.authority.pem())},
        });
        super::manifests::merge(&mut oauth2, settings);
        json!({
            "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": name},
            "spec": {"fetch": {"oauth2": oauth2}, "retry": {"initialInterval": "10m", "maxInterval": "10m"}},
        })
    }

    /// Puts what its clients authenticate with into a namespace: the Secrets `client`, `keys`, and the certificates
    /// `cert-tls`, `cert-self-signed`, `cert-expired` and `cert-stranger`.
    pub async fn equip(&self, ns: &Namespace) {
        ns.create::<Secret>(opened("client", json!({"secret": self.secret, "wrong": "no secret of anybody"}))).await;
        let keys = json!({
            "rsa": key!("rsa"), "p256": key!("p256-sec1"), "ed25519": key!("ed25519"), "encrypted": key!("encrypted"),
            "public": key!("rsa-public"), "p384": key!("p384"), "text": "no key at all",
        });
        ns.create::<Secret>(opened("keys", keys)).await;
        let mut expired = named("tls-client");
        (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        for (name, params) in
            [("cert-tls", named("tls-client")), ("cert-expired", expired), ("cert-stranger", named("somebody-else"))]
        {
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
            ns.create::<Secret>(pair(name, &certificate.pem(), &key.serialize_pem())).await;
        }
        ns.create::<Secret>(pair("cert-self-signed", &self.self_signed.0, &self.self_signed.1)).await;
    }
}

fn pair(name: &str, certificate: &str, key: &str) -> Value {
    let mut secret = opened(name, json!({"tls.crt": certificate, "tls.key": key}));
    secret["type"] = json!("kubernetes.io/tls");
    secret
}

/// A Secret that its owner opened to TokenCaches.
pub fn opened(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": data,
        "metadata": {"name": name, "labels": {LABEL_SOURCE: "true"}},
    })
}
