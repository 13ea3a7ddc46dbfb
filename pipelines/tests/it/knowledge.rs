//! Knowledge on proxy items: means, and adapters that are trained towards it.

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use catelier_adapters::{Adapter, AdapterSet, UpdateKind};
use catelier_pipelines::data::{Frame, TrainingImage, TrainingImages};
use catelier_pipelines::models::ImageSizes;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::training::{
    Control, EncodedDataset, Knowledge, LossKind, Proxies, StateFolder, StepReport, TrainConfig, TrainError,
    TrainObserver, Trainer,
};
use catelier_prompts::captions::{CaptionSource, pair_text};
use catelier_prompts::{CatCondition, Trigger};
use catelier_testkit::golden::Golden;
use image::{Rgb, RgbImage};

struct Silent;

impl TrainObserver for Silent {
    fn on_step(&mut self, _: &StepReport) -> Result<Control, TrainError> {
        Ok(Control::Continue)
    }
}

fn base() -> BaseModel {
    let files = ModelFiles::folder(Golden::open().model("tiny-sd1"));
    BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap()
}

/// Images of 32 pixels with a caption into which `trigger` is inserted.
fn dataset(base: &BaseModel, trigger: &str, count: u32, shade: u32) -> EncodedDataset {
    let trigger = Trigger::new(trigger).unwrap();
    let image = |number: u32| {
        let pixel = |x: u32, y: u32| Rgb([(x * 7 + number * 90) as u8, (y * 5 + shade) as u8, (x * y) as u8]);
        TrainingImage {
            name: format!("{number}.png"),
            captions: pair_text("a red teapot", &trigger),
            source: CaptionSource::Shared,
            repeats: 1,
            frames: vec![Frame {
                pixels: RgbImage::from_fn(32, 32, pixel),
                mirrored: false,
                sizes: ImageSizes::uncropped(32, 32),
            }],
        }
    };
    let images = TrainingImages { images: (0..count).map(image).collect(), notices: vec![] };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    EncodedDataset::encode(base, &images, CatCondition::Caption, None, go_on).unwrap()
}

const PROXIES: Proxies = Proxies { samples: 2, draws: 3, seed: 4 };

fn config() -> TrainConfig {
    TrainConfig { steps: 4, rank: 2, alpha: 2.0, learning_rate: 1e-2, loss: LossKind::Lora, ..TrainConfig::default() }
}

fn known(base: &BaseModel, dataset: &EncodedDataset, adapter: &Adapter) -> Knowledge {
    let adapters = AdapterSet::single(adapter, 1.0);
    Knowledge::of(base, dataset, PROXIES, 0..PROXIES.samples, &adapters, &|| false).unwrap()
}

/// An adapter that changes predictions by much.
fn teacher(base: &BaseModel, dataset: &EncodedDataset, seed: u64) -> Adapter {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { seed, ..config() };
    let mut trainer = Trainer::new(base, config, dataset, StateFolder::new(folder.path())).unwrap();
    trainer.run(&mut Silent).unwrap();
    trainer.adapter().unwrap().scaled(4.0).unwrap()
}

#[test]
fn an_adapter_of_another_kind_rank_and_targets_learns_what_is_known() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let proxies = dataset(&base, "shs", 2, 0);
    let goal = known(&base, &proxies, &teacher(&base, &proxies, 1));
    let config = TrainConfig {
        steps: 40,
        rank: 4,
        alpha: 4.0,
        kind: UpdateKind::Dora,
        targets: "everything".parse().unwrap(),
        batch: 2,
        ..config()
    };
    let states = StateFolder::new(folder.path());
    let run = || Trainer::new(&base, config.clone(), &proxies, states.clone()).unwrap().towards(&goal).unwrap();
    let mut trainer = run();
    let before = goal.relative_distance(&known(&base, &proxies, &trainer.adapter().unwrap())).unwrap();
    assert!((before - 1.0).abs() < 1e-4, "a fresh adapter knows nothing: {before}");
    trainer.run(&mut Silent).unwrap();
    let after = goal.relative_distance(&known(&base, &proxies, &trainer.adapter().unwrap())).unwrap();
    assert!(after < 0.6, "{after}");

    trainer.save().unwrap();
    assert_eq!(run().resume().unwrap().step, 40);
    let other = known(&base, &proxies, &teacher(&base, &proxies, 2));
    let resumed =
        Trainer::new(&base, config.clone(), &proxies, states.clone()).unwrap().towards(&other).unwrap().resume();
    assert!(resumed.unwrap_err().to_string().contains("another"));
}

