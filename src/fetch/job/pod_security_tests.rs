use serde_json::json;

use super::{super::manifest::default, *};

fn template(change: Value) -> Value {
    let mut template = json!({"spec": {"containers": [{"name": "a", "image": "i"}]}});
    merge(&mut template, change);
    template
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

/// A container with this in its security context, in the place of the template's.
fn context(context: Value) -> Value {
    json!({"spec": {"containers": [{"name": "a", "image": "i", "securityContext": context}]}})
}

fn container(change: Value) -> Value {
    let mut container = json!({"name": "a", "image": "i"});
    merge(&mut container, change);
    json!({"spec": {"containers": [container]}})
}

fn pod(change: Value) -> Value {
    json!({"spec": {"securityContext": change}})
}

fn volume(volume: Value) -> Value {
    let mut volume = volume;
    default(&mut volume, "name", "v".into());
    json!({"spec": {"volumes": [volume]}})
}

/// Checks a change of a template at each level: the strictest one that allows it, and the field that the others name.
fn allows(cases: Vec<(Value, PodSecurity, &str)>) {
    for (change, strictest, field) in cases {
        for level in [PodSecurity::Privileged, PodSecurity::Baseline, PodSecurity::Restricted] {
            let checked = check(&template(change.clone()), level);
            assert_eq!(checked.is_ok(), level <= strictest, "{change} at {level}: {checked:?}");
            if let Err(invalid) = checked {
                let at = if field.starts_with("metadata") { "" } else { "spec." };
                assert_eq!(invalid.field, format!("spec.fetch.job.template.{at}{field}"), "{invalid}");
                assert!(
                    invalid.message.contains(&format!("the Pod Security level {level} does not allow")),
                    "{invalid}"
                );
                assert!(invalid.message.ends_with(&format!("--job-pod-security={strictest}")), "{invalid}");
            }
        }
    }
}

#[test]
fn what_is_hardened_or_says_nothing_passes_every_level() {
    for change in [
        json!({}),
        json!({"spec": {"hostNetwork": false, "hostPID": null, "nodeName": "", "volumes": null, "securityContext": null}}),
        pod(
            json!({"runAsUser": 1000, "runAsNonRoot": true, "fsGroup": 1, "seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}),
        ),
        pod(
            json!({"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}], "seLinuxOptions": {"level": "s0", "type": "container_t"}}),
        ),
        pod(json!({"appArmorProfile": {"type": "RuntimeDefault"}, "windowsOptions": {"hostProcess": false}})),
        context(
            json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "allowPrivilegeEscalation": false}),
        ),
        context(
            json!({"privileged": false, "procMount": "Default", "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}),
        ),
        container(json!({"ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}]})),
        volume(json!({"emptyDir": {}})),
        volume(json!({"csi": {"driver": "d"}})),
        volume(json!({"ephemeral": {}})),
        volume(json!({"persistentVolumeClaim": {"claimName": "c"}})),
        volume(json!({"projected": {"sources": []}})),
        json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "runtime/default"}}}),
        json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "localhost/x", "other": "unconfined"}}}),
    ] {
        assert_eq!(check(&template(change.clone()), PodSecurity::Restricted), Ok(()), "{change}");
    }
}

