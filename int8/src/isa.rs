//! Which kernels this processor can run, chosen once, overridable.

use std::str::FromStr;

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use crate::kernels::neon::{Neon, NeonDot};
use crate::kernels::{Kernels, scalar::Scalar};

/// A set of kernels, by the instructions it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: the definition.
    Scalar,
    /// 64-bit ARM without dot products: Cortex-A53, A57, A72.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
    /// 64-bit ARM with `sdot`: Cortex-A55, A75, A76, A78.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonDot,
}

/// A name that is no set of kernels, or one that this processor lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No such name.
    #[error("there are no kernels called {0:?}; there are {1}")]
    Unknown(String, String),
    /// The processor has not the instructions.
    #[error("this processor cannot run the {0} kernels; it can run {1}")]
    Unsupported(&'static str, String),
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: &[Self] = &[
        Self::Scalar,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Self::Neon,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Self::NeonDot,
    ];

    /// Its name, as the override takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => "neon",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::NeonDot => "neon-dot",
        }
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
        }
    }

    /// The sets that this processor can run, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest set that this processor can run.
    pub fn best() -> Self {
        Self::ALL.iter().rev().copied().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// Its kernels. Running them on a processor that [`Isa::is_available`] denies is undefined.
    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self {
            Self::Scalar => &Scalar,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => &Neon,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::NeonDot => &NeonDot,
        }
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    /// Reads a name; only a set that this processor can run is taken.
    fn from_str(name: &str) -> Result<Self, IsaError> {
        let names = |sets: Vec<Self>| sets.into_iter().map(Self::name).collect::<Vec<_>>().join(", ");
        let isa = Self::ALL.iter().copied().find(|isa| isa.name() == name);
        let isa = isa.ok_or_else(|| IsaError::Unknown(name.into(), names(Self::ALL.to_vec())))?;
        if !isa.is_available() {
            return Err(IsaError::Unsupported(isa.name(), names(Self::available())));
        }
        Ok(isa)
    }
}
