//! How a tensor of the int8 engine, always rows by columns by channels, is seen as a tensor of ONNX of any rank.
//!
//! Reshape, Flatten, Squeeze and Transpose only change the view, as long as the elements' order stays one of two: channel by channel, or
//! pixel by pixel. Where there is one pixel or one channel both are the same.

use visaged_int8::graph::{Order, Shape};

/// A view: ONNX's dimensions, and in which order the elements come when they are counted off.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub(super) dims: Vec<usize>,
    pub(super) order: Order,
}

impl View {
    /// ONNX's own for pictures: `[1, C, H, W]`.
    pub(super) fn picture(shape: Shape) -> Self {
        Self { dims: vec![1, shape.channels, shape.height, shape.width], order: Order::ChannelsFirst }
    }

    /// The shape that a tensor of these dimensions has where it comes in; batches and ranks beyond pictures have none.
    pub(super) fn shape(dims: &[usize]) -> Option<Shape> {
        let (height, width, channels) = match *dims {
            [] => (1, 1, 1),
            [channels] | [1, channels] => (1, 1, channels),
            [1, channels, width] => (1, width, channels),
            [1, channels, height, width] => (height, width, channels),
            _ => return None,
        };
        let count = height.checked_mul(width).and_then(|n| n.checked_mul(channels))?;
        (count > 0).then_some(Shape { height, width, channels })
    }

    /// Whether it shows `[1, C, H, W]`.
    pub(super) fn is_picture(&self, shape: Shape) -> bool {
        self.dims == [1, shape.channels, shape.height, shape.width] && self.is(shape, Order::ChannelsFirst)
    }

    /// Whether the elements come in this order.
    pub(super) fn is(&self, shape: Shape, order: Order) -> bool {
        self.order == order || shape.height * shape.width == 1 || shape.channels == 1
    }

    /// Whether two tensors of one shape meet element by element.
    pub(super) fn meets(&self, other: &Self, shape: Shape) -> bool {
        self.dims == other.dims && self.is(shape, other.order)
    }

    /// The same elements with other dimensions; `None` where their number differs.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        (count(&dims) == count(&self.dims) && dims.len() <= 8).then_some(Self { dims, order: self.order })
    }

    /// Dimension `i` becomes the old `axes[i]`; `None` where the order is neither of the two.
    pub(super) fn transposed(&self, shape: Shape, axes: &[usize]) -> Option<Self> {
        let mut seen = axes.to_vec();
        seen.sort_unstable();
        if !seen.into_iter().eq(0..self.dims.len()) {
            return None;
        }
        let dims = axes.iter().map(|axis| self.dims[*axis]).collect();
        let long = |axis: &usize| self.dims[*axis] != 1;
        let moved: Vec<usize> = axes.iter().copied().filter(long).collect();
        if moved.is_sorted() {
            return Some(Self { dims, order: self.order });
        }
        // Only the channels as one axis against the pixels as one or two, in their order.
        let at = moved.windows(2).position(|pair| pair[0] > pair[1])?;
        let (front, back) = moved.split_at(at + 1);
        if !front.is_sorted() || !back.is_sorted() || front[0] < back[back.len() - 1] {
            return None;
        }
        let size = |axes: &[usize]| axes.iter().map(|axis| self.dims[*axis]).product::<usize>();
        let pixels = shape.height * shape.width;
        // Before, `back` came first.
        let order = match (size(back), size(front)) {
            (channels, rest)
                if self.is(shape, Order::ChannelsFirst) && channels == shape.channels && rest == pixels =>
            {
                Order::ChannelsLast
            }
            (rest, channels) if self.is(shape, Order::ChannelsLast) && channels == shape.channels && rest == pixels => {
                Order::ChannelsFirst
            }
            _ => return None,
        };
        Some(Self { dims, order })
    }

    /// Which elements of the tensor the values of a constant meet when it is broadcast: `None` where it would make the tensor larger
    /// or meets them in no simple way.
    pub(super) fn meeting(&self, shape: Shape, constant: &[usize]) -> Option<Meeting> {
        if constant.len() > self.dims.len() {
            return None;
        }
        if constant.iter().all(|dim| *dim == 1) {
            return Some(Meeting::All);
        }
        let missing = self.dims.len() - constant.len();
        let padded: Vec<usize> = std::iter::repeat_n(1, missing).chain(constant.iter().copied()).collect();
        let Shape { height, width, channels } = shape;
        if self.is_picture(shape) {
            if padded == [1, channels, 1, 1] {
                return Some(Meeting::Channels);
            }
            return (padded == [1, 1, height, width]).then_some(Meeting::Pixels);
        }
        let last = self.dims.len() - 1;
        let along_last = self.dims[last] == channels && self.is(shape, Order::ChannelsLast);
        let lone = padded[..last].iter().all(|dim| *dim == 1) && padded[last] == channels;
        if along_last && lone {
            return Some(Meeting::Channels);
        }
        let vector = height * width == 1 && padded == self.dims;
        vector.then_some(Meeting::Channels)
    }
}

