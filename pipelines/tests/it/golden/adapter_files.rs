//! Predictions with adapter files in the users' formats, against `adapter_files.safetensors`.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet, file};
use catelier_pipelines::models::base::BaseModel;
use catelier_testkit::tolerance::Tolerance;

use super::{check, condition, files, reference};

/// The manifest has no noise for these outputs, so the noise of the same model's plain output is used.
fn tolerance(short: &str) -> Tolerance {
    let unet = reference().fixture("unet");
    catelier_testkit::tolerance::output(unet.noise(&format!("{short}.out")))
}

fn load_base(model: &str) -> BaseModel {
    BaseModel::load(&files(model), DType::F32, &Device::Cpu).unwrap()
}

fn read(base: &BaseModel, name: &str) -> Adapter {
    let path = reference().file(&format!("{name}.safetensors"));
    let loaded = file::read(&path, &base.modules()).unwrap();
    assert!(loaded.report.is_complete(), "{name}: {:?}", loaded.report);
    loaded.adapter
}

/// The UNet's output on the inputs of `unet.safetensors`.
fn predict(base: &BaseModel, short: &str, adapter: &Adapter) -> Tensor {
    let inputs = reference().fixture("unet");
    let condition = condition(&inputs, &format!("{short}."));
    let tensor = |name: &str| inputs.tensor(&format!("{short}.{name}"));
    let adapters = AdapterSet::single(adapter, 1.0);
    base.unet.predict(&tensor("latents"), &tensor("timesteps"), &condition, &adapters).unwrap()
}

#[track_caller]
fn assert_unet_output(model: &str, short: &str, names: &[&str], expected: &str) {
    let base = load_base(model);
    let expected = reference().fixture("adapter_files").tensor(expected);
    for name in names {
        check(name, &predict(&base, short, &read(&base, name)), &expected, tolerance(short));
    }
}

#[test]
fn three_namings_of_one_adapter_agree() {
    let names = ["adapter_diffusers", "adapter_peft_keys", "adapter_kohya"];
    assert_unet_output("tiny-sd1", "sd1", &names, "expect.unet");
}

#[test]
fn a_file_without_alpha_means_alpha_is_rank() {
    assert_unet_output("tiny-sd1", "sd1", &["adapter_diffusers_no_alpha"], "no_alpha.out");
}

#[test]
fn adapters_of_all_layers_and_convolutions_agree() {
    assert_unet_output("tiny-sd1", "sd1", &["adapter_kohya_wide"], "expect.wide");
}

#[test]
fn both_namings_of_a_dora_agree() {
    assert_unet_output("tiny-sd1", "sd1", &["adapter_kohya_dora", "adapter_diffusers_dora"], "expect.dora");
}

#[test]
fn both_namings_for_sdxl_agree() {
    assert_unet_output("tiny-sdxl", "sdxl", &["adapter_kohya_sdxl", "adapter_diffusers_sdxl"], "expect.sdxl");
}

#[test]
fn half_precision_files_agree_as_far_as_their_rounding() {
    let golden = reference();
    let fixture = golden.fixture("adapter_files");
    let rounding = fixture.facts()["loaded_by_diffusers"]["adapter_kohya_fp16"]["unet_difference"].as_f64().unwrap();
    let base = load_base("tiny-sd1");
    let out = predict(&base, "sd1", &read(&base, "adapter_kohya_fp16"));
    let expected = fixture.tensor("expect.unet");
    check("adapter_kohya_fp16", &out, &expected, Tolerance::Absolute(1.1 * rounding));
}

#[test]
fn text_encoder_parts_of_a_file_agree() {
    let golden = reference();
    let base = load_base("tiny-sd1");
    let prompts = golden.fixture("text").facts()["prompts"].clone();
    let prompts = [prompts[0].as_str().unwrap(), prompts[1].as_str().unwrap()];
    let allowed = catelier_testkit::tolerance::output(golden.fixture("text").noise("sd1.last"));
    for name in ["adapter_diffusers", "adapter_kohya"] {
        let adapters = AdapterSet::single(&read(&base, name), 1.0);
        let hidden = base.text.encode_with(&prompts, 0, &adapters).unwrap().context;
        check(name, &hidden, &golden.fixture("adapter_files").tensor("expect.text"), allowed);
    }
}
