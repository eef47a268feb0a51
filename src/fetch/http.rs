//! The source `http`: a request as the spec says it, and what of the response is the credential.

use std::{collections::BTreeSet, sync::Arc};

use http::{HeaderName, HeaderValue, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{
    Attempt, Failure, Obtained, Reference,
    cel::{self, NoJson, Place, Scope, Value, Wiped},
    expiry,
    http_client::{Answer, Connection},
    json::{self, Member, Members},
    tls::{self, Settings},
};
use crate::{
    api::{
        Invalid,
        http::{Content, Http, Method as ApiMethod},
        oauth2::SecretKeyRef,
        reason::Reason,
    },
    time,
};

/// Text that may be secret.
type Text = Zeroizing<String>;

/// Sends the request and takes the credential out of the response.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, source: &Http) -> Result<Obtained, Failure> {
    let request = Request::load(attempt, source).await?;
    let mut url = tls::parse_url("spec.fetch.http.url", &source.url)?;
    if !request.query.is_empty() {
        url.query_pairs_mut().extend_pairs(request.query.iter().map(|(name, value)| (name, value.as_str())));
    }
    let settings = Settings::load(source.tls.as_ref(), source.proxy.as_ref(), &mut attempt.sources).await?;
    let connection = attempt.clients.connection(&url, &settings)?;
    let sent = attempt.clock.now();
    let (request, notes) = request.into_builder(source, &connection);
    let answer = connection.send(request, &attempt.phase, || attempt.clock.now()).await?;
    if !source.is_success(answer.status.as_u16()) {
        return Err(refused(&answer, &notes));
    }
    let answer = Arc::new(answer);
    let (token, values, expires_at) = result(&attempt.owner.namespace, source, &answer, sent).await?;
    let members = match expires_at {
        Some(member) => [("expires_at".to_owned(), member)].into(),
        None => json::parse(&answer.body).unwrap_or_default(),
    };
    Ok(Obtained { token: token.map(Into::into), members, values: Some(values), sent, from: answer.peer.to_string() })
}

/// Where its requests go, and by which proxy.
pub(super) fn endpoint(source: &Http) -> (&str, Option<&str>) {
    (&source.url, source.proxy.as_ref().map(|proxy| proxy.url.as_str()))
}

/// The objects that it reads.
pub(super) fn references(source: &Http) -> impl Iterator<Item = Reference> {
    let keys = contents(source).into_iter().filter_map(|(_, content)| content.value_ref.as_ref());
    keys.chain(source.secrets.values())
        .map(|key| Reference::secret(&key.name))
        .chain(Reference::of_connection(source.tls.as_ref(), source.proxy.as_ref()))
}

/// Checks what the CRD's rules cannot: expressions, and what no header can hold.
pub(super) fn check(namespace: &str, source: &Http) -> Result<(), Invalid> {
    for header in &source.headers {
        if let Some(value) = &header.content.value {
            let field = format!("spec.fetch.http.headers[{}]", header.name);
            header_value(value).map_err(|why| Invalid::new(field, format!("the value {why}")))?;
        }
    }
    cel::check(namespace, Place::Request, &borrowed(&request_expressions(source)))?;
    cel::check(namespace, Place::Result, &borrowed(&result_expressions(source)))
}

/// All its expressions.
pub(super) fn expressions(source: &Http) -> impl Iterator<Item = (Place, String)> {
    let request = request_expressions(source).into_iter().map(|(_, text)| (Place::Request, text));
    request.chain(result_expressions(source).into_iter().map(|(_, text)| (Place::Result, text)))
}

fn borrowed(expressions: &[(String, String)]) -> Vec<(String, &str)> {
    expressions.iter().map(|(field, text)| (field.clone(), text.as_str())).collect()
}

/// All contents of the request, each with its field, in the order in which they are evaluated.
fn contents(source: &Http) -> Vec<(String, &Content)> {
    let field = |list: &str, name: &str| format!("spec.fetch.http.{list}[{name}]");
    let headers = source.headers.iter().map(|header| (field("headers", &header.name), &header.content));
    let query = source.query.iter().map(|parameter| (field("query", &parameter.name), &parameter.content));
    let form = source.form.iter().flatten().map(|parameter| (field("form", &parameter.name), &parameter.content));
    let body = source.body.iter().map(|body| ("spec.fetch.http.body".to_owned(), body));
    headers.chain(query).chain(form).chain(body).collect()
}

