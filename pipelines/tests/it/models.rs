//! Whole models: laws that hold for all weights.

use candle_core::{DType, Device, Tensor, Var};
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet, BaseFamily, LoraConfig, Targets, UpdateKind};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::{Gradients, Parameters};
use catelier_pipelines::Error;
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::base::{BaseModel, EmptyNegative};
use catelier_pipelines::models::files::{EmbeddedFile, ModelFiles};
use catelier_pipelines::models::{AddedCondition, Condition, ImageSizes, Recompute, UNet};
use catelier_testkit::close::assert_close;
use catelier_testkit::golden::Golden;
use catelier_testkit::tolerance::Tolerance;

pub(crate) const MODELS: [&str; 3] = ["tiny-sd1", "tiny-sd2", "tiny-sdxl"];

pub(crate) fn files(model: &str) -> ModelFiles {
    ModelFiles::folder(Golden::open().model(model))
}

pub(crate) fn unet(model: &str) -> UNet {
    UNet::load(&files(model), DType::F32, &Device::Cpu).unwrap()
}

pub(crate) fn normal(name: &'static str, shape: &[usize]) -> Tensor {
    Noise::new(11).normal(Stream(name), 0, 0, shape, &Device::Cpu).unwrap()
}

fn timesteps(steps: &[u32]) -> Tensor {
    Tensor::new(steps, &Device::Cpu).unwrap()
}

/// A random condition of the right widths for `batch` samples.
pub(crate) fn condition(unet: &UNet, batch: usize) -> Condition {
    let context = normal("context", &[batch, 7, unet.config().context_width()]);
    let added = unet.config().added.as_ref().map(|added| AddedCondition {
        pooled: normal("pooled", &[batch, added.input_width - 6 * added.time_width]),
        time_ids: ImageSizes::time_ids(&vec![ImageSizes::uncropped(64, 64); batch], DType::F32, &Device::Cpu).unwrap(),
    });
    Condition { context, added }
}

/// A LoRA on every module with factors that are not zero.
pub(crate) fn full_adapter(unet: &UNet) -> (Adapter, Parameters) {
    full_adapter_of(UpdateKind::Lora, unet)
}

/// An adapter of any kind on every module, with factors that are not zero.
fn full_adapter_of(kind: UpdateKind, unet: &UNet) -> (Adapter, Parameters) {
    let config = LoraConfig { rank: 2, alpha: 2.0, dropout: 0.0, targets: Targets::everything() };
    let norms = |path: &str| unet.row_norms(path);
    let (fresh, _) = Adapter::init_kind(kind, &config, unet.modules(), norms, 3, &Device::Cpu).unwrap();
    let mut adapter = Adapter::new();
    for (index, (path, update)) in fresh.iter().enumerate() {
        let update = update.try_map(|name, tensor| match name {
            "up" => Noise::new(index as u64).normal(Stream("up"), 0, 0, tensor.dims(), &Device::Cpu).unwrap() * 0.05,
            _ => Ok(tensor.detach()),
        });
        adapter.insert(path, update.unwrap());
    }
    adapter.trainable(&Device::Cpu).unwrap()
}

/// The gradients of a step towards `target`, the base's prediction.
pub(crate) fn cat_gradients(
    unet: &UNet,
    condition: &Condition,
    target: &Tensor,
    (adapter, parameters): &(Adapter, Parameters),
) -> Gradients {
    let device = target.device();
    let latents = normal("latents", target.dims()).to_device(device).unwrap();
    let steps = timesteps(&[17, 803]).to_device(device).unwrap();
    let predict = |adapters: &AdapterSet| unet.predict(&latents, &steps, condition, adapters).unwrap();
    let (base, adapted) = (predict(&AdapterSet::base()), predict(&AdapterSet::single(adapter, 1.0)));
    let terms = (loss::denoising(&adapted, target).unwrap() + loss::cat(&adapted, &base).unwrap()).unwrap();
    parameters.collect_gradients(&terms.mean_all().unwrap().backward().unwrap()).unwrap()
}

