//! Every grant and every client authentication, against a certified OpenID provider.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_AUDIENCES, LABEL_SOURCE},
};

use crate::support::{
    CacheView as _, Cluster, Controller, Namespace, OidcProvider, SecretView as _, opened, pass, refresh_token,
    scenario, state_name,
};

const AUDIENCE: &str = "https://sts.example.com";

struct Stage {
    _controller: Controller,
    provider: OidcProvider,
    ns: Namespace,
}

impl Stage {
    async fn new() -> Self {
        let provider = OidcProvider::start(&Cluster::get().await.client).await;
        let ns = Namespace::new().await;
        provider.equip(&ns).await;
        let account = |name: &str, opened: &str| {
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {
                    "name": name, "labels": {LABEL_SOURCE: opened},
                    "annotations": {ANNOTATION_AUDIENCES: format!("{AUDIENCE},https://other.example.com")},
                },
            })
        };
        ns.create::<ServiceAccount>(account("workload", "true")).await;
        ns.create::<ServiceAccount>(account("closed", "false")).await;
        let controller = Controller::start(&ns, &[]).await;
        Self { _controller: controller, provider, ns }
    }

    async fn cache(&self, name: &str, settings: Value) {
        self.ns.create::<TokenCache>(self.provider.cache(name, settings)).await;
    }

    /// A Secret with a refresh token of this client.
    async fn session(&self, name: &str, client: &str) -> String {
        let token = self.provider.sign_in(client).await;
        self.ns.create::<Secret>(opened(name, json!({ "token": token }))).await;
        token
    }
}

fn key(name: &str, key: &str) -> Value {
    json!({"name": name, "key": key})
}

fn signing(client: &str, name: &str) -> Value {
    json!({
        "clientId": client, "clientAuth": "PrivateKeyJwt",
        "assertion": {"privateKeyRef": key("keys", name), "keyId": "k1"},
    })
}

fn refreshing(client: &str, session: &str) -> Value {
    json!({"grant": "RefreshToken", "clientId": client, "clientAuth": "None", "refreshTokenRef": key(session, "token")})
}

fn with(mut settings: Value, change: Value) -> Value {
    crate::support::manifests::merge(&mut settings, change);
    settings
}

fn certificate(client: &str, name: &str) -> Value {
    json!({"clientId": client, "clientAuth": "MutualTls", "tls": {"clientCertRef": {"name": name}}})
}

fn workload(account: &str, audience: &str) -> Value {
    json!({
        "grant": "TokenExchange", "clientId": "public", "clientAuth": "None",
        "subjectToken": {"serviceAccount": {"name": account, "audiences": [audience]}},
    })
}

