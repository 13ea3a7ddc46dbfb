//! How the predictions of one step are batched.

/// Most elements of the finest level's map with which both adapted conditions of CAT are one batch: smaller products leave the
/// CPU idle between them. Beyond it one batch takes longer (docs/cat-sharing.md), and more memory.
const MOST_IN_ONE_BATCH: usize = 2048 * 64;

/// Whether both adapted conditions of a CAT step go through the UNet as one batch: `cells` are those of all latents of a batch,
/// `channels` those of the finest level.
pub fn conditions_together(cells: usize, channels: usize) -> bool {
    cells * channels <= MOST_IN_ONE_BATCH
}
