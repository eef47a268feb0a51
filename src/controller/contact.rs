//! When the API server was last heard of on each watch, so that a controller that sees nothing does not look ready.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};
use url::form_urlencoded;

/// The watches of a controller. As a layer of its client, it sees what arrives on them. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct WatchContacts(Arc<Mutex<HashMap<Watched, Contact>>>);

/// Path and label selector, which the list before a watch has as well.
type Watched = (String, Option<String>);

#[derive(Clone, Debug)]
struct Contact {
    what: &'static str,
    /// Whether a controller without this watch does not do its work.
    required: bool,
    last: Arc<Mutex<Instant>>,
}

impl Contact {
    fn touch(&self) {
        *self.last.lock() = Instant::now();
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.last.lock())
    }
}

impl WatchContacts {
    /// From now on, contact on this watch is expected.
    pub(super) fn expect(&self, path: String, selector: Option<&str>, what: &'static str, required: bool) {
        let contact = Contact { what, required, last: Arc::new(Mutex::new(Instant::now())) };
        self.lock().insert((path, selector.map(str::to_owned)), contact);
    }

    /// For how long nothing has arrived on the watch that is silent for longest.
    #[must_use]
    pub fn longest_silence(&self, now: Instant) -> Duration {
        self.lock().values().map(|contact| contact.silence(now)).max().unwrap_or_default()
    }

    /// The required watch that is silent for longest, if for at least so long.
    pub(super) fn lost(&self, limit: Duration, now: Instant) -> Option<(&'static str, Duration)> {
        let watches = self.lock();
        let silent = watches.values().filter(|contact| contact.required);
        let silent = silent.map(|contact| (contact.what, contact.silence(now)));
        silent.filter(|(_, silence)| *silence >= limit).max_by_key(|(_, silence)| *silence)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<Watched, Contact>> {
        self.0.lock()
    }

    fn of<B>(&self, request: &Request<B>) -> Option<Contact> {
        if request.method() != Method::GET {
            return None;
        }
        let parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        let selector =
            parameters.filter(|(name, _)| name == "labelSelector").map(|(_, value)| value.into_owned()).next();
        self.lock().get(&(request.uri().path().to_owned(), selector)).cloned()
    }
}

impl<S> Layer<S> for WatchContacts {
    type Service = Contacted<S>;

    fn layer(&self, inner: S) -> Contacted<S> {
        Contacted { inner, contacts: self.clone() }
    }
}

/// A service whose watches are observed.
#[derive(Clone, Debug)]
pub struct Contacted<S> {
    inner: S,
    contacts: WatchContacts,
}

impl<S, Q, B> Service<Request<Q>> for Contacted<S>
where
    S: Service<Request<Q>, Response = Response<B>, Future: Send + 'static>,
{
    type Response = Response<ContactedBody<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let contact = self.contacts.of(&request);
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = answered.await?;
            let contact = contact.filter(|_| answer.status().is_success());
            contact.iter().for_each(Contact::touch);
            Ok(answer.map(|inner| ContactedBody { inner, contact }))
        })
    }
}

/// The body of an answer; if it is that of a watch, with a note of when its last part arrived.
#[derive(Debug)]
pub struct ContactedBody<B> {
    inner: B,
    contact: Option<Contact>,
}

impl<B: Body + Unpin> Body for ContactedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let (Poll::Ready(Some(Ok(_))), Some(contact)) = (&polled, &self.contact) {
            contact.touch();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    const PATH: &str = "/api/v1/secrets";
    const LIMIT: Duration = Duration::from_secs(10);

    /// A body that brings something at each poll.
    struct Endless;

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{}")))))
        }
    }

    #[tokio::test]
    async fn what_arrives_on_a_watch_is_contact_and_what_arrives_elsewhere_or_is_refused_is_none() {
        let contacts = WatchContacts::default();
        contacts.expect(PATH.to_owned(), Some("a=true,b!=c"), "Secrets", true);
        contacts.expect("/api/v1/configmaps".to_owned(), None, "ConfigMaps", false);
        let ask = async |path: &str, status: u16| {
            let answer = service_fn(move |_: Request<()>| {
                let answer = Response::builder().status(status).body(Endless).unwrap();
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let answer = contacts.layer(answer).oneshot(Request::get(path).body(()).unwrap()).await.unwrap();
            answer.into_body()
        };
        let later = || Instant::now() + LIMIT;
        let lost = || contacts.lost(LIMIT, later()).map(|(what, _)| what);
        let last = || contacts.0.lock().values().map(|contact| *contact.last.lock()).max();
        assert_eq!((lost(), contacts.lost(LIMIT, Instant::now())), (Some("Secrets"), None));
        let before = last();
        let _ = ask("/api/v1/secrets?labelSelector=a%3Dtrue&watch=true", 200).await;
        let _ = ask("/api/v1/secrets?labelSelector=a%3Dtrue%2Cb%21%3Dc&watch=true", 403).await;
        assert_eq!(last(), before, "another watch, and an answer that refuses one");
        let mut body = ask("/api/v1/secrets?&labelSelector=a%3Dtrue%2Cb%21%3Dc&watch=true", 200).await;
        let begun = last();
        assert!(begun > before);
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(frame.is_some() && last() > begun);
        let _ = ask("/api/v1/configmaps", 200).await;
        assert_eq!(lost(), Some("Secrets"), "only what is required counts");
        assert!(contacts.longest_silence(later()) >= LIMIT);
    }
}
