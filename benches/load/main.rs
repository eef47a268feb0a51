//! What the controller costs, beside the same writes by bare calls. `make bench` starts it; `hack/bench.sh --help` tells
//! how to ask for less.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a benchmark makes each of its futures once")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its figures are what it prints")]
#![allow(dead_code, unused_imports, reason = "the scenarios need more of it")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod crowd;
mod floor;
mod growth;
mod neighbours;
mod plot;
mod process;
mod replicas;
mod rows;
mod seed;
mod table;
mod world;

use std::process::ExitCode;

use crate::{table::Table, world::World};

fn main() -> ExitCode {
    if std::env::var("TOKENCACHE_TEST_KUBECONFIG").is_err() {
        println!("skipped: TOKENCACHE_TEST_KUBECONFIG names no cluster; run it by make bench");
        return ExitCode::SUCCESS;
    }
    let mut table = Table::default();
    support::run(async {
        let world = World::new().await;
        for row in world.settings.rows.clone() {
            eprintln!("bench: {row}");
            match row.as_str() {
                "new" => rows::new(&world, &mut table).await,
                "refresh" => rows::refresh(&world, &mut table).await,
                "idle" => rows::idle(&world, &mut table).await,
                "lag" => rows::lag(&world, &mut table).await,
                "replicas" => replicas::measure(&world, &mut table).await,
                "growth" => growth::measure(&world, &mut table).await,
                "neighbours" => neighbours::measure(&world, &mut table).await,
                other => panic!("no such row: {other}; there are {}", world::ROWS.join(" ")),
            }
        }
    });
    println!("{}", table.markdown());
    if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