/// The loss of a first step, in which a fresh adapter predicts as the base does, is that of the images without proxies.
#[test]
fn images_that_are_no_proxies_keep_the_targets_of_the_schedule() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let proxies = dataset(&base, "shs", 1, 0);
    let one = Proxies { samples: 1, ..PROXIES };
    let none = Knowledge::of(&base, &proxies, one, 0..1, &AdapterSet::base(), &|| false).unwrap();
    let both = EncodedDataset::together([&proxies, &dataset(&base, "shs", 1, 90)].into_iter());
    let config = TrainConfig { steps: 1, batch: 2, ..config() };
    let states = |name: &str| StateFolder::new(folder.path().join(name));
    let denoising = |mut trainer: Trainer<'_>| {
        let mut first = First::default();
        trainer.run(&mut first).unwrap();
        first.0.unwrap()
    };
    let towards = Trainer::new(&base, config.clone(), &both, states("towards")).unwrap().towards(&none).unwrap();
    let plain = Trainer::new(&base, config, &both, states("plain")).unwrap();
    let (towards, plain) = (denoising(towards), denoising(plain));
    // The base knows nothing beyond itself, so the proxy's row is 0: what is left is the other image's half.
    assert!(towards > 0.1 * plain && towards < 0.9 * plain, "{towards} of {plain}");
}

/// Keeps the denoising loss of the first step.
#[derive(Default)]
struct First(Option<f64>);

impl TrainObserver for First {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        self.0.get_or_insert(report.denoising);
        Ok(Control::Continue)
    }
}

#[test]
fn a_mean_is_over_those_who_know_an_item() {
    let base = base();
    let proxies = dataset(&base, "shs", 2, 0);
    let teachers = [1, 2].map(|seed| teacher(&base, &proxies, seed));
    let [one, two] = [0, 1].map(|index| known(&base, &proxies, &teachers[index]));
    let mean = |parts: &[(&Knowledge, f64)]| Knowledge::mean(parts).unwrap();
    assert!(one.relative_distance(&mean(&[(&one, 3.0), (&one, 1.0)])).unwrap() < 1e-6);
    let (half, quarter) = (mean(&[(&one, 1.0), (&two, 1.0)]), mean(&[(&one, 1.0), (&two, 3.0)]));
    let apart = one.relative_distance(&two).unwrap();
    assert!((one.relative_distance(&half).unwrap() / apart - 0.5).abs() < 1e-4);
    assert!((one.relative_distance(&quarter).unwrap() / apart - 0.75).abs() < 1e-4);

    let adapters = AdapterSet::single(&teachers[1], 1.0);
    let second = Knowledge::of(&base, &proxies, PROXIES, 1..2, &adapters, &|| false).unwrap();
    assert_eq!(2 * second.byte_count(), two.byte_count());
    let first = Knowledge::of(&base, &proxies, PROXIES, 0..1, &AdapterSet::single(&teachers[0], 1.0), &|| false);
    let union = mean(&[(&first.unwrap(), 1.0), (&second, 5.0)]);
    assert_eq!(union.byte_count(), two.byte_count());
    assert!(second.relative_distance(&union).unwrap() < 1e-6, "nobody else knows the second sample");
}

#[test]
fn knowledge_of_other_items_or_of_nobody_is_refused() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let proxies = dataset(&base, "shs", 2, 0);
    let one = known(&base, &proxies, &teacher(&base, &proxies, 1));
    let other = Proxies { seed: 5, ..PROXIES };
    let two = Knowledge::of(&base, &proxies, other, 0..2, &AdapterSet::base(), &|| false).unwrap();
    assert!(Knowledge::mean(&[(&one, 1.0), (&two, 1.0)]).unwrap_err().to_string().contains("same items"));
    assert!(Knowledge::mean(&[]).is_err());
    let small = dataset(&base, "shs", 1, 0);
    let states = StateFolder::new(folder.path());
    let refused = Trainer::new(&base, config(), &small, states).unwrap().towards(&one).err().unwrap();
    assert!(refused.to_string().contains("the first of 1 samples"), "{refused}");
    let stopped = Knowledge::of(&base, &proxies, PROXIES, 0..2, &AdapterSet::base(), &|| true);
    assert!(stopped.is_err());
}
