//! The source `githubApp`: an installation access token (GitHub's REST API, version 2022-11-28).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderValue, Method, StatusCode, header};
use jsonwebtoken::{Algorithm, Header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{
    Attempt, Failure, Obtained, Reference,
    http_client::Answer,
    json::{self, Member, Members},
    redact::Redactor,
    signing::SigningKey,
    tls::{self, Settings},
};
use crate::{
    api::{
        github_app::GitHubApp,
        oauth2::{SecretKeyRef, SigningAlgorithm},
        reason::Reason,
    },
    time,
};

/// The JWT is dated back, as GitHub advises, against clocks that differ.
const BACKDATED: i64 = 60;
/// From now to `exp`. GitHub takes ten minutes at most, by its own clock.
const LIFETIME: i64 = 9 * 60;
/// Who is limited without a word on how long is to wait for at least a minute.
const LEAST_PAUSE: Duration = Duration::from_secs(60);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Asks for a token.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, app: &GitHubApp) -> Result<Obtained, Failure> {
    let url = format!("{}/app/installations/{}/access_tokens", app.api_url(), app.installation_id);
    let url = tls::parse_url("spec.fetch.githubApp.apiUrl", &url)?;
    let jwt = sign(attempt, app).await?;
    let settings = Settings::load(app.tls.as_ref(), app.proxy.as_ref(), &mut attempt.sources).await?;
    let connection = attempt.clients.connection(&url, &settings)?;
    let mut bearer = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", jwt.expose_secret())))
        .map_err(|_| Failure::new(Reason::InvalidSpec, "the JWT fits no HTTP header"))?;
    bearer.set_sensitive(true);
    let request = connection
        .request(Method::POST)
        .header(header::ACCEPT, "application/vnd.github+json")
        .header("x-github-api-version", "2022-11-28")
        .header(header::AUTHORIZATION, bearer)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body(app).to_string());
    let sent = attempt.clock.now();
    let answer = connection.send(request, &attempt.phase, || attempt.clock.now()).await?;
    let members = interpret(&answer, app, &jwt, attempt.clock.now())?;
    Ok(Obtained { token: text(&members, "token").cloned(), members, values: None, sent, from: answer.peer.to_string() })
}

/// Where its requests go, and by which proxy.
pub(super) fn endpoint(app: &GitHubApp) -> (&str, Option<&str>) {
    (app.api_url(), app.proxy.as_ref().map(|proxy| proxy.url.as_str()))
}

/// The objects that it reads.
pub(super) fn references(app: &GitHubApp) -> impl Iterator<Item = Reference> {
    [Reference::secret(&app.private_key_ref.name)]
        .into_iter()
        .chain(Reference::of_connection(app.tls.as_ref(), app.proxy.as_ref()))
}

async fn sign(attempt: &mut Attempt<'_>, app: &GitHubApp) -> Result<SecretString, Failure> {
    let SecretKeyRef { name, key } = &app.private_key_ref;
    let secret = attempt.sources.secret(name).await?;
    let signing =
        SigningKey::from_pem(secret.bytes(key)?.expose_secret()).map_err(|wrong| secret.unusable(key, wrong))?;
    signing
        .algorithm(Some(SigningAlgorithm::RS256))
        .map_err(|_| secret.unusable(key, "is no RSA key: a GitHub App's key, as its settings make it, is one"))?;
    signing
        .sign(&Header::new(Algorithm::RS256), &claims(app.app_id, attempt.clock.now()))
        .map_err(|wrong| secret.unusable(key, wrong))
}

fn claims(app_id: i64, now: DateTime<Utc>) -> Map<String, Value> {
    let now = now.timestamp();
    [("iat", json!(now - BACKDATED)), ("exp", json!(now + LIFETIME)), ("iss", json!(app_id.to_string()))]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

fn body(app: &GitHubApp) -> Value {
    let mut body = json!({});
    if !app.repositories.is_empty() {
        body["repositories"] = json!(app.repositories);
    }
    if !app.permissions.is_empty() {
        body["permissions"] = json!(app.permissions);
    }
    body
}

/// The members of a successful answer.
fn interpret(answer: &Answer, app: &GitHubApp, jwt: &SecretString, now: DateTime<Utc>) -> Result<Members, Failure> {
    let members = json::read(&answer.body);
    let mut redactor = Redactor::default();
    redactor.hide(jwt.expose_secret());
    let said = members.as_ref().ok().and_then(|members| text(members, "message"));
    let said = said.map(|text| redactor.clean(text.expose_secret())).filter(|text| !text.is_empty());
    if let Some(mut refusal) = answer.refusal(said.as_deref()) {
        let said = said.unwrap_or_default();
        if let Some(pause) = pause(answer, &said, now) {
            refusal.reason = Reason::RateLimited;
            refusal.retry_after = Some(refusal.retry_after.unwrap_or(pause));
        } else if let Some(hint) = hint(answer.status, app, &said) {
            refusal.message = format!("{}. {hint}", refusal.message);
        }
        return Err(refusal);
    }
    let wrong = |what: &str| {
        answer.failure(Reason::InvalidResponse, format!("{answer}, but {what}. Check that apiUrl is the API"))
    };
    let members = members.map_err(|problem| wrong(&format!("the body {problem}")))?;
    match text(&members, "token") {
        Some(token) if !token.expose_secret().is_empty() => Ok(members),
        _ => Err(wrong("without a token")),
    }
}

fn text<'a>(members: &'a Members, name: &str) -> Option<&'a SecretString> {
    match members.get(name)? {
        Member::Text(text) => Some(text),
        _ => None,
    }
}

