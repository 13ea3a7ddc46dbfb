//! `style index`: the prototypes of artists, in one file that can be searched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use catelier_numerics::tensor_file::{self, CHECKSUM, TensorFile};
use catelier_style::{ADAPTER_ENTRY, AdapterLink, Artist, Calibration, Gap, StyleEntry, StyleIndex, StyleModel};
use serde::Serialize;

use super::artists::{AdapterFile, Artists, Known, gather};
use super::commission::{MIX_ALLOWED, MIX_ENTRY};
use super::model::{look, report};
use super::{ArtistSource, StyleModelRequest};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::output::{self, OutputFolder};
use crate::session::Session;

/// The command that makes folders of adapters with prototypes.
const COMMAND: &str = "style index";

/// An index as it is asked for.
#[derive(Debug, Clone)]
pub struct IndexRequest {
    /// The artists: folders of pictures, and adapters with prototypes in their headers.
    pub sources: Vec<ArtistSource>,
    /// The style model.
    pub model: StyleModelRequest,
    /// Most prototypes of an artist.
    pub prototypes: usize,
    /// Noise on the prototype of every artist with pictures; 0 for none.
    pub noise: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Folder for copies of the artists' adapters with the prototypes in their headers.
    pub adapters_out: Option<PathBuf>,
    /// Note in these copies that the adapter may be mixed with others.
    pub allow_mix: bool,
    /// The new file.
    pub out: PathBuf,
    /// Replace the file `out`; write beside files in `adapters_out` that no index made.
    pub force: bool,
}

impl Default for IndexRequest {
    /// No artists yet; one prototype each, without noise, in `index.safetensors`.
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            model: StyleModelRequest::default(),
            prototypes: 1,
            noise: 0.0,
            seed: 1,
            adapters_out: None,
            allow_mix: false,
            out: "index.safetensors".into(),
            force: false,
        }
    }
}

/// An index that is made, as `style index --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct IndexReport {
    /// The artists, by name.
    pub artists: Vec<IndexedReport>,
    /// How scores become probabilities; `null` where too few pictures were at hand.
    pub calibration: Option<Calibration>,
}

/// An artist in a new index.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IndexedReport {
    /// The name.
    pub artist: String,
    /// Number of works behind the prototypes.
    pub works: u64,
    /// Number of prototypes.
    pub prototypes: usize,
    /// What sets the artist apart.
    pub gap: Gap,
    /// Whether the model can tell the artist from the most similar one; `null` for an artist with one work.
    pub told_apart: Option<bool>,
    /// Whether the index names the artist's adapter.
    pub has_adapter: bool,
}

/// Makes an index as `request` says.
///
/// # Errors
/// [`Error::User`] for artists that cannot be indexed, by name; [`Error::Failed`] when the disk fails; [`Error::Cancelled`]
/// between some pictures, and then nothing is written.
pub fn index(request: &IndexRequest, session: &Session<'_>) -> Result<IndexReport> {
    output::new_file(&request.out, request.force)?;
    let copies = request.claim_copies(session)?;
    let known = gather(&request.sources)?;
    request.check(&known)?;
    let model = request.model.load()?;
    let artists = request.artists(&known, &model, session)?;
    let mut index = StyleIndex::build(&model, artists).user_error("cannot index these artists")?;
    request.link(&known, &mut index, copies.as_ref(), session)?;
    index.save(&request.out).failed("cannot save the index")?;
    session.written(ArtefactKind::Index, &request.out);
    copies.map_or(Ok(()), |copies| copies.finish())?;
    Ok(IndexReport::of(&index))
}

impl IndexRequest {
    fn claim_copies(&self, session: &Session<'_>) -> Result<Option<OutputFolder>> {
        let claim = |folder: &PathBuf| OutputFolder::claim(folder, COMMAND, self.force, session);
        self.adapters_out.as_ref().map(claim).transpose()
    }

    fn check(&self, known: &Artists) -> Result<()> {
        if self.allow_mix && self.adapters_out.is_none() {
            return Err(Error::user(
                "`--allow-mix` is noted in copies of the adapters, and none are asked for",
                "give a folder for them by `--adapters-out DIR`",
            ));
        }
        let has_both = |artist: &Known| !artist.pictures.is_empty() && artist.adapter.is_some();
        if self.adapters_out.is_some() && !known.values().any(has_both) {
            return Err(Error::user(
                "no artist has both pictures and an adapter to put the prototypes into",
                "give both under one name, as in `ada=ada/pictures ada=ada/adapter.safetensors`",
            ));
        }
        Ok(())
    }

    /// The artists with their prototypes.
    fn artists(&self, known: &Artists, model: &StyleModel, session: &Session<'_>) -> Result<Vec<Artist>> {
        let total = known.values().map(|artist| artist.pictures.len()).sum();
        let (mut done, mut artists) = (0, Vec::new());
        for (number, (name, artist)) in known.iter().enumerate() {
            report(session, done, total)?;
            artists.push(match artist.pictures.is_empty() {
                true => from_entry(name, artist.adapter.as_ref(), model)?,
                false => self.described(number, name, &artist.pictures, model, session)?,
            });
            done += artist.pictures.len();
        }
        report(session, done, total)?;
        Ok(artists)
    }

