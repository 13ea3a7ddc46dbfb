//! What one training step keeps in memory, block by block, from the configuration alone.
//!
//! The same walk as the UNet's forward pass, with sizes in place of tensors: what the graph keeps until the backward
//! pass is the input of every node (see `catelier_numerics::ops::Fusion` for what shares a node).

use candle_core::DType;
use catelier_adapters::{ModuleInfo, ModuleKind, Targets, UpdateKind};
use catelier_numerics::ops::weight_bytes;

use crate::model::{UNetConfig, UNetLevel, keeps_wide};
use crate::train::conditions_together;

/// Bytes of an activation.
const ACTIVATION: u64 = 4;

/// What decides how large a training step is, besides the base.
#[derive(Debug, Clone)]
pub struct StepSizes {
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Pictures per forward pass.
    pub batch: usize,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// Kind of the adapter's updates.
    pub kind: UpdateKind,
    /// Rank of the adapter.
    pub rank: usize,
    /// Which modules it adapts.
    pub targets: Targets,
    /// Whether the objective has the CAT term.
    pub cat: bool,
    /// Whether the adapter's inputs are dropped out, which keeps masks and takes nodes apart.
    pub dropout: bool,
    /// Type that the frozen weights are loaded as.
    pub weights: DType,
}

/// What a step needs besides the frozen weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes kept between the blocks.
    pub between: u64,
    /// Bytes that come and go, at most.
    pub passing: u64,
    /// Bytes of the adapter, its gradient and the optimizer's state.
    pub adapter: u64,
    /// The blocks, in the order the data meets them.
    pub blocks: Vec<BlockFootprint>,
    /// Operations of the blocks in one forward pass of a batch.
    pub forward_flops: u64,
    /// Bytes of the UNet's frozen weights on the processor.
    pub weights: u64,
}

/// What one block, or the feed-forward layer of one apart from it, keeps inside, unless it is computed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFootprint {
    /// Its module path.
    pub path: String,
    /// Bytes kept inside it.
    pub inside: u64,
    /// Bytes kept instead if it is computed again: its inputs side by side, where several have a gradient.
    pub packed: u64,
    /// Bytes held meanwhile if it is computed again.
    pub again: u64,
    /// Operations of computing it once more.
    pub flops: u64,
}

impl Footprint {
    /// Of one step on a UNet of this configuration.
    pub fn of_step(config: &UNetConfig, sizes: &StepSizes) -> Self {
        let cells = sizes.latent.0 * sizes.latent.1;
        let together = sizes.cat && conditions_together(sizes.batch * cells, config.levels[0].channels);
        let mut walk = Walk {
            config,
            sizes,
            rows: (sizes.batch * if together { 2 } else { 1 }) as u64,
            tracked: false,
            time_tracked: false,
            trained: 0,
            largest: 0,
            skips: Vec::new(),
            footprint: Self { between: 0, passing: 0, adapter: 0, blocks: Vec::new(), forward_flops: 0, weights: 0 },
        };
        walk.unet();
        walk.finish()
    }
}

/// Where the walk is.
struct Walk<'a> {
    config: &'a UNetConfig,
    sizes: &'a StepSizes,
    /// Samples that go through the model at once.
    rows: u64,
    /// Whether an adapter has been met, from where on activations are kept.
    tracked: bool,
    /// Whether one has been met on the way of the timestep.
    time_tracked: bool,
    /// Numbers that are trained.
    trained: u64,
    /// Numbers of the largest tensor.
    largest: u64,
    /// Channels of the maps that the way up needs.
    skips: Vec<usize>,
    footprint: Footprint,
}

