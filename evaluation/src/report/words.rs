//! What a comparison shows, in plain words computed from the numbers; it says so where CAT loses.

use super::number::score as shown;
use super::score_table::Verdict;
use crate::metrics::Better;
use crate::score::Score;
use crate::scores::Scores;

/// The page's headline: what the two scores that matter decide.
pub(super) fn headline(cat: &Scores, lora: &Scores) -> &'static str {
    let kept = Verdict::between(&cat.kps_no_token, &lora.kps_no_token, Better::Higher);
    let joint = verdict(cat.kps_joint, lora.kps_joint);
    match (kept, joint) {
        (Verdict::Cat, Some(Verdict::Lora)) => "CAT kept the base, but paid for it in style",
        (Verdict::Cat, _) => "CAT kept the style where it was asked for",
        (Verdict::Lora, _) | (_, Some(Verdict::Lora)) => "This time plain LoRA did better",
        (_, Some(Verdict::Cat)) => "CAT came out ahead on balance",
        _ => "No clear winner this time",
    }
}

/// The findings, one sentence or two each, in the order of importance.
pub(super) fn findings(cat: &Scores, lora: &Scores) -> Vec<String> {
    let sentences = [
        Some(preservation(cat, lora)),
        style(cat, lora),
        learned_at_all(cat, lora),
        balance(cat, lora),
        worst_class(cat, lora),
        variety(cat, lora),
    ];
    sentences.into_iter().flatten().collect()
}

fn preservation(cat: &Scores, lora: &Scores) -> String {
    let (c, l) = (shown(cat.kps_no_token.mean), shown(lora.kps_no_token.mean));
    let gap = fraction_kept(cat, &cat.kps_no_token) - fraction_kept(cat, &lora.kps_no_token);
    match Verdict::between(&cat.kps_no_token, &lora.kps_no_token, Better::Higher) {
        Verdict::Cat if gap < SMALL_GAP => format!(
            "Plain LoRA changed pictures that never asked for the style a little more than CAT: {l} kept against {c}."
        ),
        Verdict::Cat => {
            format!("Plain LoRA changed pictures that never asked for the style: {l} kept against {c} with CAT.")
        }
        Verdict::Lora => format!("CAT did not protect the base better here: it kept {c}, plain LoRA {l}."),
        Verdict::TooClose => format!(
            "Without the trigger both kept about as much of the base (CAT {c}, plain LoRA {l}); the difference may be chance."
        ),
    }
}

/// A difference in [`fraction_kept`] below which a change is called little.
const SMALL_GAP: f64 = 0.1;

/// How much was kept on a scale where two different base pictures are 0 and no change is 1: what
/// similarities mean depends on the extractor, and this hardly does.
fn fraction_kept(scores: &Scores, kept: &Score) -> f64 {
    let floor = scores.base_pair_similarity.map_or(0.5, |score| score.mean);
    (kept.mean - floor) / (1.0 - floor).max(1e-6)
}

fn style(cat: &Scores, lora: &Scores) -> Option<String> {
    let (c, l) = (shown(cat.identity?.mean), shown(lora.identity?.mean));
    Some(match verdict(cat.identity, lora.identity)? {
        Verdict::Cat => format!("With the trigger, CAT also came nearer to the artist: {c} against {l}."),
        Verdict::Lora => format!(
            "That has a price: with the trigger, CAT came less near to the artist than plain LoRA, {c} against {l}."
        ),
        Verdict::TooClose => {
            format!("With the trigger both came about equally near to the artist (CAT {c}, plain LoRA {l}).")
        }
    })
}

/// Said only where an adapter did not clearly leave the base behind.
fn learned_at_all(cat: &Scores, lora: &Scores) -> Option<String> {
    let base = cat.base_identity?;
    let unlearned = |identity: Option<Score>| identity.is_some_and(|score| score.low <= base.high);
    let who = match (unlearned(cat.identity), unlearned(lora.identity)) {
        (false, false) => return None,
        (true, true) => "neither adapter is",
        (true, false) => "CAT's adapter is not",
        (false, true) => "plain LoRA's adapter is not",
    };
    let base = shown(base.mean);
    Some(format!(
        "Careful: the untouched base already scores {base} against the artist's pictures, and {who} clearly above it. The style was hardly learned; train longer or with a higher rank."
    ))
}

