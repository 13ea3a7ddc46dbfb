//! Exact search among ten thousand artists with directions of 512 values, on one thread.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;

use catelier_features::{Extractor, Feature, ImageFeatures};
use catelier_numerics::noise::{Noise, Stream};
use catelier_style::{Artist, StyleIndex, StyleModel};
use criterion::{Criterion, criterion_group, criterion_main};
use image::RgbImage;

const ARTISTS: u64 = 10_000;
const WIDTH: usize = 512;

struct NoTower(Extractor);

impl ImageFeatures for NoTower {
    fn extractor(&self) -> &Extractor {
        &self.0
    }

    fn image_features(&self, _: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        Ok(Vec::new())
    }
}

fn work(artist: u64, work: u64) -> Feature {
    let values = Noise::new(1).normals(Stream("bench"), work, artist, WIDTH);
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter().map(|value| value / length).collect()
}

fn search(criterion: &mut Criterion) {
    let model = StyleModel::new(NoTower(Extractor { name: "made up".into(), sha256: "ab".into() }), None).unwrap();
    let artist = |number: u64| Artist::of_works(format!("artist {number:05}"), vec![work(number, 0)], 1).unwrap();
    let index = StyleIndex::build(&model, (0..ARTISTS).map(artist).collect()).unwrap();
    let reference = [work(77, 1)];
    criterion.bench_function("search 10,000 artists of 512 values", |bencher| {
        bencher.iter(|| black_box(index.search(black_box(&reference), 5).unwrap()));
    });
}

criterion_group!(benches, search);
criterion_main!(benches);
