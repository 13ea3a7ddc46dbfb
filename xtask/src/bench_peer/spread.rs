//! The spread of several measurements.

/// Lowest, median and highest value; zeros if there are none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else {
            return Self { low: 0.0, median: 0.0, high: 0.0 };
        };
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Self { low: *low, median, high: *high }
    }

    /// `0.62 (0.50–0.75)`.
    pub(super) fn with_digits(self, digits: usize) -> String {
        let Self { low, median, high } = self;
        format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_lowest_median_and_highest() {
        let spread = |values: &[f64]| {
            let Spread { low, median, high } = Spread::of(values);
            (low, median, high)
        };
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
        assert_eq!(spread(&[5.0]), (5.0, 5.0, 5.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_median_is_never_without_its_spread() {
        assert_eq!(Spread::of(&[0.5, 0.75, 0.625]).with_digits(2), "0.62 (0.50–0.75)");
        assert_eq!(Spread::of(&[104.4, 98.0]).with_digits(0), "101 (98–104)");
    }
}
