//! What the chart makes of its values, without a cluster.

use serde_json::{Value, json};

use crate::tools::{chart, hack, must, repository, run};

/// Every option of the chart with another value than its own.
fn everything() -> Value {
    json!({
        "nameOverride": "tc", "fullnameOverride": "tc-full",
        "image": {"repository": "registry.example.com/tokencache", "tag": "1.2.3", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "replicas": 3, "watchNamespaces": ["a", "b", "a"], "concurrency": 7, "minFetchInterval": "10s", "leaseDuration": "30s",
        "requireSourceLabel": false, "allowCidrs": ["127.0.0.0/8", "::1/128"], "denyCidrs": ["10.0.0.0/8"],
        "maxTokenLifetime": "1h30m", "targetTypes": ["Opaque", "example.com/x"],
        "jobs": {"podSecurity": "baseline", "serviceAccount": "nobody"},
        "features": {"jobs": true, "serviceAccountTokens": true, "restarts": true},
        "profile": "default", "clusterCidrs": ["198.18.0.0/15"],
        "policies": {
            "status": true, "guards": true, "authors": true,
            "controller": {"enabled": true, "reservedPrefixes": ["example.com/"]},
        },
        "log": {"format": "text", "level": "info,tokencache=debug"},
        "traces": {"endpoint": "http://collector:4318"},
        "crds": {"install": true, "keep": false, "annotations": {"example.com/x": "y"}},
        "rbac": {"create": true, "aggregate": false},
        "serviceAccount": {"create": true, "name": "other", "annotations": {"example.com/role": "r"}},
        "podDisruptionBudget": {"enabled": true, "maxUnavailable": "50%"},
        "networkPolicy": {
            "enabled": true,
            "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "egress": [{"ports": [{"port": 443}]}],
        },
        "probes": {"port": 9081},
        "metrics": {
            "port": 9080,
            "service": {"enabled": true, "annotations": {"prometheus.io/scrape": "true"}},
            "serviceMonitor": {"enabled": true, "interval": "15s", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": true, "labels": {"grafana_dashboard": "yes"}, "annotations": {"folder": "x"}},
        },
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "authorities", "configMap": {"name": "company-authorities"}}],
        "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/company-authorities", "readOnly": true}],
        "podAnnotations": {"example.com/a": "b"}, "podLabels": {"team": "x"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "system-cluster-critical",
    })
}

/// What helm template makes of these values.
fn try_render(values: &Value) -> Result<Vec<Value>, String> {
    try_render_release("rel", "ops", values)
}

/// The same for a release of that name in that namespace.
fn try_render_release(release: &str, namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), values.to_string()).expect("values are written");
    let file = file.path().to_str().expect("a path");
    let output = run("helm", &["template", release, &chart(), "--namespace", namespace, "--values", file]);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{error}:\n{text}")))
}

