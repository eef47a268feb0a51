//! The Roles of docs/consuming.md are enough for what they are for, and without any part of one it does not work.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::{
    Client as KubeClient, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokencache::{
    api::TokenCache,
    client::{Client, Error, connect},
};

use super::client::lazy;
use crate::support::{
    Account, CacheView as _, Ended, Scene, chart_rules, manifests::token_cache, scenario, server::Behaviour, tokencache,
};

/// The TokenCache that the page speaks of.
const NAME: &str = "orders-api";

/// The rules of a Role, by its name, as the page has them.
pub(super) fn rules(role: &str) -> Vec<PolicyRule> {
    let page = include_str!("../../docs/consuming.md");
    let yaml = page.split("```yaml\n").nth(1).and_then(|text| text.split("```").next()).expect("the page's Roles");
    let roles: Vec<Role> = yaml.split("---\n").map(|text| serde_saphyr::from_str(text).expect("a Role")).collect();
    let found = roles.into_iter().find(|found| found.metadata.name.as_deref() == Some(role));
    found.and_then(|role| role.rules).unwrap_or_else(|| panic!("the page has no Role {role}"))
}

/// The same rules without one verb of one of them, in all ways; and what is taken away.
fn less(rules: &[PolicyRule]) -> Vec<(String, Vec<PolicyRule>)> {
    let mut all = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        for verb in &rule.verbs {
            let mut fewer = rules.to_vec();
            fewer[at].verbs.retain(|kept| kept != verb);
            fewer.retain(|rule| !rule.verbs.is_empty());
            all.push((format!("{verb} {:?}", rule.resources.as_deref().unwrap_or_default()), fewer));
        }
    }
    all
}

/// A scene with the lazy TokenCache of the page, which somebody else has filled or not.
struct Stage {
    scene: Scene,
    accounts: usize,
}

impl Stage {
    async fn new() -> Self {
        let scene = Scene::new().await;
        // Slow enough that the first list does not show its end: that is the watch's to tell.
        let slow = Behaviour::After(Duration::from_secs(2), Box::new(Behaviour::Default));
        scene.server.set(NAME, slow);
        scene.cache(NAME, lazy()).await;
        Self { scene, accounts: 0 }
    }

    async fn account(&mut self, rules: Vec<PolicyRule>) -> Account {
        self.accounts += 1;
        let name = format!("consumer-{}", self.accounts);
        Account::named(self.scene.ns.client(), &self.scene.ns.name, &name, rules).await
    }

    fn admin(&self) -> Client {
        Client::new(self.scene.ns.client().clone(), &self.scene.ns.name)
    }

    /// Fills or clears the cache, once the run that somebody was refused to wait for has ended.
    async fn set(&self, filled: bool) {
        let answered = |cache: &TokenCache| cache.seen().refresh_requested.is_none();
        self.scene.ns.await_cache(NAME, "no request is open", answered).await;
        if filled { self.admin().fetch(NAME).await.map(drop) } else { self.admin().clear(NAME).await.map(drop) }
            .expect("the stage is set");
    }

    async fn run(&self, account: &Account, arguments: &[&str]) -> Ended {
        tokencache(account.kubeconfig(), &self.scene.ns.name, arguments).await
    }

    /// The command works under the Role, and is refused without any part of it, by a message that names a Role.
    async fn prove(&mut self, role: &str, filled: bool, arguments: &[&str]) {
        let whole = rules(role);
        for (missing, rules) in std::iter::once((String::new(), whole.clone())).chain(less(&whole)) {
            self.set(filled).await;
            let account = self.account(rules).await;
            let ended = self.run(&account, arguments).await;
            if missing.is_empty() {
                assert_eq!(ended.code, 0, "{role}: {arguments:?}: {ended:?}");
            } else {
                assert_eq!(ended.code, 1, "{role} without {missing}: {arguments:?}: {ended:?}");
                assert!(ended.stderr.contains("Grant the caller the Role "), "{missing}: {ended:?}");
            }
        }
    }
}

