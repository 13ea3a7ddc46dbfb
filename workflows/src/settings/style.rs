//! The settings of a style model's training.

use std::path::PathBuf;

use catelier_federation::Strategy;
use catelier_style::Pooling;
use catelier_style::federated::Method;

use super::settings;
use crate::value::Text;

settings! {
    /// What the training of a style model is asked to do, as a user states it.
    StyleTrainSettings
    /// The settings of a style model's training.
    ResolvedStyleTrain {
        /// Folder with a folder of pictures for each artist [default: the drawn artists]
        #[arg(long, value_name = "DIR")]
        images: PathBuf => Option<PathBuf>,
        /// Folder of the same kind with artists whose works everybody may see, for FedStyle [default: random drawn styles
        /// for drawn artists, none for others]
        #[arg(long, value_name = "DIR")]
        public: PathBuf => Option<PathBuf>,
        /// Pictures of each drawn artist [default: 16]
        #[arg(long, value_name = "N")]
        drawn_works: usize => usize,
        /// Random drawn styles in the public set of drawn artists [default: 12]
        #[arg(long, value_name = "N")]
        drawn_public: usize => usize,
        /// Share of each artist's pictures that is held out and measured with [default: 0.375]
        #[arg(long, value_name = "SHARE")]
        held_out: f64 => f64,
        /// How to train, one or several with commas between: fedstyle (reconstructed), or what it is compared with: tower,
        /// local, fedavg, fedprox, moon, fedproto, fedrep, fedavg-tuned, fedbabu, ewwa, centralised; also
        /// fedstyle-without-classifier, -alignment, -contrast or -public [default: fedstyle-without-public]
        #[arg(long = "method", value_name = "NAME", value_delimiter = ',')]
        methods: Vec<Text<Method>> => Vec<Text<Method>>,
        /// Rounds of training and averaging [default: 20]
        #[arg(long, value_name = "N")]
        rounds: usize => usize,
        /// Epochs of each artist in each round [default: 5]
        #[arg(long, value_name = "N")]
        local_epochs: usize => usize,
        /// Pictures in a batch [default: 16]
        #[arg(long, value_name = "N")]
        batch: usize => usize,
        /// Learning rate of AdamW [default: 5e-4]
        #[arg(long, value_name = "RATE")]
        learning_rate: f64 => f64,
        /// Values of a direction [default: as many as the tower's features have]
        #[arg(long, value_name = "N")]
        width: usize => Option<usize>,
        /// Rule by which models are averaged: fedavg, product, median, trimmed-mean, krum:N, geometric-median, norm-bound,
        /// fedadam and others for whole models [default: fedavg]
        #[arg(long, value_name = "NAME")]
        strategy: Text<Strategy> => Text<Strategy>,
        /// Folder of the tower [default: the embedded one, which knows the drawn world]
        #[arg(long, value_name = "DIR")]
        tower: PathBuf => Option<PathBuf>,
        /// What of the tower's tokens is a style: projection, mean-deviation:BLOCK or gram:BLOCK [default: projection]
        #[arg(long, value_name = "NAME")]
        pooling: Text<Pooling> => Text<Pooling>,
        /// Measure after every so many rounds; 0 for the end alone [default: 5]
        #[arg(long, value_name = "N")]
        measure_every: usize => usize,
        /// Seed of the drawn pictures, the choice of held-out ones, and the training [default: 1]
        #[arg(long, value_name = "N")]
        seed: u64 => u64,
    }
}
