//! The settings of a simulated federation.

use catelier_adapters::Targets;
use catelier_federation::{
    HeadRule, NoiseAt, OnFailure, Participation, Personal, Privacy, RoundPlan, Strategy, Weighting,
};
use catelier_pipelines::training::LossKind;

#[cfg(feature = "clap")]
use super::named;
use super::settings;
use crate::error::{Context, Error, Result};
use crate::simulate::{Exchange, Poison};
use crate::value::Text;

settings! {
    /// What a simulated federation is asked to do, as a user states it.
    SimulateSettings
    /// The settings of a simulated federation; an `Option` is `None` where it goes without.
    ResolvedSimulate {
        /// Artists that take part; see `catelier gallery list` [default: blueprint,goldleaf,poster]
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        artists: Vec<String> => Vec<String>,
        /// Rounds of training and averaging [default: 3]
        #[arg(long, value_name = "N")]
        rounds: usize => usize,
        /// Optimizer steps of each artist in each round [default: 60]
        #[arg(long, value_name = "N")]
        local_steps: usize => usize,
        /// Training images of each artist [default: 10]
        #[serde(alias = "pictures")]
        #[arg(long, alias = "pictures", value_name = "N")]
        images: usize => usize,
        /// The objective of each artist's training [default: cat]
        #[arg(long, value_parser = named::<LossKind>(), value_name = "NAME")]
        loss: LossKind => LossKind,
        /// Rank of the artists' adapters, in turn where several are given [default: 8]
        #[arg(long, value_name = "N", value_delimiter = ',')]
        ranks: Vec<usize> => Vec<usize>,
        /// How contributions become one adapter: product (averages the updates, exact), fedavg (averages the factors, inexact),
        /// ffa, rolora, fedsa, flora, fedex, fair, fedrot, hetlora, raflora, ewwa-adam, ewwa-adagrad, ewwa-yogi, ewwa-released, fedadam,
        /// fedadagrad, fedyogi, median, trimmed-mean, krum:N, geometric-median, norm-bound [default: product]
        #[arg(long, value_name = "NAME")]
        strategy: Text<Strategy> => Text<Strategy>,
        /// What travels: adapters, or knowledge, which is what adapters predict for public images beyond the base; its mean is
        /// distilled into one adapter, so that ranks may differ and no strategy is needed [default: adapters]
        #[arg(long, value_parser = named::<Exchange>(), value_name = "NAME")]
        exchange: Exchange => Exchange,
        /// Public images, of which the artists exchange knowledge [default: 12]
        #[arg(long, value_name = "N")]
        public_images: usize => usize,
        /// Draws of noise and timestep for each public image [default: 8]
        #[arg(long, value_name = "N")]
        public_draws: usize => usize,
        /// Steps of each round's distillation [default: the steps of all artists in a round]
        #[arg(long, value_name = "N")]
        distil_steps: usize => usize,
        /// Modules that are each artist's own head, as patterns such as `up_blocks.3.*` [default: none]
        #[arg(long, value_name = "NAMES")]
        head: Targets => Option<Targets>,
        /// What becomes of the head: fedbabu (stays at the start, tuned at home at the end), fedper (trained beside the body) or
        /// fedrep (trained before the body) [default: fedbabu]
        #[arg(long, value_parser = named::<HeadRule>(), value_name = "NAME")]
        head_rule: HeadRule => HeadRule,
        /// Steps in which every artist tunes the last global adapter at home; with a head, as its rule says [default: 0]
        #[arg(long, value_name = "N")]
        tuning_steps: usize => usize,
        /// Share of the artists that take part in a round, drawn anew in each [default: 1]
        #[arg(long, value_name = "F")]
        participation: f64 => f64,
        /// Weights of the artists in a mean: examples or uniform [default: examples]
        #[arg(long, value_parser = named::<Weighting>(), value_name = "NAME")]
        weighting: Weighting => Weighting,
        /// Factor of FedProx's term, which holds each artist near the global adapter [default: 0]
        #[arg(long, value_name = "F")]
        proximal: f64 => f64,
        /// Refuse updates above this many medians of the norms [default: off]
        #[arg(long, value_name = "F")]
        norm_factor: f64 => Option<f64>,
        /// Shorten every artist's change to this norm [default: off]
        #[arg(long, value_name = "F")]
        clip: f64 => Option<f64>,
        /// Standard deviation of the noise that covers it, in units of `clip` [default: 0]
        #[arg(long, value_name = "F")]
        noise: f64 => f64,
        /// Who adds the noise: client or server [default: client]
        #[arg(long, value_parser = named::<NoiseAt>(), value_name = "NAME")]
        noise_at: NoiseAt => NoiseAt,
        /// Share of the artists that drop out of a round, drawn anew in each [default: 0]
        #[arg(long, value_name = "F")]
        drop_out: f64 => f64,
        /// Share of the artists that make only half of their steps in a round, drawn anew in each [default: 0]
        #[arg(long, value_name = "F")]
        stragglers: f64 => f64,
        /// The first N artists send what `poison` says [default: 0]
        #[arg(long, value_name = "N")]
        poisoned: usize => usize,
        /// What poisoned artists send: sign-flip, scale, noise or not-finite [default: sign-flip]
        #[arg(long, value_parser = named::<Poison>(), value_name = "NAME")]
        poison: Poison => Poison,
        /// Artists that join after the last round with three images: each trains from the global adapter, and alone [default:
        /// none]
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        late: Vec<String> => Vec<String>,
        /// Also train every artist alone, and one adapter on the images of all, with the steps of all rounds [default: false]
        #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        baselines: bool => bool,
        /// Also score the global adapter after every N rounds; 0 scores it at the end alone [default: 0]
        #[arg(long, value_name = "N")]
        score_every: usize => usize,
        /// Evaluation prompts of each kind [default: 3]
        #[arg(long, value_name = "N")]
        prompts: usize => usize,
        /// Denoising steps of the images that are scored [default: 25]
        #[arg(long, value_name = "N")]
        sampling_steps: usize => usize,
        /// Seed of the drawn images, the trainings and the evaluation [default: 1]
        #[arg(long, value_name = "N")]
        seed: u64 => u64,
    }
}

