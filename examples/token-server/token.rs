//! Tokens: signed JWTs, each with a number of its own, so that no two are alike.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Value, json};

use super::{Expiry, Options};

/// A token, and the answer that carries it (RFC 6749 §5.1).
pub struct Issued {
    pub token: String,
    pub answer: Value,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn rfc3339(unix: u64) -> String {
    let seconds = i64::try_from(unix).unwrap_or(i64::MAX);
    chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default().to_rfc3339()
}

/// Token number `n` for a client that asked for this scope and audience.
pub fn issue(
    options: &Options,
    key: &[u8],
    expiry: Expiry,
    n: usize,
    scope: Option<&String>,
    audience: Option<&String>,
) -> jsonwebtoken::errors::Result<Issued> {
    let lifetime = match expiry {
        Expiry::In(seconds)
        | Expiry::InText(seconds)
        | Expiry::At(seconds)
        | Expiry::AtUnix(seconds)
        | Expiry::AtUnixMillis(seconds)
        | Expiry::JwtOnly(seconds) => Some(seconds),
        Expiry::Unsaid => None,
    };
    let until = now() + lifetime.unwrap_or_default();
    let token = if lifetime.is_some() {
        let claims = json!({
            "iss": "token-server", "sub": options.client_id, "aud": audience, "scope": scope,
            "iat": now(), "exp": until, "jti": format!("{:032x}", rand::random::<u128>()), "n": n,
        });
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(key))?
    } else {
        format!("opaque-{n}-{:032x}", rand::random::<u128>())
    };
    let mut answer = json!({"access_token": token, "token_type": "Bearer"});
    match expiry {
        Expiry::In(seconds) => answer["expires_in"] = json!(seconds),
        Expiry::InText(seconds) => answer["expires_in"] = json!(seconds.to_string()),
        Expiry::At(_) => answer["expires_at"] = json!(rfc3339(until)),
        Expiry::AtUnix(_) => answer["expires_at"] = json!(until),
        Expiry::AtUnixMillis(_) => answer["expires_at"] = json!(until * 1000),
        Expiry::JwtOnly(_) | Expiry::Unsaid => {}
    }
    Ok(Issued { token, answer })
}

/// Who a token is for, its number, and how many seconds it has left; `None` if it is not valid (any more).
pub fn whose(token: &str, key: &[u8]) -> Option<Value> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = 0;
    validation.validate_aud = false;
    let claims = decode::<Value>(token, &DecodingKey::from_secret(key), &validation).ok()?.claims;
    let left = claims["exp"].as_u64()?.checked_sub(now()).filter(|left| *left > 0)?;
    Some(json!({"sub": claims["sub"], "scope": claims["scope"], "n": claims["n"], "seconds_left": left}))
}
