//! The place that everybody shares: a folder or a bucket, through `object_store`.
//!
//! Everything here is written once: a put creates an object or says that there is one, so that of two writers the first
//! wins. Sizes are looked at before anything is read, and names that the place lists are bounded.

mod http;

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::{Builder, Runtime};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::record::Object;

/// Start of an address of a folder and of a bucket.
const FILE: &str = "file://";
const S3: &str = "s3://";

/// Settings of S3 that object_store names after the environment variables of AWS's programs, in the order in which they
/// are asked for.
pub const S3_VARIABLES: [&str; 19] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_PROXY_URL",
];

/// A folder or a bucket that the coordinator and all clients share.
pub struct Place {
    address: String,
    store: Arc<dyn ObjectStore>,
    /// Path of everything in a bucket.
    root: Path,
    /// The folder, where it is one.
    folder: Option<PathBuf>,
    /// Runs requests to a bucket; everything else is done where it is asked for.
    runtime: Option<Runtime>,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// There is a new object.
    New,
    /// There was one already, and it stays as it was.
    Exists,
}

/// Names that a folder of the place has.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Paths below the folder.
    pub(crate) names: Vec<String>,
    /// Whether these are all.
    pub(crate) is_whole: bool,
}

impl Place {
    /// The place at an address: a path or `file://DIR`, whose folder must be there, or `s3://BUCKET/PREFIX`. `variable`
    /// gives the values of [`S3_VARIABLES`]; it is asked for a bucket alone.
    ///
    /// # Errors
    /// [`Error::Place`] for an address that is none, a folder that is not there, or settings that are missing.
    pub fn open(address: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        if let Some(bucket) = address.strip_prefix(S3) {
            return Self::bucket(address, bucket, variable);
        }
        let path = address.strip_prefix(FILE).unwrap_or(address);
        if path.is_empty() || path.contains("://") {
            let reason = "expected a folder, file://DIR or s3://BUCKET/PREFIX".to_owned();
            return Err(Error::Place { address: address.to_owned(), reason });
        }
        Self::folder(address, PathBuf::from(path))
    }

