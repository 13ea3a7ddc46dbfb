//! Against values computed by the reference implementation.

use catelier_numerics::schedule::{Kind, LearningRate};

#[test]
fn learning_rates_follow_the_reference_curves() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/fixtures/learning_rates.json");
    let text = std::fs::read_to_string(path).unwrap();
    let fixture: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = [
        ("constant", Kind::Constant, 0),
        ("constant_with_warmup", Kind::Constant, 10),
        ("linear", Kind::Linear, 10),
        ("cosine", Kind::Cosine, 10),
        ("cosine_with_restarts", Kind::CosineWithRestarts { cycles: 2 }, 10),
        ("polynomial", Kind::Polynomial { power: 1.0, end: 1e-7 }, 10),
    ];
    for (name, kind, warmup_steps) in cases {
        let rate = LearningRate { kind, base: 1e-4, warmup_steps, total_steps: 60 };
        let curve = fixture["curves"][name].as_array().unwrap();
        assert_eq!(curve.len(), 60, "{name}");
        for (step, expected) in curve.iter().enumerate() {
            let (found, expected) = (rate.at(step), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-18, "{name} at step {step}: expected {expected}, found {found}");
        }
    }
}
