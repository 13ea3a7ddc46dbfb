//! The only place that chooses a device.

use candle_core::{Device, DeviceLocation};
use catelier_workflows::device::first_line;

use crate::terminal;

const HAS_CUDA: bool = cfg!(feature = "cuda");

/// The first CUDA device, or the CPU: a program built for CUDA is also used where there is none.
pub(crate) fn automatic() -> Device {
    Device::new_cuda(0).unwrap_or_else(|error| {
        if HAS_CUDA {
            let why = first_line(&error);
            terminal::warn(&format!("computing on the CPU, for no CUDA device can be used: {why}"));
        }
        Device::Cpu
    })
}

/// As `--device` takes it.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
