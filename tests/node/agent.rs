//! The agent as a sidecar, as examples/agent.yaml has it.

use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
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

#[test]
fn a_program_beside_the_agent_reads_each_new_token_from_its_file() {
    on_node(async {
        let stage = Stage::new().await;
        stage.script("orders-api", SCRIPT, json!({})).await;
        for mut object in objects() {
            if object["kind"] == "RoleBinding" {
                object["subjects"][0]["namespace"] = stage.ns.name.clone().into();
            }
            match object["kind"].as_str().expect("a kind") {
                "ServiceAccount" => drop(stage.ns.create::<ServiceAccount>(object).await),
                "Role" => drop(stage.ns.create::<Role>(object).await),
                "RoleBinding" => drop(stage.ns.create::<RoleBinding>(object).await),
                "Pod" => drop(stage.ns.create::<Pod>(object).await),
                kind => panic!("the example has a {kind}"),
            }
        }
        // Its readiness probe asks the agent.
        let is_ready = |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
        };
        stage.ns.await_object::<Pod>("orders", "the pod is Ready", is_ready).await;
        let first = stage.ns.get::<k8s_openapi::api::core::v1::Secret>("orders-api").await;
        for token in [first.token(), stage.refreshed("orders-api", "1").await.token()] {
            let sum: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            let line = format!("there is another token: {}", &sum[..16]);
            let log = || async {
                let params = LogParams { container: Some("orders".into()), ..LogParams::default() };
                let log = stage.ns.api::<Pod>().logs("orders", &params).await.ok()?;
                log.lines().any(|of| of == line).then_some(())
            };
            within("the program reads the token", poll(log)).await;
        }
        let params = LogParams { container: Some("agent".into()), ..LogParams::default() };
        let log = stage.ns.api::<Pod>().logs("orders", &params).await.expect("the agent's log");
        assert!(!log.contains("not on memory") && log.contains("the value is in its files"), "{log}");
    });
}
