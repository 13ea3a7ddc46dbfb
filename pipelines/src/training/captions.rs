//! Captions of a training step: encoded before training, or encoded inside the step.

use std::borrow::Cow;

use catelier_adapters::AdapterSet;

use super::TrainError;
use crate::models::{Condition, CrossAttentionKv, ImageSizes, TextEncoders};

/// A caption with its outputs of the frozen base.
#[derive(Debug, Clone)]
pub struct EncodedCaption {
    /// The caption.
    pub text: String,
    /// The image sizes that SDXL is conditioned on.
    pub sizes: ImageSizes,
    /// The condition from the base's text encoders, `context: [1, tokens, width]`.
    pub condition: Condition,
    /// The base's cross-attention keys and values for the condition; `None` once the limit on their memory is reached.
    pub keys: Option<CrossAttentionKv>,
}

/// The captions of one batch, one row per caption.
#[derive(Debug, Clone)]
pub struct Captions<'a> {
    /// The condition from the base's text encoders, `context: [batch, tokens, width]`.
    pub condition: Condition,
    /// The base's cross-attention keys and values for the condition, if every caption has them.
    pub keys: Option<CrossAttentionKv>,
    /// The captions to encode inside the step if the run trains the text encoders; otherwise `condition` serves base
    /// and adapted predictions.
    pub prompts: Option<Prompts<'a>>,
}

/// Captions that each step encodes, with the adapter in the text encoders.
#[derive(Debug, Clone)]
pub struct Prompts<'a> {
    /// The base's text encoders.
    pub encoders: &'a TextEncoders,
    /// The captions.
    pub texts: Vec<String>,
    /// The image sizes that SDXL is conditioned on, one per caption.
    pub sizes: Vec<ImageSizes>,
}

impl<'a> Captions<'a> {
    /// Joins `captions` into one batch; `trained` are the text encoders that encode them inside the step, if the run
    /// trains them.
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

    /// The condition of a prediction with `adapters`, and the base's cross-attention keys and values for it if they
    /// have been computed.
    ///
    /// **Gradient** to the adapters in the text encoders, if this call encodes the captions.
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
