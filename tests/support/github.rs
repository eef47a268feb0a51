//! A stand-in for GitHub's REST API, as its documentation says: it verifies JWTs, and issues installation tokens.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use chrono::{TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::in_background;

/// The App's identifier, its one installation, and what that was granted.
pub const APP: i64 = 12345;
pub const INSTALLATION: i64 = 67890;
pub const REPOSITORY: &str = "infrastructure";

/// A running stand-in.
pub struct GitHub {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl GitHub {
    /// Starts it.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let github = Self { address: listener.local_addr().expect("an address"), bodies: Arc::default() };
        let bodies = github.bodies.clone();
        let router = Router::new().fallback(async move |request: Request| answer(request, &bodies).await);
        in_background(async move { axum::serve(listener, router).await.expect("it serves") });
        github
    }

    /// As `apiUrl` wants it, of an Enterprise server.
    pub fn url(&self) -> String {
        format!("http://{}/api/v3", self.address)
    }

    /// What was asked for by good requests.
    pub fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().clone()
    }
}

fn said(status: StatusCode, message: &str) -> Response {
    (status, json!({ "message": message }).to_string()).into_response()
}

async fn answer(request: Request, bodies: &Mutex<Vec<Value>>) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header("user-agent").is_empty() {
        return said(StatusCode::FORBIDDEN, "Request forbidden by administrative rules");
    }
    if header("accept") != "application/vnd.github+json" || header("x-github-api-version") != "2022-11-28" {
        return said(StatusCode::BAD_REQUEST, "this is not how the documentation says it");
    }
    let app = match verify(header("authorization").trim_start_matches("Bearer ")) {
        Ok(app) => app,
        Err(message) => return said(StatusCode::UNAUTHORIZED, message),
    };
    let wanted = format!("/api/v3/app/installations/{INSTALLATION}/access_tokens");
    if app != APP.to_string() || parts.uri.path() != wanted || parts.method != http::Method::POST {
        return said(StatusCode::NOT_FOUND, "Not Found");
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return said(StatusCode::BAD_REQUEST, "Problems parsing JSON");
    };
    if body["repositories"].as_array().into_iter().flatten().any(|name| name != REPOSITORY) {
        let message =
            "There is at least one repository that does not exist or is not accessible to the parent installation.";
        return said(StatusCode::UNPROCESSABLE_ENTITY, message);
    }
    if body["permissions"].as_object().into_iter().flatten().any(|(name, _)| name != "contents") {
        return said(
            StatusCode::UNPROCESSABLE_ENTITY,
            "The permissions requested are not granted to this installation.",
        );
    }
    bodies.lock().push(body);
    let token = format!("ghs_{:032x}", rand::random::<u128>());
    let expires_at = tokencache::time::rfc3339(Utc::now() + TimeDelta::hours(1));
    (StatusCode::CREATED, json!({"token": token, "expires_at": expires_at}).to_string()).into_response()
}

/// Whose JWT it is.
fn verify(jwt: &str) -> Result<String, &'static str> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.leeway = 0;
    validation.validate_aud = false;
    let key = DecodingKey::from_rsa_pem(include_bytes!("../keys/rsa-public.pem")).expect("a key");
    let claims = decode::<Value>(jwt, &key, &validation).map_err(|_| "A JSON web token could not be decoded")?.claims;
    let (now, number) = (Utc::now().timestamp(), |name: &str| claims[name].as_i64());
    if number("iat").is_none_or(|issued| issued > now) {
        return Err("'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued");
    }
    if number("exp").is_none_or(|end| end > now + 600) {
        return Err("'Expiration time' claim ('exp') is too far in the future");
    }
    Ok(claims["iss"].as_str().unwrap_or_default().to_owned())
}
