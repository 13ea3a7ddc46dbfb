//! The golden tests again with the portable kernels, in a process of their own: CPUs without 512-bit vectors give the
//! outputs of diffusers, transformers and PEFT too.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "it/golden/mod.rs"]
mod golden;

use catelier_numerics::cpu::{Kernels, kernels, use_portable_kernels};

fn choose_kernels() {
    use_portable_kernels(true);
    assert_eq!(kernels(), Kernels::Portable);
}
