//! The HTTP side: the token endpoint, a resource that wants its tokens, and the demo's switches.

use std::{
    collections::BTreeMap,
    future,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, future::BoxFuture, stream};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{Behaviour, Echo, Expiry, Inside, State, token};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An error makes hyper drop the connection without an answer.
pub type Answer = Result<Response<Body>, BoxError>;
type Form = BTreeMap<String, String>;

/// The path of the program's one client, which has no name of its own.
const DEFAULT_CACHE: &str = "token";

/// What answers requests.
pub trait Respond: Send + Sync + 'static {
    /// Answers one.
    fn respond(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Answer>;
}

/// A service of what answers requests.
pub struct Endpoint<S>(pub Arc<S>);

impl<S> Clone for Endpoint<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B, S: Respond> tower::Service<Request<B>> for Endpoint<S>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Arc::clone(&self.0).respond(request.map(Body::new))
    }
}

impl Respond for State {
    fn respond(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Answer> {
        Box::pin(async move { route(&self, request).await })
    }
}

async fn route(state: &Arc<State>, request: Request<Body>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_start_matches('/').to_owned();
    match (&head.method, path.split('/').collect::<Vec<_>>().as_slice()) {
        (&Method::POST, ["token"]) => token(state, DEFAULT_CACHE, &head, body).await,
        (&Method::POST, ["c", cache, "token"]) => token(state, cache, &head, body).await,
        (&Method::POST, ["login"]) => login(state, DEFAULT_CACHE, body).await,
        (&Method::POST, ["c", cache, "login"]) => login(state, cache, body).await,
        (&Method::GET, ["api", "whoami"]) => whoami(state, &head.headers),
        (&Method::GET, ["stats"]) => stats(state),
        (&Method::POST, ["admin", "fail"]) => fail(state, &query(&head)),
        (&Method::POST, ["admin", "heal"]) => heal(state, &query(&head)),
        _ => answer(StatusCode::NOT_FOUND, &json!({"error": "no such path"})),
    }
}

fn form(text: &[u8]) -> Form {
    form_urlencoded::parse(text).into_owned().collect()
}

fn query(head: &Parts) -> Form {
    form(head.uri.query().unwrap_or_default().as_bytes())
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    Ok(response.header(header::CACHE_CONTROL, "no-store").body(Body::from(body.to_string()))?)
}

fn oauth_error(status: StatusCode, error: &str, description: &str) -> Answer {
    answer(status, &json!({"error": error, "error_description": description}))
}

/// What a client asked for.
struct Asked {
    form: Form,
    authorised: bool,
    /// The successor of the refresh token that it sent.
    refresh: Option<String>,
}

async fn token(state: &Arc<State>, cache: &str, head: &Parts, body: Body) -> Answer {
    // A request counts once it is here as a whole.
    let mut form = form(&to_bytes(body, 1 << 20).await?);
    let (inside, mut behaviour) = Inside::enter(state, cache);
    let authorised = is_authorised(state, &head.headers, &mut form);
    let refreshes = form.get("grant_type").map(String::as_str) == Some("refresh_token");
    let refresh = state.with(cache, |path| {
        path.forms.push(form.clone());
        let sent = form.get("refresh_token").filter(|_| refreshes && authorised && behaviour.issues());
        sent.and_then(|sent| path.refresh.redeem(sent))
    });
    let asked = Asked { form, authorised, refresh };
    loop {
        behaviour = match behaviour {
            Behaviour::Behind(gate, then) => {
                gate.pass().await;
                *then
            }
            Behaviour::After(delay, then) => {
                tokio::time::sleep(delay).await;
                *then
            }
            behaviour => break respond(state, cache, &head.headers, &asked, behaviour, inside).await,
        };
    }
}

/// A login as APIs have it that follow no standard: user and password in JSON, and a token somewhere in the answer.
async fn login(state: &Arc<State>, cache: &str, body: Body) -> Answer {
    let given: Value = serde_json::from_slice(&to_bytes(body, 1 << 20).await?).unwrap_or_default();
    let (_inside, behaviour) = Inside::enter(state, cache);
    if let Behaviour::Status(status, headers, body) = behaviour {
        return told(status, headers, body);
    }
    if given != json!({"user": state.options.client_id, "password": state.options.client_secret}) {
        return answer(StatusCode::UNAUTHORIZED, &json!({"message": "unknown user or wrong password"}));
    }
    let lifetime = state.options.lifetime.as_secs();
    let issued = new_token(state, cache, &Form::new(), Expiry::In(lifetime))?;
    answer(StatusCode::OK, &json!({"session": {"token": issued.token, "lifetime": lifetime}}))
}

fn told(status: u16, headers: Vec<(&'static str, String)>, body: String) -> Answer {
    let response = Response::builder().status(status);
    let response = headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
    Ok(response.body(Body::from(body))?)
}

/// Basic or Post (RFC 6749 §2.3.1), and never both.
fn is_authorised(state: &State, headers: &HeaderMap, form: &mut Form) -> bool {
    let decode =
        |text: &str| form_urlencoded::parse(format!("v={text}").as_bytes()).next().map(|(_, v)| v.into_owned());
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| {
        let credential = STANDARD.decode(value.to_str().ok()?.strip_prefix("Basic ")?).ok()?;
        let (id, secret) = std::str::from_utf8(&credential).ok()?.split_once(':')?;
        Some((decode(id)?, decode(secret)?))
    });
    let post = form.remove("client_secret").map(|secret| (form.get("client_id").cloned().unwrap_or_default(), secret));
    let expected = (state.options.client_id.clone(), state.options.client_secret.clone());
    match (basic, post) {
        (Some(given), None) | (None, Some(given)) => given == expected,
        _ => false,
    }
}

async fn respond(
    state: &Arc<State>,
    cache: &str,
    headers: &HeaderMap,
    asked: &Asked,
    behaviour: Behaviour,
    inside: Inside,
) -> Answer {
    match behaviour {
        Behaviour::Default | Behaviour::Issue(_) | Behaviour::Echo(_) if !asked.authorised => {
            let mut refused =
                oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", "unknown client or wrong secret")?;
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            Ok(refused)
        }
        Behaviour::Default => issue(state, cache, asked, Expiry::In(state.options.lifetime.as_secs())),
        Behaviour::Issue(expiry) => issue(state, cache, asked, expiry),
        Behaviour::Status(status, headers, body) => told(status, headers, body),
        Behaviour::OAuthError(error, description) => oauth_error(StatusCode::BAD_REQUEST, error, &description),
        Behaviour::Hang => future::pending().await,
        Behaviour::Close => Err("told to close the connection".into()),
        Behaviour::Garbage => Ok(Response::new(Body::from("<html>Welcome to the login page</html>"))),
        Behaviour::Huge => Ok(huge(inside)),
        Behaviour::Redirect(to) => {
            Ok(Response::builder().status(StatusCode::FOUND).header(header::LOCATION, to).body(Body::empty())?)
        }
        Behaviour::Echo(echo) => repeat(state, cache, headers, &asked.form, echo),
        Behaviour::Behind(..) | Behaviour::After(..) => Err("unwrapped by the caller".into()),
    }
}

fn issue(state: &State, cache: &str, asked: &Asked, expiry: Expiry) -> Answer {
    let form = &asked.form;
    match (form.get("grant_type").map(String::as_str), &asked.refresh) {
        (Some("client_credentials"), _) => answer(StatusCode::OK, &new_token(state, cache, form, expiry)?.answer),
        (Some("refresh_token"), Some(refresh)) => {
            let mut issued = new_token(state, cache, form, expiry)?.answer;
            issued["refresh_token"] = json!(refresh);
            answer(StatusCode::OK, &issued)
        }
        (Some("refresh_token"), None) => {
            oauth_error(StatusCode::BAD_REQUEST, "invalid_grant", "unknown or used refresh token")
        }
        _ => oauth_error(StatusCode::BAD_REQUEST, "unsupported_grant_type", "client_credentials or refresh_token"),
    }
}

fn new_token(state: &State, cache: &str, form: &Form, expiry: Expiry) -> Result<token::Issued, BoxError> {
    state.with(cache, |path| {
        let (number, key) = (path.issued.len() + 1, &state.signing_key);
        let issued = token::issue(&state.options, key, expiry, number, form.get("scope"), form.get("audience"))?;
        path.issued.push(issued.token.clone());
        path.issued_at.push(std::time::Instant::now());
        Ok(issued)
    })
}

/// Chunk by chunk, so that only a client that wants all of it has to hold it.
fn huge(inside: Inside) -> Response<Body> {
    let start = stream::iter([Bytes::from_static(b"{\"access_token\":\"")]);
    let chunks = stream::repeat(Bytes::from(vec![b'a'; 1 << 16])).take(1600);
    let all = start.chain(chunks).map(move |chunk| {
        let _until_it_is_sent = &inside;
        Ok::<_, BoxError>(chunk)
    });
    Response::new(Body::from_stream(all))
}

fn repeat(state: &State, cache: &str, headers: &HeaderMap, form: &Form, echo: Echo) -> Answer {
    let secret = &state.options.client_secret;
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    match echo {
        Echo::Description => {
            let told = format!("you sent {authorization}, which is {secret}, or {encoded}");
            oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", &told)
        }
        Echo::Error => oauth_error(StatusCode::BAD_REQUEST, secret, ""),
        Echo::Location => {
            let to = format!("/login?client_secret={encoded}");
            Ok(Response::builder().status(StatusCode::FOUND).header(header::LOCATION, to).body(Body::empty())?)
        }
        Echo::Headers => Ok(Response::builder()
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .header(header::WWW_AUTHENTICATE, format!("Basic realm=\"{encoded}\""))
            .header("x-request", authorization)
            .body(Body::from(format!("cannot look up {secret}")))?),
        Echo::ExpiresIn | Echo::TokenType | Echo::Truncated => {
            let issued = new_token(state, cache, form, Expiry::In(3600))?;
            let (token, mut body) = (issued.token, issued.answer);
            match echo {
                Echo::ExpiresIn => body["expires_in"] = json!(token),
                Echo::TokenType => body = json!({"token_type": token, "access_token": [token], "expires_in": 3600}),
                _ => return Ok(Response::new(Body::from(body.to_string().trim_end_matches('}').to_owned()))),
            }
            answer(StatusCode::OK, &body)
        }
    }
}

fn whoami(state: &State, headers: &HeaderMap) -> Answer {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let revoked = |token: &&str| {
        state.lock().values().flat_map(|path| path.issued.iter().take(path.revoked)).any(|issued| issued == token)
    };
    match token.filter(|token| !revoked(token)).and_then(|token| token::whose(token, &state.signing_key)) {
        Some(subject) => answer(StatusCode::OK, &subject),
        None => answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_token"})),
    }
}

fn stats(state: &State) -> Answer {
    let paths: BTreeMap<String, Value> = state
        .lock()
        .iter()
        .map(|(cache, path)| {
            let counts = json!({
                "requests": path.arrivals.len(), "issued": path.issued.len(),
                "inside": path.inside, "insideMax": path.inside_max,
            });
            (cache.clone(), counts)
        })
        .collect();
    answer(StatusCode::OK, &json!(paths))
}

fn fail(state: &State, query: &Form) -> Answer {
    let behaviour = match query.get("mode").map_or("unavailable", String::as_str) {
        "unavailable" => Behaviour::Status(503, Vec::new(), String::new()),
        "ratelimit" => Behaviour::Status(429, vec![("retry-after", "5".to_owned())], String::new()),
        "reject" => Behaviour::OAuthError("invalid_client", "the client was revoked".to_owned()),
        "hang" => Behaviour::Hang,
        "close" => Behaviour::Close,
        "garbage" => Behaviour::Garbage,
        "huge" => Behaviour::Huge,
        "redirect" => Behaviour::Redirect("/login".to_owned()),
        other => {
            let modes = "unavailable, ratelimit, reject, hang, close, garbage, huge or redirect";
            return answer(StatusCode::BAD_REQUEST, &json!({"error": format!("no mode {other}: use {modes}")}));
        }
    };
    switch(state, query, &behaviour)
}

fn heal(state: &State, query: &Form) -> Answer {
    switch(state, query, &Behaviour::Default)
}

fn switch(state: &State, query: &Form, behaviour: &Behaviour) -> Answer {
    let cache = query.get("cache").map_or(DEFAULT_CACHE, String::as_str);
    state.with(cache, |path| path.behaviour = behaviour.clone());
    answer(StatusCode::OK, &json!({"cache": cache}))
}
