//! Folders of images in common layouts. The image files are empty, since captions do not look inside.

use std::fs;
use std::path::Path;

use catelier_prompts::Error;
use catelier_prompts::captions::{CaptionNotice, CaptionOptions, CaptionSource, CaptionedImage, Collected, collect};
use tempfile::TempDir;

/// A folder with these files and contents.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        write(folder.path(), name, content.as_bytes());
    }
    folder
}

fn write(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn found(folder: &TempDir) -> Collected {
    collect(folder.path(), &CaptionOptions::default()).unwrap()
}

fn error(folder: &TempDir) -> Error {
    collect(folder.path(), &CaptionOptions::default()).unwrap_err()
}

/// Name, caption and repeats of each image.
fn told<'a>(folder: &TempDir, images: &'a [CaptionedImage]) -> Vec<(String, &'a str, usize)> {
    let name = |image: &CaptionedImage| image.path.strip_prefix(folder.path()).unwrap().display().to_string();
    images.iter().map(|image| (name(image), image.caption.as_str(), image.repeats)).collect()
}

fn entry(name: &str, caption: &'static str, repeats: usize) -> (String, &'static str, usize) {
    (name.to_owned(), caption, repeats)
}

#[test]
fn sidecars_are_read_txt_before_caption() {
    let folder = folder(&[
        ("b.PNG", ""),
        ("b.txt", "\u{feff}from txt\r\n"),
        ("b.caption", "from caption"),
        ("a.jpg", ""),
        ("a.caption", " from caption "),
        (".hidden.png", ""),
        ("._a.jpg", ""),
    ]);
    let found = found(&folder);
    assert_eq!(told(&folder, &found.images), [entry("a.jpg", "from caption", 1), entry("b.PNG", "from txt", 1)]);
    assert_eq!(found.images[1].source, CaptionSource::Sidecar(folder.path().join("b.txt")));
    assert_eq!(found.notices, []);
}

#[test]
fn metadata_gives_text_or_prompt_and_its_line() {
    let folder = folder(&[
        ("a.png", ""),
        ("b.webp", ""),
        ("more/c.png", ""),
        (
            "metadata.jsonl",
            "{\"file_name\": \"a.png\", \"text\": \"a dog\"}\n\n{\"file_name\": \"./b.webp\", \"prompt\": \"a cat\"}\r\n\
             {\"file_name\": \"more/c.png\", \"text\": \"a cow\"}",
        ),
    ]);
    let found = found(&folder);
    assert_eq!(
        told(&folder, &found.images),
        [entry("a.png", "a dog", 1), entry("b.webp", "a cat", 1), entry("more/c.png", "a cow", 1)]
    );
    let path = folder.path().join("metadata.jsonl");
    assert_eq!(found.images[1].source, CaptionSource::Metadata { path, line: 3 });
    assert_eq!(found.notices, []);
}

#[test]
fn numbered_folders_give_repeats_and_words() {
    let folder = folder(&[
        ("10_sks dog/1.png", ""),
        ("10_sks dog/2.png", ""),
        ("10_sks dog/2.txt", "sks dog asleep"),
        ("3_/3.png", ""),
        ("3_/3.txt", "alone"),
        ("dog/4.png", ""),
        ("0_old/5.png", ""),
        ("notes/readme.md", ""),
    ]);
    let found = found(&folder);
    assert_eq!(
        told(&folder, &found.images),
        [
            entry("10_sks dog/1.png", "sks dog", 10),
            entry("10_sks dog/2.png", "sks dog asleep", 10),
            entry("3_/3.png", "alone", 3),
        ]
    );
    assert_eq!(found.images[0].source, CaptionSource::FolderName("10_sks dog".into()));
    let notices: Vec<String> = found.notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        [
            "skipped the folder `0_old` with 1 images: its name asks for 0 repeats",
            "skipped the folder `dog` with 1 images: its name does not start with a number of repeats, as in `1_dog`",
        ]
    );
}

#[test]
fn shared_caption_serves_images_without_their_own() {
    let folder = folder(&[("a.png", ""), ("b.png", ""), ("b.txt", "own")]);
    let options = CaptionOptions { shared_caption: Some(" a dog ".into()) };
    let found = collect(folder.path(), &options).unwrap();
    assert_eq!(told(&folder, &found.images), [entry("a.png", "a dog", 1), entry("b.png", "own", 1)]);
    assert_eq!(found.images[0].source, CaptionSource::Shared);
    let blank = CaptionOptions { shared_caption: Some(" ".into()) };
    let error = collect(folder.path(), &blank).unwrap_err();
    assert_eq!(error.to_string(), "the caption given for all images is empty");
}

#[test]
fn captions_without_image_are_noticed() {
    let folder = folder(&[("a.png", ""), ("a.txt", "a dog"), ("b.txt", "a cat"), ("c.caption", "a cow")]);
    let files = vec!["b.txt".to_owned(), "c.caption".to_owned()];
    assert_eq!(found(&folder).notices, [CaptionNotice::CaptionsWithoutImage { files }]);
}

#[test]
fn missing_folder_and_file_in_its_place_are_errors() {
    let folder = folder(&[("a.png", "")]);
    let missing = folder.path().join("no such");
    let error = collect(&missing, &CaptionOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("no such folder: `{}`", missing.display()));
    let file = folder.path().join("a.png");
    let error = collect(&file, &CaptionOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("`{}` is a file, expected a folder of images", file.display()));
    assert_eq!(error.hint().unwrap(), format!("give the folder that holds it: `{}`", folder.path().display()));
}

