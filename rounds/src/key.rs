//! Keys: a private one in a file of its owner's, and the public one by which others know them.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use catelier_numerics::{bounded, hex};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// First line of a key's file.
const HEADER: &str = "catelier private key, version 1";

/// Start of a public key in text.
const ALGORITHM: &str = "ed25519:";

/// Most bytes of a key's file.
const LARGEST_FILE: u64 = 1 << 10;

/// A private key, which signs. It is shown nowhere, and wiped from memory when it is dropped.
pub struct PrivateKey(SigningKey);

/// A public key, by which signatures are checked: `ed25519:` and 64 hexadecimal digits in text. That it is a point of the
/// curve is checked where a person gives it, and with every signature; a record with ten thousand keys only has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PrivateKey {
    /// The key of these 32 random bytes, which must come from the system's secure source.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Writes the key to a new file, which only its owner can read.
    ///
    /// # Errors
    /// [`Error::KeyFile`] if the file exists already, or cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = Zeroizing::new(format!("{HEADER}\n{}\n{}\n", &*self.secret(), self.public()));
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let written = || {
            // On Unix, only its owner can read a file that `tempfile` makes.
            let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist_noclobber(path).map(drop).map_err(|error| error.error)
        };
        written().map_err(|source| Error::KeyFile { path: PathBuf::from(path), source })
    }

    /// Reads a key that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Key`] for another file; on Unix, [`Error::KeyMode`] for one that others can read; [`Error::KeyFile`]
    /// for one that cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        refuse_readable(path)?;
        let failed = |source| Error::KeyFile { path: PathBuf::from(path), source };
        let text = Zeroizing::new(bounded::read_text(path, LARGEST_FILE).map_err(failed)?);
        Self::parse(&text).ok_or_else(|| Error::Key {
            path: PathBuf::from(path),
            reason: format!("expected `{HEADER}`, its digits and its public key"),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let [HEADER, digits, public] = text.lines().collect::<Vec<_>>()[..] else { return None };
        let bytes = Zeroizing::new(hex::decode::<32>(digits)?);
        let key = Self::from_bytes(&bytes);
        // The public key is the checksum of the private one.
        (key.public().to_string() == public).then_some(key)
    }

    /// Signs these bytes; equal bytes have equal signatures.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }

    /// A number that nobody can know without the key, for this purpose.
    pub(crate) fn number(&self, purpose: &str) -> u64 {
        let bytes = Zeroizing::new(self.0.to_bytes());
        let sum = Digest::of_parts(&[b"catelier rounds 1 number\0", purpose.as_bytes(), b"\0", &*bytes]);
        let (first, _) = sum.as_bytes().split_at(8);
        first.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn secret(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*Zeroizing::new(self.0.to_bytes())))
    }
}

#[cfg(unix)]
fn refuse_readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    const OTHERS: u32 = 0o077;
    let metadata = fs::metadata(path).map_err(|source| Error::KeyFile { path: PathBuf::from(path), source })?;
    let mode = metadata.mode() & 0o777;
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(Error::KeyMode { path: PathBuf::from(path), mode }),
    }
}

#[cfg(not(unix))]
fn refuse_readable(path: &Path) -> Result<()> {
    fs::metadata(path).map(drop).map_err(|source| Error::KeyFile { path: PathBuf::from(path), source })
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the private key of {}", self.public())
    }
}

impl PublicKey {
    /// Whether the key's owner signed these bytes.
    pub(crate) fn has_signed(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.point().is_some_and(|point| point.verify_strict(bytes, &signature).is_ok())
    }

    /// The key as a point that only its owner can sign for.
    fn point(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.0).ok().filter(|point| !point.is_weak())
    }

    fn parse(text: &str) -> Result<Self> {
        let bytes = text.strip_prefix(ALGORITHM).and_then(hex::decode);
        bytes.map(Self).ok_or_else(|| Error::PublicKey { text: crate::name::shortened(text) })
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let key = Self::parse(text)?;
        key.point().map(|_| key).ok_or_else(|| Error::PublicKey { text: text.to_owned() })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_those_of_rfc_8032() {
        // Section 7.1, test 2.
        let secret = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let key = PrivateKey::from_bytes(&secret);
        let public = "ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(key.public().to_string(), public);
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(hex::encode(key.sign(&[0x72])), signature);
        assert!(public.parse::<PublicKey>().unwrap().has_signed(&[0x72], &key.sign(&[0x72])));
        assert!(!key.public().has_signed(&[0x73], &key.sign(&[0x72])));
    }

    #[test]
    fn a_key_comes_back_from_its_file_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ada.key");
        let key = PrivateKey::from_bytes(&[7; 32]);
        key.save(&path).unwrap();
        assert_eq!(PrivateKey::load(&path).unwrap().public(), key.public());
        assert!(matches!(PrivateKey::from_bytes(&[8; 32]).save(&path), Err(Error::KeyFile { .. })));
        assert_eq!(PrivateKey::load(&path).unwrap().public(), key.public());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_a_key_and_another_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ada.key");
        PrivateKey::from_bytes(&[7; 32]).save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = PrivateKey::load(&path).unwrap_err();
        assert!(error.to_string().contains("644") && error.hint().unwrap().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [text.replacen("07", "08", 1), text.to_uppercase(), format!("{text}x\n"), String::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(PrivateKey::load(&path), Err(Error::Key { .. })));
        }
    }

    #[test]
    fn a_private_key_is_shown_nowhere() {
        let key = PrivateKey::from_bytes(&[7; 32]);
        assert!(!format!("{key:?}").contains("0707"));
    }

    #[test]
    fn weak_and_odd_public_keys_are_refused() {
        let good = PrivateKey::from_bytes(&[7; 32]).public().to_string();
        // The neutral element: everybody can sign for it.
        let weak = format!("ed25519:01{}", "0".repeat(62));
        let in_a_record: PublicKey = serde_json::from_str(&format!("\"{weak}\"")).unwrap();
        assert!(!in_a_record.has_signed(b"anything", &[0; 64]));
        for text in ["", "ed25519:", &good[8..], &good.to_uppercase(), &good[..good.len() - 1], &weak] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