fn request_expressions(source: &Http) -> Vec<(String, String)> {
    let contents =
        contents(source).into_iter().filter_map(|(field, content)| Some((field, content.expression.clone()?)));
    contents.chain(source.json.iter().map(|json| ("spec.fetch.http.json".to_owned(), json.clone()))).collect()
}

fn result_expressions(source: &Http) -> Vec<(String, String)> {
    let result = &source.result;
    let field = |name: &str| format!("spec.fetch.http.result.{name}");
    let token = result.token.iter().map(|text| (field("token"), text.clone()));
    let expires_at = result.expires_at.iter().map(|text| (field("expiresAt"), text.clone()));
    let values = result.values.iter().map(|(name, text)| (field(&format!("values[{name}]")), text.clone()));
    token.chain(expires_at).chain(values).collect()
}

/// What is sent, with all values read.
struct Request {
    /// What may help where it is refused. Holds nothing secret.
    notes: BTreeSet<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Vec<(String, Text)>,
    body: Option<(Option<&'static str>, Text)>,
}

impl Request {
    async fn load(attempt: &mut Attempt<'_>, source: &Http) -> Result<Self, Failure> {
        let mut notes = BTreeSet::new();
        let mut evaluated = evaluate(attempt, source, &mut notes).await?.into_iter();
        let mut texts = Vec::new();
        for (field, content) in contents(source) {
            texts.push((text(attempt, &field, content, &mut evaluated, &mut notes).await?, field));
        }
        let mut texts = texts.into_iter();
        let mut headers = Vec::new();
        for (header, (text, field)) in source.headers.iter().zip(&mut texts) {
            let invalid = |what: &str| Failure::new(Reason::InvalidSpec, format!("{field}: {what}"));
            let name = HeaderName::try_from(&header.name).map_err(|_| invalid("is not a header's name"))?;
            let mut value = header_value(&text).map_err(|why| {
                let whose = match &header.content.value_ref {
                    Some(key) => format!("the value of key {} in Secret {} {why}", key.key, key.name),
                    None => format!("the value {why}"),
                };
                invalid(&whose)
            })?;
            value.set_sensitive(header.content.value.is_none());
            headers.push((name, value));
        }
        let named =
            |(parameter, (text, _)): (&crate::api::http::Parameter, (Text, String))| (parameter.name.clone(), text);
        let query = source.query.iter().zip(&mut texts).map(named).collect();
        let form = source.form.as_ref().map(|form| form.iter().zip(&mut texts).map(named).collect::<Vec<_>>());
        let body = if let Some(form) = form {
            let mut encoded = form_urlencoded::Serializer::new(String::new());
            encoded.extend_pairs(form.iter().map(|(name, value)| (name, value.as_str())));
            Some((Some("application/x-www-form-urlencoded"), Zeroizing::new(encoded.finish())))
        } else if let Some(value) = evaluated.next() {
            let why =
                || format!("spec.fetch.http.json: gives {}, which JSON has no form for", cel::type_name(&value.0));
            let json = cel::json_text(&value.0).ok_or_else(|| Failure::new(Reason::InvalidSpec, why()))?;
            Some((Some("application/json"), Zeroizing::new(json)))
        } else {
            texts.next().map(|(text, _)| (None, text))
        };
        Ok(Self { notes, headers, query, body })
    }