fn balance(cat: &Scores, lora: &Scores) -> Option<String> {
    let (c, l) = (shown(cat.kps_joint?.mean), shown(lora.kps_joint?.mean));
    Some(match verdict(cat.kps_joint, lora.kps_joint)? {
        Verdict::Cat => format!("Taken together, CAT is ahead: {c} against {l}."),
        Verdict::Lora => format!("Taken together, plain LoRA is ahead: {l} against {c}."),
        Verdict::TooClose => {
            format!("Taken together there is no clear winner: CAT {c}, plain LoRA {l}, with overlapping intervals.")
        }
    })
}

/// The class that plain LoRA hurt most, or CAT where that is worse.
fn worst_class(cat: &Scores, lora: &Scores) -> Option<String> {
    let (cat_worst, lora_worst) = (cat.worst_class()?, lora.worst_class()?);
    let name = if cat_worst.drop > lora_worst.drop { &cat_worst.name } else { &lora_worst.name };
    let kept = |scores: &Scores| {
        let group = scores.classes.iter().find(|group| group.name == *name);
        group.map(|group| shown(group.kept.mean))
    };
    let (c, l) = (kept(cat)?, kept(lora)?);
    Some(format!(
        "What suffered most without the trigger is \u{201c}{name}\u{201d}: {l} kept with plain LoRA, {c} with CAT."
    ))
}

/// Said only where pictures clearly became more alike.
fn variety(cat: &Scores, lora: &Scores) -> Option<String> {
    let (c, l) = (cat.class_collapse?, lora.class_collapse?);
    let lost = |score: &Score| score.low > 0.0;
    let (cat_mean, lora_mean) = (shown(c.mean), shown(l.mean));
    match (lost(&c), lost(&l)) {
        (false, false) => None,
        (true, true) => Some(format!(
            "Pictures became more alike among themselves under both: by {lora_mean} with plain LoRA, by {cat_mean} with CAT."
        )),
        (false, true) => Some(format!(
            "Plain LoRA's pictures became more alike among themselves (by {lora_mean}); CAT's did not clearly."
        )),
        (true, false) => Some(format!(
            "CAT's pictures became more alike among themselves (by {cat_mean}); plain LoRA's did not clearly."
        )),
    }
}

fn verdict(cat: Option<Score>, lora: Option<Score>) -> Option<Verdict> {
    Some(Verdict::between(&cat?, &lora?, Better::Higher))
}

/// What one adapter's scores show.
pub(super) fn summary(scores: &Scores) -> String {
    let kept = &scores.kps_no_token;
    let what_it_did = match fraction_kept(scores, kept) {
        0.95.. => "left pictures without the trigger almost as the base draws them",
        0.8..0.95 => "changed pictures without the trigger a little",
        0.5..0.8 => "plainly changed pictures without the trigger",
        _ => "made other pictures of those without the trigger",
    };
    let first = match scores.base_pair_similarity {
        Some(other) => format!(
            "This adapter {what_it_did}: {}, where 1 is unchanged and two different pictures of the base score {}.",
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
    use crate::scores::Generation;
    use crate::scores::{Counts, FORMAT, VERSION};

    fn score(mean: f64) -> Score {
        Score { mean, low: mean - 0.01, high: mean + 0.01, n: 20 }
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
            pictures: vec![],
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
        assert!(findings(&cat, &lora)[0].contains("a little more than CAT: 0.95 kept against 0.98"));
    }

    #[test]
    fn a_summary_judges_on_the_scale_of_the_base() {
        assert!(summary(&scores(0.99, 0.8)).contains("almost as the base draws them: 0.99"));
        assert!(summary(&scores(0.8, 0.8)).contains("plainly changed"));
        assert!(summary(&scores(0.6, 0.8)).contains("made other pictures"));
    }

    #[test]
    fn the_words_follow_the_numbers_when_cat_loses() {
        let (cat, lora) = (scores(0.80, 0.70), scores(0.90, 0.84));
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
        assert_eq!(headline(&cat, &lora), "CAT kept the base, but paid for it in style");
        assert!(findings(&cat, &lora).join(" ").contains("That has a price"));
    }

    #[test]
    fn equal_numbers_have_no_winner() {
        let both = scores(0.9, 0.8);
        assert_eq!(headline(&both, &both), "No clear winner this time");
        assert!(findings(&both, &both)[0].contains("may be chance"));
    }

    #[test]
    fn an_adapter_no_nearer_than_the_base_has_learned_little() {
        let (cat, lora) = (scores(0.99, 0.605), scores(0.9, 0.8));
        let findings = findings(&cat, &lora).join(" ");
        assert!(findings.contains("CAT's adapter is not clearly above it"), "{findings}");
        assert!(summary(&cat).contains("not clearly nearer"));
        assert!(summary(&lora).contains("clearly nearer to the references"));
    }
}
