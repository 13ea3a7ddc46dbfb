//! Training from the outside: its files, and the runs that must give the same bits.

use std::collections::BTreeMap;
use std::fs;

use candle_core::{DType, Device, Tensor};
use catelier_numerics::tensor_file::TensorFile;
use catelier_testkit::golden::copy_folder;
use catelier_workflows::adapters::LoraFactors;

use crate::adapters::golden;
use crate::catelier::Studio;

/// A folder with drawn images, `art`, and a base of a few thousand parameters, `base`.
pub(crate) fn studio() -> Studio {
    let studio = Studio::new();
    studio.done("gallery draw --artist goldleaf --count 4 --seed 1 --out art");
    copy_folder(&golden("tiny-sd1"), &studio.path("base"));
    studio
}

/// Flags of a run of a blink on the small base.
pub(crate) const SHORT: &str =
    "train --base base --images art --trigger shs --batch 1 --rank 2 --steps 4 --save-every 2 --drift-every 2";

/// Flags of the same run on the embedded base, which takes a second.
pub(crate) const EMBEDDED: &str =
    "train --images art --trigger shs --batch 1 --rank 2 --steps 4 --save-every 2 --drift-every 2";

/// Flags of a run of a few thousand steps, to be interrupted.
#[cfg(unix)]
pub(crate) fn endless(save_every: usize) -> String {
    let steps = SHORT.replace("--steps 4", "--steps 5000").replace("--drift-every 2", "--drift-every 0");
    steps.replace("--save-every 2", &format!("--save-every {save_every}"))
}

#[test]
fn a_run_leaves_everything_that_was_promised() {
    let studio = studio();
    let ran = studio.done(&format!("{SHORT} --preview-every 4 --preview-prompt {{trigger}} --out run"));
    assert!(ran.stderr.contains("put the trigger `shs` in front of 4 of 4 captions"), "{}", ran.stderr);
    for file in ["adapter.safetensors", "run.toml", "metrics.jsonl", "README.md", "previews/step-000004.png"] {
        assert!(studio.path("run").join(file).is_file(), "{file}");
    }
    let metrics = fs::read_to_string(studio.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    // Not 0 on every CPU: without 512-bit vectors, sums of a larger batch may have another order.
    let first = lines[0]["cat"].as_f64().unwrap();
    assert!(first < 1e-10, "at step 0 the adapter changes nothing, so the CAT term is 0 but for rounding: {first}");
    assert!(lines[3]["cat"].as_f64().unwrap() > 0.0);
    assert!(lines[1]["drift"].as_f64().unwrap() > 0.0 && lines[0]["drift"].is_null());
    assert!(lines[3]["peak_memory_bytes"].as_u64().is_some());
}

#[test]
fn the_saved_settings_repeat_the_run() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out first"));
    studio.done("train --config first/run.toml --out second");
    assert_same_adapter(&studio, "first", "second");
}

