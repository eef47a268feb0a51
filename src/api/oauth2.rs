//! The `oauth2` source, and what all sources that speak HTTP take.

mod grants;

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::grants::{Assertion, ClientAuth, Grant, ServiceAccountRef, SigningAlgorithm, TokenSource};
use super::object_name;

/// The grant of a rule, with its default.
macro_rules! grant {
    () => {
        "(has(self.grant) ? self.grant : 'ClientCredentials')"
    };
}

/// The client authentication of a rule, with its default.
macro_rules! auth {
    () => {
        "(has(self.clientAuth) ? self.clientAuth : (has(self.grant) && self.grant == 'JwtBearer' ? 'None' : 'Basic'))"
    };
}

/// An OAuth 2.0 token endpoint (RFC 6749).
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!(has(self.clientId) && has(self.clientIdRef))").message("exactly one of clientId and clientIdRef must be set: remove one of them"),
    validation = Rule::new(concat!("has(self.clientId) || has(self.clientIdRef) || (", auth!(), " == 'None' && (", grant!(), " == 'TokenExchange' || (", grant!(), " == 'JwtBearer' && has(self.assertion) && has(self.assertion.issuer))))")).message("exactly one of clientId and clientIdRef must be set; only TokenExchange with clientAuth None, and JwtBearer with assertion.issuer and no clientAuth, do without"),
    validation = Rule::new(concat!("has(self.clientSecretRef) || !(", auth!(), " in ['Basic', 'Post', 'ClientSecretJwt'])")).message("clientSecretRef must be set: clientAuth Basic (the default), Post and ClientSecretJwt need it; other ways to authenticate are PrivateKeyJwt and MutualTls"),
    validation = Rule::new(concat!("!has(self.clientSecretRef) || ", auth!(), " in ['Basic', 'Post', 'ClientSecretJwt']")).message("clientSecretRef is used by clientAuth Basic, Post and ClientSecretJwt only: remove it, or set clientAuth to one of these"),
    validation = Rule::new(concat!("!(", grant!(), " == 'ClientCredentials' && ", auth!(), " == 'None')")).message("clientAuth must not be None with the grant ClientCredentials, which is the client's authentication and nothing else (RFC 6749 §4.4)"),
    validation = Rule::new(concat!("has(self.refreshTokenRef) == (", grant!(), " == 'RefreshToken')")).message("refreshTokenRef must be set with the grant RefreshToken, and only with it"),
    validation = Rule::new(concat!("has(self.subjectToken) == (", grant!(), " == 'TokenExchange')")).message("subjectToken must be set with the grant TokenExchange, and only with it"),
    validation = Rule::new(concat!(grant!(), " == 'TokenExchange' || !(has(self.actorToken) || has(self.subjectTokenType) || has(self.actorTokenType) || has(self.requestedTokenType))")).message("actorToken, subjectTokenType, actorTokenType and requestedTokenType belong to the grant TokenExchange: set grant to it, or remove them"),
    validation = Rule::new("has(self.actorToken) || !has(self.actorTokenType)").message("actorTokenType is the type of actorToken: set that, too, or remove actorTokenType"),
    validation = Rule::new(concat!("!(", grant!(), " == 'JwtBearer' || ", auth!(), " == 'PrivateKeyJwt') || (has(self.assertion) && has(self.assertion.privateKeyRef))")).message("assertion.privateKeyRef must be set: the grant JwtBearer and clientAuth PrivateKeyJwt sign with it"),
    validation = Rule::new(concat!("!has(self.assertion) || ", grant!(), " == 'JwtBearer' || ", auth!(), " in ['PrivateKeyJwt', 'ClientSecretJwt']")).message("assertion is used by the grant JwtBearer, and by clientAuth PrivateKeyJwt and ClientSecretJwt: set one of these, or remove it"),
    validation = Rule::new(concat!("!has(self.assertion) || ", grant!(), " == 'JwtBearer' || !(has(self.assertion.issuer) || has(self.assertion.subject))")).message("assertion.issuer and assertion.subject belong to the grant JwtBearer: by its own assertion, a client is both (RFC 7523 §3)"),
    validation = Rule::new(concat!("!has(self.assertion) || ", grant!(), " == 'JwtBearer' || ", auth!(), " == 'PrivateKeyJwt' || !(has(self.assertion.privateKeyRef) || has(self.assertion.algorithm) || has(self.assertion.certificateRef))")).message("assertion.privateKeyRef, algorithm and certificateRef are not used with clientAuth ClientSecretJwt, which signs by HS256 with the client's secret: remove them, or set clientAuth to PrivateKeyJwt"),
    validation = Rule::new(concat!(auth!(), " != 'MutualTls' || (has(self.tls) && has(self.tls.clientCertRef))")).message("tls.clientCertRef must be set: clientAuth MutualTls authenticates with that certificate"),
    validation = Rule::new(concat!(auth!(), " != 'MutualTls' || self.tokenUrl.startsWith('https://')")).message("tokenUrl must be an https URL with clientAuth MutualTls"),
    validation = Rule::new("!(has(self.tls) && has(self.tls.serverName) && has(self.proxy))").message("tls.serverName cannot be combined with proxy"),
)]
#[serde(rename_all = "camelCase")]
pub struct OAuth2 {
    /// The token endpoint (RFC 6749 §3.2). No user name, password or fragment.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#\s/?\\]+([/?][^#\s]*)?$"))]
    pub token_url: String,