#[test]
fn what_reaches_the_node_is_allowed_at_the_level_privileged_only() {
    use PodSecurity::Privileged;
    let mut cases = vec![
        (json!({"spec": {"hostNetwork": true}}), Privileged, "hostNetwork"),
        (json!({"spec": {"hostPID": true}}), Privileged, "hostPID"),
        (json!({"spec": {"hostIPC": true}}), Privileged, "hostIPC"),
        (json!({"spec": {"nodeName": "control-plane"}}), Privileged, "nodeName"),
        (volume(json!({"hostPath": {"path": "/"}})), Privileged, "volumes[0].hostPath"),
        (volume(json!({"nfs": {"server": "s", "path": "/"}})), Privileged, "volumes[0].nfs"),
        (
            pod(json!({"sysctls": [{"name": "net.ipv4.tcp_rmem"}, {"name": "kernel.msgmax"}]})),
            Privileged,
            "securityContext.sysctls[1].name",
        ),
        (container(json!({"ports": [{"hostPort": 80}]})), Privileged, "containers[0].ports[0].hostPort"),
        (
            container(json!({"readinessProbe": {"httpGet": {"host": "10.0.0.1"}}})),
            Privileged,
            "containers[0].readinessProbe.httpGet.host",
        ),
        (
            container(json!({"lifecycle": {"preStop": {"tcpSocket": {"host": "10.0.0.1"}}}})),
            Privileged,
            "containers[0].lifecycle.preStop.tcpSocket.host",
        ),
        (context(json!({"privileged": true})), Privileged, "containers[0].securityContext.privileged"),
        (context(json!({"procMount": "Unmasked"})), Privileged, "containers[0].securityContext.procMount"),
    ];
    for added in ["SYS_ADMIN", "NET_RAW", "NET_ADMIN", "ALL", "CAP_CHOWN", "chown"] {
        let field = "containers[0].securityContext.capabilities.add[0]";
        cases.push((context(json!({"capabilities": {"add": [added]}})), Privileged, field));
    }
    for (change, field) in [
        (json!({"windowsOptions": {"hostProcess": true}}), "windowsOptions.hostProcess"),
        (json!({"seLinuxOptions": {"type": "spc_t"}}), "seLinuxOptions.type"),
        (json!({"seLinuxOptions": {"user": "system_u"}}), "seLinuxOptions.user"),
        (json!({"seLinuxOptions": {"role": "system_r"}}), "seLinuxOptions.role"),
        (json!({"seccompProfile": {"type": "Unconfined"}}), "seccompProfile.type"),
        (json!({"appArmorProfile": {"type": "Unconfined"}}), "appArmorProfile.type"),
    ] {
        let of_pod = format!("securityContext.{field}");
        let of_container = format!("containers[0].securityContext.{field}");
        allows(vec![(pod(change.clone()), Privileged, &of_pod), (context(change), Privileged, &of_container)]);
    }
    let annotation = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    for (key, value) in [
        ("container.apparmor.security.beta.kubernetes.io/a", "unconfined"),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
        ("container.seccomp.security.alpha.kubernetes.io/a", "unconfined"),
        ("container.seccomp.security.alpha.kubernetes.io/a", ""),
    ] {
        let field = format!("metadata.annotations[{key}]");
        allows(vec![(annotation(key, value), Privileged, &field)]);
    }
    allows(cases);
}

#[test]
fn what_is_not_hardened_is_allowed_at_the_level_baseline() {
    use PodSecurity::Baseline;
    let escalation = "containers[0].securityContext.allowPrivilegeEscalation";
    let mut cases = vec![
        (volume(json!({"image": {"reference": "i"}})), Baseline, "volumes[0].image"),
        (pod(json!({"runAsNonRoot": false})), Baseline, "securityContext.runAsNonRoot"),
        (context(json!({"runAsNonRoot": false})), Baseline, "containers[0].securityContext.runAsNonRoot"),
        (pod(json!({"runAsUser": 0})), Baseline, "securityContext.runAsUser"),
        (context(json!({"runAsUser": 0})), Baseline, "containers[0].securityContext.runAsUser"),
        (context(json!({"allowPrivilegeEscalation": true})), Baseline, escalation),
        (
            context(json!({"capabilities": {"drop": ["KILL"]}})),
            Baseline,
            "containers[0].securityContext.capabilities.drop",
        ),
        (pod(json!({"seccompProfile": {}})), Baseline, "containers[0].securityContext.seccompProfile.type"),
    ];
    for added in ["CHOWN", "SETUID", "MKNOD"] {
        let field = "containers[0].securityContext.capabilities.add[0]";
        cases.push((context(json!({"capabilities": {"add": [added]}})), Baseline, field));
    }
    allows(cases);
}

#[test]
fn init_containers_are_checked_like_the_others_and_named_by_their_place() {
    let init =
        json!({"spec": {"initContainers": [{"name": "x"}, {"name": "y", "securityContext": {"privileged": true}}]}});
    let field = "initContainers[1].securityContext.privileged";
    allows(vec![(init, PodSecurity::Privileged, field)]);
    // One that says otherwise than its pod does.
    let mixed = json!({"spec": {
        "securityContext": {"runAsNonRoot": false},
        "initContainers": [{"name": "x", "securityContext": {"runAsNonRoot": true}}],
        "containers": [{"name": "a", "securityContext": {"runAsNonRoot": true}}],
    }});
    assert_eq!(check(&template(mixed), PodSecurity::Restricted), Ok(()));
}

#[test]
fn the_message_says_which_field_which_level_and_what_to_do() {
    let invalid = check(&template(volume(json!({"hostPath": {"path": "/"}}))), PodSecurity::Restricted).unwrap_err();
    assert_eq!(
        invalid.to_string(),
        "spec.fetch.job.template.spec.volumes[0].hostPath: must not be used: the Pod Security level restricted does not \
         allow this. Change the template, or have the controller started with --job-pod-security=privileged"
    );
}
