//! Results against values of the reference implementation.

use catelier_numerics::schedule::{Curve, LearningRate};

#[test]
fn learning_rates_follow_the_reference_curves() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/fixtures/learning_rates.json");
    let text = std::fs::read_to_string(path).unwrap();
    let fixture: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = [
        ("constant", Curve::Constant, 0),
        ("constant_with_warmup", Curve::Constant, 10),
        ("linear", Curve::Linear, 10),
        ("cosine", Curve::Cosine, 10),
        ("cosine_with_restarts", Curve::CosineWithRestarts { cycles: 2 }, 10),
        ("polynomial", Curve::Polynomial { power: 1.0, end: 1e-7 }, 10),
    ];
    for (name, curve, warmup_steps) in cases {
        let rate = LearningRate { curve, base: 1e-4, warmup_steps, total_steps: 60 };
        let expected_rates = fixture["curves"][name].as_array().unwrap();
        assert_eq!(expected_rates.len(), 60, "{name}");
        for (step, expected) in expected_rates.iter().enumerate() {
            let (found, expected) = (rate.at(step), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-18, "{name} at step {step}: expected {expected}, found {found}");
        }
    }
}
