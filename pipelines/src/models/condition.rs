//! The condition of a prediction, one row per sample.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// The condition of a prediction: encoded prompts, one row per sample.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Hidden states of the text encoder: `[batch, tokens, width]`.
    pub context: Tensor,
    /// SDXL's added condition; `None` for the other families.
    pub added: Option<AddedCondition>,
}

/// SDXL's added condition: the pooled prompt and the image sizes.
#[derive(Debug, Clone)]
pub struct AddedCondition {
    /// Pooled and projected output of the second text encoder: `[batch, width]`.
    pub pooled: Tensor,
    /// [`ImageSizes`] of each sample in pixels: `[batch, 6]`.
    pub time_ids: Tensor,
}

/// The image sizes that SDXL is conditioned on, in pixels (SDXL report, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSizes {
    /// Height and width of the image before resizing.
    pub original: (u32, u32),
    /// Top and left of the crop.
    pub crop: (u32, u32),
    /// Height and width of the image that the model sees.
    pub target: (u32, u32),
}

impl ImageSizes {
    /// Number of values.
    pub const COUNT: usize = 6;

    /// The sizes of an uncropped image of `height` × `width` pixels.
    pub fn uncropped(height: u32, width: u32) -> Self {
        Self { original: (height, width), crop: (0, 0), target: (height, width) }
    }

    /// The six values in SDXL's order.
    fn numbers(self) -> [f32; Self::COUNT] {
        let Self { original, crop, target } = self;
        [original.0, original.1, crop.0, crop.1, target.0, target.1].map(|pixels| pixels as f32)
    }

    /// One row per entry of `sizes`: `[batch, 6]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device is out of memory.
    pub fn time_ids(sizes: &[Self], dtype: DType, device: &Device) -> Result<Tensor> {
        let numbers: Vec<f32> = sizes.iter().flat_map(|sizes| sizes.numbers()).collect();
        Ok(Tensor::from_vec(numbers, (sizes.len(), Self::COUNT), device)?.to_dtype(dtype)?)
    }
}

impl Condition {
    /// Number of samples.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the context has no dimension.
    pub fn batch(&self) -> Result<usize> {
        Ok(self.context.dim(0)?)
    }

    /// The rows of all `parts`, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there are no parts, or only some have SDXL's added condition.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let contexts: Vec<&Tensor> = parts.iter().map(|part| &part.context).collect();
        let added: Vec<&AddedCondition> = parts.iter().filter_map(|part| part.added.as_ref()).collect();
        if parts.is_empty() || (!added.is_empty() && added.len() != parts.len()) {
            return Err(Error::InvalidInput {
                what: "conditions",
                expected: "at least one, all of them with or all without added conditions".into(),
                found: format!("{}, {} of them with", parts.len(), added.len()),
            });
        }
        let added = if added.is_empty() { None } else { Some(AddedCondition::cat(&added)?) };
        Ok(Self { context: Tensor::cat(&contexts, 0)?, added })
    }

    /// All rows `count` times, one copy after the other: rows `0 1 0 1` for two rows and a count of two.
    ///
    /// # Errors
    /// [`Error::Tensor`] if memory is short.
    pub fn repeat(&self, count: usize) -> Result<Self> {
        self.map(|tensor| {
            let mut times = vec![1; tensor.rank()];
            times[0] = count;
            tensor.repeat(times)
        })
    }

    /// The rows at these indices, in this order; an index may occur more than once.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if an index is past the last row.
    pub fn rows(&self, rows: &[usize]) -> Result<Self> {
        let batch = self.batch()?;
        if let Some(row) = rows.iter().find(|&&row| row >= batch) {
            return Err(Error::InvalidInput {
                what: "row",
                expected: format!("less than {batch}"),
                found: row.to_string(),
            });
        }
        let numbers: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let numbers = Tensor::from_vec(numbers, rows.len(), self.context.device())?;
        self.map(|tensor| tensor.index_select(&numbers, 0))
    }

    /// Sets the image sizes, one per row; changes nothing without an added condition.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is not one size per row.
    pub fn with_sizes(mut self, sizes: &[ImageSizes]) -> Result<Self> {
        let batch = self.batch()?;
        if sizes.len() != batch {
            return Err(Error::InvalidInput {
                what: "image sizes",
                expected: format!("{batch}, one for each row"),
                found: sizes.len().to_string(),
            });
        }
        if let Some(added) = &mut self.added {
            added.time_ids = ImageSizes::time_ids(sizes, added.time_ids.dtype(), added.pooled.device())?;
        }
        Ok(self)
    }

    /// The same values without a graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        let added = self
            .added
            .as_ref()
            .map(|added| AddedCondition { pooled: added.pooled.detach(), time_ids: added.time_ids.detach() });
        Self { context: self.context.detach(), added }
    }

    fn map(&self, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let added = match &self.added {
            None => None,
            Some(AddedCondition { pooled, time_ids }) => {
                Some(AddedCondition { pooled: change(pooled)?, time_ids: change(time_ids)? })
            }
        };
        Ok(Self { context: change(&self.context)?, added })
    }
}

