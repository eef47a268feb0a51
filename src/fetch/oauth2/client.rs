//! How the client authenticates (RFC 6749 §2.3, RFC 7523 §2.2, RFC 8705 §2).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use http::HeaderValue;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{
    Request,
    assertion::{self, Parties},
    missing,
};
use crate::{
    api::{
        oauth2::{ClientAuth, Grant, OAuth2},
        reason::Reason,
    },
    fetch::{Attempt, Failure, pem, redact::Redactor},
    time::rfc3339,
};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Puts into the request what proves that it is the client's.
pub(super) async fn authenticate(
    attempt: &mut Attempt<'_>,
    oauth2: &OAuth2,
    id: Option<&SecretString>,
    request: &mut Request,
) -> Result<(), Failure> {
    let auth = oauth2.client_auth();
    if auth == ClientAuth::None {
        if let Some(id) = id.filter(|_| oauth2.names_client()) {
            request.form.add("client_id", id.expose_secret());
        }
        return Ok(());
    }
    let id = id.ok_or_else(|| missing("clientId or clientIdRef"))?;
    if let Some(key) = &oauth2.client_id_ref {
        request.confidence.note_oddity(key, id);
    }
    match auth {
        ClientAuth::None => {}
        ClientAuth::Basic => {
            let secret = secret(attempt, oauth2, request).await?;
            let pair = Zeroizing::new(user_and_password(id, &secret));
            request.confidence.hide(&pair);
            if pair.split_once(':') != Some((id.expose_secret(), secret.expose_secret())) {
                request.confidence.note(
                    "The client's id or secret has characters that are percent-encoded in the Authorization header (RFC \
                     6749 §2.3.1). Set clientAuth: Post if the server does not decode them"
                        .to_owned(),
                );
            }
            request.authorization = Some(basic(&pair)?);
        }
        ClientAuth::Post => {
            let secret = secret(attempt, oauth2, request).await?;
            request.form.add("client_id", id.expose_secret());
            request.add_secret("client_secret", &secret);
        }
        ClientAuth::ClientSecretJwt => {
            let secret = secret(attempt, oauth2, request).await?;
            let now = attempt.clock.now();
            let signed = assertion::sign_with_secret(oauth2, &parties(oauth2, id), &secret, now, request)?;
            add_assertion(request, id, &signed);
        }
        ClientAuth::PrivateKeyJwt => {
            let signed = assertion::sign(attempt, oauth2, &parties(oauth2, id), request).await?;
            add_assertion(request, id, &signed);
        }
        ClientAuth::MutualTls => {
            check_certificate(attempt, oauth2, request).await?;
            request.form.add("client_id", id.expose_secret());
        }
    }
    Ok(())
}

async fn secret(attempt: &mut Attempt<'_>, oauth2: &OAuth2, request: &mut Request) -> Result<SecretString, Failure> {
    let reference = oauth2.client_secret_ref.as_ref().ok_or_else(|| missing("clientSecretRef"))?;
    request.secret(attempt, reference).await
}

/// By its own assertion, a client is issuer and subject. The claims of the spec are those of the grant, if it has any.
fn parties<'a>(oauth2: &OAuth2, id: &'a SecretString) -> Parties<'a> {
    let id = id.expose_secret();
    Parties { issuer: id, subject: id, claims: oauth2.grant() != Grant::JwtBearer }
}

/// Not all servers find the client by the assertion alone (RFC 7521 §4.2).
fn add_assertion(request: &mut Request, id: &SecretString, signed: &SecretString) {
    request.form.add("client_id", id.expose_secret());
    request.form.add("client_assertion_type", ASSERTION_TYPE);
    request.add_secret("client_assertion", signed);
}

/// Id and secret, each form-urlencoded first (RFC 6749 §2.3.1).
fn user_and_password(id: &SecretString, secret: &SecretString) -> String {
    let encode =
        |secret: &SecretString| form_urlencoded::byte_serialize(secret.expose_secret().as_bytes()).collect::<String>();
    format!("{}:{}", encode(id), encode(secret))
}

fn basic(pair: &str) -> Result<HeaderValue, Failure> {
    let value = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| Failure::new(Reason::InvalidSpec, "the client's credentials fit no HTTP header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A server that is shown an expired certificate may well say nothing but that the handshake failed.
async fn check_certificate(attempt: &mut Attempt<'_>, oauth2: &OAuth2, request: &mut Request) -> Result<(), Failure> {
    let reference = oauth2.tls.as_ref().and_then(|tls| tls.client_cert_ref.as_ref());
    let reference = reference.ok_or_else(|| missing("tls.clientCertRef"))?;
    let now = attempt.clock.now();
    let secret = attempt.sources.secret(&reference.name).await?;
    // What cannot be read here is told when the connection is made.
    let Some(Shown { subject, from, until }) = shown(secret.bytes("tls.crt")?.expose_secret()) else { return Ok(()) };
    if until <= now {
        return Err(secret.unusable("tls.crt", &format!("is a certificate that expired at {}", rfc3339(until))));
    }
    if now < from {
        let message = format!("{}, key tls.crt: the certificate is not valid before {}", secret.title(), rfc3339(from));
        return Err(Failure::new(Reason::TlsFailed, message));
    }
    request.confidence.note(format!("The client's certificate is that of {}, for {subject}", secret.title()));
    Ok(())
}

/// What a certificate shows of itself.
struct Shown {
    subject: String,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
}

fn shown(text: &[u8]) -> Option<Shown> {
    let certificate = CertificateDer::from_pem_slice(&pem::tidy(text)).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    let moment = |time: x509_parser::time::ASN1Time| DateTime::from_timestamp(time.timestamp(), 0);
    Some(Shown {
        subject: Redactor::default().clean(&certificate.subject().to_string()),
        from: moment(certificate.validity().not_before)?,
        until: moment(certificate.validity().not_after)?,
    })
}
