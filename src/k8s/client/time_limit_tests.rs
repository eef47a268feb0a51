//! Every kind of request, to API servers that hang in every way.

use std::{fmt::Debug, future::Future, net::SocketAddr};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::k8s::{client::connect_through, error::message};

const LIMIT: Duration = Duration::from_millis(300);
/// Of a machine that is busy with other tests.
const LONGEST: Duration = Duration::from_secs(20);

/// How an API server hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hangs {
    /// It accepts connections, and does not begin with TLS.
    BeforeTls,
    /// It reads requests, and does not answer.
    BeforeTheAnswer,
    /// It stops in the middle of an answer.
    InTheAnswer,
}

async fn server(hangs: Hangs) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                if hangs != Hangs::BeforeTls {
                    let _ = stream.read(&mut request).await;
                }
                if hangs == Hangs::InTheAnswer {
                    let _ =
                        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{ \n\r\n").await;
                }
                let _hold = stream;
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

fn client(address: SocketAddr, hangs: Hangs) -> Client {
    let scheme = if hangs == Hangs::BeforeTls { "https" } else { "http" };
    let mut config = Config::new(format!("{scheme}://{address}").parse().unwrap());
    config.default_retry = false;
    config.accept_invalid_certs = true;
    connect_through(config, TimeLimits::of_request(LIMIT), &tower::layer::util::Identity::new()).unwrap()
}

type Call = BoxFuture<'static, Option<String>>;

fn failure<T: Debug>(call: impl Future<Output = kube::Result<T>> + Send + 'static) -> Call {
    Box::pin(async move { call.await.err().map(|error| message(&error)) })
}

/// All kinds of requests: what they fail with, or nothing where a stream ended.
fn calls(client: &Client) -> Vec<(&'static str, Call)> {
    let api = || Api::<ConfigMap>::namespaced(client.clone(), "n");
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a", "resourceVersion": "1"}})).unwrap();
    let (created, replaced) = (object.clone(), object);
    let (get, list, metadata, create, replace) = (api(), api(), api(), api(), api());
    let (patch, delete, watch, raw) = (api(), api(), api(), client.clone());
    vec![
        ("get", failure(async move { get.get("a").await })),
        ("list", failure(async move { list.list(&ListParams::default()).await })),
        ("list of metadata", failure(async move { metadata.list_metadata(&ListParams::default()).await })),
        ("create", failure(async move { create.create(&PostParams::default(), &created).await })),
        ("replace", failure(async move { replace.replace("a", &PostParams::default(), &replaced).await })),
        ("patch", failure(async move { patch.patch("a", &PatchParams::default(), &Patch::Merge(json!({}))).await })),
        ("delete", failure(async move { delete.delete("a", &DeleteParams::default()).await.map(|_| ()) })),
        (
            "watch",
            failure(async move {
                let events = watch.watch(&WatchParams::default(), "1").await?;
                events.map_ok(|_| ()).try_collect::<Vec<_>>().await
            }),
        ),
        ("raw", failure(async move { raw.request_text(Request::get("/version").body(Vec::new()).unwrap()).await })),
    ]
}

#[tokio::test]
async fn every_request_ends_however_the_api_server_hangs() {
    for hangs in [Hangs::BeforeTls, Hangs::BeforeTheAnswer, Hangs::InTheAnswer] {
        let client = client(server(hangs).await, hangs);
        let ended = calls(&client).into_iter().map(async |(what, call)| {
            let ended = timeout(LONGEST, call).await;
            (what, ended.unwrap_or_else(|_| panic!("{what} hangs with a server that hangs {hangs:?}")))
        });
        for (what, error) in join_all(ended).await {
            match (what, hangs) {
                ("watch", Hangs::InTheAnswer) => assert_eq!(error, None, "it is continued elsewhere"),
                (_, Hangs::InTheAnswer) => assert!(error.clone().unwrap().contains("stopped"), "{what}: {error:?}"),
                (_, _) => assert!(error.clone().is_some(), "{what}"),
            }
            if hangs == Hangs::BeforeTheAnswer {
                assert!(error.clone().unwrap().ends_with("the API server did not answer within 0.3 s"), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_watch_that_ends_immediately_has_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
        }
    });
    let api = Api::<ConfigMap>::namespaced(client(address, Hangs::InTheAnswer), "n");
    let mut events = std::pin::pin!(api.watch(&WatchParams::default(), "1").await.unwrap());
    let error = message(&events.next().await.unwrap().unwrap_err());
    assert!(error.contains("ended the watch immediately"), "{error}");
}

#[test]
fn only_watches_and_logs_that_are_followed_may_be_silent() {
    for (uri, expected) in [
        ("/api/v1/pods", Kind::Answer),
        ("/api/v1/pods?watch=true", Kind::Watch),
        ("/api/v1/pods?&limit=1&watch=1&x", Kind::Watch),
        ("/api/v1/pods?watch=false", Kind::Answer),
        ("/api/v1/pods?labelSelector=watch%3Dtrue", Kind::Answer),
        ("/api/v1/namespaces/a/pods/b/log?follow=true", Kind::Stream),
    ] {
        assert_eq!(Kind::of(&Request::get(uri).body(()).unwrap()), expected, "{uri}");
    }
}

/// Clients and watches are made where their limits are, and nowhere else.
#[test]
fn no_client_or_watch_is_made_without_limits() {
    /// What makes one, and the only files that may.
    const MAKERS: [(&str, &[&str]); 7] = [
        ("ClientBuilder::new(", &["k8s/client.rs"]),
        ("kube::Client::new(", &[]),
        ("Client::try_from(", &[]),
        ("Client::try_default(", &[]),
        (".default_backoff(", &[]),
        ("watcher::watcher(", &["k8s/watch.rs"]),
        ("watch_object(", &["k8s/watch.rs"]),
    ];
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&source).unwrap().to_str().unwrap();
            if path.extension().is_none_or(|ending| ending != "rs") || name.contains("tests") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (maker, allowed) in MAKERS.iter().filter(|(maker, _)| text.contains(maker)) {
                assert!(allowed.contains(&name), "{name} has {maker}: use connect_through, watch_all or watch_one");
                found += 1;
            }
        }
    }
    assert_eq!(found, 3, "the makers are called something else now");
}
