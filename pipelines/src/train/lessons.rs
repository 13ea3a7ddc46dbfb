//! What a run learns from, encoded once: latents and text embeddings.

use catelier_numerics::noise::Stream;
use catelier_prompts::CatCondition;
use image::RgbImage;

use super::{TrainConfig, TrainError};
use crate::base::BaseModel;
use crate::data::{Embeddings, Frame, LatentCache, Order, TrainingPictures};
use crate::model::{Condition, ImageSizes, Moments};

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
    pub without_trigger: Condition,
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
    pub empty: Condition,
    digest: String,
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
        let mut captions = Captions { base, embeddings: Embeddings::default() };
        let cache = LatentCache::encode(pictures, base.device(), |image| base.vae.encode(image), tell)?;
        let mut lessons = Vec::with_capacity(cache.frames().len());
        for frame in cache.frames() {
            let picture = &pictures.pictures[frame.picture];
            let without_trigger = condition.text(&picture.captions, class).map_err(crate::Error::from)?;
            lessons.push(Lesson {
                name: picture.name.clone(),
                moments: frame.moments.clone(),
                with_trigger: captions.condition(&picture.captions.with_trigger)?.with_sizes(&[frame.sizes])?,
                without_trigger: captions.condition(without_trigger)?.with_sizes(&[frame.sizes])?,
                repeats: picture.repeats,
            });
        }
        let sizes = cache.frames()[0].sizes;
        let empty = captions.condition("")?.with_sizes(&[sizes])?;
        Ok(Self { lessons, class: Vec::new(), empty, digest: pictures.digest() })
    }

    /// The same with pictures of the class, all captioned `class`.
    pub fn with_class_pictures(
        mut self,
        base: &BaseModel,
        class: &str,
        pictures: &[RgbImage],
    ) -> Result<Self, TrainError> {
        let mut captions = Captions { base, embeddings: Embeddings::default() };
        for (number, pixels) in pictures.iter().enumerate() {
            let sizes = ImageSizes::uncropped(pixels.height(), pixels.width());
            let frame = Frame { pixels: pixels.clone(), mirrored: false, sizes };
            let caption = captions.condition(class)?.with_sizes(&[sizes])?;
            self.class.push(Lesson {
                name: format!("class picture {}", number + 1),
                moments: base.vae.encode(&frame.tensor(base.device())?)?,
                with_trigger: caption.clone(),
                without_trigger: caption,
                repeats: 1,
            });
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
    /// The artist's pictures of batch `draw`.
    pub(super) fn artist<'a>(&self, lessons: &'a Lessons, draw: usize, batch: usize) -> Vec<&'a Lesson> {
        pick(&self.artist, &lessons.lessons, draw, batch)
    }

    /// The class pictures of batch `draw`; none where the objective has none.
    pub(super) fn class<'a>(&self, lessons: &'a Lessons, draw: usize, batch: usize) -> Vec<&'a Lesson> {
        self.class.as_ref().map_or_else(Vec::new, |order| pick(order, &lessons.class, draw, batch))
    }
}

fn pick<'a>(order: &Order, lessons: &'a [Lesson], draw: usize, batch: usize) -> Vec<&'a Lesson> {
    order.batch(draw as u64, batch).into_iter().map(|index| &lessons[index]).collect()
}

/// Captions encoded on first use.
struct Captions<'a> {
    base: &'a BaseModel,
    embeddings: Embeddings,
}

impl Captions<'_> {
    fn condition(&mut self, caption: &str) -> Result<Condition, TrainError> {
        if self.embeddings.get(caption).is_none() {
            self.embeddings.add([caption], |text| self.base.text.encode(&[text]))?;
        }
        Ok(self.embeddings.get(caption).expect("it was added above").clone())
    }
}
