//! Packed constants of a layer, aligned for vector loads, and addresses. Knows only bytes.

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Values side by side from a 64-byte boundary, followed by 64 bytes of zeros that may be read.
#[derive(Debug)]
pub(super) struct Packed<T> {
    lines: Box<[Line]>,
    of: std::marker::PhantomData<T>,
}

/// Numbers that are as good as their bytes.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for f32 {}

impl<T: Plain> Packed<T> {
    /// A copy of `values`.
    pub(super) fn new(values: &[T]) -> Self {
        let bytes = size_of_val(values);
        let mut lines = vec![Line([0; 64]); bytes.div_ceil(64) + 1].into_boxed_slice();
        // SAFETY: there is room for `bytes` bytes, and `Plain` values are bytes without padding.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), lines.as_mut_ptr().cast(), bytes) };
        Self { lines, of: std::marker::PhantomData }
    }

    /// The value at `index`.
    ///
    /// # Safety
    /// `index` is at most the number of values.
    #[inline(always)]
    pub(super) unsafe fn at(&self, index: usize) -> *const T {
        // SAFETY: within the lines, by this function's contract.
        unsafe { self.lines.as_ptr().cast::<T>().add(index) }
    }
}

/// The same address, of which the compiler does not know how it was made. It would keep an address for each pixel, in memory for lack of
/// registers, where all of them are few steps from one.
#[inline(always)]
#[expect(clippy::pointers_in_nomem_asm_block, reason = "the pointer passes through, nothing is read by it")]
pub(super) fn apart(mut address: *const u8) -> *const u8 {
    // SAFETY: does nothing.
    unsafe { std::arch::asm!("/* {} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags)) };
    address
}
