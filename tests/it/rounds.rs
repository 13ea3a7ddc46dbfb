//! Rounds over a shared folder, from the outside.

use candle_core::{DType, Device, Tensor};
use catelier_workflows::adapters::{Adapter, LoraFactors};
use catelier_workflows::federation::{ClientRound, Contribution};

use crate::catelier::{Ran, Studio};

/// A folder with keys, and a federation of three in `shared`, whose coordinator's public key is returned.
fn federation() -> (Studio, String) {
    let studio = Studio::new();
    let key = |name: &str| {
        let ran = studio.done(&format!("federate round key --out {name}.key"));
        assert!(ran.stdout.starts_with("ed25519:") && ran.stdout.trim().len() == 72, "{}", ran.stdout);
        ran.stdout.trim().to_owned()
    };
    let coordinator = key("coordinator");
    let ran = studio
        .done("federate round create --place shared --key coordinator.key --strategy fedavg --rounds 2 --quorum 2");
    assert_eq!(ran.stdout.trim(), coordinator);
    let members: Vec<String> = ["ada", "ben", "cy"].iter().map(|name| format!("{name}={}", key(name))).collect();
    let line = format!("federate round member add {} --place shared --key coordinator.key", members.join(" "));
    assert!(studio.done(&line).stderr.contains("3 members"));
    (studio, coordinator)
}

fn by_coordinator(studio: &Studio, step: &str) -> Ran {
    studio.run(&format!("federate round {step} --place shared --key coordinator.key"))
}

/// Trains for the round in a client's folder.
fn train(studio: &Studio, client: &str, value: f32, images: usize) {
    let folder = studio.path(client);
    let round = ClientRound::load(&folder).unwrap();
    let full = |rows: usize, columns: usize| {
        Tensor::full(value, (rows, columns), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    };
    let factors = LoraFactors::new(full(2, 5), full(4, 2), 2.0).unwrap();
    let adapter = Adapter::from_iter([("unet.mid_block.attentions.0.proj_in".to_owned(), factors)]);
    let contribution = Contribution::from_examples(client, adapter, images);
    round.leaving(contribution, 5).unwrap().unwrap().save(&folder.join("contribution.safetensors")).unwrap();
}

fn take_part(studio: &Studio, coordinator: &str, client: &str, images: usize) -> Ran {
    studio.done(&format!("federate round fetch --place shared --coordinator {coordinator} --out {client}"));
    train(studio, client, 1.0, images);
    submit(studio, client)
}

fn submit(studio: &Studio, client: &str) -> Ran {
    studio.run(&format!(
        "federate round submit --place shared --key {client}.key --contribution {client}/contribution.safetensors"
    ))
}

#[test]
fn two_rounds_from_the_first_key_to_the_adapter() {
    let (studio, coordinator) = federation();
    let look = format!("--place shared --coordinator {coordinator}");
    let waiting = studio.done("federate round status --place shared");
    assert!(
        waiting.stdout.contains("round 1 is not open yet") && waiting.stdout.contains("not checked"),
        "{}",
        waiting.stdout
    );
    let refused = studio.run(&format!("federate round fetch {look} --out ada"));
    assert_eq!(refused.code, Some(2));
    assert_eq!(
        refused.message(),
        "error: cannot fetch the round\ncause: round 1 is not open yet\nhint: wait until the coordinator opens it"
    );
    assert!(by_coordinator(&studio, "open").stderr.contains("round 1 is open for 3 clients, until 20"));
    let ran = take_part(&studio, &coordinator, "ada", 10);
    assert!(ran.code == Some(0) && ran.stderr.contains("`ada` has sent 0.0 MB to round 1"), "{}", ran.stderr);
    assert!(submit(&studio, "ada").stderr.contains("had sent already"));
    take_part(&studio, &coordinator, "ben", 30);
    let status = studio.done(&format!("federate round status {look}"));
    assert!(status.stdout.contains("sent         2 of 3, enough for the quorum"), "{}", status.stdout);
    assert!(status.stdout.contains("  cy   missing"), "{}", status.stdout);
    // The first second of the two days may be over or not.
    assert!(["in 1 d 23 h", "in 2 d"].iter().any(|left| status.stdout.contains(left)), "{}", status.stdout);
    assert!(status.stdout.lines().all(|line| line.chars().count() <= 80), "{}", status.stdout);
    let json = studio.done(&format!("federate round status {look} --json")).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["open"]["participants"][2], serde_json::json!({ "client": "cy", "sent": "nothing" }));

    let early = by_coordinator(&studio, "close");
    assert!(
        early.code == Some(2) && early.message().contains("`cy` missing\nhint: wait, or close with `--now`"),
        "{}",
        early.stderr
    );
    let closed = by_coordinator(&studio, "close --now --json");
    let report: serde_json::Value = serde_json::from_str(&closed.stdout).unwrap();
    assert_eq!((&report["round"], &report["missing"]), (&1.into(), &serde_json::json!(["cy"])));

    by_coordinator(&studio, "open");
    // The folder remembers the coordinator.
    for (client, value) in [("ada", 2.0), ("ben", 4.0)] {
        studio.done(&format!("federate round fetch --place shared --out {client}"));
        train(&studio, client, value, 10);
        assert_eq!(submit(&studio, client).code, Some(0));
    }
    let closed = by_coordinator(&studio, "close --now");
    assert!(
        closed.stderr.contains("round 2 of 2 is closed\ncontributions: 2 (ada, ben)\nmissing: 1 (cy)"),
        "{}",
        closed.stderr
    );
    let result = studio.done(&format!("federate round result {look} --out style.safetensors"));
    assert!(result.stderr.contains("after 2 rounds"), "{}", result.stderr);
    assert!(studio.done("adapter inspect style.safetensors").stdout.contains("1 modules"));
    assert!(studio.done(&format!("federate round status {look}")).stdout.contains("all rounds are over"));
    assert_eq!(studio.run(&format!("federate round result {look} --out style.safetensors")).code, Some(2));
}

