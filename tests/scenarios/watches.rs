//! Watches and lists that the API server does not answer, or on which nothing arrives any more: all of them recover without
//! a restart. The time limits are short here; by default they are 15 times as long.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use tokencache::api::{TokenCache, names::LABEL_MANAGED};

use crate::support::{
    Action, Agent, Controller, FlakyApi, Invariant, Launch, Namespace, Scene, SecretView as _, Trouble, When,
    manifests::token_cache,
    pass, poll, scenario,
    server::{Options, TokenServer},
    within,
};

const LIMIT: [&str; 2] = ["--request-timeout", "2s"];

/// A controller behind a proxy.
struct Stage {
    controller: Controller,
    api: FlakyApi,
    server: TokenServer,
    ns: Namespace,
}

impl Stage {
    async fn new() -> Self {
        let (ns, server, api) = Self::without_controller().await;
        let controller = Controller::launch(&ns, Self::launch(&api)).await;
        Self { controller, api, server, ns }
    }

    async fn without_controller() -> (Namespace, TokenServer, FlakyApi) {
        let (ns, server) = Scene::stage(Options::default()).await;
        let api = FlakyApi::start(&ns, 0, Trouble::default()).await;
        (ns, server, api)
    }

    fn launch(api: &FlakyApi) -> Launch<'_> {
        Launch { kubeconfig: Some(api.kubeconfig()), arguments: &LIMIT, ..Launch::default() }
    }

    /// A TokenCache that is created now is reconciled.
    async fn sees(&self, name: &str) {
        self.ns.create::<TokenCache>(token_cache(name, &self.server, json!({}))).await;
        self.ns.await_ready(name, true, "Fetched").await;
    }
}

fn caches() -> When {
    When::watch("tokencaches")
}

fn managed() -> When {
    When::watch("secrets").query(&format!("labelSelector={LABEL_MANAGED}=true"))
}

#[test]
fn a_watch_of_token_caches_whose_start_is_not_answered_is_started_again() {
    scenario(async {
        let stage = Stage::new().await;
        stage.sees("before").await;
        let swallowed = stage.api.next(1, caches(), Action::Swallow);
        assert_eq!(stage.api.close(&caches()), 1);
        swallowed.await_hits(1).await;
        stage.sees("after").await;
        assert!(stage.controller.log().contains("the API server did not answer within 2 s"));
    });
}

#[test]
fn a_list_that_is_not_answered_is_repeated() {
    scenario(async {
        let stage = Stage::new().await;
        stage.sees("before").await;
        let expired = stage.api.next(1, caches(), Action::Expired);
        let swallowed = stage.api.next(1, When::list("tokencaches"), Action::Swallow);
        assert_eq!(stage.api.close(&caches()), 1);
        expired.await_hits(1).await;
        swallowed.await_hits(1).await;
        stage.sees("after").await;
    });
}

#[test]
fn a_controller_whose_first_lists_are_not_answered_becomes_ready() {
    scenario(async {
        let (ns, server, api) = Stage::without_controller().await;
        // The first asks for the definition, the second begins the watch.
        let swallowed = api.next(2, When::list("tokencaches"), Action::Swallow);
        let controller = Controller::launch(&ns, Stage::launch(&api)).await;
        assert_eq!(swallowed.hits(), 2);
        Stage { controller, api, server, ns }.sees("a").await;
    });
}

#[test]
fn established_watches_on_which_nothing_arrives_any_more_are_started_again() {
    scenario(async {
        let stage = Stage::new().await;
        stage.sees("before").await;
        assert_eq!(stage.api.freeze(&caches()), 1);
        stage.sees("after").await;
        assert!(stage.api.freeze(&When::any()) >= 5);
        stage.sees("later").await;
    });
}

