//! The worked examples of docs/sources/job.md, as they stand there, with images that stand in for the real ones.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{Router, http::StatusCode, routing::post};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::{
    node::{BUSYBOX, Stage, on_node},
    support::{CacheView as _, SecretView as _, image::load_image, in_background, manifests::merge},
};

/// The example of that name, with some of its words replaced, each of which has to be there.
fn example(name: &str, words: &[(&str, &str)]) -> Value {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sources/job.md");
    let page = std::fs::read_to_string(page).expect(page);
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let start = format!("metadata: {{name: {name}}}");
    let mut text = blocks.into_iter().find(|block| block.contains(&start)).expect(name).to_owned();
    for (from, to) in words {
        assert!(text.contains(from), "{name} does not hold {from}");
        text = text.replace(from, to);
    }
    serde_saphyr::from_str(&text).expect(name)
}

/// An image of busybox and a shell script.
async fn script_image(image: &str, program: &str, script: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(program);
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("an executable");
    let entrypoint = PathBuf::from("/bin").join(program);
    let busybox = which("busybox");
    load_image(&cluster(), image, &[("--bin", &busybox), ("--bin", &path), ("--entrypoint", &entrypoint)]).await;
}

fn cluster() -> String {
    std::env::var("TOKENCACHE_CLUSTER").expect("a node")
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file()).expect(program)
}

fn open(metadata: Value) -> Value {
    let mut opened = json!({"metadata": {"labels": {"tokencache.dev/source": "true"}}});
    merge(&mut opened["metadata"], metadata);
    opened
}

