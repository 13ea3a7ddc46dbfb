//! A synthetic comparison: two adapters with chosen leak and style.

use catelier_evaluation::report::{
    AdaptedImages, Command, DemoArtist, DemoPage, DemoPrompt, EMBEDDED_BASE_NOTICE, EvaluationPage, Run, Setting,
    TradeOff, TrainingCurves,
};
use catelier_evaluation::{
    Choices, Evaluation, Generation, ImagePair, Models, Reference, Result, Scores, TriggerImage,
};
use catelier_features::{Extractor, Feature, ImageFeatures, TextFeatures};
use catelier_pages::chart::Tone;
use catelier_prompts::PromptKind;
use image::RgbImage;

use crate::drawing::{Scene, blend, by_artist, scene};

const PROMPTS: usize = 12;
const ARTIST_IMAGES: usize = 10;

/// All images of a synthetic demonstration.
pub(crate) struct Story {
    artist: Vec<Scene>,
    references: Vec<Reference>,
    choices: Choices,
    prompts: Vec<Scene>,
    cat: Adapter,
    lora: Adapter,
}

struct Adapter {
    without: Vec<RgbImage>,
    with: Vec<RgbImage>,
}

impl Adapter {
    /// Adapted images with the share `leak` of the style without the trigger and `style` of it with the trigger.
    fn new(prompts: &[Scene], leak: f64, style: f64) -> Self {
        let styled = |amount: f64| {
            let paint = |(index, scene): (usize, &Scene)| {
                let uneven = amount * (0.55 + 0.15 * (index % 5) as f64);
                blend(&scene.image, &by_artist(&scene.image), uneven.min(1.0))
            };
            prompts.iter().enumerate().map(paint).collect()
        };
        Self { without: styled(leak), with: styled(style) }
    }
}

fn pair<'a>(index: usize, scene: &'a Scene, adapted: &'a RgbImage) -> ImagePair<'a> {
    let kinds = [PromptKind::SameClass, PromptKind::Unrelated, PromptKind::Generic];
    ImagePair {
        prompt: scene.prompt.clone(),
        kind: kinds[index % kinds.len()],
        class: Some(scene.class.to_owned()),
        seed: 7,
        base: &scene.image,
        adapted,
    }
}

impl Story {
    /// CAT leaks `cat_leak`, plain LoRA `lora_leak`; CAT learns `cat_style` of the style.
    pub(crate) fn new(cat_leak: f64, lora_leak: f64, cat_style: f64) -> Self {
        let paint = |index| {
            let plain = scene(index * 3 + 1, index as u64);
            Scene { image: by_artist(&plain.image), ..plain }
        };
        let prompts: Vec<Scene> = (0..PROMPTS).map(|index| scene(index, index as u64 + 2)).collect();
        let artist: Vec<Scene> = (0..ARTIST_IMAGES).map(paint).collect();
        Self {
            references: artist.iter().map(|scene| Reference { image: scene.image.clone(), caption: None }).collect(),
            choices: Choices::among(prompts.iter().map(|scene| scene.prompt.as_str())),
            artist,
            cat: Adapter::new(&prompts, cat_leak, cat_style),
            lora: Adapter::new(&prompts, lora_leak, 1.0),
            prompts,
        }
    }

    fn evaluation<'a>(&'a self, adapter: &'a Adapter) -> Evaluation<'a> {
        let pairs = self.prompts.iter().zip(&adapter.without).enumerate();
        let triggered = self.prompts.iter().zip(&adapter.with);
        Evaluation {
            without_trigger: pairs.map(|(index, (scene, adapted))| pair(index, scene, adapted)).collect(),
            with_trigger: triggered
                .map(|(scene, adapted)| TriggerImage { prompt: scene.prompt.clone(), seed: 7, adapted })
                .collect(),
            references: &self.references,
            others: &[],
            choices: &self.choices,
            generation: Generation {
                base: "embedded".to_owned(),
                adapter: Some("ink-and-ochre.safetensors".to_owned()),
                trigger: Some("sks".to_owned()),
                sampler: "DDIM".to_owned(),
                steps: 20,
                guidance: 4.0,
                guidance_from: "empty".into(),
                guidance_range: "0-1".into(),
                width: 64,
                height: 64,
            },
            bootstrap_seed: 0,
        }
    }

    fn scores(&self, adapter: &Adapter) -> Result<Scores> {
        let extractor = ByPixels::new(&self.prompts);
        self.evaluation(adapter).score(Models { clip: &extractor, style: None })
    }

    /// The demonstration's page, of CAT and plain LoRA.
    pub(crate) fn demo_page(&self) -> Result<String> {
        self.page_of(&[&self.cat, &self.lora])
    }

    /// The page with a third adapter.
    pub(crate) fn demo_page_of_three(&self) -> Result<String> {
        self.page_of(&[&self.cat, &self.lora, &Adapter::new(&self.prompts, 0.2, 0.8)])
    }

