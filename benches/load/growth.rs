//! How memory and the start grow with the number of TokenCaches.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    floor::valid_for,
    plot::{Curve, svg},
    process::{cpu, memory, ready},
    seed::seed,
    support::pass,
    table::Table,
    world::World,
};

/// A deviation from a straight line that a machine's noise explains.
const LINEAR: f64 = 1.25;

/// What each number of TokenCaches takes.
struct Size {
    count: f64,
    memory: f64,
    start: f64,
    cpu: f64,
}

/// Seeds more and more, and starts a controller on each number.
pub async fn measure(world: &World, table: &mut Table) {
    let ns = world.namespace().await;
    let (mut sizes, mut there) = (Vec::<Size>::new(), 0);
    for &count in &world.settings.growth {
        seed(world, &ns, there..count, json!({}), |_| valid_for(24 * 3600)).await;
        there = count;
        let fetches = world.fetches();
        let begun = Instant::now();
        let controller = world.controller(&ns).await;
        let start = ready(&controller, begun).await.as_secs_f64();
        pass(Duration::from_secs(10)).await;
        let size = Size { count: count as f64, memory: memory(&controller), start, cpu: cpu(controller.pid()) };
        table.note(
            &format!("{count} idle TokenCaches"),
            format!("{:.0} MiB, Ready after {start:.1} s and {:.1} s of CPU time", size.memory, size.cpu),
        );
        assert_eq!(world.fetches(), fetches, "valid values were fetched anew");
        sizes.push(size);
        controller.terminate().await;
    }
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { return };
    if there == 100_000 {
        let measured = format!("{:.0} MiB", last.memory);
        table.row("memory, 100000 idle TokenCaches", "under 450 MiB", measured, String::new(), last.memory < 450.0);
    }
    // Two sizes make no curve that could bend.
    if sizes.len() > 2 {
        // What each further TokenCache takes, in the upper part of the curve and in the lower.
        let middle = &sizes[sizes.len() / 2];
        let bend = |value: fn(&Size) -> f64| {
            let slope = |from: &Size, to: &Size| (value(to) - value(from)) / (to.count - from.count);
            slope(middle, last) / slope(first, middle)
        };
        let (memory, start, cpu) = (bend(|s| s.memory), bend(|s| s.start), bend(|s| s.cpu));
        let measured = format!(
            "beyond {}, each further one takes {memory:.2} times the memory, {start:.2} times the time and {cpu:.2} times \
             the CPU time of each one before",
            middle.count
        );
        let met = [memory, start, cpu].into_iter().all(|bend| bend <= LINEAR);
        table.row("growth", "linear", measured, String::new(), met);
    }

    let curve = |title: &str, unit: &str, value: fn(&Size) -> f64| Curve {
        title: title.to_owned(),
        unit: unit.to_owned(),
        points: sizes.iter().map(|size| (size.count, value(size))).collect(),
    };
    let curves = [
        curve("Memory", "MiB", |size| size.memory),
        curve("Start until ready", "s", |size| size.start),
        curve("CPU time of the start", "s", |size| size.cpu),
    ];
    let path = std::env::var("PLOT").unwrap_or_else(|_| "target/growth.svg".into());
    std::fs::write(&path, svg(&curves)).unwrap_or_else(|error| panic!("{path}: {error}"));
    eprintln!("bench: the curve is in {path}");
}
