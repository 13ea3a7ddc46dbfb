//! A hub with one repository, `gallery/tiny-sd1`, on a port of this machine: honest, or altered answer by answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use catelier_numerics::hex;
use catelier_testkit::golden::Golden;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of every revision.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const REPOSITORY: &str = "gallery/tiny-sd1";

/// The request of a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range_start: Option<usize>,
    pub(crate) authorization: Option<String>,
}

/// What the hub tells about its files, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The listing has names only; object ids and sizes come with the files.
    Old,
    /// The listing has sizes and object ids; small files are behind a redirect to a path of the same server.
    New,
}

/// An answer before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// The value of `content-length`; without one, the body ends with the connection.
    pub(crate) length: Option<u64>,
    pub(crate) pieces: Vec<Piece>,
}

/// A part of a body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    Pause(Duration),
    /// The same byte until the client goes away.
    Endless,
}

/// Changes an honest answer.
pub(crate) type Alter = Arc<dyn Fn(&Request, &mut Response) + Send + Sync>;

/// A file of the repository.
struct Served {
    bytes: Vec<u8>,
    oid: String,
}

/// The files of the repository, hashed once.
static FILES: LazyLock<BTreeMap<String, Served>> = LazyLock::new(|| {
    let folder = Golden::open().model("tiny-sd1");
    let serve = |file: String| {
        let bytes = std::fs::read(folder.join(&file)).unwrap();
        let oid = oid(&file, &bytes);
        (file, Served { bytes, oid })
    };
    files_below(&folder, PathBuf::new()).into_iter().map(serve).collect()
});

/// What a server does.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) shape: Shape,
    /// The token without which nothing is answered.
    pub(crate) token: Option<&'static str>,
    /// The other server, to which large files are redirected.
    pub(crate) cdn: Option<String>,
    pub(crate) alter: Alter,
}

