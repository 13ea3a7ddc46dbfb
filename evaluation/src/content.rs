//! Whether an image shows what its prompt asked for: the model that compares images and texts has to choose the prompt among
//! other texts (zero-shot classification, Radford et al. 2021, arXiv 2103.00020, section 3.1).

use std::collections::BTreeMap;

use catelier_features::Feature;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::scaled::Scaled;
use crate::score::{Score, mean};
use crate::similarity::cosine;

/// What a text says in each facet: `[Some("boat"), Some("red"), None]` for `a red boat`.
pub type Said = Vec<Option<String>>;

/// The texts that the model chooses from, and what the prompts ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// Names of what is compared, such as `object`, `colour` and `setting`.
    pub facets: Vec<String>,
    /// The texts, each with what it says.
    pub texts: Vec<(String, Said)>,
    /// What prompts ask for, by prompt; images of other prompts are left out.
    pub asked: BTreeMap<String, Said>,
}

impl Choices {
    /// Every prompt against all other prompts, where nothing is known of what they say.
    #[must_use]
    pub fn among<'p>(prompts: impl IntoIterator<Item = &'p str>) -> Self {
        let asked: BTreeMap<String, Said> =
            prompts.into_iter().map(|prompt| (prompt.to_owned(), vec![Some(prompt.to_owned())])).collect();
        Self { facets: vec!["prompt".to_owned()], texts: asked.clone().into_iter().collect(), asked }
    }

    /// Which facets of its prompt an image shows: those in which the nearest text says the same. `None` where the prompt did not
    /// ask for a facet; an empty list for a prompt that asks for nothing.
    fn shown(&self, prompt: &str, image: &Feature, texts: &[Feature]) -> Result<Vec<Option<bool>>> {
        let Some(asked) = self.asked.get(prompt) else { return Ok(Vec::new()) };
        let cosines = texts.iter().map(|text| cosine(image, text)).collect::<Result<Vec<_>>>()?;
        let nearest = cosines.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
        let Some((_, said)) = nearest.and_then(|(index, _)| self.texts.get(index)) else { return Ok(Vec::new()) };
        Ok(asked
            .iter()
            .zip(said)
            .map(|(asked, said)| asked.as_ref().map(|asked| Some(asked) == said.as_ref()))
            .collect())
    }

    /// The share of the facets of `prompt` that a text taken at random shows.
    fn chance(&self, prompt: &str) -> Option<f64> {
        let asked =
            self.asked.get(prompt)?.iter().enumerate().filter_map(|(facet, wanted)| Some((facet, wanted.as_ref()?)));
        let shares: Vec<f64> = asked.map(|(facet, wanted)| self.share_that_says(facet, wanted)).collect();
        (!shares.is_empty()).then(|| mean(&shares))
    }

    fn share_that_says(&self, facet: usize, wanted: &str) -> f64 {
        let texts = self.texts.iter().filter(|(_, said)| said[facet].as_deref() == Some(wanted));
        texts.count() as f64 / self.texts.len() as f64
    }
}

/// What is found of the prompts in one sort of images.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// For each image of a prompt that asks for something, the share of its facets that it shows.
    shares: Vec<f64>,
    /// The same of a random choice.
    chances: Vec<f64>,
    /// For each facet, the share of images that show it among those whose prompt asked for it.
    facets: Vec<Option<f64>>,
}

impl Found {
    /// Looks for the prompts of images, given the features of the images and of [`Choices::texts`].
    pub(crate) fn look(choices: &Choices, prompts: &[&str], images: &[Feature], texts: &[Feature]) -> Result<Self> {
        let mut found = Self { shares: Vec::new(), chances: Vec::new(), facets: Vec::new() };
        let mut by_facet = vec![Vec::new(); choices.facets.len()];
        for (prompt, image) in prompts.iter().zip(images) {
            let shown = choices.shown(prompt, image, texts)?;
            let asked: Vec<f64> = shown.iter().flatten().map(|shown| f64::from(u8::from(*shown))).collect();
            let (Some(chance), false) = (choices.chance(prompt), asked.is_empty()) else { continue };
            found.shares.push(mean(&asked));
            found.chances.push(chance);
            for (all, one) in by_facet.iter_mut().zip(shown) {
                all.extend(one.map(|shown| f64::from(u8::from(shown))));
            }
        }
        found.facets = by_facet.iter().map(|shown| (!shown.is_empty()).then(|| mean(shown))).collect();
        Ok(found)
    }

