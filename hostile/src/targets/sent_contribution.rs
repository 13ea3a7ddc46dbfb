//! The file of a contribution that a client sent.

use std::fs;
use std::sync::LazyLock;

use catelier_workflows::federation::{
    ContributionSource, Contributions, RankPolicy, Roles, SentContribution, ShareFilter, StoredContribution,
    StoredContributions,
};

use super::federation_state::any_adapter;
use crate::{Verdict, folder, refused};

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("sent", "contribution.safetensors", input, |path| {
        let stored = match StoredContribution::sent(path, &Roles::shared(), None) {
            Ok((_, stored)) => stored,
            Err(error) => return refused(&error),
        };
        assert!(SEEDS.iter().any(|seed| seed == input), "a damaged contribution was used");
        let mut source = StoredContributions::new();
        source.push(stored);
        let contributions = Contributions::read(&source).unwrap_or_else(|error| panic!("opened, but not read: {error}"));
        contributions.check(RankPolicy::Uniform).unwrap_or_else(|error| panic!("sent, but refused: {error}"));
        let whole = SentContribution::load(path).and_then(|sent| sent.complete(None));
        let whole = whole.unwrap_or_else(|error| panic!("read by module, but not as a whole: {error}"));
        for (module, update) in whole.adapter.iter() {
            let own = source.update(0, module).unwrap().unwrap_or_else(|| panic!("`{module}` is missing"));
            assert_eq!(own.rank(), update.rank(), "{module}");
        }
        Verdict::Accepted
    })
}

/// What a client sends of an adapter of the corpus.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let payload = ShareFilter::new(Roles::shared()).outgoing(&any_adapter(), None).unwrap().unwrap();
    let (client, base_fingerprint) = ("chalk".to_owned(), Some("v2-0123-4567".to_owned()));
    let sent = SentContribution { client, round: 3, weight: 12.0, base_fingerprint, payload };
    let bytes = folder::with(|folder| {
        let path = folder.join("sent.safetensors");
        sent.save(&path).unwrap();
        fs::read(path).unwrap()
    });
    vec![bytes]
});

pub(super) fn seeds() -> Vec<Vec<u8>> {
    SEEDS.clone()
}
