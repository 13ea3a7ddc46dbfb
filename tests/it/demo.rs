//! The demo from the outside.

use crate::catelier::Studio;

#[test]
fn a_demo_ends_in_one_page_and_replaces_no_file_that_it_did_not_make() {
    let studio = Studio::new();
    let line = "demo --artist wash --artist neon --steps 1 --prompts 1 --sampling-steps 3 --out shown";
    let ran = studio.done(line);
    assert!(ran.stderr.contains("report: shown/report.html"), "{}", ran.stderr);
    for adapter in ["wash/cat", "wash/lora", "neon/cat", "neon/lora"] {
        assert!(studio.path("shown").join(adapter).join("adapter.safetensors").exists(), "{adapter}");
    }
    let page = std::fs::read_to_string(studio.path("shown/report.html")).unwrap();
    for artist in ["Wash", "Neon"] {
        assert!(page.contains(&format!("<h2>{artist}</h2>")), "{artist}");
    }
    let encoded = ran.stderr.lines().filter(|line| line.starts_with("encoding 10/10")).count();
    assert_eq!(encoded, 2, "both trainings of an artist learn from images that were encoded once:\n{}", ran.stderr);
    studio.write("shown/neon/images/mine.png", b"precious");
    let ran = studio.run(line);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.message().contains("`shown/neon/images/mine.png` is in the way"), "{}", ran.message());
    assert!(studio.path("shown/neon/images/0001.png").exists() && studio.path("shown/neon/images/mine.png").exists());
}

#[test]
fn an_artist_is_named_once() {
    let studio = Studio::new();
    let ran = studio.run("demo --artist neon --artist neon --out shown");
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.message(), "error: the artist `neon` is named twice\nhint: name each artist once");
    assert!(!studio.path("shown").exists());
}
