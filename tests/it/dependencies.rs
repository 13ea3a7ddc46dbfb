//! What the binary is built from: `deny.toml` holds for every crate, checked without a tool to install.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::metadata::metadata;

/// The registry that every crate comes from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every crate of this machine's build that is not ours.
fn crates() -> Vec<Value> {
    let mut metadata = metadata(&["--locked", "--filter-platform", &host()]);
    let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages: {metadata}") };
    packages.into_iter().filter(|package| !package["source"].is_null()).collect()
}

fn host() -> String {
    let output = Command::new("rustc").args(["--print", "host-tuple"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn name(package: &Value) -> String {
    format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap())
}

fn rules() -> toml::Table {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    text.parse().unwrap()
}

#[test]
fn every_crate_has_a_licence_that_is_allowed() {
    let rules = rules();
    let allowed: BTreeSet<&str> =
        rules["licenses"]["allow"].as_array().unwrap().iter().map(|licence| licence.as_str().unwrap()).collect();
    let is_allowed = |package: &Value| {
        let licence = package["license"].as_str().unwrap_or_default();
        let expression = Expression::parse_mode(licence, ParseMode::LAX);
        expression.is_ok_and(|expression| expression.evaluate(|part| allowed.contains(part.to_string().as_str())))
    };
    let refused: Vec<String> = crates()
        .iter()
        .filter(|package| !is_allowed(package))
        .map(|package| format!("{}: {}", name(package), package["license"]))
        .collect();
    assert!(refused.is_empty(), "deny.toml does not allow these licences:\n{}", refused.join("\n"));
}

#[test]
fn every_crate_comes_from_the_registry_and_none_is_banned() {
    let rules = rules();
    let banned = rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap());
    let banned: BTreeSet<&str> = banned.collect();
    let mut versions_of_rustls = BTreeSet::new();
    for package in crates() {
        assert_eq!(package["source"], REGISTRY, "{}", name(&package));
        let own = package["name"].as_str().unwrap();
        assert!(!banned.contains(own), "`{own}` is banned: connections are encrypted by rustls alone");
        if own == "rustls" {
            versions_of_rustls.insert(name(&package));
        }
    }
    assert_eq!(versions_of_rustls.len(), 1, "one rustls encrypts all connections: {versions_of_rustls:?}");
}

#[test]
fn our_manifests_name_versions() {
    let metadata = metadata(&["--no-deps"]);
    let mut wild = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["req"] == "*" && dependency["path"].is_null() {
                wild.insert(name(package), dependency["name"].to_string());
            }
        }
    }
    assert!(wild.is_empty(), "these take any version: {wild:?}");
}
