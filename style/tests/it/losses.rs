//! Values of `recipe/style_losses.py`, and gradients by finite differences.

use candle_core::{Device, Tensor};
use catelier_style::losses::{
    alignment, contrastive, model_contrast, prototype_cross_entropy, prototype_distance, proximal, unit_rows,
};
use catelier_testkit::finite_difference;
use serde_json::Value;

struct Vectors {
    json: Value,
    labels: Vec<u32>,
}

impl Vectors {
    fn read() -> Self {
        let json: Value = serde_json::from_str(include_str!("../golden/losses.json")).unwrap();
        let labels = json["labels"].as_array().unwrap().iter().map(|label| label.as_u64().unwrap() as u32).collect();
        Self { json, labels }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let rows: Vec<Vec<f64>> = serde_json::from_value(self.json["inputs"][name].clone()).unwrap();
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    /// The prototypes of the labels.
    fn targets(&self) -> Tensor {
        self.tensor("bank").index_select(&Tensor::new(self.labels.as_slice(), &Device::Cpu).unwrap(), 0).unwrap()
    }

    #[track_caller]
    fn expect(&self, name: &str, found: candle_core::Result<Tensor>) {
        let (found, expected) =
            (found.unwrap().to_scalar::<f64>().unwrap(), self.json["values"][name].as_f64().unwrap());
        assert!(
            (found - expected).abs() < 1e-10 * expected.abs().max(1.0),
            "{name}: expected {expected}, found {found}"
        );
    }
}

#[test]
fn every_loss_agrees_with_its_definition() {
    let vectors = Vectors::read();
    let [z, bank, negatives, near, last] = ["z", "bank", "negatives", "near", "last"].map(|name| vectors.tensor(name));
    let labels = &vectors.labels;
    vectors.expect("prototype_cross_entropy", prototype_cross_entropy(&z, &bank, labels, 0.1));
    vectors.expect("alignment", alignment(&z, &vectors.targets()));
    vectors.expect("contrastive", contrastive(&z, labels, &negatives, 0.1));
    vectors.expect("model_contrast", model_contrast(&z, &near, &last, 0.5));
    vectors.expect("prototype_distance", prototype_distance(&z, &vectors.targets()));
    vectors.expect("proximal", proximal(&vectors.tensor("w"), &vectors.tensor("start"), 0.3));
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let vectors = Vectors::read();
    let [z, bank, negatives, near, last] = ["z", "bank", "negatives", "near", "last"].map(|name| vectors.tensor(name));
    let labels = &vectors.labels;
    // Directions by way of rows of any length, as models make them.
    let rows = (&z * 1.7).unwrap();
    finite_difference::check("prototype_cross_entropy", &[rows.clone(), bank.clone()], |inputs| {
        prototype_cross_entropy(&unit_rows(&inputs[0])?, &inputs[1], labels, 0.3)
    });
    finite_difference::check("alignment", std::slice::from_ref(&rows), |inputs| {
        alignment(&unit_rows(&inputs[0])?, &vectors.targets())
    });
    finite_difference::check("contrastive", &[rows.clone(), negatives.clone()], |inputs| {
        contrastive(&unit_rows(&inputs[0])?, labels, &inputs[1], 0.3)
    });
    finite_difference::check("model_contrast", std::slice::from_ref(&rows), |inputs| {
        model_contrast(&unit_rows(&inputs[0])?, &near, &last, 0.5)
    });
    finite_difference::check("prototype_distance", &[rows], |inputs| {
        prototype_distance(&unit_rows(&inputs[0])?, &vectors.targets())
    });
    finite_difference::check("proximal", &[vectors.tensor("w")], |inputs| {
        proximal(&inputs[0], &vectors.tensor("start"), 0.3)
    });
}

#[test]
fn a_batch_without_a_pair_has_no_contrast() {
    let vectors = Vectors::read();
    let z = vectors.tensor("z").narrow(0, 0, 1).unwrap();
    let loss = contrastive(&z, &[3], &vectors.tensor("negatives"), 0.1).unwrap();
    assert_eq!(loss.to_scalar::<f64>().unwrap(), 0.0);
}

#[test]
fn more_negatives_never_make_the_contrast_easier() {
    let vectors = Vectors::read();
    let (z, negatives) = (vectors.tensor("z"), vectors.tensor("negatives"));
    let loss = |count: usize| {
        let negatives = negatives.narrow(0, 0, count).unwrap();
        contrastive(&z, &vectors.labels, &negatives, 0.1).unwrap().to_scalar::<f64>().unwrap()
    };
    assert!(loss(1) < loss(2) && loss(2) < loss(3), "{} {} {}", loss(1), loss(2), loss(3));
}