impl Walk<'_> {
    fn unet(&mut self) {
        let config = self.config;
        let (levels, time) = (&config.levels, config.timestep.width);
        self.tracked |= self.linear("unet.time_embedding.linear_1", levels[0].channels, time);
        self.tracked |= self.linear("unet.time_embedding.linear_2", time, time);
        if let Some(added) = &config.added {
            self.tracked |= self.linear("unet.add_embedding.linear_1", added.input_width, time);
            self.tracked |= self.linear("unet.add_embedding.linear_2", time, time);
        }
        self.time_tracked = self.tracked;
        let first = (config.in_channels, levels[0].channels);
        self.between_blocks("unet.conv_in", first, config.conv_in_kernel, [self.sizes.latent; 2]);
        let (mut channels, mut size) = (levels[0].channels, self.sizes.latent);
        self.between(channels, size);
        self.skip(channels, size);
        for (index, level) in levels.iter().enumerate() {
            for layer in 0..level.layers {
                self.layer(&format!("unet.down_blocks.{index}"), layer, (channels, level), level.attention, size);
                channels = level.channels;
                self.skip(channels, size);
            }
            if index + 1 < levels.len() {
                let halved = (size.0.div_ceil(2), size.1.div_ceil(2));
                let path = format!("unet.down_blocks.{index}.downsamplers.0.conv");
                self.between_blocks(&path, (channels, channels), 3, [size, halved]);
                size = halved;
                self.between(channels, size);
                self.skip(channels, size);
            }
        }
        let last = &levels[levels.len() - 1];
        self.layer("unet.mid_block", 0, (channels, last), true, size);
        self.layer("unet.mid_block", 1, (channels, last), false, size);
        for (index, level) in levels.iter().rev().enumerate() {
            self.up(index, &mut channels, level, &mut size);
        }
        let last = (channels, config.out_channels);
        self.between_blocks("unet.conv_out", last, config.conv_out_kernel, [size; 2]);
    }

    fn up(&mut self, index: usize, channels: &mut usize, level: &UNetLevel, size: &mut (usize, usize)) {
        let path = format!("unet.up_blocks.{index}");
        for layer in 0..=level.layers {
            let inputs = *channels + self.skips.pop().unwrap_or(0);
            self.between(inputs, *size);
            self.layer(&path, layer, (inputs, level), self.config.up_attention[index], *size);
            *channels = level.channels;
        }
        if index + 1 < self.config.levels.len() {
            *size = (index + 2..self.config.levels.len())
                .fold(self.sizes.latent, |(height, width), _| (height.div_ceil(2), width.div_ceil(2)));
            self.between_blocks(&format!("{path}.upsamplers.0.conv"), (*channels, *channels), 3, [*size; 2]);
            (0..2).for_each(|_| self.between(*channels, *size));
        }
    }

    /// A residual block and, with attention, a transformer.
    fn layer(&mut self, path: &str, index: usize, (inputs, level): (usize, &UNetLevel), attention: bool, size: Size) {
        self.resnet(&format!("{path}.resnets.{index}"), inputs, level.channels, size);
        if attention {
            self.transformer(&format!("{path}.attentions.{index}"), level, size);
        }
    }

    fn resnet(&mut self, path: &str, inputs: usize, outputs: usize, size: Size) {
        let conv = |walk: &mut Self, name: &str, inputs: usize, kernel: usize| {
            walk.conv2d(&format!("{path}.{name}"), (inputs, outputs), kernel)
        };
        let first = conv(self, "conv1", inputs, 3);
        let time = self.linear(&format!("{path}.time_emb_proj"), self.config.timestep.width, outputs);
        let second = conv(self, "conv2", outputs, 3);
        let shortcut = inputs != outputs && conv(self, "conv_shortcut", inputs, 1);
        self.tracked |= first || time || second || shortcut;
        let (wide, narrow) = (self.numbers(inputs, size), self.numbers(outputs, size));
        let mut inside = narrow;
        inside += if inputs == outputs { 0 } else { narrow };
        let apart = first || time || self.time_tracked;
        inside += if apart { wide + narrow } else { 0 };
        inside += if second { 2 * narrow } else { 0 };
        if self.sizes.dropout {
            inside += [(first, wide), (second, narrow), (shortcut, wide)]
                .into_iter()
                .map(|(reached, inputs)| if reached { 2 * inputs + 2 * narrow } else { 0 })
                .sum::<u64>();
        }
        let products = 9 * (inputs + outputs) * outputs + if inputs == outputs { 0 } else { inputs * outputs };
        let packed = if self.time_tracked { wide } else { 0 };
        inside +=
            [first, second, shortcut].into_iter().map(|adapted| self.kept_by_update(adapted, narrow)).sum::<u64>();
        self.block(path, inside, packed, 2 * self.rows * area(size) * products as u64);
        self.between(outputs, size);
    }

    fn transformer(&mut self, path: &str, level: &UNetLevel, size: Size) {
        let width = level.channels;
        let projection = |walk: &mut Self, name: &str| match walk.config.linear_projection {
            true => walk.linear(&format!("{path}.{name}"), width, width),
            false => walk.conv2d(&format!("{path}.{name}"), (width, width), 1),
        };
        for name in ["proj_in", "proj_out"] {
            if projection(self, name) {
                self.tracked = true;
                // Its input and result on their own; with dropout the mask and the masked input too, and the update.
                let maps = if self.sizes.dropout { 6 } else { 2 } + self.maps_of_update();
                (0..maps).for_each(|_| self.between(width, size));
            }
            self.between(width, size);
        }
        for index in 0..level.transformer_layers {
            self.transformer_block(&format!("{path}.transformer_blocks.{index}"), level, size);
            self.between(width, size);
        }
    }

    fn transformer_block(&mut self, path: &str, level: &UNetLevel, size: Size) {
        let (width, context) = (level.channels, level.context_width);
        let (tokens, prompt) = (self.numbers(width, size), self.rows * (self.sizes.tokens * width) as u64);
        let (mut reached, mut dropped, mut decomposed) = (false, 0, 0);
        for (attention, context) in [("attn1", width), ("attn2", context)] {
            for (name, inputs) in [("to_q", width), ("to_k", context), ("to_v", context), ("to_out.0", width)] {
                if self.linear(&format!("{path}.{attention}.{name}"), inputs, width) {
                    reached = true;
                    let of_the_prompt = attention == "attn2" && matches!(name, "to_k" | "to_v");
                    // The mask, the masked input, and the update beside the layer's own result.
                    dropped += if of_the_prompt { 4 * prompt } else { 4 * tokens };
                    decomposed += self.kept_by_update(true, if of_the_prompt { prompt } else { tokens });
                }
            }
        }
        let widen = self.linear(&format!("{path}.ff.net.0.proj"), width, 8 * width);
        let narrow = self.linear(&format!("{path}.ff.net.2"), 4 * width, width);
        self.tracked |= reached || widen || narrow;
        // Twice: norm, query, mixture, sum; and keys and values of the map itself.
        let mut inside = 10 * tokens + 2 * prompt;
        inside += if widen { tokens } else { 0 } + if narrow { 5 * tokens } else { 0 };
        let wide = 8 * tokens;
        if widen || narrow {
            inside += wide;
        }
        inside += decomposed + self.kept_by_update(widen, wide) + self.kept_by_update(narrow, tokens);
        inside += 4 * self.rows * area(size) * level.heads as u64;
        if self.sizes.dropout {
            dropped += if widen { 18 * tokens } else { 0 } + if narrow { 10 * tokens } else { 0 };
            inside += dropped;
        }
        let linear = area(size) * (6 * width * width + 12 * width * width) as u64;
        let prompt = (self.sizes.tokens * 2 * context * width) as u64;
        let scores = 2 * area(size) * (area(size) + self.sizes.tokens as u64) * width as u64;
        self.block(path, inside, 0, 2 * self.rows * (linear + prompt + scores));
        if !widen && !narrow && keeps_wide(wide, self.sizes.weights) {
            let flops = 2 * self.rows * area(size) * (8 * width * width) as u64;
            let inside = if self.tracked { ACTIVATION * wide } else { 0 };
            self.largest = self.largest.max(wide);
            // In pieces, of which none is large.
            let layer = BlockFootprint { path: format!("{path}.ff"), inside, packed: 0, again: 0, flops };
            self.footprint.blocks.push(layer);
        }
    }

    /// Elements that the update of a module with this many `outputs` keeps besides what a LoRA keeps.
    fn kept_by_update(&self, adapted: bool, outputs: u64) -> u64 {
        if adapted { outputs * self.maps_of_update() } else { 0 }
    }

    /// The same in maps of a module's result: a DoRA keeps the result before its gain, and where dropout takes the layer
    /// apart, both products before and after their gains.
    fn maps_of_update(&self) -> u64 {
        match (self.sizes.kind, self.sizes.dropout) {
            (UpdateKind::Lora, _) => 0,
            (UpdateKind::Dora, false) => 1,
            (UpdateKind::Dora, true) => 4,
        }
    }

    /// Elements of a module's update that are trained.
    fn trained_elements(&self, inputs: usize, outputs: usize) -> usize {
        let low_rank = self.sizes.rank * (inputs + outputs);
        match self.sizes.kind {
            UpdateKind::Lora => low_rank,
            UpdateKind::Dora => low_rank + outputs,
        }
    }

    /// Counts a module; whether the adapter reaches it.
    fn linear(&mut self, path: &str, inputs: usize, outputs: usize) -> bool {
        let kind = ModuleKind::Linear { in_features: inputs, out_features: outputs };
        self.module(path, kind, inputs * outputs, self.trained_elements(inputs, outputs))
    }

    fn conv2d(&mut self, path: &str, (inputs, outputs): (usize, usize), kernel: usize) -> bool {
        let (stride, padding) = (1, kernel / 2);
        let kind = ModuleKind::Conv2d { in_channels: inputs, out_channels: outputs, kernel, stride, padding };
        let inputs = inputs * kernel * kernel;
        self.module(path, kind, inputs * outputs, self.trained_elements(inputs, outputs))
    }

    /// A convolution outside the blocks, from a map of one size to one of another.
    fn between_blocks(&mut self, path: &str, (inputs, outputs): (usize, usize), kernel: usize, [from, to]: [Size; 2]) {
        let reached = self.conv2d(path, (inputs, outputs), kernel);
        self.tracked |= reached;
        if reached {
            (0..self.maps_of_update()).for_each(|_| self.between(outputs, to));
        }
        if reached && self.sizes.dropout {
            (0..2).for_each(|_| self.between(inputs, from));
            (0..2).for_each(|_| self.between(outputs, to));
        }
    }

    fn module(&mut self, path: &str, kind: ModuleKind, weights: usize, factors: usize) -> bool {
        self.footprint.weights += weight_bytes(weights as u64, self.sizes.weights);
        let reached = self.sizes.targets.chooses(&ModuleInfo { path: path.into(), kind });
        self.trained += if reached { factors as u64 } else { 0 };
        reached
    }

    fn block(&mut self, path: &str, inside: u64, packed: u64, flops: u64) {
        let [inside, packed] = [inside, packed].map(|numbers| if self.tracked { ACTIVATION * numbers } else { 0 });
        self.footprint.forward_flops += flops;
        self.footprint.blocks.push(BlockFootprint { path: path.into(), inside, packed, again: inside, flops });
    }

    /// A map that stays between blocks.
    fn between(&mut self, channels: usize, size: Size) {
        let numbers = self.numbers(channels, size);
        self.largest = self.largest.max(numbers);
        self.footprint.between += ACTIVATION * numbers;
    }

    /// A map that the way up needs too; its gradient waits for the way down.
    fn skip(&mut self, channels: usize, size: Size) {
        self.skips.push(channels);
        self.footprint.passing += ACTIVATION * self.numbers(channels, size);
    }

    /// Numbers of a map.
    fn numbers(&self, channels: usize, size: Size) -> u64 {
        self.rows * channels as u64 * area(size)
    }

    fn finish(self) -> Footprint {
        /// Gradients, laid-out operands and what the allocator cannot use again, in the size of the largest tensor, as
        /// measured by `bench step`.
        const AT_THE_LARGEST: u64 = 10;
        /// Factors, their gradients twice while they are added up, and both moments of AdamW.
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
