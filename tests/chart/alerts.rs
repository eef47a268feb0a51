//! The alerts, checked and tried by Prometheus' own promtool.

use crate::tools::{must, repository};

fn path(file: &str) -> String {
    repository(file).to_string_lossy().into_owned()
}

/// Runs promtool, which hack/test.sh installs for root.
fn promtool(arguments: &[&str]) {
    if std::process::Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped, since there is no promtool: hack/prometheus.sh");
        return;
    }
    must("promtool", arguments);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_alerts() {
    promtool(&["check", "rules", "--lint-fatal", &path("charts/tokencache/files/alerts.yaml")]);
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    promtool(&["test", "rules", &path("tests/chart/alerts.yaml")]);
}