    /// What to send, and the notes.
    fn into_builder(self, source: &Http, connection: &Connection) -> (reqwest::RequestBuilder, BTreeSet<String>) {
        let mut request = connection.request(match source.method() {
            ApiMethod::Get => Method::GET,
            ApiMethod::Post => Method::POST,
            ApiMethod::Put => Method::PUT,
            ApiMethod::Patch => Method::PATCH,
            ApiMethod::Delete => Method::DELETE,
        });
        if let Some((kind, body)) = self.body {
            let kind = kind.filter(|_| !self.headers.iter().any(|(name, _)| name == header::CONTENT_TYPE));
            request = kind.into_iter().fold(request, |request, kind| request.header(header::CONTENT_TYPE, kind));
            request = request.body(body.as_bytes().to_vec());
        }
        let request = self.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        (request, self.notes)
    }
}

/// The request's expressions over what they read.
async fn evaluate(
    attempt: &mut Attempt<'_>,
    source: &Http,
    notes: &mut BTreeSet<String>,
) -> Result<Vec<Wiped>, Failure> {
    let expressions = request_expressions(source);
    if expressions.is_empty() {
        return Ok(Vec::new());
    }
    let mut secrets = Vec::new();
    for (name, key) in &source.secrets {
        let secret = attempt.sources.text(key).await?;
        let cure = format!("use secrets.{name}.trim() in the expression");
        notes.extend(line_break(key, &secret, &cure));
        secrets.push((name.as_str(), cel::text(secret.expose_secret())));
    }
    let scope = Scope::new(&attempt.owner.namespace, Place::Request).with("secrets", cel::map(secrets));
    let evaluated = cel::apart(&attempt.owner.namespace, move || scope.evaluate(&borrowed(&expressions))).await;
    evaluated.unwrap_or_else(|| Err(cut_off()))
}

fn cut_off() -> Failure {
    Failure::new(Reason::InvalidResponse, "the evaluation of expressions was cut off")
}

/// Text of the request, from where it says.
async fn text(
    attempt: &mut Attempt<'_>,
    field: &str,
    content: &Content,
    evaluated: &mut impl Iterator<Item = Wiped>,
    notes: &mut BTreeSet<String>,
) -> Result<Text, Failure> {
    if let Some(value) = &content.value {
        return Ok(Zeroizing::new(value.clone()));
    }
    if let Some(key) = &content.value_ref {
        let secret = attempt.sources.text(key).await?;
        notes.extend(line_break(key, &secret, "store it without one (printf %s, not echo)"));
        return Ok(Zeroizing::new(secret.expose_secret().to_owned()));
    }
    let invalid = |what: &str| Failure::new(Reason::InvalidSpec, format!("{field}: {what}"));
    let value = evaluated.next().ok_or_else(|| invalid("one of value, valueRef and expression must be set"))?;
    let wrong = |other: Wiped| invalid(&format!("gives {}, not a string", cel::type_name(&other.0)));
    cel::scalar(value).map(Zeroizing::new).map_err(wrong)
}

/// What to say of a value that ends with a line break, where the server refuses it. It may be meant, so it is sent.
fn line_break(key: &SecretKeyRef, secret: &SecretString, cure: &str) -> Option<String> {
    let SecretKeyRef { name, key } = key;
    let note =
        || format!("Key {key} of Secret {name} ends with a line break. If the server does not expect it, {cure}");
    secret.expose_secret().ends_with(['\r', '\n']).then(note)
}

/// # Errors
/// Why no header can hold it (RFC 9110 §5.5).
fn header_value(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        if text.trim_end_matches(['\r', '\n']).contains(|c: char| c.is_control() && c != '\t') {
            "holds a line break or another control character, which no header can hold"
        } else {
            "ends with a newline, which no header can hold: store it without one (printf %s, not echo)"
        }
    })
}

fn refused(answer: &Answer, notes: &BTreeSet<String>) -> Failure {
    if answer.status.is_success() {
        return answer
            .failure(Reason::Rejected, format!("{answer}, which spec.fetch.http.successStatus does not list"));
    }
    let mut failure = answer.refused(None);
    if failure.reason == Reason::Rejected && answer.status.is_client_error() {
        for note in notes {
            failure.message = format!("{}. {note}", failure.message);
        }
    }
    if answer.status == 401 {
        failure.message += ". Check the credentials that the request sends";
    }
    failure
}

