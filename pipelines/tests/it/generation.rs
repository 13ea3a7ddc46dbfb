//! Generation for users: seeds, batches, guidance, and values that overflow.

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use catelier_adapters::{Adapter, AdapterSet, LoraConfig, LoraFactors, Targets};
use catelier_pipelines::Error;
use catelier_pipelines::diffusion::sampler::{self, SamplerKind, SamplerSettings};
use catelier_pipelines::generation::{GenerateRequest, Generator, generate};
use catelier_pipelines::models::Tiling;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_prompts::Trigger;
use catelier_testkit::golden::Golden;
use image::RgbImage;

fn base() -> BaseModel {
    let files = ModelFiles::folder(Golden::open().model("tiny-sd1"));
    BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap()
}

fn request(seeds: &[u64]) -> GenerateRequest {
    let prompts = ["a red teapot", "a clock", "an elephant"];
    GenerateRequest {
        prompts: seeds.iter().map(|seed| prompts[*seed as usize % 3].into()).collect(),
        seeds: seeds.into(),
        steps: 3,
        sampler: SamplerKind::EulerAncestral,
        width: 64,
        height: 32,
        ..GenerateRequest::default()
    }
}

fn largest_level_difference(left: &RgbImage, right: &RgbImage) -> u8 {
    left.as_raw().iter().zip(right.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn an_image_depends_on_its_seed_and_not_on_its_batch() {
    let base = base();
    let together = generate(&base, &GenerateRequest { batch: 3, ..request(&[4, 5, 6]) }, &AdapterSet::base()).unwrap();
    let alone = generate(&base, &request(&[5]), &AdapterSet::base()).unwrap();
    assert_eq!((alone[0].width(), alone[0].height()), (64, 32));
    assert!(largest_level_difference(&together[1], &alone[0]) <= 1);
    let other_seed = generate(&base, &request(&[8]), &AdapterSet::base()).unwrap();
    assert!(largest_level_difference(&other_seed[0], &alone[0]) > 8, "seeds 5 and 8 share a prompt");
}

/// Images of prompts with a trigger, some of them without.
fn with_trigger(from: &str, negative: Option<&str>, prompts: &[&str]) -> GenerateRequest {
    GenerateRequest {
        prompts: prompts.iter().map(ToString::to_string).collect(),
        triggers: vec![Trigger::new("shs").unwrap(), Trigger::new("owl").unwrap()],
        guidance_from: from.parse().unwrap(),
        negative: negative.map(str::to_owned),
        batch: prompts.len(),
        ..request(&(0..prompts.len() as u64).collect::<Vec<_>>())
    }
}

#[test]
fn guidance_from_the_trigger_is_a_negative_prompt_that_begins_with_it() {
    let base = base();
    let drawn = |request| generate(&base, &request, &AdapterSet::base()).unwrap();
    let prompts = ["a teapot, shs", "shs, a clock"];
    for (negative, same) in [(None, "shs"), (Some("blurry"), "shs, blurry")] {
        let from_trigger = drawn(with_trigger("trigger", negative, &prompts));
        assert_eq!(from_trigger, drawn(with_trigger("empty", Some(same), &prompts)));
        assert_ne!(from_trigger, drawn(with_trigger("empty", negative, &prompts)));
    }
    let two = drawn(with_trigger("trigger", None, &["an owl by shs"]));
    assert_eq!(two, drawn(with_trigger("empty", Some("shs, owl"), &["an owl by shs"])));
    let plain = ["a teapot", "a clock"];
    assert_eq!(drawn(with_trigger("trigger", None, &plain)), drawn(with_trigger("0.5", None, &plain)));
    assert_eq!(drawn(with_trigger("trigger", None, &plain)), drawn(with_trigger("empty", None, &plain)));
}

#[test]
fn a_prompt_without_a_trigger_is_drawn_the_same_beside_one_with_it() {
    let base = base();
    let drawn =
        |from, prompts: &[&str]| generate(&base, &with_trigger(from, None, prompts), &AdapterSet::base()).unwrap();
    let alone = drawn("empty", &["a teapot"]);
    for from in ["trigger", "0.5"] {
        let together = drawn(from, &["a teapot", "shs, a clock"]);
        assert!(largest_level_difference(&together[0], &alone[0]) <= 1, "{from}");
    }
    let [empty, half, trigger] = ["empty", "0.5", "trigger"].map(|from| drawn(from, &["shs, a clock"]));
    assert!(empty != half && half != trigger);
}

#[test]
fn outside_its_range_there_is_no_guidance() {
    let base = base();
    let drawn = |guidance, range: &str| {
        let request = GenerateRequest { guidance, guidance_range: range.parse().unwrap(), ..request(&[1]) };
        generate(&base, &request, &AdapterSet::base()).unwrap()
    };
    // The steps begin at 0, a third and two thirds.
    assert_eq!(drawn(5.0, "0-0.7"), drawn(5.0, "0-1"));
    let first_alone = drawn(5.0, "0-0.3");
    assert!(first_alone != drawn(5.0, "0-1") && first_alone != drawn(1.0, "0-1"));
}

#[test]
fn both_calls_of_a_step_are_guided_or_neither() {
    let steps = |kind| {
        let sampler = sampler::prepare(&base().schedule, &SamplerSettings::new(kind, 3)).unwrap();
        (0..sampler.timesteps().len()).map(|call| sampler.step_of(call)).collect::<Vec<_>>()
    };
    assert_eq!(steps(SamplerKind::Ddim), [0, 1, 2]);
    assert_eq!(steps(SamplerKind::Heun), [0, 0, 1, 1, 2]);
    assert_eq!(steps(SamplerKind::Pndm), [0, 0, 1, 2]);
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let base = base();
    let mut generator = Generator::new(&base);
    let mut twice =
        || generator.generate(&request(&[1]), &AdapterSet::base(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(twice(), twice());
}

#[test]
fn progress_counts_every_call_of_every_batch() {
    let base = base();
    let mut seen = Vec::new();
    let request = GenerateRequest { batch: 2, ..request(&[1, 2, 3]) };
    Generator::new(&base)
        .generate(&request, &AdapterSet::base(), &mut |progress| {
            seen.push((progress.images_done, progress.batch, progress.call));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [(0, 2, 1), (0, 2, 2), (0, 2, 3), (2, 1, 1), (2, 1, 2), (2, 1, 3)]);
}

#[test]
fn a_generation_stops_after_the_model_call_in_which_it_is_cancelled() {
    let base = base();
    let mut calls = 0;
    let stopped = Generator::new(&base).generate(&request(&[1, 2]), &AdapterSet::base(), &mut |progress| {
        calls += 1;
        if progress.call == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    assert_eq!(calls, 2);
}

#[test]
fn an_image_that_overflows_is_named_with_its_prompt_seed_and_step() {
    let base = base();
    let config = LoraConfig { rank: 1, alpha: 1.0, dropout: 0.0, targets: Targets::attention() };
    let (fresh, _) = Adapter::init(&config, base.unet.modules(), 1, &Device::Cpu).unwrap();
    let (path, update) = fresh.iter().next().unwrap();
    let factors = update.low_rank();
    let up = (factors.up.ones_like().unwrap() * f64::NAN).unwrap();
    let mut broken = Adapter::new();
    broken.insert(path, LoraFactors::new(factors.down.detach(), up, 1.0).unwrap());
    let error = generate(&base, &request(&[5]), &AdapterSet::single(&broken, 1.0)).unwrap_err();
    let Error::ImageNotFinite { prompt, seed, step, .. } = &error else { panic!("{error}") };
    assert_eq!((prompt.as_str(), *seed, *step), ("an elephant", 5, 1));
}

#[test]
fn an_image_no_larger_than_a_tile_is_the_same_with_tiles_and_a_larger_one_nearly() {
    let request = GenerateRequest { width: 160, height: 96, ..request(&[1]) };
    let whole = generate(&base(), &request, &AdapterSet::base()).unwrap();
    let in_tiles = |side: usize| {
        let base = base().with_tiling(Tiling { side, ..Tiling::always() }).unwrap();
        (base.vae.decodes_in_tiles((96, 160)), generate(&base, &request, &AdapterSet::base()).unwrap())
    };
    assert_eq!(in_tiles(20), (false, whole.clone()));
    let (is_tiled, tiled) = in_tiles(8);
    assert!(is_tiled && tiled != whole && tiled[0].dimensions() == whole[0].dimensions());
}

#[test]
fn an_image_is_cut_when_it_would_need_more_memory_than_there_is() {
    let vae = base().vae;
    let needed = vae.decoding_bytes((96, 160));
    assert!(needed > vae.decoding_bytes((96, 152)));
    for (bytes, is_tiled) in [(needed - 1, true), (needed, false)] {
        let base = base().with_tiling(Tiling { above_bytes: bytes, side: 8 }).unwrap();
        assert_eq!(base.vae.decodes_in_tiles((96, 160)), is_tiled);
        assert!(!base.vae.decodes_in_tiles((64, 64)), "one tile");
    }
    for side in [0, 6] {
        assert!(base().with_tiling(Tiling { side, ..Tiling::always() }).is_err());
    }
}
