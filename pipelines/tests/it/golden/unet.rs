//! UNets against `unet.safetensors`.

use candle_core::{Device, Tensor};
use catelier_adapters::AdapterSet;

use super::{MODELS, assert_output, condition, load_unet, reference};

/// The name of an activation in the fixture: `down_blocks.0` is `down_0`.
fn fixture_name(activation: &str) -> String {
    activation.replace("_blocks.", "_").replace("mid_block", "mid")
}

#[test]
fn outputs_and_activations_agree_on_all_three_models() {
    let fixture = reference().fixture("unet");
    for (model, short) in MODELS {
        let unet = load_unet(model);
        let prefix = format!("{short}.");
        let mut seen = Vec::new();
        let out = unet
            .predict_observed(
                &fixture.tensor(&format!("{short}.latents")),
                &fixture.tensor(&format!("{short}.timesteps")),
                &condition(&fixture, &prefix),
                &AdapterSet::base(),
                &mut |name, activation| seen.push((name.to_owned(), activation.clone())),
            )
            .unwrap();
        assert_eq!(seen.len(), 3 + 2 * unet.config().levels.len());
        for (name, activation) in seen {
            assert_output(&fixture, &format!("{short}.{}", fixture_name(&name)), &activation);
        }
        assert_output(&fixture, &format!("{short}.out"), &out);
    }
}

#[test]
fn a_wide_input_agrees_on_all_three_models() {
    let fixture = reference().fixture("unet");
    for (model, short) in MODELS {
        let out = load_unet(model)
            .predict(
                &fixture.tensor(&format!("{short}.latents_wide")),
                &Tensor::new(&[500f32], &Device::Cpu).unwrap(),
                &condition(&fixture, &format!("{short}.")).rows(&[0]).unwrap(),
                &AdapterSet::base(),
            )
            .unwrap();
        assert_output(&fixture, &format!("{short}.out_wide"), &out);
    }
}
