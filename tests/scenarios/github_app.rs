//! Installation tokens of a GitHub App.

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Controller, Namespace, SecretView as _,
    github::{APP, GitHub, INSTALLATION, REPOSITORY},
    manifests::merge,
    opened, scenario,
};

#[test]
fn an_installation_token_is_got_and_whatever_is_wrong_is_told_so_that_a_stranger_can_mend_it() {
    scenario(async {
        let (ns, github) = (Namespace::new().await, GitHub::start().await);
        let keys = json!({
            "key": include_str!("../keys/rsa-pkcs1.pem"), "ec": include_str!("../keys/p256.pem"),
            "encrypted": include_str!("../keys/encrypted-pkcs1.pem"),
        });
        ns.create::<Secret>(opened("app", keys)).await;
        // A key of no App.
        let other = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("a key");
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = aws_lc_rs::encoding::AsDer::as_der(&other).expect("its form");
        let other = pem(der.as_ref());
        ns.create::<Secret>(opened("other", json!({ "key": other }))).await;
        let _controller = Controller::start(&ns, &[]).await;
        let create = async |name: &str, change: Value| {
            let mut app = json!({
                "appId": APP, "installationId": INSTALLATION, "privateKeyRef": {"name": "app", "key": "key"},
                "apiUrl": github.url(),
            });
            merge(&mut app, change);
            let manifest = json!({
                "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": name},
                "spec": {"fetch": {"githubApp": app}, "retry": {"initialInterval": "10m", "maxInterval": "10m"}},
            });
            ns.create::<TokenCache>(manifest).await
        };
        let limits = json!({"repositories": [REPOSITORY], "permissions": {"contents": "read"}});
        create("all", json!({})).await;
        create("limited", limits.clone()).await;
        let key = |name: &str, key: &str| json!({"privateKeyRef": {"name": name, "key": key}});
        let cases = [
            ("wrong-app", json!({"appId": 99}), "Rejected", "The App 99 has no installation 67890"),
            ("wrong-installation", json!({"installationId": 99}), "Rejected", "The App 12345 has no installation 99"),
            ("wrong-key", key("other", "key"), "Rejected", "privateKeyRef holds no key of the App 12345"),
            (
                "repository",
                json!({"repositories": ["secret"]}),
                "Rejected",
                "no access to one of repositories (secret)",
            ),
            (
                "permission",
                json!({"permissions": {"issues": "write"}}),
                "Rejected",
                "permissions (issues: write) is not",
            ),
            ("ec", key("app", "ec"), "InvalidSpec", "is no RSA key"),
            ("encrypted", key("app", "encrypted"), "InvalidSpec", "encrypted with a passphrase"),
            ("no-key", key("app", "absent"), "SourceNotFound", "has no key absent"),
            ("no-secret", key("absent", "key"), "SourceNotFound", "absent does not exist"),
        ];
        for (name, change, ..) in &cases {
            create(name, change.clone()).await;
        }
        for name in ["all", "limited"] {
            let cache = ns.await_ready(name, true, "Fetched").await;
            let secret = ns.get::<Secret>(name).await;
            assert!(secret.token().starts_with("ghs_"), "{name}");
            let left = cache.seen().expires_at.and_then(|at| at.moment()).expect("an expiry") - chrono::Utc::now();
            assert!((3500..=3600).contains(&left.num_seconds()), "{name}: {left}");
        }
        let bodies = github.bodies();
        assert!(bodies.contains(&json!({})) && bodies.contains(&limits) && bodies.len() == 2, "{bodies:?}");
        for (name, _, reason, words) in cases {
            let cache = ns.await_cache(name, "a failure", |cache| cache.seen().failures > 0).await;
            let message = cache.seen().last_failure.map(|failure| failure.message).unwrap_or_default();
            println!("{name}: {reason}: {message}");
            assert_eq!(cache.last_failure(), reason, "{name}: {message}");
            assert!(message.contains(words), "{name}: {message}");
        }
    });
}

#[test]
fn the_example_gives_git_its_password() {
    scenario(async {
        let (ns, github) = (Namespace::new().await, GitHub::start().await);
        let _controller = Controller::start(&ns, &[]).await;
        let key = json!({"key.pem": include_str!("../keys/rsa-pkcs1.pem")});
        ns.create::<Secret>(opened("github-app", key)).await;
        let text = include_str!("../../examples/github-app.yaml");
        let mut manifest: Value = serde_saphyr::from_str(text).expect("a manifest");
        // All that is not as it stands: here is no GitHub.
        merge(&mut manifest, json!({"spec": {"fetch": {"githubApp": {"apiUrl": github.url()}}}}));
        ns.create::<TokenCache>(manifest).await;
        ns.await_ready("github", true, "Fetched").await;
        let secret = ns.get::<Secret>("git-credentials").await;
        assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/basic-auth"));
        assert_eq!(secret.value("username"), "x-access-token");
        assert!(secret.value("password").starts_with("ghs_"));
        let asked = json!({"repositories": ["infrastructure"], "permissions": {"contents": "read"}});
        assert_eq!(github.bodies(), [asked]);
    });
}

fn pem(pkcs8: &[u8]) -> String {
    rcgen::KeyPair::try_from(pkcs8).expect("a key").serialize_pem()
}