#[test]
fn an_api_server_that_hangs_for_a_while_leaves_no_watch_behind() {
    scenario(async {
        let stage = Stage::new().await;
        stage.sees("before").await;
        let hangs = stage.api.always(When::any(), Action::Swallow);
        stage.api.drop_watches();
        // All five watches are started while it hangs.
        hangs.await_hits(5).await;
        hangs.remove();
        stage.sees("after").await;
        stage.ns.delete::<Secret>("before").await;
        stage.ns.await_secret("before", "a new value", |_| true).await;
    });
}

#[test]
fn a_secret_that_is_deleted_while_its_watch_is_not_answered_is_fetched_again() {
    scenario(async {
        let stage = Stage::new().await;
        stage.sees("a").await;
        let first = stage.ns.get::<Secret>("a").await.token();
        let swallowed = stage.api.next(1, managed(), Action::Swallow);
        assert_eq!(stage.api.close(&managed()), 1);
        swallowed.await_hits(1).await;
        let blind = "the only controller's watch of Secrets is not answered yet";
        let exempt = stage.ns.exempt(Invariant::ReadyWithoutValue, "a", blind);
        stage.ns.delete::<Secret>("a").await;
        let other = || async {
            let secret = stage.ns.api::<Secret>().get_opt("a").await.expect("an answer");
            secret.filter(|secret| secret.token() != first)
        };
        within("another value is there", poll(other)).await;
        drop(exempt);
    });
}

#[test]
fn a_controller_is_not_ready_while_a_watch_cannot_be_started_and_lives_on() {
    scenario(async {
        let stage = Stage::new().await;
        let swallowed = stage.api.always(caches(), Action::Swallow);
        stage.api.close(&caches());
        let unready = || async {
            let (status, text) = stage.controller.ask("/readyz").await?;
            (status == 503 && text.contains("TokenCaches")).then_some(text)
        };
        within("it is not ready", poll(unready)).await;
        assert_eq!(stage.controller.ask("/livez").await.map(|(status, _)| status), Some(200));
        let silence = stage.controller.metrics().await.sum("tokencache_watch_silence_seconds", &[]);
        assert!(silence >= 10.0, "{silence}");
        assert!(stage.controller.log().contains("not ready: nothing has arrived from the API server"));
        swallowed.remove();
        stage.controller.ready().await;
        stage.sees("a").await;
        // Silent watches are started again for longer than it takes to lose readiness, and nothing is wrong.
        pass(Duration::from_secs(14)).await;
        assert_eq!(stage.controller.ask("/readyz").await.map(|(status, _)| status), Some(200));
    });
}

#[test]
fn an_agent_gets_its_values_although_lists_and_watches_are_not_answered() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let api = FlakyApi::start(&scene.ns, 0, Trouble::default()).await;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let argument = format!("a={}", file.display());
        // Of the TokenCache, and of the Secret.
        let lists = ["tokencaches", "secrets"].map(|resource| api.next(1, When::list(resource), Action::Swallow));
        let _agent = Agent::start(api.kubeconfig(), &scene.ns, &[&LIMIT[..], &["--file", &argument]].concat());
        let holds = async |token: String| {
            let is_there = || async { (fs::read_to_string(&file).ok()? == token).then_some(()) };
            within("the value is in the file", poll(is_there)).await;
        };
        holds(scene.secret("a").await.token()).await;
        assert_eq!(lists.map(|rule| rule.hits()), [1, 1]);

        for fault in ["swallowed", "frozen"] {
            let old = scene.secret("a").await.token();
            let secrets = When::watch("secrets");
            if fault == "swallowed" {
                let swallowed = api.next(1, secrets.clone(), Action::Swallow);
                assert_eq!(api.close(&secrets), 1);
                swallowed.await_hits(1).await;
            } else {
                let frozen = || async { (api.freeze(&secrets) == 1).then_some(()) };
                within("its watch is established", poll(frozen)).await;
            }
            scene.ns.request("a", fault).await;
            let new = scene.ns.await_secret("a", "another value", |secret| secret.token() != old).await.token();
            holds(new).await;
        }
    });
}
