//! From a search to a commission: the adapter of an artist in an index.

use std::path::{Path, PathBuf};

use catelier_adapters::file;
use catelier_style::{IndexedArtist, StyleIndex};

use crate::adapter::AdapterSource;
use crate::error::{Context, Error, Result};

/// Entry of an adapter's metadata that says whether it may be mixed with others.
pub const MIX_ENTRY: &str = "catelier.mix";

/// Its value where it may; any other, and none, forbids it.
pub const MIX_ALLOWED: &str = "allowed";

/// Artists of an index, to draw with their adapters.
#[derive(Debug, Clone, Default)]
pub struct Commission {
    /// The index.
    pub index: PathBuf,
    /// The artists, one or two.
    pub artists: Vec<String>,
    /// Draw with both artists' adapters at once.
    pub mix: bool,
}

impl Commission {
    /// The adapters of the artists: one at weight 1, two at 1/2 each.
    ///
    /// # Errors
    /// [`Error::User`] for an artist who is not in the index or has no adapter there, an adapter that was changed since,
    /// and two artists of whom one does not allow to be mixed.
    pub fn adapters(&self) -> Result<Vec<AdapterSource>> {
        let index = StyleIndex::load(&self.index).user_error("cannot use the index")?;
        let expected = if self.mix { 2 } else { 1 };
        if self.artists.len() != expected || (self.mix && self.artists[0] == self.artists[1]) {
            return Err(Error::user(
                format!("{} artists are named, and one is drawn with, or two by `--mix`", self.artists.len()),
                "name one artist, or two different ones with `--mix`",
            ));
        }
        let find = |name: &String| {
            let artist = index.artist(name).user_error(format!("cannot draw with `{name}`"))?;
            self.adapter(artist)
        };
        let weight = 1.0 / expected as f64;
        let paths = self.artists.iter().map(find).collect::<Result<Vec<_>>>()?;
        Ok(paths.into_iter().map(|path| AdapterSource { path, weight }).collect())
    }

    /// The file of an artist's adapter, as it was when the index was made.
    fn adapter(&self, artist: &IndexedArtist) -> Result<PathBuf> {
        let name = &artist.name;
        let Some(link) = &artist.adapter else {
            return Err(Error::user(
                format!("the index names no adapter of `{name}`"),
                "make the index with the artist's adapter, as in `NAME=FILE`, or give it by `--adapter FILE`",
            ));
        };
        let path = self.index.parent().unwrap_or(Path::new("")).join(&link.path);
        let found = file::inspect(&path).user_error(format!("cannot read the adapter of `{name}`"))?;
        if found.model_hash != link.hash {
            return Err(Error::user(
                format!("`{}` is another adapter than the index was made with", path.display()),
                "restore it, or make the index again",
            ));
        }
        let may_mix = found.metadata.get(MIX_ENTRY).is_some_and(|value| value == MIX_ALLOWED);
        match self.mix && !may_mix {
            true => Err(Error::user(
                format!(
                    "`{name}` does not allow to be mixed: `{MIX_ENTRY}` in the adapter's header is not `{MIX_ALLOWED}`"
                ),
                "draw with one artist, or ask the artist",
            )),
            false => Ok(path),
        }
    }
}
