//! `spec.fetch.job`: a container of the user's as the fetch function.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Runs a container as a Job: each fetch creates one Job from the pod template.
///
/// The container writes one JSON object to the file $TOKENCACHE_RESULT:
/// {"token": "…"} or {"values": {"user": "…", "password": "…"}}, with "expires_in" or "expires_at", and optionally
/// "state": any JSON, which the next fetch finds in the file $TOKENCACHE_STATE.
/// If the exit code is not 0, the fetch fails with the last line of the output as the message.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// A pod template, as in a Job. Its containers run one after another, each after the previous one has succeeded.
    #[x_kube(validation = Rule::new("has(self.spec)").message("must have a spec, as the template of a Job does"))]
    pub template: PodTemplate,

    /// Name of the container that writes the result. Required if the template has several containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub result_container: Option<String>,

    /// Number of failed Jobs to keep for inspection. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub keep_failed: Option<i32>,
}

impl Job {
    /// Number of failed Jobs to keep.
    #[must_use]
    pub fn keep_failed(&self) -> usize {
        usize::try_from(self.keep_failed.unwrap_or(1)).unwrap_or_default()
    }
}

/// A pod template exactly as it was written: fields that only a newer Kubernetes knows are passed on, and its hash does
/// not change with the version of a library.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(pub Value);

impl JsonSchema for PodTemplate {
    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // The whole schema of a pod would make the definition a hundred times larger; the API server checks the Job.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            "x-kubernetes-preserve-unknown-fields": true,
        })
    }
}