#[test]
fn every_grant_and_every_client_authentication_gets_a_token() {
    scenario(async {
        let stage = Stage::new().await;
        let secret = |client: &str| json!({"clientId": client, "clientSecretRef": key("client", "secret")});
        let mut sessions = Vec::new();
        for client in ["public", "keeping", "post"] {
            sessions.push(stage.session(&format!("session-{client}"), client).await);
        }
        let by_secret = json!({"grant": "RefreshToken", "clientAuth": null});
        let ps256 = json!({"assertion": {"algorithm": "PS256"}});
        let bearer = json!({"grant": "JwtBearer", "assertion": {"subject": "bob", "claims": {"x": [1, {"y": null}]}}});
        let cases = [
            ("basic", secret("basic:client")),
            ("post", with(secret("post"), json!({"clientAuth": "Post"}))),
            ("secret-jwt", with(secret("secret-jwt"), json!({"clientAuth": "ClientSecretJwt"}))),
            ("rs256", signing("rs256", "rsa")),
            ("ps256", with(signing("ps256", "rsa"), ps256)),
            ("es256", signing("es256", "p256")),
            ("eddsa", signing("eddsa", "ed25519")),
            ("issuer", with(signing("es256", "p256"), json!({"assertion": {"audience": stage.provider.issuer}}))),
            ("tls", certificate("tls", "cert-tls")),
            ("self-signed", certificate("self-signed", "cert-self-signed")),
            ("refresh-public", refreshing("public", "session-public")),
            ("refresh-keeping", with(with(refreshing("keeping", "session-keeping"), by_secret), secret("keeping"))),
            (
                "bearer-public",
                with(
                    with(signing("public", "rsa"), bearer.clone()),
                    json!({"clientAuth": "None", "assertion": {"issuer": "public"}}),
                ),
            ),
            ("bearer-signed", with(signing("es256", "p256"), bearer)),
            ("workload", workload("workload", AUDIENCE)),
        ];
        for (name, settings) in &cases {
            stage.cache(name, settings.clone()).await;
        }
        for (name, _) in &cases {
            stage.ns.await_ready(name, true, "Fetched").await;
            assert!(stage.ns.get::<Secret>(name).await.token().len() >= 40, "{name}");
        }
        let next = async |client: &str| {
            refresh_token(&stage.ns, &format!("refresh-{client}"), &format!("session-{client}")).await
        };
        assert_eq!(next("public").await, stage.provider.family("public").await.newest);
        assert_ne!(next("public").await, sessions[0], "it was rotated");
        assert_eq!(next("keeping").await, sessions[1], "it was not");

        // A token that one TokenCache fetched is another's subject token.
        let mut first = stage.provider.cache(
            "first",
            with(
                refreshing("post", "session-post"),
                json!({"clientAuth": "Post", "clientSecretRef": key("client", "secret")}),
            ),
        );
        first["spec"]["target"] = json!({"labels": {"team": "blue"}});
        stage.ns.create::<TokenCache>(first).await;
        stage.ns.await_ready("first", true, "Fetched").await;
        let token = stage.ns.get::<Secret>("first").await.token();
        stage.ns.create::<Secret>(opened("subject", json!({ "token": token }))).await;
        let exchange = json!({
            "grant": "TokenExchange", "subjectToken": {"secretRef": key("subject", "token")},
            "requestedTokenType": "urn:ietf:params:oauth:token-type:access_token",
        });
        stage.cache("second", with(secret("basic:client"), exchange)).await;
        stage.ns.await_ready("second", true, "Fetched").await;
    });
}

