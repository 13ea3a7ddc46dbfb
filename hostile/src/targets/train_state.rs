//! The saved state of a training run.

use std::fs;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use candle_core::{DType, Device};
use catelier_testkit::golden::Golden;
use catelier_workflows::adapters::Targets;
use catelier_workflows::pipelines::data::{Frame, TrainingImage, TrainingImages};
use catelier_workflows::pipelines::models::ImageSizes;
use catelier_workflows::pipelines::models::base::BaseModel;
use catelier_workflows::pipelines::models::files::ModelFiles;
use catelier_workflows::pipelines::training::{EncodedDataset, StateFolder, TrainConfig, Trainer};
use catelier_workflows::prompts::captions::{CaptionSource, pair_text};
use catelier_workflows::prompts::{CatCondition, Trigger};
use image::{Rgb, RgbImage};

use crate::{Verdict, folder, refused};

/// A base with data to train on.
struct Surroundings {
    base: BaseModel,
    data: EncodedDataset,
}

static SURROUNDINGS: LazyLock<Surroundings> = LazyLock::new(|| {
    let files = ModelFiles::folder(Golden::open().model("tiny-sd1"));
    let base = BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap();
    let pixels = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]));
    let image = TrainingImage {
        name: "0.png".into(),
        captions: pair_text("a red teapot", &Trigger::new("shs").unwrap()),
        source: CaptionSource::Shared,
        repeats: 1,
        frames: vec![Frame { pixels, mirrored: false, sizes: ImageSizes::uncropped(32, 32) }],
    };
    let images = TrainingImages { images: vec![image], notices: vec![] };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let data = EncodedDataset::encode(&base, &images, CatCondition::Caption, None, go_on).unwrap();
    Surroundings { base, data }
});

/// The bytes of the one state that is whole.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    folder::with(|folder| {
        let states = folder.join("whole");
        trainer(StateFolder::new(&states)).save().unwrap();
        let file = fs::read_dir(&states).unwrap().next().unwrap().unwrap().path();
        fs::read(file).unwrap()
    })
});

fn trainer(states: StateFolder) -> Trainer<'static> {
    let Surroundings { base, data } = &*SURROUNDINGS;
    let config = TrainConfig {
        rank: 1,
        alpha: 1.0,
        targets: Targets::patterns(vec!["*mid_block*.attn2.to_v".into()]),
        ema_decay: Some(0.9),
        ..TrainConfig::default()
    };
    Trainer::new(base, config, data, states).unwrap()
}

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("train", "state/step-000000.safetensors", input, |path| {
        let mut trainer = trainer(StateFolder::new(path.parent().unwrap()));
        match trainer.resume() {
            Ok(resumed) => {
                assert!(input == *WHOLE, "a damaged state was used, at step {}", resumed.step);
                Verdict::Accepted
            }
            Err(error) => refused(&error),
        }
    })
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    vec![WHOLE.clone()]
}
