//! The memory of the text encoders in a step that trains them.

use catelier_adapters::Component;

use super::{ACTIVATION, Walk};
use crate::models::{TextEncoderConfig, TextEncoderLayout, TextLayerLayout};

impl Walk<'_> {
    /// Whether the step trains the text encoders, so that the prompt has a gradient in the UNet.
    pub(super) fn text_trained(&self) -> bool {
        !self.sizes.trained_text_encoders.is_empty()
    }

    /// What the encoding of the captions keeps; no part of it can be recomputed. The encoders' weights are counted with
    /// those of the autoencoder.
    pub(super) fn text_encoders(&mut self) {
        for (&component, config) in &self.sizes.trained_text_encoders {
            let layout = TextEncoderLayout::new(component.name(), config);
            let used = layout.layers.len() - usize::from(self.leaves_last_layer(component));
            for layer in &layout.layers[..used] {
                self.text_layer(layer, config);
            }
            // The embedded tokens, the last sum and its norm.
            let around = 3 * self.rows * (self.sizes.tokens * config.hidden_size) as u64;
            self.footprint.between += ACTIVATION * around;
        }
    }

    /// Whether the condition is taken in front of the last layer, as from SDXL's first encoder.
    fn leaves_last_layer(&self, component: Component) -> bool {
        component == Component::TextEncoder && self.sizes.trained_text_encoders.len() == 2
    }

    fn text_layer(&mut self, layer: &TextLayerLayout, config: &TextEncoderConfig) {
        let tokens = self.rows * self.sizes.tokens as u64;
        let linears = [&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj, &layer.fc1, &layer.fc2];
        // For each half of the layer: its input, the norm and the result. Also query, key, value and mixed values, and
        // the feed-forward layer before and after its activation.
        let mut kept = tokens * (10 * config.hidden_size + 2 * config.intermediate_size) as u64;
        for linear in linears {
            let [inputs, outputs] = [linear.in_features, linear.out_features].map(|width| tokens * width as u64);
            if self.adapted(&linear.module()) {
                kept += self.kept_by_update(true, outputs);
                kept += if self.sizes.dropout { 2 * (inputs + outputs) } else { 0 };
            }
        }
        self.largest = self.largest.max(tokens * config.intermediate_size as u64);
        self.footprint.between += ACTIVATION * kept;
    }
}
