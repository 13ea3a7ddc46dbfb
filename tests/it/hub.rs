//! Bases of a hub from the outside: exit codes, and what to do about a damaged cache.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;

use catelier_testkit::golden::copy_folder;

use crate::catelier::{Ran, Studio};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server that gives every request the same answer; its thread ends with the test process.
fn answering(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let _request: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    endpoint
}

fn with_body(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn run(studio: &Studio, line: &str, variables: &[(&str, &str)]) -> Ran {
    let cache = studio.path("cache");
    let output = studio.command(line).env("HF_HUB_CACHE", &cache).envs(variables.iter().copied()).output().unwrap();
    Ran::from(output, &studio.path(""))
}

#[test]
fn a_failing_hub_ends_with_one_and_a_wrong_request_with_two() {
    let studio = Studio::new();
    let away = "http://127.0.0.1:9".to_owned();
    let gone = answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
    let lying = answering(with_body(r#"{"sha": "../../evil\u001b[2J", "siblings": []}"#));
    let empty = answering(with_body(&format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#)));
    for (endpoint, token, code, said) in [
        (&away, "hf_a", 1, "cannot fetch `a/b` from"),
        (&lying, "hf_a", 1, "sends `sha: ../../evil\\u{1b}[2J`"),
        (&gone, "hf_a", 2, "has no `a/b`"),
        (&empty, "hf_a", 2, "lacks `model_index.json`"),
        (&empty, "hf_one\nhf_two", 2, "the token of HF_TOKEN is not a valid token"),
        (&"http://hub.invalid".to_owned(), "hf_a", 2, "plain http is allowed for this machine only"),
    ] {
        let ran = run(&studio, "base fetch a/b", &[("HF_ENDPOINT", endpoint), ("HF_TOKEN", token)]);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.message().contains(said) && ran.message().contains("hint: "), "{}", ran.message());
        assert!(!ran.stderr.contains("hf_a") && !ran.stderr.contains("hf_one"), "{}", ran.stderr);
    }
}

#[test]
fn a_damaged_base_of_the_cache_says_what_mends_it() {
    let studio = Studio::new();
    let snapshot = studio.path(&format!("cache/models--gallery--tiny/snapshots/{COMMIT}"));
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny-sd1"), &snapshot);
    let line = format!("base inspect gallery/tiny@{COMMIT}");
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(run(&studio, &line, &offline).code, Some(0));

    let weights = snapshot.join("unet/diffusion_pytorch_model.safetensors");
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(5000).unwrap();
    let ran = run(&studio, &line, &offline);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.message().contains("unet/diffusion_pytorch_model.safetensors"), "{}", ran.message());
    assert!(ran.message().contains(&format!("hint: `catelier base fetch gallery/tiny@{COMMIT}`")), "{}", ran.message());
}
