//! Which picture comes where: its subject, its hand and its seed.

use super::{Entry, Request, Source};
use crate::dice::Dice;
use crate::hands::Artist;
use crate::picture::Picture;
use crate::scene::Scene;
use crate::textures::texture;
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// One picture to be painted: a scene in some hand, or a texture.
pub(super) struct Job {
    pub(super) index: usize,
    seed: u64,
    subject: Option<Triple>,
    artist: Option<&'static Artist>,
}

impl Job {
    pub(super) fn paint(&self, side: usize) -> Picture {
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

/// Every picture's subject, hand and seed.
///
/// Subjects come in rounds: each round holds every triple of the split once, shuffled.
pub(super) fn rounds(request: &Request) -> Vec<Job> {
    let mut round: Vec<Triple> = Triple::all().filter(|&triple| request.split.contains(triple)).collect();
    let mut order = Dice::new(request.seed, "order");
    (0..request.count)
        .map(|index| {
            let place = index % round.len();
            if place == 0 {
                order.shuffle(&mut round);
            }
            let seed = Dice::at(request.seed, "picture", index as u64).seed();
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

/// Pictures whose objects, colours and settings are each dealt from a deck of their own that is shuffled when it runs out.
pub(super) fn dealt(artist: &'static Artist, count: usize, seed: u64) -> Vec<Job> {
    let mut objects = Deck::new(Object::ALL, Dice::new(seed, "objects"));
    let mut colours = Deck::new(Colour::ALL, Dice::new(seed, "colours"));
    let mut settings = Deck::new(Setting::ALL, Dice::new(seed, "settings"));
    (0..count)
        .map(|index| Job {
            index,
            seed: Dice::at(seed, "picture", index as u64).seed(),
            subject: Some(Triple { object: objects.deal(), colour: colours.deal(), setting: settings.deal() }),
            artist: Some(artist),
        })
        .collect()
}

/// A deck of words that is shuffled again each time it runs out.
struct Deck<T> {
    cards: Vec<T>,
    next: usize,
    dice: Dice,
}

impl<T: Copy> Deck<T> {
    fn new(cards: &[T], dice: Dice) -> Self {
        Self { cards: cards.to_vec(), next: 0, dice }
    }

    fn deal(&mut self) -> T {
        let place = self.next % self.cards.len();
        if place == 0 {
            self.dice.shuffle(&mut self.cards);
        }
        self.next += 1;
        self.cards[place]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Split;
    use super::*;

    #[test]
    fn ten_dealt_pictures_show_every_object() {
        let artist = &Artist::all()[0];
        for seed in 0..5 {
            let mut objects: Vec<_> = dealt(artist, 10, seed).iter().map(|job| job.subject.map(|s| s.object)).collect();
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