/// Different types meet in the loss, in the adapters and in the embedding of timesteps; on the CPU only an f64 model
/// shows an error there.
#[test]
fn latents_and_factors_may_have_another_precision_than_the_model() {
    for model in MODELS {
        let (single, double) = (unet(model), UNet::load(&files(model), DType::F64, &Device::Cpu).unwrap());
        let (condition, trained) = (condition(&single, 2), full_adapter(&single));
        let target = normal("target", &[2, 4, 8, 8]);
        let expected = cat_gradients(&double, &condition, &target, &trained);
        let found = cat_gradients(&single, &condition, &target, &trained);
        let rounding = Tolerance::Absolute(1e-5 * expected.global_norm().unwrap());
        for (name, gradient) in expected.iter() {
            assert_eq!(gradient.dtype(), DType::F32);
            assert_close(name, found.get(name).unwrap(), gradient, rounding);
        }
    }
}

#[test]
fn checkpointing_changes_neither_result_nor_gradients() {
    for (model, kind) in
        MODELS.map(|model| (model, UpdateKind::Lora)).into_iter().chain([(MODELS[0], UpdateKind::Dora)])
    {
        let mut unet = unet(model);
        let (adapter, parameters) = full_adapter_of(kind, &unet);
        let dropout = AdapterDropout { probability: 0.2, seed: 5, step: 9 };
        let set = AdapterSet::single(&adapter, 0.8).with_dropout(dropout);
        let (latents, steps) = (normal("latents", &[2, 4, 8, 8]), timesteps(&[17, 803]));
        let condition = condition(&unet, 2);
        let run = |unet: &UNet| {
            let pred = unet.predict(&latents, &steps, &condition, &set).unwrap();
            let store = pred.sqr().unwrap().mean_all().unwrap().backward().unwrap();
            (pred.detach(), parameters.collect_gradients(&store).unwrap())
        };
        let (kept, kept_gradients) = run(&unet);
        unet.recompute(Recompute::All);
        let (again, again_gradients) = run(&unet);
        assert_close(model, &again, &kept, Tolerance::Exact);
        assert_eq!(kept_gradients.len(), parameters.len());
        for (name, gradient) in kept_gradients.iter() {
            assert_close(name, again_gradients.get(name).unwrap(), gradient, Tolerance::Exact);
        }
    }
}

#[test]
fn context_gradients_flow_through_checkpoints() {
    let mut unet = unet("tiny-sd1");
    let mut condition = condition(&unet, 1);
    let context = Var::from_tensor(&condition.context).unwrap();
    condition.context = context.as_tensor().clone();
    let latents = normal("latents", &[1, 4, 8, 8]);
    let run = |unet: &UNet| {
        let pred = unet.predict(&latents, &timesteps(&[400]), &condition, &AdapterSet::base()).unwrap();
        let store = pred.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        store.get(context.as_tensor()).unwrap().detach()
    };
    let kept = run(&unet);
    unet.recompute(Recompute::All);
    assert_close("context", &run(&unet), &kept, Tolerance::Exact);
}

#[test]
fn each_sample_has_its_own_timestep_and_condition() {
    for model in MODELS {
        let unet = unet(model);
        let (latents, condition) = (normal("latents", &[2, 4, 8, 8]), condition(&unet, 2));
        let base = AdapterSet::base();
        let both = unet.predict(&latents, &timesteps(&[3, 990]), &condition, &base).unwrap();
        for (row, step) in [(0, 3), (1, 990)] {
            let alone = unet
                .predict(
                    &latents.narrow(0, row, 1).unwrap(),
                    &timesteps(&[step]),
                    &condition.rows(&[row]).unwrap(),
                    &base,
                )
                .unwrap();
            assert_close(model, &both.narrow(0, row, 1).unwrap(), &alone, Tolerance::Absolute(2e-5));
        }
    }
}