fn render(values: &Value) -> Vec<Value> {
    try_render(values).unwrap_or_else(|error| panic!("{error}"))
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    must("helm", &["lint", "--strict", &chart()]);
    // helm warns of a symbolic link, for one.
    let said = run("helm", &["template", "rel", &chart()]).stderr;
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn every_option_is_seen_in_what_is_rendered() {
    let objects = render(&everything());
    let deployment = find(&objects, "Deployment", "tc-full");
    assert_eq!(deployment["spec"]["replicas"], 3);
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["team"], "x");
    assert_eq!(pod["metadata"]["annotations"]["example.com/a"], "b");
    for (field, value) in [
        ("serviceAccountName", json!("other")),
        ("imagePullSecrets", everything()["imagePullSecrets"].clone()),
        ("nodeSelector", everything()["nodeSelector"].clone()),
        ("tolerations", everything()["tolerations"].clone()),
        ("affinity", everything()["affinity"].clone()),
        ("topologySpreadConstraints", everything()["topologySpreadConstraints"].clone()),
        ("priorityClassName", json!("system-cluster-critical")),
        ("volumes", everything()["extraVolumes"].clone()),
    ] {
        assert_eq!(pod["spec"][field], value, "{field}");
    }
    let container = &pod["spec"]["containers"][0];
    let image = "registry.example.com/tokencache:1.2.3";
    assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!(image), &json!("Always")));
    assert_eq!(container["resources"], everything()["resources"]);
    assert_eq!(container["volumeMounts"], everything()["extraVolumeMounts"]);
    let wanted = [
        "controller",
        "--concurrency=7",
        "--min-fetch-interval=10s",
        "--lease-duration=30s",
        "--require-source-label=false",
        "--max-token-lifetime=1h30m",
        "--target-types=Opaque,example.com/x",
        "--allow-jobs=true",
        "--job-pod-security=baseline",
        "--job-service-account=nobody",
        "--log-format=text",
        "--metrics-address=[::]:9080",
        "--probe-address=[::]:9081",
        "--otlp-endpoint=http://collector:4318",
        "--namespace=a",
        "--namespace=b",
        "--allow-cidr=127.0.0.0/8",
        "--allow-cidr=::1/128",
        "--deny-cidr=10.0.0.0/8",
    ];
    assert_eq!(container["args"], json!(wanted));
    let variables = container["env"].as_array().expect("env");
    for (name, value) in [
        ("TOKENCACHE_LOG", "info,tokencache=debug"),
        ("TOKENCACHE_COLLECTOR_IMAGE", image),
        ("HTTPS_PROXY", "http://proxy:3128"),
    ] {
        assert!(variables.contains(&json!({"name": name, "value": value})), "{name}: {variables:?}");
    }
    assert_eq!(find(&objects, "ServiceAccount", "other")["metadata"]["annotations"]["example.com/role"], "r");
    assert_eq!(find(&objects, "PodDisruptionBudget", "tc-full")["spec"]["maxUnavailable"], "50%");
    let policy = find(&objects, "NetworkPolicy", "tc-full");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["egress"], everything()["networkPolicy"]["egress"]);
    assert_eq!(policy["spec"]["ingress"][0]["from"], everything()["networkPolicy"]["from"]);
    assert_eq!(policy["spec"]["ingress"][1], json!({"ports": [{"port": "probes"}]}), "the kubelet has no name");
    let monitor = find(&objects, "ServiceMonitor", "tc-full");
    assert_eq!(
        (&monitor["metadata"]["labels"]["release"], &monitor["spec"]["endpoints"][0]["interval"]),
        (&json!("prometheus"), &json!("15s"))
    );
    let rules = find(&objects, "PrometheusRule", "tc-full");
    assert!(rules["spec"]["groups"][0]["rules"].as_array().is_some_and(|rules| rules.len() > 4), "{rules}");
    let dashboard = &find(&objects, "ConfigMap", "tc-full-dashboard")["data"]["tokencache.json"];
    serde_json::from_str::<Value>(dashboard.as_str().expect("text")).expect("the dashboard is JSON");
    let service = find(&objects, "Service", "tc-full-metrics");
    assert_eq!(service["metadata"]["annotations"]["prometheus.io/scrape"], "true");
    assert_eq!(service["spec"]["ports"], json!([{"name": "metrics", "port": 9080, "targetPort": "metrics"}]));
    let definition = find(&objects, "CustomResourceDefinition", "tokencaches.tokencache.dev");
    assert_eq!(definition["metadata"]["annotations"], json!({"example.com/x": "y"}));
}

