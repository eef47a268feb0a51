use super::*;

fn owner(name: &str) -> OwnerRef {
    OwnerRef { namespace: "ns".into(), name: name.into(), uid: "uid-1".into() }
}

fn source(spec: Value) -> Job {
    serde_json::from_value(json!({"template": {"metadata": {"labels": {"team": "blue"}}, "spec": spec}})).unwrap()
}

fn made(spec: Value, state_key: Option<&str>) -> Value {
    let run = Run {
        owner: &owner("a"),
        job: &source(spec),
        id: "0123456789abcdef",
        key: "KEY",
        deadline: Duration::from_secs(300),
        image: "image:1",
        state_key,
    };
    manifest(&run)
}

fn plain() -> Value {
    json!({"containers": [{"name": "fetch", "image": "busybox", "command": ["sh"], "env": [{"name": "A", "value": "1"}]}]})
}

/// The pod's spec of a template, and one of its containers.
fn pod(spec: Value) -> Value {
    made(spec, None)["spec"]["template"]["spec"].clone()
}

fn container(pod: &Value, wanted: &str) -> Value {
    let all = objects(pod, "initContainers").chain(objects(pod, "containers"));
    Value::Object(all.into_iter().find(|container| name(container) == wanted).expect(wanted).clone())
}

#[test]
fn the_users_containers_run_in_order_before_the_collector() {
    let mut spec = plain();
    spec["initContainers"] = json!([{"name": "before", "image": "b"}]);
    let job = made(spec, None);
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(objects(pod, "initContainers").map(name).collect::<Vec<_>>(), [PREPARER, "before", "fetch"]);
    assert_eq!(objects(pod, "containers").map(name).collect::<Vec<_>>(), [COLLECTOR]);
    assert_eq!(job["metadata"]["name"], "tokencache-a-0123456789");
    assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    assert_eq!((&job["spec"]["backoffLimit"], &job["spec"]["activeDeadlineSeconds"]), (&json!(0), &json!(301)));
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[LABEL_RUN], "0123456789abcdef");
    assert_eq!((&labels[LABEL_CACHE], &labels["team"]), (&json!("a"), &json!("blue")));
    assert_eq!(job["spec"]["podReplacementPolicy"], "Failed");
}

#[test]
fn the_job_has_the_labels_and_annotations_of_its_template_but_not_in_place_of_its_own() {
    let (owner, mut source) = (owner("a"), source(plain()));
    let theirs = json!({
        "labels": {"team": "blue", LABEL_CACHE: "b", LABEL_RUN: "x"}, "annotations": {"example.org/why": "policy"},
    });
    for (metadata, annotations, team) in [
        (theirs, json!({"example.org/why": "policy"}), json!("blue")),
        (json!({"labels": null, "annotations": null}), json!({}), json!(null)),
        (json!(null), json!({}), json!(null)),
    ] {
        source.template.0["metadata"] = metadata;
        let deadline = Duration::from_secs(300);
        let run = Run { owner: &owner, job: &source, id: "0123", key: "KEY", deadline, image: "i", state_key: None };
        let job = manifest(&run);
        for of in [&job["metadata"], &job["spec"]["template"]["metadata"]] {
            let labels = &of["labels"];
            assert_eq!((&labels[LABEL_CACHE], &labels[LABEL_RUN]), (&json!("a"), &json!("0123")));
            assert_eq!(labels.get("team").cloned().unwrap_or_default(), team);
        }
        assert_eq!(job["metadata"]["annotations"], annotations);
        assert_eq!(job["metadata"]["name"], job_name("a", "0123"));
    }
}

#[test]
fn a_template_that_says_nothing_gets_what_the_restricted_level_and_quotas_want() {
    let pod = pod(plain());
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["restartPolicy"], "Never");
    for state in [None, Some("state-77")] {
        assert_eq!(unrestricted(&made(plain(), state)["spec"]["template"]["spec"]), [""; 0]);
    }
    for name in [PREPARER, "fetch", COLLECTOR] {
        let container = container(&pod, name);
        for kind in ["requests", "limits"] {
            assert!(container["resources"][kind]["memory"].is_string(), "{name}");
        }
    }
}