#[test]
fn wrong_input_of_every_grant_and_client_authentication_is_told_so_that_a_stranger_can_mend_it() {
    scenario(async {
        let stage = Stage::new().await;
        stage.ns.create::<Secret>(opened("session", json!({"token": "of nobody"}))).await;
        let mut closed = opened("closed", json!({"key": "x"}));
        closed["metadata"]["labels"] = json!({});
        stage.ns.create::<Secret>(closed).await;
        let secret = |client: &str| json!({"clientId": client, "clientSecretRef": key("client", "secret")});
        let wrong = json!({"clientSecretRef": key("client", "wrong")});
        let with_key = |name: &str, of: &str| json!({"assertion": {"privateKeyRef": key(name, of)}});
        let elsewhere = json!({"assertion": {"audience": "https://elsewhere.example.com"}});
        let bearer = json!({"grant": "JwtBearer"});
        let subject = |name: &str| {
            let exchange = json!({"grant": "TokenExchange", "subjectToken": {"secretRef": key(name, "token")}});
            with(secret("basic:client"), exchange)
        };
        let es256 = || signing("es256", "p256");
        let cases: Vec<(&str, Value, &str, Vec<&str>)> = vec![
            ("basic-wrong", with(secret("basic:client"), wrong.clone()), "Rejected", vec!["401", "invalid_client"]),
            (
                "post-wrong",
                with(with(secret("post"), wrong.clone()), json!({"clientAuth": "Post"})),
                "Rejected",
                vec!["invalid_client"],
            ),
            ("client-unknown", secret("nobody"), "Rejected", vec!["invalid_client"]),
            (
                "jwt-wrong-secret",
                with(with(secret("secret-jwt"), wrong), json!({"clientAuth": "ClientSecretJwt"})),
                "Rejected",
                vec!["invalid_client", "HS256"],
            ),
            (
                "key-of-another",
                with(es256(), json!({"clientId": "rs256"})),
                "Rejected",
                vec!["invalid_client", "signed by ES256 with kid k1"],
            ),
            (
                "wrong-audience",
                with(es256(), elsewhere.clone()),
                "Rejected",
                vec!["invalid_client", "for the audience https://elsewhere.example.com (assertion.audience)"],
            ),
            (
                "algorithm",
                with(es256(), json!({"assertion": {"algorithm": "RS256"}})),
                "InvalidSpec",
                vec!["Secret", "key p256", "curve P-256, which signs by ES256, not by RS256 (assertion.algorithm)"],
            ),
            (
                "encrypted",
                with(es256(), with_key("keys", "encrypted")),
                "InvalidSpec",
                vec!["encrypted with a passphrase", "openssl pkey"],
            ),
            ("public-key", with(es256(), with_key("keys", "public")), "InvalidSpec", vec!["is a public key"]),
            ("p384", with(es256(), with_key("keys", "p384")), "InvalidSpec", vec!["another curve than P-256"]),
            ("no-pem", with(es256(), with_key("keys", "text")), "InvalidSpec", vec!["is not PEM"]),
            ("no-secret", with(es256(), with_key("absent", "key")), "SourceNotFound", vec!["absent does not exist"]),
            (
                "no-key",
                with(es256(), with_key("keys", "absent")),
                "SourceNotFound",
                vec!["has no key absent", "ed25519, encrypted"],
            ),
            (
                "no-label",
                with(es256(), with_key("closed", "key")),
                "SourceNotAllowed",
                vec!["kubectl label secret closed"],
            ),
            (
                "expired",
                certificate("tls", "cert-expired"),
                "InvalidSpec",
                vec!["key tls.crt", "certificate that expired at 2021-01-01T00:00:00Z"],
            ),
            (
                "stranger",
                certificate("tls", "cert-stranger"),
                "Rejected",
                vec!["invalid_client", "for CN=somebody-else"],
            ),
            ("not-its-own", certificate("self-signed", "cert-tls"), "Rejected", vec!["invalid_client"]),
            ("no-certificate", certificate("tls", "absent"), "SourceNotFound", vec!["absent does not exist"]),
            ("not-a-pair", certificate("tls", "client"), "SourceNotFound", vec!["has no key tls.crt"]),
            (
                "refresh-void",
                refreshing("public", "session"),
                "ReauthenticationRequired",
                vec!["invalid_grant", "sign in again", "key token of Secret"],
            ),
            ("refresh-none", refreshing("public", "absent"), "SourceNotFound", vec!["absent does not exist"]),
            ("refresh-closed", refreshing("public", "closed"), "SourceNotAllowed", vec!["kubectl label secret closed"]),
            (
                "bearer-audience",
                with(with(es256(), bearer.clone()), elsewhere),
                "Rejected",
                vec!["invalid_", "https://elsewhere.example.com"],
            ),
            (
                "bearer-issuer",
                with(with(es256(), bearer), json!({"assertion": {"issuer": "somebody"}})),
                "Rejected",
                vec!["invalid_grant", "The assertion that was sent"],
            ),
            ("subject-void", subject("session"), "Rejected", vec!["invalid_grant"]),
            ("subject-none", subject("absent"), "SourceNotFound", vec!["absent does not exist"]),
            (
                "workload-audience",
                workload("workload", "https://other.example.com"),
                "Rejected",
                vec!["invalid_grant", "ServiceAccount workload, for the audiences https://other.example.com"],
            ),
            (
                "workload-none",
                workload("absent", AUDIENCE),
                "SourceNotFound",
                vec!["ServiceAccount", "absent does not exist"],
            ),
            (
                "workload-unnamed",
                workload("workload", "https://unnamed.example.com"),
                "SourceNotAllowed",
                vec![
                    "ServiceAccount",
                    "does not allow TokenCaches tokens for the audience https://unnamed.example.com",
                ],
            ),
            (
                "workload-closed",
                workload("closed", AUDIENCE),
                "SourceNotAllowed",
                vec!["kubectl label serviceaccount closed"],
            ),
        ];
        for (name, settings, ..) in &cases {
            stage.cache(name, settings.clone()).await;
        }
        for (name, _, reason, words) in &cases {
            let cache = stage.ns.await_cache(name, "a failure", |cache| cache.seen().failures > 0).await;
            let message = cache.seen().last_failure.map(|failure| failure.message).unwrap_or_default();
            assert_eq!(cache.last_failure(), *reason, "{name}: {message}");
            for word in words {
                assert!(message.contains(word), "{name}: {word:?} is not in {message}");
            }
            println!("{name}: {reason}: {message}");
            let stalled = *reason != "Rejected";
            assert_eq!(cache.stalled(), stalled.then_some(*reason), "{name}");
        }
        // What stood in the way is mended, and they go on by themselves.
        stage.ns.patch::<ServiceAccount>("closed", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        let data = json!({"stringData": {"absent": include_str!("../keys/p256.pem")}});
        stage.ns.patch::<Secret>("keys", data).await;
        stage.ns.await_ready("workload-closed", true, "Fetched").await;
        stage.ns.await_ready("no-key", true, "Fetched").await;
    });
}

#[test]
fn a_void_refresh_token_is_not_tried_again_until_somebody_signed_in() {
    scenario(async {
        let stage = Stage::new().await;
        let token = stage.session("session", "rotating").await;
        stage.cache("a", refreshing("rotating", "session")).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let rotated = refresh_token(&stage.ns, "a", "session").await;
        assert_eq!(rotated, stage.provider.family("rotating").await.newest);
        assert_ne!(rotated, token);

        // Without what was rotated, the first token is sent again, which voids the family.
        stage.ns.delete::<Secret>(&state_name("a")).await;
        stage.ns.request("a", "now").await;
        let stalled = |cache: &TokenCache| cache.stalled() == Some("ReauthenticationRequired");
        let cache = stage.ns.await_cache("a", "somebody must sign in again", stalled).await;
        assert!(cache.is(true, "RefreshFailing"), "the value is still good: {:?}", cache.ready());
        stage.ns.await_event("a", "ReauthenticationRequired").await;
        pass(Duration::from_secs(3)).await;
        assert_eq!(stage.provider.family("rotating").await.refused, 1);

        let again = stage.provider.sign_in("rotating").await;
        stage.ns.patch::<Secret>("session", json!({"stringData": {"token": again}})).await;
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.stalled(), None);
        assert_eq!(stage.provider.family("rotating").await.refused, 1);
    });
}

