//! Whole generations, from a prompt to pixels.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_pipelines::diffusion::sampler::SamplerKind;
use catelier_pipelines::generation::{GenerateRequest, Generator, to_image};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::{self, PIXEL, PIXEL_LEVEL};
use serde_json::Value;

use super::adapted::adapter;
use super::{check, reference};

fn base(model: &str) -> BaseModel {
    let files = ModelFiles::folder(reference().model(model));
    BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap()
}

fn request(golden: &Fixture, name: &str, facts: &Value, base: &BaseModel) -> GenerateRequest {
    let image = golden.tensor(&format!("{name}.image"));
    let (_, _, height, width) = image.dims4().unwrap();
    let own = || SamplerKind::recommended(base.schedule.config()).unwrap();
    // without a negative prompt, the facts hold an explanation in its place
    let negative = facts["negative_prompt"].as_str().filter(|text| !text.starts_with("none: "));
    GenerateRequest {
        prompts: vec![facts["prompt"].as_str().unwrap().into()],
        seeds: vec![0],
        negative: negative.map(Into::into),
        steps: facts["steps"].as_u64().unwrap() as usize,
        guidance: facts["guidance_scale"].as_f64().unwrap(),
        sampler: facts["scheduler"].as_str().unwrap().parse().unwrap_or_else(|_| own()),
        width: width as u32,
        height: height as u32,
        ..GenerateRequest::default()
    }
}

fn adapters(facts: &Value) -> AdapterSet {
    let Some(topic) = facts["lora"].as_str() else { return AdapterSet::base() };
    let lora = reference().fixture(topic);
    AdapterSet::single(&adapter(&lora, "weight.", lora.facts()["alpha"].as_f64().unwrap()), 1.0)
}

fn follow(golden: &Fixture, name: &str, facts: &Value) {
    let base = base(facts["model"].as_str().unwrap());
    let request = request(golden, name, facts, &base);
    let start = golden.tensor(&format!("{name}.start"));
    let trajectory = Generator::new(&base).trajectory(&request, &start, &adapters(facts)).unwrap();

    let expected = golden.tensor(&format!("{name}.latents"));
    let tolerance = tolerance::output(golden.noise(&format!("{name}.latents")));
    assert_eq!(trajectory.len(), expected.dims()[0], "{name} calls");
    for (call, latents) in trajectory.iter().enumerate() {
        let what = format!("{name} latents after call {call}");
        // Guidance multiplies the float32 error of every call, also in the reference.
        check(&what, latents, &expected.narrow(0, call, 1).unwrap(), tolerance);
    }
    let decoded = base.vae.decode(&trajectory[trajectory.len() - 1]).unwrap();
    let image = ((&decoded / 2.0).unwrap() + 0.5).unwrap().clamp(0_f32, 1_f32).unwrap();
    check(&format!("{name} image"), &image, &golden.tensor(&format!("{name}.image")), PIXEL);
    let image = to_image(&decoded).unwrap();
    let shape = (1, image.height() as usize, image.width() as usize, 3);
    let pixels = Tensor::from_vec(image.into_raw(), shape, &Device::Cpu).unwrap();
    check(&format!("{name} pixels"), &pixels, &golden.tensor(&format!("{name}.pixels")), PIXEL_LEVEL);
}

#[test]
fn every_generation_ends_in_the_reference_pixels() {
    let golden = reference().fixture("generate");
    let generations = golden.facts().as_object().unwrap();
    assert!(generations.len() >= 6, "only {} generations in the fixtures", generations.len());
    for (name, facts) in generations {
        follow(&golden, name, facts);
    }
}
