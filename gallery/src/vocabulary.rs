//! The words of the drawn world: ten objects, eight colours, five settings, and the captions they form.

use std::fmt;

use serde::Serialize;

/// Declares an enum with its words in order, and the function that parses a word.
macro_rules! words {
    ($(#[$note:meta])* $name:ident { $($(#[$variant_note:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$note])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_note])* #[doc = concat!("`", $word, "`.")] $variant),+ }

        impl $name {
            /// Every value, in vocabulary order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word used in captions and metadata.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value whose word is `word`, or `None`.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }

            /// The value's place in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.word())
            }
        }
    };
}

words! {
    /// The object in the middle of an image.
    Object {
        House = "house",
        Tree = "tree",
        Boat = "boat",
        Fish = "fish",
        Star = "star",
        Flower = "flower",
        Mug = "mug",
        Cat = "cat",
        Mushroom = "mushroom",
        Umbrella = "umbrella",
    }
}

words! {
    /// The colour of the object's main body.
    Colour {
        Red = "red",
        Orange = "orange",
        Yellow = "yellow",
        Green = "green",
        Blue = "blue",
        Purple = "purple",
        Pink = "pink",
        White = "white",
    }
}

words! {
    /// The surroundings of the object.
    Setting {
        Field = "field",
        Sea = "sea",
        Night = "night",
        Snow = "snow",
        Wall = "wall",
    }
}

impl Setting {
    /// The words that end a caption: `in a field`, `on the sea`, `at night`, `in the snow` or `on a plain wall`.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Field => "in a field",
            Self::Sea => "on the sea",
            Self::Night => "at night",
            Self::Snow => "in the snow",
            Self::Wall => "on a plain wall",
        }
    }
}

/// The subject of an image: an object, its colour and its setting. There are 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Triple {
    /// The object.
    pub object: Object,
    /// The colour of its main body.
    pub colour: Colour,
    /// Its surroundings.
    pub setting: Setting,
}

impl Triple {
    /// All 400 triples: objects slowest, settings fastest.
    pub fn all() -> impl Iterator<Item = Self> {
        Object::ALL.iter().flat_map(|&object| {
            Colour::ALL
                .iter()
                .flat_map(move |&colour| Setting::ALL.iter().map(move |&setting| Self { object, colour, setting }))
        })
    }

    /// The caption, such as `an orange house in a field`.
    pub fn caption(self) -> String {
        let article = if self.colour == Colour::Orange { "an" } else { "a" };
        format!("{article} {} {} {}", self.colour, self.object, self.setting.phrase())
    }

    /// Whether the triple is held out of the base model's training.
    ///
    /// The rule: `object + colour + 2 * setting` (places in the vocabulary, from zero) is a multiple of ten.
    /// That is one triple in ten, with four for every object, five for every colour, eight for every setting,
    /// and at most one for any pair of object and colour.
    pub fn held_out(self) -> bool {
        (self.object.index() + self.colour.index() + 2 * self.setting.index()).is_multiple_of(10)
    }
}

/// What a text says of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mention {
    /// The object, where it is named.
    pub object: Option<Object>,
    /// The colour, where it is named.
    pub colour: Option<Colour>,
    /// The setting, where it is named.
    pub setting: Option<Setting>,
}

impl Mention {
    /// The first object and colour whose words stand in `text`, and the setting whose phrase does.
    pub fn in_text(text: &str) -> Self {
        let words = || text.split(|letter: char| !letter.is_alphanumeric());
        Self {
            object: words().find_map(Object::from_word),
            colour: words().find_map(Colour::from_word),
            setting: Setting::ALL.iter().copied().find(|setting| text.contains(setting.phrase())),
        }
    }
}

impl From<Triple> for Mention {
    fn from(triple: Triple) -> Self {
        Self { object: Some(triple.object), colour: Some(triple.colour), setting: Some(triple.setting) }
    }
}

impl fmt::Display for Triple {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.caption())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_mentions_its_triple_and_a_short_text_what_it_names() {
        for triple in Triple::all() {
            assert_eq!(Mention::in_text(&triple.caption()), triple.into());
        }
        let short = Mention { object: Some(Object::Boat), colour: None, setting: Some(Setting::Sea) };
        assert_eq!(Mention::in_text("shs, a boat on the sea"), short);
        let nothing = Mention { object: None, colour: None, setting: None };
        assert_eq!(Mention::in_text("catapult, boathouse, redder"), nothing);
    }

    #[test]
    fn captions_read_as_english() {
        let caption = |object, colour, setting| Triple { object, colour, setting }.caption();
        assert_eq!(caption(Object::House, Colour::Orange, Setting::Field), "an orange house in a field");
        assert_eq!(caption(Object::Umbrella, Colour::Red, Setting::Sea), "a red umbrella on the sea");
        assert_eq!(caption(Object::Cat, Colour::White, Setting::Night), "a white cat at night");
        assert_eq!(caption(Object::Star, Colour::Blue, Setting::Snow), "a blue star in the snow");
        assert_eq!(caption(Object::Mug, Colour::Pink, Setting::Wall), "a pink mug on a plain wall");
    }

    #[test]
    fn every_caption_is_different() {
        let mut captions: Vec<String> = Triple::all().map(Triple::caption).collect();
        captions.sort();
        captions.dedup();
        assert_eq!(captions.len(), 400);
    }

    #[test]
    fn held_out_triples_spread_evenly() {
        let held: Vec<Triple> = Triple::all().filter(|triple| triple.held_out()).collect();
        assert_eq!(held.len(), 40);
        let count = |matches: &dyn Fn(&Triple) -> bool| held.iter().filter(|triple| matches(triple)).count();
        for &object in Object::ALL {
            assert_eq!(count(&|triple| triple.object == object), 4, "{object}");
            for &colour in Colour::ALL {
                assert!(count(&|triple| (triple.object, triple.colour) == (object, colour)) <= 1, "{colour} {object}");
            }
        }
        for &colour in Colour::ALL {
            assert_eq!(count(&|triple| triple.colour == colour), 5, "{colour}");
        }
        for &setting in Setting::ALL {
            assert_eq!(count(&|triple| triple.setting == setting), 8, "{setting}");
        }
    }

    #[test]
    fn words_read_back() {
        for &object in Object::ALL {
            assert_eq!(Object::from_word(object.word()), Some(object));
        }
        assert_eq!(Colour::from_word("mauve"), None);
    }
}
