//! An index of artists, and the head of a style model.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use catelier_workflows::features::{Extractor, Feature, ImageFeatures};
use catelier_workflows::numerics::tensor_file::{self, TensorFile};
use catelier_workflows::styles::{AdapterLink, Artist, Standardisation, StyleHead, StyleIndex, StyleModel};
use image::RgbImage;

use crate::{Verdict, folder, refused};

const WIDTH: usize = 6;

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("style", "index.safetensors", input, |path| {
        let verdict = read_file(path);
        let is_seed = SEEDS.iter().any(|seed| seed == input);
        assert!(verdict == Verdict::Refused || is_seed, "a damaged file was used");
        // The same content under a checksum that holds, as a stranger would write it.
        if let Some(path) = signed(path, input) {
            read_file(&path);
        }
        verdict
    })
}

/// Reads the file as both kinds; what is accepted is searched, and written to the same bytes again.
fn read_file(path: &Path) -> Verdict {
    let again = path.with_file_name("again.safetensors");
    if let Ok((tower, head)) = StyleHead::load(path) {
        head.save(&again, &tower, &Default::default()).unwrap();
        let (_, loaded) = StyleHead::load(&again).unwrap_or_else(|error| panic!("saved, but not loaded: {error}"));
        assert_eq!(loaded.sha256().unwrap(), head.sha256().unwrap());
        return Verdict::Accepted;
    }
    match StyleIndex::load(path) {
        Ok(index) => {
            search(&index);
            index.save(&again).unwrap();
            StyleIndex::load(&again).unwrap_or_else(|error| panic!("saved, but not loaded: {error}"));
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    }
}

/// Every artist is found by its own prototype, or the scores are finite and sorted at least.
fn search(index: &StyleIndex) {
    let first = &index.artists()[0];
    let found = index.search(&[first.prototypes[0].direction.clone()], 3).unwrap().found;
    assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "{found:?}");
    for found in &found {
        let is_probability = found.probability.is_none_or(|probability| (0.0..=1.0).contains(&probability));
        assert!(found.score.is_finite() && is_probability, "{found:?}");
    }
}

fn signed(path: &Path, input: &[u8]) -> Option<std::path::PathBuf> {
    let file = TensorFile::from_bytes("input", input.to_vec()).ok()?;
    let tensor = |name: &str| Some((name.to_owned(), file.tensor(name, &Device::Cpu).ok()?));
    let tensors = file.names().map(tensor).collect::<Option<_>>()?;
    let path = path.with_file_name("signed.safetensors");
    tensor_file::write_checked(&path, &tensors, file.metadata()).ok()?;
    Some(path)
}

/// A tower for directions that are given.
struct NoTower(Extractor);

impl ImageFeatures for NoTower {
    fn extractor(&self) -> &Extractor {
        &self.0
    }

    fn image_features(&self, _: &[&RgbImage]) -> catelier_workflows::features::Result<Vec<Feature>> {
        Ok(Vec::new())
    }
}

/// Indexes of the tower alone and with a head, and that head.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let tower = Extractor { name: "tower".into(), sha256: "ab".into() };
    let features: Vec<Feature> = (0..4).map(|number| feature(number, number)).collect();
    let standardisation = Standardisation::of(&features.iter().collect::<Vec<_>>()).unwrap();
    let projection = StyleHead::start(WIDTH, WIDTH, 1).unwrap();
    let head = StyleHead::new(standardisation, projection).unwrap();
    let saved = |save: &dyn Fn(&Path)| {
        folder::with(|folder| {
            let path = folder.join("seed.safetensors");
            save(&path);
            fs::read(path).unwrap()
        })
    };
    let index = |head: Option<StyleHead>| {
        let model = StyleModel::new(NoTower(tower.clone()), head).unwrap();
        let works = |artist| (0..5).map(|work| feature(artist, work)).collect();
        let artists = (0..6).map(|artist| Artist::of_works(format!("artist {artist}"), works(artist), 2).unwrap());
        let mut index = StyleIndex::build(&model, artists.collect()).unwrap();
        index.link("artist 3", AdapterLink { path: "3.safetensors".into(), hash: "cd".into() }).unwrap();
        saved(&|path| index.save(path).unwrap())
    };
    vec![index(None), index(Some(head.clone())), saved(&|path| head.save(path, &tower, &Default::default()).unwrap())]
});

/// Values that follow from the names alone, of length 1.
fn feature(artist: usize, work: usize) -> Feature {
    let value = |channel: usize| ((artist * 7 + channel * 3) as f32).sin() + 0.3 * ((work * 5 + channel) as f32).cos();
    let values: Vec<f32> = (0..WIDTH).map(value).collect();
    let length = Tensor::new(values.as_slice(), &Device::Cpu).unwrap().sqr().unwrap().sum_all().unwrap();
    let length = length.to_scalar::<f32>().unwrap().sqrt();
    values.iter().map(|value| value / length).collect()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    SEEDS.clone()
}
