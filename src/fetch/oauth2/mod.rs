//! The source `oauth2`: a token endpoint (RFC 6749 §3.2).
//!
//! 1. [`grant`]: what the grant sends; [`client`]: how the client authenticates; [`assertion`]: the JWTs of both.
//! 2. [`rotation`]: of a refresh token, that its successor is not lost.
//! 3. [`answer`]: what the answer means.

mod answer;
mod assertion;
mod client;
#[cfg(test)]
mod fuzz_tests;
mod grant;
mod rotation;

use chrono::{DateTime, Utc};
use http::{HeaderValue, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded::Serializer;

use self::answer::Confidence;
pub(super) use self::rotation::late;
use super::{
    Attempt, Failure, Obtained, Phase, Reference,
    http_client::{Answer, Connection},
    tls::{self, Settings},
};
use crate::{
    api::{
        Invalid,
        oauth2::{Grant, OAuth2, SecretKeyRef},
        reason::Reason,
    },
    time::Clock,
};

/// Asks for a token.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, oauth2: &OAuth2) -> Result<Obtained, Failure> {
    let url = tls::parse_url("spec.fetch.oauth2.tokenUrl", &oauth2.token_url)?;
    let id = client_id(attempt, oauth2).await?;
    let mut request = Request { grant: oauth2.grant(), ..Request::default() };
    let rotation = grant::write(attempt, oauth2, id.as_ref(), &mut request).await?;
    client::authenticate(attempt, oauth2, id.as_ref(), &mut request).await?;
    let settings = Settings::load(oauth2.tls.as_ref(), oauth2.proxy.as_ref(), &mut attempt.sources).await?;
    let connection = attempt.clients.connection(&url, &settings)?;
    let exchange = Exchange { connection, request, phase: attempt.phase.clone(), clock: attempt.clock.clone() };
    let Exchanged { mut members, sent, answer } = match rotation {
        None => exchange.run().await.map_err(|refused| refused.failure)?,
        Some(rotation) => rotation::exchange(attempt, exchange, rotation).await?,
    };
    // It has a Secret of its own.
    members.remove(rotation::MEMBER);
    let token = answer::token(&members).cloned();
    Ok(Obtained { token, members, values: None, sent, from: answer.peer.to_string() })
}

/// Where its requests go, and by which proxy.
pub(super) fn endpoint(oauth2: &OAuth2) -> (&str, Option<&str>) {
    (&oauth2.token_url, oauth2.proxy.as_ref().map(|proxy| proxy.url.as_str()))
}

/// The objects that it reads.
pub(super) fn references(oauth2: &OAuth2) -> impl Iterator<Item = Reference> {
    let OAuth2 { client_id_ref, client_secret_ref, refresh_token_ref, assertion, subject_token, actor_token, .. } =
        oauth2;
    let assertion = assertion.iter().flat_map(|it| [&it.private_key_ref, &it.certificate_ref]);
    let tokens = || [subject_token, actor_token].into_iter().flatten();
    let keys = [client_id_ref, client_secret_ref, refresh_token_ref].into_iter().chain(assertion).flatten();
    let keys = keys.chain(tokens().filter_map(|token| token.secret_ref.as_ref()));
    let accounts = tokens().filter_map(|token| token.service_account.as_ref());
    keys.map(|key| Reference::secret(&key.name))
        .chain(accounts.map(|account| Reference::service_account(&account.name)))
        .chain(Reference::of_connection(oauth2.tls.as_ref(), oauth2.proxy.as_ref()))
}

/// Checks what the CRD's rules cannot.
pub(super) fn check(oauth2: &OAuth2) -> Result<(), Invalid> {
    oauth2.assertion.as_deref().map_or(Ok(()), assertion::check)
}

/// What is sent.
#[derive(Default)]
struct Request {
    grant: Grant,
    form: Form,
    authorization: Option<HeaderValue>,
    /// What of it must not be told, and what may help where it is refused.
    confidence: Confidence,
}

/// Parameters, for `application/x-www-form-urlencoded`.
#[derive(Default)]
struct Form(Vec<(String, SecretString)>);

impl Form {
    fn add(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.into()));
    }

    fn encode(&self) -> String {
        let pairs = self.0.iter().map(|(name, value)| (name, value.expose_secret()));
        Serializer::new(String::new()).extend_pairs(pairs).finish()
    }
}

impl Request {
    /// Reads a secret that will be sent.
    async fn secret(&mut self, attempt: &mut Attempt<'_>, key: &SecretKeyRef) -> Result<SecretString, Failure> {
        let secret = attempt.sources.secret(&key.name).await?.credential(&key.key)?;
        self.confidence.hide(secret.expose_secret());
        self.confidence.note_oddity(key, &secret);
        Ok(secret)
    }

    /// Adds a parameter that must not be told.
    fn add_secret(&mut self, name: &str, value: &SecretString) {
        self.confidence.hide(value.expose_secret());
        self.form.add(name, value.expose_secret());
    }
}

/// The client's identifier.
async fn client_id(attempt: &mut Attempt<'_>, oauth2: &OAuth2) -> Result<Option<SecretString>, Failure> {
    match (&oauth2.client_id, &oauth2.client_id_ref) {
        (Some(id), _) => Ok(Some(id.as_str().into())),
        (None, Some(key)) => attempt.sources.secret(&key.name).await?.credential(&key.key).map(Some),
        (None, None) => Ok(None),
    }
}

/// What the CRD's rules ask for; an API server older than 1.25 does not enforce them.
fn missing(field: &str) -> Failure {
    Failure::new(Reason::InvalidSpec, format!("spec.fetch.oauth2: {field} must be set"))
}

/// One request and its answer, with all that they need: it can outlive the attempt.
struct Exchange {
    connection: Connection,
    request: Request,
    phase: Phase,
    clock: Clock,
}

/// A successful answer.
struct Exchanged {
    members: super::json::Members,
    /// Just before the request.
    sent: DateTime<Utc>,
    answer: Answer,
}

impl Exchange {
    async fn run(self) -> Result<Exchanged, answer::Refused> {
        let Self { connection, request: Request { grant, form, authorization, confidence }, phase, clock } = self;
        let mut request = connection
            .request(Method::POST)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.encode());
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let sent = clock.now();
        let answer = connection.send(request, &phase, || clock.now()).await?;
        let members = answer::interpret(&answer, grant, &confidence)?;
        Ok(Exchanged { members, sent, answer })
    }
}
