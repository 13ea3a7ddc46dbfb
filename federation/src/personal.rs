//! A body that is shared and a head that is each client's own.

use catelier_adapters::{Adapter, LayerUpdate, Targets};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::instructions::Phase;
use crate::roles::{Role, Roles};

/// What becomes of the head in the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadRule {
    /// The head stays at the common start in all rounds: no gradient, no optimizer state, no bytes on the wire. Every
    /// client tunes it at home after the last round (FedBABU, arXiv 2106.06042, algorithm 1).
    Fedbabu,
    /// The head is trained together with the body and stays at home (FedPer, arXiv 1912.00818).
    Fedper,
    /// The head is trained first beside a fixed body, then the body beside the fixed head (FedRep, arXiv 2102.07078).
    Fedrep,
}

/// The split of an adapter into a body, which a strategy aggregates, and a head.
///
/// With one style per client a head that is trained alone in every round learns to draw only that style; a common fixed
/// head keeps the bodies comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Personal {
    /// What becomes of the head.
    pub rule: HeadRule,
    /// The modules of the head; some of the adapter's, and not all.
    pub head: Targets,
}

/// Share of the local steps in which FedRep trains the head.
const HEAD_SHARE: f64 = 0.5;

impl Personal {
    /// The roles of `roles` in the body, and the head's own.
    pub fn roles(&self, roles: Roles) -> Roles {
        let role = match self.rule {
            HeadRule::Fedbabu => Role::Frozen,
            HeadRule::Fedper | HeadRule::Fedrep => Role::Personal,
        };
        Roles { head: Some((self.head.clone(), role)), ..roles }
    }

    /// The parts of a round's local steps; none for the rules that train in one go.
    pub fn phases(&self) -> Vec<Phase> {
        match self.rule {
            HeadRule::Fedrep => vec![
                Phase { share: HEAD_SHARE, body: false, head: true },
                Phase { share: 1.0 - HEAD_SHARE, body: true, head: false },
            ],
            HeadRule::Fedbabu | HeadRule::Fedper => Vec::new(),
        }
    }

    /// The last training at home, after all rounds, from which nothing is sent: FedBABU tunes body and head together,
    /// as its published evaluation does, FedRep the head alone. `None` for FedPer, whose head is trained already.
    pub fn tuning(&self) -> Option<Phase> {
        match self.rule {
            HeadRule::Fedbabu => Some(Phase { share: 1.0, body: true, head: true }),
            HeadRule::Fedrep => Some(Phase { share: 1.0, body: false, head: true }),
            HeadRule::Fedper => None,
        }
    }

    /// Refuses a head that names no module of the adapter, or all of them.
    ///
    /// # Errors
    /// [`Error::Head`].
    pub fn check(&self, adapter: &Adapter) -> Result<()> {
        let (named, modules) = (self.head_of(adapter).len(), adapter.len());
        if (1..modules).contains(&named) {
            return Ok(());
        }
        Err(Error::Head { head: self.head.to_string(), named, modules })
    }

    /// The head's modules of an adapter.
    pub fn head_of(&self, adapter: &Adapter) -> Adapter {
        self.part(adapter, true)
    }

    /// The body's modules of an adapter.
    pub fn body_of(&self, adapter: &Adapter) -> Adapter {
        self.part(adapter, false)
    }

    fn part(&self, adapter: &Adapter, head: bool) -> Adapter {
        let roles = self.roles(Roles::shared());
        let is_head = |module: &str, update: &LayerUpdate| roles.of(module, update, "down") != Role::Shared;
        let part = adapter.iter().filter(|(module, update)| is_head(module, update) == head);
        part.map(|(module, update)| (module.to_owned(), update.clone())).collect()
    }
}
