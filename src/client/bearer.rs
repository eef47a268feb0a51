//! A tower layer that puts the bearer token on requests (RFC 6750 §2.1).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, StatusCode, header::AUTHORIZATION};
use tower::{Layer, Service};
use zeroize::Zeroizing;

use super::{Error, Handle, Value};

/// What a [`Bearer`] fails with: an [`Error`] where there is no token, or the error of the service below.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Puts `Authorization: Bearer …` on each request. If the answer is 401, another value is asked for, once, on the
/// condition that the Secret still holds the one that was used; the request is then sent again, if it can be cloned.
///
/// For `http::Request` with a body that can be cloned, and with the feature `reqwest` for reqwest's client, whose
/// streamed bodies cannot: those are sent once. A header `Authorization` that is there is replaced.
///
/// ```no_run
/// # #[cfg(feature = "reqwest")]
/// # async fn example(client: tokencache::client::Client) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use tokencache::client::BearerLayer;
/// use tower::{Layer, Service};
///
/// let mut http = BearerLayer::new(client.watch("orders-api")).layer(reqwest::Client::new());
/// let request = reqwest::Request::new(reqwest::Method::GET, "https://orders.example.com/".parse()?);
/// let response = http.call(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BearerLayer {
    handle: Handle,
    key: Option<String>,
}

impl BearerLayer {
    /// With the value under the key `token`, or under the only key.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle, key: None }
    }

    /// With the value under this key.
    #[must_use]
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    fn authorize(&self, headers: &mut HeaderMap, value: &Value) -> Result<(), BoxError> {
        let token = value.select(self.key.as_deref())?.expose();
        let mut line = Zeroizing::new(Vec::with_capacity(7 + token.len()));
        line.extend_from_slice(b"Bearer ");
        line.extend_from_slice(token.trim_ascii());
        let mut header = HeaderValue::from_bytes(&line).map_err(|_| Unusable)?;
        header.set_sensitive(true);
        headers.insert(AUTHORIZATION, header);
        Ok(())
    }
}

/// The value cannot stand in a header.
#[derive(Debug, thiserror::Error)]
#[error("the value cannot be a bearer token: it has characters that no header may have")]
struct Unusable;

impl<S> Layer<S> for BearerLayer {
    type Service = Bearer<S>;

    fn layer(&self, inner: S) -> Bearer<S> {
        Bearer { layer: self.clone(), inner }
    }
}

/// A service with the [`BearerLayer`] on it.
#[derive(Clone)]
pub struct Bearer<S> {
    layer: BearerLayer,
    inner: S,
}

impl<S> fmt::Debug for Bearer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").field("layer", &self.layer).finish_non_exhaustive()
    }
}

/// A request that may be sent a second time.
pub trait Repeatable: Sized {
    /// The same once more, if that is possible.
    fn try_clone(&self) -> Option<Self>;
    /// Its headers.
    fn headers(&mut self) -> &mut HeaderMap;
}

impl<B: Clone> Repeatable for http::Request<B> {
    fn try_clone(&self) -> Option<Self> {
        Some(self.clone())
    }

    fn headers(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

#[cfg(feature = "reqwest")]
impl Repeatable for reqwest::Request {
    fn try_clone(&self) -> Option<Self> {
        self.try_clone()
    }

    fn headers(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

/// An answer whose status can be seen.
pub trait Response {
    /// Its status.
    fn status(&self) -> StatusCode;
}

impl<B> Response for http::Response<B> {
    fn status(&self) -> StatusCode {
        self.status()
    }
}

#[cfg(feature = "reqwest")]
impl Response for reqwest::Response {
    fn status(&self) -> StatusCode {
        self.status()
    }
}

impl<S, R> Service<R> for Bearer<S>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Response + Send,
    S::Error: Into<BoxError>,
    R: Repeatable + Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        // The one that is ready is used, and its clone left for the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        Box::pin(async move {
            let value = layer.handle.fetch().await?;
            let again = request.try_clone();
            layer.authorize(request.headers(), &value)?;
            let response = inner.call(request).await.map_err(Into::into)?;
            let Some(mut again) = again.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
                return Ok(response);
            };
            let value = match layer.handle.refresh(&value).await {
                Ok(value) => value,
                Err(error) => {
                    refused(layer.handle.name(), &error);
                    return Ok(response);
                }
            };
            drop(response);
            layer.authorize(again.headers(), &value)?;
            std::future::poll_fn(|context| inner.poll_ready(context)).await.map_err(Into::into)?;
            inner.call(again).await.map_err(Into::into)
        })
    }
}

fn refused(name: &str, error: &Error) {
    tracing::warn!(name, %error, "the token was refused (401), and there is no other");
}
