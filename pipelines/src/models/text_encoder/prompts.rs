//! From prompts to the condition of a prediction.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{AdapterSet, Component, ModuleInfo};
use catelier_prompts::{Tokenizer, Tokens};

use super::{TextEncoder, TextOutput};
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;
use crate::models::{AddedCondition, Condition, ImageSizes, TextEncoderConfig};

/// The text encoders of a base model with their tokenizers: one, or SDXL's two.
#[derive(Debug)]
pub struct TextEncoders {
    readers: Vec<Reader>,
    modules: Vec<ModuleInfo>,
    /// Height and width that SDXL's image sizes have until the caller sets others.
    native_size: u32,
}

/// A text encoder and the tokenizer it was trained with.
#[derive(Debug)]
struct Reader {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
}

/// Side of the images that SDXL was trained on, in pixels.
const SDXL_SIDE: u32 = 1024;

impl TextEncoders {
    /// Loads `tokenizer/` with `text_encoder/` and, where there are, `tokenizer_2/` with `text_encoder_2/`.
    ///
    /// # Errors
    /// Those of [`TextEncoder::load`], and [`Error::Prompts`] for an unusable tokenizer; [`Error::InvalidInput`]
    /// when a tokenizer has ids its encoder does not know, or SDXL's second encoder has no projection.
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_configs(TextEncoderConfig::load_all(files)?, files, dtype, device)
    }

    /// The same with the configurations, where those have been read already.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn from_configs(
        configs: BTreeMap<Component, TextEncoderConfig>,
        files: &ModelFiles,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let read = |(component, config)| Reader::load(files, component, config, dtype, device);
        let readers: Vec<Reader> = configs.into_iter().map(read).collect::<Result<_>>()?;
        let modules = readers.iter().flat_map(|reader| reader.encoder.modules().to_vec()).collect();
        Ok(Self { readers, modules, native_size: SDXL_SIDE })
    }

    /// The encoders, one or two.
    pub fn encoders(&self) -> impl Iterator<Item = &TextEncoder> {
        self.readers.iter().map(|reader| &reader.encoder)
    }

    /// Every linear layer of the encoders that an adapter can reach.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// Every linear layer that a condition depends on, which are those that can be trained: all of them, except the last
    /// layer of SDXL's first encoder, whose output nothing uses.
    pub fn conditioning_modules(&self) -> Vec<ModuleInfo> {
        let unused = match self.readers.as_slice() {
            [first, _] => first.encoder.last_layer_path(),
            _ => return self.modules.clone(),
        };
        self.modules.iter().filter(|module| !module.path.starts_with(&unused)).cloned().collect()
    }

    /// Whether conditions with `adapters` differ from the base's: whether one of them has a module in an encoder.
    pub fn adapted_by(&self, adapters: &AdapterSet) -> bool {
        let components = [Component::TextEncoder, Component::TextEncoder2];
        components.iter().any(|component| !adapters.parameters_under(component.name()).is_empty())
    }

    /// The tokenizer of the first encoder.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.readers[0].tokenizer
    }

    /// The prompt as the first encoder's tokenizer reads it, with what did not fit.
    ///
    /// # Errors
    /// [`Error::Prompts`].
    pub fn tokens(&self, prompt: &str) -> Result<Tokens> {
        Ok(self.tokenizer().encode(prompt)?)
    }

    /// The token ids of `prompts`, encoder by encoder, each by the encoder's own tokenizer, cut or padded to its length.
    ///
    /// # Errors
    /// [`Error::Prompts`].
    pub fn token_ids(&self, prompts: &[&str]) -> Result<Vec<Vec<Vec<u32>>>> {
        self.readers.iter().map(|reader| reader.token_ids(prompts)).collect()
    }

    /// The condition for each prompt, as the base model was trained: the last hidden states after the final norm,
    /// or for SDXL the penultimate ones of both encoders and the pooled output of the second.
    ///
    /// SDXL's image sizes are those of an uncropped 1024x1024 image; [`Condition::with_sizes`] sets others.
    ///
    /// # Errors
    /// [`Error::Prompts`] for a prompt that cannot be tokenized, [`Error::InvalidInput`] for no prompts.
    pub fn encode(&self, prompts: &[&str]) -> Result<Condition> {
        self.encode_with(prompts, 0, &AdapterSet::base())
    }

    /// The same as [`encode`](Self::encode), leaving out the last `clip_skip` layers (counted as diffusers does: 0
    /// is the model's own choice, 1 is called clip skip 2 by other programs) and with `adapters` in the encoders.
    ///
    /// **Gradient** flows to the adapters in the encoders.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode), and [`Error::InvalidInput`] when there are not that many layers.
    pub fn encode_with(&self, prompts: &[&str], clip_skip: usize, adapters: &AdapterSet) -> Result<Condition> {
        let outputs =
            self.readers.iter().map(|reader| reader.read(prompts, adapters)).collect::<Result<Vec<TextOutput>>>()?;
        match (self.readers.as_slice(), outputs.as_slice()) {
            ([reader], [output]) => Ok(Condition { context: reader.last_hidden(output, clip_skip)?, added: None }),
            _ => self.join(&outputs, clip_skip),
        }
    }

    /// SDXL: hidden states side by side, and the last encoder's pooled prompt.
    fn join(&self, outputs: &[TextOutput], clip_skip: usize) -> Result<Condition> {
        let penultimate = outputs
            .iter()
            .map(|output| hidden_from_end(output, clip_skip + 1).cloned())
            .collect::<Result<Vec<Tensor>>>()?;
        let context = Tensor::cat(&penultimate, 2)?;
        let pooled = outputs.last().and_then(|output| output.projected.clone()).ok_or_else(|| Error::InvalidInput {
            what: "text_encoder_2",
            expected: "a text projection".into(),
            found: "weights without `text_projection.weight`".into(),
        })?;
        let sizes = vec![ImageSizes::uncropped(self.native_size, self.native_size); pooled.dim(0)?];
        // Not in bf16, whose values are 4 apart from 512 on.
        let time_ids = ImageSizes::time_ids(&sizes, DType::F32, pooled.device())?;
        Ok(Condition { context, added: Some(AddedCondition { pooled, time_ids }) })
    }
}