/// Which rules of the level `restricted` of the Pod Security Standards a pod breaks.
pub(super) fn unrestricted(pod: &Value) -> Vec<String> {
    const VOLUMES: [&str; 8] =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let absent = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    let or_null = |object: &Value, path: &str| object.pointer(path).cloned().unwrap_or_default();
    let mut broken = Vec::new();
    let mut rule = |name: &str, holds: bool, of: &str| {
        if !holds {
            broken.push(format!("{name} of {of}"));
        }
    };
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(field, absent(&pod[field]), "the pod");
    }
    for volume in objects(pod, "volumes") {
        rule("volumes", volume.keys().all(|kind| kind == "name" || VOLUMES.contains(&kind.as_str())), name(volume));
    }
    // What concerns the pod as a whole, and what a container may decide for itself.
    let safe_sysctls = or_null(pod, "/securityContext/sysctls").as_array().is_none_or(Vec::is_empty);
    rule("sysctls", safe_sysctls, "the pod");
    let ephemeral = objects(pod, "ephemeralContainers");
    for container in objects(pod, "initContainers").chain(objects(pod, "containers")).chain(ephemeral) {
        let of = name(container);
        let container = Value::Object(container.clone());
        let own = |path: &str| or_null(&container, &format!("/securityContext/{path}"));
        let inherited = |path: &str| match own(path) {
            Value::Null => or_null(pod, &format!("/securityContext/{path}")),
            own => own,
        };
        rule("privileged", absent(&own("privileged")), of);
        rule("allowPrivilegeEscalation", own("allowPrivilegeEscalation") == false, of);
        rule("runAsNonRoot", inherited("runAsNonRoot") == true, of);
        rule("runAsUser", own("runAsUser") != 0 && or_null(pod, "/securityContext/runAsUser") != 0, of);
        let profile = inherited("seccompProfile/type");
        rule("seccompProfile", profile == "RuntimeDefault" || profile == "Localhost", of);
        let list = |path: &str| own(path).as_array().cloned().unwrap_or_default();
        rule("capabilities.drop", list("capabilities/drop").contains(&json!("ALL")), of);
        rule("capabilities.add", list("capabilities/add").iter().all(|it| it == "NET_BIND_SERVICE"), of);
        rule("procMount", own("procMount").is_null() || own("procMount") == "Default", of);
        rule("hostPorts", objects(&container, "ports").all(|port| !port.contains_key("hostPort")), of);
        let labels = inherited("seLinuxOptions");
        rule("seLinuxOptions", labels.get("user").is_none() && labels.get("role").is_none(), of);
        rule("appArmorProfile", inherited("appArmorProfile/type") != "Unconfined", of);
        rule("hostProcess", absent(&inherited("windowsOptions/hostProcess")), of);
    }
    broken
}

#[test]
fn a_template_that_asks_for_more_than_the_restricted_level_gives_gets_it_and_the_check_here_sees_that() {
    for (change, rule) in [
        (json!({"hostNetwork": true}), "hostNetwork of the pod"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "volumes of v"),
        (json!({"securityContext": {"runAsNonRoot": false}}), "runAsNonRoot of fetch"),
        (json!({"securityContext": {"runAsUser": 0}}), "runAsUser of fetch"),
        (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), "seccompProfile of fetch"),
        (json!({"securityContext": {"sysctls": [{"name": "a", "value": "1"}]}}), "sysctls of the pod"),
    ] {
        let mut spec = plain();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert!(unrestricted(&pod(spec)).contains(&rule.to_owned()), "{change}");
    }
    for (context, rule) in [
        (json!({"privileged": true}), "privileged of fetch"),
        (json!({"privileged": true}), "allowPrivilegeEscalation of fetch"),
        (json!({"capabilities": {"add": ["NET_ADMIN"]}}), "capabilities.add of fetch"),
        (json!({"capabilities": {"drop": ["KILL"]}}), "capabilities.drop of fetch"),
        (json!({"procMount": "Unmasked"}), "procMount of fetch"),
    ] {
        let mut spec = plain();
        spec["containers"][0]["securityContext"] = context.clone();
        assert!(unrestricted(&pod(spec)).contains(&rule.to_owned()), "{context}");
    }
}

#[test]
fn the_pods_of_all_published_examples_pass_the_restricted_level() {
    for cache in super::super::template::published() {
        let Some(crate::api::Source::Job(job)) = cache.spec.fetch.source() else { panic!("a job") };
        assert_eq!(unrestricted(&pod(job.template.0["spec"].clone())), [""; 0], "{:?}", cache.metadata.name);
    }
}

#[test]
fn what_a_template_says_stays() {
    let mut spec = plain();
    spec["serviceAccountName"] = "robot".into();
    spec["securityContext"] = json!({"runAsNonRoot": false, "runAsUser": 0});
    spec["terminationGracePeriodSeconds"] = 60.into();
    spec["tolerations"] = json!([{"operator": "Exists"}]);
    spec["containers"][0]["securityContext"] = json!({"privileged": true});
    spec["containers"][0]["resources"] = json!({"limits": {"memory": "1Gi"}});
    spec["containers"][0]["terminationMessagePolicy"] = "File".into();
    spec["containers"][0]["futureField"] = json!({"a": 1});
    let pod = pod(spec);
    assert!(pod.get("automountServiceAccountToken").is_none());
    assert_eq!(
        (&pod["securityContext"]["runAsNonRoot"], &pod["terminationGracePeriodSeconds"]),
        (&json!(false), &json!(60))
    );
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let fetch = container(&pod, "fetch");
    assert_eq!(fetch["securityContext"], json!({"privileged": true}));
    assert_eq!(fetch["resources"], json!({"limits": {"memory": "1Gi"}}));
    assert_eq!((&fetch["terminationMessagePolicy"], &fetch["futureField"]), (&json!("File"), &json!({"a": 1})));
    let collector = container(&pod, COLLECTOR);
    assert_eq!(collector["securityContext"]["runAsUser"], 65532, "the collector is not root where the pod is");
}

