//! Objects that are deleted and created again under the same name, while an agent keeps a value of them in a file.

use std::{fs, path::PathBuf};

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokencache::api::TokenCache;

use crate::support::{
    Agent, Cluster, Controller, Launch, Namespace, Scene, SecretView as _,
    manifests::{CREDENTIALS, source_secret, token_cache},
    poll, scenario,
    server::{Options, TokenServer},
    within,
};

/// A controller, and an agent that keeps the TokenCache `a`. Both may do all, wherever they find it.
struct Stage {
    ns: Namespace,
    server: TokenServer,
    _controller: Controller,
    agent: Agent,
    home: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let (ns, server) = Scene::stage(Options::default()).await;
        let kubeconfig = &Cluster::get().await.kubeconfig;
        let launch = Launch { kubeconfig: Some(kubeconfig), ..Launch::default() };
        let controller = Controller::launch(&ns, launch).await;
        let home = tempfile::tempdir().expect("a folder");
        let file = format!("a={}", home.path().join("token").display());
        let mut agent = Agent::start(kubeconfig, &ns, &["--file", &file, "--listen", "127.0.0.1:0"]);
        agent.listens().await;
        Self { ns, server, _controller: controller, agent, home }
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("token")
    }

    async fn create(&self, spec: Value) {
        self.ns.create::<TokenCache>(token_cache("a", &self.server, spec)).await;
    }

    /// Waits until the agent has the server's newest token, of which there are so many.
    async fn keeps(&self, number: usize) {
        let newest = || async {
            let token = self.server.issued_as("a", number)?;
            (fs::read_to_string(self.file()).ok()? == token).then_some(())
        };
        within(&format!("the file holds token {number}"), poll(newest)).await;
        self.agent.await_health(200, "valid until").await;
        let secret = self.ns.get::<TokenCache>("a").await.spec.target.name.unwrap_or_else(|| "a".into());
        assert_eq!(self.ns.get::<Secret>(&secret).await.token(), self.server.issued("a")[number - 1]);
    }
}

#[test]
fn an_agent_follows_a_token_cache_that_is_created_again_with_another_secret() {
    scenario(async {
        let stage = Stage::new().await;
        stage.create(json!({})).await;
        stage.keeps(1).await;
        let (mut number, mut secret) = (1, "a");
        for (next, spec) in [("z", json!({"target": {"name": "z"}})), ("a", json!({}))] {
            stage.ns.delete::<TokenCache>("a").await;
            // Once with a pause in which there is nothing, and once without.
            if next == "z" {
                stage.ns.await_gone::<Secret>(secret, "it goes with its owner").await;
                stage.agent.await_health(503, "no value").await;
            }
            stage.create(spec).await;
            (number, secret) = (number + 1, next);
            stage.keeps(number).await;
        }
    });
}

#[test]
fn an_agent_follows_a_secret_that_is_deleted() {
    scenario(async {
        let stage = Stage::new().await;
        stage.create(json!({})).await;
        stage.keeps(1).await;
        stage.ns.delete::<Secret>("a").await;
        stage.keeps(2).await;
    });
}

#[test]
fn a_controller_and_an_agent_follow_a_namespace_that_is_created_again() {
    scenario(async {
        let stage = Stage::new().await;
        stage.create(json!({})).await;
        stage.keeps(1).await;
        stage.ns.create_again().await;
        stage.ns.create::<Secret>(source_secret(CREDENTIALS, &stage.server.options().client_secret, true)).await;
        stage.create(json!({})).await;
        stage.keeps(2).await;
    });
}
