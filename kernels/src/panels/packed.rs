//! Packed weights, in the order in which the inner loop reads them.

use std::borrow::Cow;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::vectors::detects_wide_vectors;
use super::{Element, PANEL};

/// Bytes of the largest weight that is kept transposed too: small weights belong to small models, where transposing a
/// weight costs as much as multiplying by it.
pub const KEPT_TRANSPOSED: usize = 2 << 20;

/// Elements at a multiple of 64 bytes, so that no load crosses a cache line.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<E>(pub(super) [E; PANEL]);

// Elements of two or four bytes; other sizes would leave gaps between blocks.
const _: () = assert!(size_of::<Block<f32>>() == 128 && size_of::<Block<half::bf16>>() == 64);

/// A weight `[out, taps, in]` as panels of 32 outputs, each `[taps, in / GROUP, PANEL, GROUP]`; missing outputs and
/// channels are zeros.
#[derive(Debug)]
pub struct Packed<E> {
    blocks: Vec<Block<E>>,
    /// All transposed panels of a small weight; computed by the first backward pass.
    transposed: OnceLock<Vec<Block<E>>>,
    out_channels: usize,
    taps: usize,
    in_channels: usize,
}

impl<E: Element> Packed<E> {
    /// Packs `weight: [out, taps, in]`, given as a function of the index.
    ///
    /// # Panics
    /// On a CPU without 512-bit vectors, see [`has_wide_vectors`](super::has_wide_vectors). bf16 weights can be packed
    /// there even without bf16 instructions, because [`winograd`](super::winograd()) multiplies in f32.
    pub fn new((out_channels, taps, in_channels): (usize, usize, usize), weight: impl Fn(usize) -> f32 + Sync) -> Self {
        assert!(detects_wide_vectors(), "panels need 512-bit vectors");
        let mut this = Self { blocks: Vec::new(), transposed: OnceLock::new(), out_channels, taps, in_channels };
        this.blocks = vec![Block([E::default(); PANEL]); this.panels() * this.blocks_per_panel()];
        let (padded, per_panel) = (this.padded_channels(), this.blocks_per_panel());
        this.blocks.par_chunks_mut(per_panel.max(1)).enumerate().for_each(|(panel, blocks)| {
            let first = panel * PANEL;
            for output in first..out_channels.min(first + PANEL) {
                for tap in 0..taps {
                    for channel in 0..in_channels {
                        let value = weight((output * taps + tap) * in_channels + channel);
                        let (block, place) = position::<E>(tap * padded + channel, output - first);
                        blocks[block].0[place] = E::from_f32(value);
                    }
                }
            }
        });
        this
    }

    /// The unpacked weight, `[out, taps, in]`.
    #[cfg(test)]
    fn unpack(&self) -> Vec<f32> {
        (0..self.out_channels).flat_map(|output| self.row(output)).collect()
    }

