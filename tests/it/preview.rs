//! Images from the outside.

use std::fs;

use crate::catelier::Studio;
use crate::train::{SHORT, studio};

#[test]
fn the_same_seed_draws_the_same_bytes_and_the_png_says_how() {
    let studio = Studio::new();
    for out in ["one", "two"] {
        let mut command = studio.command(&format!("preview --steps 3 --seed 7 --count 2 --json --out {out}"));
        let output = command.args(["--prompt", "a red house in a field"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let seeds: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((seeds[0]["seed"].as_u64(), seeds[1]["seed"].as_u64()), (Some(7), Some(8)));
    }
    let read = |path: &str| fs::read(studio.path(path)).unwrap();
    assert!(read("one/000-seed7.png") == read("two/000-seed7.png"));
    assert!(read("one/000-seed7.png") != read("one/000-seed8.png"));
    let reader = png::Decoder::new(std::io::Cursor::new(read("one/000-seed7.png"))).read_info().unwrap();
    let text = &reader.info().uncompressed_latin1_text[0];
    assert_eq!(text.keyword, "parameters");
    assert!(
        text.text.starts_with("a red house in a field\nSteps: 3, Sampler: DDIM, CFG scale: 2, Seed: 7, Size: 64x64"),
        "{}",
        text.text
    );
}

#[test]
fn a_fresh_adapter_of_strength_zero_draws_what_the_base_draws() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let draw = |out: &str, flags: &str| {
        let mut command = studio.command(&format!("preview --base base --steps 3 {flags} --out {out}"));
        assert!(command.args(["--prompt", "a cat at night"]).output().unwrap().status.success());
        fs::read(studio.path(out).join("000-seed42.png")).map(|bytes| pixels(&bytes)).unwrap()
    };
    let base = draw("without", "");
    assert!(draw("zero", "--adapter run/adapter.safetensors:0") == base);
    assert!(draw("strong", "--adapter run/adapter.safetensors:40") != base);
}

#[test]
fn an_image_larger_than_a_tile_is_decoded_in_tiles_where_it_is_asked_for() {
    let studio = Studio::new();
    let draw = |out: &str, flags: &str| {
        let mut command = studio.command(&format!("preview --steps 1 {flags} --out {out}"));
        let output = command.args(["--prompt", "a red house in a field"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(studio.path(out).join("000-seed42.png")).map(|bytes| pixels(&bytes)).unwrap()
    };
    // A tile of the embedded base is 256 pixels wide.
    let whole = draw("large-off", "--size 320x64 --tile-vae off");
    assert!(draw("large-auto", "--size 320x64") == whole, "this machine has the memory for so small an image");
    assert!(draw("large-on", "--size 320x64 --tile-vae on") != whole);
    assert!(draw("small-on", "--tile-vae on") == draw("small-off", "--tile-vae off"));
}

#[test]
fn a_sheet_shows_base_and_adapter_without_and_with_the_trigger() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let mut command = studio.command(
        "preview --base base --steps 2 --compare --adapter run/adapter.safetensors --references art --out sheets",
    );
    let output = command.args(["--prompt", "a blue boat on the sea"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sheet = fs::read(studio.path("sheets/compare-000.png")).unwrap();
    let info = png::Decoder::new(std::io::Cursor::new(sheet)).read_info().unwrap();
    assert!(info.info().width > 4 * 256, "four columns of enlarged images");
}

#[test]
fn a_size_and_a_sampler_are_checked_where_they_are_typed() {
    let studio = Studio::new();
    for (flag, expected) in [("--size 64", "write it as `512x512`"), ("--sampler k_lms", "`dpm++2m`")] {
        let ran = studio.run(&format!("preview --prompt house {flag} --out out"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}

fn pixels(png: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut bytes).unwrap();
    bytes
}
