//! The only place that looks for a device.

use candle_core::{DType, Device};

use crate::failure::{Blame, Failure, Outcome};

/// `auto`, `cpu`, `cuda`, `cuda:N` or `metal` as a device.
pub(crate) fn parse(name: &str) -> Outcome<Device> {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("auto", _) => automatic(),
        ("cpu", _) => Ok(Device::Cpu),
        ("cuda", index) => cuda(name, index),
        ("metal", _) => Device::new_metal(0).request("cannot use device `metal`"),
        _ => Err(Failure::request(format!("unknown device `{name}`"), "use `auto`, `cpu`, `cuda:0` or `metal`")),
    }
}

/// The precision that the base's weights are kept in.
pub(crate) fn dtype(name: &str) -> Outcome<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err(Failure::request(format!("unknown dtype `{name}`"), "use `f32`, `f16` or `bf16`")),
    }
}

fn automatic() -> Outcome<Device> {
    if candle_core::utils::cuda_is_available() {
        return Device::new_cuda(0).run("cannot use the CUDA device that was found");
    }
    Ok(Device::Cpu)
}

fn cuda(name: &str, index: &str) -> Outcome<Device> {
    let index = index.parse::<usize>().request(format!("device `{name}` has no valid number"))?;
    Device::new_cuda(index).request(format!("cannot use device `{name}`"))
}
