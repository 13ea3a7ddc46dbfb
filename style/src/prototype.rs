//! Prototypes: what an artist's works have in common, as one or several directions.

use catelier_features::Feature;
use catelier_numerics::noise::{Noise, Stream};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::ModelId;
use crate::vectors::{dot, mean, norm, unit};

/// Entry of an adapter's metadata that holds the artist's prototypes.
pub const ADAPTER_ENTRY: &str = "catelier.style";

/// Version of that entry.
const ENTRY_VERSION: u32 = 1;

/// Longest entry that is read, in bytes.
const LONGEST_ENTRY: usize = 4 << 20;

/// Most rounds of clustering; few works settle after two or three.
const CLUSTERING_ROUNDS: usize = 20;

/// How far from 1 the length of a direction may be.
const LENGTH_TOLERANCE: f64 = 1e-3;

/// The mean of some works' directions: where it points, and how far they agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prototype {
    /// The direction, of length 1.
    pub direction: Feature,
    /// Number of works.
    pub count: u32,
    /// Length of the mean of the works' directions, from 0 (they cancel out) to 1 (they are equal).
    pub concentration: f32,
}

impl Prototype {
    /// The prototype of works, given by their directions.
    ///
    /// # Errors
    /// [`Error::NoWorks`]; [`Error::NoDirection`] if they cancel out.
    pub fn of(artist: &str, works: &[&Feature]) -> Result<Self> {
        if works.is_empty() {
            return Err(Error::NoWorks { artist: artist.to_owned() });
        }
        let mean = mean(works.iter().map(|work| work.as_slice()));
        Self::of_mean(artist, &mean, works.len() as u32)
    }

    fn of_mean(artist: &str, mean: &[f32], count: u32) -> Result<Self> {
        let direction = unit(mean, &format!("the works of `{artist}`"))?;
        Ok(Self { direction, count, concentration: norm(mean).min(1.0) as f32 })
    }

    /// The sum of the works' directions.
    pub(crate) fn sum(&self) -> impl Iterator<Item = f32> {
        let length = self.count as f32 * self.concentration;
        self.direction.iter().map(move |value| value * length)
    }

    /// The same without one of its works; `None` if that was the only one, or the others cancel out.
    pub(crate) fn without(&self, work: &Feature) -> Option<Feature> {
        let rest: Vec<f32> = self.sum().zip(work).map(|(sum, value)| sum - value).collect();
        if self.count < 2 { None } else { unit(&rest, "the other works").ok() }
    }

    /// The same with Gaussian noise on the mean before it is brought to length 1, of deviation `sigma * 2 / count` in every
    /// value: replacing one work moves the mean by `2 / count` at most.
    ///
    /// # Errors
    /// [`Error::Setting`] for a deviation that is negative or not finite; [`Error::NoDirection`].
    pub fn with_noise(&self, artist: &str, sigma: f64, seed: u64, number: u64) -> Result<Self> {
        if !sigma.is_finite() || sigma < 0.0 {
            return Err(Error::Setting { what: "noise", expected: "0 or more", found: sigma });
        }
        let deviation = sigma * 2.0 / f64::from(self.count);
        let noise = Noise::new(seed).normals(Stream("style.prototype"), 0, number, self.direction.len());
        let mean = self.direction.iter().map(|value| value * self.concentration);
        let noisy: Vec<f32> =
            mean.zip(noise).map(|(value, noise)| value + (f64::from(noise) * deviation) as f32).collect();
        Self::of_mean(artist, &noisy, self.count)
    }

    /// Refuses what no works can have: another width, a length that is not 1, a concentration outside of 0 to 1.
    ///
    /// # Errors
    /// [`Error::Prototype`].
    pub fn check(&self, artist: &str, width: usize) -> Result<()> {
        let length = norm(&self.direction);
        let reason = if self.direction.len() != width {
            format!("expected {width} values, found {}", self.direction.len())
        } else if (length - 1.0).abs() > LENGTH_TOLERANCE || !length.is_finite() {
            format!("expected a length of 1, found {length:.4}")
        } else if self.count == 0 {
            "it stands for no work".to_owned()
        } else if !(0.0..=1.0).contains(&self.concentration) {
            format!("expected a concentration from 0 to 1, found {}", self.concentration)
        } else {
            return Ok(());
        };
        Err(Error::Prototype { artist: artist.to_owned(), reason })
    }
}