#[test]
fn read_and_fetch_are_the_smallest_for_a_fetch() {
    scenario(async {
        let mut stage = Stage::new().await;
        stage.prove("read", true, &["fetch", NAME]).await;
        stage.prove("fetch", false, &["fetch", NAME]).await;
    });
}

#[test]
fn fetch_is_the_smallest_for_a_refresh() {
    scenario(async {
        Stage::new().await.prove("fetch", true, &["refresh", NAME]).await;
    });
}

#[test]
fn clear_and_clear_all_are_the_smallest_for_clearing() {
    scenario(async {
        let mut stage = Stage::new().await;
        stage.prove("clear", true, &["clear", NAME]).await;
        stage.prove("clear-all", true, &["clear", "--all"]).await;
    });
}

#[test]
fn list_and_status_show_the_lock_only_to_those_who_may_see_leases() {
    scenario(async {
        let mut stage = Stage::new().await;
        stage.admin().fetch(NAME).await.expect("a value");
        for (role, arguments) in [("list", vec!["list"]), ("status", vec!["status", NAME])] {
            let whole = rules(role);
            let account = stage.account(whole.clone()).await;
            assert_eq!(stage.run(&account, &arguments).await.code, 0, "{role}");
            // The Lease is the one part that is not needed.
            for (missing, rules) in less(&whole) {
                let account = stage.account(rules).await;
                let code = stage.run(&account, &arguments).await.code;
                assert_eq!(code, i32::from(!missing.contains("leases")), "{role} without {missing}");
            }
        }
    });
}

async fn as_account(account: &Account) -> KubeClient {
    let file = Kubeconfig::read_from(account.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    connect(config).expect("a client")
}

#[test]
fn watch_is_the_smallest_for_a_handle() {
    scenario(async {
        let mut stage = Stage::new().await;
        let whole = rules("watch");
        for (missing, rules) in std::iter::once((String::new(), whole.clone())).chain(less(&whole)) {
            stage.set(false).await;
            let account = stage.account(rules).await;
            let handle = Client::new(as_account(&account).await, &stage.scene.ns.name).watch(NAME);
            let (mut ready, mut refused) = (false, false);
            crate::support::within("a value or a refusal", async {
                while !ready && !refused {
                    ready = tokio::time::timeout(Duration::from_millis(50), handle.ready()).await.is_ok();
                    refused = matches!(handle.error().as_deref(), Some(Error::Forbidden { .. }));
                }
            })
            .await;
            assert_eq!((ready, refused), (missing.is_empty(), !missing.is_empty()), "without {missing}");
        }
    });
}

#[test]
fn a_direct_fetch_needs_the_controllers_rights_in_that_namespace() {
    scenario(async {
        let (ns, server) = Scene::stage(crate::support::server::Options::default()).await;
        let cache = ns.create::<TokenCache>(token_cache(NAME, &server, lazy())).await;
        assert_eq!(cache.seen().runs, 0);
        let arguments = ["fetch", NAME, "--direct", "--allow-cidr", "127.0.0.0/8"];
        // Where policies hold, it also counts as a controller.
        let update = PolicyRule {
            api_groups: Some(vec!["tokencache.dev".into()]),
            resources: Some(vec!["tokencaches/status".into()]),
            verbs: vec!["update".into()],
            ..PolicyRule::default()
        };
        let account = Account::named(ns.client(), &ns.name, "whole", [chart_rules(), vec![update]].concat()).await;
        let ended = tokencache(account.kubeconfig(), &ns.name, &arguments).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let account = Account::named(ns.client(), &ns.name, "little", rules("fetch")).await;
        let clear = Client::new(ns.client().clone(), &ns.name).clear(NAME).await;
        clear.expect("cleared");
        let ended = tokencache(account.kubeconfig(), &ns.name, &[&arguments[..], &["--timeout", "3s"]].concat()).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains("leases"), "{ended:?}");
    });
}
