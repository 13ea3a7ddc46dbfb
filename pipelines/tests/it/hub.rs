//! The hub client against a server on this machine.

mod server;

use std::path::Path;

use catelier_pipelines::Error;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::hub::{Connection, FetchEvent, HubId, HubSettings, Token, WeightPrecision, fetch};
use catelier_testkit::golden::Golden;

use server::{COMMIT, Server};

fn settings(endpoint: &str, cache: &Path) -> HubSettings {
    HubSettings { endpoint: endpoint.into(), cache: cache.into(), token: None, connection: Connection::Online }
}

fn id() -> HubId {
    "gallery/tiny-sd1".parse().unwrap()
}

fn fetch_quietly(settings: &HubSettings) -> Result<catelier_pipelines::models::files::ModelFiles, Error> {
    fetch(&id(), WeightPrecision::Full, settings, &mut |_| {})
}

#[test]
fn a_model_is_fetched_once_and_then_comes_from_the_cache() {
    let server = Server::start(&Golden::open().model("tiny-sd1"), None);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint, cache.path());
    let (mut started, mut expected, mut received) = (Vec::new(), 0, 0);
    let files = fetch(&id(), WeightPrecision::Full, &settings, &mut |event| match event {
        FetchEvent::Started { file, bytes } => {
            started.push(file.to_owned());
            expected += bytes;
        }
        FetchEvent::Received { bytes } => received += bytes,
        FetchEvent::Finished { .. } => {}
    })
    .unwrap();
    assert_eq!(files.name(), "gallery/tiny-sd1");
    assert_eq!(received, expected);
    assert!(started.contains(&"unet/diffusion_pytorch_model.safetensors".to_owned()));
    assert!(!started.iter().any(|file| file.starts_with("vae_legacy_keys")), "{started:?}");

    let requests = server.requests().len();
    fetch_quietly(&settings).unwrap();
    assert_eq!(server.requests().len(), requests + 1, "only the listing is asked for again");

    let offline = HubSettings { connection: Connection::Offline, ..settings.clone() };
    let again = fetch_quietly(&offline).unwrap();
    assert_eq!(server.requests().len(), requests + 1);
    assert_eq!(again.path(), files.path());
    let base = BaseModel::load(&again, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert_eq!(base.name, "gallery/tiny-sd1");

    let by_commit: HubId = format!("gallery/tiny-sd1@{COMMIT}").parse().unwrap();
    fetch(&by_commit, WeightPrecision::Full, &offline, &mut |_| {}).unwrap();
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_the_cache() {
    let server = Server::start(&Golden::open().model("tiny-sd1"), None);
    let cache = tempfile::tempdir().unwrap();
    fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    let nobody = settings("http://127.0.0.1:9", cache.path());
    fetch_quietly(&nobody).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = fetch_quietly(&settings("http://127.0.0.1:9", empty.path())).unwrap_err();
    assert!(matches!(error, Error::HubFailed { .. }), "{error}");
}

#[test]
fn the_token_goes_with_every_request() {
    let server = Server::start(&Golden::open().model("tiny-sd1"), Some("hf_right"));
    let cache = tempfile::tempdir().unwrap();
    let with = |token: &str| HubSettings { token: Token::new(token), ..settings(&server.endpoint, cache.path()) };
    fetch_quietly(&with("hf_right")).unwrap();
    assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_right")));

    let error = fetch_quietly(&with("")).unwrap_err();
    assert!(matches!(error, Error::HubRefused { status: 401, with_token: false, .. }), "{error}");
    assert!(error.hint().unwrap().contains("HF_TOKEN"));
    let error = fetch_quietly(&with("hf_wrong")).unwrap_err();
    assert!(matches!(error, Error::HubRefused { status: 401, with_token: true, .. }), "{error}");
    assert!(!error.to_string().contains("hf_wrong"));
}

#[test]
fn a_token_never_leaves_in_the_clear() {
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { token: Token::new("hf_right"), ..settings("http://hub.invalid", cache.path()) };
    assert!(matches!(fetch_quietly(&settings).unwrap_err(), Error::TokenInTheClear { .. }));
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let server = Server::start(&Golden::open().model("tiny-sd1"), None);
    let cache = tempfile::tempdir().unwrap();
    let id: HubId = "gallery/no-such-model".parse().unwrap();
    let error = fetch(&id, WeightPrecision::Full, &settings(&server.endpoint, cache.path()), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::HubNotFound { id, .. } if id == "gallery/no-such-model"), "{error}");
}

#[test]
fn an_offline_miss_lists_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let offline = HubSettings { connection: Connection::Offline, ..settings("https://huggingface.co", cache.path()) };
    let error = fetch_quietly(&offline).unwrap_err();
    assert!(matches!(&error, Error::NotCached { missing, .. } if missing == &["model_index.json"]), "{error}");

    let server = Server::start(&Golden::open().model("tiny-sd1"), None);
    let files = fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    for file in ["unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"] {
        std::fs::remove_file(files.path().unwrap().join(file)).unwrap();
    }
    let error = fetch_quietly(&offline).unwrap_err();
    assert!(
        matches!(&error, Error::NotCached { missing, .. }
            if missing == &["tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors"]),
        "{error}"
    );
}
