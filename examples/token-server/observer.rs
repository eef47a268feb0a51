//! What happened at a server, also after it has ended.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{State, TokenServer};

/// Sees the requests to a server.
#[derive(Clone)]
pub struct Observer(Arc<State>);

impl TokenServer {
    /// Sees the requests to this server, and does not keep it running.
    pub fn observer(&self) -> Observer {
        Observer(Arc::clone(&self.state))
    }
}

impl Observer {
    /// When requests arrived, by TokenCache.
    pub fn arrivals(&self) -> BTreeMap<String, Vec<Instant>> {
        self.0.lock().iter().map(|(cache, path)| (cache.clone(), path.arrivals.clone())).collect()
    }

    /// The refresh tokens that were sent again after the server had voided them: when they were voided, and when they were
    /// sent again. By TokenCache.
    pub fn resent(&self) -> BTreeMap<String, Vec<(Instant, Instant)>> {
        self.0.lock().iter().map(|(cache, path)| (cache.clone(), path.refresh.resent().to_vec())).collect()
    }
}
