//! Losses against values computed elsewhere, searches of made-up styles, and federations of made-up artists.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod federations;
mod losses;
mod searches;
mod towers;

use catelier_features::Feature;
use catelier_numerics::noise::{Noise, Stream};

/// Width of made-up features.
const WIDTH: usize = 16;

/// Values that follow from the names alone.
fn values(seed: u64, sample: u64) -> Vec<f32> {
    Noise::new(seed).normals(Stream("made-up styles"), 0, sample, WIDTH)
}

/// A made-up work: its artist's place, and something of its own.
fn work(artist: u64, number: u64, spread: f32) -> Feature {
    let (place, own) = (values(1, artist), values(2, artist * 1000 + number));
    place.iter().zip(own).map(|(place, own)| place + spread * own).collect()
}

/// The same at length 1.
fn direction(artist: u64, number: u64, spread: f32) -> Feature {
    let work = work(artist, number, spread);
    let length = work.iter().map(|value| value * value).sum::<f32>().sqrt();
    work.iter().map(|value| value / length).collect()
}
