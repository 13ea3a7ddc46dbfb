//! Findings in plain words, computed from the scores; the texts cover every outcome.

use catelier_pages::number::two_decimals as shown;

use super::Run;
use super::score_table::Verdict;
use crate::metrics::Better;
use crate::score::Score;
use crate::scores::Scores;

/// The page's headline, decided by `kps_no_token` and `kps_joint`.
pub(super) fn headline(run: &Run<'_>, baseline: &Run<'_>) -> String {
    let kept = Verdict::between(&run.scores.kps_no_token, &baseline.scores.kps_no_token, Better::Higher);
    let joint = verdict(run.scores.kps_joint, baseline.scores.kps_joint);
    let title = run.title();
    match (kept, joint) {
        (Verdict::First, Some(Verdict::Second)) => format!("{title} kept the base, but paid for it in style"),
        (Verdict::First, _) => format!("{title} kept the style where it was asked for"),
        (Verdict::Second, _) | (_, Some(Verdict::Second)) => format!("This time {} did better", baseline.name),
        (_, Some(Verdict::First)) => format!("{title} came out ahead on balance"),
        _ => "No clear winner this time".to_owned(),
    }
}

/// The findings about `run` and `baseline`, one sentence or two each, in the order of importance.
pub(super) fn findings(run: &Run<'_>, baseline: &Run<'_>) -> Vec<String> {
    let sentences = [
        Some(preservation(run, baseline)),
        style(run, baseline),
        learned_at_all(run, baseline),
        balance(run, baseline),
        worst_class(run, baseline),
        variety(run, baseline),
    ];
    sentences.into_iter().flatten().collect()
}

fn preservation(run: &Run<'_>, baseline: &Run<'_>) -> String {
    let (kept, of_baseline) = (&run.scores.kps_no_token, &baseline.scores.kps_no_token);
    let gap = fraction_kept(run.scores, kept) - fraction_kept(run.scores, of_baseline);
    let (r, b) = (shown(kept.mean), shown(of_baseline.mean));
    let ((title, name), (baseline_title, baseline)) = ((run.title(), run.name), (baseline.title(), baseline.name));
    match Verdict::between(kept, of_baseline, Better::Higher) {
        Verdict::First if gap < SMALL_GAP => format!(
            "{baseline_title} changed images that never asked for the style a little more than {name}: {b} kept against {r}."
        ),
        Verdict::First => {
            format!("{baseline_title} changed images that never asked for the style: {b} kept against {r} with {name}.")
        }
        Verdict::Second => {
            format!("{title} did not protect the base better here: it kept {r}, {baseline} {b}.")
        }
        Verdict::TooClose => format!(
            "Without the trigger both kept about as much of the base ({name} {r}, {baseline} {b}); the difference may be chance."
        ),
    }
}

/// A difference in [`fraction_kept`] below which a change is called little.
const SMALL_GAP: f64 = 0.1;

/// The fraction of the base that was kept, on a scale where two different base images are 0 and no change is 1.
/// Similarities depend on the extractor; this fraction hardly does.
fn fraction_kept(scores: &Scores, kept: &Score) -> f64 {
    let floor = scores.base_pair_similarity.map_or(0.5, |score| score.mean);
    (kept.mean - floor) / (1.0 - floor).max(1e-6)
}

fn style(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let (r, b) = (shown(run.scores.identity?.mean), shown(baseline.scores.identity?.mean));
    let (name, of_baseline) = (run.name, baseline.name);
    Some(match verdict(run.scores.identity, baseline.scores.identity)? {
        Verdict::First => format!("With the trigger, {name} also came nearer to the artist: {r} against {b}."),
        Verdict::Second => format!(
            "That has a price: with the trigger, {name} came less near to the artist than {of_baseline}, {r} against {b}."
        ),
        Verdict::TooClose => {
            format!("With the trigger both came about equally near to the artist ({name} {r}, {of_baseline} {b}).")
        }
    })
}

