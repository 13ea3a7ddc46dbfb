//! Rounds in a bucket of a real server; `rounds/tests/s3.sh` starts one.

use catelier_rounds::{Place, close, create, fetch, members, open, status, submit};

use crate::world::{CLIENTS, DAY, START, World, adapter, join_at_once, key, name, sent, terms};

/// Where the server listens: `http://127.0.0.1:5000`. It has a bucket `catelier`.
const ENDPOINT: &str = "CATELIER_S3_ENDPOINT";

#[test]
#[allow(clippy::print_stderr, reason = "who runs the tests should know what was not tried")]
fn rounds_in_a_bucket_leave_the_bytes_of_those_in_memory() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else {
        eprintln!("{ENDPOINT} is not set: rounds in a bucket were not tried; rounds/tests/s3.sh does");
        return;
    };
    let variable = |name: &str| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_ALLOW_HTTP" => Some("true".to_owned()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("test".to_owned()),
        "AWS_REGION" => Some("us-east-1".to_owned()),
        _ => None,
    };
    let prefix = format!("s3://catelier/it-{}", std::process::id());
    let place = || Place::open(&prefix, variable).unwrap();
    let memory = World::new("fedadam", 2);
    let (bucket, coordinator, trust) = (place(), key("coordinator"), memory.trust());
    create(&bucket, &coordinator, [7; 16], terms("fedadam", 2), Some(adapter(2, 9)), START).unwrap();
    assert!(create(&bucket, &coordinator, [8; 16], terms("fedadam", 2), None, START).is_err(), "created once");
    let new = CLIENTS.map(|client| (name(client), key(client).public()));
    members::add(&bucket, &coordinator, &new).unwrap();
    for number in 1..=2 {
        let at = START + number as u64 * DAY;
        assert!(open(&bucket, &coordinator, at).unwrap().is_new);
        assert!(!open(&place(), &coordinator, at + 5).unwrap().is_new);
        for client in CLIENTS {
            let bucket = place();
            let round = fetch(&bucket, trust).unwrap().client_round;
            let mut contribution = sent(&round, client);
            let file = contribution.to_bytes().unwrap();
            assert!(submit(&bucket, trust, &key(client), file.clone()).unwrap().is_new);
            assert!(!submit(&bucket, trust, &key(client), file).unwrap().is_new);
            contribution.weight = 99.0;
            assert!(submit(&bucket, trust, &key(client), contribution.to_bytes().unwrap()).is_err());
        }
        assert_eq!(status(&bucket, trust).unwrap().open.unwrap().contributions(), 3);
        let closed = close(&bucket, &coordinator, at + 60, false).unwrap();
        assert_eq!(closed, memory.play(number));
    }
    assert_eq!(
        status(&bucket, trust).unwrap().state.unwrap(),
        catelier_rounds::Digest::of(memory.read("rounds/0002/state.safetensors"))
    );
    join_at_once(place);
}
