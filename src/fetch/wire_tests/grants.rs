//! What each grant and each client authentication sends, and what is said where it cannot.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

use super::*;
use crate::fetch::test_keys as keys;

/// Without the fields that are null.
fn bare(url: &str, change: Value) -> TokenCache {
    let mut cache = cache(url, json!({}));
    let mut oauth2 = json!({"tokenUrl": url, "clientId": "me"});
    for (field, value) in change.as_object().unwrap() {
        oauth2[field] = value.clone();
    }
    cache.spec.fetch.oauth2 = Some(serde_json::from_value(oauth2).unwrap());
    cache
}

fn world() -> World {
    let world = World::new();
    for (name, key) in [("rsa", keys::RSA), ("p256", keys::P256), ("ed25519", keys::ED25519)] {
        world.objects.secret(name, &[("key", key)]);
    }
    world.objects.secret("cert", &[("cert", keys::CERTIFICATE)]);
    world.objects.secret("tokens", &[("subject", "subj3ct"), ("actor", "act0r"), ("refresh", "r3fresh")]);
    world
}

fn form(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Takes a parameter out of a form.
fn take(form: &mut Vec<(String, String)>, name: &str) -> String {
    let at = form.iter().position(|(found, _)| found == name).expect(name);
    form.remove(at).1
}

fn claims(jwt: &str, public: &DecodingKey, algorithm: Algorithm, audience: &str) -> Value {
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[audience]);
    decode::<Value>(jwt, public, &validation).expect("a valid assertion").claims
}

