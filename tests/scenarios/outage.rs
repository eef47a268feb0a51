//! The API server is gone, and comes back.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use futures::future::join_all;
use kube::config::Kubeconfig;
use serde_json::json;
use tempfile::NamedTempFile;
use tokencache::api::TokenCache;

use crate::support::{
    Controller, Door, Launch, Namespace, Scene,
    manifests::token_cache,
    pass, scenario,
    server::{Behaviour, Expiry, Options},
    within,
};

/// The controllers' way to the API server, by a door.
pub(super) async fn through_door(ns: &Namespace) -> (Door, NamedTempFile) {
    let mut config = Kubeconfig::read_from(ns.account().await.kubeconfig()).expect("a kubeconfig");
    let cluster = config.clusters[0].cluster.as_mut().expect("a cluster");
    let server: http::Uri = cluster.server.as_deref().and_then(|server| server.parse().ok()).expect("its address");
    let address = server.authority().and_then(|authority| authority.as_str().parse().ok());
    let door = Door::start(address.expect("an address and a port")).await;
    cluster.server = Some(format!("https://{}", door.address));
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(json!(config).to_string().as_bytes()).expect("it is written");
    (door, file)
}

#[test]
fn while_the_api_server_is_gone_what_is_due_is_tried_seldom_and_once_it_is_back_all_goes_on() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        let (door, kubeconfig) = through_door(&ns).await;
        let names: Vec<String> = (0..20).map(|n| format!("a{n}")).collect();
        for name in &names {
            server.set(name, Behaviour::Issue(Expiry::In(4)));
        }
        join_all(names.iter().map(|name| ns.create::<TokenCache>(token_cache(name, &server, json!({}))))).await;
        let launch = Launch { kubeconfig: kubeconfig.path().to_str(), log: "info", ..Launch::default() };
        let controller = Controller::launch(&ns, launch).await;
        ns.await_all_ready(&names).await;

        door.set_open(false);
        // By then all are due, and their pauses have grown to 10 s, of which the upper half is random.
        pass(Duration::from_secs(25)).await;
        let failed = || async { controller.metrics().await.acquisitions("error") };
        let (before, begun) = (failed().await, Instant::now());
        pass(Duration::from_secs(10)).await;
        let tries = failed().await - before;
        let most = begun.elapsed().as_secs_f64() / 5.0 + 1.0;
        assert!(
            tries <= most * names.len() as f64,
            "{tries} tries of {} objects in {:?}",
            names.len(),
            begun.elapsed()
        );
        assert!(controller.log().contains("Connection refused"), "{}", controller.log());

        let requests: Vec<usize> = names.iter().map(|name| server.requests(name)).collect();
        door.set_open(true);
        let open = Instant::now();
        for (name, before) in names.iter().zip(requests) {
            // The second shows that the end of the first was seen.
            within("it goes on", server.await_requests(name, before + 2)).await;
        }
        println!("all were fetched twice {:?} after it came back", open.elapsed());
    });
}
