//! Tokenizer files that are missing or broken.

use catelier_prompts::Tokenizer;

const VOCAB: &[u8] = br#"{"!": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}"#;
const MERGES: &[u8] = b"#version: 0.2\n";

fn error(vocab: &[u8], merges: &[u8], config: Option<&[u8]>) -> String {
    Tokenizer::from_bytes(vocab, merges, config, None).unwrap_err().to_string()
}

#[test]
fn length_and_pad_token_come_from_the_folder() {
    let config = br#"{"model_max_length": 6, "pad_token": "<|endoftext|>"}"#;
    let map = br#"{"pad_token": "!"}"#;
    let tokenizer = Tokenizer::from_bytes(VOCAB, MERGES, Some(config), Some(map)).unwrap();
    let tokens = tokenizer.encode("A a").unwrap();
    assert_eq!(tokens.ids, [2, 1, 1, 3, 0, 0]);
    assert_eq!(tokens.used, 4);
    assert_eq!(tokenizer.encode("a a a a A a").unwrap().dropped.as_deref(), Some("A a"));
}

#[test]
fn newer_config_decides_over_the_special_tokens_map() {
    let config = br#"{"added_tokens_decoder": {}, "pad_token": {"content": "!"}}"#;
    let map = br#"{"pad_token": "<|endoftext|>"}"#;
    let tokenizer = Tokenizer::from_bytes(VOCAB, MERGES, Some(config), Some(map)).unwrap();
    assert_eq!(tokenizer.pad_id(), 0);
    assert_eq!(tokenizer.max_length(), 77);
}

#[test]
fn astronomical_length_means_that_none_is_stated() {
    let config = br#"{"model_max_length": 1000000000000000019884624838656}"#;
    let tokenizer = Tokenizer::from_bytes(VOCAB, MERGES, Some(config), None).unwrap();
    assert_eq!(tokenizer.max_length(), 77);
}

#[test]
fn folder_without_vocabulary_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    let place = folder.path().display();
    assert_eq!(error.to_string(), format!("the tokenizer has no `vocab.json` in `{place}`"));
    std::fs::write(folder.path().join("vocab.json"), VOCAB).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("the tokenizer has no `merges.txt` in `{place}`"));
    assert_eq!(error.hint().unwrap(), "a tokenizer folder holds `vocab.json` and `merges.txt`, or `tokenizer.json`");
}

#[test]
fn broken_files_are_errors_that_name_the_file() {
    assert_eq!(
        error(b"[]", MERGES, None),
        "the tokenizer's `vocab.json` is broken: invalid type: sequence, expected a map at line 1 column 0"
    );
    assert_eq!(
        error(VOCAB, b"#version: 0.2\na b\nabc\n", None),
        "the tokenizer's `merges.txt` is broken: line 3 is not a pair of pieces: `abc`"
    );
    assert_eq!(
        error(VOCAB, MERGES, Some(br#"{"model_max_length": 2}"#)),
        "the tokenizer's `tokenizer_config.json` is broken: `model_max_length` is 2, expected a whole number of at least 3"
    );
    assert_eq!(
        error(VOCAB, MERGES, Some(br#"{"pad_token": 3}"#)),
        "the tokenizer's `tokenizer_config.json` is broken: `pad_token` is neither text nor a token"
    );
}

#[test]
fn merges_of_unknown_pieces_are_an_error() {
    let message = error(VOCAB, b"x y\n", None);
    assert!(message.starts_with("the tokenizer's `vocab.json` is broken: "), "{message}");
}

#[test]
fn special_token_outside_the_vocabulary_is_an_error() {
    assert_eq!(
        error(VOCAB, MERGES, Some(br#"{"pad_token": "<pad>"}"#)),
        "the tokenizer's pad token `<pad>` is not in its vocabulary of 4 entries"
    );
}

#[test]
fn vocabularies_beyond_any_model_are_refused() {
    let pieces: Vec<String> = (0..131_073).map(|id| format!(r#""{id}":{id}"#)).collect();
    let message = error(format!("{{{}}}", pieces.join(",")).as_bytes(), MERGES, None);
    assert!(message.contains("`vocab.json`") && message.contains("at most 131072 entries"), "{message}");
    let message = error(VOCAB, "a b\n".repeat(131_073).as_bytes(), None);
    assert!(message.contains("`merges.txt`") && message.contains("at most 131072 merges"), "{message}");
    let message = error(br#"{"a": 1, "a": 2}"#, MERGES, None);
    assert!(message.contains("occurs twice"), "{message}");
}

#[test]
fn ids_with_gaps_count_up_to_the_highest() {
    let vocab = br#"{"!": 0, "<|startoftext|>": 2, "<|endoftext|>": 4294967295}"#;
    assert_eq!(Tokenizer::from_bytes(vocab, MERGES, None, None).unwrap().vocabulary(), 1 << 32);
}
