//! The agent keeps values in files, tells of changes, and answers requests; under the Role `watch` and no other rights.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use futures::future::join_all;
use k8s_openapi::api::{core::v1::Secret, rbac::v1::Role};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client_roles::rules;
use crate::support::{
    Account, Agent, Scene, SecretView as _, assert_no_leak, poll, run_to_exit, scenario,
    server::{Behaviour, Expiry, Gate},
    within,
};

/// A scene with an account that has the rights of an agent of these TokenCaches, and a folder for its files.
pub(super) struct Stage {
    pub(super) scene: Scene,
    account: Account,
    home: TempDir,
}

impl Stage {
    pub(super) async fn new(names: &[&str]) -> Self {
        let scene = Scene::new().await;
        let mut rules = rules("watch");
        for rule in &mut rules {
            rule.resource_names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        }
        let account = Account::named(scene.ns.client(), &scene.ns.name, "agent", rules).await;
        Self { scene, account, home: tempfile::tempdir().expect("a folder") }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path in UTF-8").to_owned()
    }

    pub(super) fn start(&self, arguments: &[&str]) -> Agent {
        Agent::start(self.account.kubeconfig(), &self.scene.ns, arguments)
    }

    /// An agent that is asked at its first address.
    async fn listening(&self, arguments: &[&str]) -> Agent {
        let mut agent = self.start(arguments);
        agent.listens().await;
        agent
    }

    /// Asks for a new value, and gives it when the Secret has it.
    pub(super) async fn refreshed(&self, name: &str, asked: &str) -> String {
        let before = self.scene.secret(name).await.token();
        self.scene.ns.request(name, asked).await;
        let secret = self.scene.ns.await_secret(name, "a new value", |secret| secret.token() != before).await;
        secret.token()
    }

    async fn fails(&self, name: &str) {
        self.scene.server.set(name, Behaviour::Status(500, Vec::new(), String::new()));
    }
}

const PORT: [&str; 2] = ["--listen", "127.0.0.1:0"];
const LOG: &str = "TOKENCACHE_NAME";

pub(super) async fn holds(path: &Path, text: &str) {
    let what = format!("{} has the new value", path.display());
    within(&what, poll(|| async { (fs::read_to_string(path).ok()? == text).then_some(()) })).await;
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

fn quick_to_fail() -> Value {
    json!({"retry": {"initialInterval": "1s", "maxInterval": "1s"}})
}

#[test]
fn with_once_the_agent_waits_for_the_first_values_writes_them_and_ends() {
    scenario(async {
        let stage = Stage::new(&["a", "b"]).await;
        let (dir, file) = (stage.text("dir"), format!("b:token={}", stage.text("single")));
        let agent = stage.start(&["a", "--dir", &dir, "--file", &file, "--once", "--mode", "0440"]);
        agent.says("there is no TokenCache a").await;
        stage.scene.ready_cache("a", json!({})).await;
        holds(&stage.path("dir/a/token"), &stage.scene.secret("a").await.token()).await;
        stage.scene.ready_cache("b", json!({})).await;
        assert_eq!(agent.ended().await.code(), Some(0));
        assert_eq!(fs::read_to_string(stage.path("single")).unwrap(), stage.scene.secret("b").await.token());
        for (name, expected) in [("dir/a/token", 0o440), ("single", 0o440), ("dir/a", 0o750), ("dir", 0o750)] {
            assert_eq!(mode(&stage.path(name)), expected, "{name}");
        }
    });
}

#[test]
fn files_follow_the_value_and_all_keys_of_it_change_at_once() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({"target": {"data": {"one": "token", "token": "token"}}})).await;
        let _agent = stage.start(&["a", "--dir", &stage.text("dir")]);
        let folder = stage.path("dir/a");
        holds(&folder.join("token"), &stage.scene.secret("a").await.token()).await;
        assert_eq!((mode(&folder.join("token")), mode(&folder)), (0o400, 0o700));
        let reads = folder.clone();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reader = tokio::task::spawn_blocking(move || {
            let mut seen = BTreeSet::new();
            while stopped.recv_timeout(std::time::Duration::from_millis(1))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let data = reads.join(fs::read_link(reads.join("..data")).expect("a value at any time"));
                // It may be gone by now, with both files.
                let Ok(one) = fs::read_to_string(data.join("one")) else { continue };
                let Ok(token) = fs::read_to_string(data.join("token")) else { continue };
                assert_eq!(one, token);
                seen.insert(one);
            }
            seen.len()
        });
        for asked in ["1", "2", "3"] {
            let token = stage.refreshed("a", asked).await;
            holds(&folder.join("token"), &token).await;
            holds(&folder.join("one"), &token).await;
        }
        drop(stop);
        assert!(reader.await.expect("no mixture") > 1);
        // A changed form of the data is a new value; a key that is no more goes.
        stage.scene.ns.patch_spec("a", json!({"target": {"data": {"one": null}}})).await;
        within("the file goes", poll(|| async { (!folder.join("one").exists()).then_some(()) })).await;
        assert_eq!(fs::read_to_string(folder.join("token")).unwrap(), stage.scene.secret("a").await.token());
    });
}

