//! Parity with transformers' `CLIPTokenizer` on the golden texts.

use std::path::Path;

use catelier_prompts::Tokenizer;
use catelier_testkit::golden::Golden;
use serde_json::Value;

fn golden() -> Golden {
    Golden::open()
}

fn tokenizer(model: &str, folder: &str) -> Tokenizer {
    Tokenizer::from_folder(&golden().model(model).join(folder)).unwrap()
}

fn texts() -> Value {
    golden().json("tokenizer.json")
}

fn ids(case: &Value, key: &str) -> Vec<u32> {
    serde_json::from_value(case[key].clone()).unwrap()
}

/// Compares every text of a list; `whole` is present if the untruncated ids are known.
fn assert_texts(tokenizer: &Tokenizer, cases: &Value) {
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens.ids, ids(case, "ids_77"), "{text:?}");
        if case.get("ids").is_some() {
            let whole = ids(case, "ids");
            assert_eq!(tokens.used, whole.len().min(77), "{text:?}");
            assert_eq!(tokens.dropped.is_some(), whole.len() > 77, "{text:?}");
        }
    }
}

/// Whether the folder pads with `!`, whose id is 0 in the fixture and in the vocabulary.
fn pads_with_exclamation(tokenizer: &Tokenizer) -> bool {
    tokenizer.pad_id() != tokenizer.end_id()
}

#[test]
fn sd1_texts_have_the_reference_ids() {
    let tokenizer = tokenizer("tiny-sd1", "tokenizer");
    assert_eq!(tokenizer.pad_id(), tokenizer.end_id());
    assert_texts(&tokenizer, &texts()["cases"]);
}

#[test]
fn sd2_texts_are_padded_with_exclamation_marks() {
    let tokenizer = tokenizer("tiny-sd2", "tokenizer");
    assert!(pads_with_exclamation(&tokenizer));
    assert_texts(&tokenizer, &texts()["pad_with_exclamation"]);
}

#[test]
fn sdxl_has_one_tokenizer_of_each_kind() {
    let (first, second) = (tokenizer("tiny-sdxl", "tokenizer"), tokenizer("tiny-sdxl", "tokenizer_2"));
    assert!(!pads_with_exclamation(&first) && pads_with_exclamation(&second));
    assert_texts(&first, &texts()["cases"]);
    assert_texts(&second, &texts()["pad_with_exclamation"]);
}

#[test]
fn prompts_of_the_text_encoder_fixture_have_the_reference_ids() {
    let fixture = golden().fixture("text");
    let prompts = &fixture.facts()["prompts"];
    let prompts: Vec<String> = serde_json::from_value(prompts.clone()).unwrap();
    for (tensor, model, folder) in [
        ("sd1.ids", "tiny-sd1", "tokenizer"),
        ("sd2.ids", "tiny-sd2", "tokenizer"),
        ("sdxl.ids_1", "tiny-sdxl", "tokenizer"),
        ("sdxl.ids_2", "tiny-sdxl", "tokenizer_2"),
    ] {
        let expected = fixture.tensor(tensor).to_vec2::<i64>().unwrap();
        assert_eq!(expected.len(), prompts.len());
        for (prompt, expected) in prompts.iter().zip(expected) {
            let found = tokenizer(model, folder).encode(prompt).unwrap().ids;
            let found: Vec<i64> = found.into_iter().map(i64::from).collect();
            assert_eq!(found, expected, "{tensor}: {prompt:?}");
        }
    }
}

#[test]
fn dropped_text_is_the_end_of_what_was_written() {
    let tokenizer = tokenizer("tiny-sd1", "tokenizer");
    let long = "a red, ".repeat(30) + "and THE end.";
    let tokens = tokenizer.encode(&long).unwrap();
    let dropped = tokens.dropped.unwrap();
    assert!(dropped.ends_with("and THE end."), "{dropped}");
    assert!(long.ends_with(&dropped));
    let kept = long.strip_suffix(&dropped).unwrap();
    assert_eq!(tokenizer.encode(kept).unwrap().ids, tokens.ids);
    assert_eq!(tokenizer.encode(kept).unwrap().dropped, None);
}

#[test]
fn text_cut_inside_a_letter_of_several_bytes_does_not_panic() {
    let tokenizer = tokenizer("tiny-sd1", "tokenizer");
    for lead in ["", "a ", "a b ", "a b c "] {
        let long = lead.to_owned() + &"語".repeat(60);
        let dropped = tokenizer.encode(&long).unwrap().dropped.unwrap();
        assert!(long.ends_with(&dropped));
    }
}

#[test]
fn whole_tokenizer_json_gives_the_same_ids() {
    let folder = golden().model("tiny-sd2").join("tokenizer");
    let whole = tempfile::tempdir().unwrap();
    write_as_whole(&folder, whole.path());
    let from_whole = Tokenizer::from_folder(whole.path()).unwrap();
    assert_texts(&from_whole, &texts()["pad_with_exclamation"]);
}

/// Rewrites `vocab.json` and `merges.txt` as the `tokenizer.json` that newer writers make.
fn write_as_whole(folder: &Path, whole: &Path) {
    let vocab: Value = serde_json::from_slice(&std::fs::read(folder.join("vocab.json")).unwrap()).unwrap();
    let merges = std::fs::read_to_string(folder.join("merges.txt")).unwrap();
    let merges: Vec<Vec<&str>> = merges.lines().skip(1).map(|line| line.split(' ').collect()).collect();
    let json = serde_json::json!({ "version": "1.0", "model": { "type": "BPE", "vocab": vocab, "merges": merges } });
    std::fs::write(whole.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::copy(folder.join("tokenizer_config.json"), whole.join("tokenizer_config.json")).unwrap();
}