/// An artist's works in at most `most` groups of like works, each with its prototype, and the group of every work.
///
/// The groups are those of spherical k-means, which starts from works far apart; nothing is drawn at random.
///
/// # Errors
/// As [`Prototype::of`]; [`Error::Setting`] for no group.
pub fn prototypes(artist: &str, works: &[Feature], most: usize) -> Result<(Vec<Prototype>, Vec<usize>)> {
    if most == 0 {
        return Err(Error::Setting { what: "prototypes", expected: "1 or more", found: 0.0 });
    }
    let of = |groups: &[usize], group: usize| {
        let members: Vec<&Feature> =
            works.iter().zip(groups).filter(|(_, own)| **own == group).map(|(work, _)| work).collect();
        Prototype::of(artist, &members)
    };
    let mut groups = vec![0; works.len()];
    let mut found = vec![of(&groups, 0)?];
    for _ in 1..most.min(works.len()) {
        let (farthest, alike) = farthest(works, &found, &groups);
        if alike > 1.0 - 1e-5 {
            break;
        }
        found.push(Prototype::of(artist, &[&works[farthest]])?);
        for _ in 0..CLUSTERING_ROUNDS {
            let next: Vec<usize> = works.iter().map(|work| nearest(work, &found)).collect();
            if next == groups {
                break;
            }
            groups = renumbered(&next);
            let count = groups.iter().max().map_or(0, |last| last + 1);
            found = (0..count).map(|group| of(&groups, group)).collect::<Result<_>>()?;
        }
    }
    Ok((found, groups))
}

/// The work least like its own prototype, and how alike they are.
fn farthest(works: &[Feature], found: &[Prototype], groups: &[usize]) -> (usize, f32) {
    let alike = works.iter().zip(groups).map(|(work, group)| dot(work, &found[*group].direction));
    alike.enumerate().fold((0, f32::INFINITY), |least, next| if next.1 < least.1 { next } else { least })
}

fn nearest(work: &Feature, found: &[Prototype]) -> usize {
    let alike = found.iter().map(|prototype| dot(work, &prototype.direction));
    alike.enumerate().fold((0, f32::NEG_INFINITY), |most, next| if next.1 > most.1 { next } else { most }).0
}

/// The same groups, numbered from 0 without gaps.
fn renumbered(groups: &[usize]) -> Vec<usize> {
    let mut used = groups.to_vec();
    used.sort_unstable();
    used.dedup();
    groups.iter().map(|group| used.binary_search(group).unwrap_or(0)).collect()
}

/// An artist's prototypes as an adapter's metadata has them, under [`ADAPTER_ENTRY`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StyleEntry {
    version: u32,
    /// The artist's name.
    pub artist: String,
    /// The style model that made the prototypes.
    pub model: ModelId,
    /// The prototypes.
    pub prototypes: Vec<Prototype>,
    /// Noise on the prototypes: see [`Prototype::with_noise`]; 0 for none.
    pub noise: f64,
}

impl StyleEntry {
    /// The entry of an artist.
    pub fn new(artist: impl Into<String>, model: ModelId, prototypes: Vec<Prototype>, noise: f64) -> Self {
        Self { version: ENTRY_VERSION, artist: artist.into(), model, prototypes, noise }
    }

