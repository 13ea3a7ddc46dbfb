//! What the segments of a JPEG file tell: whether it is cut off (decoders fill the missing part with grey and report no
//! error), and whether its decoder keeps all coefficients.

/// Start of a scan: entropy-coded image data follows.
const START_OF_SCAN: u8 = 0xda;
/// End of the image.
const END_OF_IMAGE: u8 = 0xd9;

/// Starts of progressive frames.
const PROGRESSIVE: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];

/// Whether the end marker follows the image data. Embedded thumbnails and bytes after the end are ignored.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let (seen, ended) = markers(bytes);
    ended && seen.contains(&START_OF_SCAN)
}

/// Whether the image is progressive or has several scans. Decoders then keep the coefficients of the whole image.
pub(super) fn is_in_parts(bytes: &[u8]) -> bool {
    let (seen, _) = markers(bytes);
    seen.iter().any(|marker| PROGRESSIVE.contains(marker))
        || seen.iter().filter(|marker| **marker == START_OF_SCAN).count() > 1
}

/// The markers of the image's segments in order, and whether the end marker follows them.
fn markers(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut seen = Vec::new();
    let mut at = 2;
    while let Some((marker, after)) = next_marker(bytes, at) {
        let length = match bytes.get(after..after + 2) {
            _ if marker == END_OF_IMAGE => return (seen, true),
            Some(length) => u16::from_be_bytes([length[0], length[1]]),
            None => break,
        };
        seen.push(marker);
        at = after + usize::from(length);
    }
    (seen, false)
}

/// The next marker at or after `at`, and the position after it.
///
/// Stuffed bytes (`ff 00`), fill bytes (`ff ff`) and restart markers are skipped: they belong to the image data.
fn next_marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let pairs = bytes.get(at..)?.windows(2).enumerate();
    let mut markers = pairs.filter(|(_, pair)| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd7 | 0xff));
    markers.next().map(|(offset, pair)| (pair[1], at + offset + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, a segment that holds a whole thumbnail, a scan with a stuffed byte and a restart marker.
    const HEAD: &[u8] = &[
        0xff, 0xd8, 0xff, 0xe1, 0, 8, 0xff, 0xda, 0, 2, 0xff, 0xd9, 0xff, 0xda, 0, 3, 7, 1, 0xff, 0, 2, 0xff, 0xd0, 3,
    ];

    #[test]
    fn end_marker_after_the_scan_makes_a_file_whole() {
        assert!(is_complete(&[HEAD, &[0xff, 0xd9]].concat()));
        assert!(is_complete(&[HEAD, &[0xff, 0xff, 0xd9, 1, 2, 0xff, 0xda]].concat()));
    }

    #[test]
    fn end_marker_of_a_thumbnail_does_not_count() {
        assert!(!is_complete(HEAD));
        for length in 0..HEAD.len() {
            assert!(!is_complete(&HEAD[..length]), "{length}");
        }
    }

    #[test]
    fn progressive_frames_and_several_scans_are_parts() {
        assert!(!is_in_parts(&[HEAD, &[0xff, 0xd9]].concat()));
        assert!(is_in_parts(&[HEAD, &[0xff, 0xda, 0, 3, 9, 1, 0xff, 0xd9]].concat()));
        assert!(is_in_parts(&[&HEAD[..2], &[0xff, 0xc2, 0, 2], &HEAD[2..]].concat()));
    }

    #[test]
    fn second_scan_needs_its_own_end() {
        let second = [HEAD, &[0xff, 0xda, 0, 3, 9, 1]].concat();
        assert!(!is_complete(&second));
        assert!(is_complete(&[second.as_slice(), &[0xff, 0xd9]].concat()));
    }
}
