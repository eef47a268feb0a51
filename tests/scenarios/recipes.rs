//! The recipes of docs/recipes.md, as they stand there.

use std::process::Command;

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::support::{Scene, SecretView as _, scenario, server::Behaviour};

/// What a careless recipe would stumble over.
const AWKWARD: &str = "to'k\"en\\$HOME/@:#+%é `x`";

fn recipe(name: &str) -> Value {
    let page = include_str!("../../docs/recipes.md");
    let marker = format!("# recipe: {name}\n");
    let block = page.split("```").find(|block| block.contains(&marker)).unwrap_or_else(|| panic!("no recipe {name}"));
    serde_saphyr::from_str(block.trim_start_matches("yaml")).expect("YAML")
}

/// Applies a recipe to a token, and gives the Secret that it makes.
async fn apply(scene: &Scene, name: &str, token: &str) -> Secret {
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600}).to_string();
    scene.server.set(name, Behaviour::Status(200, Vec::new(), answer));
    scene.ready_cache(name, recipe(name)).await;
    scene.secret(name).await
}

/// What percent-encoding stands for. A plus sign would be a space in a form, but is always encoded here.
fn decoded(text: &str) -> String {
    assert!(!text.contains('+'));
    url::form_urlencoded::parse(format!("v={text}").as_bytes()).next().expect("one").1.into_owned()
}

#[test]
fn every_recipe_is_tested() {
    let page = include_str!("../../docs/recipes.md");
    let names: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# recipe: ")).collect();
    assert_eq!(names, ["docker-config", "basic-auth", "git-credentials", "netrc", "env-file", "kubeconfig"]);
}

#[test]
fn the_docker_config_names_the_registry_its_user_and_the_token() {
    scenario(async {
        let scene = Scene::new().await;
        let secret = apply(&scene, "docker-config", AWKWARD).await;
        assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/dockerconfigjson"));
        let config: Value = serde_json::from_str(&secret.value(".dockerconfigjson")).expect("JSON");
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let auth = STANDARD.encode(format!("ci:{AWKWARD}"));
        let entry = json!({"username": "ci", "password": AWKWARD, "auth": auth});
        assert_eq!(config, json!({"auths": {"registry.example.com": entry}}));
    });
}

#[test]
fn basic_auth_has_the_keys_that_its_type_wants() {
    scenario(async {
        let scene = Scene::new().await;
        let secret = apply(&scene, "basic-auth", AWKWARD).await;
        assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/basic-auth"));
        assert_eq!((secret.value("username"), secret.value("password")), ("ci".into(), AWKWARD.into()));
    });
}

#[test]
fn git_credentials_are_a_url_with_user_and_password() {
    scenario(async {
        let scene = Scene::new().await;
        let file = apply(&scene, "git-credentials", AWKWARD).await.value("git-credentials");
        let url = url::Url::parse(file.strip_suffix('\n').expect("a line")).expect("a URL");
        let password = decoded(url.password().expect("a password"));
        assert_eq!((url.host_str(), url.username(), password.as_str()), (Some("git.example.com"), "ci", AWKWARD));
    });
}

#[test]
fn a_netrc_has_machine_login_and_password() {
    scenario(async {
        let scene = Scene::new().await;
        let token = "to'k$HOME/@:+%é";
        let file = apply(&scene, "netrc", token).await.value(".netrc");
        let words: Vec<_> = file.split_whitespace().collect();
        assert_eq!(words, ["machine", "git.example.com", "login", "ci", "password", token]);
    });
}

#[test]
fn a_shell_reads_the_env_file() {
    scenario(async {
        let scene = Scene::new().await;
        let file = apply(&scene, "env-file", AWKWARD).await.value("env");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("env");
        std::fs::write(&path, file).expect("the file is written");
        let script = ". \"$0\" && printf '%s|%s' \"$API_USER\" \"$API_TOKEN\"";
        let output = Command::new("sh").arg("-c").arg(script).arg(&path).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("ci|{AWKWARD}"));
    });
}

#[test]
fn a_kubeconfig_is_read_by_clients() {
    scenario(async {
        let scene = Scene::new().await;
        let file = apply(&scene, "kubeconfig", AWKWARD).await.value("kubeconfig");
        let config = kube::config::Kubeconfig::from_yaml(&file).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await.expect("a usable kubeconfig");
        assert_eq!(config.cluster_url.to_string(), "https://kubernetes.example.com:6443/");
        use secrecy::ExposeSecret as _;
        assert_eq!(config.auth_info.token.expect("a token").expose_secret(), AWKWARD);
    });
}

#[test]
fn the_service_account_example_makes_a_kubeconfig_that_the_api_server_takes() {
    scenario(async {
        let scene = Scene::new().await;
        let text = include_str!("../../examples/service-account-token.yaml");
        let [account, cache]: [Value; 2] =
            serde_saphyr::from_multiple(text).expect("YAML").try_into().expect("two objects");
        scene.ns.create::<k8s_openapi::api::core::v1::ServiceAccount>(account).await;
        scene.ns.create::<tokencache::api::TokenCache>(cache).await;
        scene.ns.await_ready("deployer-kubeconfig", true, "Fetched").await;
        let file = scene.secret("deployer-kubeconfig").await.value("kubeconfig");
        // It names the address inside of a cluster; here the API server is elsewhere.
        let given = kube::config::Kubeconfig::read_from(std::env::var("TOKENCACHE_TEST_KUBECONFIG").expect("set"));
        let given = given.expect("a kubeconfig");
        let mut config = kube::config::Kubeconfig::from_yaml(&file).expect("a kubeconfig");
        assert_eq!(config.contexts[0].context.as_ref().and_then(|c| c.namespace.clone()), Some(scene.ns.name.clone()));
        config.clusters[0].cluster = given.clusters[0].cluster.clone();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await.expect("a usable kubeconfig");
        let client = kube::Client::try_from(config).expect("a client");
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
        let review = serde_json::from_value(review).expect("a review");
        let api: kube::Api<k8s_openapi::api::authorization::v1::SelfSubjectRulesReview> = kube::Api::all(client);
        api.create(&kube::api::PostParams::default(), &review).await.expect("the token is taken");
    });
}
