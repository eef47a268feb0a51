//! What a template does not say about security and resources: pure. As given here a pod passes the `restricted` level
//! of the Pod Security Standards, and a quota that wants limits.

use serde_json::{Map, Value, json};

use super::manifest::default;

/// The user of our own containers, where the pod's is root.
const NONROOT: i64 = 65532;

/// Completes the pod.
pub(super) fn complete_pod(spec: &mut Value) {
    // Who names a service account wants its token.
    let named = ["serviceAccountName", "serviceAccount"].iter().any(|field| spec.get(field).is_some_and(is_some));
    if !named {
        default(spec, "automountServiceAccountToken", false.into());
    }
    default(spec, "securityContext", json!({}));
    let context = &mut spec["securityContext"];
    default(context, "runAsNonRoot", true.into());
    default(context, "seccompProfile", json!({"type": "RuntimeDefault"}));
}

fn is_some(value: &Value) -> bool {
    !matches!(value, Value::Null) && value != ""
}

/// Completes a container of the user's.
pub(super) fn complete(container: &mut Value) {
    // Else Kubernetes knows an exit code only; with it, the end of the output of a container that failed.
    default(container, "terminationMessagePolicy", "FallbackToLogsOnError".into());
    default(
        container,
        "resources",
        json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}),
    );
    default(container, "securityContext", json!({}));
    let context = &mut container["securityContext"];
    let added = context.pointer("/capabilities/add").and_then(Value::as_array);
    let admin = added.into_iter().flatten().any(|name| name == "SYS_ADMIN" || name == "CAP_SYS_ADMIN");
    // Kubernetes refuses the one with the other.
    if context.get("privileged") == Some(&Value::Bool(true)) || admin {
        return;
    }
    default(context, "allowPrivilegeEscalation", false.into());
    default(context, "capabilities", json!({}));
    default(&mut context["capabilities"], "drop", json!(["ALL"]));
}

/// The security context of the collector: the user of the container whose result it reads, if that is told and not
/// root.
pub(super) fn of_our_own(pod: &Value, result: Option<&Map<String, Value>>) -> Value {
    let user = |context: &Value| context.get("runAsUser").and_then(Value::as_i64);
    let of_pod = user(pod);
    let of_container = result.and_then(|container| container.get("securityContext")).and_then(user);
    let mut context = json!({
        "runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    match of_container.or(of_pod) {
        Some(0) => context["runAsUser"] = NONROOT.into(),
        Some(user) => context["runAsUser"] = user.into(),
        None => {}
    }
    context
}
