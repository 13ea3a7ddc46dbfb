//! The server's bank of prototypes.

use candle_core::{Device, Tensor};
use catelier_features::Feature;

use crate::error::{Error, Result};
use crate::prototype::Prototype;
use crate::vectors::{dot, unit};

/// Prototypes of two artists are never as alike as this; who sends such a one sends another's.
const ANOTHERS: f32 = 1.0 - 1e-5;

/// The server's prototypes: one for every client, and one for every public artist after them.
#[derive(Debug, Clone)]
pub struct Bank {
    names: Vec<String>,
    rows: Vec<Option<Feature>>,
    clients: usize,
    width: usize,
}

impl Bank {
    /// A bank without prototypes for these clients and public artists.
    pub fn new(clients: &[String], public: usize, width: usize) -> Self {
        let public_names = (0..public).map(|number| format!("public artist {}", number + 1));
        let names: Vec<String> = clients.iter().cloned().chain(public_names).collect();
        Self { rows: vec![None; names.len()], names, clients: clients.len(), width }
    }

    /// Takes a client's prototype: `p <- normalise(momentum p + (1 - momentum) q)`, or `q` for a new artist.
    ///
    /// # Errors
    /// [`Error::Prototype`] for one of another width, whose length is not 1 or not finite, or that is another artist's. The
    /// bank then stays as it was.
    pub fn take(&mut self, artist: usize, prototype: &Feature, momentum: f64) -> Result<()> {
        let name = &self.names[artist];
        Prototype { direction: prototype.clone(), count: 1, concentration: 1.0 }.check(name, self.width)?;
        let others = self.rows.iter().zip(&self.names).enumerate().filter(|(other, _)| *other != artist);
        let same = |row: &Option<Feature>| row.as_ref().is_some_and(|row| dot(row, prototype) > ANOTHERS);
        if let Some((_, (_, other))) = others.into_iter().find(|(_, (row, _))| same(row)) {
            return Err(Error::Prototype { artist: name.clone(), reason: format!("it is that of `{other}`") });
        }
        let taken = match &self.rows[artist] {
            None => prototype.clone(),
            Some(row) => {
                let kept = row.iter().zip(prototype);
                let mixed: Vec<f32> = kept
                    .map(|(row, own)| (momentum * f64::from(*row) + (1.0 - momentum) * f64::from(*own)) as f32)
                    .collect();
                unit(&mixed, &format!("the prototypes of `{name}`"))?
            }
        };
        self.rows[artist] = Some(taken);
        Ok(())
    }

    /// Sets the prototype of a public artist, which the server computes itself.
    pub(super) fn set_public(&mut self, artist: usize, prototype: Feature) {
        self.rows[self.clients + artist] = Some(prototype);
    }

    /// All prototypes, `[artists, width]`; a row of zeros where there is none yet.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        let zeros = vec![0f32; self.width];
        let values: Vec<f32> = self.rows.iter().flat_map(|row| row.as_ref().unwrap_or(&zeros)).copied().collect();
        Tensor::from_vec(values, (self.rows.len(), self.width), &Device::Cpu).map_err(Error::tensor("a bank"))
    }

    /// The prototype of an artist.
    pub fn row(&self, artist: usize) -> Option<&Feature> {
        self.rows.get(artist)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank() -> Bank {
        Bank::new(&["ada".to_owned(), "ben".to_owned()], 1, 2)
    }

    #[test]
    fn a_new_prototype_is_taken_whole_and_a_later_one_by_its_share() {
        let mut bank = bank();
        bank.take(0, &vec![1.0, 0.0], 0.9).unwrap();
        assert_eq!(bank.row(0).unwrap(), &[1.0, 0.0]);
        bank.take(0, &vec![0.0, 1.0], 0.9).unwrap();
        let length = (0.81f32 + 0.01).sqrt();
        let row = bank.row(0).unwrap();
        assert!((row[0] - 0.9 / length).abs() < 1e-6 && (row[1] - 0.1 / length).abs() < 1e-6, "{row:?}");
    }

    #[test]
    fn a_poisoned_prototype_is_refused_and_changes_nothing() {
        let mut bank = bank();
        bank.take(1, &vec![0.0, 1.0], 0.9).unwrap();
        let poisoned = [vec![1e6, 0.0], vec![f32::NAN, 0.0], vec![0.0, 0.0], vec![1.0], vec![0.0, 1.0]];
        for prototype in poisoned {
            let error = bank.take(0, &prototype, 0.9).unwrap_err().to_string();
            assert!(error.contains("`ada`"), "{error}");
            assert!(bank.row(0).is_none());
        }
        assert!(bank.take(0, &vec![0.0, 1.0], 0.9).unwrap_err().to_string().contains("that of `ben`"));
    }
}
