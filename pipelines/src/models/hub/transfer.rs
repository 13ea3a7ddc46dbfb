//! Receives the files of one commit into the cache.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};

use super::cache::{self, ModelCache, cannot_write};
use super::client::{Answer, Client};
use super::error::HubError;
use super::listing::{Listed, Listing, shown};
use super::oid::Oid;
use super::plan;
use super::{CacheCheck, FetchEvent, HubId, HubSettings, Observer};
use crate::error::{Error, Result};

/// Most requests for one file: where the connection breaks, the transfer is taken up again.
const TRIES: usize = 3;

/// The pause before a transfer is taken up again.
const PAUSE: Duration = Duration::from_millis(300);

/// The slowest rate that still counts as a transfer, in bytes per second.
const SLOWEST: f64 = 1024.0;

/// Bytes between two progress events.
const CHUNK: usize = 1 << 18;

/// A fetch of one commit.
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a ModelCache,
    pub(super) settings: &'a HubSettings,
    pub(super) id: &'a HubId,
    pub(super) listing: &'a Listing,
    pub(super) check: CacheCheck,
    /// Taken when the first file is missing.
    pub(super) lock: Option<File>,
}

/// What the hub says about the content of a file, in the listing or with the answer.
struct Content {
    oid: Oid,
    bytes: u64,
    /// The place of the answer's first byte in the file.
    start: u64,
}

