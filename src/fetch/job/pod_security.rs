//! The Pod Security Standards of Kubernetes, checked on a template: pure. A namespace enforces none unless somebody
//! labelled it, and the controller creates Jobs for people who may not create pods themselves.
//!
//! The levels are those of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, with two additions: the
//! level `baseline` allows no `nfs` volumes, and below `privileged` no pod chooses its node without the scheduler.

use std::fmt;

use clap::ValueEnum;
use serde_json::Value;

use super::{manifest::objects, security};
use crate::api::Invalid;

const TEMPLATE: &str = "spec.fetch.job.template";

/// A level of the Pod Security Standards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum PodSecurity {
    /// No restriction.
    Privileged,
    /// Nothing by which a pod is known to gain control of its node.
    Baseline,
    /// Current best practice for the hardening of pods.
    #[default]
    Restricted,
}

impl fmt::Display for PodSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// Volumes of the level `restricted`.
const RESTRICTED_VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
/// Capabilities that containers have by default, which the level `baseline` allows to be added.
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const RESTRICTED_CAPABILITIES: [&str; 1] = ["NET_BIND_SERVICE"];
/// Sysctls that have an effect on the pod alone.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const PROFILES: [&str; 2] = ["RuntimeDefault", "Localhost"];
/// Annotations by which profiles are set in older versions of Kubernetes, and the values of profiles that confine.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP: [&str; 2] =
    ["container.seccomp.security.alpha.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/pod"];

/// Checks a template, as it is after [`security`] has completed it, and says which field a level forbids.
pub(super) fn check(template: &Value, level: PodSecurity) -> Result<(), Invalid> {
    if level == PodSecurity::Privileged {
        return Ok(());
    }
    let mut spec = template.get("spec").cloned().unwrap_or_default();
    security::complete_pod(&mut spec);
    let check = Check { level };
    check.pod(&spec)?;
    check.annotations(template)?;
    for field in ["initContainers", "containers"] {
        for (at, container) in objects(&spec, field).enumerate() {
            let mut container = Value::Object(container.clone());
            security::complete(&mut container);
            check.container(&format!("{TEMPLATE}.spec.{field}[{at}]"), &container, &spec["securityContext"])?;
        }
    }
    Ok(())
}

/// A check against one level.
struct Check {
    level: PodSecurity,
}

impl Check {
    /// Refuses a field, unless its rule holds. `least` is the strictest level that does not have that rule.
    fn refuse_unless(&self, holds: bool, least: PodSecurity, field: &str, what: &str) -> Result<(), Invalid> {
        if holds || self.level <= least {
            return Ok(());
        }
        Err(Invalid::new(
            field,
            format!(
                "{what}: the Pod Security level {} does not allow this. Change the template, or have the controller \
                 started with --job-pod-security={least}",
                self.level
            ),
        ))
    }

    /// A rule of the level `baseline`, and so of `restricted`.
    fn baseline(&self, holds: bool, field: &str, what: &str) -> Result<(), Invalid> {
        self.refuse_unless(holds, PodSecurity::Privileged, field, what)
    }

    /// A rule of the level `restricted` only.
    fn restricted(&self, holds: bool, field: &str, what: &str) -> Result<(), Invalid> {
        self.refuse_unless(holds, PodSecurity::Baseline, field, what)
    }