#[test]
fn a_command_runs_for_each_changed_value_but_not_for_the_first() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let (dir, told) = (stage.text("dir"), stage.path("told"));
        // A line for each run: whose value, and which one its file holds at that moment.
        let script = format!("echo \"${LOG} $(sha256sum < {dir}/a/token)\" >> {}", told.display());
        let arguments = ["a", "--dir", &dir, "--", "sh", "-c", &script];
        let lines = |count: usize| {
            let told = told.clone();
            async move {
                let read = || async {
                    let lines: Vec<String> = fs::read_to_string(&told).ok()?.lines().map(str::to_owned).collect();
                    (lines.len() >= count).then_some(lines)
                };
                within(&format!("the command ran {count} times"), poll(read)).await
            }
        };
        let agent = stage.start(&arguments);
        holds(&stage.path("dir/a/token"), &stage.scene.secret("a").await.token()).await;
        for asked in [1, 2] {
            let token = stage.refreshed("a", &asked.to_string()).await;
            let told = lines(asked).await;
            assert_eq!(fs::read_to_string(stage.path("dir/a/token")).unwrap(), token);
            assert!(told.len() == asked && told.iter().all(|line| line.starts_with("a ")), "{told:?}");
        }
        let told = lines(2).await;
        assert_ne!(told[0], told[1]);
        agent.kill().await;

        // What changed while no agent ran is told by the next; what did not is not.
        let token = stage.refreshed("a", "3").await;
        let agent = stage.start(&arguments);
        holds(&stage.path("dir/a/token"), &token).await;
        lines(3).await;
        agent.says("consumer notified").await;
        agent.terminate().await;
        let agent = stage.start(&arguments);
        agent.says("the value is in its files").await;
        let _ = stage.refreshed("a", "4").await;
        assert_eq!(lines(4).await.len(), 4);
    });
}

#[test]
fn the_process_of_the_pid_file_gets_the_signal() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let (pid_file, told) = (stage.text("pid"), stage.text("told"));
        // Not HUP: where that was ignored from the start, as under nohup, a shell cannot trap it.
        let script = format!("trap 'echo told >> {told}' USR1; echo $$ > {pid_file}; while :; do sleep 0.1; done");
        let mut process = tokio::process::Command::new("sh");
        let _process = process.args(["-c", &script]).kill_on_drop(true).spawn().expect("a process");
        within("it waits", poll(|| async { fs::read_to_string(&pid_file).ok().filter(|pid| !pid.is_empty()) })).await;
        let signal = ["--signal", "USR1", "--pid-file", &pid_file];
        let agent = stage.listening(&[&["a"][..], &PORT, &signal].concat()).await;
        agent.await_health(200, "a: valid until").await;
        assert!(!Path::new(&told).exists(), "the first value is no news");
        stage.refreshed("a", "1").await;
        holds(Path::new(&told), "told\n").await;

        fs::remove_file(&pid_file).expect("it is removed");
        stage.refreshed("a", "2").await;
        agent.await_health(503, "not told: the pid file").await;
    });
}