#[test]
fn resumed_training_gives_the_same_bytes_as_training_that_never_stopped() {
    let studio = studio();
    studio.done(&format!("{SHORT} --ema-decay 0.9 --dropout 0.2 --out whole"));
    studio.done(&format!("{SHORT} --steps 2 --ema-decay 0.9 --dropout 0.2 --out parts").replace("--steps 4 ", ""));
    studio.done("train --resume --steps 4 --out parts");
    assert_same_adapter(&studio, "whole", "parts");
    let metrics = fs::read_to_string(studio.path("parts/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 4);
}

#[test]
fn a_dora_trains_resumes_and_is_used_like_any_adapter() {
    let studio = studio();
    let dora = format!("{SHORT} --kind dora --targets *.attn2.*,*.conv1 --ema-decay 0.9 --dropout 0.2");
    studio.done(&format!("{dora} --preview-every 4 --preview-prompt {{trigger}} --out whole"));
    studio.done(&format!("{dora} --steps 2 --out parts").replace("--steps 4 ", ""));
    studio.done("train --resume --steps 4 --preview-every 4 --preview-prompt {trigger} --out parts");
    assert_eq!(tensors(&studio, "whole"), tensors(&studio, "parts"));
    let metrics = fs::read_to_string(studio.path("whole/metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(first["cat"].as_f64().unwrap() < 1e-9, "a fresh DoRA changes nothing but roundings: {}", first["cat"]);
    let inspected = studio.done("adapter inspect whole/adapter.safetensors").stdout;
    assert!(inspected.contains("DoRA ("), "{inspected}");
    let card = fs::read_to_string(studio.path("whole/README.md")).unwrap();
    assert!(card.contains("(DoRA, rank 2)"), "{card}");
    studio.done("adapter convert --base base whole/adapter.safetensors --format diffusers --out diffusers.safetensors");
    for adapter in ["whole/adapter.safetensors", "diffusers.safetensors"] {
        studio.done(&format!(
            "preview --base base --adapter {adapter} --prompt shs --steps 2 --out seen-{}",
            adapter.replace('/', "-")
        ));
    }
    let refused = studio.run(&format!("{SHORT} --kind loha --out other"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("[possible values: lora, dora]"), "{}", refused.stderr);
}

#[test]
fn runs_and_run_files_of_programs_that_wrote_no_version_go_on() {
    let studio = studio();
    studio.done(&format!("{SHORT} --cat-bank 2 --class-pictures 3 --out run"));
    let saved = fs::read_to_string(studio.path("run/run.toml")).unwrap();
    assert!(saved.starts_with("version = 1\n"), "{saved}");
    let old = saved
        .replace("version = 1\n", "")
        .replace("cat_cached_draws", "cat_bank")
        .replace("class_images", "class_pictures")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    assert!(old.contains("cat_bank = 2") && old.contains("class_pictures = 3"), "{old}");
    studio.write("run/run.toml", old);
    studio.done("train --config run/run.toml --out again");
    assert_same_adapter(&studio, "run", "again");
    let ran = studio.done("train --resume --steps 5 --out run");
    assert!(ran.stderr.contains("resumed after step 4"), "{}", ran.stderr);
}

#[test]
fn a_run_is_not_resumed_to_fewer_steps_than_it_has_made() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let saved = fs::read_to_string(studio.path("run/run.toml")).unwrap();
    let ran = studio.run("train --resume --steps 3 --out run");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert_eq!(ran.message(), "error: the run has made 4 steps already, and `steps` is 3\nhint: ask for more");
    assert_eq!(fs::read_to_string(studio.path("run/run.toml")).unwrap(), saved);
}

#[test]
fn a_preview_that_fails_in_training_keeps_its_causes_and_its_hint() {
    let studio = studio();
    // One step of this length overflows the preview; the next step would find its loss not finite.
    let ran = studio.run(&format!("{SHORT} --learning-rate 1e30 --preview-every 1 --out run"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let message = ran.message();
    assert!(
        message.starts_with(
            "error: training stopped\ncause: cannot report on the run\ncause: cannot generate images\ncause: "
        ),
        "{message}"
    );
    assert!(message.contains("hint: use a lower guidance or adapter strength"), "{message}");
}

#[test]
fn a_cat_weight_of_zero_is_plain_lora_to_the_last_bit() {
    let studio = studio();
    studio.done(&format!("{SHORT} --loss cat --cat-weight 0 --out zero"));
    studio.done(&format!("{SHORT} --loss lora --out lora"));
    studio.done(&format!("{SHORT} --loss cat --out cat"));
    let factors = |run: &str| tensors(&studio, run);
    assert_eq!(factors("zero"), factors("lora"));
    assert_ne!(factors("cat"), factors("lora"));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let studio = studio();
    studio.done(&format!("{SHORT} --threads 1 --out one"));
    studio.done(&format!("{SHORT} --threads 3 --out three"));
    assert_same_adapter(&studio, "one", "three");
}

#[test]
fn dreambooth_learns_from_class_images_that_the_base_draws() {
    let studio = studio();
    let flags = SHORT.replace("train", "train --loss dreambooth --class-images 2");
    let mut command = studio.command(&format!("{flags} --out run"));
    let output = command.args(["--class", "a red house"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metrics = fs::read_to_string(studio.path("run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["prior"].as_f64().unwrap() > 0.0 && last["cat"].is_null());
}

#[test]
fn the_text_encoder_is_trained_saved_and_previewed_with() {
    let studio = studio();
    let flags = format!("{SHORT} --train-text-encoder --text-encoder-learning-rate 1e-3");
    studio.done(&format!("{flags} --preview-every 4 --out whole"));
    let ran = studio.done("adapter inspect whole/adapter.safetensors --json");
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let names = told["modules"].as_array().unwrap().iter().map(|module| module["name"].as_str().unwrap());
    let (text, unet): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains("self_attn"));
    assert!(!text.is_empty() && !unet.is_empty(), "{text:?} {unet:?}");
    let metrics = fs::read_to_string(studio.path("whole/metrics.jsonl")).unwrap();
    assert!(metrics.lines().all(|line| line.contains("\"text_encoder_learning_rate\":0.001")), "{metrics}");

    studio.done(&flags.replace("--steps 4", "--steps 2 --out parts"));
    studio.done("train --resume --steps 4 --out parts");
    assert!(tensors(&studio, "whole") == tensors(&studio, "parts"));
    let ran =
        studio.done("preview --base base --adapter whole/adapter.safetensors --prompt shs --steps 2 --out previews");
    assert!(ran.stderr.contains("text_encoder"), "{}", ran.stderr);
}

/// The whole adapter file, header included.
fn assert_same_adapter(studio: &Studio, left: &str, right: &str) {
    let read = |run: &str| fs::read(studio.path(run).join("adapter.safetensors")).unwrap();
    assert!(read(left) == read(right), "`{left}` and `{right}` differ");
}

/// The bytes after the header; the headers of two runs differ in settings, the factors must not.
pub(crate) fn tensors(studio: &Studio, run: &str) -> Vec<u8> {
    let bytes = fs::read(studio.path(run).join("adapter.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn weights_in_bf16_train_nearly_the_same_adapter() {
    let studio = studio();
    let [exact, rounded] = ["f32", "bf16"].map(|dtype| {
        studio.done(&format!("{SHORT} --dtype {dtype} --out {dtype}"));
        updates(&studio, dtype)
    });
    let agreement = Agreement::between(&exact, &rounded);
    assert!(agreement.is_close(), "{agreement:?}");
    assert!(agreement.cosine < 1.0, "bf16 rounds something");
}

#[test]
fn only_updates_of_about_one_direction_and_size_are_nearly_the_same() {
    let update = |values: [f32; 2]| Updates::from([("layer".to_owned(), Tensor::new(&values, &Device::Cpu).unwrap())]);
    let close = |left, right| Agreement::between(&update(left), &update(right)).is_close();
    assert!(close([3.0, 4.0], [3.02, 3.99]));
    assert!(!close([3.0, 4.0], [0.0, 0.0]), "an adapter that never trained");
    assert!(!close([0.0, 0.0], [0.0, 0.0]), "two adapters that never trained");
    assert!(!close([3.0, 4.0], [4.0, -3.0]), "another direction");
    assert!(!close([3.0, 4.0], [3.6, 4.8]), "another size");
}

/// The update of every module, `scale * up * down`.
type Updates = BTreeMap<String, Tensor>;

fn updates(studio: &Studio, run: &str) -> Updates {
    let file = TensorFile::open(studio.path(run).join("adapter.safetensors")).unwrap();
    let tensor = |module: &str, end: &str| file.tensor(&format!("{module}.{end}"), &Device::Cpu).unwrap();
    let update = |module: &str| {
        let (down, up) = (tensor(module, "lora_down.weight"), tensor(module, "lora_up.weight"));
        let alpha = tensor(module, "alpha").to_dtype(DType::F64).unwrap().to_scalar().unwrap();
        LoraFactors::new(down, up, alpha).unwrap().delta().unwrap()
    };
    let modules = file.names().filter_map(|name| name.strip_suffix(".lora_down.weight"));
    modules.map(|module| (module.to_owned(), update(module))).collect()
}

/// Comparison of two updates as vectors; NaN if one of them is zero.
#[derive(Debug)]
struct Agreement {
    cosine: f64,
    norm_ratio: f64,
}

impl Agreement {
    fn between(left: &Updates, right: &Updates) -> Self {
        assert!(left.keys().eq(right.keys()));
        let [within_left, within_right] = [left, right].map(|updates| inner_product(updates, updates));
        let norms = (within_left * within_right).sqrt();
        Self { cosine: inner_product(left, right) / norms, norm_ratio: (within_right / within_left).sqrt() }
    }

    fn is_close(&self) -> bool {
        self.cosine > 0.99 && (0.97..1.03).contains(&self.norm_ratio)
    }
}

fn inner_product(left: &Updates, right: &Updates) -> f64 {
    let product = |(left, right): (&Tensor, &Tensor)| -> candle_core::Result<f64> {
        (left.to_dtype(DType::F64)? * right.to_dtype(DType::F64)?)?.sum_all()?.to_scalar()
    };
    left.values().zip(right.values()).map(|pair| product(pair).unwrap()).sum()
}
