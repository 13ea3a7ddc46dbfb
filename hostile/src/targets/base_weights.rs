//! The weights of an autoencoder, in a base whose other files are whole.

use std::fs;

use candle_core::{DType, Device};
use catelier_testkit::golden::Golden;
use catelier_workflows::pipelines::models::base::BaseModel;
use catelier_workflows::pipelines::models::files::ModelFiles;

use crate::{Verdict, folder, refused};

const MODEL: &str = "tiny-sd1";
const FILE: &str = "vae/diffusion_pytorch_model.safetensors";

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_changed_model(MODEL, FILE, input, |folder| {
        match BaseModel::load(&ModelFiles::folder(folder), DType::F32, &Device::Cpu) {
            Ok(_) => Verdict::Accepted,
            Err(error) => refused(&error),
        }
    })
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    vec![fs::read(Golden::open().model(MODEL).join(FILE)).unwrap()]
}