#[test]
fn values_are_answered_on_a_port_and_on_a_socket_and_stand_in_no_log() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let secret = stage.scene.secret("a").await;
        let socket = format!("unix:{}", stage.text("agent.sock"));
        for listen in ["127.0.0.1:0", "[::1]:0", &socket] {
            let agent = stage.listening(&["a", "--listen", listen]).await;
            agent.await_health(200, "a: valid until").await;
            let answer = agent.get("/fetch/a").await;
            assert_eq!((answer.status, answer.text), (200, secret.token()), "{listen}");
            assert_eq!(answer.expires_at.parse(), Ok(tokencache::api::ExpiresAt::At(secret.expires_at())));
            let json = agent.get("/fetch/a?output=json").await;
            let read: Value = serde_json::from_str(&json.text).expect("JSON");
            assert_eq!(read["data"], json!({"token": secret.token()}));
            assert_eq!(json.etag, answer.etag);
            for (path, status) in [
                ("/fetch/b", 404),
                ("/fetch/a?key=x", 400),
                ("/fetch/a?output=x", 400),
                ("/", 404),
                ("/refresh/a", 405),
            ] {
                assert_eq!(agent.get(path).await.status, status, "{path}");
            }
            assert_eq!(agent.post("/refresh/a", Some("x")).await.status, 400);
            let foreign = agent.get_with("/fetch/a", ("Origin", "http://example.com")).await;
            assert_eq!(foreign.status == 403, listen != socket, "{foreign:?}");
            let plain = agent.get_plainly("/fetch/a").await;
            assert_eq!(plain.status == 403 && !plain.text.contains(&secret.token()), listen != socket, "{plain:?}");
            assert_eq!(agent.get_plainly("/healthz").await.status, 200, "it tells no value");
            let address = agent_address(&agent, listen);
            let (probe, _) = run_to_exit("/dev/null", &["agent", "--listen", &address, "--health"]).await;
            assert_eq!(probe.code(), Some(0));
            if listen == socket {
                assert_eq!(mode(&stage.path("agent.sock")), 0o600);
                assert_eq!(agent.terminate().await.code(), Some(0));
                assert!(!stage.path("agent.sock").exists());
            }
        }
        assert_no_leak(&stage.scene.ns, &stage.scene.server, &[&stage.scene.controller]).await;
    });
}

fn agent_address(agent: &Agent, listen: &str) -> String {
    if listen.starts_with("unix:") { listen.to_owned() } else { agent.base().replace("http://", "") }
}

#[test]
fn a_hundred_who_saw_the_same_value_fail_cost_one_run() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let agent = stage.listening(&[&["a"][..], &PORT].concat()).await;
        let first = agent.get("/fetch/a").await;
        let answers = join_all((0..100).map(|_| agent.post("/refresh/a", Some(&first.etag)))).await;
        let token = stage.scene.secret("a").await.token();
        assert_ne!(token, first.text);
        for answer in &answers {
            assert_eq!((answer.status, &answer.text), (200, &token));
        }
        // And whoever comes later.
        assert_eq!(agent.post("/refresh/a", Some(&first.etag)).await.text, token);
        assert_eq!(stage.scene.server.requests("a"), 2);
        // Without a condition, or with the tag of the new one, there is another run.
        let second = agent.post("/refresh/a", Some(&answers[0].etag)).await;
        assert!(second.status == 200 && second.text != token, "{}", second.status);
        assert_eq!(agent.post("/refresh/a", None).await.status, 200);
        assert_eq!(stage.scene.server.requests("a"), 4);
    });
}

#[test]
fn a_valid_value_is_served_without_a_controller_and_a_failure_is_said_with_its_reason() {
    scenario(async {
        let stage = Stage::new(&["a", "b"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        stage.fails("b").await;
        stage.scene.cache("b", quick_to_fail()).await;
        let agent = stage.listening(&[&["a", "b"][..], &PORT].concat()).await;
        let failed = agent.get("/fetch/b").await;
        assert!(failed.status == 502 && failed.text.contains("ServerError"), "{failed:?}");
        agent.await_health(503, "b: no value yet; no newer value: ServerError").await;
        stage.fails("a").await;
        let failed = agent.post("/refresh/a", None).await;
        assert!(failed.status == 502 && failed.text.contains("ServerError"), "{failed:?}");

        let token = stage.scene.secret("a").await.token();
        let Stage { scene: Scene { controller, ns: _ns, server: _server }, .. } = stage;
        controller.kill().await;
        assert_eq!(agent.get("/fetch/a").await.text, token);
    });
}

#[test]
fn an_expired_value_stays_in_its_file_or_goes_as_it_is_told() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.server.set("a", Behaviour::Issue(Expiry::In(6)));
        stage.scene.ready_cache("a", quick_to_fail()).await;
        let start = async |name: &str, more: &[&str]| {
            let file = format!("a={}", stage.text(name));
            stage.listening(&[&["--file", &file][..], &PORT, more].concat()).await
        };
        let (keeps, removes) = (start("keeps", &[]).await, start("removes", &["--remove-expired"]).await);
        keeps.await_health(200, "a: valid until").await;
        removes.await_health(200, "a: valid until").await;
        stage.fails("a").await;
        keeps.await_health(503, "a: expired at").await;
        removes.await_health(503, "a: expired at").await;
        within("the file goes", poll(|| async { (!stage.path("removes").exists()).then_some(()) })).await;
        assert_eq!(fs::read_to_string(stage.path("keeps")).unwrap(), stage.scene.secret("a").await.token());
        let answer = keeps.get("/fetch/a").await;
        assert!(answer.status == 502 && answer.text.contains("ServerError"), "never an expired value: {answer:?}");

        stage.scene.server.set("a", Behaviour::Default);
        keeps.await_health(200, "a: valid until").await;
        removes.await_health(200, "a: valid until").await;
        let token = stage.scene.secret("a").await.token();
        for name in ["keeps", "removes"] {
            holds(&stage.path(name), &token).await;
        }
    });
}

