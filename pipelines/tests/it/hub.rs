//! The hub client against servers on this machine.

mod attacks;
mod server;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catelier_pipelines::Error;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::hub::{
    CacheCheck, Connection, FetchEvent, HubError, HubId, HubSettings, Timeouts, Token, WeightPrecision, fetch,
};
use catelier_testkit::golden::Golden;

use server::{COMMIT, Hub, Piece, Response, Shape};

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn settings(endpoint: &str, cache: &Path) -> HubSettings {
    let long = Duration::from_secs(20);
    HubSettings {
        endpoint: endpoint.into(),
        cache: cache.into(),
        token: None,
        connection: Connection::Online,
        proxy: None,
        timeouts: Timeouts { connect: long, idle: long, listing: long },
    }
}

fn id() -> HubId {
    "gallery/tiny-sd1".parse().unwrap()
}

fn token(text: &str) -> Option<Token> {
    Token::new(text, "the test").unwrap()
}

fn hub(shape: Shape) -> Hub {
    Hub::new(shape)
}

fn fetch_quietly(settings: &HubSettings) -> Result<ModelFiles, Error> {
    fetch_checked(settings, CacheCheck::Size)
}

fn fetch_checked(settings: &HubSettings, check: CacheCheck) -> Result<ModelFiles, Error> {
    fetch(&id(), WeightPrecision::Full, settings, check, &mut |_| ControlFlow::Continue(()))
}

/// The error of a fetch that must fail because of the hub.
fn hub_error(outcome: Result<ModelFiles, Error>) -> HubError {
    match outcome {
        Err(Error::Hub(error)) => error,
        other => panic!("expected an error of the hub, got {other:?}"),
    }
}

/// The names of the files in the blobs folder.
fn blobs(cache: &Path) -> Vec<String> {
    server::files_below(&cache.join("models--gallery--tiny-sd1/blobs"), "".into())
}

