//! Captions as a step takes them: encoded before training, or to be encoded in the step.

use std::borrow::Cow;

use catelier_adapters::AdapterSet;

use super::TrainError;
use crate::models::{Condition, CrossAttentionKv, ImageSizes, TextEncoders};

/// A caption and what the frozen base computes from it.
#[derive(Debug, Clone)]
pub struct EncodedCaption {
    /// The caption.
    pub text: String,
    /// The image sizes that SDXL is conditioned on beside it.
    pub sizes: ImageSizes,
    /// The condition by the base's text encoders, `context: [1, tokens, width]`.
    pub condition: Condition,
    /// The base's cross-attention keys and values of the condition, unless the memory for them is used up.
    pub keys: Option<CrossAttentionKv>,
}

/// The captions of one batch, a row each.
#[derive(Debug, Clone)]
pub struct Captions<'a> {
    /// The condition by the base's text encoders, `context: [batch, tokens, width]`.
    pub condition: Condition,
    /// The base's cross-attention keys and values of the condition, where all of them are known.
    pub keys: Option<CrossAttentionKv>,
    /// The captions to encode in the step, where the adapter is trained in the text encoders; otherwise adapted
    /// predictions are conditioned on `condition` as the base's are.
    pub prompts: Option<Prompts<'a>>,
}

/// Captions that are encoded in each step, by text encoders with the adapter in them.
#[derive(Debug, Clone)]
pub struct Prompts<'a> {
    /// The base's text encoders.
    pub encoders: &'a TextEncoders,
    /// The captions.
    pub texts: Vec<String>,
    /// The image sizes that SDXL is conditioned on, one for each caption.
    pub sizes: Vec<ImageSizes>,
}

impl<'a> Captions<'a> {
    /// All `captions`, one after another, to be encoded in the step by `trained` encoders, if there are any.
    pub(super) fn cat(captions: &[&EncodedCaption], trained: Option<&'a TextEncoders>) -> Result<Self, TrainError> {
        let condition = Condition::cat(&captions.iter().map(|caption| &caption.condition).collect::<Vec<_>>())?;
        let keys: Option<Vec<&CrossAttentionKv>> = captions.iter().map(|caption| caption.keys.as_ref()).collect();
        let prompts = trained.map(|encoders| Prompts {
            encoders,
            texts: captions.iter().map(|caption| caption.text.clone()).collect(),
            sizes: captions.iter().map(|caption| caption.sizes).collect(),
        });
        Ok(Self { condition, keys: keys.map(|keys| CrossAttentionKv::cat(&keys)).transpose()?, prompts })
    }

    /// The condition of a prediction with `adapters`, and the cross-attention keys and values that the base computes from
    /// it, where they are known.
    ///
    /// **Gradient** to the adapters in the text encoders, where the captions are encoded here.
    pub(super) fn adapted(
        &self,
        adapters: &AdapterSet,
    ) -> Result<(Cow<'_, Condition>, Option<&CrossAttentionKv>), TrainError> {
        match &self.prompts {
            None => Ok((Cow::Borrowed(&self.condition), self.keys.as_ref())),
            Some(prompts) => Ok((Cow::Owned(prompts.encode(adapters)?), None)),
        }
    }
}

impl Prompts<'_> {
    fn encode(&self, adapters: &AdapterSet) -> Result<Condition, TrainError> {
        let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        Ok(self.encoders.encode_with(&texts, 0, adapters)?.with_sizes(&self.sizes)?)
    }
}
