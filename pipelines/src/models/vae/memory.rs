//! The memory that the autoencoder needs for an image of a given size, computed in advance.
//!
//! It counts the tensors that are held at a time: the input of the level, the input of the block, and around a
//! convolution the normalised map, its padded copy, the convolution's scratch memory, and the result.

use catelier_numerics::ops::convolution_scratch_bytes;

use crate::models::config::VaeConfig;

/// Peak memory of f32 activations, in bytes, while latents of `cells` (height, width) are decoded.
pub(super) fn decoding(config: &VaeConfig, cells: (usize, usize)) -> u64 {
    let mut most = Most::nothing();
    let mut pixels = cells.0 * cells.1;
    let mut inputs = config.block_out_channels.last().copied().unwrap_or(0);
    most.middle(inputs, pixels);
    for (index, &width) in config.block_out_channels.iter().rev().enumerate() {
        most.level(config.layers_per_block + 1, inputs, width, pixels);
        if index + 1 < config.block_out_channels.len() {
            // The doubled map, its padded copy, and the result.
            let convolution = 3 * width * 4 * pixels + scratch([width, width], 4 * pixels);
            most.see((inputs + width) * pixels + convolution);
            pixels *= 4;
        }
        inputs = width;
    }
    most.see((3 * inputs + config.out_channels) * pixels + scratch([inputs, config.out_channels], pixels));
    most.bytes()
}

/// Peak memory of f32 activations, in bytes, while an image of `size` (height, width) is encoded.
pub(super) fn encoding(config: &VaeConfig, size: (usize, usize)) -> u64 {
    let mut most = Most::nothing();
    let mut pixels = size.0 * size.1;
    let mut inputs = config.block_out_channels.first().copied().unwrap_or(0);
    most.see((2 * config.in_channels + inputs) * pixels + scratch([config.in_channels, inputs], pixels));
    for (index, &width) in config.block_out_channels.iter().enumerate() {
        most.level(config.layers_per_block, inputs, width, pixels);
        if index + 1 < config.block_out_channels.len() {
            // The map with a margin at the right and the bottom, its padded copy, and the result.
            most.see((inputs + 4 * width) * pixels + width * pixels / 4);
            pixels /= 4;
        }
        inputs = width;
    }
    most.middle(inputs, pixels);
    most.bytes()
}

/// Elements of scratch memory of a 3 × 3 convolution with these input and output channels.
fn scratch(channels: [usize; 2], pixels: usize) -> usize {
    convolution_scratch_bytes(channels, pixels) as usize / size_of::<f32>()
}

/// The largest number of elements held at a time.
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

    /// Residual blocks at one resolution. From the second block on, the input of the level is held too.
    fn level(&mut self, blocks: usize, inputs: usize, width: usize, pixels: usize) {
        self.block(0, inputs, width, pixels);
        if blocks > 1 {
            self.block(inputs, width, width, pixels);
        }
    }

    /// A residual block: each of its convolutions, then the shortcut from the input's width to the result's.
    fn block(&mut self, held: usize, inputs: usize, width: usize, pixels: usize) {
        let shortcut = if inputs == width { 0 } else { 2 * inputs + 3 * width };
        self.see((held + 3 * inputs + width) * pixels + scratch([inputs, width], pixels));
        self.see((held + inputs + 4 * width) * pixels + scratch([width, width], pixels));
        self.see((held + shortcut) * pixels);
    }

    /// Attention, which holds more than the blocks around it: two inputs, the normalised map and its tokens, query,
    /// key, value and the mixed values.
    fn middle(&mut self, width: usize, pixels: usize) {
        self.see(8 * width * pixels);
    }
}
