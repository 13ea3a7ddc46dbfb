//! What becomes of each tensor in a round: averaged, held at the common start, or kept at home.

use catelier_adapters::{Adapter, LayerUpdate, ModuleInfo, ModuleKind, Targets};
use serde::{Deserialize, Serialize};

/// What becomes of a tensor in a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It is trained, sent and aggregated.
    #[default]
    Shared,
    /// It stays at the common start: no gradient, no optimizer state, and it never travels.
    Frozen,
    /// It is trained and kept at home.
    Personal,
}

/// The roles of all tensors of an adapter: by factor, and by module for a head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Roles {
    /// The role of every `down`.
    pub down: Role,
    /// The role of every `up`, and of a DoRA's magnitudes.
    pub up: Role,
    /// The modules of the head, and the role of all of their tensors.
    pub head: Option<(Targets, Role)>,
}

impl Roles {
    /// Every tensor is trained, sent and aggregated.
    pub fn shared() -> Self {
        Self::default()
    }

    /// The role of the tensor `name` of a module's update.
    pub fn of(&self, module: &str, update: &LayerUpdate, name: &str) -> Role {
        match &self.head {
            Some(_) => self.of_shape(module, &update.weight_shape(), name),
            None => self.of_shape(module, &[], name),
        }
    }

    /// The role of the tensor `name` of a module whose weight has this shape.
    pub(crate) fn of_shape(&self, module: &str, weight_shape: &[usize], name: &str) -> Role {
        match &self.head {
            Some((head, role)) if head.chooses(&info(module, weight_shape)) => *role,
            _ if name == "down" => self.down,
            _ => self.up,
        }
    }

    /// Whether every tensor is trained, sent and aggregated.
    pub fn are_shared(&self) -> bool {
        *self == Self::default()
    }

    /// Whether some tensor needs a common start, since it is not aggregated and yet the same everywhere, or is
    /// completed from the global adapter.
    pub fn need_start(&self) -> bool {
        !self.are_shared()
    }

    /// Names of the tensors of this role, `<module>.<tensor>`, in order.
    pub fn names(&self, adapter: &Adapter, role: Role) -> Vec<String> {
        let of_module = |(module, update): (&str, &LayerUpdate)| -> Vec<String> {
            let named = update.tensors().filter(|(name, _)| self.of(module, update, name) == role);
            named.map(|(name, _)| format!("{module}.{name}")).collect()
        };
        adapter.iter().flat_map(of_module).collect()
    }
}

/// The module as its base lists it. Stride and padding are unknown here, and no pattern asks for them.
fn info(module: &str, weight_shape: &[usize]) -> ModuleInfo {
    let kind = match *weight_shape {
        [out_channels, in_channels, kernel, _] => {
            ModuleKind::Conv2d { in_channels, out_channels, kernel, stride: 1, padding: 0 }
        }
        [out_features, in_features] => ModuleKind::Linear { in_features, out_features },
        _ => ModuleKind::Linear { in_features: 0, out_features: 0 },
    };
    ModuleInfo { path: module.to_owned(), kind }
}
