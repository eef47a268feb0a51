//! `tokencache fetch`

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use super::{
    Cluster,
    consumer::{Consumer, Namespace, misused},
    direct, runner,
    signals::Signals,
    waiting,
};
use crate::{api, client::Value, text::is_unseen};

/// Exit codes that scripts can rely on.
pub(super) const EXIT_CODES: &str = "Exit codes:\n  0 value printed; 1 the fetch failed (reason on stderr); 2 wrong usage; 3 no such TokenCache;\n  4 timeout";

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Name of the TokenCache
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Output format
    #[arg(long, short, default_value = "value")]
    output: Output,
    /// Key of the Secret. Default with -o value: token, or the only key; with -o json and -o env: all
    #[arg(long)]
    key: Option<String>,
    /// With -o env: prefix of the variable names. With an empty prefix, anyone who can edit the TokenCache can set any
    /// variable, such as PATH
    #[arg(long, value_name = "TEXT", default_value = "TOKENCACHE_", value_parser = prefix)]
    prefix: String,
    /// Request a new value if the cached one expires within this time
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    min_remaining: api::Duration,
    /// Maximum time to wait
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: api::Duration,
    /// Run the fetch in this process, under the same Lease as the controller. For clusters without a controller; needs the
    /// controller's permissions
    #[arg(long)]
    pub(super) direct: bool,
    #[command(flatten, next_help_heading = "With --direct")]
    runner: runner::Flags,
}

/// Output format.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// The bytes of one key
    Value,
    /// {"data": {…}, "expiresAt": …, "fetchedAt": …}
    Json,
    /// TOKENCACHE_KEY='…', one line for each key, for the shell's eval
    Env,
}

pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let timeout = flags.timeout.as_std();
    let signals = flags.direct.then(Signals::handle).transpose()?;
    let consumer = Consumer::new(cluster, flags.namespace, timeout).await?;
    let remaining = flags.min_remaining.as_std();
    let what = format!("waiting for a value of {}", flags.name);
    let fetch = waiting::shown(&what, timeout, consumer.client.fetch_with_remaining(&flags.name, remaining));
    let fetched = match signals {
        Some(signals) => direct::beside(&consumer, &flags.name, flags.runner, signals, fetch).await?,
        None => fetch.await,
    };
    let value = match fetched {
        Ok(value) => value,
        Err(error) => return Ok(consumer.fail(&error).await),
    };
    let key = flags.key.as_deref();
    let text = match flags.output {
        Output::Value => match value.select(key) {
            Ok(bytes) => Zeroizing::new(bytes.expose().to_vec()),
            Err(error) => return Ok(consumer.fail(&error).await),
        },
        Output::Json => match value.to_json(key) {
            Ok(text) => text,
            Err(error) => return Ok(consumer.fail(&error).await),
        },
        Output::Env => {
            if let Some(error) = key.and_then(|key| value.select(Some(key)).err()) {
                return Ok(consumer.fail(&error).await);
            }
            match env(&value, key, &flags.prefix) {
                Ok(text) => text,
                Err(message) => return Ok(misused(&message)),
            }
        }
    };
    let mut out = std::io::stdout().lock();
    if out.is_terminal() && !is_for_terminals(&text) {
        return Ok(misused("the value has characters on which a terminal acts: send the output to a file or a pipe"));
    }
    out.write_all(&text)?;
    // A file or a pipe gets the bytes as they are, a person a line.
    if out.is_terminal() && !text.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a terminal shows this as it is, and does nothing else.
fn is_for_terminals(text: &[u8]) -> bool {
    let acts = |c: char| !matches!(c, '\n' | '\r' | '\t') && is_unseen(c);
    std::str::from_utf8(text).is_ok_and(|text| !text.contains(acts))
}

/// Reads the flag `--prefix`.
fn prefix(text: &str) -> Result<String, String> {
    let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !fits || text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("use letters, digits and _, and no digit first".to_owned());
    }
    Ok(text.to_owned())
}

type Text = Zeroizing<Vec<u8>>;

/// The entries that are asked for, as text.
fn entries<'a>(value: &'a Value, key: Option<&'a str>) -> impl Iterator<Item = Result<(&'a str, &'a str), String>> {
    value.entries().filter(move |(name, _)| key.is_none_or(|key| key == *name)).map(|(name, bytes)| {
        let text = std::str::from_utf8(bytes.expose());
        let text =
            text.map_err(|_| format!("the value of key {name} is not text; print it with -o value --key {name}"))?;
        Ok((name, text))
    })
}

fn env(value: &Value, key: Option<&str>, prefix: &str) -> Result<Text, String> {
    let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
    let mut names = std::collections::BTreeSet::new();
    for entry in entries(value, key) {
        let (key, value) = entry?;
        let name = variable(prefix, key);
        if value.contains('\0') {
            return Err(format!("the value of key {key} contains a zero byte, which a variable cannot hold"));
        }
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"='");
        text.extend_from_slice(Zeroizing::new(value.replace('\'', "'\\''")).as_bytes());
        text.extend_from_slice(b"'\n");
        if !names.insert(name.clone()) {
            return Err(format!("two keys of the Secret map to the variable {name}; select one with --key"));
        }
    }
    Ok(text)
}

/// The name of a variable for a key: the prefix, then capitals, digits and `_`; no digit first.
fn variable(prefix: &str, key: &str) -> String {
    let name = key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    let digit = prefix.is_empty() && key.starts_with(|c: char| c.is_ascii_digit());
    prefix.chars().chain(digit.then_some('_')).chain(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_names_of_variables() {
        for (prefix, key, name) in [
            ("", "token", "TOKEN"),
            ("", "tls.crt", "TLS_CRT"),
            ("", "9-lives", "_9_LIVES"),
            ("", ".netrc", "_NETRC"),
            ("TOKENCACHE_", "PATH", "TOKENCACHE_PATH"),
            ("Api", "9-lives", "Api9_LIVES"),
        ] {
            assert_eq!(variable(prefix, key), name);
        }
    }

    #[test]
    fn a_prefix_is_the_beginning_of_a_variables_name() {
        for (text, fits) in [("", true), ("API_", true), ("a9", true), ("9a", false), ("a b", false), ("a;b", false)] {
            assert_eq!(prefix(text).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_shown_there() {
        for (text, shown) in [
            (&b"eyJhbGciOi.x-_"[..], true),
            ("-----BEGIN KEY-----\r\n\té\n".as_bytes(), true),
            (b"\x1b[2J", false),
            ("\u{9b}2J".as_bytes(), false),
            (b"\xff\xfe", false),
        ] {
            assert_eq!(is_for_terminals(text), shown, "{text:?}");
        }
    }
}
