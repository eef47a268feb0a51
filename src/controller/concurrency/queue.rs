//! Which run is next: pure.
//!
//! Namespaces take turns. A namespace that holds a quarter of the slots or more gets another one only if no namespace
//! with fewer waits, and only while a quarter of all slots stays free, so that a run of another namespace starts at once.
//! One destination has at most a quarter of the slots, and there the same rules hold again, so that a slow server does
//! not occupy all slots, nor one namespace a server that several use.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// Where a run goes. Those that go nowhere share one queue without a limit.
type Destination = Option<Arc<str>>;

/// A run that needs a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The namespace of its TokenCache.
    pub namespace: Arc<str>,
    /// The host and port that it connects to, if there is one.
    pub destination: Destination,
}

/// The runs that hold a slot, and those that wait for one, each with what wakes it.
#[derive(Debug)]
pub struct Queue<T> {
    slots: Used,
    destinations: HashMap<Arc<str>, Used>,
    /// The namespaces with waiting runs, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, Waiting<T>>,
    waiting_count: usize,
    last_ticket: u64,
}

/// How a run fits beside those that hold slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// There is no slot for it.
    None,
    /// Its namespace has its share, and enough slots are free.
    BeyondShare,
    /// Its namespace has less than its share.
    WithinShare,
}

/// How much of a limit is used, and by which namespaces.
#[derive(Debug)]
struct Used {
    limit: usize,
    total: usize,
    namespaces: HashMap<Arc<str>, usize>,
}

impl Used {
    fn new(limit: usize) -> Self {
        Self { limit, total: 0, namespaces: HashMap::new() }
    }

    fn fit(&self, namespace: &str) -> Fit {
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        if self.total >= self.limit {
            Fit::None
        } else if own < self.limit.div_ceil(4) {
            Fit::WithinShare
        } else if self.total + 1 + self.limit / 4 <= self.limit {
            Fit::BeyondShare
        } else {
            Fit::None
        }
    }

    fn add(&mut self, namespace: &Arc<str>) {
        self.total += 1;
        *self.namespaces.entry(namespace.clone()).or_default() += 1;
    }

    fn remove(&mut self, namespace: &str) {
        self.total = self.total.saturating_sub(1);
        if let Some(own) = self.namespaces.get_mut(namespace) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }
}

/// The waiting runs of one namespace.
#[derive(Debug)]
struct Waiting<T> {
    /// By destination, each in the order of arrival.
    runs: HashMap<Destination, VecDeque<(u64, T)>>,
    /// The first of each destination by its ticket: only few destinations can be full, so the search for one that is not
    /// is short.
    first: BTreeMap<u64, Destination>,
}

impl<T> Waiting<T> {
    fn add(&mut self, destination: Destination, ticket: u64, run: T) {
        let runs = self.runs.entry(destination.clone()).or_default();
        runs.push_back((ticket, run));
        if runs.len() == 1 {
            self.first.insert(ticket, destination);
        }
    }

    fn remove(&mut self, destination: &Destination, ticket: u64) -> Option<T> {
        let runs = self.runs.get_mut(destination)?;
        let at = runs.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        let (_, run) = runs.remove(at)?;
        if self.first.remove(&ticket).is_some() {
            match runs.front() {
                Some((next, _)) => drop(self.first.insert(*next, destination.clone())),
                None => drop(self.runs.remove(destination)),
            }
        }
        Some(run)
    }
}

