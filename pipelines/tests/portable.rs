//! The same numbers as diffusers, transformers and PEFT on CPUs that have no 512-bit vectors: the golden tests again, in
//! a process that leaves them alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "it/golden/mod.rs"]
mod golden;

use catelier_numerics::cpu::{Kernels, kernels, use_portable_kernels};

fn choose_kernels() {
    use_portable_kernels(true);
    assert_eq!(kernels(), Kernels::Portable);
}
