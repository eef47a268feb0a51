//! Where the agent may be asked: on this machine or in this pod, and nowhere else.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder, Permissions},
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tokio::net::{TcpListener, UnixListener};

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of a loopback address.
    Loopback(SocketAddr),
    /// A Unix socket.
    Socket(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() && path.file_name().is_some() {
                Ok(Self::Socket(path))
            } else {
                Err(format!("{text:?} names no socket: write unix:/PATH"))
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(address) => {
                Err(format!("{} could be reached by others: only loopback addresses are served", address.ip()))
            }
            Err(_) => Err(format!("{text:?} is no address: write 127.0.0.1:PORT, [::1]:PORT or unix:/PATH")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may use a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode @ (0o600 | 0o660)) => Ok(Self(mode)),
            _ => Err(format!("{text:?} is no mode for the socket: write 0600, or 0660 for the group")),
        }
    }
}

/// What is listened on. A socket's file is removed when this is dropped.
#[derive(Debug)]
pub enum Bound {
    /// A port.
    Loopback(TcpListener),
    /// A Unix socket.
    Socket(UnixListener, Remove),
}

/// Removes a file when it is dropped.
#[derive(Debug)]
pub struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // It may be gone with its volume.
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds an address. A socket is there only when it has its mode: it is bound in a folder that nobody else may enter.
///
/// # Errors
/// When it cannot be bound.
pub async fn bind(address: &Address, mode: SocketMode) -> io::Result<Bound> {
    match address {
        Address::Loopback(address) => TcpListener::bind(address).await.map(Bound::Loopback),
        Address::Socket(path) => {
            clear(path)?;
            let mut name = OsString::from("..");
            name.push(path.file_name().unwrap_or_default());
            let closed = path.with_file_name(name);
            // A crash may have left it.
            let _ = fs::remove_dir_all(&closed);
            DirBuilder::new().mode(0o700).create(&closed)?;
            let bound = bind_in(&closed, path, mode);
            let _ = fs::remove_dir_all(&closed);
            bound.map(|listener| Bound::Socket(listener, Remove(path.clone())))
        }
    }
}

fn bind_in(closed: &Path, path: &Path, mode: SocketMode) -> io::Result<UnixListener> {
    let inside = closed.join("s");
    let listener = UnixListener::bind(&inside)?;
    fs::set_permissions(&inside, Permissions::from_mode(mode.0))?;
    fs::rename(&inside, path)?;
    Ok(listener)
}

/// Removes a socket that nobody listens on any more: one that was killed leaves it behind.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(is) if !is.file_type().is_socket() => Err(io::Error::other("something else than a socket is there")),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("another process listens there")),
        },
    }
}

/// Asks an agent: the status and text of its answer.
///
/// # Errors
/// When nobody answers there within ten seconds.
pub async fn ask(address: &Address, path: &str) -> reqwest::Result<(http::StatusCode, String)> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    let (client, host) = match address {
        Address::Loopback(address) => (client, address.to_string()),
        Address::Socket(socket) => (client.unix_socket(socket.as_path()), "localhost".to_owned()),
    };
    let response = client.build()?.get(format!("http://{host}{path}")).send().await?;
    Ok((response.status(), response.text().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_addresses() {
        for good in ["127.0.0.1:0", "127.8.8.8:8200", "[::1]:8200", "unix:/run/tokencache/agent.sock"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for (wrong, expected) in [
            ("0.0.0.0:8200", "reached by others"),
            ("10.1.2.3:8200", "reached by others"),
            ("[::]:8200", "reached by others"),
            ("[::ffff:10.1.2.3]:8200", "reached by others"),
            ("localhost:8200", "127.0.0.1:PORT"),
            ("8200", "127.0.0.1:PORT"),
            ("unix:agent.sock", "unix:/PATH"),
            ("unix:", "unix:/PATH"),
            ("unix:/", "unix:/PATH"),
        ] {
            let error = wrong.parse::<Address>().unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_socket_is_never_open_to_all() {
        for (text, good) in [("0600", true), ("660", true), ("0666", false), ("0777", false), ("0400", false)] {
            assert_eq!(text.parse::<SocketMode>().is_ok(), good, "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_taken_over_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let (address, mode) = (Address::Socket(path.clone()), "0660".parse().unwrap());
        // Dropped without being removed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&address, mode).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = bind(&address, mode).await.unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        assert!(bind(&address, mode).await.unwrap_err().to_string().contains("something else"));
    }
}
