//! `spec.fetch.serviceAccountToken`: tokens of a service account, issued by the API server.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, object_name};

/// A token of a ServiceAccount in the TokenCache's namespace (TokenRequest API). The ServiceAccount must have the label
/// tokencache.dev/source: "true" and list the audiences in its annotation tokencache.dev/audiences.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountToken {
    /// Name of the ServiceAccount.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub service_account_name: String,

    /// Audiences of the token. Default: the API server, for which the ServiceAccount's annotation must list
    /// kube-apiserver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 2048)))]
    pub audiences: Vec<String>,

    /// Requested lifetime of the token, at least 10m. Default 1h. The controller's flag --max-token-lifetime (24h) limits
    /// it, and the API server may choose another lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10m')").message("must be at least 10m, the shortest lifetime that Kubernetes issues; use spec.expiry.maxAge to renew earlier"))]
    pub expiration: Option<Duration>,
}
