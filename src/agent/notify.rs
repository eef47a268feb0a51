//! Who uses a value is told of another one: by a signal to a process, or by a command.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, kill_process},
};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

/// How they are told.
#[derive(Clone, Debug)]
pub enum Tell {
    /// By a signal to the process whose number a file holds. A number is never searched for by a name, which many
    /// processes may bear.
    Signal {
        /// Which one.
        signal: Signal,
        /// The file that the process has written its number to.
        pid_file: PathBuf,
    },
    /// By running a program, which finds the TokenCache's name in `TOKENCACHE_NAME`.
    Command {
        /// The program.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// After this time it is killed.
        limit: Duration,
    },
}

/// More bytes than a number takes, with white space around it.
const LONGEST_PID: u64 = 64;

/// Why nobody was told. Holds no output of a command, which could hold a value.
#[derive(Debug, thiserror::Error)]
pub enum Untold {
    /// The file with the number cannot be read.
    #[error("the pid file {}: {error}", path.display())]
    PidFile {
        /// Its path.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It holds no number that may be signalled.
    #[error("the pid file {} {what}", path.display())]
    NoPid {
        /// Its path.
        path: PathBuf,
        /// What it holds instead.
        what: &'static str,
    },
    /// The process is not there or may not be signalled.
    #[error("the process {pid} of the pid file {} {}", path.display(), refusal(*.error))]
    Process {
        /// The number.
        pid: i32,
        /// Where it stands.
        path: PathBuf,
        /// What the kernel said.
        error: Errno,
    },
    /// The program cannot be started.
    #[error("{program} cannot be started: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        error: std::io::Error,
    },
    /// It ended otherwise than by exit code 0.
    #[error("{program} ended with {status}")]
    Status {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It took too long, and was killed.
    #[error("{program} did not end within {limit:?} and was killed")]
    TooLong {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
    },
}

fn refusal(error: Errno) -> String {
    match error {
        Errno::SRCH => "does not exist: does the pod have shareProcessNamespace: true?".into(),
        Errno::PERM => "may not be signalled: the agent has to run as the same user".into(),
        other => format!("cannot be signalled: {other}"),
    }
}

impl Tell {
    /// Tells of another value.
    ///
    /// # Errors
    /// Where that failed, with what to do.
    pub async fn tell(&self, name: &str) -> Result<(), Untold> {
        match self {
            Self::Signal { signal, pid_file } => {
                let path = pid_file.clone();
                let text = read(&path).await;
                let text = text.map_err(|error| Untold::PidFile { path: path.clone(), error })?;
                let own = i32::try_from(std::process::id()).unwrap_or_default();
                let pid = process(&text, own).map_err(|what| Untold::NoPid { path: path.clone(), what })?;
                kill_process(pid, signal.0).map_err(|error| Untold::Process { pid: pid.as_raw_pid(), path, error })
            }
            Self::Command { program, arguments, limit } => run(name, program, arguments, *limit).await,
        }
    }

    /// Whether it is worth to tell again what could not be told. A process that is not there reads the new value when
    /// it starts.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        matches!(self, Self::Command { .. })
    }
}

/// Reads a pid file, and nothing else: a named pipe would be read for ever.
async fn read(path: &Path) -> io::Result<String> {
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    tokio::fs::File::open(path).await?.take(LONGEST_PID).read_to_string(&mut text).await?;
    Ok(text)
}

async fn run(name: &str, program: &str, arguments: &[String], limit: Duration) -> Result<(), Untold> {
    let mut command = Command::new(program);
    command.args(arguments).env("TOKENCACHE_NAME", name).stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn();
    let mut child = child.map_err(|error| Untold::Start { program: program.to_owned(), error })?;
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Untold::Status { program: program.to_owned(), status }),
        Ok(Err(error)) => Err(Untold::Start { program: program.to_owned(), error }),
        Err(_) => Err(Untold::TooLong { program: program.to_owned(), limit }),
    }
}

/// The process that a pid file names.
fn process(text: &str, own: i32) -> Result<Pid, &'static str> {
    let number: i32 = text.trim().parse().map_err(|_| "holds no number of a process")?;
    // In a namespace that is shared, 1 is the pod's sandbox; in one that is not, the first process of this container.
    if number == 1 || number == own {
        return Err("names the agent itself, or nobody's process: the pod needs shareProcessNamespace: true");
    }
    // Zero and below are groups of processes.
    Some(number).filter(|number| *number > 0).and_then(Pid::from_raw).ok_or("holds no number of a process")
}

/// A signal that programs reload at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(rustix::process::Signal);

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use rustix::process::Signal as Known;
        let upper = text.to_ascii_uppercase();
        Ok(Self(match upper.strip_prefix("SIG").unwrap_or(&upper) {
            "HUP" => Known::HUP,
            "INT" => Known::INT,
            "QUIT" => Known::QUIT,
            "TERM" => Known::TERM,
            "USR1" => Known::USR1,
            "USR2" => Known::USR2,
            "WINCH" => Known::WINCH,
            _ => return Err(format!("{text:?} is no signal to reload at: HUP, INT, QUIT, TERM, USR1, USR2 or WINCH")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_process_is_signalled() {
        for (text, expected) in [
            ("42\n", Ok(42)),
            (" 42 ", Ok(42)),
            ("1", Err("shareProcessNamespace")),
            ("7", Err("shareProcessNamespace")),
            ("0", Err("no number")),
            ("-42", Err("no number")),
            ("", Err("no number")),
            ("42 43", Err("no number")),
            ("99999999999", Err("no number")),
        ] {
            match (process(text, 7).map(Pid::as_raw_pid), expected) {
                (Ok(pid), Ok(expected)) => assert_eq!(pid, expected),
                (Err(what), Err(expected)) => assert!(what.contains(expected), "{text:?}: {what}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn signals_are_named_with_or_without_sig() {
        assert_eq!("SIGHUP".parse::<Signal>(), "hup".parse());
        assert!("KILL".parse::<Signal>().is_err() && "9".parse::<Signal>().is_err());
    }

    #[tokio::test]
    async fn a_command_is_told_the_name_and_what_went_wrong_is_said() {
        let command = |arguments: &[&str], limit: u64| Tell::Command {
            program: "sh".into(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            limit: Duration::from_millis(limit),
        };
        command(&["-c", "test \"$TOKENCACHE_NAME\" = a"], 60_000).tell("a").await.unwrap();
        let error = command(&["-c", "exit 3"], 60_000).tell("a").await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = command(&["-c", "exec sleep 600"], 10).tell("a").await.unwrap_err().to_string();
        assert!(error.contains("was killed"), "{error}");
        let nowhere = Tell::Command { program: "/nonexistent".into(), arguments: Vec::new(), limit: Duration::MAX };
        assert!(nowhere.tell("a").await.unwrap_err().to_string().contains("cannot be started"));
    }

    #[tokio::test]
    async fn a_pid_file_that_is_missing_or_of_a_process_that_is_gone_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let tell = Tell::Signal { signal: "HUP".parse().unwrap(), pid_file: pid_file.clone() };
        assert!(matches!(tell.tell("a").await, Err(Untold::PidFile { .. })));
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let of_pipe = Tell::Signal { signal: "HUP".parse().unwrap(), pid_file: pipe };
        let told = timeout(Duration::from_secs(60), of_pipe.tell("a")).await.expect("it does not wait for a writer");
        assert!(matches!(told, Err(Untold::PidFile { .. })), "{told:?}");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        std::fs::write(&pid_file, ended.id().to_string()).unwrap();
        let error = tell.tell("a").await.unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
    }
}
