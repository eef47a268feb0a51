//! The runs of a controller: each in a task of its own, in its turn, and what is told of it meanwhile.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    concurrency::{Request, Work, slot_for},
    reconcile::{Context, at},
    untrue::TOLERATED,
};
use crate::{
    api::{READY, TokenCache, condition},
    fetch::Progress,
    k8s::{ApiError, object::ObjectKey},
    reconcile::{
        observe::{checked, observed},
        plan::{Observed, Plan, decide},
        run::{RunError, RunOutcome},
        state::Note,
        status::during_run,
    },
};

/// How often a Lease that somebody else holds is looked at.
const BUSY: Duration = Duration::from_secs(5);
/// How long a first run may take before status says that it goes on.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same for one that waits for its place: of a crowd of new objects most do, and each report costs requests.
const QUEUED: Duration = Duration::from_secs(30);
/// How long what a run waits for must last before it is reported.
const LASTING: Duration = Duration::from_secs(1);

/// How long a run may take before what has expired already is removed.
const PROMPT: Duration = Duration::from_secs(1);

impl Context {
    /// Begins a run in a task of its own, whose end has the object looked at again.
    pub(super) fn begin(self: &Arc<Self>, key: &ObjectKey, cache: &TokenCache, seen: &Observed<'_>) {
        let (cancel, changed) = (self.stop.cancel.child_token(), Arc::new(Notify::new()));
        self.runner.notes.with(key, |note| {
            (note.cancel, note.changed) = (Some(cancel.clone()), Some(changed.clone()));
        });
        let fresh = condition(cache.status.as_ref(), READY).is_none();
        let now = self.runner.clock.now();
        let expiry = if seen.to_remove(now).is_some() { Some(PROMPT) } else { self.until_expiry(seen, now) };
        let moments = [expiry, self.untrue(key, seen), fresh.then_some(QUEUED)];
        let (context, key, slot) = (self.clone(), key.clone(), slot_for(&key.0, &cache.spec));
        self.runs.spawn(async move {
            let run = context.run(&key, slot, fresh, &cancel);
            // While it waits for its place there is nothing else to tell.
            let none = Progress::default();
            let run = context.reporting(&key, &moments, &none, Some(&*changed), run);
            let ran = AssertUnwindSafe(Box::pin(run)).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(namespace = key.0, name = key.1, "run panicked");
                Ok(RunOutcome::Panicked)
            });
            context.recovery.learn(&ran, &context.runner.notes, Instant::now());
            let failed = ran.is_err();
            let mut wake = context.settled(&key, ran.map(|ran| context.after(&key, ran)));
            if failed {
                // During the pause that follows, nothing is reported until the value expires.
                if let Err(error) = Box::pin(context.report_meanwhile(&key)).await {
                    tracing::debug!(namespace = key.0, name = key.1, %error, "not reported after a run that failed");
                }
                wake = [wake, context.next_expiry(&key).await].into_iter().flatten().min();
            }
            context.runner.notes.run_ended(&key, wake);
            // Nobody listens any more only when the controller ends.
            let _ = context.ended.unbounded_send(at(&key));
        });
    }

    /// How long the value that this process knows of is still valid.
    async fn next_expiry(&self, key: &ObjectKey) -> Option<Duration> {
        let cache = self.shown(key)?;
        let note = checked(&self.runner.notes, key, &cache).await;
        let watched = self.watched(key, &cache, &note);
        self.until_expiry(&observed(&cache, watched.metadata.as_deref(), &note), self.runner.clock.now())
    }

    /// When to look again after a run, if nothing happens before.
    fn after(&self, key: &ObjectKey, outcome: RunOutcome) -> Option<Duration> {
        let retry_in = outcome.retry_in();
        if retry_in.is_none() {
            self.runner.notes.with_known(key, |note| note.due_since = None);
        }
        match outcome {
            RunOutcome::Finished => {
                // Else each that is gone would cost every object its grace, for as long as it is remembered.
                self.peers.let_pass(key);
                None
            }
            RunOutcome::NotNeeded => self.runner.notes.with_known(key, Note::ran_in_vain),
            RunOutcome::HeldBy { holder, .. } => {
                tracing::debug!(namespace = key.0, name = key.1, holder, "another replica holds the Lease");
                if let Some((process, _)) = holder.as_deref().and_then(|holder| holder.rsplit_once('_'))
                    && let Some((replica, _)) = process.rsplit_once('_')
                {
                    self.peers.saw(replica, Instant::now());
                }
                retry_in
            }
            RunOutcome::AwaitsGarbageCollection { .. }
            | RunOutcome::HoldLost
            | RunOutcome::Cancelled
            | RunOutcome::Panicked => retry_in,
        }
    }

    /// Runs. At these moments from now, and when what the run waits for or the Secret changes, status is brought in line
    /// meanwhile.
    async fn reporting(
        &self,
        key: &ObjectKey,
        moments: &[Option<Duration>],
        progress: &Progress,
        changed: Option<&Notify>,
        running: impl Future<Output = Result<RunOutcome, RunError>>,
    ) -> Result<RunOutcome, RunError> {
        let mut moments: Vec<Duration> = moments.iter().flatten().copied().collect();
        moments.sort_unstable();
        let mut moments = moments.into_iter().peekable();
        let (started, mut changes, mut running) = (Instant::now(), progress.changes(), pin!(running));
        // That of a value which came to be known meanwhile: a run may have written it and still be releasing its Lease.
        let mut expiry = None;
        loop {
            let moment = [moments.peek().map(|moment| started + *moment), expiry].into_iter().flatten().min();
            let progressed = async {
                // An error would say that nobody tells of changes any more.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                sleep(LASTING).await;
            };
            let touched = async {
                match changed {
                    Some(changed) => changed.notified().await,
                    None => std::future::pending().await,
                }
                sleep(TOLERATED).await;
            };
            tokio::select! {
                ran = &mut running => return ran,
                () = sleep_until(moment.unwrap_or(started)), if moment.is_some() => {
                    let now = Instant::now();
                    while moments.next_if(|moment| started + *moment <= now).is_some() {}
                    expiry = expiry.filter(|expiry| *expiry > now);
                }
                () = progressed => {}
                () = touched => expiry = self.next_expiry(key).await.map(|left| Instant::now() + left),
            }
            let report = async {
                // On the heap, so that who waits for a place takes little.
                if let Err(error) = Box::pin(self.report_meanwhile(key)).await {
                    tracing::debug!(namespace = key.0, name = key.1, %error, "not reported during a run");
                }
            };
            tokio::select! {
                ran = &mut running => return ran,
                () = report => {}
            }
        }
    }

    /// Waits for a place, and runs what the watch shows by then.
    async fn run(
        &self,
        key: &ObjectKey,
        (work, request): (Work, Request),
        fresh: bool,
        cancel: &CancellationToken,
    ) -> Result<RunOutcome, RunError> {
        let _slot = tokio::select! {
            biased;
            () = self.stop.begin.cancelled() => return Ok(RunOutcome::Cancelled),
            () = cancel.cancelled() => return Ok(RunOutcome::Cancelled),
            slot = self.concurrency.slot(work, request) => slot,
        };
        let Some(cache) = &self.shown(key) else { return Ok(RunOutcome::NotNeeded) };
        let note = checked(&self.runner.notes, key, cache).await;
        let watched = self.watched(key, cache, &note);
        let seen = || observed(cache, watched.metadata.as_deref(), &note);
        if !matches!(decide(&seen(), self.runner.clock.now()), Plan::Fetch(_)) {
            // Another replica may have been faster: it is looked at anew.
            return Ok(RunOutcome::Cancelled);
        }
        let progress = Progress::default();
        self.runner.notes.with(key, |note| note.progress = Some(progress.clone()));
        let run = Box::pin(self.runner.run(cache, &watched, cancel));
        let mut ran = self.reporting(key, &[fresh.then_some(PATIENCE)], &progress, None, run).await;
        self.runner.notes.with_known(key, |note| note.progress = None);
        if let Ok(RunOutcome::HeldBy { retry_in, .. } | RunOutcome::AwaitsGarbageCollection { retry_in }) = &mut ran {
            // Checked in between, so that a renewal is seen when it comes and not a duration later; and at expiry.
            let expiry = self.until_expiry(&seen(), self.runner.clock.now());
            *retry_in = expiry.unwrap_or(BUSY).min(BUSY).min(*retry_in);
        }
        if let Ok(RunOutcome::HeldBy { retry_in, holder: Some(_) }) = &ran {
            let runs = cache.runs();
            let busy = (runs, Instant::now() + *retry_in);
            let before = self.runner.notes.with_known(key, |note| note.busy.replace(busy)).flatten();
            // The holder may be dead, so that no other replica reports that the value has expired.
            if before.is_some_and(|(of, _)| of == runs) {
                Box::pin(self.report_meanwhile(key)).await?;
            }
        }
        ran
    }

    /// The TokenCache as the watch shows it, if it can be read.
    fn shown(&self, key: &ObjectKey) -> Option<TokenCache> {
        self.caches.get(&at(key))?.read().ok()
    }

    /// Brings status in line with the time while a run goes on, and removes an expired Secret if it is to go.
    pub(super) async fn report_meanwhile(&self, key: &ObjectKey) -> Result<(), ApiError> {
        let Some(cache) = &self.shown(key) else { return Ok(()) };
        let note = checked(&self.runner.notes, key, cache).await;
        let mut watched = self.watched(key, cache, &note);
        let now = self.runner.clock.now();
        let (runs, waits_for) = (cache.runs(), note.progress.as_ref().map(Progress::waits_for));
        self.confirm(key, cache, &note, &mut watched, |seen| during_run(seen, waits_for.as_deref(), now)).await?;
        self.remove_expired(key, cache, &note, &mut watched, now).await;
        let seen = observed(cache, watched.metadata.as_deref(), &note);
        let wanted = |cache: &TokenCache| {
            let seen = Observed { cache, ..seen.clone() };
            (cache.runs() == runs).then(|| during_run(&seen, waits_for.as_deref(), now))
        };
        self.runner.reporter.report(key, cache, wanted).await.map(|_| ())
    }
}