#[test]
fn what_stands_in_the_way_of_a_file_is_said_and_overcome_when_it_is_gone() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        fs::create_dir_all(stage.path("dir/a")).expect("a folder");
        fs::write(stage.path("dir/a/token"), "mine").expect("a file");
        let agent = stage.listening(&[&["a", "--dir", &stage.text("dir")][..], &PORT].concat()).await;
        agent.await_health(503, "not written: ").await;
        let token = stage.scene.secret("a").await.token();
        assert_eq!(agent.get("/fetch/a").await.text, token, "it is served all the same");
        assert_eq!(fs::read_to_string(stage.path("dir/a/token")).unwrap(), "mine");
        fs::remove_file(stage.path("dir/a/token")).expect("it is removed");
        agent.await_health(200, "a: valid until").await;
        assert_eq!(fs::read_to_string(stage.path("dir/a/token")).unwrap(), token);
    });
}

#[test]
fn an_agent_without_rights_says_which_role_it_needs() {
    scenario(async {
        let stage = Stage::new(&["other"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let agent = stage.listening(&[&["a"][..], &PORT].concat()).await;
        agent.await_health(503, "needs the Role watch").await;
        let answer = agent.get("/fetch/a").await;
        assert!(answer.status == 503 && answer.text.contains("needs the Role watch"), "{answer:?}");
    });
}

#[test]
fn sigterm_ends_the_agent_at_once_whoever_waits() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        let gate = Gate::new();
        stage.scene.server.set("a", Behaviour::Behind(gate, Box::new(Behaviour::Default)));
        stage.scene.cache("a", json!({})).await;
        within("a run begins", stage.scene.server.await_requests("a", 1)).await;
        let once = stage.start(&["a", "--dir", &stage.text("dir"), "--once"]);
        once.says("starting").await;
        assert_eq!(once.terminate().await.code(), Some(1), "the file is not there: an init container has failed");
        let socket = stage.text("agent.sock");
        let agent = stage.listening(&["a", "--listen", &format!("unix:{socket}")]).await;
        let mut waits = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
        use tokio::io::AsyncWriteExt as _;
        waits.write_all(b"GET /fetch/a HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("a request");
        assert_eq!(agent.terminate().await.code(), Some(0));
    });
}

#[test]
fn the_role_of_the_example_is_the_one_of_the_page() {
    let example = include_str!("../../examples/agent.yaml");
    let role = example.split("---\n").find(|text| text.contains("kind: Role\n")).expect("a Role");
    let role: Role = serde_saphyr::from_str(role).expect("a Role");
    assert_eq!(role.rules, Some(rules("watch")));
}

#[test]
fn what_cannot_be_meant_is_refused_at_the_start() {
    scenario(async {
        for (wrong, part) in [
            (&["a", "--listen", "0.0.0.0:8200"][..], "could be reached by others"),
            (&["a", "--listen", "unix:relative"], "unix:/PATH"),
            (&["a", "--dir", "/tmp/x", "--mode", "0777"], "0400"),
            (&["a", "--listen", "unix:/x", "--socket-mode", "0666"], "0660"),
            (&["a", "--dir", "/tmp/x", "--signal", "KILL", "--pid-file", "/x"], "no signal to reload at"),
            (&["a", "--dir", "/tmp/x", "--signal", "HUP"], "--pid-file"),
            (&["--dir", "/tmp/x"], "name a TokenCache"),
            (&["a"], "set --dir, --file or --listen"),
            (&["../a", "--dir", "/tmp/x"], "cannot be the name"),
        ] {
            let (status, text) = run_to_exit("/dev/null", &[&["agent"][..], wrong].concat()).await;
            assert!(status.code() == Some(2) && text.contains(part), "{wrong:?}: {status} {text}");
        }
    });
}

#[test]
fn a_secret_that_was_deleted_is_no_end_of_the_file() {
    scenario(async {
        let stage = Stage::new(&["a"]).await;
        stage.scene.ready_cache("a", json!({})).await;
        let _agent = stage.start(&["a", "--dir", &stage.text("dir")]);
        let path = stage.path("dir/a/token");
        let token = stage.scene.secret("a").await.token();
        holds(&path, &token).await;
        stage.scene.ns.delete::<Secret>("a").await;
        let secret = stage.scene.ns.await_secret("a", "a new value", |secret| secret.token() != token).await;
        assert!(path.exists());
        holds(&path, &secret.token()).await;
    });
}