/// Every label, annotation, name and namespace anywhere in it, and every variable of a container.
fn strings<'a>(object: &'a Value, found: &mut Vec<&'a Value>) {
    const MAPS: [&str; 5] = ["labels", "annotations", "matchLabels", "selector", "nodeSelector"];
    const FIELDS: [&str; 7] =
        ["name", "namespace", "value", "image", "serviceAccountName", "priorityClassName", "interval"];
    match object {
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Object(entries) if MAPS.contains(&name.as_str()) => {
                        found.extend(entries.values().filter(|entry| !entry.is_object()));
                    }
                    value if FIELDS.contains(&name.as_str()) => found.push(value),
                    _ => {}
                }
                strings(value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn names_that_look_like_numbers_or_booleans_stay_strings() {
    for name in ["1234", "1e3", "0x10", "0o17", "true", "null", "20241130"] {
        let mut named = everything();
        for field in ["nameOverride", "fullnameOverride", "priorityClassName"] {
            named[field] = json!(name);
        }
        named["watchNamespaces"] = json!([name]);
        named["serviceAccount"]["name"] = json!(name);
        for values in [named, json!({})] {
            let objects = try_render_release(name, name, &values).unwrap_or_else(|error| panic!("{name}: {error}"));
            for object in objects.iter().filter(|object| object["kind"] != "CustomResourceDefinition") {
                let mut found = Vec::new();
                strings(object, &mut found);
                assert!(found.len() > 5 && found.iter().all(|value| value.is_string()), "{name}: {object}");
            }
            let deployment = objects.iter().find(|object| object["kind"] == "Deployment").expect("a Deployment");
            assert_eq!(deployment["metadata"]["namespace"], name);
            assert_eq!(deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"], name);
        }
    }
}

#[test]
fn the_service_gets_a_valid_name_for_every_name_of_a_release() {
    let longest = "a".repeat(53);
    for (release, service) in [
        ("rel", "rel-tokencache-metrics"),
        ("1234", "tokencache-1234-tokencache-metrics"),
        ("my.tokencache", "my-tokencache-metrics"),
        (&longest, &format!("{longest}-t-metrics")),
    ] {
        let objects = try_render_release(release, "ops", &json!({})).unwrap_or_else(|error| panic!("{error}"));
        find(&objects, "Service", service);
        assert!(service.len() <= 63, "{service}");
    }
}

#[test]
fn with_a_list_of_namespaces_only_the_definition_and_policies_are_cluster_wide() {
    let objects = render(&everything());
    assert!(!kinds(&objects).iter().any(|kind| kind.starts_with("ClusterRole")), "{:?}", kinds(&objects));
    for namespace in ["a", "b"] {
        let of = |kind: &str| {
            objects.iter().filter(|it| it["kind"] == kind && it["metadata"]["namespace"] == namespace).count()
        };
        assert_eq!((of("Role"), of("RoleBinding")), (1, 1), "{namespace}");
    }
    let roles = |objects: Vec<Value>| {
        let roles =
            objects.into_iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")));
        json!(roles.collect::<Vec<_>>()).to_string()
    };
    let text = roles(objects);
    for right in [r#"["jobs"]"#, "serviceaccounts/token", "statefulsets"] {
        assert!(text.contains(right), "what its feature needs: {right}");
        assert!(!roles(render(&json!({}))).contains(right), "without it: {right}");
    }
}

#[test]
fn what_is_switched_off_is_not_rendered() {
    let off = json!({
        "crds": {"install": false}, "rbac": {"create": false}, "serviceAccount": {"create": false},
        "podDisruptionBudget": {"enabled": false}, "networkPolicy": {"enabled": false},
        "metrics": {"service": {"enabled": false}},
        "policies": {"status": false, "guards": false, "controller": {"enabled": false}},
    });
    assert_eq!(kinds(&render(&off)), ["Deployment"]);
}

/// The policies and their bindings, by kind and name.
fn policies(objects: &[Value]) -> Vec<String> {
    let policies = objects.iter().filter(|object| object["apiVersion"] == "admissionregistration.k8s.io/v1");
    policies.map(|object| format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "")).collect()
}

#[test]
fn policies_are_for_kubernetes_1_30_and_newer() {
    let of = |version: &str, values: &[&str]| {
        let arguments = ["template", "rel", &chart(), "--namespace", "ops", "--kube-version", version];
        let text = must("helm", &[&arguments[..], values].concat());
        policies(&serde_saphyr::from_multiple::<Value>(&text).expect("YAML"))
    };
    assert_eq!(of("1.29.14", &[]), Vec::<String>::new());
    let mut wanted = Vec::new();
    for policy in ["controller", "locks", "runs", "status", "values"] {
        wanted.push(format!("ValidatingAdmissionPolicy rel-tokencache-{policy}"));
        wanted.push(format!("ValidatingAdmissionPolicyBinding rel-tokencache-{policy}"));
    }
    wanted.sort();
    let sorted = |mut found: Vec<String>| {
        found.sort();
        found
    };
    assert_eq!(sorted(of("v1.30.0-gke.1", &[])), wanted);
    let with_authors = of("1.36.2", &["--set", "policies.authors=true"]);
    assert!(with_authors.contains(&"ValidatingAdmissionPolicy rel-tokencache-authors".to_owned()), "{with_authors:?}");
}

#[test]
fn policies_follow_the_account_and_the_namespaces_of_the_release() {
    let all = render(&json!({}));
    let text = json!(all).to_string();
    assert!(text.contains("'system:serviceaccount:ops:rel-tokencache'"), "{text}");
    assert!(text.contains("['kube-system', 'kube-public', 'kube-node-lease', 'ops']"), "{text}");
    assert!(
        find(&all, "ValidatingAdmissionPolicyBinding", "rel-tokencache-status")["spec"]["matchResources"].is_null()
    );

    let mut values = everything();
    values["watchNamespaces"] = json!(["a", "ops"]);
    let some = render(&values);
    let text = json!(some).to_string();
    assert!(text.contains("'system:serviceaccount:ops:other'"), "{text}");
    // Only its owner can have named its own namespace.
    assert!(text.contains("['kube-system', 'kube-public', 'kube-node-lease']"), "{text}");
    assert!(text.contains("['Opaque', 'example.com/x']") && text.contains("['example.com/']"), "{text}");
    for policy in ["status", "locks", "values", "runs", "authors"] {
        let binding = find(&some, "ValidatingAdmissionPolicyBinding", &format!("ops-tc-full-{policy}"));
        let wanted = json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "ops"]}]);
        assert_eq!(binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"], wanted);
    }
    let binding = find(&some, "ValidatingAdmissionPolicyBinding", "ops-tc-full-controller");
    assert!(binding["spec"]["matchResources"].is_null(), "the controller is limited everywhere");
}