#[test]
fn what_is_wrong_is_refused_by_name_and_the_round_goes_on() {
    let (studio, coordinator) = federation();
    by_coordinator(&studio, "open");
    let fetch =
        |client: &str, more: &str| studio.run(&format!("federate round fetch --place shared --out {client} {more}"));
    let unknown = fetch("ada", "");
    assert!(unknown.code == Some(2) && unknown.message().contains("`--coordinator`"), "{}", unknown.stderr);
    let eve = studio.done("federate round key --out eve.key").stdout;
    let stranger = fetch("ada", &format!("--coordinator {}", eve.trim()));
    assert!(
        stranger.code == Some(2) && stranger.message().contains(&format!("coordinator is {coordinator}")),
        "{}",
        stranger.stderr
    );
    for (line, reason) in [
        ("federate round open --place shared --key eve.key", "expected ed25519"),
        ("federate round open --place shared --key missing.key", "`missing.key` could not be read"),
        ("federate round open --place nowhere --key coordinator.key", "`nowhere` is no place"),
        ("federate round create --place shared --key eve.key", "there is a federation in `shared` already"),
        ("federate round create --place other --key eve.key --noise 1", "`noise` is measured in units of `clip`"),
        ("federate round create --place other --key eve.key --strategy fedadam", "there is none"),
        (
            "federate round member add ../x=ed25519:00 --place shared --key coordinator.key",
            "the name `../x` is not usable",
        ),
        (
            "federate round member add x=ed25519:00 --place shared --key coordinator.key",
            "`ed25519:00` is no public key",
        ),
        ("federate round member remove eve --place shared --key coordinator.key", "`eve` is no member"),
        ("federate round key --out eve.key", "`eve.key` could not be read or written"),
    ] {
        let ran = studio.run(line);
        assert!(ran.code == Some(2) && ran.stderr.contains(reason), "{line}: {:?} {}", ran.code, ran.stderr);
    }
    take_part(&studio, &coordinator, "ada", 10);
    take_part(&studio, &coordinator, "ben", 0);
    let refused = submit(&studio, "ben");
    assert!(
        refused.code == Some(2) && refused.message().contains("would refuse this contribution of `ben`"),
        "{}",
        refused.stderr
    );
    take_part(&studio, &coordinator, "cy", 10);
    studio.write("shared/rounds/0001/contributions/ben.json", "{}");
    studio.write("shared/rounds/0001/contributions/E\u{1b}[2J.json", "{}");
    let closed = by_coordinator(&studio, "close --now");
    assert_eq!(closed.code, Some(0), "{}", closed.stderr);
    assert!(closed.stderr.contains("warning: refused: `ben`: its record is not usable"), "{}", closed.stderr);
    assert!(
        !closed.stderr.contains('\u{1b}') && closed.stderr.contains("contributions: 2 (ada, cy)"),
        "{}",
        closed.stderr
    );
    assert!(submit(&studio, "ben").message().contains("round 2 is not open yet"));
}
