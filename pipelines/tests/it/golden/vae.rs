//! Autoencoders against `vae.safetensors`.

use candle_core::{DType, Device};
use catelier_pipelines::model::Vae;
use catelier_testkit::close::assert_close;
use catelier_testkit::golden::Golden;
use catelier_testkit::tolerance::Tolerance;

use super::{assert_output, files};

#[test]
fn encoding_sampling_and_decoding_agree() {
    let fixture = Golden::open().fixture("vae");
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
    let fixture = Golden::open().fixture("vae");
    let image = fixture.tensor("sd1.image");
    let means = ["vae", "vae_legacy_keys"].map(|component| {
        let vae = Vae::load_component(&files("tiny-sd1"), component, DType::F32, &Device::Cpu).unwrap();
        vae.encode(&image).unwrap().mode()
    });
    assert_close("legacy names", &means[1], &means[0], Tolerance::Exact);
    assert_output(&fixture, "sd1.mean", &means[1]);
}