impl ResolvedSimulate {
    /// The plan of the rounds.
    pub(crate) fn plan(&self) -> RoundPlan {
        let privacy = self.clip.map(|clip| Privacy { clip, noise: self.noise, at: self.noise_at, seed: self.seed });
        let drawn = Participation::Drawn { share: self.participation, seed: self.seed };
        RoundPlan {
            strategy: self.strategy.0.clone(),
            rounds: self.rounds,
            on_failure: if self.goes_on() { OnFailure::SkipClient } else { OnFailure::Stop },
            participation: if self.participation == 1.0 { Participation::All } else { drawn },
            weighting: self.weighting.clone(),
            personal: self.head.clone().map(|head| Personal { rule: self.head_rule, head }),
            privacy,
            proximal: self.proximal,
            norm_factor: self.norm_factor,
            secure_aggregation: false,
        }
    }

    /// Whether rounds go on without clients that fail.
    pub(crate) fn goes_on(&self) -> bool {
        self.drop_out > 0.0 || self.poisoned > 0
    }

    /// The rank of the artist at this position.
    pub(crate) fn rank(&self, client: usize) -> usize {
        self.ranks[client % self.ranks.len()]
    }

    /// Whether the global adapter is scored after this round, which is not the last.
    pub(crate) fn is_scored(&self, round: usize) -> bool {
        self.score_every > 0 && round.is_multiple_of(self.score_every) && round < self.rounds
    }

    /// Refuses what cannot be played.
    ///
    /// # Errors
    /// [`Error::User`].
    pub(crate) fn check(&self) -> Result<()> {
        self.plan().validate().user_error("the federation cannot be played")?;
        if self.rounds == 0 {
            return Err(Error::user("there is no round to play", "ask for at least one round"));
        }
        if self.artists.is_empty() || self.ranks.is_empty() {
            return Err(Error::user("there is no artist to play", "name artists, and one rank or several"));
        }
        if self.noise > 0.0 && self.clip.is_none() {
            return Err(Error::user("`noise` covers nothing without `clip`", "give a clipping norm by `--clip`"));
        }
        if let Strategy::Krum { poisoned } = self.strategy.0
            && self.artists.len() < 2 * poisoned + 3
        {
            let few = format!("`{}` needs {} artists, found {}", self.strategy.0, 2 * poisoned + 3, self.artists.len());
            return Err(Error::user(few, "name more artists, or tolerate fewer poisoned ones"));
        }
        self.check_shares()?;
        self.check_exchange()?;
        if self.poisoned >= self.artists.len() {
            let all = format!("{} of {} artists are poisoned", self.poisoned, self.artists.len());
            return Err(Error::user(all, "leave at least one artist honest"));
        }
        if let Some(twice) = self.artists.iter().find(|name| self.late.contains(name)) {
            return Err(Error::user(format!("`{twice}` cannot join late and from the start"), "name it once"));
        }
        Ok(())
    }

    /// Refuses what acts on adapters that travel, where none do.
    fn check_exchange(&self) -> Result<()> {
        if self.exchange == Exchange::Adapters {
            return Ok(());
        }
        if self.public_images == 0 || self.public_draws == 0 || self.distil_steps == 0 {
            let none = "there is nothing to distil: `public_images`, `public_draws` or `distil_steps` is 0";
            return Err(Error::user(none, "give each at least 1"));
        }
        let stated = [
            ("head", self.head.is_some()),
            ("clip", self.clip.is_some()),
            ("norm_factor", self.norm_factor.is_some()),
            ("proximal", self.proximal != 0.0),
            ("participation", self.participation != 1.0),
        ];
        match stated.iter().find(|(_, is_stated)| *is_stated) {
            Some((name, _)) => Err(Error::user(
                format!("`{name}` has no effect where knowledge travels"),
                "leave it out, or use `--exchange adapters`",
            )),
            None => Ok(()),
        }
    }

    fn check_shares(&self) -> Result<()> {
        for (name, share) in [("drop-out", self.drop_out), ("stragglers", self.stragglers)] {
            if !(0.0..1.0).contains(&share) {
                let refused = format!("`{name}` is {share}, it must be at least 0 and below 1");
                return Err(Error::user(refused, "give the share of the artists as a number such as 0.2"));
            }
        }
        let drawn = Participation::Drawn { share: self.drop_out, seed: 0 }.of_round(1, self.artists.len());
        if self.drop_out > 0.0 && drawn.len() == self.artists.len() {
            let all = format!("of {} artists, a `drop_out` of {} leaves none", self.artists.len(), self.drop_out);
            return Err(Error::user(all, "give a smaller share, or more artists"));
        }
        Ok(())
    }
}
