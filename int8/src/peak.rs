//! The most multiplications and additions that a processor can do in a second, measured: what the kernels are held against.
//!
//! Loops that touch nothing but registers, with the very instructions that the kernels use. The best of several short runs counts, as
//! a busy machine only ever makes them slower. Time comes in as a clock.

use crate::isa::Isa;

/// Seconds from any fixed moment on; best of all the processor time of the thread.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Products of bytes, as the dense kernels of `isa` form them, in 10^9 a second on one core. `None` where the set has no
/// instructions of its own for them, or the processor has not the set.
pub fn int8(isa: Isa, clock: Clock) -> Option<f64> {
    rates(isa, clock).map(|rates| rates.0)
}

/// Fused multiplications and additions of `f32` in 10^9 a second on one core, in the widest registers that `isa` uses; likewise.
pub fn float(isa: Isa, clock: Clock) -> Option<f64> {
    rates(isa, clock).and_then(|rates| rates.1)
}

#[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))))]
fn rates(_: Isa, _: Clock) -> Option<(f64, Option<f64>)> {
    None
}

#[cfg(target_arch = "x86_64")]
fn rates(isa: Isa, clock: Clock) -> Option<(f64, Option<f64>)> {
    isa.is_available().then_some(())?;
    let narrow = || is_x86_feature_detected!("fma").then(|| x86::floats_256(clock));
    match isa {
        Isa::Scalar => None,
        Isa::Avx2 => Some((x86::words(clock).max(x86::bytes(clock)), narrow())),
        Isa::AvxVnni => Some((x86::quads_256(clock), narrow())),
        Isa::Avx512Vnni => Some((x86::quads_512(clock), Some(x86::floats_512(clock)))),
    }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
fn rates(isa: Isa, clock: Clock) -> Option<(f64, Option<f64>)> {
    isa.is_available().then_some(())?;
    match isa {
        Isa::Scalar => None,
        Isa::Neon => Some((arm::pairs(clock), Some(arm::floats(clock)))),
        Isa::NeonDot => Some((arm::quads(clock), Some(arm::floats(clock)))),
    }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod arm {
    use std::arch::asm;

    use super::Clock;

    /// Short runs of which the best counts.
    const RUNS: usize = 40;
    /// Times that a loop's body runs in one run.
    const ROUNDS: usize = 40_000;
    /// Registers that add up, enough to hide any instruction's latency.
    const SUMS: usize = 12;

    /// Defines a measurement: the name, products for one sum, and instructions for one sum, whose register has the number `n`.
    /// Register 12 is free for what comes before a sum.
    macro_rules! measure {
        ($(#[$doc:meta])* $name:ident, $products:literal, $($line:literal)*) => {
            $(#[$doc])*
            pub(super) fn $name(clock: Clock) -> f64 {
                let round = || {
                    // SAFETY: touches the registers named here and nothing else; callers have made sure of the instructions.
                    unsafe {
                        asm!(
                            ".arch_extension dotprod",
                            // Zeros everywhere: no value is ever a slow one.
                            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 30, 31",
                            "movi v\\n\\().2d, #0",
                            ".endr",
                            "2:",
                            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
                            $($line,)*
                            ".endr",
                            "subs {left}, {left}, #1",
                            "b.ne 2b",
                            left = inout(reg) ROUNDS => _,
                            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                            out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v30") _,
                            out("v31") _,
                            options(nomem, nostack),
                        );
                    }
                };
                let rate = || {
                    let start = clock();
                    round();
                    ($products * SUMS * ROUNDS) as f64 / (clock() - start) / 1e9
                };
                (0..RUNS).map(|_| rate()).fold(0.0, f64::max)
            }
        };
    }

    measure!(
        /// Pairs of products in 16 bits.
        pairs, 16,
        "smull v12.8h, v30.8b, v31.8b" "smlal2 v12.8h, v30.16b, v31.16b" "sadalp v\\n\\().4s, v12.8h"
    );
    measure!(
        /// Dot products of four bytes.
        quads, 16, "sdot v\\n\\().4s, v30.16b, v31.16b"
    );
    measure!(
        /// `f32`, fused.
        floats, 4, "fmla v\\n\\().4s, v30.4s, v31.4s"
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    use super::Clock;

    /// Short runs of which the best counts.
    const RUNS: usize = 40;
    /// Times that a loop's body runs in one run.
    const ROUNDS: usize = 40_000;
    /// Registers that add up, enough to hide any instruction's latency.
    const SUMS: usize = 12;

    /// Defines a measurement: the name, products for one sum, and instructions for one sum, whose register has the number `{n}`.
    macro_rules! measure {
        ($(#[$doc:meta])* $name:ident, $products:literal, $($line:literal)*) => {
            $(#[$doc])*
            pub(super) fn $name(clock: Clock) -> f64 {
                let round = || {
                    // SAFETY: touches the registers named here and nothing else; callers have made sure of the instructions.
                    unsafe {
                        asm!(
                            // Zeros everywhere: no value is ever a slow one.
                            "vzeroall",
                            "2:",
                            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
                            $($line,)*
                            ".endr",
                            "dec {left}",
                            "jnz 2b",
                            left = inout(reg) ROUNDS => _,
                            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                            options(nomem, nostack),
                        );
                    }
                };
                let rate = || {
                    let start = clock();
                    round();
                    ($products * SUMS * ROUNDS) as f64 / (clock() - start) / 1e9
                };
                (0..RUNS).map(|_| rate()).fold(0.0, f64::max)
            }
        };
    }

    measure!(
        /// AVX2: 16-bit integers.
        words, 16, "vpmaddwd ymm12, ymm13, ymm14" "vpaddd ymm\\n, ymm\\n, ymm12"
    );
    measure!(
        /// AVX2: bytes.
        bytes, 32, "vpmaddubsw ymm12, ymm13, ymm14" "vpmaddwd ymm12, ymm12, ymm15" "vpaddd ymm\\n, ymm\\n, ymm12"
    );
    measure!(
        /// AVX-VNNI.
        quads_256, 32, "{{vex}} vpdpbusd ymm\\n, ymm13, ymm14"
    );
    measure!(
        /// AVX-512 VNNI.
        quads_512, 64, "vpdpbusd zmm\\n, zmm13, zmm14"
    );
    measure!(
        /// FMA in 256 bits.
        floats_256, 8, "vfmadd231ps ymm\\n, ymm13, ymm14"
    );
    measure!(
        /// FMA in 512 bits.
        floats_512, 16, "vfmadd231ps zmm\\n, zmm13, zmm14"
    );
}
