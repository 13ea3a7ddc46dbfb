//! The command line as typed: clap types only, nothing is looked at or opened here.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use catelier_workflows::adapters::file::Format;
use catelier_workflows::evaluation::metrics::Better;
use catelier_workflows::evaluation::{METRICS, Metric};
use catelier_workflows::federation::Strategy;
use catelier_workflows::rounds::{ClientName, PublicKey};
use catelier_workflows::settings::named;
use catelier_workflows::value::{MemoryLimit, ValueError};
use catelier_workflows::{
    AdapterSource, BaseRequest, DeviceChoice, RoundSettings, SamplingSettings, SimulateSettings, TrainSettings,
    WeightType,
};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Train, preview, score and federate style adapters for Stable Diffusion.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Use this many threads [default: all cores]; results do not depend on it
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story on the embedded base: draw an artist's images, train, preview, score, report
    Demo(DemoArgs),
    /// Train a style adapter from a folder of captioned images
    Train(Box<TrainArgs>),
    /// What `train` would do with the same flags: images, steps, operations, memory; no weights are loaded
    Plan(Box<PlanArgs>),
    /// Generate images with an adapter, beside the base if asked
    Preview(PreviewArgs),
    /// Score how much of the base an adapter kept and how well it learned
    Evaluate(EvaluateArgs),
    /// Look into adapter files and convert them
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Combine the adapters of several artists
    #[command(subcommand)]
    Federate(FederateCommand),
    /// Base models: fetch them, and see what a folder or hub id holds
    #[command(subcommand)]
    Base(BaseCommand),
    /// The drawn world that the embedded base knows
    #[command(subcommand)]
    Gallery(GalleryCommand),
    /// What the parts cost on this machine, in time, memory and operations
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// Which base, and where it runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct BaseArgs {
    /// `embedded`, a diffusers folder, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5
    #[arg(long, default_value = "embedded", value_name = "BASE")]
    base: String,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Type of the base's weights
    #[arg(long, value_parser = named::<WeightType>(), default_value = "f32", value_name = "DTYPE")]
    dtype: WeightType,
}