/// The server; its threads end with the test process.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Hub {
    /// An honest hub.
    pub(crate) fn new(shape: Shape) -> Self {
        LazyLock::force(&FILES);
        Self { shape, token: None, cdn: None, alter: Arc::new(|_, _| {}) }
    }

    pub(crate) fn start(self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, hub) = (seen.clone(), self.clone());
                std::thread::spawn(move || hub.answer_all(stream, &seen));
            }
        });
        Server { endpoint, requests }
    }

    /// Answers requests on one connection until the client closes it.
    fn answer_all(&self, mut stream: TcpStream, seen: &Mutex<Vec<Request>>) {
        // Head and body are sent apart, and neither may wait for the other's receipt.
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_request(&mut reader) {
            seen.lock().unwrap().push(request.clone());
            let mut response = self.answer(&request);
            (self.alter)(&request, &mut response);
            if !response.send(&mut stream) {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let expected = self.token.map(|token| format!("Bearer {token}"));
        if expected.is_some() && request.authorization != expected {
            return Response::new(401);
        }
        if request.path.starts_with(&format!("/api/models/{REPOSITORY}/revision/")) {
            return Response::new(200).with_body(self.listing().into_bytes());
        }
        for (prefix, direct) in [(format!("/{REPOSITORY}/resolve/"), false), ("/cache/".to_owned(), true)] {
            let Some((_, file)) = request.path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            if let Some(served) = FILES.get(file) {
                return self.file(request, file, served, direct);
            }
        }
        Response::new(404)
    }

    /// A file of the repository: its content, or the redirect to it.
    fn file(&self, request: &Request, file: &str, Served { bytes, oid }: &Served, direct: bool) -> Response {
        let is_large = is_large(file);
        let commit = ("x-repo-commit", COMMIT.to_owned());
        let linked =
            [("x-linked-etag", format!("\"{oid}\"")), ("x-linked-size", bytes.len().to_string()), commit.clone()];
        match &self.cdn {
            Some(cdn) if is_large && !direct => {
                Response::new(302).with([("location", format!("{cdn}/cache/x/{file}"))]).with(linked)
            }
            _ if self.shape == Shape::New && !is_large && !direct => {
                Response::new(307).with([("location", format!("/cache/{COMMIT}/{file}?etag=1"))]).with(linked)
            }
            _ => partial(request, bytes).with([("etag", format!("\"{oid}\"")), commit]),
        }
    }

    /// The repository's description, with the keys that clients read.
    fn listing(&self) -> String {
        let describe = |(file, Served { bytes, oid }): (&String, &Served)| match self.shape {
            Shape::Old => serde_json::json!({ "rfilename": file }),
            Shape::New if is_large(file) => {
                let lfs = serde_json::json!({ "sha256": oid, "size": bytes.len() });
                serde_json::json!({ "rfilename": file, "size": bytes.len(), "blobId": COMMIT, "lfs": lfs })
            }
            Shape::New => serde_json::json!({ "rfilename": file, "size": bytes.len(), "blobId": oid }),
        };
        let siblings: Vec<_> = FILES.iter().map(describe).collect();
        serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
    }
}

impl Server {
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The server under another host name, for clients another server.
    pub(crate) fn by_name(&self) -> String {
        self.endpoint.replace("127.0.0.1", "localhost")
    }
}

impl Response {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), length: Some(0), pieces: Vec::new() }
    }

    pub(crate) fn with<const N: usize>(mut self, headers: [(&str, String); N]) -> Self {
        self.headers.extend(headers.map(|(name, value)| (name.to_owned(), value)));
        self
    }

    pub(crate) fn with_body(mut self, body: Vec<u8>) -> Self {
        self.length = Some(body.len() as u64);
        self.pieces = vec![Piece::Bytes(body)];
        self
    }

    /// Replaces a header, or adds it.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.into()));
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let bytes = |piece: &Piece| if let Piece::Bytes(bytes) = piece { bytes.clone() } else { Vec::new() };
        self.pieces.iter().map(bytes).collect::<Vec<_>>().concat()
    }

    /// Sends the answer; false when the connection cannot be used again.
    fn send(&self, stream: &mut TcpStream) -> bool {
        let mut head = format!("HTTP/1.1 {} Some Reason\r\n", self.status);
        if let Some(length) = self.length {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut sent = 0;
        let whole =
            stream.write_all(head.as_bytes()).is_ok() && self.pieces.iter().all(|piece| piece.send(stream, &mut sent));
        whole && self.length == Some(sent)
    }
}

impl Piece {
    fn send(&self, stream: &mut TcpStream, sent: &mut u64) -> bool {
        match self {
            Self::Bytes(bytes) => {
                *sent += bytes.len() as u64;
                stream.write_all(bytes).is_ok()
            }
            Self::Pause(time) => {
                std::thread::sleep(*time);
                true
            }
            Self::Endless => {
                while stream.write_all(&[b' '; 65536]).is_ok() {
                    *sent += 65536;
                }
                false
            }
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut request = Request { path: line.split(' ').nth(1)?.to_owned(), ..Request::default() };
    request.path.truncate(request.path.find('?').unwrap_or(request.path.len()));
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Some(request) };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range_start = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            _ => {}
        }
    }
}

/// The requested part of a file.
fn partial(request: &Request, bytes: &[u8]) -> Response {
    match request.range_start {
        None => Response::new(200).with_body(bytes.to_vec()),
        Some(start) if start >= bytes.len() => Response::new(416),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Response::new(206).with_body(bytes[start..].to_vec()).with([("content-range", range)])
        }
    }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// The object id of a file on the hub.
pub(crate) fn oid(file: &str, bytes: &[u8]) -> String {
    if is_large(file) {
        return hex::encode(Sha256::digest(bytes));
    }
    let header = format!("blob {}\0", bytes.len());
    hex::encode(Sha1::new().chain_update(header).chain_update(bytes).finalize())
}

/// All files below a folder, relative to it.
pub(crate) fn files_below(folder: &Path, inside: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join(&inside)).unwrap();
    entries
        .flat_map(|entry| {
            let path = inside.join(entry.unwrap().file_name());
            if folder.join(&path).is_dir() {
                files_below(folder, path)
            } else {
                vec![path.to_string_lossy().into_owned()]
            }
        })
        .collect()
}
