//! Watches of the API server, which are restarted after a failure, with a pause that grows.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use kube::{
    Api, Resource,
    runtime::{
        utils::Backoff as _,
        watcher::{self, DefaultBackoff, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};

use crate::k8s::client::GivenUp;

/// The longest pause after a failure. An API server that is back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pauses of one watch.
///
/// kube's own (`default_backoff`) end with the first event, which for a watch that cannot list is the announcement of the
/// next list: such a watch would be restarted every second forever.
#[derive(Default)]
struct Pauses {
    backoff: DefaultBackoff,
    until: Option<Instant>,
}

impl Pauses {
    fn succeeded(&mut self) {
        self.backoff.reset();
    }

    fn failed(&mut self) -> Duration {
        let pause = self.backoff.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        self.until = Some(Instant::now() + pause);
        pause
    }

    fn took<K>(&mut self, event: &watcher::Result<Event<K>>) {
        match event {
            Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => self.succeeded(),
            // The next page of this list may fail again and again.
            Ok(Event::Init | Event::InitApply(_)) => {}
            Err(_) => drop(self.failed()),
        }
    }

    async fn over(&mut self) {
        if let Some(until) = self.until.take() {
            sleep_until(until).await;
        }
    }
}

/// Watches objects.
pub fn watch_all<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher::watcher(api, config).boxed();
    stream::unfold((events, Pauses::default()), |(mut events, mut pauses)| async {
        pauses.over().await;
        let event = events.next().await?;
        pauses.took(&event);
        Some((event, (events, pauses)))
    })
}

/// The first answer comes within this time, or the watch is restarted. Longer than the limits of [`crate::k8s::client`], which
/// clients of other make do not have.
const FIRST: Duration = Duration::from_secs(45);

/// A watch without news for this long is restarted, beginning with a list: by other clients' limits it might hang.
const NO_NEWS: Duration = Duration::from_secs(300);

/// Watches one object of that name: nothing while there is none.
pub fn watch_one<K>(api: Api<K>, name: &str) -> impl Stream<Item = watcher::Result<Option<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let name = name.to_owned();
    restarted(FIRST, NO_NEWS, move || watcher::watch_object(api.clone(), &name).boxed())
}

fn restarted<T: Send + 'static>(
    first: Duration,
    no_news: Duration,
    start: impl Fn() -> BoxStream<'static, watcher::Result<T>> + Send + 'static,
) -> impl Stream<Item = watcher::Result<T>> + Send {
    let running: Option<(BoxStream<'static, _>, bool)> = None;
    stream::unfold((start, running, Pauses::default()), move |(start, mut running, mut pauses)| async move {
        loop {
            pauses.over().await;
            let (events, answered) = running.get_or_insert_with(|| (start(), false));
            let limit = if *answered { no_news } else { first };
            let event = match timeout(limit, events.next()).await {
                Ok(event) => event?,
                Err(_) if *answered => {
                    running = None;
                    continue;
                }
                Err(_) => {
                    running = None;
                    let error = kube::Error::Service(GivenUp::NoAnswer(first).into());
                    Err(watcher::Error::InitialListFailed(error))
                }
            };
            match &event {
                Ok(_) => {
                    pauses.succeeded();
                    running.iter_mut().for_each(|(_, answered)| *answered = true);
                }
                Err(_) => drop(pauses.failed()),
            }
            return Some((event, (start, running, pauses)));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    fn failure() -> watcher::Error {
        watcher::Error::NoResourceVersion
    }

    #[test]
    fn pauses_grow_while_a_list_fails_and_begin_again_after_one_that_succeeded() {
        let mut pauses = Pauses::default();
        let mut pause_after = |events: &[watcher::Result<Event<()>>]| {
            events.iter().for_each(|event| pauses.took(event));
            pauses.until.take().map(|until| until.duration_since(Instant::now()))
        };
        let fails = || [Ok(Event::Init), Ok(Event::InitApply(())), Err(failure())];
        let grown: Vec<Duration> = (0..20).filter_map(|_| pause_after(&fails())).collect();
        assert!(grown[0] < Duration::from_secs(2), "{grown:?}");
        assert!(grown[10..].iter().all(|pause| *pause > LONGEST_PAUSE / 2 && *pause <= LONGEST_PAUSE), "{grown:?}");
        assert_eq!(pause_after(&[Ok(Event::Init), Ok(Event::InitDone)]), None);
        let again = pause_after(&fails()).expect("a pause");
        assert!(again < Duration::from_secs(2), "{again:?}");
    }

    #[tokio::test]
    async fn a_watch_of_one_object_that_hangs_is_restarted() {
        let started = Arc::new(AtomicUsize::new(0));
        let count = started.clone();
        let hangs_at_first = move || match count.fetch_add(1, SeqCst) {
            0 => stream::pending().boxed(),
            _ => stream::once(async { Ok(1) }).chain(stream::pending()).boxed(),
        };
        let (first, no_news) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut news = std::pin::pin!(restarted(first, no_news, hangs_at_first));
        assert!(matches!(news.next().await, Some(Err(watcher::Error::InitialListFailed(_)))));
        assert!(matches!(news.next().await, Some(Ok(1))));
        assert_eq!(started.load(SeqCst), 2);
        let silent = Instant::now();
        assert!(matches!(news.next().await, Some(Ok(1))), "it lists again after a long silence");
        assert!(silent.elapsed() >= no_news);
        assert_eq!(started.load(SeqCst), 3);
    }
}