    /// The mean share, if any image's prompt asked for something.
    pub(crate) fn score(&self, seed: u64) -> Result<Option<Score>> {
        if self.shares.is_empty() {
            return Ok(None);
        }
        Score::arithmetic("content", &self.shares, seed).map(Some)
    }

    /// The score on the scale from chance to `ceiling`.
    pub(crate) fn scaled(&self, ceiling: f64, seed: u64) -> Result<Option<Scaled>> {
        let score = self.score(seed)?;
        Ok(score.and_then(|score| Scaled::between(score, mean(&self.chances), ceiling)))
    }

    /// The mean share without its interval.
    pub(crate) fn mean(&self) -> Option<f64> {
        (!self.shares.is_empty()).then(|| mean(&self.shares))
    }
}

/// In how many images one facet of the prompts is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facet {
    /// Its name.
    pub name: String,
    /// Share of the base's images that show it, of those whose prompt asks for it.
    pub base: f64,
    /// The same of adapted images without the trigger.
    pub without_trigger: f64,
    /// The same of images with the trigger; `None` where there are none.
    pub with_trigger: Option<f64>,
    /// The same of the artist's images and their captions; `None` where there are none.
    pub references: Option<f64>,
}

impl Facet {
    /// The facets that any prompt asked for.
    pub(crate) fn all(choices: &Choices, [base, without, with, references]: [&Found; 4]) -> Vec<Self> {
        let facets = choices.facets.iter().enumerate();
        let facet = |(index, name): (usize, &String)| {
            Some(Self {
                name: name.clone(),
                base: base.facets[index]?,
                without_trigger: without.facets[index]?,
                with_trigger: with.facets[index],
                references: references.facets[index],
            })
        };
        facets.filter_map(facet).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Colours by axis, two objects that share them.
    fn choices() -> Choices {
        let said = |object: &str, colour: &str| vec![Some(object.to_owned()), Some(colour.to_owned())];
        let texts = [("a red house", "house", "red"), ("a blue house", "house", "blue"), ("a red boat", "boat", "red")];
        let texts: Vec<(String, Said)> =
            texts.iter().map(|(text, object, colour)| ((*text).to_owned(), said(object, colour))).collect();
        let mut asked: BTreeMap<String, Said> = texts.iter().cloned().collect();
        asked.insert("a house".to_owned(), vec![Some("house".to_owned()), None]);
        asked.insert("anything".to_owned(), vec![None, None]);
        Choices { facets: vec!["object".to_owned(), "colour".to_owned()], texts, asked }
    }

    const TEXTS: [[f32; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

    fn look(prompts: &[&str], nearest: &[usize]) -> Found {
        let texts = TEXTS.map(|text| text.to_vec());
        let images: Vec<Feature> = nearest.iter().map(|index| texts[*index].clone()).collect();
        Found::look(&choices(), prompts, &images, &texts).unwrap()
    }

    #[test]
    fn facets_are_found_one_by_one() {
        let found = look(&["a red house", "a red house", "a red house"], &[0, 1, 2]);
        assert_eq!(found.shares, [1.0, 0.5, 0.5]);
        assert_eq!(found.facets, [Some(2.0 / 3.0), Some(2.0 / 3.0)]);
    }

    #[test]
    fn only_what_was_asked_for_counts() {
        let found = look(&["a house", "anything", "unheard of"], &[1, 1, 1]);
        assert_eq!((found.shares, found.chances), (vec![1.0], vec![2.0 / 3.0]));
        assert_eq!(found.facets, [Some(1.0), None]);
    }

    #[test]
    fn chance_is_zero_on_the_scale_and_the_base_is_one() {
        let (base, chance) = (look(&["a red house"], &[0]), 2.0 / 3.0);
        let scaled = base.scaled(base.mean().unwrap(), 0).unwrap().unwrap();
        assert_eq!((scaled.score.mean, scaled.floor, scaled.ceiling), (1.0, chance, 1.0));
        let half = look(&["a red house"], &[1]).scaled(1.0, 0).unwrap().unwrap();
        assert_eq!(half.score.mean, 0.0);
    }

    #[test]
    fn prompts_of_which_nothing_is_known_are_told_from_each_other() {
        let choices = Choices::among(["a", "b", "a"]);
        assert_eq!(choices.texts.len(), 2);
        assert_eq!(choices.chance("b"), Some(0.5));
        assert_eq!(choices.chance("c"), None);
    }
}
