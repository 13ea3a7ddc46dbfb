//! What the segments of a JPEG file tell: whether it is cut off (decoders fill the missing part with grey and report no
//! error), and whether its decoder keeps all coefficients.

/// Start of a scan: entropy-coded image data follows.
const START_OF_SCAN: u8 = 0xda;
/// End of the image.
const END_OF_IMAGE: u8 = 0xd9;

/// Starts of progressive frames.
const PROGRESSIVE: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];

/// What is counted among the segments of one file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segments {
    scans: usize,
    is_progressive: bool,
    has_end: bool,
}

impl Segments {
    /// Reads the segments up to the end of the image. Embedded thumbnails and bytes after the end are ignored.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let (mut segments, mut at) = (Self::default(), 2);
        while let Some((marker, after)) = next_marker(bytes, at) {
            if marker == END_OF_IMAGE {
                segments.has_end = true;
                break;
            }
            let Some(length) = bytes.get(after..after + 2) else { break };
            segments.scans += usize::from(marker == START_OF_SCAN);
            segments.is_progressive |= PROGRESSIVE.contains(&marker);
            at = after + usize::from(u16::from_be_bytes([length[0], length[1]]));
        }
        segments
    }

    /// Whether the end marker follows the image data.
    pub(super) fn are_complete(self) -> bool {
        self.has_end && self.scans > 0
    }

    /// Whether the image is progressive or has several scans. Decoders then keep the coefficients of the whole image.
    pub(super) fn are_parts(self) -> bool {
        self.is_progressive || self.scans > 1
    }
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

    fn is_complete(bytes: &[u8]) -> bool {
        Segments::of(bytes).are_complete()
    }

    fn is_in_parts(bytes: &[u8]) -> bool {
        Segments::of(bytes).are_parts()
    }

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
