//! Rules of the proxy: which requests, and what happens to them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, request::Parts};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use url::form_urlencoded;

use crate::support::within;

type BodyTest = Arc<dyn Fn(&Value) -> bool + Send + Sync>;
type BodyEdit = Arc<dyn Fn(&mut Value) + Send + Sync>;
type HeaderEdit = Arc<dyn Fn(&mut HeaderMap) + Send + Sync>;

/// Selects requests. A condition that is not set matches all of them.
#[derive(Clone, Default)]
pub struct When {
    method: Option<Method>,
    parts: Vec<String>,
    end: Option<String>,
    watch: Option<bool>,
    query: Vec<String>,
    body: Option<BodyTest>,
}

impl When {
    /// All requests.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with this method whose path ends like this, for example `PUT` and `/secrets/a`.
    pub fn request(method: Method, end: &str) -> Self {
        Self { method: Some(method), end: Some(end.to_owned()), ..Self::default() }
    }

    /// Lists of a resource, for example `secrets`.
    pub fn list(resource: &str) -> Self {
        Self { watch: Some(false), ..Self::request(Method::GET, &format!("/{resource}")) }
    }

    /// Only watches.
    pub fn watches(self) -> Self {
        Self { watch: Some(true), ..self }
    }

    /// Watches of a resource, for example `secrets`.
    pub fn watch(resource: &str) -> Self {
        Self::request(Method::GET, &format!("/{resource}")).watches()
    }

    /// Only those with this method.
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Only those whose path contains this.
    pub fn path(mut self, part: &str) -> Self {
        self.parts.push(part.to_owned());
        self
    }

    /// Only those whose decoded query contains this, for example `labelSelector=tokencache.dev/managed=true`.
    pub fn query(mut self, part: &str) -> Self {
        self.query.push(part.to_owned());
        self
    }

    /// Only those whose JSON body passes a test; `null` is no body. Established streams ignore this condition.
    pub fn body(self, test: impl Fn(&Value) -> bool + Send + Sync + 'static) -> Self {
        Self { body: Some(Arc::new(test)), ..self }
    }

    pub(super) fn matches(&self, target: &Target, body: Option<&Value>) -> bool {
        let contains = |text: &str, parts: &[String]| parts.iter().all(|part| text.contains(part.as_str()));
        self.method.as_ref().is_none_or(|method| *method == target.method)
            && self.watch.is_none_or(|watch| watch == target.watch)
            && self.end.as_ref().is_none_or(|end| target.path.ends_with(end.as_str()))
            && contains(&target.path, &self.parts)
            && contains(&target.query, &self.query)
            && self.body.as_ref().zip(body).is_none_or(|(test, body)| test(body))
    }
}

/// What conditions are compared with.
#[derive(Clone)]
pub(super) struct Target {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub watch: bool,
}

impl Target {
    pub fn of(head: &Parts) -> Self {
        let query: Vec<String> = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        Self {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            watch: query.iter().any(|item| matches!(item.as_str(), "watch=true" | "watch=1")),
            query: query.join("&"),
        }
    }

    /// Whether the request may change something.
    pub fn writes(&self) -> bool {
        self.method != Method::GET
    }
}

