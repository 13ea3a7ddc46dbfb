//! A hub on this machine that serves one model, slowly enough to be killed in between.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Bytes that are sent at a time, with a pause in between.
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(5);

/// The server; its threads end with this process.
pub(super) struct Hub {
    pub(super) endpoint: String,
}

/// The part of a request that matters here.
#[derive(Default)]
struct Request {
    method: String,
    path: String,
    /// First and last byte, as asked for.
    range: Option<(usize, Option<usize>)>,
}

impl Hub {
    /// Serves the files of `folder`, whatever id and revision are asked for.
    pub(super) fn start(folder: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on this machine")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let folder = folder.clone();
                // A client that was killed ends its connection; there is nobody to tell.
                thread::spawn(move || drop(answer_all(stream, &folder)));
            }
        });
        Ok(Self { endpoint })
    }
}

fn answer_all(mut stream: TcpStream, folder: &Path) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        answer(&request, folder, &mut stream)?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut request = Request::default();
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    request.method = words.next().unwrap_or_default();
    request.path = words.next().unwrap_or_default();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(Some(request)) };
        if name.eq_ignore_ascii_case("range") {
            request.range = parse_range(value.trim());
        }
    }
}

fn parse_range(value: &str) -> Option<(usize, Option<usize>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

fn answer(request: &Request, folder: &Path, out: &mut impl Write) -> Result<()> {
    let path = request.path.split('?').next().unwrap_or_default();
    if path.starts_with("/api/models/") {
        return send(request, "200 OK", &[("content-type", "application/json")], listing(folder)?.as_bytes(), out);
    }
    let file = path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/'));
    match file.and_then(|(_, file)| fs::read(folder.join(file)).ok()) {
        Some(bytes) => send_part(request, &bytes, out),
        None => send(request, "404 Not Found", &[], b"", out),
    }
}

fn send_part(request: &Request, bytes: &[u8], out: &mut impl Write) -> Result<()> {
    let sum = format!("\"{}\"", sha256(bytes));
    let size = bytes.len().to_string();
    let about =
        [("etag", sum.as_str()), ("x-repo-commit", COMMIT), ("x-linked-size", &size), ("accept-ranges", "bytes")];
    let Some((first, last)) = request.range.filter(|(first, _)| *first < bytes.len()) else {
        return send(request, "200 OK", &about, bytes, out);
    };
    let end = last.map_or(bytes.len(), |last| bytes.len().min(last + 1));
    let range = format!("bytes {first}-{}/{size}", end - 1);
    let about: Vec<_> = about.into_iter().chain([("content-range", range.as_str())]).collect();
    send(request, "206 Partial Content", &about, &bytes[first..end], out)
}

fn send(request: &Request, status: &str, headers: &[(&str, &str)], body: &[u8], out: &mut impl Write) -> Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    out.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    for piece in body.chunks(PIECE) {
        out.write_all(piece)?;
        sleep(PAUSE);
    }
    Ok(())
}

/// The description of the repository, as hubs give it: every file with its size and sum.
fn listing(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    add_files(folder, Path::new(""), &mut files)?;
    files.sort();
    let entry = |file: &String| -> Result<_> {
        let bytes = fs::read(folder.join(file))?;
        let lfs = json!({ "sha256": sha256(&bytes), "size": bytes.len(), "pointerSize": 130 });
        Ok(json!({ "rfilename": file, "size": bytes.len(), "blobId": &sha256(&bytes)[..40], "lfs": lfs }))
    };
    let siblings = files.iter().map(entry).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "sha": COMMIT, "siblings": siblings }).to_string())
}

fn add_files(folder: &Path, inside: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder.join(inside))? {
        let path = inside.join(entry?.file_name());
        match folder.join(&path).is_dir() {
            true => add_files(folder, &path, files)?,
            false => files.push(path.to_string_lossy().into_owned()),
        }
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