impl AddedCondition {
    /// The rows of all `parts`, in order.
    pub(super) fn cat(parts: &[&Self]) -> Result<Self> {
        let pooled: Vec<&Tensor> = parts.iter().map(|part| &part.pooled).collect();
        let time_ids: Vec<&Tensor> = parts.iter().map(|part| &part.time_ids).collect();
        Ok(Self { pooled: Tensor::cat(&pooled, 0)?, time_ids: Tensor::cat(&time_ids, 0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(rows: &[f32]) -> Condition {
        let column = |width| {
            let values: Vec<f32> = rows.iter().flat_map(|&row| vec![row; width]).collect();
            Tensor::from_vec(values, (rows.len(), width), &Device::Cpu).unwrap()
        };
        let context = column(3).unsqueeze(2).unwrap();
        Condition { context, added: Some(AddedCondition { pooled: column(2), time_ids: column(6) }) }
    }

    fn first_column(condition: &Condition) -> Vec<f32> {
        let added = condition.added.as_ref().unwrap();
        let pooled: Vec<f32> = added.pooled.narrow(1, 0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let context: Vec<f32> = condition.context.narrow(1, 0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(context, pooled);
        context
    }

    #[test]
    fn rows_are_taken_in_the_order_asked_for() {
        assert_eq!(first_column(&condition(&[1., 2., 3.]).rows(&[2, 0, 2]).unwrap()), [3., 1., 3.]);
    }

    #[test]
    fn repeating_repeats_the_whole_block() {
        assert_eq!(first_column(&condition(&[1., 2.]).repeat(2).unwrap()), [1., 2., 1., 2.]);
    }

    #[test]
    fn concatenation_keeps_every_row() {
        let (one, two) = (condition(&[1.]), condition(&[2., 3.]));
        assert_eq!(first_column(&Condition::cat(&[&one, &two]).unwrap()), [1., 2., 3.]);
    }

    #[test]
    fn mixed_families_are_refused() {
        let one = condition(&[1.]);
        let other = Condition { added: None, ..one.clone() };
        assert!(matches!(Condition::cat(&[&one, &other]), Err(Error::InvalidInput { .. })));
        assert!(matches!(one.rows(&[1]), Err(Error::InvalidInput { .. })));
    }

    #[test]
    fn sizes_fill_the_time_ids_in_the_order_of_the_report() {
        let sizes = ImageSizes { original: (96, 64), crop: (8, 4), target: (64, 96) };
        let condition = condition(&[1.]).with_sizes(&[sizes]).unwrap();
        let time_ids = condition.added.unwrap().time_ids.to_vec2::<f32>().unwrap();
        assert_eq!(time_ids, [[96., 64., 8., 4., 64., 96.]]);
    }
}
