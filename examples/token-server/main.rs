//! A token server for trying tokencache out: an OAuth 2.0 token endpoint, a resource that wants its tokens, and
//! switches that make it fail and come back.
//!
//! ```text
//! cargo run --example token-server -- --client-secret-file secret.txt --lifetime 30s
//! POST /token               client credentials, Basic or Post: a signed token
//! POST /login               {"user": …, "password": …} of that client: {"session": {"token": …, "lifetime": seconds}}
//! GET  /api/whoami          200 with the subject and the seconds left, if the bearer token is valid; else 401
//! GET  /stats               requests and issued tokens per path
//! POST /admin/fail?mode=M   fail from now on: unavailable, ratelimit, reject, hang, close, garbage, huge, redirect
//! POST /admin/heal          work again
//! ```
//!
//! It is for trying out only: whoever reaches it may switch it, and it forgets its key when it ends.

use std::{io::Write as _, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;
use server::{Options, TokenServer};

#[allow(dead_code, reason = "the tests use what the program does not")]
mod server;

/// An OAuth 2.0 token endpoint for trying tokencache out.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The one client that is known.
    #[arg(long, default_value = "demo")]
    client_id: String,
    /// File that holds the client's secret; a line break at its end does not count.
    #[arg(long)]
    client_secret_file: PathBuf,
    /// Lifetime of a token.
    #[arg(long, default_value = "30s")]
    lifetime: tokencache::api::Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let file = &arguments.client_secret_file;
    let client_secret = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let server = TokenServer::start(Options {
        listen: arguments.listen,
        tls: false,
        client_id: arguments.client_id,
        client_secret: client_secret.trim_end_matches(['\r', '\n']).to_owned(),
        lifetime: arguments.lifetime.as_std(),
    })
    .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    writeln!(std::io::stdout(), "listening on {}", server.base())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
