//! Object ids: the digests by which Git and Git LFS name the content of a file.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use catelier_numerics::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The object id of a file; as a file name, it is always plain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Oid {
    /// SHA-1 of Git's header and the content.
    Git(String),
    /// SHA-256 of the content of a large file.
    Lfs(String),
}

impl Oid {
    /// The object id in `text`: 40 or 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if !text.bytes().all(|letter| letter.is_ascii_hexdigit()) {
            return None;
        }
        let digits = text.to_ascii_lowercase();
        match digits.len() {
            40 => Some(Self::Git(digits)),
            64 => Some(Self::Lfs(digits)),
            _ => None,
        }
    }

    /// The object id in an `etag` header: quoted, and marked as weak by some proxies.
    pub(super) fn parse_etag(etag: &str) -> Option<Self> {
        let etag = etag.strip_prefix("W/").unwrap_or(etag);
        Self::parse(etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag))
    }

    /// The object id, of the same kind, of the content of `file`.
    pub(super) fn of_file(&self, file: &Path) -> io::Result<Self> {
        let mut file = File::open(file)?;
        Ok(match self {
            Self::Git(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                Self::Git(digits(Sha1::new().chain_update(header), &mut file)?)
            }
            Self::Lfs(_) => Self::Lfs(digits(Sha256::new(), &mut file)?),
        })
    }
}

fn digits<D: Digest + io::Write>(mut digest: D, file: &mut File) -> io::Result<String> {
    io::copy(&mut io::BufReader::with_capacity(1 << 20, file), &mut digest)?;
    Ok(hex::encode(digest.finalize()))
}

impl fmt::Display for Oid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Git(digits) | Self::Lfs(digits)) = self;
        out.write_str(digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_of_git_lfs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello");
        catelier_numerics::atomic::write(&file, |out| out.write_all(b"hello\n")).unwrap();
        // `git hash-object hello` and `sha256sum hello`.
        for known in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let oid = Oid::parse(known).unwrap();
            assert_eq!(oid.of_file(&file).unwrap(), oid);
        }
    }

    #[test]
    fn an_etag_is_an_object_id_or_nothing() {
        let digits = "CE013625030ba8dba906f756967f9e9ca394464a";
        let oid = Oid::parse(&digits.to_lowercase());
        for etag in [digits.to_owned(), format!("\"{digits}\""), format!("W/\"{digits}\"")] {
            assert_eq!(Oid::parse_etag(&etag), oid, "{etag}");
        }
        let long = "0".repeat(41);
        for etag in ["", "\"\"", "../../x", "/etc/passwd", "\"..\"", &long, "unet-config.json", "ce0136\u{e9}"] {
            assert_eq!(Oid::parse_etag(etag), None, "{etag}");
        }
    }
}
