//! How much memory an image takes on its way through the autoencoder, known before it goes.
//!
//! The figures follow what the code holds at a time: the input of the level at work, the input of the block, and around a
//! convolution the normalised map, its copy in a frame of zeros, what it is computed with, and the result.

use catelier_numerics::ops::convolution_scratch_bytes;

use crate::models::config::VaeConfig;

/// Bytes that activations in f32 take at most while latents of `cells` (height, width) become an image.
pub(super) fn decoding(config: &VaeConfig, cells: (usize, usize)) -> u64 {
    let mut most = Most::nothing();
    let mut pixels = cells.0 * cells.1;
    let mut inputs = config.block_out_channels.last().copied().unwrap_or(0);
    most.middle(inputs, pixels);
    for (index, &width) in config.block_out_channels.iter().rev().enumerate() {
        most.level(config.layers_per_block + 1, inputs, width, pixels);
        if index + 1 < config.block_out_channels.len() {
            // The doubled map, in its frame, and the result.
            let convolution = 3 * width * 4 * pixels + scratch([width, width], 4 * pixels);
            most.see((inputs + width) * pixels + convolution);
            pixels *= 4;
        }
        inputs = width;
    }
    most.see((3 * inputs + config.out_channels) * pixels + scratch([inputs, config.out_channels], pixels));
    most.bytes()
}

/// Bytes that activations in f32 take at most while an image of `size` (height, width) becomes latents.
pub(super) fn encoding(config: &VaeConfig, size: (usize, usize)) -> u64 {
    let mut most = Most::nothing();
    let mut pixels = size.0 * size.1;
    let mut inputs = config.block_out_channels.first().copied().unwrap_or(0);
    most.see((2 * config.in_channels + inputs) * pixels + scratch([config.in_channels, inputs], pixels));
    for (index, &width) in config.block_out_channels.iter().enumerate() {
        most.level(config.layers_per_block, inputs, width, pixels);
        if index + 1 < config.block_out_channels.len() {
            // The map with a margin on two sides, one after the other, in its frame, and the result.
            most.see((inputs + 4 * width) * pixels + width * pixels / 4);
            pixels /= 4;
        }
        inputs = width;
    }
    most.middle(inputs, pixels);
    most.bytes()
}

/// Numbers that a 3 × 3 convolution between so many channels holds besides its input and its result.
fn scratch(channels: [usize; 2], pixels: usize) -> usize {
    convolution_scratch_bytes(channels, pixels) as usize / size_of::<f32>()
}

/// The most numbers seen at a time.
struct Most {
    numbers: usize,
}

impl Most {
    fn nothing() -> Self {
        Self { numbers: 0 }
    }

    fn see(&mut self, numbers: usize) {
        self.numbers = self.numbers.max(numbers);
    }

    fn bytes(&self) -> u64 {
        (self.numbers * size_of::<f32>()) as u64
    }

    /// Residual blocks at one resolution; from the second on, the input of the level is held beside that of the block.
    fn level(&mut self, blocks: usize, inputs: usize, width: usize, pixels: usize) {
        self.block(0, inputs, width, pixels);
        if blocks > 1 {
            self.block(inputs, width, width, pixels);
        }
    }

    /// A residual block: either convolution, then the one that brings the input to the width of the result.
    fn block(&mut self, held: usize, inputs: usize, width: usize, pixels: usize) {
        let shortcut = if inputs == width { 0 } else { 2 * inputs + 3 * width };
        self.see((held + 3 * inputs + width) * pixels + scratch([inputs, width], pixels));
        self.see((held + inputs + 4 * width) * pixels + scratch([width, width], pixels));
        self.see((held + shortcut) * pixels);
    }

    /// The blocks around the attention hold less than it does: two inputs, the normalised map and its tokens, query, key,
    /// value and the mixture.
    fn middle(&mut self, width: usize, pixels: usize) {
        self.see(8 * width * pixels);
    }
}