#[test]
fn a_model_is_fetched_once_and_then_comes_from_the_cache() {
    for shape in [Shape::Old, Shape::New] {
        let server = hub(shape).start();
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&server.endpoint, cache.path());
        let (mut started, mut expected, mut received) = (Vec::new(), 0, 0);
        let files = fetch(&id(), WeightPrecision::Full, &settings, CacheCheck::Size, &mut |event| {
            match event {
                FetchEvent::Started { file, bytes } => {
                    started.push(file.to_owned());
                    expected += bytes;
                }
                FetchEvent::Received { bytes } => received += bytes,
                FetchEvent::Finished { .. } | FetchEvent::Waiting => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(files.name(), "gallery/tiny-sd1");
        assert_eq!(received, expected);
        assert!(started.contains(&WEIGHTS.to_owned()));
        assert!(!started.iter().any(|file| file.starts_with("vae_legacy_keys")), "{started:?}");

        let requests = server.requests().len();
        fetch_checked(&settings, CacheCheck::Digest).unwrap();
        assert_eq!(server.requests().len(), requests + 1, "only the listing is asked for again");

        let offline = HubSettings { connection: Connection::Offline, ..settings.clone() };
        let again = fetch_checked(&offline, CacheCheck::Digest).unwrap();
        assert_eq!(server.requests().len(), requests + 1);
        assert_eq!(again.path(), files.path());
        let base = BaseModel::load(&again, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(base.name, "gallery/tiny-sd1");

        let by_commit: HubId = format!("gallery/tiny-sd1@{COMMIT}").parse().unwrap();
        let from_cache =
            fetch(&by_commit, WeightPrecision::Full, &offline, CacheCheck::Size, &mut |_| ControlFlow::Continue(()));
        from_cache.unwrap();
    }
}

/// Other programs look for files there.
#[test]
fn the_cache_has_the_layout_that_other_programs_know() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    let model = cache.path().join("models--gallery--tiny-sd1");
    assert_eq!(files.path().unwrap(), model.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let source = Golden::open().model("tiny-sd1");
    for file in server::files_below(files.path().unwrap(), "".into()) {
        let bytes = std::fs::read(source.join(&file)).unwrap();
        let oid = server::oid(&file, &bytes);
        assert_eq!(std::fs::read(model.join("blobs").join(&oid)).unwrap(), bytes, "{file}");
        #[cfg(unix)]
        {
            let up = "../".repeat(2 + file.matches('/').count());
            let link = std::fs::read_link(files.path().unwrap().join(&file)).unwrap();
            assert_eq!(link, Path::new(&format!("{up}blobs/{oid}")), "{file}");
        }
    }
    assert!(blobs(cache.path()).iter().all(|blob| blob.len() == 40 || blob.len() == 64), "no partial file is left");
}

#[test]
fn what_a_kill_left_beside_a_revision_goes_with_the_next_fetch() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    for _ in ["the first fetch notes the commit", "the second finds it noted"] {
        let leftover = cache.path().join("models--gallery--tiny-sd1/refs/.main.4711-0.partial");
        std::fs::create_dir_all(leftover.parent().unwrap()).unwrap();
        std::fs::write(&leftover, "").unwrap();
        fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
        assert!(!leftover.exists());
    }
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_the_cache() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    let nobody = settings("http://127.0.0.1:9", cache.path());
    fetch_quietly(&nobody).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = hub_error(fetch_quietly(&settings("http://127.0.0.1:9", empty.path())));
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(!error.is_user_error());

    let busy = Hub { alter: Arc::new(|_, answer| *answer = Response::new(503)), ..hub(Shape::New) }.start();
    fetch_quietly(&settings(&busy.endpoint, cache.path())).unwrap();
    let error = hub_error(fetch_quietly(&settings(&busy.endpoint, empty.path())));
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
}

#[test]
fn the_token_goes_with_every_request_to_the_hub_itself() {
    for shape in [Shape::Old, Shape::New] {
        let server = Hub { token: Some("hf_right"), ..hub(shape) }.start();
        let cache = tempfile::tempdir().unwrap();
        let with = |text: &str| HubSettings { token: token(text), ..settings(&server.endpoint, cache.path()) };
        fetch_quietly(&with("hf_right")).unwrap();
        assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_right")));

        let error = hub_error(fetch_quietly(&with("")));
        assert!(matches!(error, HubError::Refused { status: 401, with_token: false, .. }), "{error}");
        assert!(error.hint().unwrap().contains("HF_TOKEN"));
        let error = hub_error(fetch_quietly(&with("hf_wrong")));
        assert!(matches!(error, HubError::Refused { status: 401, with_token: true, .. }), "{error}");
        assert!(!error.to_string().contains("hf_wrong") && error.is_user_error());
    }
}

#[test]
fn large_files_come_from_another_server_which_does_not_see_the_token() {
    for shape in [Shape::Old, Shape::New] {
        let cdn = hub(shape).start();
        let server = Hub { token: Some("hf_right"), cdn: Some(cdn.by_name()), ..hub(shape) }.start();
        let cache = tempfile::tempdir().unwrap();
        let settings = HubSettings { token: token("hf_right"), ..settings(&server.endpoint, cache.path()) };
        fetch_checked(&settings, CacheCheck::Digest).unwrap();
        let seen = cdn.requests();
        assert!(seen.iter().any(|request| request.path.ends_with(WEIGHTS)) && seen.len() == 3, "{seen:?}");
        assert!(seen.iter().all(|request| request.authorization.is_none()), "{seen:?}");
    }
}

#[test]
fn a_token_never_leaves_in_the_clear() {
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { token: token("hf_right"), ..settings("http://hub.invalid", cache.path()) };
    assert!(matches!(hub_error(fetch_quietly(&settings)), HubError::TokenInTheClear { .. }));
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    let id: HubId = "gallery/no-such-model".parse().unwrap();
    let settings = settings(&server.endpoint, cache.path());
    let outcome = fetch(&id, WeightPrecision::Full, &settings, CacheCheck::Size, &mut |_| ControlFlow::Continue(()));
    let error = hub_error(outcome);
    assert!(matches!(&error, HubError::NotFound { id, .. } if id == "gallery/no-such-model"), "{error}");
}

#[test]
fn an_offline_miss_lists_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let offline = HubSettings { connection: Connection::Offline, ..settings("https://huggingface.co", cache.path()) };
    let error = hub_error(fetch_quietly(&offline));
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == &["model_index.json"]), "{error}");

    let server = hub(Shape::New).start();
    let files = fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    for file in [WEIGHTS, "tokenizer/merges.txt"] {
        std::fs::remove_file(files.path().unwrap().join(file)).unwrap();
    }
    let error = hub_error(fetch_quietly(&offline));
    assert!(
        matches!(&error, HubError::NotCached { missing, .. } if missing == &["tokenizer/merges.txt", WEIGHTS]),
        "{error}"
    );
    // The blobs are still there: nothing but the listing is asked for.
    let requests = server.requests().len();
    fetch_quietly(&settings(&server.endpoint, cache.path())).unwrap();
    assert_eq!(server.requests().len(), requests + 1);
}

