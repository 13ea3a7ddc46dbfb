//! Signed records: what was decided, in bytes that its signer vouches for.
//!
//! A record is a JSON object of four texts: `kind`, `statement`, `key` and `signature`. The statement is JSON inside
//! of a text, so that the bytes that are signed are in the file as they were signed: nothing is written anew to check
//! them. Signed are the bytes of `catelier rounds 1`, of the kind and of the statement, with a byte 0 after the first
//! two.

use catelier_numerics::hex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::key::{PrivateKey, PublicKey};
use crate::record::LARGEST_RECORD;

/// First part of what is signed, so that a signature from elsewhere means nothing here.
const DOMAIN: &[u8] = b"catelier rounds 1";

/// What a record states.
pub(crate) trait Statement: Serialize + DeserializeOwned {
    /// The kind of record, which is signed too: a signature under one kind means nothing under another.
    const KIND: &'static str;
}

/// A statement whose signature holds.
#[derive(Debug, Clone)]
pub(crate) struct Signed<T> {
    pub(crate) statement: T,
    /// Whose signature it is.
    pub(crate) signer: PublicKey,
    /// Sum of the signed bytes.
    pub(crate) digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct Record {
    kind: String,
    statement: String,
    key: PublicKey,
    signature: String,
}

/// The bytes of a record; equal statements have equal bytes.
///
/// # Errors
/// [`Error::TooLarge`] for one that nobody would read.
pub(crate) fn sign<T: Statement>(statement: &T, key: &PrivateKey) -> Result<Vec<u8>> {
    let failed = |error: serde_json::Error| Error::Record { name: T::KIND.to_owned(), reason: error.to_string() };
    let statement = serde_json::to_string(statement).map_err(failed)?;
    let signature = hex::encode(key.sign(&signed_bytes(T::KIND, &statement)));
    let record = Record { kind: T::KIND.to_owned(), statement, key: key.public(), signature };
    let bytes = serde_json::to_vec_pretty(&record).map_err(failed)?;
    match bytes.len() as u64 {
        found if found > LARGEST_RECORD => Err(Error::TooLarge { name: record.kind, limit: LARGEST_RECORD, found }),
        _ => Ok(bytes),
    }
}

/// Reads the record `name`, whoever signed it.
///
/// # Errors
/// [`Error::Record`] for a record of another kind, and for one whose signature does not hold.
pub(crate) fn read<T: Statement>(name: &str, bytes: &[u8]) -> Result<Signed<T>> {
    let unusable = |reason: String| Error::Record { name: name.to_owned(), reason };
    let record: Record =
        serde_json::from_slice(bytes).map_err(|error| unusable(format!("no signed record: {error}")))?;
    if record.kind != T::KIND {
        let found = crate::name::shortened(&record.kind);
        return Err(unusable(format!("expected a record of kind `{}`, found `{found}`", T::KIND)));
    }
    let signed = signed_bytes(T::KIND, &record.statement);
    let holds = hex::decode(&record.signature).is_some_and(|signature| record.key.has_signed(&signed, &signature));
    if !holds {
        return Err(unusable(format!("its signature by {} does not hold", record.key)));
    }
    let statement = serde_json::from_str(&record.statement).map_err(|error| unusable(error.to_string()))?;
    Ok(Signed { statement, signer: record.key, digest: Digest::of(signed) })
}

impl<T> Signed<T> {
    /// Refuses the record `name` unless this key signed it.
    pub(crate) fn by(self, expected: PublicKey, name: &str) -> Result<Self> {
        match self.signer == expected {
            true => Ok(self),
            false => Err(Error::Record {
                name: name.to_owned(),
                reason: format!("signed by {}, expected {expected}", self.signer),
            }),
        }
    }
}

fn signed_bytes(kind: &str, statement: &str) -> Vec<u8> {
    [DOMAIN, b"\0", kind.as_bytes(), b"\0", statement.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        share: f64,
    }

    impl Statement for Note {
        const KIND: &'static str = "note";
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Other {}

    impl Statement for Other {
        const KIND: &'static str = "other";
    }

    fn note() -> (Vec<u8>, PrivateKey) {
        let key = PrivateKey::from_bytes(&[1; 32]);
        (sign(&Note { text: "é \" \n".into(), share: 0.1 }, &key).unwrap(), key)
    }

    #[test]
    fn a_record_comes_back_and_every_changed_byte_is_found() {
        let (bytes, key) = note();
        let read_back =
            |bytes: &[u8]| read::<Note>("note.json", bytes).and_then(|note| note.by(key.public(), "note.json"));
        let whole = read_back(&bytes).unwrap();
        assert_eq!(whole.statement, Note { text: "é \" \n".into(), share: 0.1 });
        assert_eq!(note().0, bytes);
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            // White space between the parts is not signed.
            if let Ok(same) = read_back(&changed) {
                assert_eq!(same.digest, whole.digest, "byte {place}");
                assert!(bytes[place].is_ascii_whitespace(), "byte {place}");
            }
        }
    }

    #[test]
    fn a_record_of_another_kind_or_by_another_key_is_refused_by_name() {
        let (bytes, _) = note();
        let error = read::<Other>("open.json", &bytes).unwrap_err().to_string();
        assert!(error.contains("`open.json`") && error.contains("`note`"), "{error}");
        let relabelled = String::from_utf8(bytes.clone()).unwrap().replace("note", "other");
        let error = read::<Other>("open.json", relabelled.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("does not hold"), "{error}");
        let stranger = PrivateKey::from_bytes(&[2; 32]).public();
        let error = read::<Note>("note.json", &bytes).unwrap().by(stranger, "note.json").unwrap_err().to_string();
        assert!(error.contains(&stranger.to_string()), "{error}");
    }

    #[test]
    fn other_bytes_are_no_records() {
        for bytes in [&b""[..], b"{}", b"null", b"\xff", &b"[".repeat(100_000)] {
            assert!(matches!(read::<Note>("note.json", bytes), Err(Error::Record { .. })));
        }
    }
}
