//! Token endpoints that answer anything.
#![allow(clippy::unwrap_used, reason = "tests")]

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use proptest::{prelude::*, sample::select};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::answer::{Confidence, interpret, token};
use crate::{
    api::{ExpiresAt, Expiry, oauth2::Grant},
    fetch::{
        expiry::{Stated, decide},
        http_client::Answer,
        json::{Member, parse},
    },
    testing::{
        fixtures::at,
        random_input::{bodies, fuzz, texts, values},
    },
    time,
};

const SECRET: &str = "hunter2-and-more";

/// An answer's members, some as they should be.
fn answers() -> impl Strategy<Value = Value> {
    let member = (
        select(vec![
            "access_token",
            "id_token",
            "expires_in",
            "expires_at",
            "error",
            "error_description",
            "token_type",
            "refresh_token",
        ]),
        prop_oneof![values(), texts().prop_map(Value::from), Just(json!(SECRET)), Just(json!(60))],
    );
    let members = prop::collection::vec(member, 0..6).prop_map(|members| {
        let mut answer = json!({"access_token": SECRET});
        members.into_iter().for_each(|(name, value)| answer[name] = value);
        answer
    });
    prop_oneof![4 => members, 1 => values()]
}

/// Decides over what was stated, and asks of the result what must hold.
fn lives_on(stated: &Stated<'_>) {
    match decide(stated, &Expiry::default(), None, at(0.0), at(2.0)) {
        Ok(ExpiresAt::At(moment)) => {
            assert!(moment > at(2.0));
            assert_eq!(time::rfc3339(moment).len(), "2026-03-01T12:00:00Z".len());
        }
        Ok(ExpiresAt::Never) => unreachable!("nobody said so"),
        Err(failure) => assert!(!failure.message.contains(SECRET), "{failure}"),
    }
}

#[test]
fn any_answer_is_understood_or_refused_and_never_told() {
    let status = select(vec![200_u16, 201, 204, 302, 400, 401, 403, 404, 429, 500, 503]);
    let mut good = 0;
    let grant = select(vec![Grant::ClientCredentials, Grant::JwtBearer]);
    fuzz(
        (status, grant, prop_oneof![9 => bodies(answers()).boxed(), 1 => any::<Vec<u8>>().boxed()]),
        |(status, grant, body)| {
            let mut confidence = Confidence::default();
            confidence.hide(SECRET);
            match interpret(&Answer::for_test(status, body), grant, &confidence) {
                Ok(members) => {
                    good += 1;
                    let token = token(&members).map(|token| token.expose_secret());
                    lives_on(&Stated {
                        expires_in: members.get("expires_in"),
                        expires_at: members.get("expires_at"),
                        token,
                    });
                }
                Err(refused) => assert!(!refused.failure.message.contains(SECRET), "{}", refused.failure),
            }
        },
    );
    assert!(good > 0);
}

#[test]
fn any_jwt_is_read_or_passed_over() {
    let claims = (prop_oneof![values(), texts().prop_map(Value::from)], values())
        .prop_map(|(exp, more)| json!({"exp": exp, "iat": more, "nbf": 1}));
    let part = bodies(prop_oneof![claims, values()]).prop_map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes)).boxed();
    let tokens = prop_oneof![
        4 => (texts(), part.clone(), texts()).prop_map(|(head, claims, tail)| format!("{head}.{claims}.{tail}")),
        1 => prop::collection::vec(part, 0..8).prop_map(|parts| parts.join(".")),
        1 => texts(),
    ];
    fuzz(tokens, |token| {
        lives_on(&Stated { token: Some(&token), ..Stated::default() });
        let body = json!({"access_token": token}).to_string();
        assert!(matches!(parse(body.as_bytes()).unwrap().get("access_token"), Some(Member::Text(_))));
    });
}
