//! Text encoders against `text.safetensors`.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_pipelines::models::{TextEncoder, TextEncoders};
use catelier_testkit::golden::Fixture;

use super::{assert_output, files, reference};

fn prompts(fixture: &Fixture) -> Vec<String> {
    let prompts = fixture.facts()["prompts"].as_array().unwrap();
    prompts.iter().map(|prompt| prompt.as_str().unwrap().to_owned()).collect()
}

/// Token ids stored as a tensor `[prompts, tokens]`.
fn ids(fixture: &Fixture, name: &str) -> Vec<Vec<u32>> {
    let width = fixture.tensor(name).dim(1).unwrap();
    fixture.whole_numbers(name).chunks(width).map(<[u32]>::to_vec).collect()
}

fn load(model: &str, component: &str) -> TextEncoder {
    TextEncoder::load(&files(model), component, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn every_layer_the_last_one_and_the_pooled_row_agree() {
    let fixture = reference().fixture("text");
    for (model, short) in [("tiny-sd1", "sd1"), ("tiny-sd2", "sd2")] {
        let encoder = load(model, "text_encoder");
        let output = encoder.encode(&ids(&fixture, &format!("{short}.ids")), &AdapterSet::base()).unwrap();
        let hidden = Tensor::stack(&output.hidden, 0).unwrap();
        assert_output(&fixture, &format!("{short}.hidden"), &hidden);
        assert_output(&fixture, &format!("{short}.last"), &output.last);
        assert_output(&fixture, &format!("{short}.pooled"), &output.pooled);
    }
}

#[test]
fn prompts_become_the_context_the_unet_is_given() {
    let fixture = reference().fixture("text");
    let prompts = prompts(&fixture);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    for (model, short) in [("tiny-sd1", "sd1"), ("tiny-sd2", "sd2")] {
        let encoders = TextEncoders::load(&files(model), DType::F32, &Device::Cpu).unwrap();
        assert_output(&fixture, &format!("{short}.last"), &encoders.encode(&prompts).unwrap().context);
        let skipped = encoders.encode_with(&prompts, 1, &AdapterSet::base()).unwrap();
        assert_output(&fixture, &format!("{short}.clip_skip_1"), &skipped.context);
    }
}

#[test]
fn sdxl_takes_penultimate_layers_side_by_side_and_the_projected_row() {
    let fixture = reference().fixture("text");
    let prompts = prompts(&fixture);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let encoders = TextEncoders::load(&files("tiny-sdxl"), DType::F32, &Device::Cpu).unwrap();
    let condition = encoders.encode(&prompts).unwrap();
    assert_output(&fixture, "sdxl.context", &condition.context);
    assert_output(&fixture, "sdxl.text_embeds", &condition.added.unwrap().pooled);
}

#[test]
fn sdxl_token_ids_come_from_each_encoders_own_tokenizer() {
    let fixture = reference().fixture("text");
    let prompts = prompts(&fixture);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let encoders = TextEncoders::load(&files("tiny-sdxl"), DType::F32, &Device::Cpu).unwrap();
    let found = encoders.token_ids(&prompts).unwrap();
    let expected = [ids(&fixture, "sdxl.ids_1"), ids(&fixture, "sdxl.ids_2")];
    assert_ne!(expected[0], expected[1], "the two tokenizers pad otherwise, so one cannot stand in for the other");
    assert_eq!(found, expected);
    let output = load("tiny-sdxl", "text_encoder_2").encode(&found[1], &AdapterSet::base()).unwrap();
    assert_output(&fixture, "sdxl.text_embeds", &output.projected.unwrap());
}
