//! The cluster's own parts, which are killed, frozen, and brought back.

use std::{path::Path, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::support::{Ended, ended, poll};

/// The API server.
pub const API_SERVER: &str = "kube-apiserver";
/// Its store.
pub const ETCD: &str = "etcd";

/// What collects garbage.
const CONTROLLER_MANAGER: &str = "kube-controller-manager";

/// Carries out a verb of `hack/cluster.sh` on a part of the cluster of this run.
async fn order(verb: &str, part: &str) {
    let ended = ask(verb, part).await;
    assert_eq!(ended.code, 0, "{verb} {part}: {}", ended.stderr);
}

async fn ask(verb: &str, part: &str) -> Ended {
    let Ok(cluster) = std::env::var("TOKENCACHE_CLUSTER") else {
        panic!("chaos needs a cluster of its own: hack/cluster.sh run -- cargo test --test chaos (see hack/chaos.sh)");
    };
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/cluster.sh"));
    command.args([verb, "--name", &cluster, part]);
    ended(command).await
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

/// For how long the API server may be on its way before it is looked whether it is there at all.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// How long it may take to be ready again on a busy machine. All that time is excused.
const RECOVERY: Duration = Duration::from_secs(300);

async fn ready(client: &kube::Client) {
    let ask = || async {
        let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
        let answer = timeout(Duration::from_secs(1), client.request_text(request)).await;
        answer.is_ok_and(|text| text.is_ok_and(|text| text == "ok")).then_some(())
    };
    let answered = async {
        while timeout(ON_ITS_WAY, poll(ask)).await.is_err() {
            revive().await;
        }
    };
    assert!(timeout(RECOVERY, answered).await.is_ok(), "the API server is not ready within {RECOVERY:?}");
}

/// Starts the API server if it has ended by itself, as that of 1.20 seems to after some thaws, and tells its last words.
async fn revive() {
    if ask("start", API_SERVER).await.code != 0 {
        // It is there.
        return;
    }
    println!("    {API_SERVER} had ended by itself, and was started again");
    let log =
        std::env::var("TOKENCACHE_TEST_KUBECONFIG").map(|path| Path::new(&path).with_file_name("kube-apiserver.log"));
    let text = log.ok().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last =
        text.lines().filter(|line| ["fatal error:", "panic:", "F1", "Error:"].iter().any(|it| line.starts_with(it)));
    println!("    {}", last.next_back().unwrap_or("without a word"));
}
