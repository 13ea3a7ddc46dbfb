//! Checksums of texts that are read back: files that end in a comment with their sum, and lines that end in theirs.

use catelier_numerics::hex;
use sha2::{Digest, Sha256};

/// Start of the last line of a text with a checksum, a comment of TOML.
const COMMENT: &str = "# sha256 ";

/// The last entry of a line with a checksum, an object of JSON.
const ENTRY: &str = ",\"sum\":\"";

/// Hexadecimal digits of a line's checksum.
const LINE_DIGITS: usize = 16;

/// SHA-256 in hexadecimal digits.
pub(super) fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// `text`, whose last line ends, with a line that holds its checksum.
pub(crate) fn with_sum(text: &str) -> String {
    format!("{text}{COMMENT}{}\n", sha256(text))
}

/// Whether a text is as [`with_sum`] made it; `None` for one without a checksum.
pub(crate) fn sum_of_text(text: &str) -> Option<bool> {
    let start = text.rfind(COMMENT).filter(|start| text[..*start].is_empty() || text[..*start].ends_with('\n'))?;
    Some(text == with_sum(&text[..start]))
}

/// A JSON object of one line, with its checksum as the last entry.
pub(crate) fn line_with_sum(object: &str) -> String {
    let open = object.strip_suffix('}').unwrap_or(object);
    format!("{open}{ENTRY}{}\"}}", &sha256(open)[..LINE_DIGITS])
}

/// The object of a line and whether its checksum holds; `None` for a line without one.
pub(crate) fn split_line(line: &str) -> (String, Option<bool>) {
    match line.rsplit_once(ENTRY) {
        Some((open, _)) => {
            let object = format!("{open}}}");
            let holds = line_with_sum(&object) == line;
            (object, Some(holds))
        }
        None => (line.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_text_is_found_or_leaves_its_content() {
        let content = "version = 1\nsteps = 900\n";
        let text = with_sum(content);
        assert_eq!((sum_of_text(&text), sum_of_text(content)), (Some(true), None));
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            let is_found = sum_of_text(&flipped) == Some(false);
            assert!(is_found || bit / 8 >= content.len() - 1, "bit {bit}: {flipped}");
            assert_ne!(sum_of_text(&flipped), Some(true), "bit {bit}");
        }
    }

    #[test]
    fn a_line_with_any_other_byte_does_not_hold() {
        let line = line_with_sum(r#"{"step":1,"loss":0.5}"#);
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
        assert_eq!(split_line(&line), (r#"{"step":1,"loss":0.5}"#.to_owned(), Some(true)));
        assert_eq!(split_line(&line.replace("0.5", "0.6")).1, Some(false));
        assert_eq!(split_line(&line[..line.len() - 3]).1, Some(false));
        assert_eq!(split_line(r#"{"step":1}"#).1, None);
    }
}
