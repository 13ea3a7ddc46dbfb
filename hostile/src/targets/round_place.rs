//! The objects of a shared place, one of which somebody has changed.

use std::fs;
use std::sync::LazyLock;

use catelier_workflows::federation::{ClientRound, Contribution, RoundPlan};
use catelier_workflows::rounds::{
    Fetched, Place, PrivateKey, Sent, Status, Terms, Trust, create, fetch, members, open, status, submit,
};

use super::federation_state::any_adapter;
use crate::folder::{self, named};
use crate::{Verdict, refused};

/// Objects that are changed.
const NAMES: [&str; 6] = [
    "federation.json",
    "members-0001.json",
    "rounds/0001/open.json",
    "rounds/0001/round.json",
    "rounds/0001/global.safetensors",
    "rounds/0001/contributions/ada.json",
];

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = named(input, &NAMES);
    folder::with(|folder| {
        let folder = folder.join("place");
        for (name, bytes) in &WHOLE.objects {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        fs::write(folder.join(name), bytes).unwrap();
        let place = Place::open(&folder.display().to_string(), |_| None).unwrap();
        let trust = Trust::Key(coordinator().public());
        let outcome = status(&place, trust).and_then(|status| Ok((status, fetch(&place, trust)?)));
        match outcome {
            Ok((found, _)) if told(&found) == WHOLE.status => Verdict::Accepted,
            Ok((found, _)) => {
                let sent = &found.open.as_ref().unwrap().participants[0].sent;
                assert!(matches!(sent, Sent::Refused { .. }), "a changed `{name}` counts: {}", told(&found));
                Verdict::Refused
            }
            Err(error) => refused(&error),
        }
    })
}

fn coordinator() -> PrivateKey {
    PrivateKey::from_bytes(&[1; 32])
}

fn told(status: &Status) -> String {
    serde_json::to_string(status).unwrap()
}

/// A place in which a round is open and ada has sent.
struct Whole {
    objects: Vec<(&'static str, Vec<u8>)>,
    status: String,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    folder::with(|folder| {
        let folder = folder.join("whole");
        fs::create_dir_all(&folder).unwrap();
        let place = Place::open(&folder.display().to_string(), |_| None).unwrap();
        let (ada, trust) = (PrivateKey::from_bytes(&[2; 32]), Trust::Key(coordinator().public()));
        let (plan, adapter) = (RoundPlan::default(), any_adapter());
        let terms = Terms { plan, quorum: 1, deadline_seconds: 3600, most_bytes: 1 << 20, base: None };
        create(&place, &coordinator(), [7; 16], terms, Some(adapter.clone()), 1_800_000_000).unwrap();
        members::add(&place, &coordinator(), &[("ada".parse().unwrap(), ada.public())]).unwrap();
        open(&place, &coordinator(), 1_800_000_000).unwrap();
        let fetched: Fetched = fetch(&place, trust).unwrap();
        let home = folder.join("home");
        fs::create_dir_all(&home).unwrap();
        fetched.save(&home).unwrap();
        let own = Contribution::from_examples("ada", adapter, 3);
        let sent = ClientRound::load(&home).unwrap().leaving(own, 5).unwrap().unwrap();
        submit(&place, trust, &ada, sent.to_bytes().unwrap()).unwrap();
        let objects = NAMES.map(|name| (name, fs::read(folder.join(name)).unwrap())).to_vec();
        Whole { objects, status: told(&status(&place, trust).unwrap()) }
    })
});

pub(super) fn seeds() -> Vec<Vec<u8>> {
    WHOLE.objects.iter().map(|(name, bytes)| [name.as_bytes(), b"\n", bytes].concat()).collect()
}