impl Reader {
    fn load(
        files: &ModelFiles,
        component: Component,
        config: TextEncoderConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tokenizer =
            load_tokenizer(files, if component == Component::TextEncoder2 { "tokenizer_2" } else { "tokenizer" })?;
        let encoder = TextEncoder::from_config(config, files, component.name(), dtype, device)?;
        let (known, used) = (encoder.config().vocab_size, tokenizer.vocabulary());
        if used > known {
            return Err(Error::InvalidInput {
                what: "tokenizer vocabulary",
                expected: format!("at most the text encoder's {known} tokens"),
                found: used.to_string(),
            });
        }
        Ok(Self { tokenizer, encoder })
    }

    fn token_ids(&self, prompts: &[&str]) -> Result<Vec<Vec<u32>>> {
        prompts.iter().map(|prompt| Ok(self.tokenizer.encode(prompt)?.ids)).collect()
    }

    fn read(&self, prompts: &[&str], adapters: &AdapterSet) -> Result<TextOutput> {
        self.encoder.encode(&self.token_ids(prompts)?, adapters)
    }

    /// The hidden states `skip` layers before the last, after the final norm.
    fn last_hidden(&self, output: &TextOutput, skip: usize) -> Result<Tensor> {
        match skip {
            0 => Ok(output.last.clone()),
            _ => self.encoder.normalize(hidden_from_end(output, skip)?),
        }
    }
}

/// The output of the layer `skip` before the last, without the final norm.
fn hidden_from_end(output: &TextOutput, skip: usize) -> Result<&Tensor> {
    let layers = output.hidden.len() - 1;
    if skip >= layers.max(1) {
        return Err(Error::InvalidInput {
            what: "clip skip",
            expected: format!("fewer layers than the text encoder's {layers}"),
            found: skip.to_string(),
        });
    }
    Ok(&output.hidden[layers - skip])
}

fn load_tokenizer(files: &ModelFiles, component: &str) -> Result<Tokenizer> {
    if let Some(folder) = files.path() {
        return Ok(Tokenizer::from_folder(&folder.join(component))?);
    }
    let read = |name: &str| {
        let path = format!("{component}/{name}");
        Ok(files.read(&path).ok().map(std::borrow::Cow::into_owned))
    };
    Ok(Tokenizer::from_files(component, read)?)
}
