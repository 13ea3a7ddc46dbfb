//! Findings in plain words, computed from the scores; the texts cover every outcome.

use catelier_pages::number::two_decimals as shown;

use super::demo_page::DemoArtist;
use super::score_table::Verdict;
use super::{Run, list};
use crate::content::Facet;
use crate::metrics::Better;
use crate::score::Score;
use crate::scores::Scores;

/// What an adapter did, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Its images with the trigger are hardly nearer to the artist than the base's.
    HardlyLearned,
    /// They are, but what was asked for is not in them.
    LostContent,
    /// It is, but images that never asked for the style changed too.
    ChangedTheRest,
    /// The style, what was asked for, and the rest as it was.
    Learned,
}

/// Scaled scores below which a style is called hardly learned, the content lost, and the rest changed.
const LEARNED: f64 = 0.5;
const FOUND: f64 = 0.75;
const KEPT: f64 = 0.8;

impl Outcome {
    /// The first of the three scores that is too low; `None` where one was not computed.
    fn of(scores: &Scores) -> Option<Self> {
        let below = |scaled: Option<crate::Scaled>, least: f64| Some(scaled?.score.mean < least);
        Some(match (below(scores.style, LEARNED)?, below(scores.content, FOUND)?, below(scores.preservation, KEPT)?) {
            (true, ..) => Self::HardlyLearned,
            (_, true, _) => Self::LostContent,
            (.., true) => Self::ChangedTheRest,
            _ => Self::Learned,
        })
    }
}

/// The page's headline: the worst outcome of its run among the artists.
pub(super) fn headline(artists: &[DemoArtist<'_>]) -> String {
    let outcomes: Option<Vec<Outcome>> = artists.iter().map(|artist| Outcome::of(artist.run.scores)).collect();
    let worst = outcomes.and_then(|outcomes| outcomes.into_iter().zip(artists).min_by_key(|(outcome, _)| *outcome));
    let names = list(&artists.iter().map(|artist| artist.name.to_owned()).collect::<Vec<_>>());
    let Some((outcome, artist)) = worst else { return format!("What adapters of {names} draw") };
    let (run, name) = (artist.run.title(), artist.name);
    match outcome {
        Outcome::Learned => format!("{run} draws what is asked for in the style of {names}, and leaves the rest alone"),
        Outcome::ChangedTheRest => {
            format!("{run} learned the style of {name}, and changed images that never asked for it")
        }
        Outcome::LostContent => {
            format!("{run}\u{2019}s images in the style of {name} no longer show what was asked for")
        }
        Outcome::HardlyLearned => format!("{run} has hardly learned the style of {name}"),
    }
}

/// The findings about `run` and `baseline`, one sentence or two each, in the order of importance.
pub(super) fn findings(run: &Run<'_>, baseline: &Run<'_>) -> Vec<String> {
    let sentences = [
        style(run, baseline),
        hardly_learned(run, baseline),
        content(run, baseline),
        Some(preservation(run, baseline)),
        balance(run, baseline),
        worst_class(run, baseline),
        variety(run, baseline),
    ];
    sentences.into_iter().flatten().collect()
}

fn style(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let (score, of_baseline) = (run.scores.style?.score, baseline.scores.style?.score);
    let (r, b) = (shown(score.mean), shown(of_baseline.mean));
    let (name, other) = (run.name, baseline.name);
    Some(match Verdict::between(&score, &of_baseline, Better::Higher) {
        Verdict::First => format!("With the trigger, {name} came nearer to the artist: {r} against {b} with {other}."),
        Verdict::Second => {
            format!("With the trigger, {name} came less near to the artist than {other}: {r} against {b}.")
        }
        Verdict::TooClose => {
            format!("With the trigger both came about equally near to the artist ({name} {r}, {other} {b}).")
        }
    })
}

/// A warning if an adapter is not clearly nearer to the artist than the base.
fn hardly_learned(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let unlearned = |run: &Run<'_>| run.scores.style.is_some_and(|style| style.score.mean < LEARNED);
    let who = match (unlearned(run), unlearned(baseline)) {
        (false, false) => return None,
        (true, true) => "Neither adapter has".to_owned(),
        (true, false) => format!("{} has not", run.title()),
        (false, true) => format!("{} has not", baseline.title()),
    };
    Some(format!("Careful: {who} come half the way from the base to the artist. Train longer, or with a higher rank."))
}

/// What is found of the prompts in images with the trigger.
fn content(run: &Run<'_>, baseline: &Run<'_>) -> Option<String> {
    let found = |run: &Run<'_>| {
        let found = run.scores.facets.iter().filter_map(|facet| Some(in_percent(facet, facet.with_trigger?)));
        let found: Vec<String> = found.collect();
        (!found.is_empty()).then(|| list(&found))
    };
    let verdict = Verdict::between(&run.scores.content?.score, &baseline.scores.content?.score, Better::Higher);
    let (name, other) = (run.name, baseline.name);
    let compared = match verdict {
        Verdict::First => format!("clearly more than {other} ({})", found(baseline)?),
        Verdict::Second => format!("clearly less than {other} ({})", found(baseline)?),
        Verdict::TooClose => format!("{other} {}", found(baseline)?),
    };
    Some(format!("With the trigger, {name}\u{2019}s images show the {}; {compared}.", found(run)?))
}

