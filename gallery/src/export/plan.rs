//! The order of an export: each image's subject, style and seed.

use super::{Entry, Request, Source};
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::Scene;
use crate::styles::Artist;
use crate::textures::texture;
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// Name of the random stream that images take their seeds from: another name would draw other images.
const IMAGES: &str = "picture";

/// One image to be painted: a scene in the house style or by an artist, or a texture.
pub(super) struct Job {
    pub(super) index: usize,
    seed: u64,
    subject: Option<Triple>,
    artist: Option<&'static Artist>,
}

impl Job {
    pub(super) fn paint(&self, side: usize) -> Image {
        let full = match (self.subject, self.artist) {
            (Some(triple), Some(artist)) => artist.draw(triple, self.seed),
            (Some(triple), None) => Scene::draw(triple, self.seed).render(),
            (None, _) => texture(self.seed),
        };
        full.reduced(side)
    }

    pub(super) fn entry(&self) -> Entry {
        Entry {
            index: self.index,
            text: self.subject.map(Triple::caption).unwrap_or_default(),
            object: self.subject.map(|triple| triple.object),
            colour: self.subject.map(|triple| triple.colour),
            setting: self.subject.map(|triple| triple.setting),
            artist: match (self.subject, self.artist) {
                (_, Some(artist)) => artist.name,
                (Some(_), None) => "house",
                (None, None) => "texture",
            },
            held_out: self.subject.is_some_and(Triple::held_out),
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
            let seed = Rng::at(request.seed, IMAGES, index as u64).seed();
            let (subject, artist) = match request.source {
                Source::House => (Some(round[place]), None),
                Source::Artist(artist) => (Some(round[place]), Some(artist)),
                Source::MixedArtists => (Some(round[place]), Artist::all().get(index % Artist::all().len())),
                Source::Textures => (None, None),
            };
            Job { index, seed, subject, artist }
        })
        .collect()
}

/// Images whose objects, colours and settings take turns, each list in a random order of its own.
pub(super) fn in_turns(artist: Option<&'static Artist>, count: usize, seed: u64) -> Vec<Job> {
    let mut objects = Shuffled::new(Object::ALL, Rng::new(seed, "objects"));
    let mut colours = Shuffled::new(Colour::ALL, Rng::new(seed, "colours"));
    let mut settings = Shuffled::new(Setting::ALL, Rng::new(seed, "settings"));
    (0..count)
        .map(|index| Job {
            index,
            seed: Rng::at(seed, IMAGES, index as u64).seed(),
            subject: Some(Triple {
                object: objects.next_word(),
                colour: colours.next_word(),
                setting: settings.next_word(),
            }),
            artist,
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
        let artist = Artist::all().first();
        for seed in 0..5 {
            let mut objects: Vec<_> =
                in_turns(artist, 10, seed).iter().map(|job| job.subject.map(|s| s.object)).collect();
            objects.sort();
            assert_eq!(objects, Object::ALL.iter().copied().map(Some).collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn a_round_shows_every_triple_of_its_split_once() {
        for (split, size) in [(Split::Train, 360), (Split::HeldOut, 40), (Split::All, 400)] {
            let request = Request { source: Source::House, split, count: size, seed: 8, side: 64 };
            let mut subjects: Vec<_> = rounds(&request).iter().map(|job| job.subject).collect();
            subjects.sort();
            subjects.dedup();
            assert_eq!(subjects.len(), size, "{split:?}");
            assert!(subjects.iter().flatten().all(|&triple| split.contains(triple)));
        }
    }
}
