//! Files that exports write.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use catelier_gallery::export::{Request, Source, Split, write_folder, write_npy};
use catelier_gallery::{Artist, Error, Triple};

/// An observer that never stops an export.
fn on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn request(source: Source) -> Request {
    Request { source, split: Split::All, count: 24, seed: 6, side: 32 }
}

fn sources() -> [Source; 5] {
    let artist = Source::Artist(&Artist::all()[3]);
    [Source::House, artist, Source::MixedArtists, Source::Family { styles: 5 }, Source::Textures]
}

fn files(dir: &Path) -> (Vec<u8>, String) {
    let images = fs::read(dir.join("pictures.npy")).expect("the images were written");
    (images, fs::read_to_string(dir.join("metadata.jsonl")).expect("the metadata was written"))
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
    pool.install(work)
}

#[test]
fn number_of_threads_changes_nothing() {
    for source in sources() {
        let written = [1, 3].map(|threads| {
            let dir = tempfile::tempdir().expect("a temporary folder");
            with_threads(threads, || write_npy(dir.path(), &request(source), &mut on)).expect("the export succeeds");
            files(dir.path())
        });
        assert!(written[0] == written[1], "{source:?}");
    }
}

#[test]
fn array_holds_one_image_for_every_line_of_metadata() {
    for source in sources() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        write_npy(dir.path(), &request(source), &mut on).expect("the export succeeds");
        let (images, metadata) = files(dir.path());
        assert_eq!(images.len(), 128 + 24 * 32 * 32 * 3, "{source:?}");
        assert_eq!(metadata.lines().count(), 24, "{source:?}");
    }
}

#[test]
fn metadata_says_what_a_image_shows() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_npy(dir.path(), &request(Source::MixedArtists), &mut on).expect("the export succeeds");
    for (index, line) in files(dir.path()).1.lines().enumerate() {
        let entry: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        let triple = Triple::all().find(|triple| entry["text"] == triple.caption()).expect("the caption is a triple's");
        assert_eq!(entry["index"], index);
        assert_eq!(entry["object"], triple.object.word());
        assert_eq!(entry["colour"], triple.colour.word());
        assert_eq!(entry["setting"], triple.setting.word());
        assert_eq!(entry["held_out"], triple.held_out());
        assert_eq!(entry["artist"], Artist::all()[index % Artist::all().len()].name);
    }
}

fn entries(dir: &Path) -> Vec<serde_json::Value> {
    files(dir).1.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

#[test]
fn random_styles_take_turns_and_caption_their_words() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_npy(dir.path(), &request(Source::Family { styles: 5 }), &mut on).expect("the export succeeds");
    let entries = entries(dir.path());
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!((&entry["style"], &entry["artist"]), (&(index % 5).into(), &"family".into()));
        assert_eq!(entry["style_words"], entries[index % 5]["style_words"]);
        let words = entry["style_words"].as_array().expect("words are a list").iter();
        let words: Vec<&str> = words.map(|word| word.as_str().expect("a word is a text")).collect();
        let mut parts = entry["text"].as_str().expect("a caption").split(", ");
        let scene = parts.next().expect("a caption begins with its scene");
        assert!(Triple::all().any(|triple| triple.caption() == scene), "{scene}");
        assert_eq!(parts.collect::<Vec<_>>(), words);
    }
}

#[test]
fn random_styles_are_the_seeds() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let drawn = |styles, seed| {
        let request = Request { seed, count: 6, ..request(Source::Family { styles }) };
        write_npy(dir.path(), &request, &mut on).expect("the export succeeds");
        entries(dir.path()).iter().map(|entry| entry["style_words"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(drawn(6, 1), drawn(9, 1));
    assert_ne!(drawn(6, 1), drawn(6, 2));
}

#[test]
fn textures_say_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_npy(dir.path(), &request(Source::Textures), &mut on).expect("the export succeeds");
    let expected = "{\"index\":0,\"text\":\"\",\"object\":null,\"colour\":null,\"setting\":null,\"artist\":\"texture\",\"held_out\":false}";
    assert_eq!(files(dir.path()).1.lines().next(), Some(expected));
}

#[test]
fn odd_image_size_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let refused = write_npy(dir.path(), &Request { side: 60, ..request(Source::House) }, &mut on);
    assert!(matches!(refused, Err(Error::ImageSide { side: 60 })));
    assert_eq!(fs::read_dir(dir.path()).expect("the folder exists").count(), 0);
}

#[test]
fn folder_pairs_every_image_with_its_caption() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = dir.path().join("art");
    write_folder(&folder, Source::Artist(&Artist::all()[0]), 3, 1, &mut on).expect("the export succeeds");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("the folder exists")
        .map(|entry| entry.expect("the entry is readable").file_name().into_string().expect("names are plain"))
        .collect();
    names.sort();
    assert_eq!(names, ["0001.png", "0001.txt", "0002.png", "0002.txt", "0003.png", "0003.txt"]);
    let caption = fs::read_to_string(folder.join("0002.txt")).expect("the caption was written");
    assert!(Triple::all().any(|triple| triple.caption() == caption.trim_end()), "{caption}");
    let image = image::open(folder.join("0002.png")).expect("the image is a PNG");
    assert_eq!((image.width(), image.height(), image.color()), (64, 64, image::ColorType::Rgb8));
}

#[test]
fn a_stopped_export_has_whole_pairs_or_no_array() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut told = Vec::new();
    let mut stop = |done| {
        told.push(done);
        ControlFlow::Break(())
    };
    let many = Request { count: 1000, side: 32, ..request(Source::House) };
    assert!(matches!(write_npy(dir.path(), &many, &mut stop), Err(Error::Cancelled)));
    assert_eq!(fs::read_dir(dir.path()).expect("the folder exists").count(), 0);
    assert!(matches!(write_folder(dir.path(), Source::House, 1000, 1, &mut stop), Err(Error::Cancelled)));
    let [_, done] = told[..] else { panic!("{told:?}") };
    assert!(done < 1000);
    assert_eq!(fs::read_dir(dir.path()).expect("the folder exists").count(), 2 * done);
}

#[test]
fn a_folder_without_an_artist_is_in_the_house_style() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_folder(dir.path(), Source::House, 1, 3, &mut on).expect("the export succeeds");
    let caption = fs::read_to_string(dir.path().join("0001.txt")).expect("the caption was written");
    let triple = Triple::all().find(|triple| triple.caption() == caption.trim_end()).expect("it is a scene");
    let drawn = image::open(dir.path().join("0001.png")).expect("the image is a PNG").into_rgb8();
    let differs = |artist: &Artist| {
        let folder = dir.path().join(artist.name);
        let artist = Artist::named(artist.name).expect("it has a name");
        write_folder(&folder, Source::Artist(artist), 1, 3, &mut on).expect("the export succeeds");
        assert_eq!(fs::read_to_string(folder.join("0001.txt")).expect("a caption").trim_end(), triple.caption());
        image::open(folder.join("0001.png")).expect("the image is a PNG").into_rgb8() != drawn
    };
    assert!(Artist::all().iter().all(differs), "the house style is no artist's");
}

#[test]
fn folder_with_files_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("0001.png"), "precious").expect("a file can be written");
    let refused = write_folder(dir.path(), Source::Artist(&Artist::all()[0]), 3, 1, &mut on);
    assert!(matches!(refused, Err(Error::FileExists { .. })));
    assert_eq!(fs::read(dir.path().join("0001.png")).expect("the file is still there"), b"precious");
}
