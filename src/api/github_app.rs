//! The `githubApp` source.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::oauth2::{Proxy, SecretKeyRef, Tls};

/// An installation access token of a GitHub App, on github.com or GitHub Enterprise Server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.tls) && has(self.tls.serverName) && has(self.proxy))").message("tls.serverName cannot be combined with proxy"))]
#[serde(rename_all = "camelCase")]
pub struct GitHubApp {
    /// App ID, from the settings of the App.
    #[schemars(range(min = 1))]
    pub app_id: i64,

    /// Installation ID: the number at the end of the installation's URL.
    #[schemars(range(min = 1))]
    pub installation_id: i64,

    /// The App's private key in PEM, in a Secret with the label tokencache.dev/source: "true".
    pub private_key_ref: SecretKeyRef,

    /// Repositories that the token can access: names without the owner. Default: all repositories of the installation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500), inner(length(min = 1, max = 100), regex(pattern = r"^[A-Za-z0-9._-]+$")))]
    pub repositories: Vec<String>,

    /// Permissions of the token: maps each permission to `read`, `write` or `admin`. Default: all permissions of the
    /// installation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 100))]
    #[x_kube(validation = Rule::new("self.all(key, self[key] in ['read', 'write', 'admin'])").message("each permission must be read, write or admin, as in contents: read"))]
    pub permissions: BTreeMap<String, String>,

    /// API URL. Default `https://api.github.com`; for GitHub Enterprise Server `https://HOST/api/v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^@#?\s]+$"))]
    pub api_url: Option<String>,

    /// Settings of the TLS connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// An HTTP proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

impl GitHubApp {
    /// The API, without a slash at its end.
    #[must_use]
    pub fn api_url(&self) -> &str {
        self.api_url.as_deref().unwrap_or("https://api.github.com").trim_end_matches('/')
    }
}