    fn pod(&self, spec: &Value) -> Result<(), Invalid> {
        let at = |field: &str| format!("{TEMPLATE}.spec.{field}");
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            self.baseline(is_off(spec.get(field)), &at(field), "must not be true")?;
        }
        let node = "must not be set, since it bypasses the scheduler: use nodeSelector";
        self.baseline(spec.get("nodeName").is_none_or(is_empty), &at("nodeName"), node)?;
        for (index, volume) in objects(spec, "volumes").enumerate() {
            for kind in volume.keys().filter(|kind| *kind != "name") {
                let field = at(&format!("volumes[{index}].{kind}"));
                self.baseline(!matches!(kind.as_str(), "hostPath" | "nfs"), &field, "must not be used")?;
                self.restricted(RESTRICTED_VOLUMES.contains(&kind.as_str()), &field, "must not be used")?;
            }
        }
        let context = &spec["securityContext"];
        for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
            let name = text(sysctl, "name");
            let field = at(&format!("securityContext.sysctls[{index}].name"));
            self.baseline(SYSCTLS.contains(&name), &field, "must be one that has an effect on the pod alone")?;
        }
        self.both(&at("securityContext"), context)
    }

    /// What stands in the security contexts of pods and of containers alike.
    fn both(&self, at: &str, context: &Value) -> Result<(), Invalid> {
        let host = context.pointer("/windowsOptions/hostProcess");
        self.baseline(is_off(host), &format!("{at}.windowsOptions.hostProcess"), "must not be true")?;
        let selinux = context.get("seLinuxOptions").unwrap_or(&Value::Null);
        let type_ = SELINUX_TYPES.contains(&text(selinux, "type"));
        self.baseline(type_, &format!("{at}.seLinuxOptions.type"), "must be a type of containers")?;
        for field in ["user", "role"] {
            let field_at = format!("{at}.seLinuxOptions.{field}");
            self.baseline(text(selinux, field).is_empty(), &field_at, "must not be set")?;
        }
        for profile in ["seccompProfile", "appArmorProfile"] {
            let type_ = text(context.get(profile).unwrap_or(&Value::Null), "type");
            let holds = type_.is_empty() || PROFILES.contains(&type_);
            self.baseline(holds, &format!("{at}.{profile}.type"), "must be RuntimeDefault or Localhost")?;
        }
        let root = context.get("runAsUser").and_then(Value::as_i64) != Some(0);
        self.restricted(root, &format!("{at}.runAsUser"), "must not be 0")
    }

    fn container(&self, at: &str, container: &Value, pod: &Value) -> Result<(), Invalid> {
        let context = container.get("securityContext").unwrap_or(&Value::Null);
        let field = |name: &str| format!("{at}.securityContext.{name}");
        self.both(&format!("{at}.securityContext"), context)?;
        self.baseline(is_off(context.get("privileged")), &field("privileged"), "must not be true")?;
        let mount = text(context, "procMount");
        self.baseline(matches!(mount, "" | "Default"), &field("procMount"), "must be Default")?;
        for (index, port) in list(container, "ports").iter().enumerate() {
            let port_at = format!("{at}.ports[{index}].hostPort");
            let none = port.get("hostPort").is_none_or(|port| port.is_null() || *port == 0);
            self.baseline(none, &port_at, "must not be set")?;
        }
        for handler in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle/postStart", "lifecycle/preStop"] {
            for action in ["httpGet", "tcpSocket"] {
                let host = container.pointer(&format!("/{handler}/{action}/host"));
                let host_at = format!("{at}.{}.{action}.host", handler.replace('/', "."));
                self.baseline(host.is_none_or(is_empty), &host_at, "must not be set")?;
            }
        }
        let capabilities = context.get("capabilities").unwrap_or(&Value::Null);
        for (index, added) in list(capabilities, "add").iter().enumerate() {
            let added_at = field(&format!("capabilities.add[{index}]"));
            let added = added.as_str().unwrap_or_default();
            self.baseline(BASELINE_CAPABILITIES.contains(&added), &added_at, "must not be added")?;
            self.restricted(RESTRICTED_CAPABILITIES.contains(&added), &added_at, "must not be added")?;
        }
        let drops_all = list(capabilities, "drop").iter().any(|dropped| dropped == "ALL");
        self.restricted(drops_all, &field("capabilities.drop"), "must contain ALL")?;
        let escalation = context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false));
        self.restricted(escalation, &field("allowPrivilegeEscalation"), "must be false")?;
        // The container's own word counts, then the pod's.
        let of = |name: &str| context.get(name).filter(|value| !value.is_null()).or_else(|| pod.get(name));
        let profile = of("seccompProfile").map(|profile| text(profile, "type")).unwrap_or_default();
        let profile_at = field("seccompProfile.type");
        self.restricted(PROFILES.contains(&profile), &profile_at, "must be RuntimeDefault or Localhost")?;
        let nonroot = of("runAsNonRoot") == Some(&Value::Bool(true));
        let nonroot_at = match context.get("runAsNonRoot") {
            None | Some(Value::Null) => format!("{TEMPLATE}.spec.securityContext.runAsNonRoot"),
            Some(_) => field("runAsNonRoot"),
        };
        self.restricted(nonroot, &nonroot_at, "must be true, and an image that runs as root needs runAsUser")
    }

    fn annotations(&self, template: &Value) -> Result<(), Invalid> {
        let annotations = template.pointer("/metadata/annotations").and_then(Value::as_object);
        for (key, value) in annotations.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            let local = value.starts_with("localhost/");
            let field = format!("{TEMPLATE}.metadata.annotations[{key}]");
            if key.starts_with(APPARMOR) {
                let holds = local || matches!(value, "" | "runtime/default");
                self.baseline(holds, &field, "must be runtime/default or localhost/…")?;
            }
            if SECCOMP.iter().any(|prefix| key.starts_with(prefix)) {
                let holds = local || matches!(value, "runtime/default" | "docker/default");
                self.baseline(holds, &field, "must be runtime/default or localhost/…")?;
            }
        }
        Ok(())
    }
}

fn is_off(value: Option<&Value>) -> bool {
    value.is_none_or(|value| matches!(value, Value::Null | Value::Bool(false)))
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == ""
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
#[path = "pod_security_tests.rs"]
mod tests;
