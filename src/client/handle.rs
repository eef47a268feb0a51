//! A value that is kept fresh in the background, and read without a lock.

use std::{fmt, ops::Deref, pin::pin, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, future::BoxFuture};
use kube::runtime::watcher;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    Client, Condition, Error, Value,
    decide::{Now, Wish},
    value::{Found, Stamp},
};
use crate::{
    k8s::{error::watch_message, secret::SealedSecret, watch::watch_one},
    time::{later, until},
};

/// What the handles on one TokenCache share. Ends its watch when it is dropped.
#[derive(Debug)]
pub(super) struct Fresh {
    name: String,
    slot: Arc<Slot>,
    task: JoinHandle<()>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where the background task leaves what it has.
#[derive(Debug)]
struct Slot {
    value: ArcSwap<Value>,
    error: ArcSwapOption<Error>,
    changes: watch::Sender<u64>,
}

impl Slot {
    fn set(&self, value: Arc<Value>) {
        self.error.store(None);
        if self.value.load().stamp() != value.stamp() {
            self.value.store(value);
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn clear(&self) {
        if *self.value.load().stamp() != *Value::none().stamp() {
            self.value.store(Arc::new(Value::none()));
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

impl Fresh {
    pub(super) fn start(client: Client, name: String) -> Self {
        let slot = Arc::new(Slot {
            value: ArcSwap::from_pointee(Value::none()),
            error: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
        });
        let task = tokio::spawn(keep(client, name.clone(), slot.clone()));
        Self { name, slot, task }
    }
}

/// A handle on a value that is kept fresh in the background. Clones share the same watch.
#[derive(Clone)]
pub struct Handle {
    client: Client,
    fresh: Arc<Fresh>,
    changes: watch::Receiver<u64>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("name", &self.fresh.name).finish_non_exhaustive()
    }
}

/// A value that was valid when it was read from a [`Handle`]. It is to be used, not kept: hold the handle instead.
pub struct Current(Guard<Arc<Value>>);

impl Deref for Current {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl From<Current> for Arc<Value> {
    fn from(current: Current) -> Self {
        Guard::into_inner(current.0)
    }
}

impl Handle {
    pub(super) fn new(client: Client, fresh: Arc<Fresh>) -> Self {
        let changes = fresh.slot.changes.subscribe();
        Self { client, fresh, changes }
    }

    /// Name of the TokenCache.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.fresh.name
    }

    /// The value, unless there is none or it has expired. Takes no lock and sends no request.
    #[must_use]
    pub fn get(&self) -> Option<Current> {
        let value = self.fresh.slot.value.load();
        let valid = !value.has_expired(&self.client.0.clock) || self.client.is_brought(self.name(), &value);
        valid.then_some(Current(value))
    }

    /// Waits for a valid value, for as long as it takes; [`error`](Self::error) says what stands in the way.
    pub async fn ready(&self) -> Arc<Value> {
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            if let Some(value) = self.get() {
                return value.into();
            }
            if changes.changed().await.is_err() {
                // The sender lives as long as this handle.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until another value, or none, is there than when this handle was made or this was last called.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why there is no newer value, where the last attempt to get one failed.
    #[must_use]
    pub fn error(&self) -> Option<Arc<Error>> {
        self.fresh.slot.error.load_full()
    }

    /// The value, fetched where there is none; see [`Client::fetch`].
    ///
    /// # Errors
    /// Those of [`Client::fetch`].
    pub async fn fetch(&self) -> Result<Arc<Value>, Error> {
        match self.get() {
            Some(value) => Ok(value.into()),
            None => self.client.fetch(self.name()).await,
        }
    }

    /// Another value than this one, which has failed; see [`Client::refresh`].
    ///
    /// # Errors
    /// Those of [`Client::refresh`].
    pub async fn refresh(&self, failed: &Value) -> Result<Arc<Value>, Error> {
        // The watch may be behind what a refresh has given.
        let newer = |value: &Current| value.stamp() != failed.stamp() && value.fetched_at() >= failed.fetched_at();
        if let Some(value) = self.get().filter(newer) {
            return Ok(value.into());
        }
        self.client.refresh(self.name(), Condition::from(failed)).await
    }
}

/// Asks are repeated after so long at first, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// No sleep is longer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// A value that nobody else renews is asked for anew when this share of its life is left, but so long before its end
/// at most.
const AHEAD: (i32, TimeDelta) = (10, TimeDelta::seconds(30));

/// What is to be asked for next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// A valid value, since there is none.
    Fetch,
    /// Another value, if nobody else renews this one.
    Renew,
}

/// What to ask for and when: pure. `renewed` is the value that was looked after already.
fn next(value: &Value, renewed: Option<&Stamp>, judging: &Now) -> Option<(DateTime<Utc>, Next)> {
    let (end, now) = (judging.end(value)?, judging.time);
    if end <= now || renewed == Some(value.stamp()) {
        return Some((end.max(now), Next::Fetch));
    }
    let life = value.lifetime().unwrap_or_default();
    Some((later(end, -(life / AHEAD.0).min(AHEAD.1)).max(now), Next::Renew))
}

/// When to look at the clock again, where something is due at `at`. The monotonic clock, by which is slept, stands still
/// while a machine is suspended, and the clock may be set meanwhile.
fn wake(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    until(at, now).min(LONGEST_SLEEP)
}

/// How long to pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => PAUSES.0.saturating_mul(1 << doublings.min(16)).min(PAUSES.1),
    }
}

/// Watches the Secret, and asks for a value where there is none that is valid.
async fn keep(client: Client, name: String, slot: Arc<Slot>) {
    loop {
        // Where the TokenCache may not be read, the Secret bears its name or cannot be found.
        if let Ok(cache) = client.answered(&name, client.cache(&name)).await {
            client.learn_secret_name(&cache);
        }
        follow_secret(&client, &name, &slot).await;
    }
}

/// Until the Secret turns out to bear another name.
async fn follow_secret(client: &Client, name: &str, slot: &Slot) {
    let secret_name = client.secret_name(name);
    let mut changes = pin!(watch_one(client.api::<SealedSecret>(), &secret_name));
    let mut asking: Option<Asking<'_>> = None;
    let mut renewed = None;
    let (mut failures, mut not_before) = (0_u32, Instant::now());
    let mut listed = false;
    loop {
        let value = slot.value.load_full();
        let judging = client.judging(name);
        let due = next(&value, renewed.as_ref(), &judging).filter(|_| listed && asking.is_none());
        let (now, wakes) = (Instant::now(), due.as_ref().map(|(at, _)| wake(*at, judging.time)));
        let at = wakes.map(|sleep| (now + sleep).max(not_before));
        let due = due.filter(|(at, _)| *at <= judging.time);
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(secret)) => {
                    listed = true;
                    match Found::of(name, secret) {
                        Found::Own(value) => slot.set(value),
                        Found::Absent | Found::Foreign => slot.clear(),
                    }
                }
                Some(Err(error)) => report(client, &secret_name, slot, error),
                None => return,
            },
            asked = answer(&mut asking) => {
                asking = None;
                match asked {
                    Ok(value) => {
                        failures = 0;
                        value.into_iter().for_each(|value| slot.set(value));
                    }
                    Err(error) => {
                        failures = failures.saturating_add(1);
                        tracing::debug!(name, %error, failures, "no value");
                        slot.error.store(Some(Arc::new(error)));
                    }
                }
                not_before = Instant::now() + pause(failures);
                if client.secret_name(name) != secret_name {
                    return;
                }
            }
            () = sleep_until(at.unwrap_or(now)), if at.is_some() => match due {
                Some((_, Next::Renew)) => {
                    renewed = Some(value.stamp().clone());
                    asking = Some(Box::pin(renew(client, name, value)));
                }
                Some((_, Next::Fetch)) => {
                    asking = Some(Box::pin(async { client.obtain(name, Wish::valid()).await.map(Some) }));
                }
                None => {}
            },
        }
    }
}

type Asking<'a> = BoxFuture<'a, Result<Option<Arc<Value>>, Error>>;

/// The answer to what was asked; none comes where nothing was.
async fn answer(asking: &mut Option<Asking<'_>>) -> Result<Option<Arc<Value>>, Error> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

async fn renew(client: &Client, name: &str, value: Arc<Value>) -> Result<Option<Arc<Value>>, Error> {
    if !client.is_left_to_consumers(name).await {
        return Ok(None);
    }
    client.obtain(name, Wish::Refresh(Condition::from(&*value))).await.map(Some)
}

/// The watch is taken up again by itself; what is refused is said.
fn report(client: &Client, secret_name: &str, slot: &Slot, error: watcher::Error) {
    tracing::debug!(secret_name, error = watch_message(&error), "the watch of a Secret is taken up again");
    if let watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) = error {
        let refused = client.call("list and watch", "secrets", secret_name, "watch").refused(error);
        slot.error.store(Some(Arc::new(refused)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{client::value::tests::secret, time::parse_rfc3339};

    fn value(from: &str, to: &str) -> Value {
        let found = Found::of("a", Some(secret(&full(from), &full(to), json!({}))));
        (**found.value().unwrap()).clone()
    }

    fn full(time: &str) -> String {
        if time == "never" { time.to_owned() } else { format!("2026-03-01T{time}Z") }
    }

    #[test]
    fn a_value_is_asked_for_before_its_end_once_and_then_at_its_end() {
        let at = |time: &str| parse_rfc3339(&full(time)).unwrap();
        let clock = |time: &str| Now { time: at(time), brought: None };
        for (from, to, renewed, now, expected) in [
            ("12:00:00", "never", false, "12:00:00", None),
            ("12:00:00", "12:01:40", false, "12:00:00", Some(("12:01:30", Next::Renew))),
            ("12:00:00", "13:00:00", false, "12:00:00", Some(("12:59:30", Next::Renew))),
            ("12:00:00", "13:00:00", false, "12:59:40", Some(("12:59:40", Next::Renew))),
            ("12:00:00", "13:00:00", true, "12:59:40", Some(("13:00:00", Next::Fetch))),
            ("12:00:00", "13:00:00", false, "13:00:00", Some(("13:00:00", Next::Fetch))),
            ("12:00:00", "13:00:00", true, "14:00:00", Some(("14:00:00", Next::Fetch))),
        ] {
            let value = value(from, to);
            let renewed = renewed.then(|| value.stamp());
            let expected = expected.map(|(time, what)| (at(time), what));
            assert_eq!(next(&value, renewed, &clock(now)), expected, "{from} to {to} at {now}");
        }
        let none = next(&Value::none(), None, &clock("12:00:00"));
        assert_eq!(none, Some((at("12:00:00"), Next::Fetch)));
    }

    #[test]
    fn no_sleep_is_so_long_that_a_clock_that_was_set_is_not_noticed() {
        let at = |time: &str| parse_rfc3339(&full(time)).unwrap();
        for (at_time, expected) in [("12:00:10", 10), ("12:00:30", 30), ("23:00:00", 30), ("11:00:00", 0)] {
            assert_eq!(wake(at(at_time), at("12:00:00")), Duration::from_secs(expected), "{at_time}");
        }
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let pauses: Vec<u64> = (0..8).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
    }
}
