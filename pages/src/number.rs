//! Numbers as text.

use crate::Estimate;

/// `value` with two decimals, or with three if two would round it up to 1; with a true minus sign.
#[must_use]
pub fn two_decimals(value: f64) -> String {
    let text = if (0.995..1.0).contains(&value) { format!("{:.3}", value.min(0.999)) } else { format!("{value:.2}") };
    match text.strip_prefix('-') {
        Some("0.00") => "0.00".to_owned(),
        Some(digits) => format!("\u{2212}{digits}"),
        None => text,
    }
}

/// The interval of an estimate, `0.93 to 0.97`.
#[must_use]
pub fn interval(estimate: Estimate) -> String {
    format!("{} to {}", two_decimals(estimate.low), two_decimals(estimate.high))
}

/// A number in plain notation with three digits.
pub(crate) fn plain(value: f64) -> String {
    ticks(&[value], value.abs() / 100.0).concat()
}

/// The texts of an axis whose ticks are `step` apart, all in one notation; powers of ten if `step` is 0.
pub(crate) fn ticks(values: &[f64], step: f64) -> Vec<String> {
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let decimals = (-step.abs().log10()).ceil().clamp(0.0, 5.0) as usize;
    let tick = |value: &f64| match largest {
        _ if *value == 0.0 => "0".to_owned(),
        1e-3..1e5 if step != 0.0 => format!("{value:.decimals$}").replace('-', "\u{2212}"),
        _ => power(*value),
    };
    values.iter().map(tick).collect()
}

/// `2·10⁻⁴`, or `10⁻⁴` where the factor is 1, or `1`.
fn power(value: f64) -> String {
    let exponent = value.abs().log10().floor() as i32;
    let factor = value / 10_f64.powi(exponent);
    let rounded = (factor * 10.0).round() / 10.0;
    let superscript: String = exponent.to_string().chars().map(raised).collect();
    match rounded {
        1.0 if exponent == 0 => "1".to_owned(),
        1.0 => format!("10{superscript}"),
        _ => format!("{rounded}\u{00b7}10{superscript}").replace('-', "\u{2212}"),
    }
}

fn raised(digit: char) -> char {
    match digit {
        '-' => '\u{207b}',
        '1' => '\u{00b9}',
        '2' => '\u{00b2}',
        '3' => '\u{00b3}',
        other => other.to_digit(10).and_then(|digit| char::from_u32(0x2070 + digit)).unwrap_or(other),
    }
}

/// A duration in words: `48 s`, `3 min 20 s`, `1 h 5 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A count with its noun, `1 image` or `3 images`.
#[must_use]
pub fn count(n: usize, singular: &str, plural: &str) -> String {
    let noun = if n == 1 { singular } else { plural };
    format!("{n} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_two_decimals_and_a_true_minus() {
        assert_eq!(two_decimals(0.8149), "0.81");
        assert_eq!(two_decimals(-0.05), "\u{2212}0.05");
        assert_eq!(two_decimals(-0.001), "0.00");
    }

    #[test]
    fn a_value_just_below_one_is_not_shown_as_one() {
        assert_eq!(two_decimals(0.997), "0.997");
        assert_eq!(two_decimals(0.99999), "0.999");
        assert_eq!(two_decimals(1.0), "1.00");
    }

    #[test]
    fn ticks_show_as_many_digits_as_they_need_in_one_notation() {
        assert_eq!(ticks(&[0.0, 0.5, 1.0], 0.5), ["0", "0.5", "1.0"]);
        assert_eq!(ticks(&[100.0, 200.0], 100.0), ["100", "200"]);
        assert_eq!(ticks(&[0.0, 5e-4, 1e-3], 5e-4), ["0", "0.0005", "0.0010"]);
        assert_eq!(ticks(&[1e-4, 2e-4], 1e-4), ["10\u{207b}\u{2074}", "2\u{b7}10\u{207b}\u{2074}"]);
        assert_eq!(ticks(&[0.01, 0.1, 1.0], 0.0), ["10\u{207b}\u{b2}", "10\u{207b}\u{b9}", "1"]);
    }

    #[test]
    fn durations_are_words() {
        assert_eq!(duration(48.2), "48 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3900.0), "1 h 5 min");
    }
}
