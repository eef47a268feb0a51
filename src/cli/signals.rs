//! SIGTERM and SIGINT, by which a command is ended.

use std::{future, io, process::ExitCode, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

/// Once this exists, the process is no longer ended by these signals, but by the code that waits for them. Created
/// before anything else: process 1 of a container receives only signals that it handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// A signal that ends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// SIGTERM.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

impl Ending {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }

    /// The exit code of a shell whose command was ended by the signal.
    fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Terminate => 128 + 15,
            Self::Interrupt => 128 + 2,
        })
    }
}

/// Signals this close together are one: `timeout` of coreutils sends it to its child and then to the process group.
const SAME: Duration = Duration::from_millis(500);

impl Signals {
    pub(super) fn handle() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.interrupt.recv() => Ending::Interrupt,
        }
    }

    /// Waits for another one after the first.
    pub(super) async fn again(&mut self) -> Ending {
        let same = sleep(SAME);
        tokio::pin!(same);
        loop {
            tokio::select! {
                biased;
                _ = self.next() => {}
                () = &mut same => return self.next().await,
            }
        }
    }
}

/// Ends a command that has nothing to finish, with the exit code of a shell. Other processes are ended by the signal
/// itself; process 1 of a container would ignore it.
pub(super) async fn end_first_process() -> io::Result<ExitCode> {
    if std::process::id() != 1 {
        return future::pending().await;
    }
    Ok(Signals::handle()?.next().await.code())
}
