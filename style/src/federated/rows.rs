//! Works as rows of numbers: what clients train on, and what all methods are measured on.

use candle_core::{Device, Tensor};
use catelier_features::Feature;

use super::Participant;
use crate::error::{Error, Result};
use crate::losses::unit_rows;
use crate::model::Standardisation;

/// The works of one client, or of several together, in rows `[works * views, channels + 1]`.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) rows: Tensor,
    /// By work: its label, the row of its first view, and the number of its views.
    pub(super) works: Vec<Work>,
}

/// Where a work's views are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) label: u32,
    pub(super) first: u32,
    pub(super) views: u32,
}

impl Rows {
    /// The works of these participants, labelled from `first_label` on.
    fn of(participants: &[Participant], first_label: u32, standardisation: &Standardisation) -> Result<Self> {
        let (mut works, mut views) = (Vec::new(), Vec::new());
        for (label, participant) in (first_label..).zip(participants) {
            for work in &participant.learn {
                works.push(Work { label, first: views.len() as u32, views: work.len() as u32 });
                views.extend(work);
            }
        }
        Ok(Self { rows: standardisation.rows(&views)?, works })
    }

    /// The first view of every work.
    pub(super) fn as_they_are(&self) -> Result<Tensor> {
        let first: Vec<u32> = self.works.iter().map(|work| work.first).collect();
        self.chosen(&first)
    }

    /// The rows with these numbers.
    pub(super) fn chosen(&self, numbers: &[u32]) -> Result<Tensor> {
        let numbers = Tensor::new(numbers, &Device::Cpu).map_err(Error::tensor("a batch"))?;
        self.rows.index_select(&numbers, 0).map_err(Error::tensor("a batch"))
    }
}

/// Everything that methods train on and are measured on.
pub(super) struct Prepared {
    pub(super) names: Vec<String>,
    pub(super) standardisation: Standardisation,
    /// One for each client, labelled by its number.
    pub(super) clients: Vec<Rows>,
    /// The clients' works together.
    pub(super) all: Rows,
    /// The public works, labelled after the clients; `None` where there are none.
    pub(super) public: Option<Rows>,
    /// Number of public artists.
    pub(super) public_artists: usize,
    /// The held-out works, and the number of the client of each.
    pub(super) queries: Tensor,
    pub(super) query_labels: Vec<usize>,
    /// The features of the held-out works and of the works to learn from, as the tower gives them.
    raw: [Vec<Feature>; 2],
}

/// Directions of the held-out works and of the works to learn from, `[n, width]`, by one model.
pub(super) struct Seen {
    pub(super) queries: Tensor,
    pub(super) works: Tensor,
}

impl Prepared {
    pub(super) fn of(participants: &[Participant], public: &[Participant]) -> Result<Self> {
        let first_views = |participants: &[Participant]| {
            participants.iter().flat_map(|own| &own.learn).filter_map(|work| work.first()).cloned().collect::<Vec<_>>()
        };
        let known = first_views(if public.is_empty() { participants } else { public });
        let standardisation = Standardisation::of(&known.iter().collect::<Vec<_>>())?;
        let clients = (0u32..).zip(participants);
        let clients = clients.map(|(label, own)| Rows::of(std::slice::from_ref(own), label, &standardisation));
        let held_out = || {
            participants.iter().enumerate().flat_map(|(label, own)| own.held_out.iter().map(move |work| (label, work)))
        };
        let queries: Vec<&Feature> = held_out().map(|(_, work)| work).collect();
        let public_rows = match public.is_empty() {
            true => None,
            false => Some(Rows::of(public, participants.len() as u32, &standardisation)?),
        };
        Ok(Self {
            names: participants.iter().map(|own| own.name.clone()).collect(),
            clients: clients.collect::<Result<_>>()?,
            all: Rows::of(participants, 0, &standardisation)?,
            public: public_rows,
            public_artists: public.len(),
            queries: standardisation.rows(&queries)?,
            query_labels: held_out().map(|(label, _)| label).collect(),
            raw: [queries.into_iter().cloned().collect(), first_views(participants)],
            standardisation,
        })
    }

    /// Works as the tower sees them.
    pub(super) fn raw(&self) -> Result<Vec<Seen>> {
        let directions = |features: &[Feature]| {
            let width = features.first().map_or(0, Vec::len);
            let rows = Tensor::from_vec(features.concat(), (features.len(), width), &Device::Cpu);
            rows.and_then(|rows| unit_rows(&rows)).map_err(Error::tensor("directions"))
        };
        Ok(vec![Seen { queries: directions(&self.raw[0])?, works: directions(&self.raw[1])? }])
    }
}
