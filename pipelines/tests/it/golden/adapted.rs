//! Adapters of the fixtures, with PEFT's names: `<module>.lora_A.weight`, `.lora_B.weight` and, for a DoRA,
//! `.lora_magnitude_vector`, with or without `.weight`.

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, DoraFactors, LoraFactors};
use catelier_numerics::params::Parameters;
use catelier_testkit::close::{assert_close, largest_difference};
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::Tolerance;

use super::{largest_value, show};

/// PEFT's name of magnitudes.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// The UNet's adapter stored below `prefix`.
pub(super) fn adapter(golden: &Fixture, prefix: &str, alpha: f64) -> Adapter {
    adapter_of("unet", golden, prefix, alpha)
}

/// The adapter of a component stored below `prefix`.
pub(super) fn adapter_of(component: &str, golden: &Fixture, prefix: &str, alpha: f64) -> Adapter {
    let mut adapter = Adapter::new();
    for (name, down) in golden.under(prefix) {
        let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
        let up = golden.tensor(&format!("{prefix}{module}.lora_B.weight"));
        let (path, factors) = (format!("{component}.{module}"), LoraFactors { down, up, alpha });
        match golden.under(&format!("{prefix}{module}.{MAGNITUDE}")).pop() {
            Some((_, magnitude)) => adapter.insert(path, DoraFactors::new(factors, magnitude).unwrap()),
            None => adapter.insert(path, factors),
        };
    }
    assert!(!adapter.is_empty(), "no adapter below {prefix}");
    adapter
}

/// The UNet's adapter stored below `prefix`, and its parameters.
pub(super) fn trainable(golden: &Fixture, prefix: &str, alpha: f64) -> (Adapter, Parameters) {
    adapter(golden, prefix, alpha).trainable(&Device::Cpu).unwrap()
}

/// Asserts that the UNet's parameters are those stored below `prefix`, with none left over.
#[track_caller]
pub(super) fn assert_parameters_close(parameters: &Parameters, golden: &Fixture, prefix: &str, tolerance: Tolerance) {
    let tensors = parameters.iter().map(|(name, variable)| (name, variable.as_tensor())).collect();
    assert_all_close("unet", tensors, golden, prefix, tolerance);
}

/// Asserts that a component's tensors are those stored below `prefix`, with none left over.
#[track_caller]
pub(super) fn assert_all_close(
    component: &str,
    found: Vec<(&str, &Tensor)>,
    golden: &Fixture,
    prefix: &str,
    tolerance: Tolerance,
) {
    let mut worst: f64 = 0.0;
    for Pair { path, found, expected } in pairs(component, found, golden, prefix) {
        assert_close(&path, found, &expected, tolerance);
        worst = worst.max(largest_difference(found, &expected) / tolerance.allowed(largest_value(&expected)));
    }
    show(prefix, worst);
}

/// A tensor of an adapter, and the reference's tensor in its place.
pub(super) struct Pair<'a> {
    pub(super) path: String,
    pub(super) found: &'a Tensor,
    pub(super) expected: Tensor,
}

/// A component's tensors with those stored below `prefix`, with none left over.
pub(super) fn pairs<'a>(
    component: &str,
    found: Vec<(&'a str, &'a Tensor)>,
    golden: &Fixture,
    prefix: &str,
) -> Vec<Pair<'a>> {
    let expected = golden.under(prefix);
    assert_eq!(found.len(), expected.len(), "tensors below {prefix}");
    let pair = |(name, expected): (String, Tensor)| {
        let name = name.replace(".lora_A.weight", ".down").replace(".lora_B.weight", ".up");
        let name = match name.split_once(MAGNITUDE) {
            Some((module, _)) => format!("{module}magnitude"),
            None => name,
        };
        let path = format!("{component}.{name}");
        let (_, found) = found.iter().find(|(name, _)| *name == path).unwrap_or_else(|| panic!("nothing for {path}"));
        Pair { path, found, expected }
    };
    expected.into_iter().map(pair).collect()
}
