//! A service that calls an API with a token that tokencache keeps: read from memory for each call, and replaced once if
//! the API refuses it.
//!
//! ```sh
//! cargo run --example service -- orders-api https://orders.example.com/v1/orders
//! ```
//!
//! In a pod it takes the service account's rights, which are to be those of the Role `watch` in docs/consuming.md.
#![allow(clippy::print_stdout, reason = "an example speaks to who started it")]

use std::time::Duration;

use tokencache::client::{BearerLayer, BoxError, Client, Handle};
use tower::{Layer as _, Service as _};

/// Calls the API so many times, a second apart, and gives the statuses.
pub async fn serve(handle: Handle, url: reqwest::Url, calls: usize) -> Result<Vec<u16>, BoxError> {
    // Without this the first call waits as long; it is what a readiness probe would tell.
    let value = handle.ready().await;
    println!("{} is valid until {}", handle.name(), value.expires_at());

    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
    let mut api = BearerLayer::new(handle).layer(http);
    let mut statuses = Vec::new();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..calls {
        second.tick().await;
        let response = api.call(reqwest::Request::new(reqwest::Method::GET, url.clone())).await?;
        println!("{}", response.status());
        statuses.push(response.status().as_u16());
    }
    Ok(statuses)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(url)) = (arguments.next(), arguments.next()) else {
        return Err("usage: service NAME URL".into());
    };
    let config = kube::Config::infer().await?;
    let namespace = config.default_namespace.clone();
    let handle = Client::connect(config, namespace)?.watch(&name);
    serve(handle, url.parse()?, usize::MAX).await?;
    Ok(())
}
