//! Keeps the files of one TokenCache like its value.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{Mutex, watch},
    task::{JoinError, spawn_blocking},
    time::sleep,
};

use super::{
    decide::{Known, Step, is_news, step},
    disk,
    health::{Board, explain},
    notify::Tell,
    targets::{Mode, Target},
};
use crate::{
    client::{Error, Handle, Stamp, Value},
    time::{Clock, until},
};

/// One TokenCache, and what is to be done with its value.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) handle: Handle,
    pub(super) targets: Vec<Target>,
    pub(super) mode: Mode,
    pub(super) remove_expired: bool,
    /// Whether anybody is to be told of values.
    pub(super) tells: bool,
    pub(super) board: Board,
    pub(super) clock: Clock,
    /// Counts values that others are to be told of.
    pub(super) news: watch::Sender<u64>,
}

/// What a keeper remembers.
#[derive(Debug, Default)]
struct Memory {
    last: Option<Stamp>,
    written: Option<Stamp>,
    removed: bool,
    /// Some of the files have news; they are told when all are written.
    has_news: bool,
    failures: u32,
}

/// Nothing tells that an attempt to get a value failed: it is looked for after so long.
const LOOK: Duration = Duration::from_secs(1);
/// And while there is a value, after so long, should the clock have been set meanwhile.
const LONG: Duration = Duration::from_secs(30);

/// How long to pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    LOOK.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONG)
}

