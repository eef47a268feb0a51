//! What a token endpoint's answer means (RFC 6749 §5).

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::{
    fetch::{
        Failure,
        http_client::Answer,
        json::{self, Member, Members},
        redact::Redactor,
    },
    reason::Reason,
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
pub(super) fn interpret(answer: &Answer, confidence: &Confidence) -> Result<Members, Refused> {
    let members = json::parse(&answer.body);
    let error = members.as_ref().and_then(|members| error_words(members, confidence));
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
                failure.message = format!("{}; {note}", failure.message);
            }
        }
        if let Some(cure) = cure(answer.status.as_u16(), code) {
            failure.message = format!("{}; {cure}", failure.message);
        }
        return Err(Refused { failure, invalid_grant });
    }
    let wrong = |what: String| answer.failure(Reason::InvalidResponse, format!("{answer}, but {what}"));
    let Some(members) = members else {
        return Err(wrong(format!("not with a JSON object ({})", answer.content_type())).into());
    };
    match token(&members) {
        Some(token) if !token.expose_secret().is_empty() => Ok(members),
        Some(_) => Err(wrong("access_token is empty".to_owned()).into()),
        None => Err(wrong("without access_token as a string".to_owned()).into()),
    }
}

/// The token of an answer (RFC 6749 §5.1; of an exchange, whatever its type, RFC 8693 §2.2.1).
pub(super) fn token(members: &Members) -> Option<&SecretString> {
    text(members, "access_token")
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
    Some(match code {
        "invalid_client" => "look at clientId, clientAuth and the client's secret, key or certificate",
        "unauthorized_client" => "the server has to allow this client this grant",
        "unsupported_grant_type" => "does tokenUrl lead to the server that knows this grant?",
        "invalid_scope" => "look at scopes",
        "invalid_target" => "look at audience and resource",
        "" if matches!(status, 404 | 405) => "is tokenUrl the URL of the token endpoint?",
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
        Member::Null | Member::Bool(false) => return None,
        Member::Text(text) if text.expose_secret().is_empty() => return None,
        Member::Text(_) => clean("error").unwrap_or_default(),
        // Not as the standard wants it, but an error nonetheless.
        Member::Number(number) => number.to_string(),
        Member::Bool(true) | Member::Nested => "an error that is not told as RFC 6749 wants it".to_owned(),
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
        for (status, body, words) in [
            (400, r#"{"error": "invalid_scope"}"#, "answered 400 Bad Request: invalid_scope; look at scopes"),
            (
                401,
                r#"{"error": "invalid_client"}"#,
                "invalid_client; look at clientId, clientAuth and the client's secret",
            ),
            (400, r#"{"error": "unauthorized_client"}"#, "the server has to allow this client this grant"),
            (400, r#"{"error": "invalid_target"}"#, "look at audience and resource"),
            (404, "<html>", "answered 404 Not Found; is tokenUrl the URL of the token endpoint?"),
            (405, "", "is tokenUrl the URL of the token endpoint?"),
        ] {
            let refused = interpret(&Answer::for_test(status, body.into()), &Confidence::default()).err();
            let message = refused.map(|refused| refused.failure.message).unwrap_or_default();
            assert!(message.contains(words), "{message}");
        }
    }
}
