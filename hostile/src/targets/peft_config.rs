//! The `adapter_config.json` of a PEFT folder, beside weights that are whole.

use std::fs;
use std::sync::LazyLock;

use catelier_workflows::adapters::file::{self, Format, Metadata};

use super::adapter_file::{BASES, read_for_bases};
use crate::{Target, Verdict, folder, refused};

/// The tensor file of the folder.
static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let seeds = Target::named("adapter_file").seeds();
    folder::with(|folder| {
        let (from, to) = (folder.join("seed.safetensors"), folder.join("seed-peft"));
        let written = seeds.iter().any(|seed| {
            fs::write(&from, seed).unwrap();
            file::read(&from, &BASES[0])
                .is_ok_and(|loaded| file::write(&to, &loaded.adapter, Format::Peft, &Metadata::default()).is_ok())
        });
        assert!(written, "the corpus of adapter files has none that PEFT's format can hold");
        fs::read(to.join("adapter_model.safetensors")).unwrap()
    })
});

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("peft", "adapter_model.safetensors", &WEIGHTS, |weights| {
        let folder = weights.parent().unwrap();
        fs::write(folder.join("adapter_config.json"), input).unwrap();
        if let Err(error) = file::inspect(folder) {
            refused(&error);
        }
        read_for_bases(folder)
    })
}
