//! What each grant sends, but for the client's authentication.

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Request,
    assertion::{self, Parties},
    missing,
    rotation::Rotation,
};
use crate::{
    api::{
        Duration,
        oauth2::{Grant, OAuth2, SecretKeyRef, TokenSource},
    },
    fetch::{Attempt, Failure, token_request::TokenRequest},
};

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A service account's token is used once, at once: the least that Kubernetes issues, ten minutes, is enough.
const ACCOUNT_TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Writes the grant into the form. With a refresh token, gives what sees to its successor.
pub(super) async fn write(
    attempt: &mut Attempt<'_>,
    oauth2: &OAuth2,
    id: Option<&SecretString>,
    request: &mut Request,
) -> Result<Option<Rotation>, Failure> {
    let grant = oauth2.grant();
    request.form.add("grant_type", grant_type(grant));
    let rotation = match grant {
        Grant::ClientCredentials => None,
        Grant::RefreshToken => {
            let reference = oauth2.refresh_token_ref.as_ref().ok_or_else(|| missing("refreshTokenRef"))?;
            let first = request.secret(attempt, reference).await?;
            let rotation = Rotation::find(attempt, reference, first).await?;
            request.add_secret("refresh_token", rotation.token());
            Some(rotation)
        }
        Grant::JwtBearer => {
            let told = oauth2.assertion.as_ref();
            let issuer = told.and_then(|assertion| assertion.issuer.as_deref());
            let issuer = issuer.or(id.map(|id| id.expose_secret())).ok_or_else(|| missing("assertion.issuer"))?;
            let subject = told.and_then(|assertion| assertion.subject.as_deref()).unwrap_or(issuer);
            let parties = Parties { issuer, subject, claims: true };
            let signed = assertion::sign(attempt, oauth2, &parties, request).await?;
            request.add_secret("assertion", &signed);
            None
        }
        Grant::TokenExchange => {
            let subject = oauth2.subject_token.as_ref().ok_or_else(|| missing("subjectToken"))?;
            add_token(attempt, "subject_token", subject, oauth2.subject_token_type.as_deref(), request).await?;
            if let Some(actor) = &oauth2.actor_token {
                add_token(attempt, "actor_token", actor, oauth2.actor_token_type.as_deref(), request).await?;
            }
            if let Some(wanted) = &oauth2.requested_token_type {
                request.form.add("requested_token_type", wanted);
            }
            None
        }
    };
    let form = &mut request.form;
    if !oauth2.scopes.is_empty() {
        form.add("scope", &oauth2.scopes.join(" "));
    }
    oauth2.audience.iter().for_each(|audience| form.add("audience", audience));
    oauth2.resource.iter().for_each(|resource| form.add("resource", resource));
    oauth2.extra_params.iter().for_each(|(name, value)| form.add(name, value));
    Ok(rotation)
}

fn grant_type(grant: Grant) -> &'static str {
    match grant {
        Grant::ClientCredentials => "client_credentials",
        Grant::RefreshToken => "refresh_token",
        Grant::JwtBearer => "urn:ietf:params:oauth:grant-type:jwt-bearer",
        Grant::TokenExchange => "urn:ietf:params:oauth:grant-type:token-exchange",
    }
}

/// A token to exchange, and its type (RFC 8693 §2.1).
async fn add_token(
    attempt: &mut Attempt<'_>,
    name: &str,
    source: &TokenSource,
    token_type: Option<&str>,
    request: &mut Request,
) -> Result<(), Failure> {
    let (token, default_type) = match (&source.secret_ref, &source.service_account) {
        (Some(reference), _) => {
            let SecretKeyRef { name: secret, key } = reference;
            request.confidence.note(format!("The {name} is that of key {key} in Secret {secret}"));
            (request.secret(attempt, reference).await?, ACCESS_TOKEN)
        }
        (None, Some(account)) => {
            let wanted = TokenRequest {
                account: &account.name,
                audiences: &account.audiences,
                expiration: Some(ACCOUNT_TOKEN_LIFETIME),
            };
            request.confidence.note(format!(
                "The {name} is of ServiceAccount {}, for the audiences {}",
                account.name,
                account.audiences.join(", ")
            ));
            (attempt.sources.service_account_token(&wanted).await?.token, JWT)
        }
        (None, None) => return Err(missing("secretRef or serviceAccount of a token")),
    };
    request.add_secret(name, &token);
    request.form.add(&format!("{name}_type"), token_type.unwrap_or(default_type));
    Ok(())
}
