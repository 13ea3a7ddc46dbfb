//! The demo from the outside.

use crate::catelier::Studio;

#[test]
fn a_demo_ends_in_one_page_and_replaces_no_file_that_it_did_not_make() {
    let studio = Studio::new();
    let line = "demo --steps 1 --prompts 1 --sampling-steps 3 --out shown";
    let ran = studio.done(line);
    assert!(ran.stderr.contains("report: shown/report.html"), "{}", ran.stderr);
    let encoded = ran.stderr.lines().filter(|line| line.starts_with("encoding 10/10")).count();
    assert_eq!(encoded, 1, "both trainings learn from images that were encoded once:\n{}", ran.stderr);
    studio.write("shown/images/mine.png", b"precious");
    let ran = studio.run(line);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.message().contains("`shown/images/mine.png` is in the way"), "{}", ran.message());
    assert!(studio.path("shown/images/0001.png").exists() && studio.path("shown/images/mine.png").exists());
}
