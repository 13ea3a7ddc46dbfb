//! An audit from the outside.

use std::fs;

use crate::catelier::Studio;

/// A small federation, with the global adapter of every round.
const SIMULATE: &str = "federate simulate --artists goldleaf,poster --rounds 2 --local-steps 1 --images 1 --prompts 1 \
                        --sampling-steps 1 --score-every 1 --out played";

/// A short audit of it.
const AUDIT: &str = "federate audit played --strengths 1 --images 1 --held-out 2 --draws 1 --sampling-steps 2 --json";

#[test]
fn an_audit_has_the_same_bytes_again_and_leaves_a_sheet_of_pairs() {
    let studio = Studio::new();
    studio.done(SIMULATE);
    let first = studio.done(&format!("{AUDIT} --out found"));
    let again = studio.done(&format!("{AUDIT} --threads 1"));
    assert_eq!(first.stdout, again.stdout);
    let audit: serde_json::Value = serde_json::from_str(&first.stdout).unwrap();
    assert_eq!((&audit["attacker"], &audit["isolation"]), (&"goldleaf".into(), &"mean".into()));
    let rows = |name: &str| audit[name].as_array().unwrap().clone();
    let handed_out: Vec<_> = rows("copying").iter().map(|row| row["handed_out"].clone()).collect();
    let every = |name: &str| vec![serde_json::Value::from(name); 3];
    assert_eq!(handed_out, [vec![serde_json::Value::Null], every("every round"), every("the last")].concat());
    assert_eq!((rows("by_strength").len(), rows("membership").len(), rows("trials").len()), (3, 4, 12));
    assert!(studio.path("found/poster.png").exists() && !studio.path("found/goldleaf.png").exists());
    let saved = fs::read_to_string(studio.path("found/audit.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&saved).unwrap(), audit);

    refuses_what_cannot_be_audited(&studio);
}

/// On the simulation of the test before, which takes a while to play.
fn refuses_what_cannot_be_audited(studio: &Studio) {
    let refused = |line: &str, expected: &str| {
        let ran = studio.run(line);
        assert_eq!((ran.code, ran.message().as_str()), (Some(2), expected), "{line}");
    };
    refused(
        "federate audit found",
        "error: `found` holds no simulation\nhint: name a folder that `federate simulate` wrote",
    );
    refused(
        "federate audit played --attacker neon",
        "error: `neon` takes no part in the simulation\nhint: the attacker is `server` or one of goldleaf, poster",
    );
    refused("federate audit played --held-out 1", "error: `held-out` is 1, it must be at least 2\nhint: ask for more");
    refused(
        "federate audit played --strengths 0",
        "error: the strength 0 of a difference is not above 0\n\
         hint: give numbers such as 0.5,1,2; the late round itself is always drawn with",
    );
    refused(
        "federate audit played --out played",
        "error: `played` holds the output of `catelier federate simulate`\nhint: choose another `--out`",
    );
    fs::remove_file(studio.path("played/rounds/0001.safetensors")).unwrap();
    refused(
        "federate audit played",
        "error: `played` has no global adapter of round 1\n\
         hint: play the simulation with `--score-every 1`, which keeps that of every round",
    );
}