/// `object in 96 %`.
fn in_percent(facet: &Facet, share: f64) -> String {
    format!("{} in {:.0} %", facet.name, 100.0 * share)
}

fn preservation(run: &Run<'_>, baseline: &Run<'_>) -> String {
    let (kept, of_baseline) = (kept(run.scores), kept(baseline.scores));
    let (r, b) = (shown(kept.mean), shown(of_baseline.mean));
    let ((title, name), (baseline_title, baseline)) = ((run.title(), run.name), (baseline.title(), baseline.name));
    match Verdict::between(&kept, &of_baseline, Better::Higher) {
        Verdict::First if kept.mean - of_baseline.mean < SMALL_GAP => format!(
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

/// A difference in what was kept below which a change is called little.
const SMALL_GAP: f64 = 0.1;

/// The share of the base that was kept: scaled where there are two pairs, as measured otherwise.
fn kept(scores: &Scores) -> Score {
    scores.preservation.map_or(scores.kps_no_token, |scaled| scaled.score)
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

/// The scores of one adapter in a few sentences.
pub(super) fn summary(scores: &Scores) -> String {
    let sentences = [style_in_words(scores), content_in_words(scores), Some(kept_in_words(scores))];
    sentences.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn style_in_words(scores: &Scores) -> Option<String> {
    let style = scores.style?.score.mean;
    let words = match style {
        0.8.. => "draws in the artist's hand",
        LEARNED..0.8 => "comes near to the artist's hand",
        _ => "has hardly learned the artist's hand",
    };
    Some(format!(
        "With the trigger this adapter {words}: {}, where 0 is the base and 1 the artist's own images.",
        shown(style)
    ))
}

fn content_in_words(scores: &Scores) -> Option<String> {
    let content = scores.content?.score.mean;
    let words = match content {
        0.9.. => "What was asked for is there",
        FOUND..0.9 => "What was asked for is mostly there",
        _ => "What was asked for is often not there",
    };
    let found = scores.facets.iter().filter_map(|facet| Some(in_percent(facet, facet.with_trigger?)));
    Some(format!("{words}: {} of what the base shows ({}).", shown(content), list(&found.collect::<Vec<_>>())))
}

fn kept_in_words(scores: &Scores) -> String {
    let kept = kept(scores).mean;
    let what_it_did = match kept {
        0.95.. => "left images without the trigger almost as the base draws them",
        KEPT..0.95 => "changed images without the trigger a little",
        LEARNED..KEPT => "plainly changed images without the trigger",
        _ => "made other images of prompts without the trigger",
    };
    format!("It {what_it_did}: {}, where 1 is unchanged and 0 another image of the base.", shown(kept))
}

#[cfg(test)]
mod tests {
    use catelier_features::Extractor;

    use super::*;
    use crate::report::TrainingCurves;
    use crate::scores::{Counts, FORMAT, Generation, VERSION};
    use crate::{Scaled, kps};

    fn score(mean: f64) -> Score {
        Score { mean, low: mean - 0.01, high: mean + 0.01, n: 20 }
    }

    fn run<'a>(name: &'a str, scores: &'a Scores) -> Run<'a> {
        Run { name, method: "", scores, curves: TrainingCurves::default(), seconds: 0.0 }
    }

    fn scores(style: f64, content: f64, kept: f64) -> Scores {
        let scaled = |mean| Scaled::between(score(mean), 0.0, 1.0);
        Scores {
            format: FORMAT.to_owned(),
            version: VERSION,
            style: scaled(style),
            content: scaled(content),
            preservation: scaled(kept),
            kps_joint: Some(kps::kps_joint(&score(style), &score(content), &score(kept))),
            content_no_token: scaled(1.0),
            artist_found: None,
            nearest_other: None,
            kps_no_token: score(0.5 + kept / 2.0),
            identity: Some(score(0.8)),
            prompt_similarity: score(0.3),
            base_identity: Some(score(0.6)),
            base_pair_similarity: Some(score(0.5)),
            base_prompt_similarity: score(0.3),
            class_collapse: Some(score(0.0)),
            facets: vec![Facet {
                name: "object".into(),
                base: 1.0,
                without_trigger: 1.0,
                with_trigger: Some(content),
                references: None,
            }],
            kinds: vec![],
            classes: kps::by_group(&[Some("boat")], &[0.5 + kept / 2.0], 0).unwrap(),
            images: vec![],
            counts: Counts { without_trigger: 20, with_trigger: 20, references: 10 },
            seeds: vec![1, 2],
            bootstrap_seed: 0,
            extractor: Extractor { name: "test".into(), sha256: "00".into() },
            style_extractor: None,
            generation: Generation::default(),
        }
    }

    /// The headline of two artists whose runs have these scores.
    fn headline_of(first: &Scores, second: &Scores) -> String {
        let artist = |name, scores| DemoArtist {
            name,
            description: "",
            images: vec![],
            prompts: vec![],
            run: run("CAT", scores),
            baseline: run("plain LoRA", scores),
            more: vec![],
            trade_off: vec![],
        };
        headline(&[artist("wash", first), artist("neon", second)])
    }

    #[test]
    fn the_headline_tells_the_worst_that_happened_to_any_artist() {
        let good = scores(0.9, 0.95, 0.95);
        assert_eq!(
            headline_of(&good, &good),
            "CAT draws what is asked for in the style of wash and neon, and leaves the rest alone"
        );
        assert!(headline_of(&good, &scores(0.9, 0.95, 0.6)).contains("neon, and changed images that never asked"));
        assert!(headline_of(&scores(0.9, 0.5, 0.6), &good).contains("style of wash no longer show what was asked for"));
        assert!(
            headline_of(&scores(0.9, 0.5, 0.9), &scores(0.2, 0.9, 0.9)).contains("hardly learned the style of neon")
        );
        let unscored = Scores { style: None, ..good.clone() };
        assert_eq!(headline_of(&good, &unscored), "What adapters of wash and neon draw");
    }

    #[test]
    fn smudges_in_the_right_colours_are_not_called_a_learned_style() {
        assert!(!headline_of(&scores(0.95, 0.3, 0.95), &scores(0.95, 0.95, 0.95)).contains("draws what is asked for"));
        assert!(summary(&scores(0.95, 0.3, 0.95)).contains("What was asked for is often not there"));
    }

    #[test]
    fn the_words_follow_the_numbers_when_cat_wins() {
        let (cat, lora) = (scores(0.84, 0.95, 0.95), scores(0.84, 0.95, 0.7));
        let (cat, lora) = (run("CAT", &cat), run("plain LoRA", &lora));
        let findings = findings(&cat, &lora).join(" ");
        assert!(findings.contains("never asked for the style: 0.70 kept against 0.95"), "{findings}");
        assert!(findings.contains("equally near to the artist"), "{findings}");
        assert!(findings.contains("show the object in 95 %; plain LoRA object in 95 %"), "{findings}");
        assert!(findings.contains("CAT is ahead"), "{findings}");
        assert!(findings.contains("\u{201c}boat\u{201d}: 0.85 kept with plain LoRA, 0.97 with CAT"), "{findings}");
    }

    #[test]
    fn a_small_difference_is_called_small() {
        let (cat, lora) = (scores(0.84, 0.9, 0.98), scores(0.84, 0.9, 0.93));
        let findings = findings(&run("CAT", &cat), &run("plain LoRA", &lora)).join(" ");
        assert!(findings.contains("a little more than CAT: 0.93 kept against 0.98"), "{findings}");
    }

    #[test]
    fn a_summary_judges_all_three() {
        let words = summary(&scores(0.9, 0.95, 0.99));
        assert!(words.contains("in the artist's hand: 0.90"), "{words}");
        assert!(words.contains("almost as the base draws them: 0.99"), "{words}");
        assert!(summary(&scores(0.6, 0.8, 0.7)).contains("plainly changed"));
        assert!(summary(&scores(0.2, 0.8, 0.2)).contains("made other images"));
        assert!(summary(&scores(0.2, 0.8, 0.2)).contains("hardly learned"));
    }

    #[test]
    fn the_words_follow_the_numbers_when_cat_loses() {
        let (cat, lora) = (scores(0.6, 0.7, 0.7), scores(0.9, 0.95, 0.9));
        let findings = findings(&run("CAT", &cat), &run("plain LoRA", &lora)).join(" ");
        assert!(
            findings.contains("CAT did not protect the base better here: it kept 0.70, plain LoRA 0.90"),
            "{findings}"
        );
        assert!(findings.contains("CAT came less near to the artist than plain LoRA: 0.60 against 0.90"), "{findings}");
        assert!(findings.contains("clearly less than plain LoRA (object in 95 %)"), "{findings}");
        assert!(findings.contains("plain LoRA is ahead"), "{findings}");
    }

    #[test]
    fn equal_numbers_have_no_winner() {
        let both = scores(0.9, 0.9, 0.8);
        let both = run("CAT", &both);
        assert!(findings(&both, &both).join(" ").contains("may be chance"));
    }

    #[test]
    fn an_adapter_near_the_base_has_hardly_learned() {
        let (cat, lora) = (scores(0.3, 0.95, 0.99), scores(0.9, 0.95, 0.9));
        let findings = findings(&run("CAT", &cat), &run("plain LoRA", &lora)).join(" ");
        assert!(findings.contains("Careful: CAT has not come half the way"), "{findings}");
    }
}
