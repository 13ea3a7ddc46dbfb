//! Finding an artist from the outside: index, search, commission, and the training of the style model.

use crate::catelier::{Ran, Studio};

/// Pictures by three artists in a folder of folders, and one more picture of each.
fn gallery() -> Studio {
    let studio = Studio::new();
    for artist in ["chalk", "neon", "poster"] {
        studio.done(&format!("gallery draw --artist {artist} --count 8 --seed 3 --out art/{artist}"));
        studio.done(&format!("gallery draw --artist {artist} --count 1 --seed 9 --out new/{artist}"));
    }
    studio
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_new_picture_finds_its_artist_and_a_stranger_finds_nobody() {
    let studio = gallery();
    let indexed = json(&studio.done("style index art --out index.safetensors --json"));
    assert_eq!(indexed["calibration"]["works"], 24);
    assert!(indexed["artists"].as_array().unwrap().iter().all(|artist| artist["told_apart"] == true), "{indexed}");
    for artist in ["chalk", "neon", "poster"] {
        let line = format!("style search --reference new/{artist}/0001.png --index index.safetensors --top 2 --json");
        let found = json(&studio.done(&line));
        assert_eq!((&found["found"][0]["artist"], &found["fits"]), (&artist.into(), &true.into()), "{found}");
        assert_eq!(found["found"].as_array().unwrap().len(), 2);
    }
    studio.done("gallery draw --artist blueprint --count 1 --seed 9 --out stranger");
    let line = "style search --reference stranger/0001.png --index index.safetensors";
    let told = studio.done(&format!("{line} --sheet sheet.png --pictures art"));
    assert!(told.stdout.starts_with("no artist here fits: none of 3 reaches a probability of 0.5"), "{}", told.stdout);
    let sheet = image::open(studio.path("sheet.png")).unwrap();
    assert!(sheet.width() > 900 && sheet.height() > 600, "{}x{}", sheet.width(), sheet.height());
    let again = studio.run(&format!("{line} --sheet sheet.png --pictures art"));
    assert!(again.code == Some(2) && again.message().contains("exists already"), "{}", again.stderr);
}

#[test]
fn what_cannot_be_indexed_or_searched_is_refused_by_name() {
    let studio = gallery();
    let refused = |line: &str, told: &[&str]| {
        let ran = studio.run(line);
        let message = ran.message();
        assert!(ran.code == Some(2) && told.iter().all(|told| message.contains(told)), "{line}\n{}", ran.stderr);
    };
    refused("style index art/chalk --out one.safetensors", &["at least 2 artists, found 1", "hint: "]);
    std::fs::rename(studio.path("new/chalk"), studio.path("new/other")).unwrap();
    refused("style index art a=art/neon b=art/neon --out same.safetensors", &["have the same works"]);
    refused("style index art none --out none.safetensors", &["cannot read the adapter `none`"]);
    studio.write("empty/notes.txt", "nothing");
    refused("style index art empty --out none.safetensors", &["there is no picture in `empty`"]);
    studio.write("bad/one/a.png", "no picture");
    refused("style index art bad --out bad.safetensors", &["cannot read a picture", "a.png"]);
    studio.done("style index art --out index.safetensors");
    let search = "style search --index index.safetensors --reference";
    refused(&format!("{search} bad/one/a.png"), &["cannot read a picture", "a.png"]);
    refused(&format!("{search} nowhere.png"), &["nowhere.png"]);
    refused(&format!("{search} new/neon/0001.png --top 0"), &["`--top` is 0"]);
    refused("style search --index art/neon/0001.png --reference new/neon/0001.png", &["cannot use the index"]);
    let mut bytes = std::fs::read(studio.path("index.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    studio.write("damaged.safetensors", bytes);
    refused("style search --index damaged.safetensors --reference new/neon/0001.png", &["its checksum does not hold"]);
    refused("style index art --pooling gram:9 --out gram.safetensors", &["block 9", "1 to 3"]);
    refused("style index art --noise 0.1 --prototypes 2 --out noisy.safetensors", &["2 prototypes are asked for"]);
    assert!(!studio.path("one.safetensors").exists() && !studio.path("noisy.safetensors").exists());
}

#[test]
fn an_index_of_another_pooling_is_searched_without_saying_which() {
    let studio = gallery();
    for pooling in ["mean-deviation:2", "gram:1"] {
        studio.done(&format!("style index art --pooling {pooling} --out {pooling}"));
        let found = json(&studio.done(&format!("style search --reference new/neon/0001.png --index {pooling} --json")));
        assert_eq!(found["found"].as_array().unwrap().len(), 3, "{found}");
    }
}

const TRAIN: &str = "train --batch 1 --rank 2 --steps 1 --drift-every 0 --trigger shs";

/// Two artists with adapters, indexed with copies that carry the prototypes.
fn with_adapters(flags: &str) -> Studio {
    let studio = gallery();
    for artist in ["chalk", "neon"] {
        studio.done(&format!("{TRAIN} --images art/{artist} --out {artist}"));
    }
    let sources = "art chalk=chalk/adapter.safetensors neon=neon/adapter.safetensors";
    studio.done(&format!("style index {sources} --adapters-out sent --out index.safetensors {flags}"));
    studio
}

const PREVIEW: &str = "preview --prompt a-house --steps 1 --index index.safetensors";

#[test]
fn the_found_artists_adapter_draws_and_a_mix_needs_both_artists_leave() {
    let studio = with_adapters("--allow-mix");
    studio.done(&format!("{PREVIEW} --artist neon --out one"));
    let parameters = std::fs::read(studio.path("one/000-seed42.png")).unwrap();
    assert!(String::from_utf8_lossy(&parameters).contains("neon"), "the picture names its adapter");
    studio.done(&format!("{PREVIEW} --artist neon --artist chalk --mix --out both"));
    let refused = |line: &str, told: &str| {
        let ran = studio.run(line);
        assert!(ran.code == Some(2) && ran.message().contains(told), "{line}\n{}", ran.stderr);
    };
    refused(&format!("{PREVIEW} --artist neon --artist chalk --out none"), "2 artists are named");
    refused(&format!("{PREVIEW} --artist poster --out none"), "names no adapter of `poster`");
    refused(&format!("{PREVIEW} --artist neo --out none"), "did you mean `neon`?");
    studio
        .done("style index art chalk=chalk/adapter.safetensors sent/neon.safetensors --out index.safetensors --force");
    refused(&format!("{PREVIEW} --artist neon --artist chalk --mix --out none"), "`chalk` does not allow to be mixed");
    std::fs::copy(studio.path("chalk/adapter.safetensors"), studio.path("sent/neon.safetensors")).unwrap();
    refused(&format!("{PREVIEW} --artist neon --out none"), "another adapter than the index was made with");
    assert!(!studio.path("none").exists());
}

#[test]
fn adapters_with_prototypes_are_indexed_without_a_picture() {
    let studio = with_adapters("");
    let metadata = json(&studio.done("adapter inspect sent/neon.safetensors --json"))["metadata"].clone();
    let entry: serde_json::Value = serde_json::from_str(metadata["catelier.style"].as_str().unwrap()).unwrap();
    assert_eq!((&entry["artist"], &entry["prototypes"][0]["count"]), (&"neon".into(), &8.into()));
    assert!(metadata["catelier.mix"].is_null() && metadata["catelier.trigger"] == "shs", "{metadata}");
    let indexed =
        json(&studio.done("style index sent/neon.safetensors sent/chalk.safetensors --out sent.index --json"));
    assert!(indexed["calibration"].is_null() && indexed["artists"][1]["has_adapter"] == true, "{indexed}");
    let told = studio.done("style search --reference new/neon/0001.png --index sent.index").stdout;
    assert!(told.starts_with("neon is the nearest of 2 artists; the index cannot say whether anybody fits"), "{told}");
    studio.with_header("sent/neon.safetensors", "bare.safetensors", &[]);
    studio.with_header(
        "sent/neon.safetensors",
        "poisoned.safetensors",
        &[("catelier.style", &entry.to_string().replace("\"count\":8", "\"count\":0"))],
    );
    for (file, told) in [("bare", "and the adapter no prototypes"), ("poisoned", "it stands for no work")] {
        let ran = studio.run(&format!("style index sent/chalk.safetensors {file}.safetensors --out x.index"));
        assert!(ran.code == Some(2) && ran.message().contains(told), "{}", ran.stderr);
    }
}

#[test]
fn a_trained_head_is_used_by_index_and_search_and_a_resumed_training_gives_the_same_files() {
    let studio = gallery();
    let train = "style train --images art --rounds 2 --local-epochs 1 --measure-every 1";
    let report = json(&studio.done(&format!("{train} --method tower,fedstyle --out whole --json")));
    assert_eq!((&report["artists"], &report["outcomes"][1]["method"]), (&3.into(), &"fedstyle".into()));
    assert_eq!(report["outcomes"][1]["curve"].as_array().unwrap().len(), 2);
    studio.done(&format!("{train} --method tower --out part"));
    studio.done("style train --resume --method tower,fedstyle --out part");
    for file in ["measures.json", "fedstyle.safetensors", "fedstyle.json", "style.toml"] {
        let [whole, part] =
            ["whole", "part"].map(|folder| std::fs::read(studio.path(&format!("{folder}/{file}"))).unwrap());
        assert!(whole == part, "{file} differs");
    }
    studio.done("style index art --head whole/fedstyle.safetensors --out index.safetensors");
    let found = json(&studio.done("style search --reference new/neon/0001.png --index index.safetensors --json"));
    assert_eq!(found["found"][0]["artist"], "neon", "{found}");
    let refused = |line: &str, told: &str| {
        let ran = studio.run(line);
        assert!(ran.code == Some(2) && ran.message().contains(told), "{line}\n{}", ran.stderr);
    };
    let other_tower = "style index art --head whole/fedstyle.safetensors --pooling gram:1 --out x.safetensors";
    refused(other_tower, "was trained for the tower");
    refused("style train --resume --seed 2 --out part", "`seed` cannot change");
    refused(&format!("{train} --held-out 1.5 --out x"), "`held_out` is 1.5");
    refused(&format!("{train} --method fedsgd --out x"), "");
    std::fs::remove_dir_all(studio.path("art/neon")).unwrap();
    studio.done("gallery draw --artist neon --count 1 --seed 3 --out art/neon");
    refused(&format!("{train} --out x"), "`neon` has 1 picture, and at least 3 are needed");
}