#[test]
fn a_fresh_adapter_is_identity() {
    let unet = unet("tiny-sd2");
    let config = LoraConfig { rank: 4, alpha: 4.0, dropout: 0.0, targets: Targets::everything() };
    let norms = |path: &str| unet.row_norms(path);
    let (latents, condition) = (normal("latents", &[1, 4, 8, 8]), condition(&unet, 1));
    let predict = |set: &AdapterSet| unet.predict(&latents, &timesteps(&[100]), &condition, set).unwrap();
    let base = predict(&AdapterSet::base());
    // A DoRA adds bias and residual after its gain, so in another order than the layer alone.
    for (kind, tolerance) in [(UpdateKind::Lora, Tolerance::Exact), (UpdateKind::Dora, Tolerance::Absolute(2e-5))] {
        let fresh = Adapter::init_kind(kind, &config, unet.modules(), norms, 1, &Device::Cpu).unwrap().0;
        assert_close("fresh adapter", &predict(&AdapterSet::single(&fresh, 1.0)), &base, tolerance);
        assert_close("at no strength", &predict(&AdapterSet::single(&fresh, 0.0)), &base, Tolerance::Exact);
    }
}

#[test]
fn latent_sides_that_do_not_divide_evenly_work() {
    for model in MODELS {
        let unet = unet(model);
        let condition = condition(&unet, 1);
        let predict =
            |latents: &Tensor| unet.predict(latents, &timesteps(&[1]), &condition, &AdapterSet::base()).unwrap();
        for (height, width) in [(7, 9), (5, 6), (1, 3)] {
            let latents = normal("latents", &[1, 4, height, width]);
            let out = predict(&latents);
            assert_eq!(out.dims(), [1, 4, height, width], "{model}");
            let values = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{model}, {height} x {width}");
            // Each output position depends on the input at its position, also past the last even row and column.
            for (row, column) in [(0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1)] {
                let change = (predict(&nudged(&latents, row, column)) - &out).unwrap().abs().unwrap();
                let there = change.narrow(2, row, 1).unwrap().narrow(3, column, 1).unwrap();
                let largest = |tensor: &Tensor| tensor.max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(largest(&there) > 0.1 * largest(&change), "{model}, {height} x {width} at ({row}, {column})");
            }
        }
    }
}

