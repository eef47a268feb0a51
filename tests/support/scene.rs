//! The usual scene: a namespace, a token server with its credentials there, and a controller.

use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use tokencache::api::TokenCache;

use super::{
    Controller, Namespace,
    controller::Launch,
    manifests::{CREDENTIALS, source_secret, token_cache},
    server::{Options, TokenServer},
};

/// All that most scenarios need. Fields are dropped in this order.
pub struct Scene {
    /// The controller.
    pub controller: Controller,
    /// The token server.
    pub server: TokenServer,
    /// The namespace.
    pub ns: Namespace,
}

impl Scene {
    /// With a controller as it comes.
    pub async fn new() -> Self {
        Self::with(Launch::default(), Options::default()).await
    }

    /// With further arguments for the controller.
    pub async fn with_arguments(arguments: &[&str]) -> Self {
        Self::with(Launch { arguments, ..Launch::default() }, Options::default()).await
    }

    /// With a token server of one's own making.
    pub async fn with_server(options: Options) -> Self {
        Self::with(Launch::default(), options).await
    }

    /// With all of it told.
    pub async fn with(launch: Launch<'_>, options: Options) -> Self {
        let (ns, server) = Self::stage(options).await;
        let controller = Controller::launch(&ns, launch).await;
        Self { controller, server, ns }
    }

    /// The scene without a controller.
    pub async fn stage(options: Options) -> (Namespace, TokenServer) {
        let server = TokenServer::start(options).expect("a token server");
        let ns = Namespace::new().await;
        ns.recorder().iter().for_each(|recorder| recorder.counts_requests(server.observer()));
        ns.create::<Secret>(source_secret(CREDENTIALS, &server.options().client_secret, true)).await;
        (ns, server)
    }

    /// Creates a TokenCache with the server's credentials; `spec` is merged over its spec.
    pub async fn cache(&self, name: &str, spec: Value) -> TokenCache {
        self.ns.create(token_cache(name, &self.server, spec)).await
    }

    /// Creates a TokenCache and waits until it holds a value.
    pub async fn ready_cache(&self, name: &str, spec: Value) -> TokenCache {
        self.cache(name, spec).await;
        self.ns.await_ready(name, true, "Fetched").await
    }

    /// The Secret of a TokenCache.
    pub async fn secret(&self, name: &str) -> Secret {
        self.ns.get(name).await
    }
}
