//! The prototypes in an adapter's header.

use catelier_workflows::styles::StyleEntry;

use crate::{Verdict, refused};

pub(super) fn read(input: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(input);
    match StyleEntry::from_text(&text) {
        Ok(entry) => {
            for prototype in &entry.prototypes {
                let length: f32 = prototype.direction.iter().map(|value| value * value).sum();
                assert!((length - 1.0).abs() < 0.01 && prototype.count > 0, "{prototype:?}");
            }
            let text = entry.to_text().unwrap();
            StyleEntry::from_text(&text).unwrap_or_else(|error| panic!("written, but not read: {error}"));
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    }
}