impl<T> Queue<T> {
    /// With this number of slots, at least 1.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: Used::new(slots),
            destinations: HashMap::new(),
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            waiting_count: 0,
            last_ticket: 0,
        }
    }

    /// How many runs hold a slot.
    pub fn running(&self) -> usize {
        self.slots.total
    }

    /// How many runs wait for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// Whether this run would get a slot at once.
    pub fn has_slot(&self, request: &Request) -> bool {
        let waits = self.waiting.get(&request.namespace).is_some_and(|of| of.runs.contains_key(&request.destination));
        !waits && self.fit(&request.namespace, &request.destination) > Fit::None
    }

    /// Adds a run that waits, and returns its ticket.
    pub fn add(&mut self, request: Request, run: T) -> u64 {
        self.last_ticket += 1;
        self.waiting_count += 1;
        let Request { namespace, destination } = request;
        let waiting = self.waiting.entry(namespace.clone()).or_insert_with(|| {
            self.turns.push_back(namespace);
            Waiting { runs: HashMap::new(), first: BTreeMap::new() }
        });
        waiting.add(destination, self.last_ticket, run);
        self.last_ticket
    }

    /// Removes a run that does not wait any more. One that holds a slot already stays as it is.
    pub fn remove(&mut self, ticket: u64, request: &Request) -> Option<T> {
        let waiting = self.waiting.get_mut(&request.namespace)?;
        let run = waiting.remove(&request.destination, ticket)?;
        self.waiting_count -= 1;
        if waiting.first.is_empty() {
            self.waiting.remove(&request.namespace);
            self.turns.retain(|namespace| *namespace != request.namespace);
        }
        Some(run)
    }

    /// Gives a slot to the run whose turn it is, if there is one for it.
    pub fn next(&mut self) -> Option<(Request, T)> {
        let (ticket, request) =
            [Fit::WithinShare, Fit::BeyondShare].into_iter().find_map(|fit| self.first_that_fits(fit))?;
        // The end of the turn, if there are more of this namespace.
        self.turns.retain(|namespace| *namespace != request.namespace);
        self.turns.push_back(request.namespace.clone());
        let run = self.remove(ticket, &request)?;
        self.slots.add(&request.namespace);
        if let Some(destination) = &request.destination {
            let limit = self.slots.limit.div_ceil(4);
            self.destinations.entry(destination.clone()).or_insert_with(|| Used::new(limit)).add(&request.namespace);
        }
        Some((request, run))
    }

    /// Takes back the slot of a run that has ended.
    pub fn release(&mut self, request: &Request) {
        self.slots.remove(&request.namespace);
        if let Some(destination) = &request.destination
            && let Some(used) = self.destinations.get_mut(destination)
        {
            used.remove(&request.namespace);
            if used.total == 0 {
                self.destinations.remove(destination);
            }
        }
    }

    fn first_that_fits(&self, fit: Fit) -> Option<(u64, Request)> {
        self.turns.iter().filter(|namespace| self.slots.fit(namespace) >= fit).find_map(|namespace| {
            let mut first = self.waiting.get(namespace)?.first.iter();
            let (ticket, destination) = first.find(|(_, destination)| self.fit(namespace, destination) >= fit)?;
            let request = Request { namespace: namespace.clone(), destination: destination.clone() };
            Some((*ticket, request))
        })
    }

    fn fit(&self, namespace: &str, destination: &Destination) -> Fit {
        let there = destination.as_ref().and_then(|destination| self.destinations.get(destination));
        self.slots.fit(namespace).min(there.map_or(Fit::WithinShare, |used| used.fit(namespace)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(namespace: &str, destination: Option<&str>) -> Request {
        Request { namespace: namespace.into(), destination: destination.map(Into::into) }
    }

    /// Adds runs like `a>x`: namespace, destination.
    fn add(queue: &mut Queue<String>, runs: &[&str]) {
        for run in runs {
            let (namespace, destination) = run.split_once('>').map_or((*run, None), |(of, to)| (of, Some(to)));
            queue.add(request(namespace, destination), (*run).to_owned());
        }
    }

    fn granted(queue: &mut Queue<String>) -> Vec<String> {
        std::iter::from_fn(|| queue.next().map(|(_, run)| run)).collect()
    }

    #[test]
    fn namespaces_take_turns() {
        let mut queue = Queue::new(8);
        add(&mut queue, &["a", "a", "a", "b", "b", "c"]);
        assert_eq!(granted(&mut queue), ["a", "b", "c", "a", "b", "a"]);
    }

    #[test]
    fn a_namespace_beyond_its_share_leaves_slots_to_others() {
        let mut queue = Queue::new(8);
        add(&mut queue, &["a"; 9]);
        assert_eq!(granted(&mut queue).len(), 6, "a quarter stays free");
        add(&mut queue, &["b", "b", "b"]);
        assert_eq!(granted(&mut queue), ["b", "b"]);
        queue.release(&request("a", None));
        assert_eq!(granted(&mut queue), [""; 0], "both have their share, and none is left beyond the quarter");
        for _ in 0..5 {
            queue.release(&request("a", None));
        }
        assert_eq!(granted(&mut queue), ["a", "a", "b", "a"], "first those with fewer than their share");
    }

    #[test]
    fn a_full_destination_holds_up_no_other() {
        let mut queue = Queue::new(16);
        add(&mut queue, &["a>x", "a>x", "a>x", "a>x", "a>x", "a>y", "b>x", "b>x"]);
        assert_eq!(granted(&mut queue), ["a>x", "b>x", "a>y", "b>x"], "x has four slots, and one stays free");
        assert!(!queue.has_slot(&request("a", Some("x"))) && queue.has_slot(&request("a", Some("z"))));
        assert!(queue.has_slot(&request("c", Some("x"))));
        queue.release(&request("b", Some("x")));
        assert_eq!(granted(&mut queue), ["a>x"]);
        add(&mut queue, &["c>x", "d>x"]);
        assert_eq!(granted(&mut queue), ["c>x"]);
        assert!(!queue.has_slot(&request("e", Some("x"))), "all four are taken");
    }

    #[test]
    fn one_slot_is_used() {
        for slots in 1..4 {
            let mut queue = Queue::new(slots);
            add(&mut queue, &["a>x", "a>y", "a>z"]);
            assert_eq!(granted(&mut queue).len(), slots, "{slots}");
        }
    }

    proptest! {
        #[test]
        fn no_limit_is_exceeded_and_nothing_that_fits_waits(
            slots in 1_usize..20,
            steps in prop::collection::vec((0_u8..3, "[a-d]", prop::option::of("[xyz]")), 0..120),
        ) {
            let mut queue = Queue::new(slots);
            let (mut running, mut waiting): (Vec<Request>, Vec<(u64, usize, Request)>) = (Vec::new(), Vec::new());
            for (number, (step, namespace, destination)) in steps.into_iter().enumerate() {
                match step {
                    0 if !running.is_empty() => queue.release(&running.swap_remove(0)),
                    1 if !waiting.is_empty() => {
                        let (ticket, run, request) = waiting.swap_remove(0);
                        prop_assert_eq!(queue.remove(ticket, &request), Some(run));
                    }
                    _ => {
                        let request = request(&namespace, destination.as_deref());
                        waiting.push((queue.add(request.clone(), number), number, request));
                    }
                }
                while let Some((request, run)) = queue.next() {
                    let at = waiting.iter().position(|(_, of, _)| *of == run).expect("it waited");
                    prop_assert_eq!(waiting.swap_remove(at).2, request.clone());
                    running.push(request);
                }
                prop_assert_eq!((queue.running(), queue.waiting()), (running.len(), waiting.len()));
                prop_assert!(running.len() <= slots);
                for to in ["x", "y", "z"] {
                    let there = running.iter().filter(|of| of.destination.as_deref() == Some(to)).count();
                    prop_assert!(there <= slots.div_ceil(4), "{there} at {to}");
                }
                for (_, _, request) in &waiting {
                    let own = |of: &&Request| of.namespace == request.namespace;
                    let held = running.iter().filter(own).count();
                    let there: Vec<_> = running.iter().filter(|of| of.destination == request.destination).collect();
                    let limit = slots.div_ceil(4);
                    let full = request.destination.is_some()
                        && (there.len() == limit
                            || there.iter().filter(|of| own(of)).count() >= limit.div_ceil(4)
                                && there.len() + 1 + limit / 4 > limit);
                    let beyond = held >= limit && running.len() + 1 + slots / 4 > slots;
                    prop_assert!(running.len() == slots || full || beyond, "{request:?} waits beside {running:?}");
                }
            }
            for request in running {
                queue.release(&request);
            }
            while let Some((request, _)) = queue.next() {
                queue.release(&request);
            }
            prop_assert!(queue.waiting.is_empty() && queue.turns.is_empty() && queue.destinations.is_empty());
            prop_assert_eq!((queue.running(), queue.waiting()), (0, 0));
        }
    }
}