    /// The grant. Default ClientCredentials (RFC 6749 §4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,

    /// Client ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub client_id: Option<String>,

    /// Client ID from a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_ref: Option<SecretKeyRef>,

    /// Client secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<SecretKeyRef>,

    /// How the client authenticates. Default Basic; with the grant JwtBearer none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,

    /// Requested scopes (RFC 6749 §3.3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024), regex(pattern = r"^[\x21\x23-\x5B\x5D-\x7E]+$")))]
    pub scopes: Vec<String>,

    /// Parameter `audience`, which some providers require (RFC 8693 §2.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub audience: Option<String>,

    /// Resource indicators (RFC 8707 §2): absolute URIs without a fragment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 2048), regex(pattern = r"^[A-Za-z][A-Za-z0-9+.-]*:[^#\s]+$")))]
    pub resource: Vec<String>,

    /// Additional parameters of the request. Parameters of the grant itself are rejected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(key, !(key in ['grant_type', 'client_id', 'client_secret', 'client_assertion', 'client_assertion_type', 'scope', 'audience', 'resource', 'refresh_token', 'assertion', 'subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type']))").message("grant_type, client_id, client_secret, client_assertion, client_assertion_type, scope, audience, resource, refresh_token, assertion, subject_token, actor_token and their types have fields of their own"))]
    pub extra_params: BTreeMap<String, String>,

    /// Refresh token of the grant RefreshToken (RFC 6749 §6). It is only read: if the server rotates it, the new one is
    /// stored in the Secret tokencache-NAME-state. Do not share it between TokenCaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token_ref: Option<SecretKeyRef>,

    /// Assertion (RFC 7523) for the grant JwtBearer, for clientAuth PrivateKeyJwt, or for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assertion: Option<Box<Assertion>>,

    /// The token to exchange with the grant TokenExchange (RFC 8693 §2.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_token: Option<Box<TokenSource>>,

    /// Its type, a URI. Default urn:ietf:params:oauth:token-type:access_token; of a service account
    /// urn:ietf:params:oauth:token-type:jwt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$"))]
    pub subject_token_type: Option<String>,

    /// The actor token: identifies the party acting on behalf of the subject (RFC 8693 §2.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_token: Option<Box<TokenSource>>,

    /// Its type, a URI, with the same default as subjectTokenType.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$"))]
    pub actor_token_type: Option<String>,

    /// The requested token type, a URI. By default the server chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$"))]
    pub requested_token_type: Option<String>,

    /// Settings of the TLS connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// An HTTP proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

impl OAuth2 {
    /// The grant.
    #[must_use]
    pub fn grant(&self) -> Grant {
        self.grant.unwrap_or_default()
    }

    /// How the client authenticates.
    #[must_use]
    pub fn client_auth(&self) -> ClientAuth {
        self.client_auth.unwrap_or(match self.grant() {
            Grant::JwtBearer => ClientAuth::None,
            Grant::ClientCredentials | Grant::RefreshToken | Grant::TokenExchange => ClientAuth::Basic,
        })
    }

    /// Whether a client that does not authenticate is named by `client_id`. With JwtBearer the assertion says it all
    /// (RFC 7521 §4.1), unless clientAuth None is set.
    #[must_use]
    pub fn names_client(&self) -> bool {
        self.client_auth.is_some() || self.grant() != Grant::JwtBearer
    }
}

/// One key of a Secret in the TokenCache's namespace. The Secret must have the label tokencache.dev/source: "true".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::KEY_PATTERN))]
    pub key: String,
}

/// A Secret in the TokenCache's namespace. It must have the label tokencache.dev/source: "true".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub name: String,
}

/// Settings of a TLS connection. The server's certificate is always verified.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.caBundle) && has(self.caRef))").message("caBundle and caRef cannot both be set"))]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// CA certificates to trust instead of the system's: base64-encoded PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 524_288))]
    pub ca_bundle: Option<String>,

    /// CA certificates in PEM from a Secret or a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,

    /// Client certificate: a Secret of type kubernetes.io/tls with the label tokencache.dev/source: "true".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_ref: Option<SecretRef>,

    /// Name in the server's certificate, if it is not the host of the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$"))]
    pub server_name: Option<String>,
}

/// One key of a Secret or ConfigMap that holds certificates in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// Secret or ConfigMap.
    pub kind: CaKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::KEY_PATTERN))]
    pub key: String,
}

/// Kind of the object that holds CA certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CaKind {
    /// A Secret, which must have the label tokencache.dev/source: "true".
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// An HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// URL of the proxy, http or https, without user name and password.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#\s]+$"))]
    pub url: String,

    /// User name and password: a Secret of type kubernetes.io/basic-auth with the label tokencache.dev/source: "true".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<SecretRef>,
}
