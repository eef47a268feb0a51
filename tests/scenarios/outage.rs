//! The API server is gone, and comes back.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use http::StatusCode;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokencache::api::TokenCache;

use crate::support::{
    Action, Controller, Door, FlakyApi, Invariant, Launch, Namespace, Scene, When,
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

        let away = "the only controller cannot reach the API server";
        let exempt = ns.exempt_each(Invariant::ReadyWithoutValue, &names, away);
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
        drop(exempt);
        println!("all were fetched twice {:?} after it came back", open.elapsed());
    });
}

/// When the controller meant to look at an object again after its last failure, by its log.
fn planned(log: &str, name: &str) -> DateTime<Utc> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let plan = |line: Value| {
        let fields = &line["fields"];
        // It is logged as text, since it has more bits than a number in JSON.
        let wait: i64 = fields["again_in_ms"].as_str().filter(|_| fields["name"] == name)?.parse().ok()?;
        let said: DateTime<Utc> = line["timestamp"].as_str()?.parse().ok()?;
        Some(said + TimeDelta::milliseconds(wait))
    };
    lines.filter_map(plan).next_back().expect("it failed")
}

#[test]
fn once_leases_can_be_taken_again_the_rest_does_not_wait_for_the_end_of_its_pause() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        // The watches go on, so that they call for no looks.
        let api = FlakyApi::start(&ns, 0, Default::default()).await;
        let names: Vec<String> = (0..20).map(|n| format!("a{n}")).collect();
        for name in &names {
            server.set(name, Behaviour::Issue(Expiry::In(4)));
        }
        join_all(names.iter().map(|name| ns.create::<TokenCache>(token_cache(name, &server, json!({}))))).await;
        let launch = Launch { kubeconfig: Some(api.kubeconfig()), log: "info", ..Launch::default() };
        let controller = Controller::launch(&ns, launch).await;
        ns.await_all_ready(&names).await;
        let leases = When::any().path("/leases");
        let refused = api.always(leases, Action::Answer(StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
        // By then the pauses have grown to 10 s, of which the upper half is random.
        pass(Duration::from_secs(25)).await;
        let before: Vec<usize> = names.iter().map(|name| server.requests(name)).collect();
        refused.remove();
        for (name, before) in names.iter().zip(&before) {
            within("it goes on", server.await_requests(name, before + 1)).await;
        }
        let log = controller.log();
        let early = names.iter().zip(&before).filter(|(name, before)| {
            let arrival = server.arrivals(name)[**before];
            let ago = TimeDelta::from_std(arrival.elapsed()).expect("it fits");
            Utc::now() - ago < planned(&log, name) - TimeDelta::seconds(1)
        });
        let early = early.count();
        assert!(early >= 5, "{early} of {} were looked at before the end of their pause", names.len());
    });
}