    /// The weights of one output, `[taps, in]`.
    fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let blocks = &self.blocks[output / PANEL * self.blocks_per_panel()..];
        let padded = self.padded_channels();
        (0..self.taps * self.in_channels).map(move |index| {
            let depth = index / self.in_channels * padded + index % self.in_channels;
            let (block, place) = position::<E>(depth, output % PANEL);
            E::pick(&blocks[block].0[place / E::GROUP * E::GROUP..][..E::GROUP], place % E::GROUP)
        })
    }

    /// Squared norm of each output's weights, `[out]`.
    pub fn squared_norms(&self) -> Vec<f64> {
        let squared_norm = |output| self.row(output).map(|weight| f64::from(weight).powi(2)).sum();
        (0..self.out_channels).into_par_iter().map(squared_norm).collect()
    }

    /// Number of channels of the result and of the left operand.
    pub(super) fn sizes(&self, direction: Direction) -> (usize, usize) {
        match direction {
            Direction::Forward => (self.out_channels, self.in_channels),
            Direction::Backward => (self.in_channels, self.out_channels),
        }
    }

    fn panels(&self) -> usize {
        self.out_channels.div_ceil(PANEL)
    }

    fn padded_channels(&self) -> usize {
        self.in_channels.next_multiple_of(E::GROUP)
    }

    fn blocks_per_panel(&self) -> usize {
        self.taps * self.padded_channels()
    }

    /// Panel `index` of the weight.
    pub(super) fn panel(&self, index: usize) -> Panel<'_, E> {
        let size = self.blocks_per_panel();
        Panel(Cow::Borrowed(&self.blocks[index * size..][..size]))
    }

    /// Panel `index` of the transposed weight, `[in, reversed taps, out]`.
    pub(super) fn transposed_panel(&self, index: usize) -> Panel<'_, E> {
        if size_of_val(self.blocks.as_slice()) > KEPT_TRANSPOSED {
            return Panel(Cow::Owned(self.transpose(index)));
        }
        let all = || (0..self.in_channels.div_ceil(PANEL)).flat_map(|index| self.transpose(index)).collect();
        let size = self.taps * self.padded_outputs();
        Panel(Cow::Borrowed(&self.transposed.get_or_init(all)[index * size..][..size]))
    }

    fn padded_outputs(&self) -> usize {
        self.out_channels.next_multiple_of(E::GROUP)
    }

    fn transpose(&self, index: usize) -> Vec<Block<E>> {
        let outputs = self.padded_outputs();
        let mut blocks = vec![Block([E::default(); PANEL]); self.taps * outputs];
        let (first, padded) = (index * PANEL, self.padded_channels());
        let channels = first..padded.min(first + PANEL);
        for tap in 0..self.taps {
            let transposed = &mut blocks[(self.taps - 1 - tap) * outputs..][..outputs];
            for (panel, transposed) in transposed.chunks_mut(PANEL).enumerate() {
                let source = panel * self.blocks_per_panel() + tap * padded;
                transpose(&self.blocks[source + channels.start..source + channels.end], transposed);
            }
        }
        blocks
    }
}

/// Index of the block, and the index in it, of element `depth` (tap and channel) of output `output` of a panel.
fn position<E: Element>(depth: usize, output: usize) -> (usize, usize) {
    let place = (depth / E::GROUP * PANEL + output) * E::GROUP + depth % E::GROUP;
    (place / PANEL, place % PANEL)
}

/// Transposes up to 32 channels by 32 outputs.
fn transpose<E: Element>(source: &[Block<E>], transposed: &mut [Block<E>]) {
    if let (Some(source), Some(transposed)) = (source.first_chunk::<PANEL>(), transposed.first_chunk_mut::<PANEL>()) {
        return E::transpose(Block::square(source), Block::square_mut(transposed));
    }
    for output in 0..transposed.len() {
        for channel in 0..source.len() {
            let (from, place) = position::<E>(channel, output);
            let (to, at) = position::<E>(output, channel);
            transposed[to].0[at] = source[from].0[place];
        }
    }
}

#[expect(unsafe_code, reason = "a block is its elements with an alignment")]
impl<E> Block<E> {
    fn square(blocks: &[Self; PANEL]) -> &[[E; PANEL]; PANEL] {
        // SAFETY: a block is exactly one array of elements whose size is a multiple of the alignment.
        unsafe { &*std::ptr::from_ref(blocks).cast() }
    }

    fn square_mut(blocks: &mut [Self; PANEL]) -> &mut [[E; PANEL]; PANEL] {
        // SAFETY: as above.
        unsafe { &mut *std::ptr::from_mut(blocks).cast() }
    }
}

/// Whether a product uses the weight or its transpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The weight, for the forward pass.
    Forward,
    /// The transpose, for the gradient of the input.
    Backward,
}

