//! Scores from the outside.

use crate::catelier::Studio;
use crate::train::{EMBEDDED, studio};

/// A studio with an adapter of one step, and two other artists.
fn trained() -> Studio {
    let studio = studio();
    studio.done(&format!("{EMBEDDED} --out run"));
    for artist in ["neon", "wash"] {
        studio.done(&format!("gallery draw --artist {artist} --count 3 --out others/{artist}"));
    }
    studio.write("prompts.txt", "a red house in a field\na boat\n");
    studio
}

const EVALUATE: &str =
    "evaluate --adapter run/adapter.safetensors --references art --prompts prompts.txt --seeds 1 --steps 8";

#[test]
fn style_content_and_preservation_stand_between_their_floors_and_ceilings() {
    let studio = trained();
    let ran = studio.done(&format!("{EVALUATE} --others others --out scores --json"));
    let scores: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let number = |score: &str, field: &str| scores[score][field].as_f64().unwrap();
    for score in ["style", "content", "preservation"] {
        assert!((0.0..=1.0).contains(&number(score, "mean")), "{score}: {}", scores[score]);
        assert!(number(score, "floor") < number(score, "ceiling"), "{score}: {}", scores[score]);
    }
    assert_eq!(number("preservation", "ceiling"), 1.0);
    assert_eq!(scores["preservation"]["raw"], scores["kps_no_token"]);
    assert_eq!(scores["preservation"]["floor"], scores["base_pair_similarity"]["mean"]);
    assert_eq!(scores["style_extractor"]["name"], "embedded style tower");
    let facets: Vec<_> = scores["facets"].as_array().unwrap().iter().map(|facet| facet["name"].clone()).collect();
    assert_eq!(facets, ["object", "colour", "setting"]);
    assert_eq!(scores["artist_found"]["n"], 2);
    assert!(["neon", "wash"].contains(&scores["nearest_other"]["name"].as_str().unwrap()));
    let page = std::fs::read_to_string(studio.path("scores/report.html")).unwrap();
    assert!(page.contains("Is it what was asked for?") && page.contains("every other artist given"));
}

#[test]
fn other_artists_and_style_models_are_checked_before_the_work() {
    let studio = trained();
    let refused = |flags: &str| {
        let ran = studio.run(&format!("{EVALUATE} {flags} --out scores"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(!ran.stderr.contains("without trigger"), "{}", ran.stderr);
        ran.message()
    };
    assert_eq!(
        refused("--others art"),
        "error: there is no folder in `art`\nhint: put the images of each artist into a folder with the artist's name"
    );
    assert!(refused("--others nowhere").starts_with("error: cannot read the folder `nowhere`"));
    assert!(refused("--style-model art").starts_with("error: cannot load the style model"));
}
