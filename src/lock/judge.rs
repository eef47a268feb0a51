//! What a Lease means to somebody who wants it. Pure: the caller says what it saw, and for how long.

use std::{fmt, time::Duration};

/// Who wants a Lease: a replica, a nonce of its process, and a number of the attempt.
///
/// Differs on every attempt: the API server answers a byte-identical PUT with an unchanged `resourceVersion`, so two
/// attempts under one identity could both believe that they won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    process: String,
    attempt: u64,
}

impl Identity {
    /// The identity of one attempt of a process.
    #[must_use]
    pub fn new(replica: &str, nonce: &str, attempt: u64) -> Self {
        Self { process: format!("{replica}_{nonce}"), attempt }
    }

    /// Whether the holder is an attempt of this very process.
    fn is_same_process(&self, holder: &str) -> bool {
        holder.rsplit_once('_').is_some_and(|(process, _)| process == self.process)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.process, self.attempt)
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// UID of the controlling owner.
    pub owner: Option<String>,
    /// Whether that owner is (or was) a TokenCache of the same name.
    pub same_name: bool,
    /// `spec.holderIdentity`, `None` when it is empty.
    pub holder: Option<String>,
    /// `spec.leaseDurationSeconds`.
    pub duration: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// There is none: create it.
    Create,
    /// It already names this attempt: an earlier write arrived although its answer did not.
    Mine,
    /// It may be taken, by a PUT with the `resourceVersion` that was seen.
    Take {
        /// `spec.leaseTransitions` to write.
        transitions: i32,
    },
    /// Somebody holds it: look again after this time, if nothing happens before.
    Wait(Duration),
    /// It belongs to another object.
    NotOwned,
}

/// Longest time for which a dead holder's `leaseDurationSeconds` is believed.
const LONGEST: Duration = Duration::from_secs(3600);

/// Judges a Lease, for `me`, who acts for the object with the UID `owner`.
///
/// `unchanged_for` is how long, on the caller's own monotonic clock, this very `resourceVersion` has been seen: no
/// timestamp in the Lease is ever compared with a clock, since the holder's may differ.
#[must_use]
pub fn judge(lease: Option<&Seen>, owner: &str, me: &Identity, unchanged_for: Duration) -> Judgement {
    let Some(lease) = lease else { return Judgement::Create };
    if lease.owner.as_deref() != Some(owner) {
        // Left behind by a TokenCache that was deleted and made again: the garbage collector is about to remove it.
        return if lease.same_name { Judgement::Wait(Duration::from_secs(1)) } else { Judgement::NotOwned };
    }
    let Some(holder) = &lease.holder else { return Judgement::Take { transitions: lease.transitions } };
    if *holder == me.to_string() {
        return Judgement::Mine;
    }
    // An earlier attempt of this process ended, since a process runs one attempt of an object at a time; only its
    // release failed.
    if me.is_same_process(holder) {
        return Judgement::Take { transitions: lease.transitions };
    }
    let remaining = lease.duration.min(LONGEST).saturating_sub(unchanged_for);
    if remaining.is_zero() {
        Judgement::Take { transitions: lease.transitions.saturating_add(1) }
    } else {
        Judgement::Wait(remaining)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNER: &str = "uid-1";

    fn seen(holder: Option<&str>) -> Seen {
        Seen {
            resource_version: "7".into(),
            owner: Some(OWNER.into()),
            same_name: false,
            holder: holder.map(Into::into),
            duration: Duration::from_secs(15),
            transitions: 3,
        }
    }

    #[test]
    fn a_lease_is_judged_by_its_holder_and_by_how_long_it_stood_still() {
        let me = Identity::new("pod_a", "9f3a61c2", 17);
        let secs = Duration::from_secs;
        for (lease, unchanged, judgement) in [
            (None, secs(0), Judgement::Create),
            (Some(seen(None)), secs(0), Judgement::Take { transitions: 3 }),
            (Some(seen(Some("pod_a_9f3a61c2_17"))), secs(0), Judgement::Mine),
            (Some(seen(Some("pod_a_9f3a61c2_16"))), secs(0), Judgement::Take { transitions: 3 }),
            (Some(seen(Some("pod_a_00000000_16"))), secs(0), Judgement::Wait(secs(15))),
            (Some(seen(Some("pod_b_9f3a61c2_17"))), secs(14), Judgement::Wait(secs(1))),
            (Some(seen(Some("pod_b_9f3a61c2_17"))), secs(15), Judgement::Take { transitions: 4 }),
            (Some(seen(Some("nonsense"))), secs(0), Judgement::Wait(secs(15))),
            (Some(Seen { owner: None, ..seen(None) }), secs(99), Judgement::NotOwned),
            (Some(Seen { owner: Some("uid-2".into()), ..seen(None) }), secs(99), Judgement::NotOwned),
            (
                Some(Seen { owner: Some("uid-2".into()), same_name: true, ..seen(None) }),
                secs(99),
                Judgement::Wait(secs(1)),
            ),
            (
                Some(Seen { duration: secs(u64::MAX), ..seen(Some("x")) }),
                secs(3600),
                Judgement::Take { transitions: 4 },
            ),
        ] {
            assert_eq!(judge(lease.as_ref(), OWNER, &me, unchanged), judgement, "{lease:?} {unchanged:?}");
        }
    }

    proptest! {
        #[test]
        fn a_holder_of_another_process_is_never_disturbed_before_its_duration(
            duration in 1_u64..3600, unchanged in 0_u64..3600, attempt in any::<u64>(),
        ) {
            let me = Identity::new("me", "n", attempt);
            let other = Identity::new("other", "n", attempt).to_string();
            let lease = Seen { duration: Duration::from_secs(duration), ..seen(Some(&other)) };
            let judgement = judge(Some(&lease), OWNER, &me, Duration::from_secs(unchanged));
            prop_assert_eq!(matches!(judgement, Judgement::Take { .. }), unchanged >= duration);
        }
    }
}
