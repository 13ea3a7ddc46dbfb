//! The demo from the outside.

use std::fs;

use crate::catelier::Studio;

#[test]
fn a_demo_ends_in_one_page_and_replaces_nothing_but_an_earlier_demo() {
    let studio = Studio::new();
    let line = "demo --steps 2 --prompts 1 --out shown";
    let ran = studio.done(line);
    assert!(ran.stderr.contains("report: shown/report.html"), "{}", ran.stderr);
    let encoded = ran.stderr.lines().filter(|line| line.starts_with("encoding 10/10")).count();
    assert_eq!(encoded, 1, "both trainings learn from images that were encoded once:\n{}", ran.stderr);
    let adapter = || fs::read(studio.path("shown/cat/adapter.safetensors")).unwrap();
    let first = adapter();
    studio.done(line);
    assert!(adapter() == first);

    studio.write("shown/images/mine.png", b"precious");
    let ran = studio.run(line);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.message().contains("`shown/images/mine.png` is in the way"), "{}", ran.message());
    assert!(studio.path("shown/images/0001.png").exists() && studio.path("shown/images/mine.png").exists());
}
