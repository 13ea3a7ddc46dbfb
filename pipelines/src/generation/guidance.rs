//! Where classifier-free guidance starts from, and in which steps it acts.
//!
//! The model's output is `start + guidance * (prompt - start)`, where `start` is a mixture of two predictions:
//! `(1 - share) * negative + share * trigger`. An adapter trained with CAT leaves the empty prompt with the base, so that
//! guidance from there exaggerates its style; from the trigger alone, guidance acts on what the rest of the prompt says.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use catelier_prompts::Trigger;

use crate::error::{Error, Result};

/// Where guidance starts from: the share of the trigger's prediction, from 0, the negative prompt alone, to 1, the
/// trigger alone. `empty`, `trigger` or a number in text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GuidanceFrom(f64);

impl GuidanceFrom {
    /// The negative prompt, which is empty where none is given.
    pub const EMPTY: Self = Self(0.0);
    /// The triggers of the prompt.
    pub const TRIGGER: Self = Self(1.0);

    /// A mixture with this `share` of the trigger's prediction, from 0 to 1.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for another share.
    pub fn mixture(share: f64) -> Result<Self> {
        match (0.0..=1.0).contains(&share) {
            true => Ok(Self(share)),
            false => Err(invalid(&share.to_string())),
        }
    }
}

fn invalid(value: &str) -> Error {
    Error::InvalidSetting {
        setting: "guidance_from",
        value: format!("`{value}`"),
        rule: "must be `empty`, `trigger`, or the trigger's share in a mixture, from 0 to 1".into(),
    }
}

impl FromStr for GuidanceFrom {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "empty" => Ok(Self::EMPTY),
            "trigger" => Ok(Self::TRIGGER),
            number => Self::mixture(number.parse().map_err(|_| invalid(number))?),
        }
    }
}

impl fmt::Display for GuidanceFrom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EMPTY => formatter.write_str("empty"),
            Self::TRIGGER => formatter.write_str("trigger"),
            Self(share) => share.fmt(formatter),
        }
    }
}

/// The sampler steps in which guidance acts, as shares of all steps; in the others, the prompt's prediction is taken as it is,
/// and no other is computed. `0-1` in text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuidanceRange {
    from: f64,
    to: f64,
}

impl GuidanceRange {
    /// From the first step to the last.
    pub const WHOLE: Self = Self { from: 0.0, to: 1.0 };

    /// Whether guidance acts in `step`, counted from 0, of `steps`.
    pub fn contains(self, step: usize, steps: usize) -> bool {
        let share = step as f64 / steps as f64;
        self.from <= share && share < self.to
    }
}

impl Default for GuidanceRange {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl FromStr for GuidanceRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ends = text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        let range = ends.map(|(from, to)| Self { from, to });
        range.filter(|range| 0.0 <= range.from && range.from < range.to && range.to <= 1.0).ok_or_else(|| {
            Error::InvalidSetting {
                setting: "guidance_range",
                value: format!("`{text}`"),
                rule: "must be two rising shares of the sampling such as `0-1` or `0.2-0.8`".into(),
            }
        })
    }
}

impl fmt::Display for GuidanceRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.from, self.to)
    }
}

/// The prediction that guidance of each image starts from.
#[derive(Debug)]
pub(super) enum Start {
    /// That of one condition.
    One,
    /// A mixture of the negative prompt's and the trigger's, with the trigger's share for each image: `[images, 1, 1, 1]`.
    Mixture(Tensor),
}

impl Start {
    /// The mixture for images whose prompts have triggers or not.
    pub(super) fn mixture(from: GuidanceFrom, has_trigger: &[bool], device: &Device) -> Result<Self> {
        let shares: Vec<f32> = has_trigger.iter().map(|has| if *has { from.0 as f32 } else { 0.0 }).collect();
        Ok(Self::Mixture(Tensor::from_vec(shares, (has_trigger.len(), 1, 1, 1), device)?))
    }