    /// The entry as text.
    ///
    /// # Errors
    /// [`Error::Prototype`] for a value that is not finite, which JSON cannot hold.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| self.unusable(error.to_string()))
    }

    /// Reads an entry that somebody else wrote.
    ///
    /// # Errors
    /// [`Error::Prototype`] for text that is no such entry, is longer than 4 MiB or of a later version, and for a prototype
    /// that no works can have.
    pub fn from_text(text: &str) -> Result<Self> {
        let unusable = |reason: String| Error::Prototype { artist: "an adapter".to_owned(), reason };
        if text.len() > LONGEST_ENTRY {
            return Err(unusable(format!("expected at most {LONGEST_ENTRY} bytes, found {}", text.len())));
        }
        let entry: Self = serde_json::from_str(text).map_err(|error| unusable(error.to_string()))?;
        if entry.version != ENTRY_VERSION {
            return Err(unusable(format!("expected version {ENTRY_VERSION}, found {}", entry.version)));
        }
        let Some(first) = entry.prototypes.first() else { return Err(entry.unusable("there is none".to_owned())) };
        entry.prototypes.iter().try_for_each(|own| own.check(&entry.artist, first.direction.len()))?;
        Ok(entry)
    }

    fn unusable(&self, reason: String) -> Error {
        Error::Prototype { artist: self.artist.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use catelier_features::Extractor;

    use super::*;

    fn work(angle: f32) -> Feature {
        vec![angle.cos(), angle.sin()]
    }

    #[test]
    fn a_prototype_points_between_its_works_and_says_how_far_they_agree() {
        let (left, right) = (work(0.2), work(-0.2));
        let prototype = Prototype::of("ada", &[&left, &right]).unwrap();
        assert!((prototype.direction[0] - 1.0).abs() < 1e-6 && prototype.direction[1].abs() < 1e-6);
        assert!((prototype.concentration - 0.2f32.cos()).abs() < 1e-6);
        let without = prototype.without(&left).unwrap();
        assert!(without.iter().zip(&right).all(|(found, expected)| (found - expected).abs() < 1e-5), "{without:?}");
        assert!(Prototype::of("ada", &[&left]).unwrap().without(&left).is_none());
    }

    #[test]
    fn works_of_two_kinds_become_two_prototypes_and_no_more() {
        let works = [0.0, 0.05, 1.5, 1.45, 0.02].map(work);
        let (found, groups) = prototypes("ada", &works, 2).unwrap();
        assert_eq!(found.iter().map(|prototype| prototype.count).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(groups, [0, 0, 1, 1, 0]);
        let equal = [0.3, 0.3, 0.3].map(work);
        assert_eq!(prototypes("ada", &equal, 3).unwrap().0.len(), 1);
        assert!(prototypes("ada", &equal, 0).is_err());
        assert!(matches!(prototypes("ada", &[], 1), Err(Error::NoWorks { .. })));
    }

    #[test]
    fn noise_follows_from_the_seed_and_shrinks_with_the_number_of_works() {
        let far = |count: usize| {
            let works = vec![work(0.4); count];
            let prototype = Prototype::of("ada", &works.iter().collect::<Vec<_>>()).unwrap();
            let noisy = prototype.with_noise("ada", 0.5, 7, 0).unwrap();
            assert_eq!(noisy, prototype.with_noise("ada", 0.5, 7, 0).unwrap());
            assert_ne!(noisy, prototype.with_noise("ada", 0.5, 8, 0).unwrap());
            1.0 - dot(&noisy.direction, &prototype.direction)
        };
        assert!(far(100) < far(4), "{} {}", far(100), far(4));
        let one = Prototype::of("ada", &[&work(0.1)]).unwrap();
        assert_eq!(one.with_noise("ada", 0.0, 1, 0).unwrap().direction, one.direction);
        for sigma in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(one.with_noise("ada", sigma, 1, 0).is_err(), "{sigma}");
        }
    }

    #[test]
    fn a_poisoned_prototype_is_refused_with_what_is_wrong_with_it() {
        let good = Prototype { direction: work(0.3), count: 4, concentration: 0.9 };
        good.check("ada", 2).unwrap();
        let cases = [
            (Prototype { direction: vec![30.0, 0.0], ..good.clone() }, "length of 1"),
            (Prototype { direction: vec![f32::NAN, 0.0], ..good.clone() }, "length of 1"),
            (Prototype { direction: vec![0.0, 0.0], ..good.clone() }, "length of 1"),
            (Prototype { direction: vec![1.0], ..good.clone() }, "2 values"),
            (Prototype { count: 0, ..good.clone() }, "no work"),
            (Prototype { concentration: 7.0, ..good.clone() }, "concentration"),
            (Prototype { concentration: f32::NAN, ..good }, "concentration"),
        ];
        for (poisoned, reason) in cases {
            let error = poisoned.check("ada", 2).unwrap_err().to_string();
            assert!(error.contains("ada") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn an_entry_is_read_back_and_others_are_refused() {
        let model = ModelId { tower: Extractor { name: "tower".into(), sha256: "ab".into() }, head: None };
        let prototype = Prototype { direction: work(0.3), count: 4, concentration: 0.9 };
        let entry = StyleEntry::new("ada", model, vec![prototype], 0.0);
        let text = entry.to_text().unwrap();
        assert_eq!(StyleEntry::from_text(&text).unwrap(), entry);
        for wrong in ["", "{}", &text.replace("\"version\":1", "\"version\":2"), &text.replace("0.9", "9.0")] {
            assert!(StyleEntry::from_text(wrong).is_err(), "{wrong}");
        }
    }
}
