//! The agent as a sidecar, as examples/agent.yaml has it.

use k8s_openapi::api::{
    core::v1::{Pod, Secret, ServiceAccount},
    rbac::v1::{Role, RoleBinding},
};
use kube::api::LogParams;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    node::{BUSYBOX, COLLECTOR, Stage, on_node},
    support::{SecretView as _, poll, within},
};

const SCRIPT: &str = r#"
token=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo "{\"token\": \"$token\", \"expires_in\": 3600}" > "$TOKENCACHE_RESULT"
"#;

/// The example's objects, with images that are on the node.
fn objects() -> Vec<Value> {
    let text = include_str!("../../examples/agent.yaml");
    let text = text.replace("tokencache:0.1.0", COLLECTOR).replace("busybox:1.36", BUSYBOX);
    text.split("---\n").map(|text| serde_saphyr::from_str(text).expect("YAML")).collect()
}

async fn create(stage: &Stage, mut object: Value) {
    match object["kind"].as_str().expect("a kind") {
        "ServiceAccount" => drop(Box::pin(stage.ns.create::<ServiceAccount>(object)).await),
        "Role" => drop(Box::pin(stage.ns.create::<Role>(object)).await),
        "RoleBinding" => {
            object["subjects"][0]["namespace"] = stage.ns.name.clone().into();
            drop(Box::pin(stage.ns.create::<RoleBinding>(object)).await);
        }
        "Pod" => drop(Box::pin(stage.ns.create::<Pod>(object)).await),
        kind => panic!("the example has a {kind}"),
    }
}

/// Waits until the pod is Ready, by its readiness probe, which asks the agent.
async fn is_ready(stage: &Stage) {
    let ask = || async {
        let pod = stage.ns.api::<Pod>().get("orders").await.ok()?;
        let conditions = pod.status?.conditions?;
        conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True").then_some(())
    };
    Box::pin(within("the pod is Ready", poll(ask))).await;
}

/// Waits until the program says that it has read this token.
async fn reads(stage: &Stage, token: &str) {
    let sum: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("there is another token: {}", &sum[..16]);
    let pods = stage.ns.api::<Pod>();
    let log = || async {
        let params = LogParams { container: Some("orders".into()), ..LogParams::default() };
        let log = pods.logs("orders", &params).await.ok()?;
        log.lines().any(|of| of == line).then_some(())
    };
    Box::pin(within("the program reads the token", poll(log))).await;
}

#[test]
fn a_program_beside_the_agent_reads_each_new_token_from_its_file() {
    on_node(async {
        let stage = Stage::new().await;
        stage.script("orders-api", SCRIPT, json!({})).await;
        for object in objects() {
            Box::pin(create(&stage, object)).await;
        }
        Box::pin(is_ready(&stage)).await;
        let first: Secret = Box::pin(stage.ns.get("orders-api")).await;
        // The program has seen it before there is another.
        reads(&stage, &first.token()).await;
        let second = Box::pin(stage.refreshed("orders-api", "1")).await;
        reads(&stage, &second.token()).await;

        let params = LogParams { container: Some("agent".into()), ..LogParams::default() };
        let log = stage.ns.api::<Pod>().logs("orders", &params).await.expect("the agent's log");
        assert!(!log.contains("not on memory") && log.contains("the value is in its files"), "{log}");
    });
}