impl From<BaseArgs> for BaseRequest {
    fn from(BaseArgs { base, device, dtype }: BaseArgs) -> Self {
        Self { base, device, dtype }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where the images and report.html go
    #[arg(long, default_value = "catelier-demo", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write beside files in --out that this command did not make; none of them is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
    /// An artist whose images to learn from; may be given several times; see `catelier gallery list` [default: wash and goldleaf]
    #[arg(long = "artist", value_name = "NAME")]
    pub(crate) artists: Vec<String>,
    /// Optimizer steps of each training
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Evaluation prompts of each kind, to make the demo shorter
    #[arg(long, value_name = "N")]
    pub(crate) prompts: Option<usize>,
    /// Denoising steps of each generated image, to make the demo shorter [default: 25]
    #[arg(long, value_name = "N")]
    pub(crate) sampling_steps: Option<usize>,
    /// Seed of the drawn images, the trainings and the generated images [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// The settings of a run, as flags and as a file.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    pub(crate) flags: TrainSettings,
    /// Read settings from this file, for example the run.toml of an earlier run; flags win over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Go on from the newest state in --out
    #[arg(long)]
    pub(crate) resume: bool,
    /// Where the adapter, previews, metrics and state go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write beside files in --out that this command did not make; none of them is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    /// A prompt; may be given several times
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    pub(crate) prompt: Vec<String>,
    /// A file with one prompt a line, or a prompt set by name
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<String>,
    /// Adapter file, with a weight after a colon if it is not 1; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    pub(crate) adapter: Vec<AdapterSource>,
    /// One sheet for each prompt: base, adapter without the trigger, adapter with it, a training image
    #[arg(long)]
    pub(crate) compare: bool,
    /// The adapter's trigger [default: the trigger in its file]
    #[arg(long, value_name = "WORD")]
    pub(crate) trigger: Option<String>,
    /// Images that the adapter was trained on, for the last column of a sheet
    #[arg(long, value_name = "DIR")]
    pub(crate) references: Option<PathBuf>,
    /// Images for each prompt
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingSettings,
    #[command(flatten)]
    pub(crate) base: BaseArgs,
    /// Where the images go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write beside files in --out that this command did not make; none of them is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object for each image
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// The adapter to score
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: AdapterSource,
    /// The adapter's trigger [default: the trigger in its file]
    #[arg(long, value_name = "WORD")]
    pub(crate) trigger: Option<String>,
    /// The artist's images, for the scores of style
    #[arg(long, value_name = "DIR")]
    pub(crate) references: Option<PathBuf>,
    /// Folder with a folder of images for each other artist, from whom the adapter's images should be told
    #[arg(long, value_name = "DIR")]
    pub(crate) others: Option<PathBuf>,
    /// A prompt set by name, or a file [default: gallery-v1 for the embedded base, general-v1 for others]
    #[arg(long, value_name = "SET|FILE")]
    pub(crate) prompts: Option<String>,
    /// Images for each prompt, whose seeds count up
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) seeds: usize,
    /// Folder of the CLIP model that compares images [default: the embedded one]
    #[arg(long, value_name = "DIR")]
    pub(crate) clip: Option<PathBuf>,
    /// Folder of a model that sees style, a CLIPVisionModelWithProjection [default: the embedded one, or the model of --clip]
    #[arg(long, value_name = "DIR")]
    pub(crate) style_model: Option<PathBuf>,
    /// Exit with 1 unless this score is at least that; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) require: Vec<Requirement>,
    #[command(flatten)]
    pub(crate) sampling: SamplingSettings,
    #[command(flatten)]
    pub(crate) base: BaseArgs,
    /// Where scores.json, the images and report.html go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write beside files in --out that this command did not make; none of them is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the scores as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// A score that must be reached: `kps_no_token=0.9`.
#[derive(Debug, Clone)]
pub(crate) struct Requirement {
    pub(crate) metric: &'static Metric,
    pub(crate) least: f64,
}

impl FromStr for Requirement {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // A least value makes no sense for a score of which less is better.
        let requirable = |metric: &&Metric| metric.better == Better::Higher;
        let parsed = text.split_once('=').and_then(|(name, value)| {
            let metric = Metric::named(name.trim()).filter(requirable)?;
            Some(Self { metric, least: value.trim().parse().ok()? })
        });
        parsed.ok_or_else(|| {
            let names: Vec<_> = METRICS.iter().filter(requirable).map(|metric| format!("`{}`", metric.name)).collect();
            ValueError::new(format!("write it as `kps_no_token=0.9`; scores are {}", names.join(", ")))
        })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// What is in a file: format, ranks, modules, base, metadata
    Inspect {
        /// The adapter file or PEFT folder
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the same adapter under another program's key names
    Convert {
        /// The adapter file or PEFT folder
        file: PathBuf,
        /// Whose key names to write
        #[arg(long, value_parser = named::<Format>(), value_name = "NAME")]
        format: Format,
        /// The base that the adapter belongs to
        #[arg(long, default_value = "embedded", value_name = "BASE")]
        base: String,
        /// The new file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace the file --out if it is there; write beside files in the folder --out
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FederateCommand {
    /// Average adapter files into one
    Aggregate(AggregateArgs),
    /// Play a federation of drawn artists on the embedded base
    Simulate(SimulateArgs),
    /// Rounds of a federation over a shared folder or an S3 bucket, without a server
    #[command(subcommand)]
    Round(RoundCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RoundCommand {
    /// Make a private key, and print the public one
    Key {
        /// The new file, which only its owner can read; an old one is never replaced
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Create a federation; its coordinator is who has the key
    Create(Box<RoundCreateArgs>),
    /// The members, whose contributions count
    #[command(subcommand)]
    Member(MemberCommand),
    /// Open the next round
    Open {
        #[command(flatten)]
        coordinator: CoordinatorArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Fetch the open round, to train for it
    Fetch {
        #[command(flatten)]
        look: LookArgs,
        /// The client's folder, the same in every round: it remembers the coordinator
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Write beside files in --out that this command did not make; none of them is ever replaced
        #[arg(long)]
        force: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Sign a contribution and send it to the open round
    Submit {
        #[command(flatten)]
        look: LookArgs,
        /// The client's private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The contribution, as training for the round left it
        #[arg(long, value_name = "FILE")]
        contribution: PathBuf,
        /// The folder of `round fetch` [default: the contribution's]
        #[arg(long, value_name = "DIR")]
        round: Option<PathBuf>,
    },
    /// Close the open round: after its deadline, or when all have sent
    Close {
        #[command(flatten)]
        coordinator: CoordinatorArgs,
        /// Do not wait for the deadline; the quorum holds all the same
        #[arg(long)]
        now: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// The round, its deadline, who has sent and who is missing
    Status {
        #[command(flatten)]
        look: LookArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the adapter after the last round that has closed
    Result {
        #[command(flatten)]
        look: LookArgs,
        /// The new file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace the file --out if it is there
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Add members; they take part from the next round on
    Add {
        /// Names and public keys: ada=ed25519:0123…
        #[arg(required = true, value_name = "NAME=KEY")]
        members: Vec<NamedKey>,
        #[command(flatten)]
        coordinator: CoordinatorArgs,
    },
    /// Remove members; what they have sent to an open round is refused
    Remove {
        #[arg(required = true, value_name = "NAME")]
        members: Vec<ClientName>,
        #[command(flatten)]
        coordinator: CoordinatorArgs,
    },
    /// Names and public keys
    List {
        #[command(flatten)]
        look: LookArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A member: `ada=ed25519:0123…`.
#[derive(Debug, Clone)]
pub(crate) struct NamedKey(pub(crate) ClientName, pub(crate) PublicKey);

impl FromStr for NamedKey {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, key) = text.split_once('=').ok_or_else(|| ValueError::new("write it as `ada=ed25519:0123…`"))?;
        let wrong = |error: catelier_workflows::rounds::Error| ValueError::new(error.to_string());
        Ok(Self(name.parse().map_err(wrong)?, key.parse().map_err(wrong)?))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RoundCreateArgs {
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) settings: RoundSettings,
    /// Read settings from this file; flags win over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The base that all train on: `embedded`, a folder or a hub id
    #[arg(long, default_value = "embedded", value_name = "BASE")]
    pub(crate) base: String,
    /// An adapter that all clients start from [default: each starts afresh]
    #[arg(long, value_name = "FILE")]
    pub(crate) start: Option<PathBuf>,
}

/// A place, and the key of its coordinator.
#[derive(Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// The shared folder, or s3://BUCKET/PREFIX with the variables of AWS's programs (AWS_ACCESS_KEY_ID, …)
    #[arg(long, value_name = "PLACE")]
    pub(crate) place: String,
    /// The coordinator's private key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
}

/// A place, and by what its federation is known.
#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// The shared folder, or s3://BUCKET/PREFIX with the variables of AWS's programs (AWS_ACCESS_KEY_ID, …)
    #[arg(long, value_name = "PLACE")]
    pub(crate) place: String,
    /// The coordinator's public key; a folder of `round fetch` remembers it
    #[arg(long, value_name = "KEY")]
    pub(crate) coordinator: Option<PublicKey>,
}

#[derive(Debug, Args)]
pub(crate) struct AggregateArgs {
    /// Adapter file, with its weight after a colon if it is not 1; give at least two
    #[arg(long, value_name = "FILE[:WEIGHT]", required = true)]
    pub(crate) adapter: Vec<AdapterSource>,
    /// fedavg (averages the factors, inexact), product (averages the updates, exact; ranks may differ), or another strategy
    /// that needs no start: flora, fedex, fair, fedrot, hetlora, raflora, median, trimmed-mean, krum:N, geometric-median,
    /// norm-bound
    #[arg(long, default_value = "product", value_name = "NAME")]
    pub(crate) strategy: Strategy,
    /// Rank of the result [default: the largest rank given]
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<usize>,
    /// The base that the adapters belong to
    #[arg(long, default_value = "embedded", value_name = "BASE")]
    pub(crate) base: String,
    /// The new file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace the file --out if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    pub(crate) settings: SimulateSettings,
    /// Go on after the last round that is saved in --out
    #[arg(long)]
    pub(crate) resume: bool,
    /// Where the adapters, the state and the table go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write beside files in --out that this command did not make; none of them is ever replaced
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BaseCommand {
    /// Download a hub id's files into the standard cache
    Fetch {
        /// For example stable-diffusion-v1-5/stable-diffusion-v1-5
        id: String,
    },
    /// What a base holds: family, sizes, modules that can be adapted
    Inspect {
        /// `embedded`, a folder or a hub id
        #[arg(default_value = "embedded")]
        base: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GalleryCommand {
    /// The artists that can draw
    List {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Draw captioned images
    Draw(DrawArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DrawArgs {
    /// Who draws; `house` is the plain style that the embedded base knows
    #[arg(long, default_value = "house", value_name = "NAME")]
    pub(crate) artist: String,
    /// How many images
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) count: usize,
    /// Seed of the scenes, and of random styles
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// png: images with .txt captions; npy: one array with metadata.jsonl, for the base's recipe
    #[arg(long, value_enum, default_value = "png")]
    pub(crate) format: DrawFormat,
    /// Which scenes: all, train (what the base has seen) or held-out
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) split: DrawSplit,
    /// Draw in N random styles, which take turns and are named in the captions; another seed, other styles
    #[arg(long, conflicts_with = "artist", value_name = "N")]
    pub(crate) family: Option<NonZeroUsize>,
    /// Draw generic textures instead of scenes, for the autoencoder's recipe
    #[arg(long, conflicts_with_all = ["artist", "family"])]
    pub(crate) textures: bool,
    /// Where the images go
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Draw anew over images that `gallery draw` made, or beside files that it did not make
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DrawFormat {
    /// A PNG and a .txt file for each image
    Png,
    /// pictures.npy and metadata.jsonl
    Npy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DrawSplit {
    /// Every scene
    All,
    /// Scenes that the embedded base was trained on
    Train,
    /// Combinations that it has never seen
    HeldOut,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One step of training: forward, backward, clipping, AdamW; or a forward pass alone
    Step {
        /// Which passes a step has
        #[arg(long, value_enum, default_value = "cat")]
        loss: BenchLoss,
        /// Rank of the adapter
        #[arg(long, default_value_t = 8, value_name = "N")]
        rank: usize,
        /// Side of the latents; 32 is an image of 256 px [default: 32, or 16 for the embedded base]
        #[arg(long, value_name = "N")]
        latent: Option<usize>,
        /// Memory that the step may take, such as 4GB; the estimate is printed beside the measured peak [default: no limit]
        #[arg(long, value_name = "SIZE")]
        memory_limit: Option<MemoryLimit>,
        #[command(flatten)]
        args: BenchArgs,
    },
    /// Images from a prompt: guided DDIM steps and the decoder
    Generate {
        /// Denoising steps
        #[arg(long, default_value_t = 20, value_name = "N")]
        steps: usize,
        /// Side of the latents; 32 is an image of 256 px [default: 32, or 16 for the embedded base]
        #[arg(long, value_name = "N")]
        latent: Option<usize>,
        #[command(flatten)]
        args: BenchArgs,
    },
    /// The autoencoder: images to latents and back
    Vae {
        /// Side of the latents; 32 is an image of 256 px [default: 32, or 16 for the embedded base]
        #[arg(long, value_name = "N")]
        latent: Option<usize>,
        #[command(flatten)]
        args: BenchArgs,
    },
    /// The text encoders, on prompts of full length
    Text {
        #[command(flatten)]
        args: BenchArgs,
    },
}

/// What every benchmark can be told.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// The shape of the model; all but the embedded base have made-up weights
    #[arg(long, value_enum, default_value = "sd15")]
    pub(crate) shape: ShapeName,
    /// Samples computed together
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) batch: usize,
    /// Element types of weights and activations
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) dtype: BenchPrecision,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: DeviceChoice,
    /// Iterations that are measured
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) repeat: usize,
    /// Iterations before them
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) warmup: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapeName {
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion 2.1
    Sd21,
    /// Stable Diffusion XL 1.0
    Sdxl,
    /// The tiny model in this binary
    Embedded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchLoss {
    /// Denoising with the adapter
    Lora,
    /// The same, and the CAT term: one more pass with the adapter and one without
    Cat,
    /// A forward pass of the base, no training
    None,
}

/// What weights and activations are kept and computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchPrecision {
    /// Everything in f32
    F32,
    /// Frozen weights in bf16 (`bf16` of the other commands), the rest in f32; activations in bf16 too, unless on the CPU
    #[value(alias = "bf16")]
    Mixed,
}