#[tokio::test]
async fn a_jwt_bearer_grant_sends_its_assertion_and_nothing_of_the_client() {
    let server = Server::start(token).await;
    let change = json!({
        "grant": "JwtBearer", "scopes": ["a", "b"],
        "assertion": {
            "privateKeyRef": {"name": "rsa", "key": "key"}, "keyId": "k1", "subject": "somebody",
            "audience": "https://id.example.com", "lifetime": "3m", "claims": {"scope": "x"},
        },
    });
    assert_token(world().fetch(&bare(&server.url(), change)).await);
    let seen = &server.seen()[0];
    assert_eq!(seen.header(header::AUTHORIZATION), "");
    let mut sent = seen.form();
    let jwt = take(&mut sent, "assertion");
    assert_eq!(sent, form(&[("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("scope", "a b")]));
    let public = DecodingKey::from_rsa_pem(keys::RSA_PUBLIC.as_bytes()).unwrap();
    let claims = claims(&jwt, &public, Algorithm::RS256, "https://id.example.com");
    assert_eq!((&claims["iss"], &claims["sub"], &claims["scope"]), (&json!("me"), &json!("somebody"), &json!("x")));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 180);
    assert_eq!(decode_header(&jwt).unwrap().kid.as_deref(), Some("k1"));
}

#[tokio::test]
async fn a_client_signs_its_own_assertion_with_any_kind_of_key() {
    let server = Server::start(token).await;
    let url = server.url();
    for (name, algorithm, public) in [
        ("rsa", Algorithm::RS256, DecodingKey::from_rsa_pem(keys::RSA_PUBLIC.as_bytes()).unwrap()),
        ("rsa", Algorithm::PS256, DecodingKey::from_rsa_pem(keys::RSA_PUBLIC.as_bytes()).unwrap()),
        ("p256", Algorithm::ES256, DecodingKey::from_ec_pem(keys::P256_PUBLIC.as_bytes()).unwrap()),
        ("ed25519", Algorithm::EdDSA, DecodingKey::from_ed_pem(keys::ED25519_PUBLIC.as_bytes()).unwrap()),
    ] {
        let change = json!({
            "clientAuth": "PrivateKeyJwt",
            "assertion": {
                "privateKeyRef": {"name": name, "key": "key"}, "algorithm": format!("{algorithm:?}"),
                "certificateRef": {"name": "cert", "key": "cert"},
            },
        });
        assert_token(world().fetch(&bare(&url, change)).await);
        let mut sent = server.seen().last().unwrap().form();
        let jwt = take(&mut sent, "client_assertion");
        let jwt_type = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let wanted = [("grant_type", "client_credentials"), ("client_id", "me"), ("client_assertion_type", jwt_type)];
        assert_eq!(sent, form(&wanted));
        let claims = claims(&jwt, &public, algorithm, &url);
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("me"), &json!("me")));
        assert_eq!(decode_header(&jwt).unwrap().x5t_s256.as_deref(), Some(keys::THUMBPRINT));
    }
}

#[tokio::test]
async fn a_client_signs_with_its_secret() {
    let server = Server::start(token).await;
    let url = server.url();
    let secret = json!({"name": "client", "key": "secret"});
    let change = json!({"clientAuth": "ClientSecretJwt", "clientSecretRef": secret});
    assert_token(World::new().fetch(&bare(&url, change)).await);
    let jwt = take(&mut server.seen()[0].form(), "client_assertion");
    let claims = claims(&jwt, &DecodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256, &url);
    assert_eq!(claims["sub"], "me");
}

#[tokio::test]
async fn an_exchange_sends_both_tokens_with_their_types() {
    let server = Server::start(token).await;
    let change = json!({
        "grant": "TokenExchange", "clientAuth": "None", "audience": "them",
        "subjectToken": {"secretRef": {"name": "tokens", "key": "subject"}},
        "actorToken": {"secretRef": {"name": "tokens", "key": "actor"}}, "actorTokenType": "urn:x:actor",
        "requestedTokenType": "urn:ietf:params:oauth:token-type:jwt",
    });
    assert_token(world().fetch(&bare(&server.url(), change)).await);
    let wanted = form(&[
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token", "subj3ct"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("actor_token", "act0r"),
        ("actor_token_type", "urn:x:actor"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("audience", "them"),
        ("client_id", "me"),
    ]);
    assert_eq!(server.seen()[0].form(), wanted);
}

#[tokio::test]
async fn an_assertion_that_is_refused_is_described_and_nothing_of_it_is_told() {
    let echo = |seen: &Seen| {
        let sent: std::collections::BTreeMap<_, _> = seen.form().into_iter().collect();
        answer(400, json!({"error": "invalid_grant", "error_description": sent["assertion"]}).to_string())
    };
    let server = Server::start(echo).await;
    let key = json!({"name": "p256", "key": "key"});
    for (assertion, words) in [
        (json!({"privateKeyRef": key}), vec!["invalid_grant: ***", "for the audience tokenUrl", "no kid", "ES256"]),
        (
            json!({"privateKeyRef": key, "audience": "x", "keyId": "k", "lifetime": "1m"}),
            vec!["for the audience x (assertion.audience)", "with kid k", "valid for 1m"],
        ),
    ] {
        let change = json!({"grant": "JwtBearer", "assertion": assertion});
        let failure = assert_failed(world().fetch(&bare(&server.url(), change)).await, Reason::Rejected, &words);
        assert!(!failure.message.contains("ey"), "{failure}");
    }
}

#[tokio::test]
async fn a_key_that_cannot_sign_is_told_by_its_secret_before_anything_is_sent() {
    let server = Server::start(token).await;
    let world = world();
    world.objects.secret("bad", &[("pub", keys::RSA_PUBLIC), ("enc", keys::ENCRYPTED), ("text", "hunter2")]);
    for (key, algorithm, reason, words) in [
        (("p256", "key"), json!("RS256"), Reason::InvalidSpec, "Secret b/p256, key key: the value is an EC key"),
        (("ed25519", "key"), json!("ES256"), Reason::InvalidSpec, "signs by EdDSA, not by ES256 (assertion.algorithm)"),
        (("bad", "pub"), json!(null), Reason::InvalidSpec, "Secret b/bad, key pub: the value is a public key"),
        (("bad", "enc"), json!(null), Reason::InvalidSpec, "encrypted with a passphrase"),
        (("bad", "text"), json!(null), Reason::InvalidSpec, "is not PEM"),
        (("bad", "none"), json!(null), Reason::SourceNotFound, "Secret b/bad has no key none"),
        (("none", "key"), json!(null), Reason::SourceNotFound, "Secret b/none does not exist"),
    ] {
        let (name, key) = key;
        let mut assertion = json!({"privateKeyRef": {"name": name, "key": key}});
        if !algorithm.is_null() {
            assertion["algorithm"] = algorithm;
        }
        let change = json!({"clientAuth": "PrivateKeyJwt", "assertion": assertion});
        assert_failed(world.fetch(&bare(&server.url(), change)).await, reason, &[words]);
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_line_break_at_the_end_of_what_is_stored_is_not_sent() {
    let server = Server::start(token).await;
    let world = world();
    let stored = [("id", "me\n"), ("secret", "s3cret \r\n"), ("subject", "subj3ct\n"), ("refresh", "r3fresh\n")];
    world.objects.secret("echoed", &stored);
    let key = |key: &str| json!({"name": "echoed", "key": key});
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    for (change, authorization, sent) in [
        (json!({"clientSecretRef": key("secret")}), basic("me:s3cret+"), vec![]),
        (
            json!({"clientSecretRef": key("secret"), "clientAuth": "Post"}),
            String::new(),
            vec![("client_id", "me"), ("client_secret", "s3cret ")],
        ),
        (
            json!({"clientAuth": "None", "grant": "TokenExchange", "subjectToken": {"secretRef": key("subject")}}),
            String::new(),
            vec![("client_id", "me"), ("subject_token", "subj3ct")],
        ),
        (
            json!({"clientAuth": "None", "grant": "RefreshToken", "refreshTokenRef": key("refresh")}),
            String::new(),
            vec![("client_id", "me"), ("refresh_token", "r3fresh")],
        ),
    ] {
        let mut change = change;
        change["clientIdRef"] = key("id");
        let mut cache = bare(&server.url(), change);
        cache.spec.fetch.oauth2.as_mut().unwrap().client_id = None;
        assert_token(world.fetch(&cache).await);
        let seen = server.seen().pop().unwrap();
        assert_eq!(seen.header(header::AUTHORIZATION), authorization);
        let form = seen.form();
        for (name, value) in sent {
            assert!(form.contains(&(name.to_owned(), value.to_owned())), "{form:?}");
        }
    }
    assert_eq!(world.objects.data("echoed", "refresh"), "r3fresh\n");
}

#[tokio::test]
async fn a_client_that_is_refused_is_told_what_of_its_secret_servers_read_differently() {
    let server = Server::start(|_| answer(401, "")).await;
    let world = World::new();
    let stored = [("plain", "plain-1"), ("special", "s3cret+/=~"), ("blank", " s3cret"), ("mark", "\u{feff}s3cret")];
    world.objects.secret("client", &stored);
    let encoded = "percent-encoded";
    for (key, auth, words, not) in [
        ("plain", "Basic", vec!["clientAuth"], vec![encoded, "blank"]),
        ("special", "Basic", vec![encoded, "clientAuth: Post"], vec!["blank"]),
        ("special", "Post", vec!["clientAuth"], vec![encoded]),
        ("blank", "Post", vec!["Key blank of Secret client begins or ends with a blank"], vec![encoded]),
        ("mark", "Post", vec!["Key mark of Secret client begins with a byte order mark"], vec![encoded]),
    ] {
        let change = json!({"clientAuth": auth, "clientSecretRef": {"name": "client", "key": key}});
        let failure = assert_failed(world.fetch(&cache(&server.url(), change)).await, Reason::Rejected, &words);
        for word in not {
            assert!(!failure.message.contains(word), "{failure}");
        }
    }
}
