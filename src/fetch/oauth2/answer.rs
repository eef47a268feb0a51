//! What a token endpoint's answer means (RFC 6749 §5).

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::{
    api::{
        oauth2::{Grant, SecretKeyRef},
        reason::Reason,
    },
    fetch::{
        Failure,
        http_client::Answer,
        json::{self, Member, Members},
        redact::Redactor,
    },
};

/// What was sent in confidence, and what may help where it is refused.
#[derive(Default)]
pub(super) struct Confidence {
    hidden: Vec<Zeroizing<String>>,
    notes: Vec<String>,
}

impl Confidence {
    /// This stands in no message, in whatever form.
    pub(super) fn hide(&mut self, secret: &str) {
        self.hidden.push(Zeroizing::new(secret.to_owned()));
    }

    /// This is said where the client or its grant is refused. It holds nothing secret.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Notes what no server expects in a client's identifier, secret or token.
    pub(super) fn note_oddity(&mut self, key: &SecretKeyRef, text: &SecretString) {
        let text = text.expose_secret();
        let what = match () {
            () if text.starts_with('\u{feff}') => "begins with a byte order mark",
            () if text.trim() != text => "begins or ends with a blank",
            () => return,
        };
        self.note(format!("Key {} of Secret {} {what}, which was sent as a part of it", key.key, key.name));
    }

    fn redactor(&self) -> Redactor {
        let mut redactor = Redactor::default();
        self.hidden.iter().for_each(|secret| redactor.hide(secret));
        redactor
    }
}

/// Why there is no token.
pub(super) struct Refused {
    pub(super) failure: Failure,
    /// The server calls the grant itself invalid (`invalid_grant`, RFC 6749 §5.2).
    pub(super) invalid_grant: bool,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, invalid_grant: false }
    }
}

/// The members of a successful answer (RFC 6749 §5.1). Any `token_type` is taken: what a consumer does with the token
/// is between it and the API that it calls.
pub(super) fn interpret(answer: &Answer, grant: Grant, confidence: &Confidence) -> Result<Members, Refused> {
    let members = json::read(&answer.body);
    let error = members.as_ref().ok().and_then(|members| error_words(members, confidence));
    let refused = answer.refusal(error.as_ref().map(|error| error.words.as_str())).or_else(|| {
        // Some servers answer a refusal with 200.
        let words = &error.as_ref()?.words;
        Some(answer.failure(Reason::Rejected, format!("{answer} with an error: {words}")))
    });
    if let Some(mut failure) = refused {
        let code = error.as_ref().map_or("", |error| error.code.as_str());
        let invalid_grant = code == "invalid_grant" && failure.reason == Reason::Rejected;
        if answer.status == 401 || code == "invalid_client" || invalid_grant {
            for note in &confidence.notes {
                failure.message = format!("{}. {note}", failure.message);
            }
        }
        if let Some(cure) = cure(answer.status.as_u16(), code) {
            failure.message = format!("{}. {cure}", failure.message);
        }
        return Err(Refused { failure, invalid_grant });
    }
    let wrong = |what: String| answer.failure(Reason::InvalidResponse, format!("{answer}, but {what}"));
    let members = members.map_err(|problem| {
        let kind = answer.content_type();
        wrong(format!("the body {problem} ({kind}). Check that tokenUrl is the token endpoint"))
    })?;
    match (members.get("access_token"), text(&members, ID_TOKEN)) {
        (Some(Member::Text(token)), _) if token.expose_secret().is_empty() => {
            Err(wrong("access_token is empty".to_owned()).into())
        }
        (Some(Member::Text(_)), _) => Ok(members),
        (None | Some(Member::Null), Some(id)) if !id.expose_secret().is_empty() => match grant {
            Grant::JwtBearer => Ok(members),
            _ => Err(wrong(
                "with id_token instead of access_token. If the ID token is what you need, use the source http with \
                 result.token: response.json.id_token"
                    .to_owned(),
            )
            .into()),
        },
        (None | Some(Member::Null), _) => Err(wrong("without access_token".to_owned()).into()),
        (Some(_), _) => Err(wrong("access_token is not a string".to_owned()).into()),
    }
}