    /// The guided output for `output`, whose rows are those of the starts and then those of the prompts; `guidance` is the
    /// strength.
    ///
    /// **Source**: Ho and Salimans 2022, arXiv 2207.12598, equation 6.
    pub(super) fn guide(&self, output: &Tensor, guidance: f64) -> Result<Tensor> {
        let starts = if matches!(self, Self::One) { 1 } else { 2 };
        let images = output.dim(0)? / (starts + 1);
        let part = |number: usize| output.narrow(0, number * images, images);
        let start = match self {
            Self::One => part(0)?,
            Self::Mixture(share) => {
                let negative = part(0)?;
                let step = (part(1)? - &negative)?.broadcast_mul(&share.to_dtype(output.dtype())?)?;
                (negative + step)?
            }
        };
        Ok((&start + ((part(starts)? - &start)? * guidance)?)?)
    }
}

/// The triggers that `prompt` has, in the order of `triggers`, and after them the negative prompt: `shs, blurry`. `None`
/// without a trigger. A trigger that is a part of another one there, as `shs` is of `shs style`, is not repeated.
pub(super) fn trigger_prompt(prompt: &str, triggers: &[Trigger], negative: Option<&str>) -> Option<String> {
    let found: Vec<&Trigger> = triggers.iter().filter(|trigger| trigger.is_in(prompt)).collect();
    let is_part = |one: &Trigger| found.iter().any(|other| *other != one && one.is_in(other.word()));
    let words: Vec<&str> = found.iter().filter(|trigger| !is_part(trigger)).map(|trigger| trigger.word()).collect();
    (!words.is_empty()).then(|| words.into_iter().chain(negative).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for text in ["empty", "trigger", "0.25"] {
            assert_eq!(text.parse::<GuidanceFrom>().unwrap().to_string(), text);
        }
        assert_eq!("1".parse::<GuidanceFrom>().unwrap(), GuidanceFrom::TRIGGER);
        for text in ["0-1", "0.2-0.8"] {
            assert_eq!(text.parse::<GuidanceRange>().unwrap().to_string(), text);
        }
        for text in ["", "1.5", "-0.1", "NaN", "prompt"] {
            assert!(text.parse::<GuidanceFrom>().unwrap_err().to_string().contains("guidance_from"), "{text}");
        }
        for text in ["", "1", "0.5-0.5", "0.8-0.2", "0-2", "NaN-1"] {
            assert!(text.parse::<GuidanceRange>().unwrap_err().to_string().contains("guidance_range"), "{text}");
        }
    }

    #[test]
    fn a_range_covers_its_share_of_the_steps() {
        let acts = |text: &str, steps| {
            let range: GuidanceRange = text.parse().unwrap();
            (0..steps).map(|step| range.contains(step, steps)).collect::<Vec<_>>()
        };
        assert_eq!(acts("0-1", 3), [true; 3]);
        assert_eq!(acts("0.25-0.75", 4), [false, true, true, false]);
    }

    #[test]
    fn the_start_of_a_prompt_is_its_triggers_and_the_negative_prompt() {
        let triggers = ["shs", "owl style", "owl"].map(|word| Trigger::new(word).unwrap());
        let start = |prompt, negative| trigger_prompt(prompt, &triggers, negative);
        assert_eq!(start("a red house, SHS", None), Some("shs".into()));
        assert_eq!(start("owl style and shs", Some("blurry")), Some("shs, owl style, blurry".into()));
        assert_eq!(start("an owl", None), Some("owl".into()));
        assert_eq!(start("a red house", Some("blurry")), None);
    }

    #[test]
    fn guidance_leads_away_from_its_start() {
        let rows = Tensor::new(&[[1f32], [5.0], [3.0], [7.0], [10.0], [20.0]], &Device::Cpu).unwrap();
        let rows = rows.reshape((6, 1, 1, 1)).unwrap();
        let guided = |start: Start, first: usize| {
            let output = start.guide(&rows.narrow(0, first, 6 - first).unwrap(), 2.0).unwrap();
            output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let half =
            |has_trigger| Start::mixture(GuidanceFrom::mixture(0.5).unwrap(), has_trigger, &Device::Cpu).unwrap();
        // The rows of two images: negative 1 and 5, trigger 3 and 7, prompt 10 and 20.
        assert_eq!(guided(half(&[true, true]), 0), [2.0 + 2.0 * 8.0, 6.0 + 2.0 * 14.0]);
        assert_eq!(guided(half(&[true, false]), 0), [2.0 + 2.0 * 8.0, 5.0 + 2.0 * 15.0]);
        assert_eq!(guided(Start::One, 2), [3.0 + 2.0 * 7.0, 7.0 + 2.0 * 13.0]);
    }
}
