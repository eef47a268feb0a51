//! A Lease that is held: renewed in the background, known to be lost in time, released at the end.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Active, Identity, LockError, Locks, Seen};
use crate::k8s::object::OwnerRef;

/// A Lease that is held. Dropped without [`Hold::release`], it is no longer renewed.
#[derive(Debug)]
pub struct Hold {
    active: Active,
    me: Identity,
    state: Arc<Mutex<State>>,
    uninterrupted: bool,
    lost: CancellationToken,
    stop: DropGuard,
    /// Tells at its end whether somebody else has the Lease.
    renewal: JoinHandle<bool>,
}

#[derive(Clone, Debug)]
struct State {
    seen: Seen,
    /// When the last request was sent that is known to have renewed the Lease.
    renewed: Instant,
}

/// When a hold that was last renewed at `renewed` is to be renewed next.
fn next_renewal(renewed: Instant, duration: Duration) -> Instant {
    renewed + duration / 3
}

/// When a hold that was last renewed at `renewed` must be given up: a third of the duration before anybody may take it.
fn deadline(renewed: Instant, duration: Duration) -> Instant {
    renewed + duration * 2 / 3
}

impl Hold {
    /// Starts to renew a Lease that the request sent at `sent` took.
    pub(super) fn start(active: Active, me: Identity, seen: Seen, sent: Instant, uninterrupted: bool) -> Self {
        let state = Arc::new(Mutex::new(State { seen, renewed: sent }));
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(renew(
            active.locks.clone(),
            active.owner.clone(),
            me.clone(),
            state.clone(),
            lost.clone(),
            stop.clone(),
        ));
        Self { active, me, state, uninterrupted, lost, stop: stop.drop_guard(), renewal }
    }

    /// Whether nobody has held the Lease since this process released it, by a PUT with the very `resourceVersion` of that
    /// release, or at all, by a create. Not after a hold that was lost: what its run wrote in the end is not known.
    #[must_use]
    pub fn is_uninterrupted(&self) -> bool {
        self.uninterrupted
    }

    /// Whether the Lease may be somebody else's by now. Also true right after the process was frozen for too long,
    /// before any timer could say so.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled() || Instant::now() >= deadline(state(&self.state).renewed, self.active.locks.0.duration)
    }

    /// Completes when the hold is lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether the Lease still names this attempt, which only reading it can tell once the hold is lost.
    pub async fn is_still_mine(&self) -> bool {
        matches!(mine(&self.active.locks, &self.active.owner, &self.me).await, Ok(Some(_)))
    }

    /// Lets go of the Lease, also of one that was given up as lost: nobody else may have taken it yet, and would wait
    /// for a duration. A failure is logged only, once it is of no use any more to try again.
    pub async fn release(self) {
        let kept = !self.is_lost();
        let Self { active, me, state: held, stop, renewal, .. } = self;
        let Active { locks, owner } = &active;
        drop(stop);
        // A renewal that is under way is awaited, since it decides the resourceVersion.
        if renewal.await.unwrap_or_default() {
            return;
        }
        let (State { mut seen, renewed }, duration) = (state(&held), locks.0.duration);
        // From then on anybody may take it. Who comes late tries for a while all the same.
        let until = (renewed + duration).max(Instant::now() + duration / 3);
        while let Err(error) = locks.empty(owner, &seen, kept).await {
            match mine(locks, owner, &me).await {
                Ok(Some(found)) => seen = found,
                Ok(None) => return,
                Err(_) => {}
            }
            if Instant::now() >= until {
                tracing::warn!(namespace = owner.namespace, name = owner.name, %error, "the Lease was not released");
                return;
            }
            sleep(duration / 30).await;
        }
    }
}

fn state(state: &Mutex<State>) -> State {
    state.lock().clone()
}

/// The Lease as it is now, if it still names this attempt.
async fn mine(locks: &Locks, owner: &OwnerRef, me: &Identity) -> Result<Option<Seen>, LockError> {
    let sighting = locks.look(owner).await?;
    Ok(sighting.map(|sighting| sighting.seen).filter(|seen| seen.holder.as_deref() == Some(&me.to_string())))
}

async fn renew(
    locks: Locks,
    owner: OwnerRef,
    me: Identity,
    held: Arc<Mutex<State>>,
    lost: CancellationToken,
    stop: CancellationToken,
) -> bool {
    let duration = locks.0.duration;
    let mut next = next_renewal(state(&held).renewed, duration);
    loop {
        let State { seen, renewed } = state(&held);
        let deadline = deadline(renewed, duration);
        tokio::select! {
            () = stop.cancelled() => return false,
            () = sleep_until(next.min(deadline)) => {}
        }
        let sent = Instant::now();
        let outcome = if sent >= deadline {
            Ok(Renewal::Failed)
        } else {
            timeout_at(deadline, renew_once(&locks, &owner, &me, &seen)).await
        };
        match outcome {
            Ok(Renewal::Done(seen)) => {
                *held.lock() = State { seen, renewed: sent };
                next = next_renewal(sent, duration);
            }
            Ok(Renewal::Changed(seen)) => {
                held.lock().seen = seen;
                next = Instant::now();
            }
            Ok(Renewal::Failed) if Instant::now() < deadline => next = Instant::now() + duration / 30,
            ended @ (Ok(Renewal::Failed | Renewal::Taken) | Err(_)) => {
                tracing::warn!(namespace = owner.namespace, name = owner.name, "the Lease was lost");
                lost.cancel();
                return matches!(ended, Ok(Renewal::Taken));
            }
        }
    }
}

enum Renewal {
    /// Renewed.
    Done(Seen),
    /// Still held, but another hand wrote to the Lease: renew from there.
    Changed(Seen),
    /// Somebody else has it.
    Taken,
    /// Not renewed, or not known.
    Failed,
}

async fn renew_once(locks: &Locks, owner: &OwnerRef, me: &Identity, seen: &Seen) -> Renewal {
    match locks.renew(owner, me, seen).await {
        Ok(seen) => Renewal::Done(seen),
        Err(_) => match mine(locks, owner, me).await {
            Ok(Some(found)) => {
                if found.resource_version == seen.resource_version {
                    Renewal::Failed
                } else {
                    Renewal::Changed(found)
                }
            }
            Ok(None) => Renewal::Taken,
            Err(_) => Renewal::Failed,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_hold_is_given_up_before_anybody_may_take_it(seconds in 1_u64..3600) {
            let (renewed, duration) = (Instant::now(), Duration::from_secs(seconds));
            prop_assert!(next_renewal(renewed, duration) < deadline(renewed, duration));
            // Nobody takes it before it stood still for a duration, seen after the renewal was written.
            prop_assert!(deadline(renewed, duration) < renewed + duration);
        }
    }
}
