//! Grants, client authentication, and what they are made of.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::SecretKeyRef;
use crate::api::{Duration, object_name};

/// The OAuth 2.0 grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
pub enum Grant {
    /// Client credentials (RFC 6749 §4.4).
    #[default]
    ClientCredentials,
    /// A refresh token from a sign-in (RFC 6749 §6).
    RefreshToken,
    /// A signed assertion (RFC 7523 §2.1).
    JwtBearer,
    /// Exchange of a token for another one (RFC 8693).
    TokenExchange,
}

/// How a client authenticates at the token endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
pub enum ClientAuth {
    /// HTTP Basic (RFC 6749 §2.3.1).
    #[default]
    Basic,
    /// `client_id` and `client_secret` in the form (RFC 6749 §2.3.1).
    Post,
    /// An assertion signed by HS256 with the client's secret (RFC 7523 §2.2).
    ClientSecretJwt,
    /// An assertion signed with the client's private key (RFC 7523 §2.2).
    PrivateKeyJwt,
    /// The client certificate of the TLS connection (RFC 8705 §2).
    MutualTls,
    /// Not at all: a public client, named by `client_id` (RFC 6749 §2.1).
    None,
}

/// A signed assertion (RFC 7523 §3). Each has an `iat`, an `exp` and a `jti` of its own.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assertion {
    /// `iss` of the grant JwtBearer. Default: the client ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: Option<String>,

    /// `sub` of the grant JwtBearer: the subject of the token. Default: the issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub subject: Option<String>,

    /// `aud`. Default: tokenUrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub audience: Option<String>,

    /// From `iat` to `exp`, at most 1h. Default 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("must be from 1s to 1h"))]
    pub lifetime: Option<Duration>,

    /// `kid` of the header, by which the server finds the public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key_id: Option<String>,

    /// `alg` of the header. Default: RS256 with an RSA key, ES256 with one of the curve P-256, EdDSA with one of Ed25519.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<SigningAlgorithm>,

    /// The private key in PEM: PKCS#8, PKCS#1 or SEC1, not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key_ref: Option<SecretKeyRef>,

    /// A certificate in PEM, whose thumbprint goes into the header as `x5t#S256` (RFC 7515 §4.1.8). Entra ID requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ref: Option<SecretKeyRef>,

    /// Additional claims. iss, sub, aud, exp, iat and jti are rejected.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub claims: Map<String, Value>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

impl Assertion {
    /// From `iat` to `exp`.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime.unwrap_or(Duration::from_secs(120))
    }
}

/// How an assertion is signed (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
pub enum SigningAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Where a token comes from: exactly one of the two.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.secretRef) != has(self.serviceAccount)").message("exactly one of secretRef and serviceAccount must be set"))]
#[serde(rename_all = "camelCase")]
pub struct TokenSource {
    /// A Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,

    /// A service account, whose token is requested from the API server for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountRef>,
}

/// A ServiceAccount in the TokenCache's namespace. It must have the label tokencache.dev/source: "true" and list the audiences
/// in its annotation tokencache.dev/audiences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub name: String,

    /// Audiences of the token (`aud`), as the server requires them.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 2048)))]
    pub audiences: Vec<String>,
}