#[test]
fn the_profile_multi_tenant_denies_networks_and_refuses_what_contradicts_it() {
    let tenants = |change: Value| {
        let mut values =
            json!({"profile": "multiTenant", "clusterCidrs": ["198.18.0.0/15"], "denyCidrs": ["192.0.2.0/24"]});
        crate::support::manifests::merge(&mut values, change);
        values
    };
    let objects = render(&tenants(json!({})));
    let arguments =
        find(&objects, "Deployment", "rel-tokencache")["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    for network in
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "198.18.0.0/15", "192.0.2.0/24"]
    {
        assert!(arguments.contains(&format!("--deny-cidr={network}")), "{network}: {arguments}");
    }
    assert!(
        arguments.contains("--allow-jobs=false") && arguments.contains("--require-source-label=true"),
        "{arguments}"
    );
    for policy in ["status", "locks", "values", "runs", "controller", "authors"] {
        find(&objects, "ValidatingAdmissionPolicyBinding", &format!("rel-tokencache-{policy}"));
    }
    for (change, words) in [
        (json!({"features": {"jobs": true}}), "features.jobs"),
        (json!({"requireSourceLabel": false}), "requireSourceLabel"),
        (json!({"policies": {"status": false}}), "policies.status"),
        (json!({"policies": {"guards": false}}), "policies.guards"),
        (json!({"policies": {"controller": {"enabled": false}}}), "policies.controller.enabled"),
        (json!({"profile": "multi-tenant"}), "profile"),
    ] {
        let error = try_render(&tenants(change)).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
    let arguments = ["template", "rel", &chart(), "--set", "profile=multiTenant", "--kube-version", "1.29.0"];
    let error = String::from_utf8_lossy(&run("helm", &arguments).stderr).into_owned();
    assert!(error.contains("Kubernetes 1.30 or later, but this is v1.29.0"), "{error}");
    let shared = render(&json!({"clusterCidrs": ["198.18.0.0/15"]}));
    assert!(!json!(shared).to_string().contains("--deny-cidr"), "{shared:?}");
}

#[test]
fn the_definition_stays_by_default_and_is_the_one_of_the_repository() {
    let objects = render(&json!({}));
    let mut rendered = find(&objects, "CustomResourceDefinition", "tokencaches.tokencache.dev").clone();
    assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let text = std::fs::read_to_string(repository("crds/tokencache.yaml")).expect("the definition");
    let kept: Value = serde_saphyr::from_str(&text).expect("YAML");
    rendered["metadata"] = kept["metadata"].clone();
    assert_eq!(rendered, kept);
}

#[test]
fn its_pods_are_of_the_level_restricted() {
    let objects = render(&json!({}));
    let pod = &find(&objects, "Deployment", "rel-tokencache")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
    let wanted = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    assert_eq!(pod["containers"][0]["securityContext"], wanted);
    for field in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
        assert!(pod.get(field).is_none(), "{field}");
    }
}

