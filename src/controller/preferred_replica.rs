//! Which replica tries an object first. All may; the order only keeps a crowd from each Lease.
//!
//! Replicas learn of each other from `status.lastRunBy` as the watch brings it, and from Leases that they find held, so
//! that it costs no request. Who is not seen for a while is forgotten.

use std::{collections::HashMap, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The other replicas, as seen lately.
#[derive(Clone, Debug)]
pub struct Peers {
    me: String,
    seen: HashMap<String, Instant>,
}

/// How the names of those begin who run a fetch once, beside the replicas, and leave: `fetch --direct`.
pub const PASSING: &str = "direct-";

/// How long a replica counts after it was last seen.
const REMEMBERED: Duration = Duration::from_secs(300);

impl Peers {
    /// Nobody else is known yet.
    #[must_use]
    pub fn new(me: String) -> Self {
        Self { me, seen: HashMap::new() }
    }

    /// Another replica was seen at work.
    pub fn saw(&mut self, replica: &str, now: Instant) {
        if replica != self.me && !replica.starts_with(PASSING) {
            self.seen.insert(replica.to_owned(), now);
        }
    }

    /// How many replicas are to try an object before this one (rendezvous hashing).
    pub fn rank(&mut self, object: &str, now: Instant) -> u32 {
        self.seen.retain(|_, seen| now.duration_since(*seen) < REMEMBERED);
        let mine = weight(&self.me, object);
        let before = self.seen.keys().filter(|peer| weight(peer, object) > mine).count();
        u32::try_from(before).unwrap_or(u32::MAX)
    }

    /// Those that were to try an object before this one let their turns pass: they count again when they are seen again.
    pub fn let_pass(&mut self, object: &str) {
        let mine = weight(&self.me, object);
        self.seen.retain(|peer, _| weight(peer, object) <= mine);
    }
}

/// For how many times the grace a replica without a free place keeps to the objects that it is the first to try.
const OWN_FIRST: u32 = 10;

/// For how long a replica of this rank still lets others go first, of an object that has been due for `waited`: a `grace`
/// for each of them. One that has no free place as it is waits longer: were all to try all where they can hardly keep up,
/// the most of their requests would be about Leases that another one has.
#[must_use]
pub fn lets_go_first(
    rank: u32,
    grace: Duration,
    waited: Duration,
    has_place: impl FnOnce() -> bool,
) -> Option<Duration> {
    let left = grace.saturating_mul(rank).saturating_sub(waited);
    if !left.is_zero() {
        return Some(left);
    }
    let to_others = rank > 0 && waited < grace.saturating_mul(OWN_FIRST);
    (to_others && !has_place()).then_some(grace)
}

fn weight(replica: &str, object: &str) -> [u8; 32] {
    Sha256::new().chain_update(replica).chain_update([0]).chain_update(object).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_one_who_only_passed() {
        let now = Instant::now();
        let mut peers = Peers::new("a".to_owned());
        (0..100).for_each(|n| peers.saw(&format!("{PASSING}{n}"), now));
        assert_eq!(peers.rank("object", now), 0);
    }

    #[test]
    fn each_object_has_one_replica_that_goes_first_and_the_load_is_spread() {
        let names = ["a", "b", "c"];
        let now = Instant::now();
        let mut replicas: Vec<Peers> = names.iter().map(|me| Peers::new((*me).to_owned())).collect();
        for peers in &mut replicas {
            names.iter().for_each(|name| peers.saw(name, now));
        }
        let mut first = [0; 3];
        for object in 0..300 {
            let mut ranks: Vec<u32> = replicas.iter_mut().map(|peers| peers.rank(&object.to_string(), now)).collect();
            first[ranks.iter().position(|rank| *rank == 0).expect("one is first")] += 1;
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2]);
        }
        assert!(first.iter().all(|count| *count > 60), "{first:?}");
    }

    #[test]
    fn a_replica_that_let_its_turn_pass_is_not_waited_for_again_until_it_is_seen() {
        let mut peers = Peers::new("a".into());
        let now = Instant::now();
        // As after a rollout or two: all of these are gone.
        (0..50).for_each(|peer| peers.saw(&peer.to_string(), now));
        let objects: Vec<String> = (0..100).map(|object| object.to_string()).collect();
        let waits = objects.iter().filter(|object| {
            let waits = peers.rank(object, now) > 0;
            peers.let_pass(object);
            waits
        });
        assert!(waits.count() < 20);
        let last = objects.iter().find(|object| weight("0", object) > weight("a", object)).expect("one");
        peers.let_pass(last);
        assert_eq!(peers.rank(last, now), 0);
        peers.saw("0", now);
        assert_eq!(peers.rank(last, now), 1);
    }

    #[test]
    fn who_has_no_free_place_keeps_to_its_own_for_a_while() {
        let millis = Duration::from_millis;
        for (rank, waited, has_place, expected) in [
            (0, 0, true, None),
            (0, 0, false, None),
            (1, 0, true, Some(1000)),
            (1, 400, false, Some(600)),
            (2, 400, true, Some(1600)),
            (1, 1000, true, None),
            (1, 1000, false, Some(1000)),
            (2, 9999, false, Some(1000)),
            (2, 10_000, false, None),
        ] {
            let left = lets_go_first(rank, millis(1000), millis(waited), || has_place);
            assert_eq!(left, expected.map(millis), "{rank} {waited} {has_place}");
        }
    }

    #[test]
    fn a_replica_that_was_not_seen_for_long_is_forgotten() {
        let mut peers = Peers::new("a".into());
        let now = Instant::now();
        (0..50).for_each(|peer| peers.saw(&peer.to_string(), now));
        assert!(peers.rank("x", now) > 0);
        assert_eq!(peers.rank("x", now + REMEMBERED), 0);
    }
}
