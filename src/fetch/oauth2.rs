//! The source `oauth2`: a token endpoint (RFC 6749 §3.2).

use std::str;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{
    Attempt, Failure, Obtained, Reference,
    http_client::Answer,
    json::{self, Member, Members},
    redact::Redactor,
    tls::{self, Settings},
};
use crate::{
    api::oauth2::{ClientAuth, Grant, OAuth2, SecretKeyRef},
    reason::Reason,
};

/// Asks for a token.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, oauth2: &OAuth2) -> Result<Obtained, Failure> {
    let url = tls::parse_url("spec.fetch.oauth2.tokenUrl", &oauth2.token_url)?;
    let credentials = Credentials::load(attempt, oauth2).await?;
    let settings = Settings::load(oauth2.tls.as_ref(), oauth2.proxy.as_ref(), &mut attempt.sources).await?;
    let connection = attempt.clients.connection(&url, &settings)?;
    let mut request = connection
        .request(Method::POST)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form(oauth2, &credentials));
    if oauth2.client_auth() == ClientAuth::Basic {
        request = request.header(header::AUTHORIZATION, basic(&credentials)?);
    }
    let sent = attempt.clock.now();
    let answer = connection.send(request, &attempt.phase, || attempt.clock.now()).await?;
    let members = interpret(&answer, &credentials)?;
    Ok(Obtained { token: token(&members).cloned(), members, sent, from: answer.peer.to_string() })
}

/// Where its requests go, and by which proxy.
pub(super) fn endpoint(oauth2: &OAuth2) -> (&str, Option<&str>) {
    (&oauth2.token_url, oauth2.proxy.as_ref().map(|proxy| proxy.url.as_str()))
}

/// The objects that it reads.
pub(super) fn references(oauth2: &OAuth2) -> impl Iterator<Item = Reference> {
    let keys = [&oauth2.client_id_ref, &oauth2.client_secret_ref].into_iter().flatten();
    keys.map(|key| Reference::secret(&key.name))
        .chain(Reference::of_connection(oauth2.tls.as_ref(), oauth2.proxy.as_ref()))
}

/// The client's identifier and secret, exactly as they are stored.
struct Credentials {
    id: SecretString,
    secret: SecretString,
    /// A note where a value ends as only a file does.
    newline: Option<String>,
}

impl Credentials {
    async fn load(attempt: &mut Attempt<'_>, oauth2: &OAuth2) -> Result<Self, Failure> {
        let missing =
            |field: &str| Failure::new(Reason::InvalidSpec, format!("spec.fetch.oauth2: {field} must be set"));
        let id = match (&oauth2.client_id, &oauth2.client_id_ref) {
            (Some(id), _) => SecretString::from(id.as_str()),
            (None, Some(key)) => attempt.sources.text(key).await?,
            (None, None) => return Err(missing("clientId or clientIdRef")),
        };
        let Some(secret_ref) = &oauth2.client_secret_ref else { return Err(missing("clientSecretRef")) };
        let secret = attempt.sources.text(secret_ref).await?;
        let ends_so = |value: &SecretString, key: Option<&SecretKeyRef>| {
            let key = key.filter(|_| value.expose_secret().ends_with('\n'))?;
            Some(format!(
                "the value of key {} in Secret {} ends with a newline, which was sent as a part of it",
                key.key, key.name
            ))
        };
        let newline = ends_so(&secret, Some(secret_ref)).or_else(|| ends_so(&id, oauth2.client_id_ref.as_ref()));
        Ok(Self { id, secret, newline })
    }
}

/// The body of the request (RFC 6749 §4.4.2).
fn form(oauth2: &OAuth2, credentials: &Credentials) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair(
        "grant_type",
        match oauth2.grant.unwrap_or_default() {
            Grant::ClientCredentials => "client_credentials",
        },
    );
    if !oauth2.scopes.is_empty() {
        form.append_pair("scope", &oauth2.scopes.join(" "));
    }
    form.extend_pairs(oauth2.audience.iter().map(|audience| ("audience", audience)));
    form.extend_pairs(oauth2.resource.iter().map(|resource| ("resource", resource)));
    form.extend_pairs(&oauth2.extra_params);
    if oauth2.client_auth() == ClientAuth::Post {
        form.append_pair("client_id", credentials.id.expose_secret());
        form.append_pair("client_secret", credentials.secret.expose_secret());
    }
    form.finish()
}

