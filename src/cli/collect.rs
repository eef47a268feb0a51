//! `tokencache collect`: runs in the pod of a job's run, and hands the result over. It needs no permission there.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use zeroize::Zeroizing;

use crate::{
    api::reason::Reason,
    fetch::{
        Failure,
        job::{MAX_RESULT, SEALED, SealError, failed, read_result, seal},
    },
};

/// What the controller tells the collector in the pod's spec; none of it is secret.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Only make the file for the result, so that whoever runs next may write it, whatever its user and umask
    #[arg(long)]
    prepare: bool,
    /// The result
    #[arg(long, value_name = "FILE")]
    result: PathBuf,
    /// The run's public key
    #[arg(long, default_value = "")]
    key: String,
    /// Most bytes of the message
    #[arg(long, default_value_t = 4096)]
    limit: usize,
    /// Where the kubelet reads the message
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    message: PathBuf,
}

/// Seals the result into the termination message, or says there what is wrong with it.
pub(super) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    if flags.prepare {
        File::create(&flags.result)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o666)))
            .with_context(|| format!("{} cannot be made", flags.result.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (message, code) = match collect(flags) {
        Ok(sealed) => (format!("{SEALED}{sealed}"), ExitCode::SUCCESS),
        Err(failure) => (failed(&failure), ExitCode::FAILURE),
    };
    // The kubelet made the file, and watches that very one: it is written to, not replaced.
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(true)
        .open(&flags.message)
        .and_then(|mut file| file.write_all(message.as_bytes()))
        .with_context(|| format!("{} cannot be written", flags.message.display()))?;
    Ok(code)
}

fn collect(flags: &Flags) -> Result<String, Failure> {
    let result = read(&flags.result)?;
    // Checked here already, so that the pod of a bad result fails and stays for a look.
    read_result(&result)?;
    seal(&result, &flags.key, flags.limit.saturating_sub(SEALED.len())).map_err(|error| {
        let reason = match error {
            SealError::TooLarge { .. } => Reason::ResponseTooLarge,
            SealError::Unusable(_) => Reason::JobFailed,
        };
        Failure::new(reason, error.to_string())
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unreadable = |error: std::io::Error| match error.kind() {
        // As one that nobody wrote to.
        ErrorKind::NotFound => Ok(Zeroizing::default()),
        ErrorKind::PermissionDenied => Err(Failure::new(
            Reason::InvalidResponse,
            "the result ($TOKENCACHE_RESULT) was replaced by a file that others may not read: write to the file that is \
             there, or set runAsUser for the whole pod",
        )),
        kind => Err(Failure::new(Reason::JobFailed, format!("the result ($TOKENCACHE_RESULT) cannot be read: {kind}"))),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return unreadable(error),
    };
    // Room from the start: a buffer that grows would leave copies behind.
    let mut result = Zeroizing::new(Vec::with_capacity(MAX_RESULT + 1));
    if let Err(error) = file.take(MAX_RESULT as u64 + 1).read_to_end(&mut result) {
        return unreadable(error);
    }
    if result.len() > MAX_RESULT {
        let message = format!("the result ($TOKENCACHE_RESULT) is longer than {MAX_RESULT} bytes");
        return Err(Failure::new(Reason::ResponseTooLarge, message));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::job::KeyPair;

    /// Prepares a folder, lets the container do its work, and collects: what the message says.
    fn collected(work: impl FnOnce(&Path), key: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let flags = |prepare| Flags {
            prepare,
            result: folder.path().join("result.json"),
            key: key.to_owned(),
            limit: 4096,
            message: folder.path().join("message"),
        };
        run(&flags(true)).unwrap();
        work(&flags(false).result);
        run(&flags(false)).unwrap();
        fs::read_to_string(flags(false).message).unwrap()
    }

    #[test]
    fn the_message_holds_the_result_for_the_keys_owner_alone() {
        let key = KeyPair::generate().unwrap();
        let result = r#"{"token": "hunter2", "expires_in": 60}"#;
        let message = collected(|path| fs::write(path, result).unwrap(), &key.public());
        assert!(!message.contains("hunter2"), "{message}");
        let opened = key.open(message.strip_prefix(SEALED).unwrap()).unwrap();
        assert_eq!(opened.as_slice(), result.as_bytes());
    }

    #[test]
    fn whatever_is_wrong_is_in_the_message_by_its_reason() {
        let key = KeyPair::generate().unwrap().public();
        let noise: String = (0..5000).map(|_| char::from(b'!' + rand::random::<u8>() % 90)).collect();
        let large = serde_json::json!({"token": noise}).to_string();
        for (result, expected) in [
            ("", "failed:InvalidResponse:the result ($TOKENCACHE_RESULT) is missing"),
            ("{", "failed:InvalidResponse:the result ($TOKENCACHE_RESULT) is not valid JSON"),
            (&large, "failed:ResponseTooLarge:the result has "),
            (&" ".repeat(MAX_RESULT + 1), "failed:ResponseTooLarge:the result ($TOKENCACHE_RESULT) is longer"),
        ] {
            let message = collected(|path| fs::write(path, result).unwrap(), &key);
            assert!(message.starts_with(expected) && message.len() < 512, "{message}");
        }
        let message = collected(|path| fs::remove_file(path).unwrap(), &key);
        assert!(message.contains("is missing"), "{message}");
        let message = collected(|path| fs::write(path, r#"{"token": "x"}"#).unwrap(), "no key");
        assert!(message.starts_with("failed:JobFailed:"), "{message}");
    }

    #[test]
    fn everybody_may_write_the_file_that_was_prepared() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        collected(|path| assert_eq!(mode(path), 0o666), "");
    }
}