/// What happens to a request.
#[derive(Clone)]
pub enum Action {
    /// Is carried out, also where an older rule says otherwise.
    Pass,
    /// Is read and never answered. The connection stays open.
    Swallow,
    /// Is carried out after this time.
    Delay(Duration),
    /// Is carried out at once, and answered after this time.
    DelayAnswer(Duration),
    /// Waits until the rule is removed, and is carried out then.
    Hold,
    /// Is answered with this status and message by the proxy.
    Answer(StatusCode, &'static str),
    /// Is carried out, and answered with this status and message instead of the real ones.
    AnswerAfter(StatusCode, &'static str),
    /// The watch begins with an event `ERROR` with the code 410, and ends.
    Expired,
    /// The connection is closed; nothing is carried out.
    Cut,
    /// Is carried out, and the connection is closed instead of an answer.
    CutAfter,
    /// The watch begins, and its events are held back until [`thaw`](super::FlakyApi::thaw).
    Freeze,
    /// The JSON body is changed before it is carried out. Does not exclude other rules.
    EditBody(BodyEdit),
    /// The headers of the answer are changed. Does not exclude other rules.
    EditHeaders(HeaderEdit),
    /// Nothing happens but that it is counted. Does not exclude other rules.
    Count,
}

impl Action {
    /// Changes the JSON body of the request.
    pub fn edit_body(edit: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::EditBody(Arc::new(edit))
    }

    /// Changes the headers of the answer, for example `Date`.
    pub fn edit_headers(edit: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        Self::EditHeaders(Arc::new(edit))
    }

    /// Whether only one of these can apply to a request.
    fn decides(&self) -> bool {
        !matches!(self, Self::EditBody(_) | Self::EditHeaders(_) | Self::Count)
    }
}

struct Entry {
    id: u64,
    when: When,
    action: Action,
    /// For how many more requests; `None` is all of them.
    left: Option<usize>,
    /// Closed when the rule is removed.
    hits: watch::Sender<usize>,
}

impl Entry {
    fn hit(&mut self) {
        self.left = self.left.map(|left| left - 1);
        self.hits.send_modify(|hits| *hits += 1);
    }
}

/// All rules of a proxy, oldest first.
#[derive(Default)]
pub(super) struct Rules {
    entries: Mutex<Vec<Entry>>,
    next: AtomicU64,
}

/// What the rules say about one request.
#[derive(Default)]
pub(super) struct Verdict {
    /// What decides, and what tells that its rule was removed.
    pub decision: Option<(Action, watch::Receiver<usize>)>,
    pub body_edits: Vec<BodyEdit>,
    pub header_edits: Vec<HeaderEdit>,
}

impl Rules {
    pub fn add(self: &Arc<Self>, when: When, action: Action, left: Option<usize>) -> Rule {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (hits, seen) = watch::channel(0);
        let entry = Entry { id, when, action, left, hits };
        self.entries.lock().push(entry);
        Rule { id, rules: self.clone(), hits: seen }
    }

    /// Counts the request, and says what happens to it: the newest rule decides.
    pub fn judge(&self, target: &Target, body: &Value) -> Verdict {
        let mut verdict = Verdict::default();
        for entry in self.entries.lock().iter_mut().rev() {
            let excluded = entry.action.decides() && verdict.decision.is_some();
            if entry.left == Some(0) || excluded || !entry.when.matches(target, Some(body)) {
                continue;
            }
            entry.hit();
            match &entry.action {
                Action::EditBody(edit) => verdict.body_edits.push(edit.clone()),
                Action::EditHeaders(edit) => verdict.header_edits.push(edit.clone()),
                Action::Count => {}
                action => verdict.decision = Some((action.clone(), entry.hits.subscribe())),
            }
        }
        verdict
    }
}

/// A rule that was added. Dropping it changes nothing.
pub struct Rule {
    id: u64,
    rules: Arc<Rules>,
    hits: watch::Receiver<usize>,
}

impl Rule {
    /// How many requests it has applied to so far.
    pub fn hits(&self) -> usize {
        *self.hits.borrow()
    }

    /// Waits until it has applied to that many requests.
    pub async fn await_hits(&self, count: usize) {
        let mut hits = self.hits.clone();
        let reached = hits.wait_for(|hits| *hits >= count);
        within(&format!("{count} requests match the rule"), reached).await.expect("the rule is still there");
    }

    /// Removes it. Requests that [`Action::Hold`] holds are carried out now. It can still tell its hits.
    pub fn remove(&self) {
        self.rules.entries.lock().retain(|entry| entry.id != self.id);
    }
}
