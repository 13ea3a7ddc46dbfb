//! The settings of a simulated federation.

use catelier_federation::Strategy;

use super::settings;
use crate::value::Text;

settings! {
    /// What a simulated federation is asked to do, as a user states it.
    SimulateSettings
    /// The settings of a simulated federation.
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
        /// fedavg (averages the factors, inexact), product (averages the updates, exact), or another strategy that needs no
        /// start and whose clients train all of the adapter: fair, fedrot, hetlora, raflora, median, trimmed-mean, krum:N, geometric-median,
        /// norm-bound [default: product]
        #[arg(long, value_name = "NAME")]
        strategy: Text<Strategy> => Text<Strategy>,
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
