//! The `tokencache` binary: arguments, run, exit code.

use std::{process::ExitCode, time::Duration};

/// It takes less time than the one of the C library, and gives memory back that is not needed any more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Threads that run tasks. These wait for the most time, and what may compute for long makes room for others: with more
/// threads, the time goes to waking one another.
const WORKERS: usize = 1;

fn main() -> ExitCode {
    let cli = tokencache::cli::Cli::read(std::env::args_os());
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| {
            let result = runtime.block_on(tokencache::cli::run(cli));
            // A look-up of a name that hangs must not keep the process from ending.
            runtime.shutdown_timeout(Duration::from_millis(500));
            result
        });
    match result {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place where the program speaks to who started it")]
            {
                eprintln!("tokencache: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
