//! Many clients, on request: `cargo test --release -p catelier-rounds -- --ignored --nocapture ten_thousand`.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LoraFactors};
use catelier_federation::Contribution;
use catelier_rounds::{Digest, Place, create, members};
use object_store::local::LocalFileSystem;

use crate::world::{START, World, key, name, signed, terms};

const MANY: usize = 10_000;

/// An adapter of 64 KiB.
fn adapter(value: f32) -> Adapter {
    let full = |rows, columns| Tensor::full(value, (rows, columns), &Device::Cpu).unwrap();
    let factors = LoraFactors::new(full(8, 1024), full(1024, 8), 8.0).unwrap();
    Adapter::from_iter([("unet.mid_block.attentions.0.proj_in".to_owned(), factors)])
}

#[test]
#[ignore = "takes minutes"]
#[allow(clippy::print_stderr, reason = "it is a measurement")]
fn ten_thousand_clients_of_64_kib_take_part_in_a_round() {
    let folder = tempfile::tempdir_in(std::env::var_os("CATELIER_SCALE_DIR").unwrap_or_else(|| ".".into())).unwrap();
    let mut world = World::at(Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap()));
    world.place = Place::open(&folder.path().display().to_string(), |_| None).unwrap();
    let mut terms = terms("fedavg", 1);
    terms.base = None;
    create(&world.place, &world.coordinator, [7; 16], terms, Some(adapter(0.1)), START).unwrap();
    let client = |number: usize| format!("client-{number:05}");
    let new: Vec<_> = (0..MANY).map(|number| (name(&client(number)), key(&client(number)).public())).collect();
    let timed = |what: &str, begin: Instant| eprintln!("{what}: {:.1} s", begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    members::add(&world.place, &world.coordinator, &new).unwrap();
    timed("members", begin);
    let begin = Instant::now();
    assert_eq!(world.open(1).unwrap().participants.len(), MANY);
    timed("open", begin);
    let begin = Instant::now();
    let round = world.fetch().unwrap().client_round;
    let file = |number: usize| {
        let own = Contribution::from_examples(client(number), adapter(0.1 + number as f32 * 1e-6), 3);
        round.leaving(own, 5).unwrap().unwrap().to_bytes().unwrap()
    };
    world.submit(&client(0), file(0)).unwrap();
    timed("fetch and submit of one", begin);
    // The others come from machines of their own.
    let contributions = folder.path().join("rounds/0001/contributions");
    for number in 1..MANY {
        let (client, file) = (client(number), file(number));
        let (sha256, bytes) = (Digest::of(&file), file.len());
        let statement = format!(
            r#"{{"federation":"{}","round":1,"client":"{client}","tensors":{{"sha256":"{sha256}","bytes":{bytes}}},"weight":"3"}}"#,
            "07".repeat(16)
        );
        std::fs::write(contributions.join(format!("{client}.{sha256}.safetensors")), file).unwrap();
        std::fs::write(contributions.join(format!("{client}.json")), signed(&statement, &client)).unwrap();
    }
    let begin = Instant::now();
    assert_eq!(catelier_rounds::status(&world.place, world.trust()).unwrap().open.unwrap().contributions(), MANY);
    timed("status", begin);
    let begin = Instant::now();
    let closed = world.close(1).unwrap();
    timed("close", begin);
    assert_eq!(closed.report.clients.len(), MANY);
    eprintln!("most memory: {}", peak());
}

/// The line of the system that tells it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("unknown").to_owned()
}