/// Writes over a cached file as a broken disk does.
fn damage(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let path = std::fs::canonicalize(path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_damaged_cached_file_is_found_and_fetched_again() {
    for shape in [Shape::Old, Shape::New] {
        let server = hub(shape).start();
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&server.endpoint, cache.path());
        let offline = HubSettings { connection: Connection::Offline, ..settings.clone() };
        let weights = fetch_quietly(&settings).unwrap().path().unwrap().join(WEIGHTS);
        let whole = std::fs::read(&weights).unwrap();

        damage(&weights, |bytes| bytes[2000] ^= 1);
        let error = hub_error(fetch_checked(&offline, CacheCheck::Digest));
        assert!(matches!(&error, HubError::DamagedCache { path } if *path == weights), "{error}");
        fetch_checked(&settings, CacheCheck::Digest).unwrap();
        assert_eq!(std::fs::read(&weights).unwrap(), whole);
        assert!(server.requests().last().unwrap().path.ends_with(WEIGHTS));

        // A size is seen without reading the file, if the hub names it.
        damage(&weights, |bytes| bytes.truncate(1000));
        let check = if shape == Shape::New { CacheCheck::Size } else { CacheCheck::Digest };
        fetch_checked(&settings, check).unwrap();
        assert_eq!(std::fs::read(&weights).unwrap(), whole);
    }
}

/// Cuts the first transfer of the weights after `bytes`.
fn cutting_once(bytes: usize) -> server::Alter {
    let is_cut = std::sync::atomic::AtomicBool::new(false);
    Arc::new(move |request, answer| {
        if request.path.ends_with(WEIGHTS) && !is_cut.swap(true, std::sync::atomic::Ordering::SeqCst) {
            answer.pieces = vec![Piece::Bytes(answer.body()[..bytes].to_vec())];
        }
    })
}

#[test]
fn a_transfer_that_breaks_goes_on_where_it_stopped() {
    let server = Hub { alter: cutting_once(1_000_000), ..hub(Shape::New) }.start();
    let cache = tempfile::tempdir().unwrap();
    fetch_checked(&settings(&server.endpoint, cache.path()), CacheCheck::Digest).unwrap();
    let starts: Vec<_> = server.requests().into_iter().filter(|it| it.path.ends_with(WEIGHTS)).collect();
    assert_eq!(starts.iter().map(|it| it.range_start).collect::<Vec<_>>(), [None, Some(1_000_000)]);
}

#[test]
fn a_stopped_fetch_goes_on_where_it_stopped() {
    for (shape, spoil) in [(Shape::Old, false), (Shape::New, false), (Shape::New, true)] {
        let server = hub(shape).start();
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&server.endpoint, cache.path());
        let mut is_weights = false;
        let outcome = fetch(&id(), WeightPrecision::Full, &settings, CacheCheck::Size, &mut |event| {
            is_weights |= matches!(event, FetchEvent::Started { file: WEIGHTS, .. });
            let stop = is_weights && matches!(event, FetchEvent::Received { bytes } if bytes > 0);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
        let blobs_folder = cache.path().join("models--gallery--tiny-sd1/blobs");
        let partial = blobs(cache.path()).into_iter().find(|name| name.ends_with("partial")).unwrap();
        if spoil {
            damage(&blobs_folder.join(&partial), |bytes| bytes[0] ^= 1);
        }
        fetch_checked(&settings, CacheCheck::Digest).unwrap();
        let of_weights = server.requests().into_iter().filter(|it| it.path.ends_with(WEIGHTS));
        let starts: Vec<bool> = of_weights.map(|it| it.range_start.is_some()).collect();
        // A beginning that turns out wrong is thrown away, and the file fetched whole.
        assert_eq!(starts, if spoil { vec![false, true, false] } else { vec![false, true] });
    }
}

#[test]
fn a_whole_file_that_a_stopped_fetch_left_is_not_fetched_again() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint, cache.path());
    let mut left = 0;
    let outcome = fetch(&id(), WeightPrecision::Full, &settings, CacheCheck::Size, &mut |event| {
        match event {
            FetchEvent::Started { file: WEIGHTS, bytes } => left = bytes,
            // The last byte is there, and nothing is checked yet.
            FetchEvent::Received { bytes } if left > 0 && bytes == left => return ControlFlow::Break(()),
            FetchEvent::Received { bytes } => left = left.saturating_sub(bytes),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    fetch_checked(&settings, CacheCheck::Digest).unwrap();
    let of_weights = server.requests().into_iter().filter(|request| request.path.ends_with(WEIGHTS));
    assert_eq!(of_weights.count(), 1);
}

#[test]
fn many_fetches_at_once_are_one_fetch() {
    let server = hub(Shape::New).start();
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint, cache.path());
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch_checked(&settings, CacheCheck::Digest))).collect();
        for fetch in fetches {
            fetch.join().unwrap().unwrap();
        }
    });
    let asked = server.requests().iter().filter(|request| request.path.ends_with(WEIGHTS)).count();
    assert_eq!(asked, 1);
}
