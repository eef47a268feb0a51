//! The `oauth2` source, and what all sources that speak HTTP take.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An OAuth 2.0 token endpoint (RFC 6749).
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.clientId) != has(self.clientIdRef)").message("exactly one of clientId and clientIdRef must be set"),
    validation = Rule::new("has(self.clientSecretRef)").message("clientSecretRef must be set: the grant ClientCredentials authenticates with it"),
    validation = Rule::new("!(has(self.tls) && has(self.tls.serverName) && has(self.proxy))").message("tls.serverName cannot be combined with proxy"),
)]
#[serde(rename_all = "camelCase")]
pub struct OAuth2 {
    /// The token endpoint (RFC 6749 §3.2). No user name, password or fragment.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#\s]+$"))]
    pub token_url: String,

    /// The grant. Default ClientCredentials (RFC 6749 §4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,

    /// The client's identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub client_id: Option<String>,

    /// The client's identifier, from a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_ref: Option<SecretKeyRef>,

    /// The client's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<SecretKeyRef>,

    /// How the client authenticates (RFC 6749 §2.3.1). Default Basic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,

    /// Scopes asked for (RFC 6749 §3.3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024), regex(pattern = r"^[\x21\x23-\x5B\x5D-\x7E]+$")))]
    pub scopes: Vec<String>,

    /// The parameter `audience`, as some providers want it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub audience: Option<String>,

    /// Resource indicators (RFC 8707 §2): absolute URIs without a fragment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 2048), regex(pattern = r"^[A-Za-z][A-Za-z0-9+.-]*:[^#\s]+$")))]
    pub resource: Vec<String>,

    /// Further parameters of the request. The grant's own are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(key, !(key in ['grant_type', 'client_id', 'client_secret', 'scope', 'audience', 'resource']))").message("grant_type, client_id, client_secret, scope, audience and resource have fields of their own"))]
    pub extra_params: BTreeMap<String, String>,

    /// Settings of the TLS connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// An HTTP proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

impl OAuth2 {
    /// How the client authenticates.
    #[must_use]
    pub fn client_auth(&self) -> ClientAuth {
        self.client_auth.unwrap_or_default()
    }
}

/// The grant by which a token is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Grant {
    /// RFC 6749 §4.4.
    #[default]
    ClientCredentials,
}

/// How a client authenticates at the token endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// HTTP Basic (RFC 6749 §2.3.1).
    #[default]
    Basic,
    /// `client_id` and `client_secret` in the form (RFC 6749 §2.3.1).
    Post,
}

/// One key of a Secret in the TokenCache's namespace. The Secret must carry the label tokencache.dev/source: "true".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A whole Secret in the TokenCache's namespace. It must carry the label tokencache.dev/source: "true".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Settings of a TLS connection. The server's certificate is always verified.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.caBundle) && has(self.caRef))").message("caBundle and caRef cannot both be set"))]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Certificates of the authorities to trust instead of the system's: PEM in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 524_288))]
    pub ca_bundle: Option<String>,

    /// The same, in PEM, from a Secret or a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,

    /// A client certificate: a Secret of type kubernetes.io/tls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_ref: Option<SecretRef>,

    /// The name that the server's certificate must bear, where it is not the URL's host.
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
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What holds the certificates of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CaKind {
    /// A Secret, which must carry the label tokencache.dev/source: "true".
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// An HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its URL, http or https, without user name and password.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#\s]+$"))]
    pub url: String,

    /// User name and password: a Secret of type kubernetes.io/basic-auth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<SecretRef>,
}