/// A warning if an adapter is not clearly nearer to the artist than the base.
fn learned_at_all(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let base = run.scores.base_identity?;
    let unlearned = |run: &Run<'_>| run.scores.identity.is_some_and(|score| score.low <= base.high);
    let who = match (unlearned(run), unlearned(baseline)) {
        (false, false) => return None,
        (true, true) => "neither adapter is".to_owned(),
        (true, false) => format!("{}'s adapter is not", run.name),
        (false, true) => format!("{}'s adapter is not", baseline.name),
    };
    let base = shown(base.mean);
    Some(format!(
        "Careful: the untouched base already scores {base} against the artist's images, and {who} clearly above it. The style was hardly learned; train longer or with a higher rank."
    ))
}

fn balance(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let (r, b) = (shown(run.scores.kps_joint?.mean), shown(baseline.scores.kps_joint?.mean));
    let (name, of_baseline) = (run.name, baseline.name);
    Some(match verdict(run.scores.kps_joint, baseline.scores.kps_joint)? {
        Verdict::First => format!("Taken together, {name} is ahead: {r} against {b}."),
        Verdict::Second => format!("Taken together, {of_baseline} is ahead: {b} against {r}."),
        Verdict::TooClose => format!(
            "Taken together there is no clear winner: {name} {r}, {of_baseline} {b}, with overlapping intervals."
        ),
    })
}

/// The class that one of the adapters changed most.
fn worst_class(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let (worst, of_baseline) = (run.scores.worst_class()?, baseline.scores.worst_class()?);
    let class = if worst.drop > of_baseline.drop { &worst.name } else { &of_baseline.name };
    let kept = |run: &Run<'_>| {
        let group = run.scores.classes.iter().find(|group| group.name == *class);
        group.map(|group| shown(group.kept.mean))
    };
    let (r, b) = (kept(run)?, kept(baseline)?);
    Some(format!(
        "The class that lost most without the trigger is \u{201c}{class}\u{201d}: {b} kept with {}, {r} with {}.",
        baseline.name, run.name
    ))
}

/// A finding only if the images clearly became more alike.
fn variety(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let (collapse, of_baseline) = (run.scores.class_collapse?, baseline.scores.class_collapse?);
    let lost = |score: &Score| score.low > 0.0;
    let one = |run: &Run<'_>, score: &Score, other: &Run<'_>| {
        let by = shown(score.mean);
        format!(
            "{}'s images became more alike among themselves (by {by}); {}'s did not clearly.",
            run.title(),
            other.name
        )
    };
    match (lost(&collapse), lost(&of_baseline)) {
        (false, false) => None,
        (true, true) => Some(format!(
            "Images became more alike among themselves under both: by {} with {}, by {} with {}.",
            shown(of_baseline.mean),
            baseline.name,
            shown(collapse.mean),
            run.name
        )),
        (false, true) => Some(one(baseline, &of_baseline, run)),
        (true, false) => Some(one(run, &collapse, baseline)),
    }
}

fn verdict(first: Option<Score>, second: Option<Score>) -> Option<Verdict> {
    Some(Verdict::between(&first?, &second?, Better::Higher))
}

/// The scores of one adapter in two sentences.
pub(super) fn summary(scores: &Scores) -> String {
    let kept = &scores.kps_no_token;
    let what_it_did = match fraction_kept(scores, kept) {
        0.95.. => "left images without the trigger almost as the base draws them",
        0.8..0.95 => "changed images without the trigger a little",
        0.5..0.8 => "plainly changed images without the trigger",
        _ => "made other images of prompts without the trigger",
    };
    let first = match scores.base_pair_similarity {
        Some(other) => format!(
            "This adapter {what_it_did}: {}, where 1 is unchanged and two different images of the base score {}.",
            shown(kept.mean),
            shown(other.mean)
        ),
        None => format!("This adapter {what_it_did}: {}, where 1 is unchanged.", shown(kept.mean)),
    };
    let (Some(identity), Some(base)) = (scores.identity, scores.base_identity) else {
        return first;
    };
    let (adapted, base_mean) = (shown(identity.mean), shown(base.mean));
    let second = if identity.low > base.high {
        format!(
            "With the trigger it comes clearly nearer to the references than the base does: {adapted} against {base_mean}."
        )
    } else {
        format!(
            "With the trigger it is not clearly nearer to the references than the base: {adapted} against {base_mean}."
        )
    };
    format!("{first} {second}")
}

#[cfg(test)]
mod tests {
    use catelier_features::Extractor;

    use super::*;
    use crate::kps;
    use crate::report::TrainingCurves;
    use crate::scores::{Counts, FORMAT, Generation, VERSION};

