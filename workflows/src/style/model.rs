//! The style model of a request: a tower, a pooling and a trained head.

use std::path::{Path, PathBuf};

use candle_core::Device;
use catelier_features::clip::ImageEncoder;
use catelier_features::{Feature, ImageFeatures};
use catelier_pipelines::data::DecodedImage;
use catelier_style::{PooledTower, Pooling, StyleHead, StyleIndex, StyleModel};
use image::RgbImage;

use crate::embedded;
use crate::error::{Context, Error, Result};
use crate::event::Stage;
use crate::session::Session;

/// Pictures that are decoded and looked at together: several batches of a tower.
const TOGETHER: usize = 32;

/// Which style model.
#[derive(Debug, Clone, Default)]
pub struct StyleModelRequest {
    /// Folder of the tower: a CLIP or SigLIP model, or an image tower alone; `None` for the embedded one, which knows the
    /// drawn world.
    pub tower: Option<PathBuf>,
    /// What of the tower's tokens is a style.
    pub pooling: Pooling,
    /// A head that `style train` made for this tower; `None` for the tower alone.
    pub head: Option<PathBuf>,
}

impl StyleModelRequest {
    /// The tower with its pooling.
    pub(super) fn open_tower(&self) -> Result<PooledTower> {
        PooledTower::new(open(self.tower.as_deref())?, self.pooling).user_error("cannot use the style tower")
    }

    /// The model.
    ///
    /// # Errors
    /// [`Error::User`] for a tower that cannot be loaded, and a head of another tower.
    pub fn load(&self) -> Result<StyleModel> {
        let tower = self.open_tower()?;
        let head = match &self.head {
            None => None,
            Some(path) => Some(head_for(&tower, path)?),
        };
        StyleModel::new(tower, head).failed("cannot make the style model")
    }
}

fn open(tower: Option<&Path>) -> Result<ImageEncoder> {
    match tower {
        Some(folder) => ImageEncoder::from_folder(folder, &Device::Cpu).user_error("cannot load the style tower"),
        None => embedded::style(),
    }
}

fn head_for(tower: &PooledTower, path: &Path) -> Result<StyleHead> {
    let (trained_for, head) = StyleHead::load(path).user_error("cannot use the style model's head")?;
    let found = tower.extractor();
    if trained_for.sha256 == found.sha256 {
        return Ok(head);
    }
    Err(Error::user(
        format!("`{}` was trained for the tower `{}`, and this is `{}`", path.display(), trained_for.name, found.name),
        "give that tower and its pooling by `--tower` and `--pooling`",
    ))
}

/// The style model that made an index; `tower` is the tower's folder, and the head comes with the index.
pub(super) fn of_index(index: &StyleIndex, tower: Option<&Path>) -> Result<StyleModel> {
    let made_with = &index.model().tower;
    let found = PooledTower::with_identity(open(tower)?, &made_with.sha256).user_error("cannot use the style tower")?;
    let tower = found.ok_or_else(|| {
        Error::user(
            format!("the index was made with the tower `{}`, which this is not", made_with.name),
            "give the tower's folder by `--tower DIR`, or make the index again",
        )
    })?;
    StyleModel::new(tower, index.head().cloned()).failed("cannot make the style model")
}

/// The directions of pictures in files, some files at a time.
///
/// # Errors
/// [`Error::User`] names a file that is no picture; [`Error::Cancelled`].
pub(super) fn look(model: &StyleModel, files: &[PathBuf], session: &Session<'_>) -> Result<Vec<Feature>> {
    let mut directions = Vec::with_capacity(files.len());
    for files in files.chunks(TOGETHER) {
        session.check_cancelled()?;
        let pictures = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
        let seen = model.directions(&pictures.iter().collect::<Vec<_>>());
        directions.extend(seen.user_error("cannot look at the pictures")?);
    }
    Ok(directions)
}

/// The picture in a file.
pub(super) fn read(file: &Path) -> Result<RgbImage> {
    Ok(DecodedImage::open(file).user_error("cannot read a picture")?.pixels)
}

/// Reports how many of all pictures were looked at.
pub(super) fn report(session: &Session<'_>, done: usize, total: usize) -> Result<()> {
    match session.progress(Stage::Look, done, total, "") {
        std::ops::ControlFlow::Continue(()) => Ok(()),
        std::ops::ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
