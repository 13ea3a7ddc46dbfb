//! A hub with one repository, `gallery/tiny-sd1`, on a port of this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The commit of every revision.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const REPOSITORY: &str = "gallery/tiny-sd1";

/// The requests of a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    path: String,
    range_start: Option<usize>,
    range_end: Option<usize>,
    pub(crate) authorization: Option<String>,
}

/// The server; its thread ends with the test process.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves the files of `folder`; if there is a token, only to clients that send it.
    pub(crate) fn start(folder: &Path, token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, folder) = (requests.clone(), folder.to_path_buf());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, folder) = (seen.clone(), folder.clone());
                std::thread::spawn(move || answer_all(stream, &folder, token, &seen));
            }
        });
        Self { endpoint, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers requests on one connection until the client closes it.
fn answer_all(mut stream: TcpStream, folder: &Path, token: Option<&str>, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        seen.lock().unwrap().push(request.clone());
        let response = respond(&request, folder, token);
        if stream.write_all(&response).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut request = Request { path: line.split(' ').nth(1)?.to_owned(), ..Request::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Some(request) };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => {
                let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
                request.range_start = start.parse().ok();
                request.range_end = end.parse().ok();
            }
            _ => {}
        }
    }
}

fn respond(request: &Request, folder: &Path, token: Option<&str>) -> Vec<u8> {
    let expected = token.map(|token| format!("Bearer {token}"));
    if expected.is_some() && request.authorization != expected {
        return response("401 Unauthorized", &[], b"");
    }
    let listing = format!("/api/models/{REPOSITORY}/revision/");
    if request.path.starts_with(&listing) {
        return response("200 OK", &[], list(folder).as_bytes());
    }
    let prefix = format!("/{REPOSITORY}/resolve/");
    let file = request.path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
    match file.and_then(|(_revision, file)| std::fs::read(folder.join(file)).ok().map(|bytes| (file, bytes))) {
        Some((file, bytes)) => partial(request, file, &bytes),
        None => response("404 Not Found", &[], b""),
    }
}

/// The requested part of a file.
fn partial(request: &Request, file: &str, bytes: &[u8]) -> Vec<u8> {
    let start = request.range_start.unwrap_or(0);
    let end = request.range_end.map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
    let headers = [
        ("etag", format!("\"{}\"", file.replace('/', "-"))),
        ("x-repo-commit", COMMIT.to_owned()),
        ("content-range", format!("bytes {start}-{}/{}", end.max(1) - 1, bytes.len())),
    ];
    response("206 Partial Content", &headers, &bytes[start..end])
}

fn response(status: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// The repository's description, with the keys that clients read.
fn list(folder: &Path) -> String {
    let siblings: Vec<serde_json::Value> =
        files_below(folder, PathBuf::new()).into_iter().map(|file| serde_json::json!({ "rfilename": file })).collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

fn files_below(folder: &Path, inside: PathBuf) -> Vec<String> {
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