impl Keeper {
    /// Keeps them for as long as it is polled.
    pub(super) async fn keep(mut self) {
        let mut memory = Memory::default();
        loop {
            let valid: Option<Arc<Value>> = self.handle.get().map(Into::into);
            let error = self.handle.error();
            self.see(&mut memory, valid.as_deref(), error.as_deref());
            let known = Known {
                valid: valid.as_ref().map(|value| value.stamp()),
                last: memory.last.as_ref(),
                error: error.as_deref(),
                written: memory.written.as_ref(),
                remove_expired: self.remove_expired,
                removed: memory.removed,
            };
            match (step(&known), &valid) {
                (Step::Write, Some(value)) => self.write(&mut memory, value.clone()).await,
                (Step::Remove, _) => self.remove(&mut memory).await,
                _ => {}
            }
            let end = valid.as_ref().and_then(|value| value.expires_at().moment());
            let wait = wait(memory.failures, valid.is_some(), end, self.clock.now());
            tokio::select! {
                () = self.handle.changed() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Says what is new.
    fn see(&self, memory: &mut Memory, valid: Option<&Value>, error: Option<&Error>) {
        let name = self.handle.name();
        let reason = error.map(explain);
        let changed = self.board.report(name, |report| {
            match valid {
                Some(value) => report.expires_at = Some(value.expires_at().whole_seconds()),
                // Its Secret was deleted before its time.
                None if report.expires_at.is_some_and(|end| !end.is_past(self.clock.now())) => report.expires_at = None,
                None => {}
            }
            report.reason = reason.clone();
        });
        let lost = valid.is_none() && memory.written.is_some();
        if !changed && !lost {
            return;
        }
        match (valid, reason) {
            (Some(value), None) => tracing::info!(name, expires_at = %value.expires_at(), "there is a value"),
            (Some(value), Some(reason)) => {
                tracing::warn!(name, expires_at = %value.expires_at(), reason, "no newer value available");
            }
            (None, Some(reason)) => tracing::warn!(name, reason, "there is no valid value"),
            (None, None) => tracing::warn!(name, "there is no valid value"),
        }
        if valid.is_none() {
            memory.written = None;
        }
    }

    async fn write(&self, memory: &mut Memory, value: Arc<Value>) {
        let name = self.handle.name();
        let stamp = value.stamp().clone();
        let (targets, mode, tells) = (self.targets.clone(), self.mode, self.tells);
        let written = spawn_blocking(move || {
            let write = |target: &Target| disk::write(target, &value, mode, tells);
            targets.iter().map(write).collect::<Vec<_>>()
        });
        let mut unwritten = None;
        match written.await {
            Ok(written) if written.is_empty() => memory.has_news |= is_news(memory.last.as_ref(), &stamp, None),
            Ok(written) => {
                for written in written {
                    match written {
                        Ok(before) => memory.has_news |= is_news(memory.last.as_ref(), &stamp, Some(before)),
                        Err(error) => unwritten = Some(error.to_string()),
                    }
                }
            }
            Err(error) => unwritten = Some(broken(&error)),
        }
        // Something of it may be there, which would have to be removed again.
        memory.removed = false;
        self.report_files(memory, unwritten.as_ref());
        if unwritten.is_some() {
            return;
        }
        tracing::info!(name, files = self.targets.len(), "the value is in its files");
        memory.last = Some(stamp.clone());
        memory.written = Some(stamp);
        if std::mem::take(&mut memory.has_news) {
            self.news.send_modify(|news| *news += 1);
        }
    }

    async fn remove(&self, memory: &mut Memory) {
        let targets = self.targets.clone();
        let removed = spawn_blocking(move || targets.iter().map(disk::remove).collect::<Result<Vec<_>, _>>());
        let unwritten = match removed.await {
            Ok(Ok(removed)) => {
                memory.removed = true;
                if removed.contains(&true) {
                    tracing::warn!(
                        name = self.handle.name(),
                        "the files of a value that is no longer valid are removed"
                    );
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(broken(&error)),
        };
        self.report_files(memory, unwritten.as_ref());
    }

    fn report_files(&self, memory: &mut Memory, unwritten: Option<&String>) {
        memory.failures = if unwritten.is_some() { memory.failures.saturating_add(1) } else { 0 };
        let name = self.handle.name();
        let is_new = self.board.report(name, |report| {
            report.is_written = unwritten.is_none() && !memory.removed;
            report.unwritten = unwritten.cloned();
        });
        if let Some(error) = unwritten.filter(|_| is_new) {
            tracing::error!(name, error, "the files cannot be written; it is tried again");
        }
    }
}

fn broken(error: &JoinError) -> String {
    format!("the task that writes files ended: {error}")
}

/// How long nothing is to be done but by a change.
fn wait(failures: u32, valid: bool, end: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    if failures > 0 {
        return pause(failures);
    }
    match end {
        _ if !valid => LOOK,
        Some(end) if end > now => until(end, now).min(LONG),
        // Valid although it has expired by a clock that is wrong.
        Some(_) => LOOK,
        None => LONG,
    }
}

/// Tells of each value that is news, for as long as it is polled. One at a time is told, of whichever TokenCache.
pub(super) async fn tell(
    name: String,
    targets: Vec<Target>,
    tell: Arc<Tell>,
    turn: Arc<Mutex<()>>,
    mut news: watch::Receiver<u64>,
    board: Board,
) {
    while news.changed().await.is_ok() {
        let mut failures = 0;
        loop {
            news.mark_unchanged();
            let told = {
                let _turn = turn.lock().await;
                tell.tell(&name).await
            };
            let untold = told.err().map(|error| error.to_string());
            board.report(&name, |report| report.untold.clone_from(&untold));
            let Some(error) = untold else {
                forget(&targets).await;
                tracing::info!(name, "consumer notified");
                break;
            };
            tracing::error!(name, error, "notifying the consumer failed");
            if !tell.is_repeated() {
                forget(&targets).await;
                break;
            }
            failures += 1;
            tokio::select! {
                () = sleep(pause(failures)) => {}
                changed = news.changed() => match changed {
                    Ok(()) => failures = 0,
                    Err(_) => return,
                },
            }
        }
    }
}

/// Another agent need not tell of these files any more.
async fn forget(targets: &[Target]) {
    let targets = targets.to_vec();
    let forgotten = spawn_blocking(move || targets.iter().try_for_each(disk::told)).await;
    if let Ok(Err(error)) = forgotten {
        tracing::warn!(%error, "the consumer is notified again when the agent restarts");
    }
}