/// Token, values, and the expiry where an expression gives one.
async fn result(
    namespace: &str,
    source: &Http,
    answer: &Arc<Answer>,
    sent: chrono::DateTime<chrono::Utc>,
) -> Result<(Option<String>, Members, Option<Member>), Failure> {
    let told = |failure: Failure| answer.failure(failure.reason, format!("{} ({answer})", failure.message));
    let wrong = |field: &str, what: String| {
        told(Failure::new(Reason::InvalidResponse, format!("spec.fetch.http.result.{field}: {what}")))
    };
    let (expressions, of, response) = (result_expressions(source), namespace.to_owned(), answer.clone());
    let evaluated = cel::apart(namespace, move || Ok(scope(&of, &response, sent)?.evaluate(&borrowed(&expressions))));
    let mut given = evaluated.await.unwrap_or_else(|| Err(cut_off()))?.map_err(told)?.into_iter();
    let mut next = |wanted: bool| wanted.then(|| given.next()).flatten();

    let token = match next(source.result.token.is_some()).map(Wiped::into_text) {
        None => None,
        Some(Ok(token)) if token.is_empty() => return Err(wrong("token", "gives an empty string".to_owned())),
        Some(Ok(token)) => Some(token),
        Some(Err(other)) => return Err(wrong("token", format!("gives {}, not a string", cel::type_name(&other.0)))),
    };
    let expires_at = match next(source.result.expires_at.is_some()) {
        None => None,
        Some(value) => moment(&value.0).map_err(|why| wrong("expiresAt", why))?,
    };
    let mut values = Members::new();
    for (name, value) in source.result.values.keys().zip(given) {
        let value = cel::scalar(value).map_err(|other| {
            let what = format!("gives {}, not a string, number or boolean", cel::type_name(&other.0));
            wrong(&format!("values[{name}]"), what)
        })?;
        values.insert(name.clone(), Member::Text(value.into()));
    }
    Ok((token, values, expires_at))
}

fn scope(namespace: &str, answer: &Answer, sent: chrono::DateTime<chrono::Utc>) -> Result<Scope, Failure> {
    let (json, no_json) = match cel::json(&answer.body) {
        Ok(Value::Null) => (Value::Null, Some("is null".to_owned())),
        Ok(json) => (json, None),
        Err(NoJson::Invalid(problem)) => (Value::Null, Some(problem)),
        Err(NoJson::TooLarge) => {
            return Err(answer.failure(Reason::ResponseTooLarge, format!("{answer} with JSON of too many values")));
        }
    };
    let kind = answer.content_type();
    let body = std::str::from_utf8(&answer.body).ok().map(cel::text);
    let mut headers = std::collections::BTreeMap::<&str, String>::new();
    for (name, value) in &answer.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let all = headers.entry(name.as_str()).or_default();
        // As RFC 9110 §5.3 joins them.
        *all = if all.is_empty() { value.into_owned() } else { format!("{all}, {value}") };
    }
    let response = [
        ("status", Value::Int(answer.status.as_u16().into())),
        ("headers", cel::map(headers.iter().map(|(name, value)| (*name, cel::text(value))))),
        ("body", body.unwrap_or(Value::Null)),
        ("json", json),
    ];
    let scope = Scope::new(namespace, Place::Result)
        .with("response", cel::map(response))
        .with("now", Value::Timestamp(time::floor(sent).fixed_offset()))
        .noting("response.body", format!("the body is not UTF-8 ({kind})"));
    Ok(match no_json {
        Some(problem) => scope.noting("response.json", format!("the body {problem} ({kind})")),
        None => scope,
    })
}

/// What an expression says of the expiry; `None` for null.
fn moment(value: &Value) -> Result<Option<Member>, String> {
    let member = match value {
        Value::Null => return Ok(None),
        Value::Timestamp(moment) => Member::Text(time::rfc3339(moment.to_utc()).into()),
        Value::String(text) => Member::Text(text.as_str().into()),
        Value::Int(number) => Member::Number((*number).into()),
        Value::UInt(number) => Member::Number((*number).into()),
        Value::Float(number) => {
            serde_json::Number::from_f64(*number).map_or(Member::Nested { empty: false }, Member::Number)
        }
        other => return Err(format!("gives {}, not a time", cel::type_name(other))),
    };
    match expiry::point(&member) {
        Ok(_) => Ok(Some(member)),
        Err(problem) => {
            let what = cel::type_name(value);
            Err(format!("gives {what} that {problem}. Give a timestamp, RFC 3339, an HTTP date or a Unix time"))
        }
    }
}
