//! Averaging from the outside.

use crate::catelier::Studio;
use crate::train::{SHORT, studio};

fn two_runs(rank: usize) -> Studio {
    let studio = studio();
    studio.done(&format!("{SHORT} --out one"));
    studio.done(&format!("{SHORT} --seed 2 --out two").replace("--rank 2", &format!("--rank {rank}")));
    studio
}

#[test]
fn product_is_exact_where_the_rank_suffices_and_ranks_may_differ() {
    let studio = two_runs(3);
    let aggregate = |rank: &str| {
        let line = format!(
            "federate aggregate --strategy product{rank} --adapter one/adapter.safetensors \
             --adapter two/adapter.safetensors:3 --out mean{}.safetensors --json",
            rank.len()
        );
        let ran = studio.done(&line);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()["relative_distance"].as_f64().unwrap()
    };
    assert!(aggregate(":exact") < 1e-5);
    assert!(aggregate("") > 1e-3, "rank 3 cannot hold two different updates of ranks 2 and 3");
    let ran = studio.done("adapter inspect mean6.safetensors --json");
    assert!(ran.stdout.contains("\"ranks\":{\"5\":"), "{}", ran.stdout);
}

#[test]
fn every_offender_is_listed() {
    let studio = two_runs(3);
    let ran = studio.run(
        "federate aggregate --strategy fedavg --adapter one/adapter.safetensors \
         --adapter two/adapter.safetensors:-1 --out mean.safetensors",
    );
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.message(),
        "error: cannot aggregate these adapters\ncause: 1 of 2 contributions cannot be aggregated: `two/adapter.safetensors`: expected a finite weight above 0, found -1, `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k`: expected rank 2, found 3, `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k`: expected alpha 2, found 3\nhint: leave these contributions out, or ask their clients for new ones"
    );
}
