//! The `tokencache` binary: arguments, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = tokencache::cli::Cli::parse();
    match tokencache::cli::run(cli).await {
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