impl Fetch<'_> {
    /// Fetches `file` unless the cache has it, as far as `check` looks.
    pub(super) fn ensure(&mut self, file: &str, on_event: Observer<'_>) -> Result<()> {
        let commit = &self.listing.commit;
        let listed = self.listing.files.get(file).cloned().unwrap_or_default();
        let pointer = self.cache.snapshot(commit).join(file);
        if cache::is_good(&pointer, &listed, self.check) {
            return Ok(());
        }
        if self.lock.is_none() {
            self.lock = Some(self.cache.lock(on_event)?);
            // Another process may have fetched it in the meantime.
            if cache::is_good(&pointer, &listed, self.check) {
                return Ok(());
            }
        }
        let oid = match &listed.oid {
            Some(oid) if self.cache.has_blob(oid) => oid.clone(),
            _ => self.receive(file, &listed, on_event)?,
        };
        self.cache.link(commit, file, &oid)?;
        told(on_event(FetchEvent::Finished { file }))
    }

    /// Receives the content into the cache, again where the connection breaks.
    fn receive(&self, file: &str, listed: &Listed, on_event: Observer<'_>) -> Result<Oid> {
        let about = format!("{}: {file}", self.id);
        let (path, mut partial) = self.cache.open_partial(&self.listing.commit, file)?;
        let mut transfer = Transfer { fetch: self, file, about: &about, path: &path, partial: &mut partial };
        if let Some(oid) = &listed.oid
            && transfer.is_whole(oid, listed.bytes)?
        {
            self.cache.keep(&path, oid)?;
            return Ok(oid.clone());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let before = transfer.received()?;
            match transfer.attempt(before, listed, on_event) {
                Err(Error::Hub(error)) if tries < TRIES && transfer.may_go_on(&error, before)? => {
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }
}

/// The transfer of one file.
struct Transfer<'a> {
    fetch: &'a Fetch<'a>,
    file: &'a str,
    about: &'a str,
    path: &'a Path,
    partial: &'a mut File,
}

impl Transfer<'_> {
    /// Bytes of the file that are there.
    fn received(&self) -> Result<u64> {
        Ok(self.partial.metadata().map_err(|source| cannot_write(self.path, source))?.len())
    }

    /// Whether an interrupted fetch left the whole file, so that nothing is missing but its place among the blobs.
    fn is_whole(&self, oid: &Oid, bytes: Option<u64>) -> Result<bool> {
        if bytes != Some(self.received()?) {
            return Ok(false);
        }
        let found = self.partial.sync_all().and_then(|()| oid.of_file(self.path));
        Ok(found.map_err(|source| cannot_write(self.path, source))? == *oid)
    }

    /// Whether another attempt has a chance: the connection broke after it had brought something, or the beginning was
    /// left by an interrupted fetch and did not fit.
    fn may_go_on(&self, error: &HubError, before: u64) -> Result<bool> {
        Ok(match error {
            HubError::Unreachable { .. } | HubError::TimedOut { .. } => self.received()? > before,
            HubError::WrongBytes { .. } | HubError::Status { status: 416, .. } => before > 0,
            _ => false,
        })
    }

    /// One request from byte `from` on, to the end of the file and into the cache.
    fn attempt(&mut self, from: u64, listed: &Listed, on_event: Observer<'_>) -> Result<Oid> {
        let fetch = self.fetch;
        let answer = fetch.client.file(fetch.id, &fetch.listing.commit, self.file, self.about, from)?;
        if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
            self.cut(0)?;
            return Err(HubError::Status { id: self.about.into(), server: answer.server, status: 416 }.into());
        }
        let content = Claims { answer: &answer, about: self.about }.content(&fetch.listing.commit, listed, from)?;
        self.refuse_size(&answer.server, content.bytes)?;
        // A blob that the listing names is not there, or not right: `ensure` has looked.
        if listed.oid.is_some() || !fetch.cache.has_blob(&content.oid) {
            self.cut(content.start)?;
            told(on_event(FetchEvent::Started { file: self.file, bytes: content.bytes }))?;
            told(on_event(FetchEvent::Received { bytes: content.start }))?;
            let server = answer.server.clone();
            self.copy(answer, content.bytes, on_event)?;
            self.verify(&server, &content.oid)?;
            fetch.cache.keep(self.path, &content.oid)?;
        }
        Ok(content.oid)
    }

    /// Shortens the file to its first `bytes`.
    fn cut(&mut self, bytes: u64) -> Result<()> {
        self.partial.set_len(bytes).map_err(|source| cannot_write(self.path, source))
    }

    fn refuse_size(&self, server: &str, bytes: u64) -> Result<()> {
        let limit = plan::largest(self.file);
        if bytes <= limit {
            return Ok(());
        }
        let (id, server) = (self.about.to_owned(), server.to_owned());
        Err(HubError::TooLong { id, server, limit, rule: "the limit of such a file" }.into())
    }

    /// Copies the body to the end of the file, which then has `total` bytes.
    fn copy(&mut self, answer: Answer, total: u64, on_event: Observer<'_>) -> Result<()> {
        let mut left = total - self.received()?;
        let mut body = answer.body.into_reader();
        let mut pace = Pace::new(self.fetch.settings.timeouts.idle);
        let mut chunk = vec![0; CHUNK];
        loop {
            let failure = |error: std::io::Error| self.fetch.client.failure(self.about, &answer.server, error.into());
            let read = body.read(&mut chunk).map_err(failure)?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| self.too_long(&answer.server, total))?;
            self.partial.write_all(&chunk[..read]).map_err(|source| cannot_write(self.path, source))?;
            told(on_event(FetchEvent::Received { bytes: read as u64 }))?;
            pace.keep(read).map_err(|limit| self.too_slow(&answer.server, limit))?;
        }
        if left == 0 { Ok(()) } else { Err(self.broke_off(&answer.server).into()) }
    }

    fn too_long(&self, server: &str, limit: u64) -> HubError {
        // The beginning is of no use: nobody knows which of its bytes are right.
        let _ = self.partial.set_len(0);
        HubError::TooLong { id: self.about.into(), server: server.into(), limit, rule: "the size that the hub names" }
    }

    fn too_slow(&self, server: &str, limit: Duration) -> HubError {
        let what = "send a kilobyte a second";
        HubError::TimedOut { id: self.about.into(), server: server.into(), what, limit }
    }

    fn broke_off(&self, server: &str) -> HubError {
        let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the body ended early");
        self.fetch.client.failure(self.about, server, source.into())
    }

    /// Makes sure that the file's bytes are those that the hub names; others are thrown away.
    fn verify(&mut self, server: &str, expected: &Oid) -> Result<()> {
        let found = self.partial.sync_all().and_then(|()| expected.of_file(self.path));
        let found = found.map_err(|source| cannot_write(self.path, source))?;
        if found == *expected {
            return Ok(());
        }
        self.cut(0)?;
        let (id, server) = (self.about.to_owned(), server.to_owned());
        Err(HubError::WrongBytes { id, server, expected: expected.to_string(), found: found.to_string() }.into())
    }
}

fn told(flow: std::ops::ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Watches that bytes keep coming.
struct Pace {
    window: Duration,
    since: Instant,
    bytes: usize,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self { window, since: Instant::now(), bytes: 0 }
    }

    /// Counts `bytes`; fails with the window in which too few came.
    fn keep(&mut self, bytes: usize) -> Result<(), Duration> {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Ok(());
        }
        let is_slow = (self.bytes as f64) < SLOWEST * elapsed.as_secs_f64();
        *self = Self::new(self.window);
        if is_slow { Err(self.window) } else { Ok(()) }
    }
}

/// What the headers of an answer claim about a file.
struct Claims<'a> {
    answer: &'a Answer,
    about: &'a str,
}

