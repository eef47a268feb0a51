//! Names are looked up by the system's resolver, which follows `/etc/hosts`, search domains and the rest of what a
//! machine is set up to do. It blocks, and may do so for long after nobody waits for the answer any more. So each look-up
//! has a thread of its own, and each namespace only so many of them: servers of one namespace that do not answer hold up
//! neither the names of others nor anything else that needs a thread.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::resolver::Lookup;
use crate::fetch::fair_semaphore::FairSemaphore;

/// Look-ups at a time, and of these of one namespace.
const MOST: usize = 128;
const MOST_OF_ONE: usize = 8;

/// How long a look-up waits for those before it.
const WAIT: Duration = Duration::from_secs(5);

/// More than the system's resolver needs. What is not used of it costs nothing.
const STACK: usize = 1 << 20;

static LOOKUPS: LazyLock<FairSemaphore> = LazyLock::new(|| FairSemaphore::new(MOST, MOST_OF_ONE));

tokio::task_local! {
    /// The HTTP library does not pass on for whom it resolves a name.
    static NAMESPACE: Arc<str>;
}

/// Does what may look names up for a namespace.
pub(super) async fn within<T>(namespace: Arc<str>, requests: impl Future<Output = T>) -> T {
    NAMESPACE.scope(namespace, requests).await
}

/// The namespace for which names are looked up.
pub(super) fn namespace() -> Arc<str> {
    NAMESPACE.try_with(Clone::clone).unwrap_or_default()
}

/// How many are in progress, and how many wait for those.
#[must_use]
pub fn lookups() -> (usize, usize) {
    (LOOKUPS.held(), LOOKUPS.waiting())
}

/// The system's resolver.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|name| Box::pin(look_up((&LOOKUPS, WAIT), namespace(), name, resolve)))
}

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

async fn look_up(
    (limit, wait): (&FairSemaphore, Duration),
    namespace: Arc<str>,
    name: String,
    resolve: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
) -> io::Result<Vec<IpAddr>> {
    let permit = timeout(wait, limit.acquire(&namespace, 1)).await.map_err(|_| {
        let words = format!("it waits for {MOST_OF_ONE} other names of namespace {namespace} that are being looked up");
        io::Error::new(io::ErrorKind::TimedOut, words)
    })?;
    let (done, found) = oneshot::channel();
    let work = move || {
        let found = resolve(&name);
        // Held to the end of the look-up, even if nobody waits for it any more.
        drop(permit);
        let _ = done.send(found);
    };
    thread::Builder::new().name("lookup".to_owned()).stack_size(STACK).spawn(work)?;
    found.await.unwrap_or_else(|_| Err(io::Error::other("the look-up was cut off")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::{
        net::Ipv4Addr,
        sync::mpsc::{Receiver, Sender, channel},
    };

    use super::*;

    type Resolve = Box<dyn FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send>;

    #[tokio::test]
    async fn names_that_are_never_answered_hold_up_those_of_their_namespace_only() {
        let limit = Arc::new(FairSemaphore::new(4, 2));
        let look = |namespace: &str, resolve: Resolve| {
            let (limit, namespace) = (limit.clone(), Arc::from(namespace));
            tokio::spawn(async move { look_up((&limit, WAIT), namespace, "id.example.com".into(), resolve).await })
        };
        let hanging = || -> (Sender<()>, _) {
            let (end, ended): (_, Receiver<()>) = channel();
            (end, look("a", Box::new(move |_| ended.recv().map(|()| vec![]).map_err(io::Error::other))))
        };
        let held = [hanging(), hanging()];
        while limit.held() < 2 {
            tokio::task::yield_now().await;
        }
        let quick = |_: &str| Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST)]);
        assert_eq!(look("b", Box::new(quick)).await.unwrap().unwrap().len(), 1, "another namespace does not wait");
        let third = look("a", Box::new(quick));
        while limit.waiting() < 1 {
            tokio::task::yield_now().await;
        }
        // To give up the wait does not end a look-up, which the system goes on with.
        let [(end, first), (still, second)] = held;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!((limit.held(), limit.waiting()), (2, 1));
        end.send(()).unwrap();
        assert_eq!(third.await.unwrap().unwrap().len(), 1, "it was waiting for one of those before it");
        drop(still);
        assert!(second.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_look_up_that_waits_too_long_says_for_what() {
        let limit = FairSemaphore::new(4, 1);
        let _held = limit.acquire("a", 1).await;
        let error =
            look_up((&limit, Duration::from_millis(10)), "a".into(), "x".into(), |_| Ok(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("other names of namespace a"), "{error}");
    }

    #[tokio::test]
    async fn the_files_and_the_resolver_of_the_machine_are_asked() {
        let found = system_lookup()("localhost".to_owned()).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
        assert!(system_lookup()("no-such-name.invalid".to_owned()).await.is_err());
    }
}
