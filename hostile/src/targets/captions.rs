//! A `metadata.jsonl` or a caption file in a folder of images. The first line of an input is its name.

use std::fs;
use std::path::Path;

use catelier_workflows::prompts::Trigger;
use catelier_workflows::prompts::captions::{self, CaptionOptions};

use crate::{Verdict, folder, refused};

const FILES: &[&str] = &["metadata.jsonl", "a.txt", "a.caption", "3_sks dog/b.txt"];

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = folder::named(input, FILES);
    folder::with(|folder| {
        let folder = folder.join("images");
        fs::create_dir_all(folder.join("3_sks dog")).unwrap();
        for image in ["a.png", "b.PNG", "3_sks dog/b.png"] {
            fs::write(folder.join(image), "").unwrap();
        }
        fs::write(folder.join(name), bytes).unwrap();
        let verdicts = [None, Some("a picture".to_owned())].map(|shared_caption| collect(&folder, shared_caption));
        fs::remove_file(folder.join(name)).unwrap();
        verdicts[1]
    })
}

fn collect(folder: &Path, shared_caption: Option<String>) -> Verdict {
    let collected = match captions::collect(folder, &CaptionOptions { shared_caption }) {
        Ok(collected) => collected,
        Err(error) => return refused(&error),
    };
    for image in &collected.images {
        assert!(image.path.starts_with(folder), "`{}` is outside the folder", image.path.display());
        assert!(!image.caption.trim().is_empty() && image.repeats > 0, "{image:?}");
    }
    for notice in &collected.notices {
        assert!(!notice.to_string().is_empty());
    }
    let trigger = Trigger::new("shs").unwrap();
    for paired in [captions::pair(&collected.images, &trigger), captions::pair_as_written(&collected.images, &trigger)]
    {
        if let Err(error) = paired {
            refused(&error);
        }
    }
    Verdict::Accepted
}
