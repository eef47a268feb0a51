//! The proxy that other tests put before the API server.

use std::{pin::pin, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokencache::client::connect;
use tokio::time::timeout;

use crate::support::{
    Action, Cluster, FlakyApi, Namespace, When, in_background, namespace::Object, pass, poll, scenario, tokencache,
    within,
};

/// For how long nothing comes where nothing should come.
const SILENCE: Duration = Duration::from_millis(700);

async fn client(api: &FlakyApi) -> Client {
    let file = Kubeconfig::read_from(api.kubeconfig()).expect("a kubeconfig");
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    config.default_retry = false;
    connect(config).expect("a client")
}

/// A namespace, a proxy with an administrator's permissions, and the ConfigMaps behind it.
async fn through_proxy() -> (Namespace, FlakyApi, Api<ConfigMap>) {
    let ns = Namespace::new().await;
    let api = FlakyApi::before(&Cluster::get().await.kubeconfig).await;
    let maps = Api::namespaced(client(&api).await, &ns.name);
    (ns, api, maps)
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": "value"}})).expect("a ConfigMap")
}

async fn exists<K: Object>(ns: &Namespace, name: &str) -> bool {
    ns.api::<K>().get_opt(name).await.expect("an answer").is_some()
}

fn status(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

#[test]
fn a_rule_decides_about_the_requests_it_selects_and_about_no_others() {
    scenario(async {
        let (ns, api, maps) = through_proxy().await;
        let create = async |name| maps.create(&PostParams::default(), &map(name)).await;
        let posts = || When::request(Method::POST, "/configmaps");
        let all = api.count(posts());

        let refused = api.next(1, posts(), Action::Answer(StatusCode::FORBIDDEN, "not today"));
        let error = create("refused").await.expect_err("it is refused");
        assert!(status(&error) == Some(403) && error.to_string().contains("not today"), "{error}");
        assert!(!exists::<ConfigMap>(&ns, "refused").await);
        assert_eq!(refused.hits(), 1);
        create("accepted").await.expect("the rule was for one request");
        assert_eq!((all.hits(), refused.hits()), (2, 1));

        api.next(1, posts(), Action::AnswerAfter(StatusCode::GATEWAY_TIMEOUT, "late"));
        assert_eq!(create("late").await.err().and_then(|error| status(&error)), Some(504));
        assert!(exists::<ConfigMap>(&ns, "late").await);

        api.next(1, posts(), Action::Cut);
        assert!(create("cut").await.is_err_and(|error| status(&error).is_none()));
        assert!(!exists::<ConfigMap>(&ns, "cut").await);
        api.next(1, posts(), Action::CutAfter);
        assert!(create("cut-after").await.is_err_and(|error| status(&error).is_none()));
        assert!(exists::<ConfigMap>(&ns, "cut-after").await);

        let named = posts().body(|body| body["metadata"]["name"] == "swallowed");
        let swallowed = api.always(named.clone(), Action::Swallow);
        assert!(timeout(SILENCE, create("swallowed")).await.is_err(), "no answer");
        assert!(!exists::<ConfigMap>(&ns, "swallowed").await);
        create("another").await.expect("the body does not match");
        let passes = api.always(named, Action::Pass);
        create("swallowed").await.expect("the newest rule decides");
        passes.remove();
        swallowed.remove();
        assert_eq!((passes.hits(), swallowed.hits()), (1, 1));
        maps.get("swallowed").await.expect("reads are not selected");
    });
}

#[test]
fn a_rule_delays_holds_and_changes_requests() {
    scenario(async {
        let (ns, api, maps) = through_proxy().await;
        let posts = || When::request(Method::POST, "/configmaps");

        for action in [Action::Delay(SILENCE), Action::DelayAnswer(SILENCE)] {
            let carried_out = matches!(action, Action::DelayAnswer(_));
            let name = if carried_out { "answered-late" } else { "late" };
            api.next(1, posts(), action);
            let start = std::time::Instant::now();
            maps.create(&PostParams::default(), &map(name)).await.expect("it is created");
            assert!(start.elapsed() >= SILENCE);
        }

        let held = api.next(1, posts(), Action::Hold);
        let creating = maps.clone();
        in_background(async move {
            creating.create(&PostParams::default(), &map("held")).await.expect("it is created");
        });
        held.await_hits(1).await;
        pass(SILENCE).await;
        assert!(!exists::<ConfigMap>(&ns, "held").await);
        held.remove();
        let created = poll(|| async { exists::<ConfigMap>(&ns, "held").await.then_some(()) });
        within("what was held is carried out", created).await;

        let edit = Action::edit_body(|body| body["data"]["key"] = json!("changed"));
        let edited = api.always(When::any().path("/configmaps/held").method(Method::PATCH), edit);
        let change = Patch::Merge(json!({"data": {"key": "sent", "other": "sent"}}));
        let patched = maps.patch("held", &PatchParams::default(), &change).await.expect("it is patched");
        let data = patched.data.unwrap_or_default();
        assert_eq!((data["key"].as_str(), data["other"].as_str()), ("changed", "sent"));
        assert_eq!(edited.hits(), 1);

        let date = "Tue, 15 Nov 1994 08:12:31 GMT";
        api.always(
            When::any(),
            Action::edit_headers(move |headers| {
                headers.insert("date", date.parse().expect("a header"));
            }),
        );
        let request = http::Request::get("/version").body(kube::client::Body::empty()).expect("a request");
        let answer = client(&api).await.send(request).await.expect("an answer");
        assert_eq!(answer.headers()["date"], date);
    });
}

#[test]
fn watches_are_frozen_thawed_closed_and_expired() {
    scenario(async {
        let (ns, api, maps) = through_proxy().await;
        let watches = When::watch("configmaps").query("labelSelector=app=a");
        let params = WatchParams::default().labels("app=a");
        let create = async |name: &str| {
            let labels = json!({"app": "a"});
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}});
            ns.create::<ConfigMap>(map).await;
        };
        let version = maps.list(&kube::api::ListParams::default()).await.expect("a list").metadata.resource_version;
        let version = version.expect("a resourceVersion");
        let seen = |event: Option<WatchEvent<ConfigMap>>| match event {
            Some(WatchEvent::Added(map)) => map.name_any(),
            event => panic!("{event:?}"),
        };

        let mut events = pin!(maps.watch(&params, &version).await.expect("a watch"));
        create("a").await;
        assert_eq!(seen(within("it comes", events.try_next()).await.expect("an event")), "a");
        assert_eq!((api.freeze(&When::watch("secrets")), api.freeze(&watches)), (0, 1));
        create("b").await;
        assert!(timeout(SILENCE, events.next()).await.is_err(), "the watch is frozen");
        assert_eq!(api.thaw(&watches), 1);
        assert_eq!(seen(within("it comes", events.try_next()).await.expect("an event")), "b");
        assert_eq!(api.close(&watches), 1);
        let end = within("the watch breaks", events.next()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");

        api.next(1, watches.clone(), Action::Freeze);
        let mut events = pin!(maps.watch(&params, &version).await.expect("a watch"));
        assert!(timeout(SILENCE, events.next()).await.is_err(), "it is frozen from the start");
        api.thaw(&watches);
        assert_eq!(seen(within("it comes", events.try_next()).await.expect("an event")), "a");

        api.next(1, watches, Action::Expired);
        let mut events = pin!(maps.watch(&params, &version).await.expect("a watch"));
        let first = within("it comes", events.next()).await;
        assert!(matches!(&first, Some(Ok(WatchEvent::Error(status))) if status.code == 410), "{first:?}");
        let next = within("the watch ends", events.next()).await;
        assert!(!matches!(next, Some(Ok(_))), "{next:?}");
    });
}

#[test]
fn commands_go_through_the_proxy() {
    scenario(async {
        let ns = Namespace::new().await;
        let api = FlakyApi::before(ns.account().await.kubeconfig()).await;
        let lists = api.count(When::list("tokencaches"));
        let listed = tokencache(api.kubeconfig(), &ns.name, &["list"]).await;
        assert_eq!((listed.code, lists.hits()), (0, 1), "{listed:?}");
    });
}