/// The panels of a weight or of its transpose.
pub(super) enum Panels<'a, E: Clone + 'static> {
    Kept(&'a Packed<E>),
    /// Transposed at each use.
    Transposing(&'a Packed<E>),
    /// Transposed once, because each is used several times.
    Transposed(Vec<Panel<'a, E>>),
}

impl<'a, E: Element> Panels<'a, E> {
    /// The panels of `weight`; `often` says that each is used several times.
    pub(super) fn of(weight: &'a Packed<E>, direction: Direction, often: bool) -> Self {
        let all = || (0..weight.in_channels.div_ceil(PANEL)).into_par_iter();
        match direction {
            Direction::Forward => Self::Kept(weight),
            Direction::Backward if often => {
                Self::Transposed(all().map(|index| weight.transposed_panel(index)).collect())
            }
            Direction::Backward => Self::Transposing(weight),
        }
    }

    pub(super) fn get(&self, index: usize) -> Panel<'_, E> {
        match self {
            Self::Kept(weight) => weight.panel(index),
            Self::Transposing(weight) => weight.transposed_panel(index),
            Self::Transposed(panels) => panels[index].reborrow(),
        }
    }
}

/// The elements of one panel, aligned to 64 bytes.
pub(super) struct Panel<'a, E: Clone>(Cow<'a, [Block<E>]>);

impl<E: Element> Panel<'_, E> {
    pub(super) fn reborrow(&self) -> Panel<'_, E> {
        Panel(Cow::Borrowed(&self.0))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len() * PANEL
    }

    /// Element `depth` (tap and channel) of all outputs of the panel.
    #[inline(always)]
    pub(super) fn outputs(&self, depth: usize) -> [f32; PANEL] {
        let (mut outputs, blocks) = ([0.0; PANEL], &self.0[depth / E::GROUP * E::GROUP..][..E::GROUP]);
        for (outputs, block) in outputs.chunks_exact_mut(PANEL / E::GROUP).zip(blocks) {
            for (output, group) in outputs.iter_mut().zip(block.0.chunks_exact(E::GROUP)) {
                *output = E::pick(group, depth % E::GROUP);
            }
        }
        outputs
    }

    pub(super) fn as_ptr(&self) -> *const E {
        self.0.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn weight(index: usize) -> f32 {
        (index % 251) as f32 - 125.0
    }

    fn comes_back<E: Element>() {
        if !detects_wide_vectors() {
            return;
        }
        for (out, taps, inputs) in [(1, 1, 1), (33, 9, 5), (32, 1, 64), (70, 4, 7)] {
            let packed = Packed::<E>::new((out, taps, inputs), weight);
            let expected: Vec<f32> = (0..out * taps * inputs).map(weight).collect();
            assert!(packed.unpack() == expected, "{out} x {taps} x {inputs}");
        }
    }

    #[test]
    fn a_packed_weight_comes_back() {
        comes_back::<f32>();
        comes_back::<bf16>();
    }

    fn transposes<E: Element + Into<f32>>() {
        if !detects_wide_vectors() {
            return;
        }
        for (out, taps, inputs) in [(33, 9, 5), (64, 1, 70), (7, 2, 32)] {
            let packed = Packed::<E>::new((out, taps, inputs), weight);
            let transposed = Packed::<E>::new((inputs, taps, out), |index| {
                let (output, tap, channel) = (index / out / taps, index / out % taps, index % out);
                weight((channel * taps + taps - 1 - tap) * inputs + output)
            });
            for panel in 0..transposed.panels() {
                let values = |panel: Panel<'_, E>| -> Vec<f32> {
                    panel.0.iter().flat_map(|block| block.0.map(Into::<f32>::into)).collect()
                };
                assert!(
                    values(packed.transposed_panel(panel)) == values(transposed.panel(panel)),
                    "{out} {taps} {inputs}"
                );
            }
        }
    }

    #[test]
    fn a_transposed_panel_is_a_panel_of_the_transposed_weight() {
        transposes::<f32>();
        transposes::<bf16>();
    }
}
