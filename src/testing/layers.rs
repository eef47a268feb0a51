//! Modules import downwards only. `docs/design` describes the layers.
#![allow(clippy::expect_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

use regex::Regex;

/// Each module may import those of lower levels, and none of its own level.
const LEVELS: [&[&str]; 7] = [
    &["text", "time"],
    &["api"],
    &["k8s"],
    &["client", "fetch", "lock", "telemetry"],
    &["reconcile"],
    &["agent", "controller"],
    &["cli"],
];

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|modules| modules.contains(&module))
}

/// The modules that code of the crate names, without its tests.
fn imports(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let group = Regex::new(r"use crate::\{([^;]*)\};").expect("a pattern");
    let token = Regex::new(r"[A-Za-z_0-9]+|\S").expect("a pattern");
    let single = Regex::new(r"crate::([a-z_0-9]+)").expect("a pattern");
    let mut found: BTreeSet<_> = single.captures_iter(&code).map(|found| found[1].to_owned()).collect();
    for group in group.captures_iter(&code) {
        let mut depth = 0_u32;
        let mut first = true;
        for token in token.find_iter(&group[1]) {
            match token.as_str() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                "," => first = depth == 0,
                name if first && depth == 0 => {
                    found.insert(name.to_owned());
                    first = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// The imports of a file that lead upwards or sideways.
fn upward(module: &str, code: &str) -> Vec<String> {
    let own = level(module);
    let wrong = |name: &String| name != module && level(name).is_some_and(|level| own.is_none_or(|own| level >= own));
    imports(code).into_iter().filter(wrong).collect()
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn modules_import_downwards_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    let mut seen = BTreeSet::new();
    for path in all {
        let name = path.strip_prefix(&source).expect("a file of the crate").to_string_lossy().into_owned();
        let module = name.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        if name.contains("tests") || ["lib", "main", "testing"].contains(&module.as_str()) {
            continue;
        }
        assert!(level(&module).is_some(), "{name}: its module has no level");
        let code = fs::read_to_string(&path).expect("a file");
        assert_eq!(upward(&module, &code), [""; 0], "{name} imports modules that are not below it");
        seen.insert(module);
    }
    assert_eq!(seen.len(), LEVELS.iter().map(|modules| modules.len()).sum::<usize>(), "{seen:?}");
}

#[test]
fn an_upward_import_is_found_in_each_form() {
    for code in [
        "use crate::reconcile::run;",
        "use crate::{api, reconcile::{run, plan}};",
        "use crate::{\n    api::{TokenCache, names},\n    reconcile,\n};",
        "fn a() { crate::reconcile::run() }",
    ] {
        assert_eq!(upward("fetch", code), ["reconcile"], "{code}");
        assert_eq!(upward("controller", code), [""; 0], "{code}");
    }
    assert_eq!(
        upward("fetch", "use crate::{api::{lock}, k8s};\n// crate::cli\n#[cfg(test)]\nmod tests { use crate::cli; }"),
        [""; 0]
    );
    assert_eq!(upward("fetch", "use crate::lock::Locks;"), ["lock"], "the same level");
}
