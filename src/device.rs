//! The only place that looks for a device.

use candle_core::{DType, Device, DeviceLocation};

use crate::failure::{Blame, Failure, Outcome};
use crate::terminal;

const HAS_CUDA: bool = cfg!(feature = "cuda");

/// `auto`, `cpu`, `cuda`, `cuda:N` or `metal` as a device.
pub(crate) fn parse(name: &str) -> Outcome<Device> {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("auto", _) => Ok(automatic()),
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

/// As [`parse`] takes it.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The first CUDA device, or the processor: a program built for CUDA is also used where there is none.
fn automatic() -> Device {
    Device::new_cuda(0).unwrap_or_else(|error| {
        if HAS_CUDA {
            terminal::warn(&format!(
                "computing on the processor, for no CUDA device can be used: {}",
                first_line(&error)
            ));
        }
        Device::Cpu
    })
}

fn cuda(name: &str, index: &str) -> Outcome<Device> {
    let index = index.parse::<usize>().request(format!("device `{name}` has no valid number"))?;
    let hint = match HAS_CUDA {
        true => "`nvidia-smi` lists the devices and the CUDA version of the driver; `--device cpu` needs neither",
        false => "this program was built without CUDA; docs/cuda.md says how to build it, `--device cpu` works always",
    };
    Device::new_cuda(index)
        .map_err(|error| Failure::request(format!("cannot use device `{name}`: {}", first_line(&error)), hint))
}

/// Without the backtrace that candle puts into its message if the environment asks for one.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}
