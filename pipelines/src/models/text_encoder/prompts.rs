//! Encodes prompts to the condition of a prediction.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{AdapterSet, Component, ModuleInfo};
use catelier_prompts::{Tokenizer, Tokens};

use super::{TextEncoder, TextOutput};
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;
use crate::models::{AddedCondition, Condition, ImageSizes, TextEncoderConfig};

/// The text encoders of a base model with their tokenizers: one of each, or SDXL's two.
#[derive(Debug)]
pub struct TextEncoders {
    readers: Vec<Reader>,
    modules: Vec<ModuleInfo>,
    /// Height and width of SDXL's image sizes until the caller sets others.
    native_size: u32,
}

/// A text encoder and its tokenizer.
#[derive(Debug)]
struct Reader {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
}

/// Width and height of the images that SDXL was trained on, in pixels.
const SDXL_SIDE: u32 = 1024;

impl TextEncoders {
    /// Loads `tokenizer/` with `text_encoder/` and, if they exist, `tokenizer_2/` with `text_encoder_2/`.
    ///
    /// # Errors
    /// Those of [`TextEncoder::load`], and [`Error::Prompts`] for an unusable tokenizer; [`Error::InvalidInput`]
    /// if a tokenizer has ids outside its encoder's vocabulary, or SDXL's second encoder has no projection.
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_configs(TextEncoderConfig::load_all(files)?, files, dtype, device)
    }

    /// [`load`](Self::load) with configurations that have been read already.
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

    /// Every linear layer of the encoders that an adapter can change.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// Every linear layer that the condition depends on; only these can be trained. They are all layers except the last
    /// layer of SDXL's first encoder, whose output is not used.
    pub fn conditioning_modules(&self) -> Vec<ModuleInfo> {
        let unused = match self.readers.as_slice() {
            [first, _] => first.encoder.last_layer_path(),
            _ => return self.modules.clone(),
        };
        self.modules.iter().filter(|module| !module.path.starts_with(&unused)).cloned().collect()
    }

    /// Whether an adapter of `adapters` changes a text encoder, so that conditions differ from the base's.
    pub fn adapted_by(&self, adapters: &AdapterSet) -> bool {
        let components = [Component::TextEncoder, Component::TextEncoder2];
        components.iter().any(|component| !adapters.parameters_under(component.name()).is_empty())
    }

    /// The tokenizer of the first encoder.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.readers[0].tokenizer
    }

    /// The tokens of the prompt from the first encoder's tokenizer, and the end of its text if it was cut.
    ///
    /// # Errors
    /// [`Error::Prompts`].
    pub fn tokens(&self, prompt: &str) -> Result<Tokens> {
        Ok(self.tokenizer().encode(prompt)?)
    }

    /// The token ids of `prompts` for each encoder, from its own tokenizer, cut or padded to its length.
    ///
    /// # Errors
    /// [`Error::Prompts`].
    pub fn token_ids(&self, prompts: &[&str]) -> Result<Vec<Vec<Vec<u32>>>> {
        self.readers.iter().map(|reader| reader.token_ids(prompts)).collect()
    }

    /// The condition for each prompt in the form that the base model was trained with: the last hidden states after the
    /// final norm; for SDXL the penultimate hidden states of both encoders and the pooled output of the second.
    ///
    /// SDXL's image sizes are those of an uncropped 1024x1024 image; [`Condition::with_sizes`] sets others.
    ///
    /// # Errors
    /// [`Error::Prompts`] for a prompt that cannot be tokenized, [`Error::InvalidInput`] if there are no prompts.
    pub fn encode(&self, prompts: &[&str]) -> Result<Condition> {
        self.encode_with(prompts, 0, &AdapterSet::base())
    }

    /// [`encode`](Self::encode) without the last `clip_skip` layers and with `adapters` in the encoders. `clip_skip`
    /// counts as in diffusers: 0 is the model's own choice; other programs call 1 "clip skip 2".
    ///
    /// **Gradient** flows to the adapters in the encoders.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode), and [`Error::InvalidInput`] if the encoder has fewer layers.
    pub fn encode_with(&self, prompts: &[&str], clip_skip: usize, adapters: &AdapterSet) -> Result<Condition> {
        let outputs =
            self.readers.iter().map(|reader| reader.read(prompts, adapters)).collect::<Result<Vec<TextOutput>>>()?;
        match (self.readers.as_slice(), outputs.as_slice()) {
            ([reader], [output]) => Ok(Condition { context: reader.last_hidden(output, clip_skip)?, added: None }),
            _ => self.join(&outputs, clip_skip),
        }
    }

    /// SDXL's condition: the hidden states of both encoders side by side, and the pooled output of the last one.
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
        // bf16 cannot hold the sizes: from 512 on, its values are 4 apart.
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
        check_tokenizer(&tokenizer, &config)?;
        let encoder = TextEncoder::from_config(config, files, component.name(), dtype, device)?;
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

/// Fails if the tokenizer's ids or prompts exceed the encoder's embeddings.
fn check_tokenizer(tokenizer: &Tokenizer, config: &TextEncoderConfig) -> Result<()> {
    let limits = [
        ("tokenizer vocabulary", tokenizer.vocabulary(), config.vocab_size, "`vocab_size`"),
        (
            "length of prompts in tokens",
            tokenizer.max_length(),
            config.max_position_embeddings,
            "`max_position_embeddings`",
        ),
    ];
    for (what, found, most, key) in limits {
        if found > most {
            let expected = format!("at most {most}, the text encoder's {key}");
            return Err(Error::InvalidInput { what, expected, found: found.to_string() });
        }
    }
    Ok(())
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