    fn score(mean: f64) -> Score {
        Score { mean, low: mean - 0.01, high: mean + 0.01, n: 20 }
    }

    fn run<'a>(name: &'a str, scores: &'a Scores) -> Run<'a> {
        Run { name, method: "", scores, curves: TrainingCurves::default(), seconds: 0.0 }
    }

    fn scores(kept: f64, identity: f64) -> Scores {
        Scores {
            format: FORMAT.to_owned(),
            version: VERSION,
            kps_no_token: score(kept),
            kps_joint: Some(kps::kps_joint(&score(kept), &score(identity))),
            identity: Some(score(identity)),
            prompt_similarity: score(0.3),
            base_identity: Some(score(0.6)),
            base_pair_similarity: Some(score(0.5)),
            base_prompt_similarity: score(0.3),
            class_collapse: Some(score(0.0)),
            kinds: vec![],
            classes: kps::by_group(&[Some("boat")], &[kept], 0).unwrap(),
            images: vec![],
            counts: Counts { without_trigger: 20, with_trigger: 20, references: 10 },
            seeds: vec![1, 2],
            bootstrap_seed: 0,
            extractor: Extractor { name: "test".into(), sha256: "00".into() },
            generation: Generation::default(),
        }
    }

    #[test]
    fn the_words_follow_the_numbers_when_cat_wins() {
        let (cat, lora) = (scores(0.95, 0.84), scores(0.81, 0.84));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        let findings = findings(&cat, &lora).join(" ");
        assert_eq!(headline(&cat, &lora), "CAT kept the style where it was asked for");
        assert!(findings.contains("never asked for the style: 0.81 kept against 0.95"), "{findings}");
        assert!(findings.contains("equally near to the artist"), "{findings}");
        assert!(findings.contains("CAT is ahead"), "{findings}");
        assert!(findings.contains("\u{201c}boat\u{201d}: 0.81 kept with plain LoRA, 0.95 with CAT"), "{findings}");
    }

    #[test]
    fn a_small_difference_is_called_small() {
        let (cat, lora) = (scores(0.98, 0.84), scores(0.95, 0.84));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        assert!(findings(&cat, &lora)[0].contains("a little more than CAT: 0.95 kept against 0.98"));
    }

    #[test]
    fn a_summary_judges_on_the_scale_of_the_base() {
        assert!(summary(&scores(0.99, 0.8)).contains("almost as the base draws them: 0.99"));
        assert!(summary(&scores(0.8, 0.8)).contains("plainly changed"));
        assert!(summary(&scores(0.6, 0.8)).contains("made other images"));
    }

    #[test]
    fn the_words_follow_the_numbers_when_cat_loses() {
        let (cat, lora) = (scores(0.80, 0.70), scores(0.90, 0.84));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        let findings = findings(&cat, &lora).join(" ");
        assert_eq!(headline(&cat, &lora), "This time plain LoRA did better");
        assert!(
            findings.contains("CAT did not protect the base better here: it kept 0.80, plain LoRA 0.90"),
            "{findings}"
        );
        assert!(findings.contains("plain LoRA is ahead"), "{findings}");
    }

    #[test]
    fn a_style_paid_for_preservation_is_called_a_price() {
        let (cat, lora) = (scores(0.95, 0.65), scores(0.90, 0.95));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        assert_eq!(headline(&cat, &lora), "CAT kept the base, but paid for it in style");
        assert!(findings(&cat, &lora).join(" ").contains("That has a price"));
    }

    #[test]
    fn equal_numbers_have_no_winner() {
        let both = scores(0.9, 0.8);
        let both = run("CAT", &both);
        assert_eq!(headline(&both, &both), "No clear winner this time");
        assert!(findings(&both, &both)[0].contains("may be chance"));
    }

    #[test]
    fn an_adapter_no_nearer_than_the_base_has_learned_little() {
        let (cat, lora) = (scores(0.99, 0.605), scores(0.9, 0.8));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        let findings = findings(&cat, &lora).join(" ");
        assert!(findings.contains("CAT's adapter is not clearly above it"), "{findings}");
        assert!(summary(cat.scores).contains("not clearly nearer"));
        assert!(summary(lora.scores).contains("clearly nearer to the references"));
    }
}
