//! A score between its floor and its ceiling.

use serde::{Deserialize, Serialize};

use crate::score::Score;

/// A measured value on the scale from what counts as nothing to what counts as everything.
///
/// Similarities of images seldom fall below a half, however different the images are, so that a raw "0.9" may be little.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scaled {
    /// `(raw - floor) / (ceiling - floor)`, held within [0, 1].
    #[serde(flatten)]
    pub score: Score,
    /// The value as it was measured.
    pub raw: Score,
    /// The raw value that counts as 0.
    pub floor: f64,
    /// The raw value that counts as 1.
    pub ceiling: f64,
}

impl Scaled {
    /// `raw` on the scale from `floor` to `ceiling`; `None` where the ceiling is not above the floor, so that nothing can be
    /// told apart.
    #[must_use]
    pub fn between(raw: Score, floor: f64, ceiling: f64) -> Option<Self> {
        let scaled = |value: f64| ((value - floor) / (ceiling - floor)).clamp(0.0, 1.0);
        (ceiling > floor).then(|| Self {
            score: Score { mean: scaled(raw.mean), low: scaled(raw.low), high: scaled(raw.high), n: raw.n },
            raw,
            floor,
            ceiling,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(mean: f64) -> Score {
        Score { mean, low: mean - 0.1, high: mean + 0.1, n: 4 }
    }

    #[test]
    fn the_floor_is_zero_the_ceiling_one_and_nothing_lies_beyond() {
        let at = |mean| Scaled::between(raw(mean), 0.6, 0.8).unwrap().score.mean;
        assert_eq!([0.5, 0.6, 0.8, 0.9].map(at), [0.0, 0.0, 1.0, 1.0]);
        assert!((at(0.7) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn without_room_between_floor_and_ceiling_there_is_no_score() {
        assert_eq!(Scaled::between(raw(0.7), 0.8, 0.8), None);
        assert_eq!(Scaled::between(raw(0.7), 0.9, 0.8), None);
        assert_eq!(Scaled::between(raw(0.7), f64::NAN, 0.8), None);
    }

    proptest! {
        #[test]
        fn a_scale_keeps_the_order(left in 0.0..1.0f64, right in 0.0..1.0f64, floor in 0.0..0.5f64, room in 0.01..0.5f64) {
            let at = |mean| Scaled::between(raw(mean), floor, floor + room).unwrap().score;
            prop_assert!(left > right || at(left).mean <= at(right).mean);
            prop_assert!(at(left).low <= at(left).mean && at(left).mean <= at(left).high);
        }
    }
}