#[test]
fn a_wrong_value_is_refused_with_its_name() {
    for (wrong, name) in [
        (json!({"replica": 3}), "replica"),
        (json!({"replicas": "two"}), "replicas"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (json!({"image": {"digest": "latest"}}), "digest"),
        (json!({"allowCidrs": ["127.0.0.1"]}), "allowCidrs"),
        (json!({"denyCidrs": "10.0.0.0/8"}), "denyCidrs"),
        (json!({"watchNamespaces": ["Not_A_Namespace"]}), "watchNamespaces"),
        (json!({"watchNamespaces": "a"}), "watchNamespaces"),
        (json!({"concurrency": 0}), "concurrency"),
        (json!({"leaseDuration": 15}), "leaseDuration"),
        (json!({"maxTokenLifetime": 24}), "maxTokenLifetime"),
        (json!({"targetTypes": []}), "targetTypes"),
        (json!({"targetTypes": ["a,b"]}), "targetTypes"),
        (json!({"jobs": {"podSecurity": "none"}}), "podSecurity"),
        (json!({"jobs": {"serviceAccount": "Not An Account"}}), "serviceAccount"),
        (json!({"log": {"format": "xml"}}), "format"),
        (json!({"crds": {"keep": "yes"}}), "keep"),
        (json!({"extraEnv": {"A": "b"}}), "extraEnv"),
        (json!({"extraEnv": [{"name": "A", "value": 1}]}), "extraEnv"),
        (json!({"extraVolumes": [{"emptyDir": {}}]}), "extraVolumes"),
        (json!({"extraVolumeMounts": [{"name": "a"}]}), "extraVolumeMounts"),
        (json!({"metrics": {"servicemonitor": {"enabled": true}}}), "servicemonitor"),
        (json!({"metrics": {"service": {"enabled": false}, "serviceMonitor": {"enabled": true}}}), "metrics.service"),
        (json!({"podDisruptionBudget": {"maxUnavailable": 0}}), "maxUnavailable"),
        (json!({"policies": {"controller": true}}), "controller"),
        (json!({"targetTypes": ["a'"]}), "targetTypes"),
        (json!({"policies": {"controller": {"reservedPrefixes": ["argocd.argoproj.io"]}}}), "reservedPrefixes"),
    ] {
        let error = try_render(&wrong).expect_err(&wrong.to_string());
        assert!(error.contains(name), "{wrong}: {error}");
    }
}

#[test]
fn the_manifests_for_those_without_helm_are_those_of_the_chart() {
    let folder = tempfile::tempdir().expect("a folder");
    hack("manifests.sh", &[folder.path().to_str().expect("a path")]);
    for file in ["rbac.yaml", "controller.yaml", "policies.yaml", "policy-authors.yaml"] {
        let made = std::fs::read_to_string(folder.path().join(file)).expect(file);
        let kept = std::fs::read_to_string(repository("config").join(file)).expect(file);
        assert!(made == kept, "config/{file} is stale: make manifests");
    }
    let all = must("kubectl", &["kustomize", repository("config").to_str().expect("a path")]);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&all).expect("YAML");
    assert!(kinds(&objects).contains(&"CustomResourceDefinition"), "{:?}", kinds(&objects));
}
