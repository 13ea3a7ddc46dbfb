//! The memory that one training step holds, block by block, computed from the configuration alone.
//!
//! It walks over the UNet's layout with sizes in place of tensors. The graph keeps the input of every node until the
//! backward pass; `catelier_numerics::ops::Fusion` lists the layers that share a node.

mod text;

use std::collections::BTreeMap;

use candle_core::DType;
use catelier_adapters::{Component, ModuleInfo, Targets, UpdateKind};
use catelier_numerics::cpu::{Kernels, kernels};
use catelier_numerics::ops::weight_bytes;

use crate::models::{
    Conv2dShape, LayerLayout, LevelLayout, LinearShape, MlpLayout, ProjectionShape, ResnetLayout, TextEncoderConfig,
    TransformerBlockLayout, TransformerLayout, UNetConfig, UNetLayout, conditions_together, keeps_wide,
};

/// Bytes of an activation.
const ACTIVATION: u64 = 4;

/// The settings that decide the memory of a training step, besides the base.
#[derive(Debug, Clone)]
pub struct StepSizes {
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Images per forward pass.
    pub batch: usize,
    /// Tokens per prompt.
    pub tokens: usize,
    /// Kind of the adapter's updates.
    pub kind: UpdateKind,
    /// Rank of the adapter.
    pub rank: usize,
    /// Which modules it adapts.
    pub targets: Targets,
    /// Whether the objective has the CAT term.
    pub cat: bool,
    /// Whether the adapter has dropout, which keeps masks and splits fused layers into several nodes.
    pub dropout: bool,
    /// Type of the frozen weights after loading.
    pub weights: DType,
    /// The text encoders by component if the run trains them; empty if they stay frozen.
    pub trained_text_encoders: BTreeMap<Component, TextEncoderConfig>,
}

/// Memory and operations of one training step; the frozen weights are counted apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes kept outside the blocks: the feature maps between them, and the activations of trained text encoders.
    pub between: u64,
    /// Bytes of the largest temporary tensors and of the gradients that wait in the backward pass.
    pub passing: u64,
    /// Bytes of the adapter, its gradient and the optimizer's state.
    pub adapter: u64,
    /// The blocks in the order of the forward pass.
    pub blocks: Vec<BlockFootprint>,
    /// Operations of the blocks in one forward pass of a batch.
    pub forward_flops: u64,
    /// Bytes of the UNet's frozen weights on the CPU.
    pub weights: u64,
}

/// Memory of one block, or of a feed-forward layer that can be recomputed without its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFootprint {
    /// Its module path.
    pub path: String,
    /// Bytes kept inside the block if it is not recomputed.
    pub inside: u64,
    /// Bytes kept if it is recomputed: a copy of its inputs in one tensor, where several inputs have a gradient.
    pub packed: u64,
    /// Bytes held while the backward pass recomputes it.
    pub recomputing: u64,
    /// Operations of recomputing it.
    pub flops: u64,
}

impl Footprint {
    /// The footprint of one step on a UNet of this configuration.
    pub fn of_step(config: &UNetConfig, sizes: &StepSizes) -> Self {
        let cells = sizes.latent.0 * sizes.latent.1;
        let together = sizes.cat && conditions_together(sizes.batch * cells, config.levels[0].channels);
        let mut walk = Walk {
            sizes,
            rows: (sizes.batch * if together { 2 } else { 1 }) as u64,
            tracked: false,
            time_tracked: false,
            trained: 0,
            largest: 0,
            footprint: Self { between: 0, passing: 0, adapter: 0, blocks: Vec::new(), forward_flops: 0, weights: 0 },
        };
        walk.text_encoders();
        walk.unet(&UNetLayout::new(config));
        walk.finish()
    }
}

/// State of the walk over the layout.
struct Walk<'a> {
    sizes: &'a StepSizes,
    /// Samples in one forward pass: twice the batch if both adapted conditions go through the UNet together.
    rows: u64,
    /// Whether the walk has met an adapted layer; the graph keeps activations from there on.
    tracked: bool,
    /// Whether the walk has met an adapted layer in the time embedding.
    time_tracked: bool,
    /// Number of trained elements.
    trained: u64,
    /// Elements of the largest tensor.
    largest: u64,
    footprint: Footprint,
}