    fn folder(address: &str, folder: PathBuf) -> Result<Self> {
        let unusable = |reason: String| Error::Place { address: address.to_owned(), reason };
        match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(unusable("it is no folder".into())),
            Err(error) => return Err(unusable(error.to_string())),
        }
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| unusable(error.to_string()))?;
        // What was decided stays decided when the power fails.
        let store = Arc::new(store.with_fsync(true));
        Ok(Self { address: address.to_owned(), store, root: Path::default(), folder: Some(folder), runtime: None })
    }

    fn bucket(address: &str, bucket: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let unusable = |reason: String| Error::Place { address: address.to_owned(), reason };
        let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        if bucket.is_empty() {
            return Err(unusable("it names no bucket".into()));
        }
        let mut builder = AmazonS3Builder::new().with_http_connector(http::Connector).with_bucket_name(bucket);
        for name in S3_VARIABLES {
            if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
                let key: AmazonS3ConfigKey =
                    name.to_ascii_lowercase().parse().map_err(|_| unusable(format!("`{name}` is no setting of S3")))?;
                builder = builder.with_config(key, value);
            }
        }
        let store = builder.build().map_err(|error| unusable(error.to_string()))?;
        let root = Path::parse(prefix).map_err(|error| unusable(error.to_string()))?;
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = Some(runtime.map_err(|error| unusable(error.to_string()))?);
        Ok(Self { address: address.to_owned(), store: Arc::new(store), root, folder: None, runtime })
    }

    /// A place in a store that needs no runtime: one in memory, or a test's.
    pub fn of_store(address: impl Into<String>, store: Arc<dyn ObjectStore>) -> Self {
        Self { address: address.into(), store, root: Path::default(), folder: None, runtime: None }
    }

    /// The address, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Creates an object, all of it or nothing; one that is there already stays as it is.
    pub(crate) fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Put> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(name);
        match self.wait(self.store.put_opts(&path, PutPayload::from(bytes), options)) {
            Ok(_) => Ok(Put::New),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Put::Exists)
            }
            Err(source) => Err(self.failed("writing", name, source)),
        }
    }

    /// Creates an object whose bytes are decided already: one that is there must be the same.
    ///
    /// # Errors
    /// [`Error::Taken`] for another object of this name.
    pub(crate) fn create_same(&self, name: &str, bytes: Vec<u8>) -> Result<Put> {
        let object = Object::of(&bytes);
        let put = self.create(name, bytes)?;
        if put == Put::Exists {
            match self.read(name, object.bytes) {
                Ok(Some(found)) if Digest::of(&found) == object.sha256 => {}
                Ok(_) | Err(Error::TooLarge { .. }) => return Err(Error::Taken { name: name.to_owned() }),
                Err(error) => return Err(error),
            }
        }
        Ok(put)
    }

    /// The object of this name, at most `most` bytes; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::TooLarge`], before anything is read.
    pub(crate) fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        self.refuse_pipe(name)?;
        let path = self.path(name);
        let read = async {
            let found = self.store.get(&path).await?;
            if found.meta.size > most {
                return Ok(Err(found.meta.size));
            }
            // What a store says of a size is not believed.
            let (mut stream, mut bytes) = (found.into_stream(), Vec::new());
            while let Some(piece) = stream.try_next().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > most {
                    return Ok(Err(bytes.len() as u64));
                }
            }
            Ok(Ok(bytes))
        };
        match self.wait(read) {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(found)) => Err(Error::TooLarge { name: name.to_owned(), limit: most, found }),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("reading", name, source)),
        }
    }

    /// The object of this name that a signed record describes.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Changed`].
    pub(crate) fn read_object(&self, name: &str, object: &Object) -> Result<Vec<u8>> {
        let changed = |reason: String| Error::Changed { name: name.to_owned(), reason };
        let sizes = |found: u64| changed(format!("expected {} bytes, found {found}", object.bytes));
        let bytes = match self.read(name, object.bytes) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(Error::Missing { name: name.to_owned() }),
            Err(Error::TooLarge { found, .. }) => return Err(sizes(found)),
            Err(error) => return Err(error),
        };
        if bytes.len() as u64 != object.bytes {
            return Err(sizes(bytes.len() as u64));
        }
        match Digest::of(&bytes) {
            found if found == object.sha256 => Ok(bytes),
            found => Err(changed(format!("expected SHA-256 {}, found {found}", object.sha256))),
        }
    }

    /// Whether there is an object of this name.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        self.refuse_pipe(name)?;
        match self.wait(self.store.head(&self.path(name))) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.failed("looking for", name, source)),
        }
    }

    /// The names of the objects below `folder`, at most `most` of them. Names that object_store cannot read are left
    /// out.
    pub(crate) fn list(&self, folder: &str, most: usize) -> Result<Listing> {
        let path = self.path(folder);
        let collected = async {
            let mut listing = Listing { is_whole: true, ..Listing::default() };
            let mut found = self.store.list(Some(&path));
            while let Some(meta) = found.next().await {
                if listing.names.len() == most {
                    listing.is_whole = false;
                    break;
                }
                match meta {
                    Ok(meta) => listing.names.extend(below(&path, &meta.location)),
                    Err(object_store::Error::InvalidPath { .. }) => listing.is_whole = false,
                    Err(object_store::Error::NotFound { .. }) => break,
                    Err(source) => return Err(source),
                }
            }
            Ok(listing)
        };
        let mut listing = self.wait(collected).map_err(|source| self.failed("listing", folder, source))?;
        listing.names.sort();
        Ok(listing)
    }

    /// Opening a pipe would wait for its writer.
    fn refuse_pipe(&self, name: &str) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match fs::metadata(folder.join(name)) {
            Ok(metadata) if !metadata.is_file() => {
                Err(Error::Record { name: name.to_owned(), reason: "it is no file".into() })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => futures_executor::block_on(future),
        }
    }

    fn failed(&self, what: &'static str, name: &str, source: object_store::Error) -> Error {
        Error::Store { what, name: name.to_owned(), address: self.address.clone(), source }
    }
}

/// The path of an object below a folder.
fn below(folder: &Path, object: &Path) -> Option<String> {
    let parts: Vec<_> = object.prefix_match(folder)?.map(|part| part.as_ref().to_owned()).collect();
    Some(parts.join("/"))
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.address).finish()
    }
}
