//! A file with prompts. The first line of an input is its name.

use catelier_workflows::prompts::PromptSet;
use catelier_workflows::prompts::template::Values;

use crate::{Verdict, folder, refused};

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = folder::named(input, &["set.toml", "set.txt"]);
    folder::with_file("prompts", name, bytes, |path| {
        let set = match PromptSet::from_file(path) {
            Ok(set) => set,
            Err(error) => return refused(&error),
        };
        assert!(!set.name().is_empty() && !set.prompts().is_empty(), "{set:?}");
        for values in [Values { trigger: Some("shs"), class: Some("owl") }, Values::default()] {
            if let Err(error) = set.render(values) {
                refused(&error);
            }
        }
        Verdict::Accepted
    })
}