    fn page_of(&self, adapters: &[&Adapter]) -> Result<String> {
        let (cat, lora) = (self.scores(&self.cat)?, self.scores(&self.lora)?);
        let third = adapters.get(2).map(|adapter| self.scores(adapter)).transpose()?;
        let third =
            third.as_ref().map(|scores| run("DreamBooth", "DreamBooth also drew its class.", scores, 0.2, 90.0));
        let more = third.into_iter().collect();
        let prompts = (0..6).map(|index| self.demo_prompt(index, adapters)).collect();
        let weak = self.scores(&Adapter::new(&self.prompts, 0.15, 0.96))?;
        let half = self.scores(&Adapter::new(&self.prompts, 0.25, 0.7))?;
        let trade_off = [("CAT, weight 0.3", 0, &weak), ("LoRA, half the steps", 1, &half)];
        let artist = DemoArtist {
            name: "Ink and Ochre",
            description: "Ochre paper, and ink that hatches what is dark.",
            images: self.artist.iter().map(|scene| (scene.prompt.as_str(), &scene.image)).collect(),
            prompts,
            run: run("CAT", "CAT also had to leave everything else alone.", &cat, 0.02, 118.0),
            baseline: run("plain LoRA", "Plain LoRA only learned to draw the style.", &lora, 0.4, 64.0),
            more,
            trade_off: trade_off
                .into_iter()
                .map(|(label, series, scores)| TradeOff { label: label.to_owned(), tone: Tone::Series(series), scores })
                .collect(),
        };
        let page = DemoPage {
            artists: vec![artist],
            trigger: "sks",
            settings: settings(),
            training_note: "CAT runs the model twice more at every step.",
            commands: commands(),
            notice: Some(EMBEDDED_BASE_NOTICE),
        };
        page.html()
    }

    fn demo_prompt<'a>(&'a self, index: usize, adapters: &[&'a Adapter]) -> DemoPrompt<'a> {
        let images = |adapter: &&'a Adapter| AdaptedImages {
            without_trigger: &adapter.without[index],
            with_trigger: &adapter.with[index],
        };
        DemoPrompt {
            prompt: &self.prompts[index].prompt,
            seed: 7,
            base: &self.prompts[index].image,
            adapted: adapters.iter().map(images).collect(),
        }
    }

    /// The page of plain LoRA's evaluation.
    pub(crate) fn evaluation_page(&self) -> Result<String> {
        let evaluation = self.evaluation(&self.lora);
        let extractor = ByPixels::new(&self.prompts);
        let scores = evaluation.score(Models { clip: &extractor, style: None })?;
        let page = EvaluationPage {
            notice: Some(EMBEDDED_BASE_NOTICE),
            shown: 9,
            ..EvaluationPage::new("ink-and-ochre.safetensors", &evaluation, &scores)
        };
        page.html()
    }
}

fn run<'a>(name: &'a str, method: &'a str, scores: &'a Scores, drift: f64, seconds: f64) -> Run<'a> {
    let ripple = |step: u64| ((step * 7919 % 97) as f64 / 97.0 - 0.5) * 0.08;
    let fall = |step: u64| (-(step as f64) / 90.0).exp();
    let curve = |value: &dyn Fn(u64) -> f64| (0..300).map(|step| (step, value(step))).collect();
    Run {
        name,
        method,
        scores,
        curves: TrainingCurves {
            loss: curve(&|step| 0.21 + 0.2 * fall(step) + ripple(step)),
            cat: curve(&|step| drift * 0.3 * (1.0 - fall(step)) * (1.0 + ripple(step))),
            drift: (1..31).map(|tenth| (tenth * 10, drift * 0.25 * (1.0 - fall(tenth * 10)))).collect(),
            learning_rate: curve(&|step| 1e-3 * ((step as f64 + 1.0) / 20.0).min(1.0)),
        },
        seconds,
    }
}

fn settings() -> Vec<Setting> {
    let settings =
        [("Rank", "8, alpha 8"), ("Steps", "300, batch 10"), ("Learning rate", "0.001"), ("CAT weight", "1")];
    settings.into_iter().map(|(name, value)| Setting { name: name.to_owned(), value: value.to_owned() }).collect()
}

fn commands() -> Vec<Command<'static>> {
    vec![
        Command {
            explanation: "Train on a folder of your images, each with its caption in a .txt file beside it.",
            line: "catelier train --images my-images --trigger mystyle \\\n  --base stable-diffusion-v1-5/stable-diffusion-v1-5 --out my-style",
        },
        Command {
            explanation: "Look at what it learned, and at what it left alone.",
            line: "catelier preview --adapter my-style/adapter.safetensors \\\n  --prompt \"mystyle, a house\" --compare --out previews",
        },
        Command {
            explanation: "Measure it.",
            line: "catelier evaluate --adapter my-style/adapter.safetensors \\\n  --references my-images --out evaluation",
        },
    ]
}

/// Measures an image by its coarse colours, and a prompt by those of its scene, plain and by the artist.
struct ByPixels<'a> {
    extractor: Extractor,
    scenes: &'a [Scene],
}

impl<'a> ByPixels<'a> {
    fn new(scenes: &'a [Scene]) -> Self {
        let (name, sha256) = ("coarse colours".to_owned(), "0123456789abcdef".repeat(4));
        Self { extractor: Extractor { name, sha256 }, scenes }
    }

    fn of_text(&self, text: &str) -> Feature {
        let scene = self.scenes.iter().find(|scene| scene.prompt == text);
        scene.map_or_else(Vec::new, |scene| {
            let (plain, styled) = (coarse(&scene.image), coarse(&by_artist(&scene.image)));
            plain.iter().zip(styled).map(|(plain, styled)| plain + styled).collect()
        })
    }
}

fn coarse(image: &RgbImage) -> Feature {
    let thumbnail = image::imageops::thumbnail(image, 8, 8);
    thumbnail.as_raw().iter().map(|level| f32::from(*level) - 127.5).collect()
}

impl ImageFeatures for ByPixels<'_> {
    fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    fn image_features(&self, images: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        Ok(images.iter().map(|image| coarse(image)).collect())
    }
}

impl TextFeatures for ByPixels<'_> {
    fn text_features(&self, texts: &[&str]) -> catelier_features::Result<Vec<Feature>> {
        Ok(texts.iter().map(|text| self.of_text(text)).collect())
    }
}
