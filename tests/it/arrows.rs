//! The rooms depend on each other in one direction only, as the arrows in ARCHITECTURE.md show.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::metadata::metadata;

/// The rooms that each room may use; `catelier` is the command.
const ALLOWED: [(&str, &[&str]); 18] = [
    ("adapters", &["numerics"]),
    ("bench", &["adapters", "numerics", "pipelines"]),
    ("catelier", &["bench", "numerics", "pipelines", "workflows"]),
    ("evaluation", &["features", "numerics", "pages", "prompts"]),
    ("features", &["numerics", "prompts"]),
    ("federation", &["adapters", "numerics"]),
    ("gallery", &["numerics"]),
    ("hostile", &["testkit", "workflows"]),
    ("kernels", &[]),
    ("numerics", &["kernels"]),
    ("pages", &[]),
    ("pipelines", &["adapters", "numerics", "prompts"]),
    ("prompts", &[]),
    ("rounds", &["adapters", "federation", "numerics"]),
    ("style", &["features", "federation", "numerics"]),
    ("testkit", &[]),
    (
        "workflows",
        &[
            "adapters",
            "evaluation",
            "features",
            "federation",
            "gallery",
            "numerics",
            "pages",
            "pipelines",
            "prompts",
            "rounds",
            "style",
        ],
    ),
    ("xtask", &[]),
];

#[test]
fn rooms_use_only_what_the_architecture_allows() {
    let found = arrows();
    let allowed = BTreeMap::from(
        ALLOWED.map(|(room, uses)| (room.to_string(), uses.iter().map(ToString::to_string).collect::<BTreeSet<_>>())),
    );
    assert_eq!(found.keys().collect::<Vec<_>>(), allowed.keys().collect::<Vec<_>>(), "the rooms themselves");
    for (room, uses) in &found {
        let extra: Vec<_> = uses.difference(&allowed[room]).collect();
        assert!(extra.is_empty(), "`{room}` must not use {extra:?}");
    }
}

#[test]
fn the_architecture_page_draws_the_same_arrows() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).unwrap();
    for (room, uses) in ALLOWED.iter().filter(|(_, uses)| !uses.is_empty()) {
        let room = if *room == "catelier" { "src" } else { room };
        let line = format!("{room:<11} -> {}", uses.join(", "));
        assert!(page.lines().any(|found| found == line), "ARCHITECTURE.md lacks `{line}`");
    }
}

/// Every workspace member with the members that it uses outside tests.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(|package| (short(&package["name"]), uses(package))).collect()
}

fn uses(package: &Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let ours = dependencies.filter(|dependency| !dependency["path"].is_null() && dependency["kind"].is_null());
    ours.map(|dependency| short(&dependency["name"])).collect()
}

fn short(name: &Value) -> String {
    let name = name.as_str().unwrap();
    name.strip_prefix("catelier-").unwrap_or(name).to_string()
}
