//! What a run learns from, encoded once: latents and text embeddings.

use std::collections::HashMap;

use candle_core::TensorId;
use catelier_adapters::AdapterSet;
use catelier_numerics::noise::Stream;
use catelier_prompts::CatCondition;
use image::RgbImage;

use super::{TrainConfig, TrainError};
use crate::base::BaseModel;
use crate::data::{Embeddings, Frame, LatentCache, Order, TrainingPictures};
use crate::model::{Condition, ImageSizes, Moments, PromptKeys};

const ORDER: Stream = Stream("train/order");
const CLASS_ORDER: Stream = Stream("train/class-order");

/// One picture (or its mirror image) and its captions.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The picture's name, for messages.
    pub name: String,
    /// The autoencoder's distribution, `[1, 4, height/8, width/8]`, not scaled.
    pub moments: Moments,
    /// Its caption with the trigger, `[1, tokens, width]`.
    pub with_trigger: Condition,
    /// What the CAT term is conditioned on.
    pub without_trigger: Caption,
    /// Times that it is seen in an epoch, at least 1.
    pub repeats: usize,
}

/// Everything a run learns from.
#[derive(Debug, Clone)]
pub struct Lessons {
    /// The artist's pictures; at least one.
    pub lessons: Vec<Lesson>,
    /// Pictures of the class, drawn by the base; only DreamBooth needs them.
    pub class: Vec<Lesson>,
    /// The empty caption, `[1, tokens, width]`.
    pub empty: Caption,
    digest: String,
}

/// A caption that the base is asked about again and again.
#[derive(Debug, Clone)]
pub struct Caption {
    /// `[1, tokens, width]`.
    pub condition: Condition,
    /// What the base's attention makes of it, unless the memory for such things is used up.
    pub keys: Option<PromptKeys>,
}

impl Caption {
    /// What the base makes of all `captions`, one after another, if it is known of each.
    pub(super) fn keys(captions: &[&Self]) -> Result<Option<PromptKeys>, TrainError> {
        let keys: Option<Vec<&PromptKeys>> = captions.iter().map(|caption| caption.keys.as_ref()).collect();
        Ok(keys.map(|keys| PromptKeys::cat(&keys)).transpose()?)
    }
}