#[test]
fn folder_without_images_says_what_is_read_and_what_is_there() {
    const READ: &str = "files ending in jpg, jpeg, png, webp, bmp, gif, tif, tiff are read";
    let empty = folder(&[]);
    let start = format!("no images in `{}`: {READ}", empty.path().display());
    assert_eq!(error(&empty).to_string(), format!("{start}; the folder is empty"));

    let other = folder(&[("a.avif", ""), ("notes.txt", "")]);
    let start = format!("no images in `{}`: {READ}", other.path().display());
    assert_eq!(error(&other).to_string(), format!("{start}; found `a.avif`, `notes.txt`"));

    let names: Vec<String> = (0..10).map(|index| format!("{index}.psd")).collect();
    let many = folder(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
    assert!(error(&many).to_string().ends_with("`6.psd`, `7.psd` and 2 more"));

    let nested = folder(&[("dog/1.png", "")]);
    let start = format!("no images in `{}`: {READ}", nested.path().display());
    let nested = error(&nested);
    assert_eq!(nested.to_string(), format!("{start}; there are images in the subfolders `dog`"));
    assert_eq!(
        nested.hint().unwrap(),
        "subfolders are read when their names start with how often to repeat them: rename `dog` to `1_dog`"
    );
}

#[test]
fn all_images_without_caption_are_named() {
    let folder = folder(&[("a.png", ""), ("b.png", ""), ("b.txt", "own"), ("c.png", "")]);
    let error = error(&folder);
    assert_eq!(
        error.to_string(),
        format!(
            "2 of 3 images in `{}` cannot be used: `a.png` has no caption; `c.png` has no caption",
            folder.path().display()
        )
    );
    assert_eq!(
        error.hint().unwrap(),
        "write a .txt file of the same name beside each, or give one caption for all with `--caption`"
    );
}

#[test]
fn empty_and_unreadable_captions_are_named_together() {
    let folder = folder(&[("a.png", ""), ("a.txt", " \n"), ("b.png", "")]);
    write(folder.path(), "b.txt", b"caf\xe9");
    assert_eq!(
        error(&folder).to_string(),
        format!(
            "2 of 2 images in `{}` cannot be used: `a.png` has an empty caption in `a.txt`; \
             `b.png` has a caption in `b.txt` that is not UTF-8 after byte 3",
            folder.path().display()
        )
    );
}

#[test]
fn empty_caption_in_metadata_is_named_with_its_line() {
    let folder = folder(&[("a.png", ""), ("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \" \"}")]);
    assert_eq!(
        error(&folder).to_string(),
        format!(
            "1 of 1 images in `{}` cannot be used: `a.png` has an empty caption in `metadata.jsonl line 1`",
            folder.path().display()
        )
    );
}

#[test]
fn every_broken_metadata_line_is_named() {
    let lines = [
        r#"{"file_name": "a.png", "text": "a dog"}"#,
        r#"{"file_name": "a.png", "text""#,
        r#"["a.png"]"#,
        r#"{"text": "a dog"}"#,
        r#"{"file_name": "a.png"}"#,
        r#"{"file_name": "gone.png", "text": "a dog"}"#,
        r#"{"file_name": "../x.png", "text": "a dog"}"#,
        r#"{"file_name": "notes.md", "text": "a dog"}"#,
        r#"{"file_name": "a.png", "text": "again"}"#,
        r#"{"file_name": "a.png", "text": "a dog"}"#,
    ];
    let folder = folder(&[("a.png", ""), ("notes.md", ""), ("metadata.jsonl", &lines.join("\n"))]);
    let path = folder.path().join("metadata.jsonl");
    let error = error(&folder);
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` cannot be used: line 2 is not a JSON object (EOF while parsing an object); \
             line 3 is not a JSON object (invalid type: sequence, expected a map); \
             line 4 has no text in `file_name`; line 5 has no text in `text` or `prompt`; \
             line 6 names `gone.png`, which does not exist; line 7 names `../x.png`, which lies outside the folder; \
             line 8 names `notes.md`, which is not an image; line 9 names `a.png` again with another text (first on line 1)",
            path.display()
        )
    );
    assert_eq!(error.hint().unwrap(), r#"each line is like {"file_name": "001.png", "text": "a caption"}"#);
}

/// Whether `error` or one of its causes contains the text.
fn says(error: &Error, text: &str) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.any(|cause| cause.to_string().contains(text))
}

#[test]
fn files_beyond_any_caption_are_refused_by_name() {
    let long = "x".repeat((1 << 20) + 1);
    let caption = error(&folder(&[("a.png", ""), ("a.txt", &long)]));
    assert!(says(&caption, "a.txt") && says(&caption, "at most 1048576 bytes"), "{caption}");
    let line = format!(r#"{{"file_name": "a.png", "text": "{}"}}"#, "x".repeat(70_000));
    let metadata = error(&folder(&[("a.png", ""), ("metadata.jsonl", &line)]));
    assert!(says(&metadata, "more than 65536 bytes"), "{metadata}");
    let broken = error(&folder(&[("a.png", ""), ("metadata.jsonl", &"x\n".repeat(100_000))]));
    assert!(matches!(&broken, Error::Metadata { problems, .. } if problems.len() == 100));
    let prompts = folder(&[("prompts.txt", &"x\n".repeat(2 << 20))]);
    let prompts = catelier_prompts::PromptSet::from_file(&prompts.path().join("prompts.txt")).unwrap_err();
    assert!(says(&prompts, "prompts.txt") && says(&prompts, "at most"), "{prompts}");
}