#[test]
fn the_examples_work_as_they_stand_with_a_server_and_a_key_of_ones_own() {
    scenario(async {
        let stage = Stage::new().await;
        let key = json!({"key.pem": include_str!("../keys/p256.pem")});
        stage.ns.create::<Secret>(opened("billing-key", key)).await;
        for (file, token) in [
            ("oauth2-refresh-token", stage.provider.sign_in("reports").await),
            ("oauth2-private-key", String::new()),
            ("oauth2-token-exchange", String::new()),
        ] {
            let path = format!("{}/examples/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).expect("an example");
            let text = text.replace("https://id.example.com", &stage.provider.issuer).replace("replace-me", &token);
            for document in text.split("\n---\n") {
                let Some(mut manifest) = serde_saphyr::from_str::<Option<Value>>(document).expect("YAML") else {
                    continue;
                };
                match manifest["kind"].as_str() {
                    Some("Secret") => drop(stage.ns.create::<Secret>(manifest).await),
                    Some("ServiceAccount") => drop(stage.ns.create::<ServiceAccount>(manifest).await),
                    _ => {
                        let trusted = stage.provider.cache("a", json!({}))["spec"]["fetch"]["oauth2"]["tls"].clone();
                        manifest["spec"]["fetch"]["oauth2"]["tls"] = trusted;
                        let name = manifest["metadata"]["name"].as_str().expect("a name").to_owned();
                        stage.ns.create::<TokenCache>(manifest).await;
                        stage.ns.await_ready(&name, true, "Fetched").await;
                    }
                }
            }
        }
    });
}
