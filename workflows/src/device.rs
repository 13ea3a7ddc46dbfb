//! The names of devices, and the devices that they name.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::value::ValueError;

const HAS_CUDA: bool = cfg!(feature = "cuda");

/// Where to compute: `auto`, `cpu`, `cuda` (the first GPU) or `cuda:1` in text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The device that the caller's [`Session`](crate::Session) says.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The device; `automatic` is [`DeviceChoice::Auto`].
    ///
    /// # Errors
    /// [`Error::User`] when there is no such device.
    pub(crate) fn open(self, automatic: fn() -> Device) -> Result<Device> {
        match self {
            Self::Auto => Ok(automatic()),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(index).map_err(|error| self.no_cuda(&error)),
        }
    }

    fn no_cuda(self, error: &candle_core::Error) -> Error {
        let hint = match HAS_CUDA {
            true => "`nvidia-smi` lists the devices and the CUDA version of the driver; `--device cpu` needs neither",
            false => {
                "this program was built without CUDA; docs/cuda.md says how to build it, `--device cpu` works always"
            }
        };
        Error::user(format!("cannot use device `{self}`: {}", first_line(error)), hint)
    }
}

/// Without the backtrace that candle puts into its message if the environment asks for one.
pub fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

impl FromStr for DeviceChoice {
    type Err = ValueError;

    fn from_str(name: &str) -> std::result::Result<Self, ValueError> {
        let unknown = || ValueError::new("use `auto`, `cpu` or `cuda:0`");
        match name.split_once(':').unwrap_or((name, "0")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", index) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Cpu => out.write_str("cpu"),
            Self::Cuda(index) => write!(out, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = ValueError;

    fn try_from(name: String) -> std::result::Result<Self, ValueError> {
        name.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// The type that the base's weights are kept in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the range of f32.
    Bf16,
}

impl From<WeightType> for DType {
    fn from(weights: WeightType) -> Self {
        match weights {
            WeightType::F32 => Self::F32,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["", "gpu", "metal", "cuda:x"] {
            assert!(wrong.parse::<DeviceChoice>().unwrap_err().to_string().contains("`cuda:0`"), "{wrong}");
        }
    }
}
