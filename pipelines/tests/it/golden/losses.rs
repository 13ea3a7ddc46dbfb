//! The losses alone, on predictions stored in the fixtures.

use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::close::assert_numbers_close;
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::output;

use super::reference;

fn values(tensor: &candle_core::Tensor) -> Vec<f64> {
    tensor.to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn assert_loss(golden: &Fixture, name: &str, found: f64) {
    assert_numbers_close(name, &[found], &golden.values(name), output(golden.noise(name)));
}

#[test]
fn denoising_and_min_snr_agree() {
    let golden = reference().fixture("lora_sd1");
    let rows = values(&loss::denoising(&golden.tensor("train.pred"), &golden.tensor("train.noise")).unwrap());
    assert_loss(&golden, "train.loss", mean(&rows));

    let schedule = NoiseSchedule::load(&ModelFiles::folder(reference().model("tiny-sd1"))).unwrap();
    let weights = loss::min_snr_weight(&schedule, &golden.whole_numbers("train.timesteps"), 5.0);
    let weighted: Vec<f64> = rows.iter().zip(&weights).map(|(row, weight)| row * weight).collect();
    assert_loss(&golden, "train.loss_min_snr_5", mean(&weighted));
}

#[test]
fn both_forms_of_cat_agree() {
    let golden = reference().fixture("lora_sd1");
    let cat_weight = golden.facts()["lambda"].as_f64().unwrap();
    let denoising = loss::denoising(&golden.tensor("train.pred"), &golden.tensor("train.noise")).unwrap();
    let instance = mean(&values(&denoising));
    for form in ["cat.shared", "cat.own"] {
        let tensor = |name: &str| golden.tensor(&format!("{form}.{name}"));
        let preserve = mean(&values(&loss::cat(&tensor("class_pred"), &tensor("base_pred")).unwrap()));
        assert_loss(&golden, &format!("{form}.loss_instance"), instance);
        assert_loss(&golden, &format!("{form}.loss_preserve"), preserve);
        assert_loss(&golden, &format!("{form}.loss"), instance + cat_weight * preserve);
    }
}
