//! What an attacker draws: with which adapters, and for which prompts.

use catelier_adapters::{Adapter, AdapterSet};
use catelier_gallery::Triple;
use catelier_numerics::noise::{Noise, Stream};
use catelier_prompts::Trigger;
use serde::Serialize;

use super::AuditRequest;
use super::played::{Attacker, Played, Victim};
use crate::error::{Context, Result};

const CAPTIONS: Stream = Stream("audit/captions");

/// The rounds whose global adapters an artist is handed; the last one always is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandedOut {
    /// `every round`, `every 2nd round` or `the last`.
    pub(super) name: String,
    /// The rounds, from 1, ascending.
    pub(super) rounds: Vec<usize>,
}

/// What an attacker knows besides adapters and the plan. Each level has what the levels before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knows {
    /// Nothing: it draws captions of the drawn world and the empty prompt.
    Nothing,
    /// The victim's trigger: it also draws the trigger alone, and captions with it.
    Trigger,
    /// The captions of the training images too: the worst case, beyond what a federation tells.
    Captions,
}

/// Prompts of one kind.
pub(super) struct Prompts {
    /// The least that must be known to draw them.
    pub(super) needs: Knows,
    pub(super) texts: Vec<String>,
    pub(super) seeds: Vec<u64>,
}

/// What an attacker draws with: `late + strength (late - early)`, of what it makes of two rounds.
pub(super) struct Extrapolated {
    /// The early round; `None` is the base, before the first.
    pub(super) early: Option<usize>,
    pub(super) strength: f64,
    pub(super) adapters: AdapterSet,
}

impl HandedOut {
    /// Every round, every `every`th counted back from the last, and the last alone; each where it differs from the others.
    pub(super) fn all(rounds: usize, every: usize) -> Vec<Self> {
        let of = |step: usize| (1..=rounds).rev().step_by(step.max(1)).collect::<Vec<_>>().into_iter().rev().collect();
        let ordinal = if every == 2 { "2nd".to_owned() } else { format!("{every}th") };
        let (all, some, last): (Vec<usize>, Vec<usize>, _) = (of(1), of(every), vec![rounds]);
        let others = [(format!("every {ordinal} round"), some), ("the last".to_owned(), last.clone())];
        let is_new = |(name, rounds): &(String, Vec<usize>)| *rounds != all && (name == "the last" || *rounds != last);
        let others: Vec<_> = others.into_iter().filter(is_new).collect();
        let all = std::iter::once(("every round".to_owned(), all)).chain(others);
        all.map(|(name, rounds)| Self { name, rounds }).collect()
    }

    /// The round whose difference to the last is attacked: the first that was handed out; the base counts as a round too.
    fn early(&self) -> Option<usize> {
        self.rounds.first().copied().filter(|_| self.rounds.len() > 1)
    }

    /// Whether an attacker who was handed these rounds has the difference of the last one to `early`.
    pub(super) fn allows(&self, early: Option<usize>) -> bool {
        early.is_none_or(|early| self.rounds.contains(&early))
    }
}

impl Knows {
    pub(super) const ALL: [Self; 3] = [Self::Nothing, Self::Trigger, Self::Captions];
}

/// The adapters to draw with: the last round's as it is, and every strength beyond it from the base and from each early round.
/// Empty where the victim contributed nothing to the last round.
pub(super) fn extrapolations(
    played: &Played,
    attacker: &Attacker,
    victim: &Victim,
    handed_out: &[HandedOut],
    strengths: &[f64],
) -> Result<Vec<Extrapolated>> {
    let exposed = |round| played.exposed(attacker, &victim.artist, round);
    let Some(late) = exposed(played.rounds())? else { return Ok(Vec::new()) };
    let mut all = vec![extrapolated(&late, None, 0.0)];
    all.extend(strengths.iter().map(|strength| extrapolated(&late, None, *strength)));
    let mut rounds: Vec<usize> = handed_out.iter().filter_map(HandedOut::early).collect();
    rounds.dedup();
    for round in rounds {
        let Some(early) = exposed(round)? else { continue };
        all.extend(strengths.iter().map(|strength| extrapolated(&late, Some((round, &early)), *strength)));
    }
    Ok(all)
}

