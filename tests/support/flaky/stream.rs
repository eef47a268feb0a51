//! Established watches, which can be frozen, thawed and closed.

use axum::body::Body;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    BoxError,
    rule::{Target, When},
};

/// The state of a stream.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    /// What the API server sends is passed on.
    Open,
    /// It stays open, and nothing is passed on.
    Frozen,
    /// The connection is closed.
    Closed,
}

/// All streams of a proxy.
#[derive(Default)]
pub(super) struct Streams(Mutex<Vec<(Target, watch::Sender<Flow>)>>);

impl Streams {
    /// Registers the stream that answers a request.
    pub fn add(&self, target: Target, body: Body, flow: Flow) -> Body {
        let (sender, receiver) = watch::channel(flow);
        let mut streams = self.0.lock();
        streams.retain(|(_, stream)| !stream.is_closed());
        streams.push((target, sender));
        controlled(body, receiver)
    }

    /// Changes the state of those that are selected, and says how many these are.
    pub fn set(&self, when: &When, flow: Flow) -> usize {
        let streams = self.0.lock();
        let selected = streams.iter().filter(|(target, stream)| !stream.is_closed() && when.matches(target, None));
        selected.inspect(|(_, stream)| stream.send_modify(|now| *now = flow)).count()
    }
}

fn controlled(body: Body, flow: watch::Receiver<Flow>) -> Body {
    Body::from_stream(stream::unfold((body.into_data_stream(), flow), |(mut chunks, mut flow)| async {
        loop {
            let now = *flow.borrow_and_update();
            match now {
                Flow::Closed => return Some((Err(BoxError::from("the stream is closed by the test")), (chunks, flow))),
                // The sender lives as long as the proxy.
                Flow::Frozen => flow.changed().await.ok()?,
                Flow::Open => tokio::select! {
                    chunk = chunks.next() => return Some((chunk?.map_err(BoxError::from), (chunks, flow))),
                    changed = flow.changed() => changed.ok()?,
                },
            }
        }
    }))
}
