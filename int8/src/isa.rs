//! Which kernels this processor can run, chosen once, overridable.

use std::str::FromStr;

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use crate::kernels::neon::{Neon, NeonDot};
#[cfg(target_arch = "x86_64")]
use crate::kernels::x86::{Avx2, Avx512Vnni, AvxVnni, X86};
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
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-VNNI: dot products of bytes in 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI: dot products of bytes in 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
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
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Vnni,
    ];

    /// Its name, as the override takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => "neon",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::NeonDot => "neon-dot",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512-vnni",
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
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
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

    /// Its kernels, where this processor can run them: for those who time layers one by one.
    pub fn kernels_if_available(self) -> Option<&'static dyn Kernels> {
        self.is_available().then(|| self.kernels())
    }

    /// Its kernels. Running them on a processor that [`Isa::is_available`] denies is undefined.
    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self {
            Self::Scalar => &Scalar,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => &Neon,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::NeonDot => &NeonDot,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &X86(Avx2),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => &X86(AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => &X86(Avx512Vnni),
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
