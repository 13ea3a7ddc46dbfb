//! Stores that stop, or let somebody in between.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// What happens to a process at one of its operations on the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    /// It ends before this operation.
    Before(i64),
    /// The operation is done, and the process ends before it knows.
    After(i64),
    /// It lives.
    Never,
}

/// A store as one process sees it, which is killed at an operation: from then on, all fail.
pub(crate) struct Mortal {
    inner: Arc<dyn ObjectStore>,
    kill: Kill,
    operations: AtomicI64,
}

impl Mortal {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, kill: Kill) -> Arc<Self> {
        Arc::new(Self { inner, kill, operations: AtomicI64::new(0) })
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> i64 {
        self.operations.load(Ordering::SeqCst)
    }

    /// Whether this operation takes place, and whether its result arrives.
    fn fate(&self) -> (bool, bool) {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        match self.kill {
            Kill::Never => (true, true),
            Kill::Before(at) => (number < at, number < at),
            Kill::After(at) => (number <= at, number < at),
        }
    }
}

fn killed() -> object_store::Error {
    object_store::Error::Generic { store: "mortal", source: "killed".into() }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store of a process that is killed")
    }
}

impl fmt::Debug for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (happens, arrives) = self.fate();
        let result = if happens { self.inner.put_opts(location, payload, options).await } else { Err(killed()) };
        if arrives { result } else { Err(killed()) }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.fate() {
            (true, true) => self.inner.get_opts(location, options).await,
            _ => Err(killed()),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fate() {
            (true, true) => self.inner.list(prefix),
            _ => futures_util::stream::iter([Err(killed())]).boxed(),
        }
    }

    async fn get_ranges(&self, _: &Path, _: &[Range<u64>]) -> Result<Vec<Bytes>> {
        Err(killed())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(killed())
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        futures_util::stream::iter([Err(killed())]).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(killed())
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(killed())
    }
}

type Visit = Box<dyn FnOnce() + Send>;

/// A store in which somebody else does something right before an object of this name is written.
pub(crate) struct Interrupted {
    inner: Arc<dyn ObjectStore>,
    before: &'static str,
    visit: Mutex<Option<Visit>>,
}

impl Interrupted {
    pub(crate) fn new(
        inner: Arc<dyn ObjectStore>,
        before: &'static str,
        visit: impl FnOnce() + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, before, visit: Mutex::new(Some(Box::new(visit))) })
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with a visitor")
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Interrupted {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let visit = if location.as_ref().ends_with(self.before) { self.visit.lock().unwrap().take() } else { None };
        if let Some(visit) = visit {
            // A visitor on a thread of its own, as another process is.
            std::thread::spawn(visit).join().unwrap();
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(killed())
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
