//! The files of an image folder and of its numbered subfolders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::sidecar::{self, Sidecars};
use super::{CaptionNotice, CaptionSource, CaptionedImage, Found, IMAGE_EXTENSIONS};
use crate::{Error, ImageProblem, Result};

/// The images of a folder, before any caption is read.
pub(super) struct Listing {
    root: PathBuf,
    /// Sorted by path.
    pub(super) images: Vec<Image>,
    pub(super) notices: Vec<CaptionNotice>,
    folders: Vec<Folder>,
}

/// An image file and the folder, by index, whose captions apply to it.
pub(super) struct Image {
    path: PathBuf,
    folder: usize,
}

/// The root or one numbered subfolder.
struct Folder {
    repeats: usize,
    /// The words after the number.
    words: Option<(String, String)>,
    sidecars: Sidecars,
    metadata: Metadata,
}

/// File and folder names of one folder, sorted, hidden ones left out.
struct Names {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Listing {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let names = Names::read(root).map_err(|source| root_error(root, source))?;
        let mut listing = Self { root: root.to_owned(), images: Vec::new(), notices: Vec::new(), folders: Vec::new() };
        let mut unnumbered = Vec::new();
        listing.add_folder(root, &names, 1, None)?;
        for folder in &names.folders {
            listing.add_subfolder(folder, &mut unnumbered)?;
        }
        listing.images.sort_by(|a, b| a.path.cmp(&b.path));
        listing.images.dedup_by(|a, b| a.path == b.path);
        if listing.images.is_empty() {
            return Err(Error::NoImages {
                path: root.to_owned(),
                others: names.files.iter().map(|path| file_name(path)).collect(),
                subfolders: unnumbered,
            });
        }
        listing.notice_unused_captions();
        Ok(listing)
    }

    fn add_subfolder(&mut self, folder: &Path, unnumbered: &mut Vec<String>) -> Result<()> {
        let names = read_names(folder)?;
        let name = file_name(folder);
        let images = names.files.iter().filter(|path| is_image(path)).count();
        match repeats_and_words(&name) {
            Some((0, _)) => self.notices.push(CaptionNotice::FolderRepeatedZeroTimes { name, images }),
            Some((repeats, words)) => {
                let words = (!words.is_empty()).then(|| (name.clone(), words.to_owned()));
                self.add_folder(folder, &names, repeats, words)?;
            }
            // Images named by the root's metadata have been added with the root.
            None if images > 0 && !self.has_images_in(folder) => {
                unnumbered.push(name.clone());
                self.notices.push(CaptionNotice::FolderSkipped { name, images });
            }
            None => {}
        }
        Ok(())
    }

    fn add_folder(
        &mut self,
        folder: &Path,
        names: &Names,
        repeats: usize,
        words: Option<(String, String)>,
    ) -> Result<()> {
        let metadata = Metadata::read(folder)?;
        let index = self.folders.len();
        let here = names.files.iter().filter(|path| is_image(path)).cloned();
        let deeper = metadata.images().map(Path::to_owned);
        self.images.extend(here.chain(deeper).map(|path| Image { path, folder: index }));
        self.folders.push(Folder { repeats, words, sidecars: Sidecars::among(&names.files), metadata });
        Ok(())
    }

    fn has_images_in(&self, folder: &Path) -> bool {
        self.images.iter().any(|image| image.path.starts_with(folder))
    }

    fn notice_unused_captions(&mut self) {
        let images = || self.images.iter().map(|image| image.path.as_path());
        let unused = self.folders.iter().flat_map(|folder| folder.sidecars.unused(images()));
        let files: Vec<String> = unused.map(|path| self.relative(path)).collect();
        if !files.is_empty() {
            self.notices.push(CaptionNotice::CaptionsWithoutImage { files });
        }
    }

    /// The image with its caption, or the problem with it. The outer error is a file that cannot be read.
    pub(super) fn caption(&self, image: &Image, shared: Option<&str>) -> Result<Found<CaptionedImage>> {
        let folder = &self.folders[image.folder];
        let name = || self.relative(&image.path);
        let found = if let Some(sidecar) = folder.sidecars.of(&image.path) {
            sidecar::read(sidecar, &name(), &self.relative(sidecar))?
                .map(|caption| (caption, CaptionSource::Sidecar(sidecar.to_owned())))
        } else if let Some(entry) = folder.metadata.entry(&image.path) {
            let file = folder.metadata.path();
            match entry.text.trim() {
                "" => Err(ImageProblem::EmptyCaption {
                    image: name(),
                    caption_file: format!("{} line {}", self.relative(file), entry.line),
                }),
                caption => Ok((caption.to_owned(), entry.source(file))),
            }
        } else if let Some((name, words)) = &folder.words {
            Ok((words.clone(), CaptionSource::FolderName(name.clone())))
        } else if let Some(shared) = shared {
            Ok((shared.to_owned(), CaptionSource::Shared))
        } else {
            Err(ImageProblem::NoCaption { image: name() })
        };
        Ok(found.map(|(caption, source)| CaptionedImage {
            path: image.path.clone(),
            caption,
            source,
            repeats: folder.repeats,
        }))
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

impl Names {
    fn read(folder: &Path) -> io::Result<Self> {
        let mut names = Self { files: Vec::new(), folders: Vec::new() };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Follows links, so that a linked image counts; a broken link is listed and fails when it is read.
            match fs::metadata(entry.path()) {
                Ok(kind) if kind.is_dir() => names.folders.push(entry.path()),
                _ => names.files.push(entry.path()),
            }
        }
        names.files.sort();
        names.folders.sort();
        Ok(names)
    }
}

fn read_names(folder: &Path) -> Result<Names> {
    Names::read(folder).map_err(|source| Error::Read { path: folder.to_owned(), source })
}

fn root_error(root: &Path, source: io::Error) -> Error {
    let path = root.to_owned();
    match fs::metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Error::NoSuchFolder { path },
        Ok(kind) if !kind.is_dir() => Error::NotAFolder { path },
        _ => Error::Read { path, source },
    }
}

/// Splits `10_sks dog` into 10 and `sks dog`; `None` for a name without number and underscore.
fn repeats_and_words(name: &str) -> Option<(usize, &str)> {
    let (number, words) = name.split_once('_')?;
    Some((number.parse().ok()?, words.trim()))
}

/// Whether the name has the ending of an image file.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
