use super::*;
use crate::testing::fixtures::at;

fn cause() -> Cause<'static> {
    Cause {
        cache: "a",
        secret: "s",
        changed_at: at(0.0),
        written_at: at(3.0),
        min_interval: Duration::from_secs(60),
        impatient: false,
    }
}

fn merge(base: &mut Value, change: &Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            change.iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, change) => *base = change.clone(),
    }
}

/// A Deployment that mounts the Secret, at rest, made an hour ago.
fn deployment(change: Value) -> Value {
    let mut workload = json!({
        "metadata": {"generation": 3, "creationTimestamp": "2026-03-01T11:00:00Z"},
        "spec": {"replicas": 2, "template": {
            "metadata": {"annotations": {}},
            "spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]},
        }},
        "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2},
    });
    merge(&mut workload, &change);
    workload
}

fn annotated(annotations: Value) -> Value {
    deployment(json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}))
}

fn step(workload: &Value) -> Step {
    decide(workload, WorkloadKind::Deployment, &cause(), at(10.0))
}

#[test]
fn a_workload_is_restarted_once_for_each_change_of_the_value() {
    assert_eq!(step(&deployment(json!({}))), Step::Restart);
    let done = json!({"a.tokencache.dev/restarted_for": "2026-03-01T12:00:00Z"});
    assert_eq!(step(&annotated(done)), Step::Nothing);
    let before = json!({"a.tokencache.dev/restarted_for": "2026-03-01T11:59:00Z"});
    assert_eq!(step(&annotated(before)), Step::Restart);
    let other = json!({"b.tokencache.dev/restarted_for": "2026-03-01T12:00:00Z"});
    assert_eq!(step(&annotated(other)), Step::Restart);
}

#[test]
fn pods_that_began_with_the_new_value_are_left_alone() {
    for (created, expected) in [
        ("2026-03-01T12:00:05Z", Step::Nothing),
        // Before the Secret was written, which was some time after the fetch.
        ("2026-03-01T12:00:02Z", Step::Restart),
        ("2026-03-01T12:00:03Z", Step::Restart),
    ] {
        let younger = deployment(json!({"metadata": {"creationTimestamp": created}}));
        assert_eq!(step(&younger), expected, "{created}");
    }
}

#[test]
fn one_workload_is_not_restarted_more_often_than_the_interval_says() {
    for (restarted_at, expected) in [
        ("2026-03-01T11:59:30Z", Step::TooSoon(Duration::from_secs(20))),
        ("2026-03-01T11:59:10Z", Step::Restart),
        ("2026-03-01T10:00:00Z", Step::Restart),
        // Of a clock that is ahead.
        ("2026-03-01T13:00:00Z", Step::Restart),
        ("nonsense", Step::Restart),
    ] {
        assert_eq!(step(&annotated(json!({ANNOTATION_RESTARTED_AT: restarted_at}))), expected, "{restarted_at}");
    }
}

#[test]
fn a_rollout_that_goes_on_is_waited_for_but_not_for_ever() {
    use WorkloadKind::{DaemonSet, Deployment, StatefulSet};
    for (kind, change, rolling) in [
        (Deployment, json!({"status": {"observedGeneration": 2}}), true),
        (Deployment, json!({"status": {"updatedReplicas": 1}}), true),
        (Deployment, json!({"status": {"replicas": 3}}), true),
        (Deployment, json!({"status": {"updatedReplicas": 1}, "spec": {"paused": true}}), false),
        // None of the new pods is there, and none of the old: the new value may be what they need.
        (Deployment, json!({"status": {"availableReplicas": 0}}), false),
        (StatefulSet, json!({"status": {"currentRevision": "1", "updateRevision": "2", "updatedReplicas": 1}}), true),
        (StatefulSet, json!({"status": {"currentRevision": "1", "updateRevision": "1", "updatedReplicas": 1}}), false),
        (
            StatefulSet,
            json!({
                "status": {"currentRevision": "1", "updateRevision": "2", "updatedReplicas": 1},
                "spec": {"updateStrategy": {"type": "OnDelete"}},
            }),
            false,
        ),
        (DaemonSet, json!({"status": {"updatedNumberScheduled": 1, "desiredNumberScheduled": 2}}), true),
        (DaemonSet, json!({"status": {"updatedNumberScheduled": 2, "desiredNumberScheduled": 2}}), false),
    ] {
        let workload = deployment(change.clone());
        let expected = if rolling { Step::Rolling } else { Step::Restart };
        assert_eq!(decide(&workload, kind, &cause(), at(10.0)), expected, "{kind:?} {change}");
        let impatient = Cause { impatient: true, ..cause() };
        assert_eq!(decide(&workload, kind, &impatient, at(10.0)), Step::Restart, "{kind:?} {change}");
    }
}

#[test]
fn only_a_workload_that_uses_the_secret_is_restarted() {
    for (pod, used) in [
        (json!({"volumes": [{"secret": {"secretName": "s"}}]}), true),
        (json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "s"}}]}}]}), true),
        (json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}), true),
        (json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), true),
        (json!({"imagePullSecrets": [{"name": "s"}]}), true),
        (json!({"volumes": [{"secret": {"secretName": "other"}}, {"configMap": {"name": "s"}}]}), false),
        (json!({"containers": [{"env": [{"name": "s", "value": "s"}]}]}), false),
        (json!({}), false),
    ] {
        assert_eq!(uses(&pod, "s"), used, "{pod}");
    }
    let stranger = json!({"spec": {"template": {"spec": {"volumes": []}}}});
    assert!(matches!(step(&deployment(stranger)), Step::Refused(why) if why.contains("does not use the Secret s")));
}
