//! Time limits of requests to the API server.
//!
//! A request that was acknowledged but is never answered (the API server hangs behind a load balancer, a NAT forgets the
//! connection) gives the kernel nothing to retransmit, so without a limit of our own its caller waits forever.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower::{BoxError, Layer, Service};

/// How long a client waits for the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    request: Duration,
}

impl Default for TimeLimits {
    /// 30 s for each request.
    fn default() -> Self {
        Self::of_request(Duration::from_secs(30))
    }
}

impl TimeLimits {
    /// Limits that follow from the limit of a request.
    #[must_use]
    pub const fn of_request(request: Duration) -> Self {
        Self { request }
    }

    /// Until an answer begins, including the time to connect, and then between two parts of it. Also the limit for the
    /// start of a watch.
    #[must_use]
    pub const fn request(self) -> Duration {
        self.request
    }

    /// A watch on which nothing arrives for this long is started again. By default 90 s, since the API server sends a
    /// bookmark about once a minute.
    #[must_use]
    pub fn watch_silence(self) -> Duration {
        self.request * 3
    }

    /// A watch without any contact for this long is reported: it was started again more than once without success.
    #[must_use]
    pub fn watch_lost(self) -> Duration {
        self.request * 6
    }
}

/// A watch that ends sooner than this has failed: starting it again without a pause would be a busy loop.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// Why a request was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GivenUp {
    #[error("the API server did not answer within {} s", .0.as_secs_f64())]
    NoAnswer(Duration),
    #[error("the answer of the API server stopped, and nothing more arrived within {} s", .0.as_secs_f64())]
    Stalled(Duration),
    #[error("the API server ended the watch immediately")]
    EndedImmediately,
}

/// What a request asks for, as far as its time limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An answer that ends by itself.
    Answer,
    /// A watch.
    Watch,
    /// A stream that may be silent for as long as it likes, such as a log that is followed.
    Stream,
}

impl Kind {
    fn of<B>(request: &Request<B>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        let has = |name: &str| {
            query
                .split('&')
                .filter_map(|item| item.split_once('='))
                .any(|(key, value)| key == name && matches!(value, "1" | "true"))
        };
        if has("watch") {
            Self::Watch
        } else if has("follow") {
            Self::Stream
        } else {
            Self::Answer
        }
    }
}

/// Gives each request that passes its time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimitLayer(pub(super) TimeLimits);

impl<S> Layer<S> for TimeLimitLayer {
    type Service = TimeLimited<S>;

    fn layer(&self, inner: S) -> TimeLimited<S> {
        TimeLimited { inner, limits: self.0 }
    }
}

/// A service whose requests have time limits.
#[derive(Clone, Debug)]
pub(super) struct TimeLimited<S> {
    inner: S,
    limits: TimeLimits,
}

impl<S, Q, B> Service<Request<Q>> for TimeLimited<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<TimeLimitedBody<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (kind, limits) = (Kind::of(&request), self.limits);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = timeout(limits.request(), answer).await;
            let answer = answer.map_err(|_| GivenUp::NoAnswer(limits.request()))?.map_err(Into::into)?;
            // What a watch that was refused is answered with is an answer like any other.
            let kind = if answer.status().is_success() { kind } else { Kind::Answer };
            Ok(answer.map(|body| TimeLimitedBody::new(body, kind, limits)))
        })
    }
}

/// The body of an answer, with a limit between two parts of it.
#[derive(Debug)]
pub struct TimeLimitedBody<B> {
    /// Nothing once it has ended, so that its connection is closed.
    inner: Option<B>,
    kind: Kind,
    limits: TimeLimits,
    started: Instant,
    /// Runs while a part is awaited.
    silence: Option<Pin<Box<Sleep>>>,
}

impl<B> TimeLimitedBody<B> {
    fn new(inner: B, kind: Kind, limits: TimeLimits) -> Self {
        Self { inner: Some(inner), kind, limits, started: Instant::now(), silence: None }
    }

    fn end(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.inner = None;
        let short = self.kind == Kind::Watch && self.started.elapsed() < SHORTEST_WATCH;
        short.then(|| Err(GivenUp::EndedImmediately.into()))
    }

    fn silent(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let limit = match self.kind {
            Kind::Answer => self.limits.request(),
            Kind::Watch => self.limits.watch_silence(),
            Kind::Stream => return Poll::Pending,
        };
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(limit)));
        std::task::ready!(silence.as_mut().poll(context));
        self.inner = None;
        Poll::Ready(match self.kind {
            // As if the API server had ended it: it is continued from where it was.
            Kind::Watch => {
                tracing::debug!(seconds = limit.as_secs_f64(), "nothing arrived on a watch; it is started again");
                None
            }
            Kind::Answer | Kind::Stream => Some(Err(GivenUp::Stalled(limit).into())),
        })
    }
}

impl<B> Body for TimeLimitedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(context) {
            Poll::Ready(Some(frame)) => {
                self.silence = None;
                Poll::Ready(Some(frame.map_err(Into::into)))
            }
            Poll::Ready(None) => Poll::Ready(self.end()),
            Poll::Pending => self.silent(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| self.kind != Kind::Watch && inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "time_limit_tests.rs"]
mod tests;
