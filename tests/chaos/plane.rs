//! The cluster's own parts, which are killed, frozen, and brought back.

use std::{path::Path, time::Duration};

use tokio::process::Command;

use crate::support::{ended, poll, within};

/// The API server.
pub const API_SERVER: &str = "kube-apiserver";
/// Its store.
pub const ETCD: &str = "etcd";

/// What collects garbage.
const CONTROLLER_MANAGER: &str = "kube-controller-manager";

/// Carries out a verb of `hack/cluster.sh` on a part of the cluster of this run.
async fn order(verb: &str, part: &str) {
    let Ok(cluster) = std::env::var("TOKENCACHE_CLUSTER") else {
        panic!("chaos needs a cluster of its own: hack/cluster.sh run -- cargo test --test chaos (see hack/chaos.sh)");
    };
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/cluster.sh"));
    command.args([verb, "--name", &cluster, part]);
    let ended = ended(command).await;
    assert_eq!(ended.code, 0, "{verb} {part}: {}", ended.stderr);
}

/// Kills a part, and starts it again after a while.
pub async fn restart(part: &str, down: Duration) {
    order("kill", part).await;
    tokio::time::sleep(down).await;
    order("start", part).await;
}

/// Lets a part stand still for a while.
pub async fn freeze(part: &str, length: Duration) {
    order("freeze", part).await;
    tokio::time::sleep(length).await;
    order("thaw", part).await;
}

/// Waits until the API server says that it is ready. What collects garbage begins anew then: where it has a leader
/// election, it ends when the API server does not answer; and without a new beginning it may stand still for minutes.
pub async fn recovered(client: &kube::Client) {
    ready(client).await;
    restart(CONTROLLER_MANAGER, Duration::ZERO).await;
}

async fn ready(client: &kube::Client) {
    let ask = || async {
        let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
        let answer = tokio::time::timeout(Duration::from_secs(1), client.request_text(request)).await;
        answer.is_ok_and(|text| text.is_ok_and(|text| text == "ok")).then_some(())
    };
    within("the API server is ready", poll(ask)).await;
}