/// How a constant meets a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// One value for all.
    All,
    /// One value a channel.
    Channels,
    /// One value a pixel.
    Pixels,
}

/// The number of elements, as long as it can be counted.
pub(super) fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { height: 2, width: 3, channels: 5 };

    /// Element numbers of an array of `dims` whose axes are moved.
    fn moved(elements: &[usize], dims: &[usize], axes: &[usize]) -> Vec<usize> {
        let strides: Vec<usize> = (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect();
        let out: Vec<usize> = axes.iter().map(|a| dims[*a]).collect();
        let total: usize = out.iter().product();
        let at = |mut i: usize| {
            let mut from = 0;
            for (axis, dim) in axes.iter().zip(&out).rev() {
                from += (i % dim) * strides[*axis];
                i /= dim;
            }
            elements[from]
        };
        (0..total).map(at).collect()
    }

    fn elements(shape: Shape, order: Order) -> Vec<usize> {
        let all: Vec<usize> = (0..shape.len()).collect();
        let Shape { height, width, channels } = shape;
        // Numbered pixel by pixel.
        if order == Order::ChannelsLast { all } else { moved(&all, &[height, width, channels], &[2, 0, 1]) }
    }

    #[test]
    fn every_transposition_that_is_taken_is_the_array_s_own() {
        let axes: Vec<Vec<usize>> = {
            let mut all = vec![];
            for a in 0..4 {
                for b in 0..4 {
                    for c in 0..4 {
                        for d in 0..4 {
                            all.push(vec![a, b, c, d]);
                        }
                    }
                }
            }
            all
        };
        let mut taken = 0;
        for shape in [SHAPE, Shape { height: 1, ..SHAPE }, Shape { channels: 1, ..SHAPE }, Shape { height: 5, ..SHAPE }]
        {
            for view in [
                View::picture(shape),
                View { dims: vec![1, shape.height, shape.width, shape.channels], order: Order::ChannelsLast },
                View { dims: vec![shape.height * shape.width, 1, shape.channels, 1], order: Order::ChannelsLast },
                View { dims: vec![1, 1, shape.channels, shape.height * shape.width], order: Order::ChannelsFirst },
            ] {
                for axes in &axes {
                    let Some(after) = view.transposed(shape, axes) else { continue };
                    taken += 1;
                    let expected = moved(&elements(shape, view.order), &view.dims, axes);
                    assert_eq!(elements(shape, after.order), expected, "{view:?} {axes:?}");
                }
            }
        }
        assert!(taken > 100, "{taken}");
    }

    #[test]
    fn rows_and_columns_are_not_taken_for_one_another() {
        assert_eq!(View::picture(SHAPE).transposed(SHAPE, &[0, 1, 3, 2]), None);
        assert_eq!(View::picture(SHAPE).transposed(SHAPE, &[0, 1, 2]), None);
        assert_eq!(View::picture(SHAPE).transposed(SHAPE, &[0, 1, 1, 2]), None);
    }

    #[test]
    fn a_constant_meets_channels_pixels_or_all() {
        let view = View::picture(SHAPE);
        assert_eq!(view.meeting(SHAPE, &[5, 1, 1]), Some(Meeting::Channels));
        assert_eq!(view.meeting(SHAPE, &[1, 1, 2, 3]), Some(Meeting::Pixels));
        assert_eq!(view.meeting(SHAPE, &[]), Some(Meeting::All));
        assert_eq!(view.meeting(SHAPE, &[3]), None);
        assert_eq!(view.meeting(SHAPE, &[2, 5, 2, 3]), None);
        assert_eq!(view.meeting(SHAPE, &[1, 1, 1, 1, 1]), None);
        let last = View { dims: vec![1, 6, 5], order: Order::ChannelsLast };
        assert_eq!(last.meeting(SHAPE, &[5]), Some(Meeting::Channels));
        assert_eq!(last.meeting(SHAPE, &[6, 1]), None);
    }
}
