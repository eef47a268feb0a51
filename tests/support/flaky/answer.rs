//! What the proxy answers in place of the API server.

use axum::body::Body;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::support::server::endpoint::Answer;

/// As the API server words a failure. Its own limit of requests (429) is told in plain text.
pub(super) fn refuse(status: StatusCode, message: &str) -> Answer {
    let response = Response::builder().status(status);
    if status == StatusCode::TOO_MANY_REQUESTS {
        let body = Body::from("Too many requests, please try again later.\n");
        return Ok(response.header(header::RETRY_AFTER, "1").body(body)?);
    }
    let body = failure(status, message).to_string();
    Ok(response.header(header::CONTENT_TYPE, "application/json").body(Body::from(body))?)
}

/// A watch whose `resourceVersion` is too old: an event says so, and it ends.
pub(super) fn expired() -> Answer {
    let event = json!({"type": "ERROR", "object": failure(StatusCode::GONE, "too old resource version: 1 (2)")});
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    Ok(response.body(Body::from(format!("{event}\n")))?)
}

fn failure(status: StatusCode, message: &str) -> Value {
    let reason = match status {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::GONE => "Expired",
        StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ => "ServiceUnavailable",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": status.as_u16(),
    })
}