impl Claims<'_> {
    /// The content, where all claims agree with the listing and with each other.
    fn content(&self, commit: &str, listed: &Listed, from: u64) -> Result<Content, HubError> {
        if let Some(found) = self.first("x-repo-commit")?.filter(|found| *found != commit) {
            return Err(self.contradiction("x-repo-commit", found, commit));
        }
        let (start, total) = self.range(from)?;
        let linked = self.first("x-linked-size")?.map(|size| self.number("x-linked-size", size)).transpose()?;
        let claimed = [("x-linked-size", linked), total];
        let known = listed.bytes.or(linked).or(total.1);
        let Some(bytes) = known else {
            return Err(self.contradiction("content-length", "none", "the size of the file"));
        };
        for (what, size) in claimed {
            if let Some(size) = size.filter(|size| *size != bytes) {
                return Err(self.contradiction(what, &size.to_string(), &bytes.to_string()));
            }
        }
        if start > bytes {
            return Err(self.contradiction("content-range", &format!("from {start}"), &format!("{bytes} bytes")));
        }
        let oid = match &listed.oid {
            Some(oid) => oid.clone(),
            None => self.oid()?,
        };
        Ok(Content { oid, bytes, start })
    }

    /// The place of the body's first byte, and the size of the file with the header that names it.
    fn range(&self, from: u64) -> Result<(u64, (&'static str, Option<u64>)), HubError> {
        if self.answer.status != StatusCode::PARTIAL_CONTENT {
            let length = self.last(CONTENT_LENGTH.as_str())?;
            let length = length.map(|length| self.number("content-length", length)).transpose()?;
            return Ok((0, ("content-length", length)));
        }
        let text = self.last(CONTENT_RANGE.as_str())?.unwrap_or("none");
        let expected = || self.contradiction("content-range", text, &format!("`bytes {from}-` to the end"));
        let (start, end, total) = parse_range(text).ok_or_else(expected)?;
        if start != from || total.is_some_and(|total| end.checked_add(1) != Some(total)) {
            return Err(expected());
        }
        Ok((start, ("content-range", total)))
    }

    /// The object id; that of a large file stands in the answer before the redirect.
    fn oid(&self) -> Result<Oid, HubError> {
        let linked = self.first("x-linked-etag")?.map(|etag| ("x-linked-etag", etag));
        let own = self.last(ETAG.as_str())?.map(|etag| ("etag", etag));
        let (what, etag) = linked.or(own).unwrap_or(("etag", "none"));
        let expected = "an object id of 40 or 64 hexadecimal digits";
        Oid::parse_etag(etag).ok_or_else(|| self.contradiction(what, etag, expected))
    }

    fn number(&self, what: &'static str, text: &str) -> Result<u64, HubError> {
        text.trim().parse().map_err(|_| self.contradiction(what, text, "a number of bytes"))
    }

    fn first(&self, name: &'static str) -> Result<Option<&str>, HubError> {
        self.text(name, self.answer.headers.iter().find_map(|headers| headers.get(name)))
    }

    fn last(&self, name: &'static str) -> Result<Option<&str>, HubError> {
        self.text(name, self.answer.headers.last().and_then(|headers| headers.get(name)))
    }

    fn text<'b>(
        &self,
        name: &'static str,
        value: Option<&'b ureq::http::HeaderValue>,
    ) -> Result<Option<&'b str>, HubError> {
        let Some(value) = value else { return Ok(None) };
        let bytes = || String::from_utf8_lossy(value.as_bytes()).into_owned();
        value.to_str().map(Some).map_err(|_| self.contradiction(name, &bytes(), "plain letters"))
    }

    fn contradiction(&self, what: &'static str, value: &str, expected: &str) -> HubError {
        HubError::Contradiction {
            id: self.about.into(),
            server: self.answer.server.clone(),
            what,
            value: shown(value),
            expected: expected.into(),
        }
    }
}

/// First byte, last byte and total of a `content-range`; no total for `*`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused() {
        assert_eq!(parse_range("bytes 3-9/10"), Some((3, 9, Some(10))));
        assert_eq!(parse_range("bytes 3-9/*"), Some((3, 9, None)));
        for text in
            ["", "bytes", "bytes 3-9", "bytes */10", "bytes -1-9/10", "bytes 3-9/99999999999999999999", "3-9/10"]
        {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_trickle_is_no_transfer() {
        let mut pace = Pace::new(Duration::from_millis(20));
        pace.keep(1).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(pace.keep(1), Err(Duration::from_millis(20)));
        std::thread::sleep(Duration::from_millis(30));
        pace.keep(1 << 20).unwrap();
    }
}
