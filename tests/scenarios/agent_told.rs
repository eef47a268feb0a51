//! Who uses a value is told of it although the agent that wrote it ends before that.

use std::fs;

use serde_json::json;

use super::agent::{Stage, holds};
use crate::support::{SecretView as _, poll, scenario, within};

#[test]
fn a_value_whose_agent_ended_before_it_could_tell_of_it_is_told_by_the_next() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let (dir, single) = (stage.text("dir"), format!("a={}", stage.text("single")));
        let (well, told) = (stage.path("well"), stage.path("told"));
        let script = format!("test -e {} && echo $TOKENCACHE_NAME >> {}", well.display(), told.display());
        let arguments = ["a", "--dir", &dir, "--file", &single, "--", "sh", "-c", &script];
        let agent = stage.start(&arguments);
        holds(&stage.path("single"), &stage.scene.secret("a").await.token()).await;
        let token = stage.refreshed("a", "1").await;
        agent.says("notifying the consumer failed").await;
        holds(&stage.path("single"), &token).await;
        agent.kill().await;
        assert!(!told.exists());

        fs::write(&well, "").expect("it is well");
        let agent = stage.start(&arguments);
        let lines = || async { fs::read_to_string(&told).ok().filter(|text| !text.is_empty()) };
        assert_eq!(within("it is told", poll(lines)).await, "a\n");
        agent.says("consumer notified").await;
        agent.kill().await;
        let agent = stage.start(&arguments);
        agent.says("the value is in its files").await;
        let _ = stage.refreshed("a", "2").await;
        agent.says("consumer notified").await;
        assert_eq!(fs::read_to_string(&told).expect("it was told"), "a\na\n", "once of each");
    });
}
