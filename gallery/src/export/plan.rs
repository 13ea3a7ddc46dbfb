//! The order of an export: each image's subject, style and seed.

use super::{Entry, Request, Source};
use crate::family::RandomStyle;
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::Scene;
use crate::styles::Artist;
use crate::textures::texture;
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// Name of the random stream that images take their seeds from: another name would draw other images.
const IMAGES: &str = "picture";

/// Name of the random stream that random styles take their seeds from.
const STYLES: &str = "styles";

/// One image to be painted.
pub(super) struct Job {
    pub(super) index: usize,
    seed: u64,
    triple: Triple,
    hand: Hand,
}

/// What paints an image.
#[derive(Clone, Copy)]
enum Hand {
    House,
    Artist(&'static Artist),
    /// A random style: its number in the family, and its seed.
    Random(usize, u64),
    Texture,
}

impl Hand {
    /// Whose turn it is at the image of this index, in an export with this seed.
    fn at(index: usize, source: Source, seed: u64) -> Self {
        match source {
            Source::House => Self::House,
            Source::Artist(artist) => Self::Artist(artist),
            Source::MixedArtists => Self::Artist(&Artist::all()[index % Artist::all().len()]),
            Source::Family { styles } => {
                let number = index % styles.max(1);
                Self::Random(number, Rng::at(seed, STYLES, number as u64).seed())
            }
            Source::Textures => Self::Texture,
        }
    }
}

impl Job {
    fn new(index: usize, source: Source, seed: u64, triple: Triple) -> Self {
        let hand = Hand::at(index, source, seed);
        Self { index, seed: Rng::at(seed, IMAGES, index as u64).seed(), triple, hand }
    }

    /// What the image shows; a texture shows nothing.
    fn subject(&self) -> Option<Triple> {
        (!matches!(self.hand, Hand::Texture)).then_some(self.triple)
    }

    pub(super) fn paint(&self, side: usize) -> Image {
        let scene = || Scene::draw(self.triple, self.seed);
        let full = match self.hand {
            Hand::House => scene().render(),
            Hand::Artist(artist) => artist.redraw(&scene()),
            Hand::Random(_, style) => RandomStyle::draw(style).redraw_at(&scene(), side),
            Hand::Texture => texture(self.seed),
        };
        full.reduced(side)
    }

    pub(super) fn entry(&self) -> Entry {
        let (number, style) = match self.hand {
            Hand::Random(number, seed) => (Some(number), Some(RandomStyle::draw(seed))),
            _ => (None, None),
        };
        let subject = self.subject();
        let caption = |triple| style.as_ref().map_or_else(|| Triple::caption(triple), |style| style.caption(triple));
        Entry {
            index: self.index,
            text: subject.map(caption).unwrap_or_default(),
            object: subject.map(|triple| triple.object),
            colour: subject.map(|triple| triple.colour),
            setting: subject.map(|triple| triple.setting),
            artist: match self.hand {
                Hand::House => "house",
                Hand::Artist(artist) => artist.name,
                Hand::Random(..) => "family",
                Hand::Texture => "texture",
            },
            style: number,
            style_words: style.as_ref().map(RandomStyle::words),
            held_out: subject.is_some_and(Triple::held_out),
        }
    }
}

/// Every image's subject, style and seed.
///
/// Subjects come in rounds: each round holds every triple of the split once, shuffled.
pub(super) fn rounds(request: &Request) -> Vec<Job> {
    let mut round: Vec<Triple> = Triple::all().filter(|&triple| request.split.contains(triple)).collect();
    let mut order = Rng::new(request.seed, "order");
    (0..request.count)
        .map(|index| {
            let place = index % round.len();
            if place == 0 {
                order.shuffle(&mut round);
            }
            Job::new(index, request.source, request.seed, round[place])
        })
        .collect()
}

/// Images whose objects, colours and settings take turns, each list in a random order of its own.
pub(super) fn in_turns(source: Source, count: usize, seed: u64) -> Vec<Job> {
    let mut objects = Shuffled::new(Object::ALL, Rng::new(seed, "objects"));
    let mut colours = Shuffled::new(Colour::ALL, Rng::new(seed, "colours"));
    let mut settings = Shuffled::new(Setting::ALL, Rng::new(seed, "settings"));
    (0..count)
        .map(|index| {
            let object = objects.next_word();
            let triple = Triple { object, colour: colours.next_word(), setting: settings.next_word() };
            Job::new(index, source, seed, triple)
        })
        .collect()
}

/// An endless list in random order: after the last word, the words are shuffled again.
struct Shuffled<T> {
    words: Vec<T>,
    next: usize,
    rng: Rng,
}

impl<T: Copy> Shuffled<T> {
    fn new(words: &[T], rng: Rng) -> Self {
        Self { words: words.to_vec(), next: 0, rng }
    }

    fn next_word(&mut self) -> T {
        let place = self.next % self.words.len();
        if place == 0 {
            self.rng.shuffle(&mut self.words);
        }
        self.next += 1;
        self.words[place]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Split;
    use super::*;

    #[test]
    fn ten_images_show_every_object() {
        for seed in 0..5 {
            let mut objects: Vec<_> = in_turns(Source::Artist(&Artist::all()[0]), 10, seed)
                .iter()
                .map(|job| job.subject().map(|s| s.object))
                .collect();
            objects.sort();
            assert_eq!(objects, Object::ALL.iter().copied().map(Some).collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn a_round_shows_every_triple_of_its_split_once() {
        for (split, size) in [(Split::Train, 360), (Split::HeldOut, 40), (Split::All, 400)] {
            let request = Request { source: Source::House, split, count: size, seed: 8, side: 64 };
            let mut subjects: Vec<_> = rounds(&request).iter().map(Job::subject).collect();
            subjects.sort();
            subjects.dedup();
            assert_eq!(subjects.len(), size, "{split:?}");
            assert!(subjects.iter().flatten().all(|&triple| split.contains(triple)));
        }
    }
}