/// `latents: [1, 4, height, width]` with 1 added to all channels at one position.
fn nudged(latents: &Tensor, row: usize, column: usize) -> Tensor {
    let (_, _, height, width) = latents.dims4().unwrap();
    let at = |index: usize| if index % (height * width) == row * width + column { 1f32 } else { 0.0 };
    let nudge: Vec<f32> = (0..latents.elem_count()).map(at).collect();
    (latents + Tensor::from_vec(nudge, latents.shape(), &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn gradients_reach_every_module_on_uneven_sides() {
    let unet = unet("tiny-sd1");
    let (adapter, parameters) = full_adapter(&unet);
    let latents = normal("latents", &[1, 4, 7, 10]);
    let set = AdapterSet::single(&adapter, 1.0);
    let pred = unet.predict(&latents, &timesteps(&[640]), &condition(&unet, 1), &set).unwrap();
    let store = pred.sqr().unwrap().mean_all().unwrap().backward().unwrap();
    assert_eq!(parameters.collect_gradients(&store).unwrap().len(), 2 * unet.modules().len());
}

#[test]
fn modules_come_in_network_order_under_diffusers_names() {
    let unet = unet("tiny-sd1");
    let paths: Vec<&str> = unet.modules().iter().map(|module| module.path.as_str()).collect();
    let position =
        |path: &str| paths.iter().position(|&found| found == path).unwrap_or_else(|| panic!("no module {path}"));
    let expected = [
        "unet.time_embedding.linear_1",
        "unet.conv_in",
        "unet.down_blocks.0.resnets.0.conv1",
        "unet.down_blocks.0.resnets.0.time_emb_proj",
        "unet.down_blocks.0.attentions.0.proj_in",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
        "unet.down_blocks.0.attentions.0.proj_out",
        "unet.down_blocks.0.downsamplers.0.conv",
        "unet.down_blocks.1.resnets.0.conv_shortcut",
        "unet.mid_block.resnets.0.conv1",
        "unet.mid_block.attentions.0.proj_in",
        "unet.mid_block.resnets.1.conv2",
        "unet.up_blocks.0.upsamplers.0.conv",
        "unet.up_blocks.1.attentions.1.proj_out",
        "unet.conv_out",
    ];
    let positions = expected.map(position);
    assert!(positions.is_sorted(), "{positions:?}");
}

#[test]
fn inputs_of_the_wrong_shape_are_named() {
    let unet = unet("tiny-sdxl");
    let good = (normal("latents", &[2, 4, 8, 8]), timesteps(&[1, 2]), condition(&unet, 2));
    let complaint = |latents: &Tensor, steps: &Tensor, condition: &Condition| match unet.predict(
        latents,
        steps,
        condition,
        &AdapterSet::base(),
    ) {
        Err(Error::InvalidInput { what, .. }) => what,
        other => panic!("expected invalid input, found {other:?}"),
    };
    assert_eq!(complaint(&normal("latents", &[2, 3, 8, 8]), &good.1, &good.2), "latents");
    assert_eq!(complaint(&good.0, &timesteps(&[1]), &good.2), "timesteps");
    assert_eq!(complaint(&good.0, &good.1, &condition(&unet, 1)), "context");
    let without = Condition { added: None, ..good.2.clone() };
    assert_eq!(complaint(&good.0, &good.1, &without), "added condition");
}

#[test]
fn whole_bases_load_with_their_family() {
    let expected = [
        (BaseFamily::Sd1, EmptyNegative::Encoded),
        (BaseFamily::Sd2, EmptyNegative::Encoded),
        (BaseFamily::Sdxl, EmptyNegative::Zeros),
    ];
    for (model, (family, empty_negative)) in MODELS.into_iter().zip(expected) {
        let base = BaseModel::load(&files(model), DType::F32, &Device::Cpu).unwrap();
        assert_eq!((base.family, base.empty_negative, base.name.as_str()), (family, empty_negative, model));
    }
}

#[test]
fn embedded_bytes_are_the_same_base_as_their_folder() {
    let folder = Golden::open().model("tiny-sd1");
    let embedded: Vec<EmbeddedFile> = every_file(&folder)
        .into_iter()
        .map(|path| EmbeddedFile { bytes: std::fs::read(folder.join(&path)).unwrap().leak(), path: path.leak() })
        .collect();
    let embedded = ModelFiles::embedded(embedded.leak());
    let [one, other] =
        [files("tiny-sd1"), embedded].map(|files| BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap());
    assert_eq!(one.fingerprint, other.fingerprint);
    assert_eq!(other.name, "embedded");
    let prompts = ["a red teapot"];
    let (one, other) = (one.text.encode(&prompts).unwrap(), other.text.encode(&prompts).unwrap());
    assert_close("context", &other.context, &one.context, Tolerance::Exact);
}

#[test]
fn text_weights_load_without_their_prefix() {
    let folder = copy_of("tiny-sd1");
    let path = folder.path().join("text_encoder/model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let bare: std::collections::HashMap<String, Tensor> = tensors
        .into_iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .map(|(name, tensor)| (name.trim_start_matches("text_model.").to_owned(), tensor))
        .collect();
    let load =
        |folder: &std::path::Path| BaseModel::load(&ModelFiles::folder(folder), DType::F32, &Device::Cpu).unwrap().text;
    let prefixed = load(folder.path());
    candle_core::safetensors::save(&bare, &path).unwrap();
    let bare = load(folder.path());
    let encode = |text: &catelier_pipelines::models::TextEncoders| text.encode(&["a cat"]).unwrap().context;
    assert_close("context", &encode(&bare), &encode(&prefixed), Tolerance::Exact);
    assert_eq!(bare.modules(), prefixed.modules());
    assert!(bare.modules()[0].path.starts_with("text_encoder.text_model.encoder.layers.0.self_attn."));
}

#[test]
fn a_configuration_from_another_model_names_the_tensors_that_do_not_fit() {
    let folder = copy_of("tiny-sd1");
    let path = folder.path().join("unet/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"use_linear_projection\": false", "\"use_linear_projection\": true"))
        .unwrap();
    let error = UNet::load(&ModelFiles::folder(folder.path()), DType::F32, &Device::Cpu).unwrap_err();
    let message = error.to_string();
    assert!(matches!(&error, Error::TensorMismatch { offences, .. } if offences.len() == 8), "{message}");
    assert!(message.contains("`down_blocks.0.attentions.0.proj_in.weight` should be"), "{message}");
}

#[test]
fn another_kind_of_pipeline_is_refused_by_name() {
    let folder = copy_of("tiny-sd1");
    std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    let error = BaseModel::load(&ModelFiles::folder(folder.path()), DType::F32, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("FluxPipeline"), "{error}");
}

/// Paths of all files in a model folder, with forward slashes.
pub(crate) fn every_file(folder: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(every_file(&path).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    files
}

pub(crate) fn copy_of(model: &str) -> tempfile::TempDir {
    let (from, to) = (Golden::open().model(model), tempfile::tempdir().unwrap());
    for file in every_file(&from) {
        let target = to.path().join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), target).unwrap();
    }
    to
}

/// The environment variable with a full-size SD 1.5 folder, for the test below.
const FULL_SIZE_VARIABLE: &str = "CATELIER_FULL_SD15";

#[test]
#[ignore = "needs a full-size SD 1.5 folder named by CATELIER_FULL_SD15, and 8 GB of memory"]
fn a_full_size_sd15_has_every_slot_and_predicts() {
    let folder = std::env::var(FULL_SIZE_VARIABLE).expect("the folder is named by CATELIER_FULL_SD15");
    let base = BaseModel::load(&ModelFiles::folder(folder), DType::F32, &Device::Cpu).unwrap();
    show_memory("after loading");
    let count = |targets: Targets| targets.select(base.unet.modules()).unwrap().len();
    assert_eq!(count(Targets::attention()), 128);
    let of_transformers = |path: &str| path.contains(".attentions.");
    assert_eq!(base.unet.modules().iter().filter(|module| of_transformers(&module.path)).count(), 192);

    let config = LoraConfig { rank: 8, alpha: 8.0, dropout: 0.0, targets: Targets::attention() };
    let (adapter, parameters) = Adapter::init(&config, base.unet.modules(), 1, &Device::Cpu).unwrap();
    let condition = base.text.encode(&["a painting of a red teapot"]).unwrap();
    let latents = normal("latents", &[1, 4, 32, 32]);
    let predict = |set: &AdapterSet| base.unet.predict(&latents, &timesteps(&[500]), &condition, set).unwrap();
    let noise_pred = predict(&AdapterSet::base());
    show_memory("after a base prediction");
    assert_eq!(noise_pred.dims(), [1, 4, 32, 32]);
    let adapted = predict(&AdapterSet::single(&adapter, 1.0));
    assert_close("fresh adapter", &adapted, &noise_pred, Tolerance::Exact);
    let store = adapted.sqr().unwrap().mean_all().unwrap().backward().unwrap();
    assert_eq!(parameters.collect_gradients(&store).unwrap().len(), 256);
    show_memory("after a backward pass");
}

/// Prints the memory in use and its peak, if the system reports them.
#[expect(clippy::print_stdout, reason = "the figures of a full-size run, shown with --nocapture")]
fn show_memory(when: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines: Vec<&str> =
        status.lines().filter(|line| ["VmRSS", "VmHWM", "RssAnon"].iter().any(|name| line.starts_with(name))).collect();
    println!("{when}: {}", lines.join(", "));
}