/// `(1 + strength) late - strength early`.
fn extrapolated(late: &Adapter, early: Option<(usize, &Adapter)>, strength: f64) -> Extrapolated {
    let mut adapters = AdapterSet::single(late, 1.0 + strength);
    if let Some((_, early)) = early {
        adapters.push(early, -strength);
    }
    Extrapolated { early: early.map(|(round, _)| round), strength, adapters }
}

/// The prompts to draw for a victim, `images` of each kind.
///
/// # Errors
/// [`Error::Failed`](crate::Error::Failed) for a trigger that is none.
pub(super) fn prompts(victim: &Victim, request: &AuditRequest) -> Result<Vec<Prompts>> {
    let trigger = Trigger::new(&victim.trigger).failed("cannot use the trigger")?;
    let with_trigger = |captions: &[String]| -> Vec<String> {
        captions.iter().map(|caption| trigger.insert(caption).caption).collect()
    };
    let (count, world) = (request.images, captions_of_the_world(request.images, request.seed));
    let own: Vec<String> = victim.captions.iter().cycle().take(count.max(victim.captions.len())).cloned().collect();
    let kinds = [
        (Knows::Nothing, world.clone()),
        (Knows::Nothing, vec![String::new(); count]),
        (Knows::Trigger, with_trigger(&world)),
        (Knows::Trigger, vec![trigger.word().to_owned(); count]),
        (Knows::Captions, with_trigger(&own)),
    ];
    let with_seeds = |(needs, texts): (Knows, Vec<String>)| {
        let seeds = (0..texts.len() as u64).map(|number| request.seed + number).collect();
        Prompts { needs, texts, seeds }
    };
    Ok(kinds.into_iter().map(with_seeds).collect())
}

/// Captions of the drawn world in an order of their own for every seed.
fn captions_of_the_world(count: usize, seed: u64) -> Vec<String> {
    let triples: Vec<Triple> = Triple::all().collect();
    let lots = Noise::new(seed).uniforms(CAPTIONS, 0, 0, triples.len());
    let mut order: Vec<usize> = (0..triples.len()).collect();
    order.sort_by(|left, right| lots[*left].total_cmp(&lots[*right]));
    order.into_iter().cycle().take(count).map(|place| triples[place].caption()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_back_from_the_last_one() {
        let rounds = |rounds, every| -> Vec<_> {
            HandedOut::all(rounds, every).into_iter().map(|handed_out| handed_out.rounds).collect()
        };
        assert_eq!(rounds(4, 2), [vec![1, 2, 3, 4], vec![2, 4], vec![4]]);
        assert_eq!(rounds(5, 3), [vec![1, 2, 3, 4, 5], vec![2, 5], vec![5]]);
        assert_eq!(rounds(1, 2), [vec![1]]);
        assert_eq!(rounds(2, 2), [vec![1, 2], vec![2]]);
        assert_eq!(HandedOut::all(2, 2)[1].name, "the last");
    }

    #[test]
    fn an_early_round_is_the_first_that_was_handed_out_and_the_last_is_none() {
        let early: Vec<_> = HandedOut::all(4, 2).iter().map(HandedOut::early).collect();
        assert_eq!(early, [Some(1), Some(2), None]);
    }

    #[test]
    fn captions_are_many_different_ones_and_a_function_of_the_seed() {
        let captions = captions_of_the_world(50, 1);
        assert_eq!(captions, captions_of_the_world(50, 1));
        assert_ne!(captions, captions_of_the_world(50, 2));
        let distinct: std::collections::BTreeSet<_> = captions.iter().collect();
        assert_eq!(distinct.len(), 50);
    }
}