    fn described(
        &self,
        number: usize,
        name: &str,
        pictures: &[PathBuf],
        model: &StyleModel,
        session: &Session<'_>,
    ) -> Result<Artist> {
        if pictures.len() == 1 {
            session.warn(format!("`{name}` has one picture: its style and its subject cannot be told apart"));
        }
        let attempt = || format!("cannot describe `{name}`");
        let artist = Artist::of_works(name, look(model, pictures, session)?, self.prototypes).user_error(attempt())?;
        match self.noise == 0.0 {
            true => Ok(artist),
            false => artist.with_noise(self.noise, self.seed, number as u64).user_error(attempt()),
        }
    }

    /// Writes the copies of adapters, and notes where the adapters are.
    fn link(
        &self,
        known: &Artists,
        index: &mut StyleIndex,
        copies: Option<&OutputFolder>,
        session: &Session<'_>,
    ) -> Result<()> {
        copies.map_or(Ok(()), |copies| copies.clear(Path::new(""), &is_copy))?;
        for (name, known) in known {
            let Some(adapter) = &known.adapter else { continue };
            let path = match copies.filter(|_| !known.pictures.is_empty()) {
                Some(copies) => {
                    let prototypes = index.artist(name).failed("cannot find an artist")?.prototypes.clone();
                    let entry = StyleEntry::new(name, index.model().clone(), prototypes, self.noise);
                    self.copy(adapter, &entry, copies.path(), session)?
                }
                None => adapter.path.clone(),
            };
            let link = AdapterLink { path: path_from(&self.out, &path)?, hash: adapter.hash.clone() };
            index.link(name, link).failed("cannot note an adapter")?;
        }
        Ok(())
    }

    /// A copy of an adapter with the artist's prototypes in its header, which changes nothing else.
    fn copy(&self, adapter: &AdapterFile, entry: &StyleEntry, folder: &Path, session: &Session<'_>) -> Result<PathBuf> {
        let name = &entry.artist;
        if name.starts_with('.') || name.contains(['/', '\\']) {
            return Err(Error::user(
                format!("`{name}` cannot be the name of a file"),
                "give another name, as in `NAME=FILE`",
            ));
        }
        let attempt = || format!("cannot copy the adapter `{}`", adapter.path.display());
        if adapter.path.is_dir() {
            return Err(Error::user(attempt(), "convert it to one file first: `catelier adapter convert`"));
        }
        let file = TensorFile::open(&adapter.path).user_error(attempt())?;
        let tensor = |name: &str| Ok((name.to_owned(), file.tensor(name, &Device::Cpu).user_error(attempt())?));
        let tensors = file.names().map(tensor).collect::<Result<BTreeMap<_, _>>>()?;
        let mut header = file.metadata().clone();
        header.insert(ADAPTER_ENTRY.to_owned(), entry.to_text().failed(attempt())?);
        header.remove(CHECKSUM);
        if self.allow_mix {
            header.insert(MIX_ENTRY.to_owned(), MIX_ALLOWED.to_owned());
        }
        let path = folder.join(format!("{name}{COPY_ENDING}"));
        tensor_file::write_checked(&path, &tensors, &header).failed(attempt())?;
        session.written(ArtefactKind::Adapter, &path);
        Ok(path)
    }
}

const COPY_ENDING: &str = ".safetensors";

fn is_copy(file: &Path) -> bool {
    file.components().count() == 1 && file.to_string_lossy().ends_with(COPY_ENDING)
}

/// The artist whose adapter brings the prototypes.
fn from_entry(name: &str, adapter: Option<&AdapterFile>, model: &StyleModel) -> Result<Artist> {
    let Some((adapter, entry)) = adapter.and_then(|adapter| Some((adapter, adapter.entry.as_ref()?))) else {
        return Err(Error::user(
            format!("`{name}` has no pictures, and the adapter no prototypes"),
            "give a folder with the artist's pictures under the same name, as in `NAME=FOLDER`",
        ));
    };
    let what = adapter.path.display().to_string();
    model.id().require(&what, &entry.model).user_error(format!("cannot index `{name}`"))?;
    Ok(Artist { name: name.to_owned(), prototypes: entry.prototypes.clone(), ..Artist::default() })
}

/// The path from the folder of `file` to `to`, or the whole path if `to` lies elsewhere.
fn path_from(file: &Path, to: &Path) -> Result<String> {
    let whole = |path: &Path| path.canonicalize().user_error(format!("cannot find `{}`", path.display()));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (folder, to) = (whole(folder)?, whole(to)?);
    let path = to.strip_prefix(&folder).unwrap_or(&to);
    output::check_utf8(path, "the index")?;
    Ok(path.to_string_lossy().into_owned())
}

impl IndexReport {
    fn of(index: &StyleIndex) -> Self {
        let artist = |artist: &catelier_style::IndexedArtist| IndexedReport {
            artist: artist.name.clone(),
            works: artist.prototypes.iter().map(|prototype| u64::from(prototype.count)).sum(),
            prototypes: artist.prototypes.len(),
            gap: artist.gap.clone(),
            told_apart: artist.gap.is_told_apart(),
            has_adapter: artist.adapter.is_some(),
        };
        Self { artists: index.artists().iter().map(artist).collect(), calibration: index.calibration().copied() }
    }
}