/// Id and secret, each form-urlencoded first (RFC 6749 §2.3.1).
fn basic(credentials: &Credentials) -> Result<HeaderValue, Failure> {
    let pair = Zeroizing::new(user_and_password(credentials));
    let value = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| Failure::new(Reason::InvalidSpec, "the client's credentials fit no HTTP header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn user_and_password(credentials: &Credentials) -> String {
    let encode =
        |secret: &SecretString| form_urlencoded::byte_serialize(secret.expose_secret().as_bytes()).collect::<String>();
    format!("{}:{}", encode(&credentials.id), encode(&credentials.secret))
}

/// The members of a successful answer (RFC 6749 §5.1). Any `token_type` is taken: what a consumer does with the token
/// is between it and the API that it calls.
fn interpret(answer: &Answer, credentials: &Credentials) -> Result<Members, Failure> {
    let members = json::parse(&answer.body);
    let error = members.as_ref().and_then(|members| error_words(members, credentials));
    let told = |mut failure: Failure, error: Option<&ErrorWords>| {
        let denied = answer.status == 401 || error.is_some_and(|error| error.invalid_client);
        if let Some(note) = credentials.newline.as_ref().filter(|_| denied) {
            failure.message = format!("{}; {note}", failure.message);
        }
        failure
    };
    if let Some(refusal) = answer.refusal(error.as_ref().map(|error| error.words.as_str())) {
        return Err(told(refusal, error.as_ref()));
    }
    if let Some(error) = error {
        // Some servers answer a refusal with 200.
        let failure = answer.failure(Reason::Rejected, format!("{answer} with an error: {}", error.words));
        return Err(told(failure, Some(&error)));
    }
    let wrong = |what: String| answer.failure(Reason::InvalidResponse, format!("{answer}, but {what}"));
    let Some(members) = members else {
        return Err(wrong(format!("not with a JSON object ({})", answer.content_type())));
    };
    match token(&members) {
        Some(token) if !token.expose_secret().is_empty() => Ok(members),
        Some(_) => Err(wrong("access_token is empty".to_owned())),
        None => Err(wrong("without access_token as a string".to_owned())),
    }
}

fn token(members: &Members) -> Option<&SecretString> {
    match members.get("access_token")? {
        Member::Text(token) => Some(token),
        _ => None,
    }
}

/// What an error response says (RFC 6749 §5.2).
struct ErrorWords {
    words: String,
    invalid_client: bool,
}

/// `error` and `error_description`, and no other part of a body, without what was sent in confidence.
fn error_words(members: &Members, credentials: &Credentials) -> Option<ErrorWords> {
    let mut redactor = Redactor::default();
    redactor.hide(&Zeroizing::new(user_and_password(credentials)));
    redactor.hide(credentials.secret.expose_secret());
    let text = |name: &str| match members.get(name)? {
        Member::Text(text) => Some(redactor.clean(text.expose_secret())).filter(|text| !text.is_empty()),
        _ => None,
    };
    let error = match members.get("error")? {
        Member::Null | Member::Bool(false) => return None,
        Member::Text(text) if text.expose_secret().is_empty() => return None,
        Member::Text(_) => text("error").unwrap_or_default(),
        // Not as the standard wants it, but an error nonetheless.
        Member::Number(number) => number.to_string(),
        Member::Bool(true) | Member::Nested => "an error that is not told as RFC 6749 wants it".to_owned(),
    };
    let invalid_client = error == "invalid_client";
    let words = match text("error_description") {
        Some(description) => format!("{error}: {description}"),
        None => error,
    };
    Some(ErrorWords { words, invalid_client })
}
