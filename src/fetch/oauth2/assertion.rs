//! The JWTs that a client signs: of the grant JwtBearer and for its own authentication (RFC 7523 §3).

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, Header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::{Request, missing};
use crate::{
    api::{
        Invalid,
        oauth2::{Assertion, OAuth2},
        reason::Reason,
    },
    fetch::{
        Attempt, Failure,
        signing::{self, SigningKey},
    },
};

/// Claims that have fields of their own, or are made for each assertion.
const RESERVED: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];

/// Checks what the CRD's rules cannot.
pub(super) fn check(assertion: &Assertion) -> Result<(), Invalid> {
    match RESERVED.iter().find(|claim| assertion.claims.contains_key(**claim)) {
        None => Ok(()),
        Some(claim) => Err(Invalid::new(
            format!("spec.fetch.oauth2.assertion.claims[{claim}]"),
            "iss, sub and aud are set by issuer, subject and audience; exp, nbf, iat and jti are each assertion's own",
        )),
    }
}

/// Who speaks, and of whom.
pub(super) struct Parties<'a> {
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    /// Whether the claims of the spec go in.
    pub(super) claims: bool,
}

/// An assertion that is signed with the key of the spec.
pub(super) async fn sign(
    attempt: &mut Attempt<'_>,
    oauth2: &OAuth2,
    parties: &Parties<'_>,
    request: &mut Request,
) -> Result<SecretString, Failure> {
    let assertion = oauth2.assertion.as_ref().ok_or_else(|| missing("assertion"))?;
    let reference = assertion.private_key_ref.as_ref().ok_or_else(|| missing("assertion.privateKeyRef"))?;
    let secret = attempt.sources.secret(&reference.name).await?;
    let key = SigningKey::from_pem(secret.bytes(&reference.key)?.expose_secret())
        .map_err(|wrong| secret.unusable(&reference.key, wrong))?;
    let algorithm = key
        .algorithm(assertion.algorithm)
        .map_err(|wrong| secret.unusable(&reference.key, &format!("{wrong} (assertion.algorithm)")))?;
    let mut header = Header::new(algorithm);
    header.kid.clone_from(&assertion.key_id);
    if let Some(reference) = &assertion.certificate_ref {
        let secret = attempt.sources.secret(&reference.name).await?;
        let thumbprint = signing::thumbprint(secret.bytes(&reference.key)?.expose_secret());
        header.x5t_s256 = Some(thumbprint.map_err(|wrong| secret.unusable(&reference.key, wrong))?);
    }
    let signed = key.sign(&header, &claims(oauth2, parties, attempt.clock.now()));
    let signed = signed.map_err(|wrong| Failure::new(Reason::InvalidSpec, format!("the private key {wrong}")))?;
    request.confidence.note(described(assertion, algorithm));
    Ok(signed)
}

/// An assertion that is signed with the client's secret (OpenID Connect Core §9, `client_secret_jwt`).
pub(super) fn sign_with_secret(
    oauth2: &OAuth2,
    parties: &Parties<'_>,
    secret: &SecretString,
    now: DateTime<Utc>,
    request: &mut Request,
) -> Result<SecretString, Failure> {
    let mut header = Header::new(Algorithm::HS256);
    header.kid = oauth2.assertion.as_ref().and_then(|assertion| assertion.key_id.clone());
    let signed =
        SigningKey::sign_with_secret(secret.expose_secret().as_bytes(), &header, &claims(oauth2, parties, now));
    request.confidence.note(described(&oauth2.assertion.clone().unwrap_or_default(), Algorithm::HS256));
    signed.ok_or_else(|| Failure::new(Reason::InvalidSpec, "the client's secret cannot sign an assertion"))
}

fn claims(oauth2: &OAuth2, parties: &Parties<'_>, now: DateTime<Utc>) -> Map<String, Value> {
    let default = Assertion::default();
    let assertion = oauth2.assertion.as_deref().unwrap_or(&default);
    let mut claims = if parties.claims { assertion.claims.clone() } else { Map::new() };
    let lifetime = i64::try_from(assertion.lifetime().as_std().as_secs()).unwrap_or_default();
    let begin = now.timestamp();
    for (name, value) in [
        ("iss", json!(parties.issuer)),
        ("sub", json!(parties.subject)),
        ("aud", json!(assertion.audience.as_deref().unwrap_or(&oauth2.token_url))),
        ("iat", json!(begin)),
        ("nbf", json!(begin)),
        ("exp", json!(begin + lifetime)),
        ("jti", json!(format!("{:032x}", rand::random::<u128>()))),
    ] {
        claims.insert(name.to_owned(), value);
    }
    claims
}

/// What a person compares with the server's settings.
fn described(assertion: &Assertion, algorithm: Algorithm) -> String {
    let audience = match &assertion.audience {
        Some(audience) => format!("{audience} (assertion.audience)"),
        None => "tokenUrl (set assertion.audience for another one)".to_owned(),
    };
    let key = match &assertion.key_id {
        Some(id) => format!("kid {id}"),
        None => "no kid".to_owned(),
    };
    format!(
        "The assertion that was sent is for the audience {audience}, signed by {algorithm:?} with {key}, and valid for \
         {} from this machine's time on",
        assertion.lifetime()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::time::parse_rfc3339;

    fn oauth2(assertion: &Value) -> OAuth2 {
        serde_json::from_value(json!({"tokenUrl": "https://id/token", "clientId": "me", "assertion": assertion}))
            .unwrap()
    }

    #[test]
    fn each_assertion_has_its_own_time_and_identifier() {
        let parties = Parties { issuer: "me", subject: "you", claims: true };
        let assertion = json!({"audience": "them", "lifetime": "3m", "claims": {"scope": "a b", "n": {"x": [1]}}});
        let now = parse_rfc3339("2026-01-02T03:04:05.9Z").unwrap();
        let claims = |parties| claims(&oauth2(&assertion), parties, now);
        let mut first = claims(&parties);
        let identifiers = [first.remove("jti").unwrap(), claims(&parties).remove("jti").unwrap()];
        assert_ne!(identifiers[0], identifiers[1]);
        assert_eq!(identifiers[0].as_str().unwrap().len(), 32);
        let begin = now.timestamp();
        let wanted = json!({
            "iss": "me", "sub": "you", "aud": "them", "iat": begin, "nbf": begin, "exp": begin + 180,
            "scope": "a b", "n": {"x": [1]},
        });
        assert_eq!(Value::Object(first), wanted);
        let plain = claims(&Parties { claims: false, ..parties });
        assert!(!plain.contains_key("scope"));
    }

    #[test]
    fn by_default_an_assertion_is_for_the_token_url_and_lives_for_two_minutes() {
        let parties = Parties { issuer: "me", subject: "me", claims: true };
        let claims = claims(&oauth2(&json!({})), &parties, DateTime::UNIX_EPOCH);
        assert_eq!((&claims["aud"], &claims["exp"]), (&json!("https://id/token"), &json!(120)));
    }

    #[test]
    fn claims_that_are_made_for_each_assertion_are_refused() {
        for claim in RESERVED {
            let assertion: Assertion = serde_json::from_value(json!({"claims": {claim: "x"}})).unwrap();
            let invalid = check(&assertion).unwrap_err();
            assert_eq!(invalid.field, format!("spec.fetch.oauth2.assertion.claims[{claim}]"));
        }
        assert_eq!(check(&serde_json::from_value(json!({"claims": {"scope": "x"}})).unwrap()), Ok(()));
    }
}
