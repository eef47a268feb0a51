//! That nothing is connected to but what the rules permit.

use super::*;

#[tokio::test]
async fn an_address_in_the_url_is_judged_however_it_is_written() {
    let server = Server::start(token).await;
    let port = server.address.port();
    let world = World { allow: vec![], ..World::new() };
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "[64:ff9b::7f00:1]",
    ] {
        let fetched = world.fetch(&cache(&format!("http://{host}:{port}/"), json!({}))).await;
        assert_failed(fetched, Reason::AddressNotAllowed, &["--allow-cidr"]);
    }
    assert!(server.seen().is_empty());
    assert_token(World::new().fetch(&cache(&format!("http://127.1:{port}/"), json!({}))).await);
}

#[tokio::test]
async fn a_name_that_changes_its_mind_gains_nothing() {
    let server = Server::start(token).await;
    let answers: &[&[&str]] = &[&["127.0.0.1"], &["169.254.169.254"]];
    let world = World { lookup: names(&[("id.example.com", answers)]), ..World::new() };
    let cache = cache(&format!("http://id.example.com:{}/", server.address.port()), json!({}));
    let fetcher = world.fetcher();
    assert_token(fetcher.fetch(&cache).await);
    let words = ["id.example.com", "169.254.169.254", "metadata", "--allow-cidr 169.254.169.254/32"];
    assert_failed(fetcher.fetch(&cache).await, Reason::AddressNotAllowed, &words);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn of_a_names_addresses_only_the_permitted_are_tried() {
    let server = Server::start(token).await;
    let lookup = names(&[("id.example.com", &[&["169.254.169.254", "::1", "127.0.0.1"]])]);
    let world = World { lookup, ..World::new() };
    assert_token(world.fetch(&cache(&format!("http://id.example.com:{}/", server.address.port()), json!({}))).await);
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_unreachable() {
    let fetched = World::new().fetch(&cache("https://nowhere.example/token?x=hidden", json!({}))).await;
    let words = ["nowhere.example:443", "cannot be resolved", "failed to lookup address information"];
    assert_failed(fetched, Reason::Unreachable, &words);
}

#[tokio::test]
async fn a_proxy_is_judged_as_the_server_is_and_so_is_an_address_behind_it() {
    let proxy = Server::start(token).await;
    let port = proxy.address.port();
    let lookup = names(&[("proxy", &[&["127.0.0.1"]]), ("evil", &[&["169.254.169.254"]])]);
    let world = World { lookup, ..World::new() };
    let through =
        |target: &str, proxy: &str| cache(target, json!({"proxy": {"url": format!("http://{proxy}:{port}")}}));

    assert_token(world.fetch(&through("http://id.example.com/", "proxy")).await);
    assert_eq!(proxy.seen()[0].target, "http://id.example.com/");
    for (target, via) in [
        ("http://169.254.169.254/", "proxy"),
        ("https://169.254.169.254/", "proxy"),
        ("https://[fd00:ec2::254]/", "proxy"),
        ("http://id.example.com/", "169.254.169.254"),
        ("http://id.example.com/", "evil"),
        ("https://id.example.com/", "evil"),
        ("https://id.example.com/", "[::ffff:169.254.169.254]"),
    ] {
        assert_failed(world.fetch(&through(target, via)).await, Reason::AddressNotAllowed, &["--allow-cidr"]);
    }
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test]
async fn a_server_name_does_not_lead_around_the_rules() {
    let lookup = names(&[("id.example.com", &[&["169.254.169.254"]]), ("good.example", &[&["127.0.0.1"]])]);
    let world = World { lookup, ..World::new() };
    let with = |url: &str, name: &str| cache(url, json!({"tls": {"serverName": name}}));
    for url in ["https://id.example.com/", "https://169.254.169.254/"] {
        let fetched = world.fetch(&with(url, "good.example")).await;
        assert_failed(fetched, Reason::AddressNotAllowed, &["169.254.169.254"]);
    }
    for name in ["169.254.169.254", "0xa9fea9fe"] {
        assert_failed(world.fetch(&with("https://good.example/", name)).await, Reason::InvalidSpec, &["serverName"]);
    }
}

#[tokio::test]
async fn a_name_is_found_however_it_is_written_and_the_server_sees_the_urls_path() {
    let server = Server::start(token).await;
    let here: &[&[&str]] = &[&["127.0.0.1"]];
    let known = [("id.example.com", here), ("id.example.com.", here), ("xn--bcher-kva.example", here)];
    let world = World { lookup: names(&known), ..World::new() };
    for (host, path, target) in [
        ("ID.Example.COM", "/token", "/token"),
        ("id%2Eexample.com", "/token", "/token"),
        ("id.example.com.", "/token", "/token"),
        ("b\u{fc}cher.example", "/t\u{f6}ken", "/t%C3%B6ken"),
        ("id.example.com", "/users/me@example.com/%2F%40?u=a@b.c&x=%20", "/users/me@example.com/%2F%40?u=a@b.c&x=%20"),
        ("id.example.com", "", "/"),
        ("id.example.com", "?a=b", "/?a=b"),
    ] {
        let url = format!("http://{host}:{}{path}", server.address.port());
        assert_token(world.fetch(&cache(&url, json!({}))).await);
        assert_eq!(server.seen().pop().unwrap().target, target, "{url}");
    }
}

#[tokio::test]
async fn a_secret_is_used_only_for_the_hosts_that_its_owner_lists() {
    let server = Server::start(token).await;
    let lookup = names(&[("id.example.com", &[&["127.0.0.1"]]), ("evil.example", &[&["127.0.0.1"]])]);
    let world = World { lookup, ..World::new() };
    let port = server.address.port();
    let url = |host: &str| format!("http://{host}:{port}/token?x=hidden");
    let limit = |name: &str, hosts: &str, data: &[(&str, &str)]| {
        world.objects.secret(name, data);
        let mut objects = world.objects.0.lock();
        let secret = objects.get_mut(&format!("/api/v1/namespaces/b/secrets/{name}")).unwrap();
        secret["metadata"]["annotations"] = json!({"tokencache.dev/hosts": hosts});
    };
    limit("client", "id.example.com other.example", &[("secret", SECRET)]);
    limit("login", "127.0.0.1", &[("username", "u"), ("password", "p")]);
    let proxy = json!({"url": format!("http://127.0.0.1:{port}"), "credentialsRef": {"name": "login"}});

    assert_token(world.fetch(&cache(&url("id.example.com"), json!({}))).await);
    let asked = server.seen().len();
    let not_listed = "its annotation tokencache.dev/hosts does not list that host".to_owned();
    let words = |host: &str| ["Secret b/client", &not_listed].map(str::to_owned).into_iter().chain([host.to_owned()]);
    for (host, change, wanted) in [
        ("evil.example", json!({}), format!("evil.example:{port}")),
        // Which proxy is used, the spec says, and by which certificates it is believed.
        ("id.example.com", json!({"proxy": proxy.clone()}), format!("127.0.0.1:{port}")),
        ("evil.example", json!({"clientAuth": "Post"}), format!("evil.example:{port}")),
        ("evil.example", json!({"clientIdRef": {"name": "client", "key": "secret"}, "clientId": null}), "evil".into()),
    ] {
        let fetched = world.fetch(&cache(&url(host), change)).await;
        let words: Vec<String> = words(&wanted).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_failed(fetched, Reason::SourceNotAllowed, &words);
    }
    // An expression must not tell what the Secret holds either, by where it fails.
    let http = json!({
        "url": url("evil.example"), "secrets": {"s": {"name": "client", "key": "secret"}},
        "headers": [{"name": "x", "expression": "secrets.s < 'm' ? 'x' : string(1/0)"}],
        "result": {"token": "response.body"},
    });
    let mut oracle = cache(&url("evil.example"), json!({}));
    oracle.spec.fetch = serde_json::from_value(json!({ "http": http })).unwrap();
    assert_failed(world.fetch(&oracle).await, Reason::SourceNotAllowed, &[&not_listed]);
    assert_eq!(server.seen().len(), asked, "nothing was sent");

    // The credentials of a proxy go to that alone.
    limit("client", "id.example.com 127.0.0.1", &[("secret", SECRET)]);
    assert_token(world.fetch(&cache(&url("id.example.com"), json!({ "proxy": proxy.clone() }))).await);
    limit("login", "proxy.example", &[("username", "u"), ("password", "p")]);
    let fetched = world.fetch(&cache(&url("id.example.com"), json!({ "proxy": proxy }))).await;
    assert_failed(fetched, Reason::SourceNotAllowed, &["Secret b/login", &format!("127.0.0.1:{port}")]);
}

#[tokio::test]
async fn names_are_looked_up_for_the_namespace_that_asks() {
    let server = Server::start(token).await;
    let (asked, seen) = (Arc::new(Mutex::new(Vec::new())), names(&[("id.example.com", &[&["127.0.0.1"]])]));
    let kept = asked.clone();
    let lookup: Lookup = Arc::new(move |name| {
        kept.lock().push(crate::fetch::lookup::namespace().to_string());
        seen(name)
    });
    let world = World { lookup, ..World::new() };
    let url = format!("http://id.example.com:{}/", server.address.port());
    assert_token(world.fetch(&cache(&url, json!({}))).await);
    assert_eq!(*asked.lock(), ["b"]);
}
