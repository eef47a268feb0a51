//! helm, kubectl and the scripts, as people call them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The chart.
pub fn chart() -> String {
    repository("charts/tokencache").to_string_lossy().into_owned()
}

/// Runs a program to its end.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| {
        panic!("{program}: {error}; `hack/cluster.sh run -- cargo test --test chart` brings kubectl and helm along")
    })
}

/// Runs a program, and gives what it printed.
pub fn must(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {}:\n{}{}",
        arguments.join(" "),
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A script of `hack/`.
pub fn hack(script: &str, arguments: &[&str]) -> String {
    must(&repository("hack").join(script).to_string_lossy(), arguments)
}
