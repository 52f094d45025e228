//! How a dense layer's outputs are cut into strips whose input stays in the first-level cache, and where a strip's input lies:
//! in the arena itself, or widened in scratch. Knows geometry, no instructions.

use std::ops::Range;

use super::super::{Area, DenseSpec, QUAD};

/// Input of a strip, in bytes as the kernel reads them.
const STRIP: usize = 16 * 1024;
/// Widths of strips are whole multiples of the usual tile.
const TILE: usize = 12;

/// The way of one layer.
#[derive(Debug)]
pub(super) struct Strips {
    /// Output rows of a strip.
    rows: usize,
    /// Output columns of a strip.
    columns: usize,
    /// Input lines from one output row to the next.
    lines_a_row: usize,
    /// The last kernel row.
    last_row: usize,
    /// Bytes of the arena from one input line to the next.
    line_step: usize,
    /// Bytes of the arena from a pixel's first tap to its lowest run.
    lowest: usize,
    /// Bytes of the arena from the lowest run to the end of the highest.
    foot: usize,
    /// Bytes of the arena from one pixel to the next.
    pixel: usize,
    /// Bytes that a line keeps of each pixel, where the others are skipped.
    kept: usize,
}

impl Strips {
    /// For a kernel that reads `unit` bytes for each input byte.
    pub(super) fn new(spec: &DenseSpec, unit: usize) -> Self {
        let offsets = || spec.runs.iter().map(|run| run.offset);
        let lowest = offsets().min().unwrap_or(0);
        let foot = offsets().max().unwrap_or(0) - lowest + spec.quads * QUAD;
        let last_row = spec.runs.iter().map(|run| run.row).max().unwrap_or(0);
        let (row, pixel) = (spec.grid.input.row, spec.grid.input.pixel);
        // Output rows share input lines where one row's step is a whole number of lines, and no line lies idle.
        let lines_a_row = match (last_row, row.checked_div(spec.tap_row)) {
            (0, _) => Some(1),
            (_, Some(lines)) if lines * spec.tap_row == row && (1..=last_row + 1).contains(&lines) => Some(lines),
            _ => None,
        };
        let mut strips = Self {
            rows: 1,
            columns: spec.grid.columns,
            lines_a_row: lines_a_row.unwrap_or(0),
            last_row,
            line_step: if last_row == 0 { row } else { spec.tap_row },
            lowest,
            foot,
            pixel,
            kept: pixel.min(foot),
        };
        while strips.columns > TILE && strips.lines(1) * strips.line(strips.columns) * unit > STRIP * 3 / 2 {
            strips.columns = (strips.columns / 2).next_multiple_of(TILE);
        }
        let all = strips.columns == spec.grid.columns && lines_a_row.is_some();
        let fits = |rows: &usize| strips.lines(*rows) * strips.line(strips.columns) * unit <= STRIP;
        strips.rows = if all { (1..=spec.grid.rows).take_while(fits).last().unwrap_or(1) } else { 1 };
        strips
    }

    fn lines(&self, rows: usize) -> usize {
        (rows - 1) * self.lines_a_row + self.last_row + 1
    }

    /// Input bytes of a line for `columns` pixels.
    fn line(&self, columns: usize) -> usize {
        (columns - 1) * self.kept + self.foot
    }

    /// Bytes from one widened line to the next. A widening loop may write 64 bytes too many.
    fn pitch(&self) -> usize {
        (self.line(self.columns) * 2 + 64).next_multiple_of(64)
    }

    /// Scratch for widened lines.
    pub(super) fn scratch(&self) -> usize {
        self.lines(self.rows) * self.pitch() + 64
    }

    /// Where a run begins, in widened lines.
    pub(super) fn widened_run(&self, row: usize, offset: usize) -> usize {
        row * self.pitch() + (offset - self.lowest) * 2
    }

    /// Bytes from one output pixel's input to the next, and from one output row's to the next, in widened lines.
    pub(super) fn widened_steps(&self) -> (usize, usize) {
        (self.lines_a_row * self.pitch(), self.kept * 2)
    }

    /// The strips of an area: rows and columns.
    pub(super) fn of(&self, area: &Area) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let (rows, columns, height, width) = (area.rows.clone(), area.columns.clone(), self.rows, self.columns);
        rows.clone().step_by(height).flat_map(move |y| {
            let ys = y..rows.end.min(y + height);
            columns.clone().step_by(width).map({
                let end = columns.end;
                move |x| (ys.clone(), x..end.min(x + width))
            })
        })
    }

    /// Widens the input of a strip of `rows` by `columns` outputs, whose first pixel is at `first`, to `to`.
    ///
    /// # Safety
    /// The strip is one of [`Strips::of`] of an area of the layer; `to` has room for [`Strips::scratch`] bytes;
    /// `widen(from, to, n)` widens `n` bytes, and reads and writes at most 31 bytes and 62 bytes more.
    #[inline(always)]
    pub(super) unsafe fn widen(
        &self,
        first: *const u8,
        to: *mut u8,
        (rows, columns): (usize, usize),
        widen: impl Fn(*const u8, *mut u8, usize),
    ) {
        for line in 0..self.lines(rows) {
            // SAFETY: the line lies in the arena and in scratch, by this function's contract.
            let (from, to) = unsafe { (first.add(line * self.line_step + self.lowest), to.add(line * self.pitch())) };
            if self.kept == self.pixel {
                widen(from, to, self.line(columns));
            } else {
                for x in 0..columns {
                    // SAFETY: as above.
                    unsafe { widen(from.add(x * self.pixel), to.add(x * self.kept * 2), self.kept) };
                }
            }
        }
    }
}
