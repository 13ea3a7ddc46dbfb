//! What a hub answers: the listing of a model, or the whole response to a request. The first line of an input says which.
//! Everything else is answered as an honest hub does.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use catelier_testkit::golden::Golden;
use catelier_workflows::{Session, base};
use serde_json::json;

use crate::{Verdict, folder, refused, sha256};

/// The body of the listing.
const LISTING: &str = "listing";
/// The response to the request for the listing, head and body.
const LISTING_RESPONSE: &str = "listing-response";
/// The response to every request for a file, head and body.
const FILE_RESPONSE: &str = "file-response";

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The cache, below the folder that stands for the user's home.
const CACHE: &str = "home/hub";
/// A file of the user, which no hub may change.
const PRECIOUS: &str = "home/profile";

/// The files of the model. Weights are not looked into when they are fetched.
static FILES: LazyLock<BTreeMap<&str, Vec<u8>>> = LazyLock::new(|| {
    let model = Golden::open().model("tiny-sd1");
    let names = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"];
    let others = ["text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"];
    let read = |name: &'static str| (name, fs::read(model.join(name)).unwrap());
    let weights = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"];
    let weights = weights.map(|stem| (&*format!("{stem}.safetensors").leak(), stem.as_bytes().to_vec()));
    names.into_iter().chain(others).map(read).chain(weights).collect()
});

thread_local! {
    static HUB: OnceCell<Hub> = const { OnceCell::new() };
}

/// A hub of this thread.
struct Hub {
    endpoint: String,
    /// What it answers to the next requests.
    answer: Arc<Mutex<(&'static str, Vec<u8>)>>,
}

pub(super) fn read(input: &[u8]) -> Verdict {
    let (part, bytes) = folder::named(input, &[LISTING, LISTING_RESPONSE, FILE_RESPONSE]);
    with_hub(|hub| *hub.answer.lock().unwrap() = (part, bytes.to_vec()));
    folder::with(|folder| {
        let _ = fs::remove_dir_all(folder.join("home"));
        fs::create_dir_all(folder.join(CACHE)).unwrap();
        fs::write(folder.join(PRECIOUS), "precious").unwrap();
        let before = outside_the_cache(folder);
        let fetched = base::fetch("gallery/tiny", &Session::new(|_| {}).with_variables(variable));
        assert_eq!(before, outside_the_cache(folder), "a hub wrote outside the cache");
        assert_eq!(fs::read(folder.join(PRECIOUS)).unwrap(), b"precious", "a hub changed a file of the user");
        fetched.map_or_else(|error| refused(&error), |_| Verdict::Accepted)
    })
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let named = |part: &str, bytes: &[u8]| [part.as_bytes(), b"\n", bytes].concat();
    let (listing, file) = (listing(), &FILES["unet/config.json"]);
    let whole = |body: &[u8]| [head("200 OK", body).as_bytes(), body].concat();
    vec![
        named(LISTING, &listing),
        named(LISTING_RESPONSE, &whole(&listing)),
        named(FILE_RESPONSE, &whole(file)),
        named(FILE_RESPONSE, &[head("206 Partial Content", file).as_bytes(), file].concat()),
    ]
}

fn with_hub<R>(work: impl FnOnce(&Hub) -> R) -> R {
    HUB.with(|hub| work(hub.get_or_init(Hub::start)))
}

/// The environment of the client.
fn variable(name: &str) -> Option<String> {
    match name {
        "HF_ENDPOINT" => Some(with_hub(|hub| hub.endpoint.clone())),
        "HF_HUB_CACHE" => Some(folder::with(|folder| folder.join(CACHE).display().to_string())),
        "HF_TOKEN" => Some("hf_secret".into()),
        _ => None,
    }
}

/// Paths of everything in the thread's folder but in the cache, with the length of files.
fn outside_the_cache(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(inside).unwrap().map(|entry| entry.unwrap()) {
            let kind = entry.metadata().unwrap();
            found.push(format!("{} {}", entry.path().display(), if kind.is_file() { kind.len() } else { 0 }));
            if kind.is_dir() && entry.path() != folder.join(CACHE) {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((LISTING, Vec::new())));
        let shared = answer.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = shared.clone();
                // A client may hang up at any time.
                thread::spawn(move || drop(serve(stream, &answer)));
            }
        });
        Self { endpoint, answer }
    }
}

fn serve(mut stream: TcpStream, answer: &Mutex<(&'static str, Vec<u8>)>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = first.clone();
        while !line.trim().is_empty() {
            line.clear();
            reader.read_line(&mut line)?;
        }
        let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        let (part, bytes) = answer.lock().unwrap().clone();
        let lists = path.starts_with("/api/models/");
        if part == if lists { LISTING_RESPONSE } else { FILE_RESPONSE } {
            // Hanging up afterwards is the end of a body without a length.
            return stream.write_all(&without_redirects(bytes));
        }
        let body = match (lists, path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/'))) {
            (true, _) if part == LISTING => bytes,
            (true, _) => listing(),
            (false, file) => file.and_then(|(_, file)| FILES.get(file).cloned()).unwrap_or_default(),
        };
        let status = if first.starts_with("GET") && !lists { "206 Partial Content" } else { "200 OK" };
        stream.write_all(head(status, &body).as_bytes())?;
        stream.write_all(&body)?;
    }
}

/// A response that sends nobody to other machines.
fn without_redirects(mut response: Vec<u8>) -> Vec<u8> {
    if let Some(digit) = response.iter().position(|byte| *byte == b' ').and_then(|space| response.get_mut(space + 1))
        && *digit == b'3'
    {
        *digit = b'2';
    }
    response
}

fn head(status: &str, body: &[u8]) -> String {
    let (length, last) = (body.len(), body.len().saturating_sub(1));
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\netag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: \
         bytes 0-{last}/{length}\r\n\r\n",
        sha256(body)
    )
}

fn listing() -> Vec<u8> {
    let sibling = |(name, bytes): (&&str, &Vec<u8>)| {
        let lfs = json!({ "sha256": sha256(bytes), "size": bytes.len() });
        json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
    };
    let siblings: Vec<_> = FILES.iter().map(sibling).collect();
    json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes()
}