#[test]
fn only_the_result_container_knows_the_files_and_the_users_variables_may_use_them() {
    let mut spec = plain();
    spec["containers"][0]["env"] =
        json!([{"name": "TOKENCACHE_RESULT", "value": "/x"}, {"name": "B", "value": "$(TOKENCACHE_STATE)"}]);
    spec["initContainers"] = json!([{"name": "before", "image": "b"}]);
    let pod = pod(spec);
    let fetch = container(&pod, "fetch");
    let env: Vec<&str> = objects(&fetch, "env").map(name).collect();
    assert_eq!(env, ["TOKENCACHE_RESULT", "TOKENCACHE_STATE", "B"]);
    assert_eq!(fetch["env"][0]["value"], RESULT);
    assert!(container(&pod, "before").get("env").is_none());
    assert!(container(&pod, COLLECTOR).get("env").is_none());
}

#[test]
fn the_state_is_mounted_by_the_name_of_the_run_that_left_it_and_stands_nowhere_in_the_job() {
    let job = made(plain(), Some("state-77"));
    let volumes = &job["spec"]["template"]["spec"]["volumes"];
    let state = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == STATE_VOLUME).unwrap();
    assert_eq!(state["secret"]["secretName"], "tokencache-a-state");
    assert_eq!(state["secret"]["items"], json!([{"key": "state-77", "path": "state.json"}]));
    let result = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == RESULT_VOLUME).unwrap();
    assert_eq!(result["emptyDir"]["medium"], "Memory");
}

/// The arguments of the collector of a run with that key and so many containers of the user's.
fn arguments(key: &str, containers: usize) -> Vec<String> {
    let list: Vec<Value> = (0..containers).map(|at| json!({"name": format!("c{at}"), "image": "i"})).collect();
    let mut job = source(json!({"containers": list}));
    job.result_container = Some("c0".into());
    let made = manifest(&Run {
        owner: &owner("a"),
        job: &job,
        id: "1",
        key,
        deadline: Duration::ZERO,
        image: "i",
        state_key: None,
    });
    serde_json::from_value(made["spec"]["template"]["spec"]["containers"][0]["args"].clone()).unwrap()
}

#[test]
fn with_many_containers_the_collector_knows_that_its_message_is_cut_shorter() {
    for (containers, limit) in [(1, "--limit=4096"), (2, "--limit=3072"), (6, "--limit=1536")] {
        assert_eq!(arguments("K", containers).last().unwrap(), limit);
    }
}

#[test]
fn the_collector_understands_its_arguments_whatever_character_the_key_begins_with() {
    use clap::Parser as _;
    for key in ["a", "-a", "--a", "_-", "-"] {
        let line = std::iter::once("tokencache".to_owned()).chain(arguments(key, 1));
        let cli = crate::cli::Cli::try_parse_from(line).map_err(|error| error.to_string()).expect(key);
        assert!(format!("{cli:?}").contains(&format!("key: {key:?}")), "{cli:?}");
    }
}

#[test]
fn names_and_labels_are_within_their_limits_whatever_the_token_caches_name() {
    let long = format!("{}.{}", "a".repeat(39), "b".repeat(160));
    let other = format!("{long}c");
    for name in ["a", &long, &"x".repeat(63), &"x.".repeat(60)] {
        let (job, label) = (job_name(name, "0123456789abcdef"), cache_label(name));
        assert!(job.len() <= 63 && label.len() <= 63, "{job} {label}");
        assert!(!job.contains(".-") && !label.contains(".-"), "{job} {label}");
    }
    assert_ne!(cache_label(&long), cache_label(&other));
}

#[test]
fn a_complaint_names_the_field_as_the_user_wrote_it() {
    let job = source(json!({"initContainers": [{"name": "x"}], "containers": [{"name": "y"}, {"name": "z"}]}));
    for (complaint, expected) in [
        (
            "spec.template.spec.initContainers[1].image: Required",
            "spec.fetch.job.template.spec.initContainers[0].image: Required",
        ),
        (
            "spec.template.spec.initContainers[2].image: Required",
            "spec.fetch.job.template.spec.containers[0].image: Required",
        ),
        (
            "spec.template.spec.initContainers[3].x, spec.template.spec.initContainers[2].y",
            "spec.fetch.job.template.spec.containers[1].x, spec.fetch.job.template.spec.containers[0].y",
        ),
        ("exceeded quota", "exceeded quota"),
    ] {
        assert_eq!(in_the_users_words(complaint, &job), expected);
    }
}
