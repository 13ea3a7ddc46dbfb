//! Whether the predictions of one step form one batch.

/// Largest number of elements in the finest level's map for which both adapted conditions of a CAT step form one batch.
/// In smaller maps, starting an operation costs more than its arithmetic; in larger ones, one batch takes more time and
/// memory than two (docs/cat-sharing.md).
const MOST_IN_ONE_BATCH: usize = 2048 * 64;

/// Whether both adapted conditions of a CAT step go through the UNet as one batch. `cells` is the number of cells of
/// all latents of the batch, `channels` the width of the finest level.
pub fn conditions_together(cells: usize, channels: usize) -> bool {
    cells * channels <= MOST_IN_ONE_BATCH
}
