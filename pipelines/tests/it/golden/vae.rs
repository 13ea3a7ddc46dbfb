//! Autoencoders against `vae.safetensors`.

use candle_core::{DType, Device, Tensor};
use catelier_pipelines::models::{Tiling, Vae};
use catelier_testkit::close::assert_close;
use catelier_testkit::tolerance::{self, Tolerance};

use super::{assert_output, check, files, reference, show};

#[test]
fn encoding_sampling_and_decoding_agree() {
    let fixture = reference().fixture("vae");
    for (model, short) in [("tiny-sd1", "sd1"), ("tiny-sdxl", "sdxl")] {
        let vae = Vae::load(&files(model), DType::F32, &Device::Cpu).unwrap();
        let stored = |name: &str| fixture.tensor(&format!("{short}.{name}"));
        let moments = vae.encode(&stored("image")).unwrap();
        assert_output(&fixture, &format!("{short}.mean"), &moments.mode());
        assert_output(&fixture, &format!("{short}.logvar"), &moments.logvar);
        let latents = vae.scale(&moments.sample(&stored("noise")).unwrap()).unwrap();
        assert_output(&fixture, &format!("{short}.latents"), &latents);
        assert_output(&fixture, &format!("{short}.decoded"), &vae.decode(&stored("latents")).unwrap());
    }
}

#[test]
fn legacy_attention_names_are_the_same_autoencoder() {
    let fixture = reference().fixture("vae");
    let image = fixture.tensor("sd1.image");
    let means = ["vae", "vae_legacy_keys"].map(|component| {
        let vae = Vae::load_component(&files("tiny-sd1"), component, DType::F32, &Device::Cpu).unwrap();
        vae.encode(&image).unwrap().mode()
    });
    assert_close("legacy names", &means[1], &means[0], Tolerance::Exact);
    assert_output(&fixture, "sd1.mean", &means[1]);
}

#[test]
fn tiles_are_cut_and_blended_as_diffusers_does() {
    let golden = reference();
    if !golden.folder().join("fixtures/vae_tiled.safetensors").is_file() {
        return show("tiles: this folder has no reference for them; skipped", 0.0);
    }
    let (inputs, tiled) = (golden.fixture("vae"), golden.fixture("vae_tiled"));
    let vae = Vae::load(&files("tiny-sd1"), DType::F32, &Device::Cpu).unwrap();
    let vae = vae.with_tiling(Tiling { side: 4, ..Tiling::always() }).unwrap();
    let moments = vae.encode(&inputs.tensor("sd1.image")).unwrap();
    let decoded = vae.decode(&inputs.tensor("sd1.latents")).unwrap();
    let thirds = |size: usize| Tensor::arange_step(0, size as u32, 3, &Device::Cpu).unwrap();
    let (_, _, height, width) = decoded.dims4().unwrap();
    let decoded = decoded
        .index_select(&thirds(height), 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .index_select(&thirds(width), 3)
        .unwrap();
    for (name, whole, found) in [
        ("sd1.mean", "sd1.mean", moments.mode()),
        ("sd1.logvar", "sd1.logvar", moments.logvar),
        ("sd1.decoded_thirds", "sd1.decoded", decoded),
    ] {
        check(&format!("tiled {name}"), &found, &tiled.tensor(name), tolerance::output(inputs.noise(whole)));
    }
}