/// How long to wait, where the answer means that a rate limit was exceeded: GitHub says so by 403 as well as by 429.
fn pause(answer: &Answer, said: &str, now: DateTime<Utc>) -> Option<Duration> {
    let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
    let used_up = number("x-ratelimit-remaining") == Some(0);
    let limited = match answer.status.as_u16() {
        429 => true,
        403 => used_up || answer.retry_after.is_some() || said.to_ascii_lowercase().contains("rate limit"),
        _ => false,
    };
    let reset = number("x-ratelimit-reset").filter(|_| used_up).and_then(|at| DateTime::from_timestamp(at, 0));
    // A second more, since it is told in whole ones.
    let until_reset = reset.map(|at| time::until(time::later(at, TimeDelta::seconds(1)), now).min(LONGEST_PAUSE));
    limited.then(|| until_reset.unwrap_or(LEAST_PAUSE))
}

/// What GitHub means, and what to do.
fn hint(status: StatusCode, app: &GitHubApp, said: &str) -> Option<String> {
    let GitHubApp { app_id, installation_id, .. } = app;
    let about = |word: &str| said.to_ascii_lowercase().contains(word);
    Some(match status.as_u16() {
        401 if about("'exp'") || about("'iat'") || about("expir") => {
            "The clocks of this machine and of GitHub differ. Correct this machine's clock".to_owned()
        }
        401 => format!(
            "privateKeyRef holds no key of the App {app_id}, or one that was deleted, or the clock of this machine is \
             wrong. Create a new key in the App's settings"
        ),
        403 if about("suspend") => {
            format!("The installation {installation_id} is suspended. Its owner can unsuspend it")
        }
        403 => {
            format!("The App {app_id} is not allowed to do this. Check its permissions and its allowed IP addresses")
        }
        404 => format!(
            "The App {app_id} has no installation {installation_id}. Install it, or correct appId, installationId and \
             apiUrl"
        ),
        422 if about("repositor") => format!(
            "The installation {installation_id} has no access to one of repositories ({}). Add it in the installation's \
             settings, or correct its name, which is without the owner",
            app.repositories.join(", ")
        ),
        422 if about("permission") => {
            let wanted: Vec<_> = app.permissions.iter().map(|(name, access)| format!("{name}: {access}")).collect();
            format!(
                "One of permissions ({}) is not granted to the installation {installation_id}. Grant it to the App, and \
                 let the installation's owner accept the new permission",
                wanted.join(", ")
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn app(change: Value) -> GitHubApp {
        let mut app = json!({"appId": 12, "installationId": 34, "privateKeyRef": {"name": "s", "key": "k"}});
        for (field, value) in change.as_object().unwrap() {
            app[field] = value.clone();
        }
        serde_json::from_value(app).unwrap()
    }

    #[test]
    fn the_jwt_is_dated_back_by_a_minute_and_lives_for_less_than_ten_from_now() {
        let now = time::parse_rfc3339("2026-01-02T03:04:05Z").unwrap();
        let claims = claims(12, now);
        assert_eq!(claims["iss"], "12");
        assert_eq!(claims["iat"], now.timestamp() - 60);
        assert_eq!(claims["exp"], now.timestamp() + 540);
    }

    #[test]
    fn only_what_is_limited_is_asked_for() {
        assert_eq!(body(&app(json!({}))), json!({}));
        let limited = json!({"repositories": ["a", "b.c"], "permissions": {"contents": "read"}});
        assert_eq!(body(&app(limited.clone())), limited);
    }

    #[test]
    fn a_slash_at_the_end_of_the_api_changes_nothing() {
        assert_eq!(app(json!({})).api_url(), "https://api.github.com");
        assert_eq!(
            app(json!({"apiUrl": "https://ghe.example.com/api/v3/"})).api_url(),
            "https://ghe.example.com/api/v3"
        );
    }
}