impl Lessons {
    /// Encodes every picture and every distinct caption once; `tell` hears how many pictures of how many are done.
    ///
    /// # Errors
    /// The class condition without a class prompt; anything that the encoders refuse.
    pub fn encode(
        base: &BaseModel,
        pictures: &TrainingPictures,
        condition: CatCondition,
        class: Option<&str>,
        tell: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, TrainError> {
        let mut captions = Captions::new(base);
        let cache = LatentCache::encode(pictures, base.device(), |image| base.vae.encode(image), tell)?;
        let mut lessons = Vec::with_capacity(cache.frames().len());
        for frame in cache.frames() {
            let picture = &pictures.pictures[frame.picture];
            let without_trigger = condition.text(&picture.captions, class).map_err(crate::Error::from)?;
            lessons.push(Lesson {
                name: picture.name.clone(),
                moments: frame.moments.clone(),
                with_trigger: captions.condition(&picture.captions.with_trigger)?.with_sizes(&[frame.sizes])?,
                without_trigger: captions.caption(without_trigger, frame.sizes)?,
                repeats: picture.repeats,
            });
        }
        let sizes = cache.frames()[0].sizes;
        let empty = captions.caption("", sizes)?;
        Ok(Self { lessons, class: Vec::new(), empty, digest: pictures.digest() })
    }

    /// The same with pictures of the class, all captioned `class`.
    pub fn with_class_pictures(
        mut self,
        base: &BaseModel,
        class: &str,
        pictures: &[RgbImage],
    ) -> Result<Self, TrainError> {
        let mut captions = Captions::new(base);
        for (number, pixels) in pictures.iter().enumerate() {
            let sizes = ImageSizes::uncropped(pixels.height(), pixels.width());
            let frame = Frame { pixels: pixels.clone(), mirrored: false, sizes };
            let without_trigger = captions.caption(class, sizes)?;
            self.class.push(Lesson {
                name: format!("class picture {}", number + 1),
                moments: base.vae.encode(&frame.tensor(base.device())?)?,
                with_trigger: without_trigger.condition.clone(),
                without_trigger,
                repeats: 1,
            });
        }
        Ok(self)
    }

    /// The same with what the base makes of the captions that the CAT term asks it about, while there is room.
    ///
    /// # Errors
    /// Those of [`UNet::prompt_keys`](crate::model::UNet::prompt_keys).
    pub fn with_keys(mut self, base: &BaseModel) -> Result<Self, TrainError> {
        let (mut known, mut held): (HashMap<TensorId, PromptKeys>, usize) = (HashMap::new(), 0);
        let captions = self.lessons.iter_mut().map(|lesson| &mut lesson.without_trigger);
        for caption in captions.chain([&mut self.empty]) {
            let context = caption.condition.context.id();
            if !known.contains_key(&context) && held < KEYS {
                let keys = base.unet.prompt_keys(&caption.condition, &AdapterSet::base())?;
                held += keys.bytes();
                known.insert(context, keys);
            }
            caption.keys = known.get(&context).cloned();
        }
        Ok(self)
    }

    /// Which lessons each batch sees.
    ///
    /// # Errors
    /// An objective with class pictures when there are none.
    pub(super) fn orders(&self, config: &TrainConfig) -> Result<Orders, TrainError> {
        let order = |lessons: &[Lesson], stream| {
            Order::new(lessons.iter().map(|lesson| lesson.repeats), stream, config.seed).map_err(crate::Error::from)
        };
        if config.uses_prior() && self.class.is_empty() {
            return Err(TrainError::NoClassPictures);
        }
        let class = config.uses_prior().then(|| order(&self.class, CLASS_ORDER)).transpose()?;
        Ok(Orders { artist: order(&self.lessons, ORDER)?, class })
    }

    /// SHA-256 over pictures and captions, in hexadecimal.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }
}

/// The order of the artist's pictures and of the class pictures, functions of (seed, draw) alone.
pub(super) struct Orders {
    artist: Order,
    class: Option<Order>,
}

impl Orders {
    /// The artist's pictures of batch `draw`, with their numbers.
    pub(super) fn artist<'a>(&self, lessons: &'a Lessons, draw: usize, batch: usize) -> Vec<(usize, &'a Lesson)> {
        let picked = self.artist.batch(draw as u64, batch);
        picked.into_iter().map(|index| (index, &lessons.lessons[index])).collect()
    }

    /// The class pictures of batch `draw`; none where the objective has none.
    pub(super) fn class<'a>(&self, lessons: &'a Lessons, draw: usize, batch: usize) -> Vec<&'a Lesson> {
        let picked = self.class.as_ref().map_or_else(Vec::new, |order| order.batch(draw as u64, batch));
        picked.into_iter().map(|index| &lessons.class[index]).collect()
    }
}

/// Bytes of keys that are kept for captions; they save little where they are large.
const KEYS: usize = 64 << 20;

/// Captions encoded on first use.
struct Captions<'a> {
    base: &'a BaseModel,
    embeddings: Embeddings,
}

impl<'a> Captions<'a> {
    fn new(base: &'a BaseModel) -> Self {
        Self { base, embeddings: Embeddings::default() }
    }

    fn condition(&mut self, caption: &str) -> Result<Condition, TrainError> {
        if self.embeddings.get(caption).is_none() {
            self.embeddings.add([caption], |text| self.base.text.encode(&[text]))?;
        }
        Ok(self.embeddings.get(caption).expect("it was added above").clone())
    }

    fn caption(&mut self, caption: &str, sizes: ImageSizes) -> Result<Caption, TrainError> {
        Ok(Caption { condition: self.condition(caption)?.with_sizes(&[sizes])?, keys: None })
    }
}
