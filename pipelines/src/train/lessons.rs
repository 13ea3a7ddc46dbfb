//! What a run learns from, encoded once: latents and text embeddings.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::TensorId;
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::noise::Stream;
use catelier_prompts::CatCondition;
use image::RgbImage;

use super::{TrainConfig, TrainError};
use crate::base::BaseModel;
use crate::data::{Embeddings, Frame, LatentCache, Order, TrainingPictures};
use crate::model::{Condition, CrossAttentionKv, ImageSizes, Moments, UNet};

const ORDER: Stream = Stream("train/order");
const CLASS_ORDER: Stream = Stream("train/class-order");

/// One picture (or its mirror image) and its captions.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The picture's name, for messages.
    pub name: String,
    /// The autoencoder's distribution, `[1, 4, height/8, width/8]`, not scaled.
    pub moments: Moments,
    /// Its caption with the trigger.
    pub with_trigger: Caption,
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
    /// The empty caption.
    pub empty: Caption,
    digest: String,
}

/// A caption that the base is asked about again and again.
#[derive(Debug, Clone)]
pub struct Caption {
    /// `[1, tokens, width]`.
    pub condition: Condition,
    /// The base's cross-attention keys and values of it, unless the memory for them is used up.
    pub keys: Option<CrossAttentionKv>,
}

impl Caption {
    /// All `captions`, one after another, and what the base makes of them, if it is known of each.
    pub(super) fn cat(captions: &[&Self]) -> Result<(Condition, Option<CrossAttentionKv>), TrainError> {
        let condition = Condition::cat(&captions.iter().map(|caption| &caption.condition).collect::<Vec<_>>())?;
        let keys: Option<Vec<&CrossAttentionKv>> = captions.iter().map(|caption| caption.keys.as_ref()).collect();
        Ok((condition, keys.map(|keys| CrossAttentionKv::cat(&keys)).transpose()?))
    }
}

impl Lessons {
    /// Encodes every picture and every distinct caption once; `tell` gets the number of encoded images and of all, and can
    /// stop the work by [`ControlFlow::Break`].
    ///
    /// # Errors
    /// The class condition without a class prompt; anything that the encoders refuse.
    pub fn encode(
        base: &BaseModel,
        pictures: &TrainingPictures,
        condition: CatCondition,
        class: Option<&str>,
        tell: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
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
                with_trigger: captions.caption(&picture.captions.with_trigger, frame.sizes)?,
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
                with_trigger: without_trigger.clone(),
                without_trigger,
                repeats: 1,
            });
        }
        Ok(self)
    }

    /// The same with what the base makes of captions, while there is room: of those that the CAT term asks it about, and of
    /// those with the trigger too where `config` adapts no layer that reads prompts.
    ///
    /// # Errors
    /// Those of [`UNet::cross_attention_kv`], and targets that select nothing.
    pub fn with_keys(mut self, base: &BaseModel, config: &TrainConfig) -> Result<Self, TrainError> {
        let adapted = config.targets.select(base.unet.modules())?;
        let stays = |reader: &ModuleInfo| adapted.iter().all(|module| module.path != reader.path);
        let frozen = base.unet.cross_attention_projections().all(stays);
        let mut keys = KnownKeys { unet: &base.unet, known: HashMap::new(), held: 0 };
        if config.uses_cat() {
            let captions = self.lessons.iter_mut().map(|lesson| &mut lesson.without_trigger);
            captions.chain([&mut self.empty]).try_for_each(|caption| keys.give(caption))?;
        }
        if frozen {
            let lessons = self.lessons.iter_mut().chain(&mut self.class);
            lessons.map(|lesson| &mut lesson.with_trigger).try_for_each(|caption| keys.give(caption))?;
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

/// Keys of captions, made on first use while there is room.
struct KnownKeys<'a> {
    unet: &'a UNet,
    known: HashMap<TensorId, CrossAttentionKv>,
    /// Bytes of all that are known.
    held: usize,
}

impl KnownKeys<'_> {
    fn give(&mut self, caption: &mut Caption) -> Result<(), TrainError> {
        let context = &caption.condition.context;
        if !self.known.contains_key(&context.id()) && self.held < KEYS {
            let keys = self.unet.cross_attention_kv(context, &AdapterSet::base())?;
            self.held += keys.bytes();
            self.known.insert(context.id(), keys);
        }
        caption.keys = self.known.get(&context.id()).cloned();
        Ok(())
    }
}

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