/// The member that holds an ID token (OpenID Connect Core §3.1.3.3).
const ID_TOKEN: &str = "id_token";

/// The token of a successful answer (RFC 6749 §5.1; of an exchange, whatever its type, RFC 8693 §2.2.1). Without an
/// access token it is the ID token, which an assertion can ask for in its place: Google answers so to `target_audience`.
pub(super) fn token(members: &Members) -> Option<&SecretString> {
    text(members, "access_token").or_else(|| text(members, ID_TOKEN))
}

/// A member that is a string.
pub(super) fn text<'a>(members: &'a Members, name: &str) -> Option<&'a SecretString> {
    match members.get(name)? {
        Member::Text(text) => Some(text),
        _ => None,
    }
}

/// Which setting to look at (RFC 6749 §5.2, RFC 8707 §2).
fn cure(status: u16, code: &str) -> Option<&'static str> {
    const CLIENT: &str = "Check clientId, clientAuth and the client's secret, key or certificate";
    Some(match code {
        "invalid_client" => CLIENT,
        "unauthorized_client" => "Allow this grant for this client at the server",
        "unsupported_grant_type" => "Check that tokenUrl is the endpoint that supports this grant",
        "invalid_scope" => "Check scopes",
        "invalid_target" => "Check audience and resource",
        "" if status == 401 => CLIENT,
        "" if matches!(status, 404 | 405) => "Check that tokenUrl is the URL of the token endpoint",
        _ => return None,
    })
}

/// What an error response says (RFC 6749 §5.2).
struct ErrorWords {
    code: String,
    words: String,
}

/// `error` and `error_description`, and no other part of a body, without what was sent in confidence.
fn error_words(members: &Members, confidence: &Confidence) -> Option<ErrorWords> {
    let error = members.get("error")?;
    let redactor = confidence.redactor();
    let clean = |name: &str| {
        let text = text(members, name)?;
        Some(redactor.clean(text.expose_secret())).filter(|text| !text.is_empty())
    };
    let code = match error {
        // By these, servers that always write the member mean that there is no error.
        Member::Null | Member::Bool(false) | Member::Nested { empty: true } => return None,
        Member::Number(number) if number.as_f64() == Some(0.0) => return None,
        Member::Text(text) if text.expose_secret().is_empty() => return None,
        Member::Text(_) => clean("error").unwrap_or_default(),
        // Not as the standard wants it, but an error nonetheless.
        Member::Number(number) => number.to_string(),
        Member::Bool(true) | Member::Nested { empty: false } => "an error that is not a string".to_owned(),
    };
    let words = match clean("error_description") {
        Some(description) => format!("{code}: {description}"),
        None => code.clone(),
    };
    Some(ErrorWords { code, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_with_the_setting_to_look_at() {
        let client = "Check clientId, clientAuth and the client's secret";
        for (status, body, words) in [
            (400, r#"{"error": "invalid_scope"}"#, "answered 400 Bad Request: invalid_scope. Check scopes"),
            (401, r#"{"error": "invalid_client"}"#, &*format!("invalid_client. {client}")),
            (401, "", &format!("answered 401 Unauthorized. {client}")),
            (401, "<html>", &format!("answered 401 Unauthorized. {client}")),
            (400, r#"{"error": "unauthorized_client"}"#, "Allow this grant for this client"),
            (400, r#"{"error": "invalid_target"}"#, "Check audience and resource"),
            (404, "<html>", "answered 404 Not Found. Check that tokenUrl is the URL of the token endpoint"),
            (405, "", "Check that tokenUrl is the URL of the token endpoint"),
        ] {
            let refused =
                interpret(&Answer::for_test(status, body.into()), Grant::default(), &Confidence::default()).err();
            let message = refused.map(|refused| refused.failure.message).unwrap_or_default();
            assert!(message.contains(words), "{message}");
        }
    }
}
