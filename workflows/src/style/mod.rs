//! Find the artist: an index of artists, a search by pictures, and the training of the style model.

mod artists;
mod commission;
mod index;
mod model;
mod search;
mod train;
mod works;

pub use artists::ArtistSource;
pub use commission::{Commission, MIX_ALLOWED, MIX_ENTRY};
pub use index::{IndexReport, IndexRequest, IndexedReport, index};
pub use model::StyleModelRequest;
pub use search::{SearchReport, SearchRequest, search};
pub use train::{StyleTrainReport, StyleTrainRequest, train};