#[test]
fn the_example_of_a_clouds_command_line_works() {
    on_node(async {
        // It answers in the form of the real one, to exactly this question, and has a home to write to.
        let aws = r#"#!/bin/sh
            test "$*" = "codeartifact get-authorization-token --domain example --output json --query \
{token: authorizationToken, expires_at: expiration}" || { echo "unknown: $*" >&2; exit 252; }
            mkdir -p "$HOME/.aws/cli" && test -s /var/run/secrets/eks.amazonaws.com/serviceaccount/token || exit 253
            at=$(($(date +%s) + 43200))
            printf '{\n    "token": "aws-%s",\n    "expires_at": "%s.123000+00:00"\n}\n' \
                "$(sha256sum < /var/run/secrets/eks.amazonaws.com/serviceaccount/token | cut -c -8)" \
                "$(date -u -d "@$at" +%Y-%m-%dT%H:%M:%S)"
        "#;
        script_image("tokencache.test/aws:1", "aws", aws).await;
        let stage = Stage::new().await;
        let annotations = json!({"tokencache.dev/audiences": "sts.amazonaws.com"});
        stage.ns.create::<ServiceAccount>(open(json!({"name": "codeartifact", "annotations": annotations}))).await;
        let words = [("public.ecr.aws/aws-cli/aws-cli:2.22.0", "tokencache.test/aws:1")];
        let mut cache = example("codeartifact", &words);
        // What the webhook of EKS adds to pods of such an account.
        let template = &mut cache["spec"]["fetch"]["job"]["template"]["spec"];
        let token = json!({"audience": "sts.amazonaws.com", "path": "token"});
        template["volumes"] = json!([{"name": "aws", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
        template["containers"][0]["volumeMounts"] =
            json!([{"name": "aws", "mountPath": "/var/run/secrets/eks.amazonaws.com/serviceaccount"}]);
        stage.ns.create::<TokenCache>(cache).await;
        let cache = stage.ns.await_ready("codeartifact", true, "Fetched").await;
        let secret: Secret = stage.ns.get("codeartifact").await;
        assert!(secret.token().starts_with("aws-"), "{}", secret.token());
        let minutes = (secret.expires_at() - cache.seen().fetched_at.expect("a time")).num_minutes();
        assert!((715..=720).contains(&minutes), "{minutes}");
    });
}

/// Counts logins, and takes only the newest refresh token.
fn partner(state: Arc<Mutex<(u32, String)>>) -> Router {
    let answer = |state: &Mutex<(u32, String)>| {
        let mut state = state.lock();
        state.0 += 1;
        state.1 = format!("refresh-{}", state.0);
        json!({"access": format!("access-{}", state.0), "refresh": state.1, "lifetime": 3600}).to_string()
    };
    let (at_login, at_refresh) = (state.clone(), state);
    let login = post(move |body: String| async move {
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let known = body == json!({"user": "me", "password": "hunter2"});
        if known { Ok(answer(&at_login)) } else { Err(StatusCode::UNAUTHORIZED) }
    });
    let refresh = post(move |body: String| async move {
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let newest = at_refresh.lock().1.clone();
        if body == json!({"refresh": newest}) { Ok(answer(&at_refresh)) } else { Err(StatusCode::UNAUTHORIZED) }
    });
    Router::new().route("/login", login).route("/refresh", refresh)
}

#[test]
fn the_example_in_python_works_and_tells_a_failed_login() {
    on_node(async {
        // Debian's, whatever other is in front of it: a launcher would be no use in an image.
        let python = Path::new("/usr/bin/python3");
        let library = tokio::process::Command::new(python)
            .args(["-Ic", "import sysconfig; print(sysconfig.get_path('stdlib'))"])
            .output()
            .await
            .expect("python3");
        let library = String::from_utf8(library.stdout).expect("a path");
        let parts = [("--bin", python), ("--folder", Path::new(library.trim()))];
        load_image(&cluster(), "tokencache.test/python:1", &parts).await;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new((0, String::new())));
        let server = axum::serve(listener, partner(state.clone()));
        in_background(async move { server.await.expect("it serves") });

        // For the network of the host, below.
        let stage = Stage::with(&["--job-pod-security=privileged"]).await;
        let login = |password: &str| {
            let mut secret = open(json!({"name": "partner-login"}));
            secret["stringData"] = json!({"USERNAME": "me", "PASSWORD": password});
            secret
        };
        stage.ns.create::<Secret>(login("wrong")).await;
        let words = [("python:3.13-slim", "tokencache.test/python:1"), ("https://api.partner.example", &url)];
        let mut cache = example("partner-api", &words);
        // Where the server is that stands in for the partner's.
        stage.ns.lift_policies("the pod uses the network of its node").await;
        merge(&mut cache["spec"]["fetch"]["job"]["template"]["spec"], json!({"hostNetwork": true}));
        cache["spec"]["retry"] = json!({"initialInterval": "5m"});
        stage.ns.create::<TokenCache>(cache).await;
        let (reason, message) = stage.failure("partner-api").await;
        assert!(reason == "JobFailed" && message.contains(&format!("{url}/login answered 401")), "{message}");

        stage.ns.patch::<Secret>("partner-login", login("hunter2")).await;
        stage.ns.request("partner-api", "1").await;
        stage.ns.await_ready("partner-api", true, "Fetched").await;
        assert_eq!(stage.ns.get::<Secret>("partner-api").await.token(), "access-1");
        assert_eq!(stage.refreshed("partner-api", "2").await.token(), "access-2");
        assert_eq!(stage.refreshed("partner-api", "3").await.token(), "access-3", "by the token that rotated");
    });
}

#[test]
fn the_example_of_a_vendors_login_script_works_and_tells_a_login_without_a_session() {
    on_node(async {
        let login = r#"#!/bin/sh
            test "$1 $2 $3 $4" = "--licence /licence/key --session-file /session/cookie" || exit 2
            echo "Logging in…"
            case $(cat "$2") in
                good) printf 'version=7\nsession=vendor-session\n' > "$4" ;;
                *) printf 'version=7\n' > "$4" ;;
            esac
        "#;
        script_image("tokencache.test/login:7", "vendor-login", login).await;
        let stage = Stage::new().await;
        let licence = |key: &str| {
            let mut secret = open(json!({"name": "vendor-licence"}));
            secret["stringData"] = json!({"key": key});
            secret
        };
        stage.ns.create::<Secret>(licence("bad")).await;
        let words = [("registry.vendor.example/login:7", "tokencache.test/login:7"), ("busybox:1.36", BUSYBOX)];
        let mut cache = example("vendor", &words);
        cache["spec"]["retry"] = json!({"initialInterval": "5m"});
        stage.ns.create::<TokenCache>(cache).await;
        let (reason, message) = stage.failure("vendor").await;
        assert!(reason == "JobFailed" && message.contains("exit code 1: the login left no session"), "{message}");

        stage.ns.patch::<Secret>("vendor-licence", licence("good")).await;
        stage.ns.request("vendor", "1").await;
        let cache = stage.ns.await_ready("vendor", true, "Fetched").await;
        let secret: Secret = stage.ns.get("vendor").await;
        assert_eq!(secret.token(), "vendor-session");
        // Counted from before the Job was created.
        let minutes = (secret.expires_at() - cache.seen().fetched_at.expect("a time")).num_minutes();
        assert!((475..=480).contains(&minutes), "{minutes}");
    });
}
