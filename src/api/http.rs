//! The `http` source: any API that gives a credential for a request.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::oauth2::{Proxy, SecretKeyRef, Tls};

/// Any API that returns a credential for an HTTP request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.form), has(self.body), has(self.json)].filter(set, set).size() <= 1").message("at most one of form, body and json can be set"),
    validation = Rule::new("!(has(self.tls) && has(self.tls.serverName) && has(self.proxy))").message("tls.serverName cannot be combined with proxy"),
)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// HTTP method. Default POST with form, body or json, otherwise GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,

    /// The URL. No user name, password or fragment.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#\s/?\\]+([/?][^#\s]*)?$"))]
    pub url: String,

    /// Headers of the request. Headers that the HTTP client sets itself are rejected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub headers: Vec<Header>,

    /// Query parameters. Prefer a header or the body for secret values: servers log URLs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub query: Vec<Parameter>,

    /// Form parameters, sent as application/x-www-form-urlencoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub form: Option<Vec<Parameter>>,

    /// The body. Set its type with the header Content-Type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Content>,

    /// JSON body: a CEL expression over `secrets`, such as {"role": "ci", "key": secrets.key}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub json: Option<String>,

    /// Values that the expressions of the request can read as `secrets`: each name refers to a key of a Secret with the label
    /// tokencache.dev/source: "true".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub secrets: BTreeMap<String, SecretKeyRef>,

    /// Status codes of a successful response. Default 200 to 299.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50), inner(range(min = 200, max = 599)))]
    pub success_status: Option<Vec<u16>>,

    /// Selects the credential in the response, with CEL over `response` (status, headers, body, json) and `now`.
    pub result: HttpResult,

    /// Settings of the TLS connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// An HTTP proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

impl Http {
    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        let has_body = self.form.is_some() || self.body.is_some() || self.json.is_some();
        self.method.unwrap_or(if has_body { Method::Post } else { Method::Get })
    }

    /// Whether a status means success.
    #[must_use]
    pub fn is_success(&self, status: u16) -> bool {
        self.success_status.as_ref().map_or((200..300).contains(&status), |success| success.contains(&status))
    }
}

/// A method of HTTP (RFC 9110 §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// RFC 9110 §9.3.1.
    Get,
    /// RFC 9110 §9.3.3.
    Post,
    /// RFC 9110 §9.3.4.
    Put,
    /// RFC 5789.
    Patch,
    /// RFC 9110 §9.3.5.
    Delete,
}

/// A header of the request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    #[x_kube(validation = Rule::new("!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'upgrade', 'te', 'trailer', 'expect', 'proxy-authorization', 'proxy-connection'])").message("is a header that the connection sets itself: leave it out (for a proxy's password use proxy.credentialsRef, for another host change url)"))]
    pub name: String,

    /// Value.
    #[serde(flatten)]
    pub content: Content,
}

/// A parameter of the query or of the form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,

    /// Value.
    #[serde(flatten)]
    pub content: Content,
}

/// Text: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.value), has(self.valueRef), has(self.expression)].exists_one(set, set)").message("exactly one of value, valueRef and expression must be set"))]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Literal text. Do not put secrets here: anyone who can read the TokenCache can read this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub value: Option<String>,

    /// Text from a key of a Secret with the label tokencache.dev/source: "true".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_ref: Option<SecretKeyRef>,

    /// Text from a CEL expression over `secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub expression: Option<String>,
}

/// Selects the credential in the response. CEL variables: `response`, with `response.status` (int), `response.headers` (map
/// by names in lower case), `response.body` (string) and `response.json`, and `now`, the time of the request.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.token) || has(self.values)").message("token or values must be set: they say what of the response is the credential"))]
#[serde(rename_all = "camelCase")]
pub struct HttpResult {
    /// The token: an expression that returns a non-empty string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub token: Option<String>,

    /// The expiry: an expression that returns a timestamp, an RFC 3339 or HTTP date, a Unix time, or null if the response
    /// contains none. Default: expires_in or expires_at of a JSON object, or the exp claim of a JWT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub expires_at: Option<String>,

    /// Additional values: maps each name to an expression that returns a string, a number or a boolean.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub values: BTreeMap<String, String>,
}
