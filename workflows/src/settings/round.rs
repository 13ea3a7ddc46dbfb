//! The settings of a federation whose rounds go over a shared place.

use catelier_adapters::Targets;
use catelier_federation::{HeadRule, NoiseAt, Participation, Personal, Privacy, RoundPlan, Strategy, Weighting};
use catelier_rounds::Terms;

#[cfg(feature = "clap")]
use super::named;
use super::settings;
use crate::error::{Context, Error, Result};
use crate::value::Text;

settings! {
    /// What the rounds of a federation should be like, as a user states it.
    RoundSettings
    /// What the rounds of a federation are like.
    ResolvedRound {
        /// The rule that makes one adapter from the contributions; federation/README.md has all [default: product]
        #[arg(long, value_name = "NAME")]
        strategy: Text<Strategy> => Text<Strategy>,
        /// Rounds of the federation [default: 10]
        #[arg(long, value_name = "N")]
        rounds: usize => usize,
        /// Contributions that a round needs [default: 2]
        #[arg(long, value_name = "N")]
        quorum: usize => usize,
        /// Hours from the opening of a round to its deadline [default: 48]
        #[arg(long, value_name = "F")]
        deadline_hours: f64 => f64,
        /// Weights of contributions: examples, what their clients say, or uniform [default: examples]
        #[arg(long, value_parser = named::<Weighting>(), value_name = "NAME")]
        weighting: Weighting => Weighting,
        /// Share of the members, 0 to 1, that is drawn for each round [default: 1]
        #[arg(long, value_name = "F")]
        participation: f64 => f64,
        /// Seed of these draws [default: 1]
        #[arg(long, value_name = "N")]
        participation_seed: u64 => u64,
        /// Modules that stay each client's own, by their ends, such as up_blocks.3.* [default: none]
        #[arg(long, value_name = "PATTERNS")]
        head: Targets => Option<Targets>,
        /// What becomes of the head: fedbabu, fedper or fedrep [default: fedbabu]
        #[arg(long, value_parser = named::<HeadRule>(), value_name = "NAME")]
        head_rule: HeadRule => HeadRule,
        /// Shorten a client's change to this norm [default: off]
        #[arg(long, value_name = "F")]
        clip: f64 => Option<f64>,
        /// Cover it with Gaussian noise of this deviation, in units of the norm [default: 0]
        #[arg(long, value_name = "F")]
        noise: f64 => f64,
        /// Who adds the noise: client, so that nobody needs to be trusted, or server [default: client]
        #[arg(long, value_parser = named::<NoiseAt>(), value_name = "NAME")]
        noise_at: NoiseAt => NoiseAt,
        /// Refuse updates whose norm is above this many medians of all [default: off]
        #[arg(long, value_name = "F")]
        norm_factor: f64 => Option<f64>,
        /// Factor of FedProx's term, which holds clients near the global adapter [default: 0]
        #[arg(long, value_name = "F")]
        proximal: f64 => f64,
        /// Most megabytes of a contribution [default: 256]
        #[arg(long, value_name = "N")]
        largest_mb: u64 => u64,
    }
}

impl ResolvedRound {
    /// The terms of the federation, for the base of this fingerprint.
    ///
    /// # Errors
    /// [`Error::User`] for settings that mean nothing together.
    pub fn terms(&self, base: Option<String>) -> Result<Terms> {
        let plan = RoundPlan {
            strategy: self.strategy.0.clone(),
            rounds: self.rounds,
            participation: self.participation(),
            weighting: self.weighting.clone(),
            personal: self.head.clone().map(|head| Personal { rule: self.head_rule, head }),
            privacy: self.privacy()?,
            proximal: self.proximal,
            norm_factor: self.norm_factor,
            ..RoundPlan::default()
        };
        plan.validate().user_error("the rounds cannot be like this")?;
        Ok(Terms {
            plan,
            quorum: self.quorum,
            deadline_seconds: seconds(self.deadline_hours)?,
            most_bytes: self.largest_mb.saturating_mul(1_000_000),
            base,
        })
    }

    fn participation(&self) -> Participation {
        match self.participation {
            1.0 => Participation::All,
            share => Participation::Drawn { share, seed: self.participation_seed },
        }
    }

    /// The seed stands for nothing: clients have their own, and the coordinator's comes from its key.
    fn privacy(&self) -> Result<Option<Privacy>> {
        match self.clip {
            Some(clip) => Ok(Some(Privacy { clip, noise: self.noise, at: self.noise_at, seed: 0 })),
            None if self.noise == 0.0 => Ok(None),
            None => Err(Error::user("`noise` is measured in units of `clip`, which is off", "give `--clip` as well")),
        }
    }
}

fn seconds(hours: f64) -> Result<u64> {
    let seconds = hours * 3600.0;
    match seconds.is_finite() && (1.0..1e12).contains(&seconds) {
        true => Ok(seconds as u64),
        false => Err(Error::user(
            format!("`deadline_hours` is {hours}, expected a second or more"),
            "give it as a number of hours, such as 48 or 0.5",
        )),
    }
}
