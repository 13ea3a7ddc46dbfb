//! Axes: the positions of values, and the ticks.

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equal distances.
    Linear,
    /// Equal ratios are equal distances; values that are not positive are left out.
    Logarithmic,
}

/// An axis that covers some values, ending on ticks.
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// The values that get a tick.
    pub(super) ticks: Vec<f64>,
    /// The distance of neighbouring ticks, which determines the digits; 0 on a logarithmic axis.
    pub(super) step: f64,
}

/// Approximate number of ticks of a linear axis.
const TICKS: f64 = 4.0;

impl Axis {
    /// The axis for `values`; `None` if the scale can show none of them.
    pub(super) fn fit(values: impl Iterator<Item = f64>, scale: Scale) -> Option<Self> {
        let shown = values.filter(|value| match scale {
            Scale::Linear => value.is_finite(),
            Scale::Logarithmic => value.is_finite() && *value > 0.0,
        });
        let (low, high) =
            shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        match scale {
            _ if low > high => None,
            Scale::Linear => Some(Self::linear(low, high)),
            Scale::Logarithmic => Some(Self::logarithmic(low, high)),
        }
    }

    /// An axis over exactly the given range, which is not empty.
    pub(super) fn exact(low: f64, high: f64) -> Self {
        let step = nice_step((high - low) / TICKS);
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|index| index as f64 * step).collect();
        Self { scale: Scale::Linear, low, high, ticks, step }
    }

    fn linear(low: f64, high: f64) -> Self {
        let (low, high) = widened(low, high);
        let step = nice_step((high - low) / TICKS);
        let low = (low / step + 1e-9).floor() * step;
        let high = (high / step - 1e-9).ceil() * step;
        Self::exact(low, high)
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let last = last.max(first + 1);
        let every = ((last - first) as usize).div_ceil(4);
        let ticks = (first..=last).step_by(every).map(|power| 10_f64.powi(power)).collect();
        let (low, high) = (10_f64.powi(first), 10_f64.powi(last));
        Self { scale: Scale::Logarithmic, low, high, ticks, step: 0.0 }
    }

    /// Position of `value`, 0 at the low end and 1 at the high end; `None` if the scale cannot show it.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        let position = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        position.is_finite().then(|| position.clamp(0.0, 1.0))
    }
}

/// The range around a single value, so that the axis has a length.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let smallest = 1e-9 * low.abs().max(high.abs()).max(1e-6);
    if high - low > smallest {
        return (low, high);
    }
    let room = if low == 0.0 { 0.5 } else { low.abs() / 4.0 };
    (low - room, high + room)
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_on_round_ticks_around_its_values() {
        let axis = Axis::fit([0.113, 0.47].into_iter(), Scale::Linear).unwrap();
        let rounded: Vec<f64> = axis.ticks.iter().map(|tick| (tick * 1e6).round() / 1e6).collect();
        assert_eq!(rounded, [0.1, 0.2, 0.3, 0.4, 0.5]);
        assert_eq!(axis.position(0.1), Some(0.0));
        assert!((axis.position(0.5).unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_single_value_lies_inside_its_axis() {
        for value in [0.0, 3.0, -2e-5] {
            let axis = Axis::fit([value].into_iter(), Scale::Linear).unwrap();
            let position = axis.position(value).unwrap();
            assert!(0.0 < position && position < 1.0, "{value} at {position}");
        }
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten_and_drops_zero() {
        let axis = Axis::fit([0.0, 3e-4, 0.2].into_iter(), Scale::Logarithmic).unwrap();
        assert_eq!(axis.ticks.len(), 5);
        assert_eq!(axis.position(0.0), None);
        assert!((axis.position(1e-2).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn nothing_to_show_is_no_axis() {
        assert!(Axis::fit([f64::NAN].into_iter(), Scale::Linear).is_none());
        assert!(Axis::fit([0.0].into_iter(), Scale::Logarithmic).is_none());
    }
}
