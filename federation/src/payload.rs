//! The tensors that travel, by name, and the filter at the client's border.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate};
use catelier_numerics::finite::{is_finite, largest_magnitude};
use serde::{Deserialize, Serialize};

use crate::check::{LARGEST, is_averaged};
use crate::error::{Error, Problem, Result};
use crate::roles::{Role, Roles};

/// What travels: tensors by name, `<module>.<tensor>`, and the alpha of each module. Nothing else leaves a client.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    /// The tensors; of a LoRA `down` `[rank, in]` and `up` `[out, rank]`.
    pub tensors: BTreeMap<String, Tensor>,
    /// Alphas by module.
    pub alphas: BTreeMap<String, f64>,
}

impl Payload {
    /// Bytes of all tensors on the wire.
    pub fn byte_count(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    /// The adapter with the modules of these tensors. A tensor that stayed at home is taken from `template`: on the
    /// server the global adapter, which has its common start. Ranks may differ from the template's where all tensors
    /// travel.
    ///
    /// # Errors
    /// [`Error::Adapters`] if the tensors of a module do not fit each other, or one is missing in both.
    pub fn complete(&self, template: Option<&Adapter>) -> Result<Adapter> {
        let mut modules: BTreeMap<&str, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (path, tensor) in &self.tensors {
            let Some((module, name)) = path.rsplit_once('.') else { continue };
            modules.entry(module).or_default().insert(name.to_owned(), tensor.clone());
        }
        modules.into_iter().map(|(module, tensors)| self.update(module, tensors, template)).collect()
    }

    fn update(
        &self,
        module: &str,
        mut tensors: BTreeMap<String, Tensor>,
        template: Option<&Adapter>,
    ) -> Result<(String, LayerUpdate)> {
        let common = template.and_then(|template| template.get(module));
        for (name, tensor) in common.into_iter().flat_map(LayerUpdate::tensors) {
            tensors.entry(name.to_owned()).or_insert_with(|| tensor.clone());
        }
        let alpha = self.alphas.get(module).copied().or(common.map(LayerUpdate::alpha)).unwrap_or(1.0);
        let update = LayerUpdate::from_tensors(tensors, alpha);
        Ok((module.to_owned(), update.map_err(Error::adapters(&format!("completing `{module}`")))?))
    }
}

/// The filter at a client's border: which tensors may leave, and in which shapes, sizes and ranges.
///
/// The client applies it to its own adapter before anything is sent, wherever a part of the adapter stays at home. Pictures, captions
/// and paths have no place in a [`Payload`], so they cannot pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShareFilter {
    /// The roles of all tensors; only [`Role::Shared`] leaves.
    pub roles: Roles,
    /// Most bytes of all tensors together.
    pub most_bytes: usize,
    /// Largest magnitude of a value; above 0.
    pub largest_value: f64,
    /// Largest rank of a `down` or `up`.
    pub largest_rank: usize,
}

impl ShareFilter {
    /// Lets the shared tensors of these roles pass: up to 2 GiB, rank 1024 and values of 1e12.
    pub fn new(roles: Roles) -> Self {
        Self { roles, most_bytes: 2 << 30, largest_value: LARGEST, largest_rank: 1024 }
    }

    /// What leaves: the shared tensors of `adapter`. `start` is the global adapter that the client trained from.
    ///
    /// Frozen tensors stay behind, after a check that they still have the bits of the start; a changed one shows that
    /// the client trained what it should not, and its `up` would be of no use beside the common `down`.
    ///
    /// # Errors
    /// All problems of what was about to leave.
    pub fn outgoing(&self, adapter: &Adapter, start: Option<&Adapter>) -> Result<Result<Payload, Vec<Problem>>> {
        let (mut payload, mut problems) = (Payload::default(), Vec::new());
        for (module, update) in adapter.iter() {
            let common = start.and_then(|start| start.get(module));
            for (name, tensor) in update.tensors() {
                match self.roles.of(module, update, name) {
                    Role::Shared => {
                        problems.extend(self.problem(module, name, tensor)?);
                        payload.tensors.insert(format!("{module}.{name}"), tensor.detach());
                        payload.alphas.insert(module.to_owned(), update.alpha());
                    }
                    Role::Frozen => problems.extend(moved(module, name, tensor, common)?),
                    Role::Personal => {}
                }
            }
        }
        let bytes = payload.byte_count();
        if bytes > self.most_bytes {
            problems.push(Problem::Bytes { limit: self.most_bytes, found: bytes });
        }
        Ok(if problems.is_empty() { Ok(payload) } else { Err(problems) })
    }

    /// The first problem of a tensor that is about to leave.
    fn problem(&self, module: &str, name: &str, tensor: &Tensor) -> Result<Option<Problem>> {
        let rank = if name == "up" { tensor.dims().get(1) } else { tensor.dims().first() }.copied().unwrap_or(0);
        if name != "magnitude" && rank > self.largest_rank {
            return Ok(Some(Problem::LargeRank { module: module.to_owned(), limit: self.largest_rank, found: rank }));
        }
        if !is_averaged(tensor.dtype()) {
            return Ok(Some(Problem::ElementType {
                module: module.to_owned(),
                found: tensor.dtype().as_str().to_owned(),
            }));
        }
        let failed = || Error::tensor("checking what leaves");
        if !is_finite(tensor).map_err(failed())? {
            return Ok(Some(Problem::NotFinite { count: 1, first: module.to_owned() }));
        }
        let value = largest_magnitude(tensor).map_err(failed())?;
        let above = value > self.largest_value;
        Ok(above.then(|| Problem::OutOfRange { module: module.to_owned(), limit: self.largest_value, found: value }))
    }
}

/// The problem of a frozen tensor that differs from the common start.
fn moved(module: &str, name: &str, tensor: &Tensor, start: Option<&LayerUpdate>) -> Result<Option<Problem>> {
    let Some(common) = start.and_then(|update| update.get(name)) else { return Ok(None) };
    let same = common.dims() == tensor.dims() && {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        let failed = || Error::tensor("comparing frozen tensors");
        let (common, own) = (values(common).map_err(failed())?, values(tensor).map_err(failed())?);
        common.iter().zip(&own).all(|(common, own)| common.to_bits() == own.to_bits())
    };
    Ok((!same).then(|| Problem::Moved { tensor: format!("{module}.{name}") }))
}