impl Walk<'_> {
    fn unet(&mut self, unet: &UNetLayout) {
        // SDXL's pooled prompt goes through the second embedding.
        self.tracked = self.text_trained() && unet.added_embedding.is_some();
        for mlp in [&unet.time_embedding].into_iter().chain(&unet.added_embedding) {
            self.embedding(mlp);
        }
        self.time_tracked = self.tracked;
        self.between_blocks(&unet.conv_in, [self.sizes.latent; 2]);
        self.skip(unet.conv_in.convolution.outputs, self.sizes.latent);
        for level in &unet.down {
            self.down(level);
        }
        let size = self.size(unet.middle.halvings);
        unet.middle.layers.iter().for_each(|layer| self.layer(layer, size));
        for level in &unet.up {
            self.up(level);
        }
        self.between_blocks(&unet.conv_out, [self.sizes.latent; 2]);
    }

    fn embedding(&mut self, mlp: &MlpLayout) {
        self.tracked |= self.linear(&mlp.linear_1);
        self.tracked |= self.linear(&mlp.linear_2);
    }

    fn down(&mut self, level: &LevelLayout) {
        let size = self.size(level.halvings);
        for layer in &level.layers {
            self.layer(layer, size);
            self.add_gradient_of_skip(layer.resnet.outputs, size);
        }
        if let Some(conv) = &level.resample {
            let halved = self.size(level.halvings + 1);
            self.between_blocks(conv, [size, halved]);
            self.skip(conv.convolution.outputs, halved);
        }
    }

    fn up(&mut self, level: &LevelLayout) {
        let size = self.size(level.halvings);
        for layer in &level.layers {
            self.between(layer.resnet.inputs, size);
            self.layer(layer, size);
        }
        if let Some(conv) = &level.resample {
            let doubled = self.size(level.halvings - 1);
            self.between_blocks(conv, [doubled; 2]);
            (0..2).for_each(|_| self.between(conv.convolution.outputs, doubled));
        }
    }

    /// A residual block and, with attention, a transformer.
    fn layer(&mut self, layer: &LayerLayout, size: Size) {
        self.resnet(&layer.resnet, size);
        if let Some(transformer) = &layer.attention {
            self.transformer(transformer, size);
        }
    }

    fn resnet(&mut self, resnet: &ResnetLayout, size: Size) {
        let first = self.conv2d(&resnet.conv1);
        let time = self.linear(&resnet.time_emb_proj);
        let second = self.conv2d(&resnet.conv2);
        let shortcut = resnet.conv_shortcut.as_ref().map(|conv| self.conv2d(conv));
        let shortcut_adapted = shortcut == Some(true);
        self.tracked |= first || time || second || shortcut_adapted;
        let &ResnetLayout { inputs, outputs, .. } = resnet;
        let (wide, narrow) = (self.elements(inputs, size), self.elements(outputs, size));
        let mut inside = narrow;
        inside += if shortcut.is_some() { narrow } else { 0 };
        let apart = first || time || self.time_tracked;
        inside += if apart { wide + narrow } else { 0 };
        inside += if second { 2 * narrow } else { 0 };
        if self.sizes.dropout {
            inside += [(first, wide), (second, narrow), (shortcut_adapted, wide)]
                .into_iter()
                .map(|(adapted, inputs)| if adapted { 2 * inputs + 2 * narrow } else { 0 })
                .sum::<u64>();
        }
        let products = 9 * (inputs + outputs) * outputs + if shortcut.is_some() { inputs * outputs } else { 0 };
        let packed = if self.time_tracked { wide } else { 0 };
        inside += [first, second, shortcut_adapted]
            .into_iter()
            .map(|adapted| self.kept_by_update(adapted, narrow))
            .sum::<u64>();
        self.block(&resnet.path, inside, packed, 2 * self.rows * area(size) * products as u64);
        self.between(outputs, size);
    }

    fn transformer(&mut self, transformer: &TransformerLayout, size: Size) {
        let channels = transformer.channels;
        // A linear layer gets the copied tokens of a normalised map; a convolution normalises inside its own node.
        let is_linear = matches!(transformer.proj_in, ProjectionShape::Linear(_));
        for (shape, copies) in [(&transformer.proj_in, if is_linear { 2 } else { 1 }), (&transformer.proj_out, 1)] {
            let adapted = match shape {
                ProjectionShape::Linear(linear) => self.linear(linear),
                ProjectionShape::Conv2d(conv) => self.conv2d(conv),
            };
            self.tracked |= adapted;
            // Its input and its result are kept; with dropout also the mask, the masked input and the update.
            let maps = match (adapted, kernels()) {
                (true, _) if self.sizes.dropout => 6 + self.maps_of_update(),
                (true, _) => 2 + self.maps_of_update(),
                // Portable kernels copy a map to tokens, and back, in a node of its own.
                (false, Kernels::Portable) => copies,
                (false, Kernels::Wide) => 0,
            };
            (0..maps).for_each(|_| self.between(channels, size));
            self.between(channels, size);
        }
        for block in &transformer.blocks {
            self.transformer_block(block, size);
            self.between(channels, size);
        }
    }

    fn transformer_block(&mut self, block: &TransformerBlockLayout, size: Size) {
        let &TransformerBlockLayout { width, context_width, .. } = block;
        let (tokens, prompt) = (self.elements(width, size), self.rows * (self.sizes.tokens * width) as u64);
        let (mut attention_adapted, mut dropped, mut decomposed) = (self.text_trained(), 0, 0);
        let cross_attention_kv = [&block.attn2.to_k, &block.attn2.to_v];
        for linear in block.attn1.projections().into_iter().chain(block.attn2.projections()) {
            if self.linear(linear) {
                attention_adapted = true;
                let outputs = if cross_attention_kv.contains(&linear) { prompt } else { tokens };
                // Dropout keeps the mask, the masked input, and the update besides the layer's own result.
                dropped += 4 * outputs;
                decomposed += self.kept_by_update(true, outputs);
            }
        }
        let widen = self.linear(&block.feed_forward.widen);
        let narrow = self.linear(&block.feed_forward.narrow);
        self.tracked |= attention_adapted || widen || narrow;
        // For each of the two attentions: norm, query, mixed values, sum. Self-attention also keeps keys and values of
        // the map.
        let mut inside = 10 * tokens + 2 * prompt;
        inside += if widen { tokens } else { 0 } + if narrow { 5 * tokens } else { 0 };
        let wide = 8 * tokens;
        if widen || narrow {
            inside += wide;
        }
        inside += decomposed + self.kept_by_update(widen, wide) + self.kept_by_update(narrow, tokens);
        inside += 4 * self.rows * area(size) * block.heads as u64;
        if self.sizes.dropout {
            dropped += if widen { 18 * tokens } else { 0 } + if narrow { 10 * tokens } else { 0 };
            inside += dropped;
        }
        let linear = area(size) * (6 * width * width + 12 * width * width) as u64;
        let prompt = (self.sizes.tokens * 2 * context_width * width) as u64;
        let scores = 2 * area(size) * (area(size) + self.sizes.tokens as u64) * width as u64;
        self.block(&block.path, inside, 0, 2 * self.rows * (linear + prompt + scores));
        if !widen && !narrow && keeps_wide(wide, self.sizes.weights) {
            self.feed_forward(&block.feed_forward.path, width, wide, size);
        }
    }

    /// A feed-forward layer that can be recomputed without its block. It is recomputed in small pieces.
    fn feed_forward(&mut self, path: &str, width: usize, wide: u64, size: Size) {
        let flops = 2 * self.rows * area(size) * (8 * width * width) as u64;
        let inside = if self.tracked { ACTIVATION * wide } else { 0 };
        self.largest = self.largest.max(wide);
        self.footprint.blocks.push(BlockFootprint { path: path.into(), inside, packed: 0, recomputing: 0, flops });
    }

    /// Elements that the update of a module with `outputs` output elements keeps beyond those of a LoRA.
    fn kept_by_update(&self, adapted: bool, outputs: u64) -> u64 {
        if adapted { outputs * self.maps_of_update() } else { 0 }
    }

    /// The same number in units of the module's result. A DoRA keeps the result before its gain; with dropout, both
    /// products before and after their gains.
    fn maps_of_update(&self) -> u64 {
        match (self.sizes.kind, self.sizes.dropout) {
            (UpdateKind::Lora, _) => 0,
            (UpdateKind::Dora, false) => 1,
            (UpdateKind::Dora, true) => 4,
        }
    }

    /// Number of trained elements of a module's update.
    fn trained_elements(&self, inputs: usize, outputs: usize) -> usize {
        let low_rank = self.sizes.rank * (inputs + outputs);
        match self.sizes.kind {
            UpdateKind::Lora => low_rank,
            UpdateKind::Dora => low_rank + outputs,
        }
    }

    /// Counts the layer and returns whether the adapter changes it.
    fn linear(&mut self, linear: &LinearShape) -> bool {
        self.module(&linear.module())
    }

    fn conv2d(&mut self, conv: &Conv2dShape) -> bool {
        self.module(&conv.module())
    }

    /// A convolution outside the blocks, from a map of size `from` to a map of size `to`.
    fn between_blocks(&mut self, conv: &Conv2dShape, [from, to]: [Size; 2]) {
        let adapted = self.conv2d(conv);
        self.tracked |= adapted;
        if adapted {
            (0..self.maps_of_update()).for_each(|_| self.between(conv.convolution.outputs, to));
        }
        if adapted && self.sizes.dropout {
            (0..2).for_each(|_| self.between(conv.convolution.inputs, from));
            (0..2).for_each(|_| self.between(conv.convolution.outputs, to));
        }
    }

    fn module(&mut self, module: &ModuleInfo) -> bool {
        let (inputs, outputs) = (module.kind.fan_in(), module.kind.up_shape(1)[0]);
        self.footprint.weights += weight_bytes((inputs * outputs) as u64, self.sizes.weights);
        self.adapted(module)
    }

    /// Counts what is trained of the module and returns whether the adapter changes it.
    fn adapted(&mut self, module: &ModuleInfo) -> bool {
        let (inputs, outputs) = (module.kind.fan_in(), module.kind.up_shape(1)[0]);
        let adapted = self.sizes.targets.chooses(module);
        self.trained += if adapted { self.trained_elements(inputs, outputs) as u64 } else { 0 };
        adapted
    }

    fn block(&mut self, path: &str, inside: u64, packed: u64, flops: u64) {
        let [inside, packed] = [inside, packed].map(|elements| if self.tracked { ACTIVATION * elements } else { 0 });
        self.footprint.forward_flops += flops;
        self.footprint.blocks.push(BlockFootprint { path: path.into(), inside, packed, recomputing: inside, flops });
    }

    /// A map that is kept between blocks.
    fn between(&mut self, channels: usize, size: Size) {
        let elements = self.elements(channels, size);
        self.largest = self.largest.max(elements);
        self.footprint.between += ACTIVATION * elements;
    }

    /// A map between blocks that is also a skip connection.
    fn skip(&mut self, channels: usize, size: Size) {
        self.between(channels, size);
        self.add_gradient_of_skip(channels, size);
    }

    /// The gradient of a skip connection, held until the backward pass reaches the way down.
    fn add_gradient_of_skip(&mut self, channels: usize, size: Size) {
        self.footprint.passing += ACTIVATION * self.elements(channels, size);
    }

    /// Elements of a map.
    fn elements(&self, channels: usize, size: Size) -> u64 {
        self.rows * channels as u64 * area(size)
    }

    /// Height and width of the latents after this number of `halvings`, each rounded up.
    fn size(&self, halvings: usize) -> Size {
        (0..halvings).fold(self.sizes.latent, |(height, width), _| (height.div_ceil(2), width.div_ceil(2)))
    }

    fn finish(self) -> Footprint {
        /// Gradients, repacked operands and memory that the allocator cannot reuse, in multiples of the largest tensor;
        /// measured with `bench step` (docs/memory.md).
        const AT_THE_LARGEST: u64 = 10;
        /// Parameters, their gradients twice while they are accumulated, and both moments of AdamW.
        const OF_A_FACTOR: u64 = 5;
        let mut footprint = self.footprint;
        footprint.passing += AT_THE_LARGEST * ACTIVATION * self.largest;
        footprint.adapter = OF_A_FACTOR * 4 * self.trained;
        footprint.forward_flops = footprint.forward_flops / self.rows * self.sizes.batch as u64;
        footprint
    }
}

/// Height and width.
type Size = (usize, usize);

fn area(size: Size) -> u64 {
    (size.0 * size.1) as u64
}
