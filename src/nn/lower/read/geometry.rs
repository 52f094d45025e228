//! Where a window lies: kernels, strides, pads and dilations as ONNX's attributes give them.

use visaged_int8::graph::{Padding, Shape};

use super::super::model::{Fault, ModelError, Node};

/// The size of one direction of a window's result.
fn extent(n: usize, kernel: usize, stride: usize, dilation: usize, padding: usize) -> Result<usize, Fault> {
    let reach = (kernel - 1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
    match (reach, n.checked_add(padding)) {
        (Some(reach), Some(padded)) if reach <= padded => Ok((padded - reach) / stride + 1),
        _ => Err(Fault::Shape(format!(
            "a kernel of {kernel} steps of {dilation} does not fit into {n} and {padding} pixels"
        ))),
    }
}

pub(super) struct Geometry {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) padding: Padding,
}

/// Kernel, strides, pads and dilations as ONNX's attributes give them.
pub(super) fn geometry(node: &Node<'_>, input: Shape, kernel: [usize; 2]) -> Result<Geometry, ModelError> {
    let pair = |name, least| -> Result<[usize; 2], ModelError> {
        let sizes = node.sizes(name, 2, least, 1)?;
        Ok([sizes[0], sizes[1]])
    };
    let (stride, dilation) = (pair("strides", 1)?, pair("dilations", 1)?);
    let pads = node.sizes("pads", 4, 0, 0)?;
    let mut padding = Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] };
    let auto = node.text("auto_pad", "NOTSET")?;
    match auto {
        "NOTSET" | "" => {}
        "VALID" => padding = Padding::default(),
        "SAME_UPPER" | "SAME_LOWER" => {
            let split = |n: usize, axis: usize| {
                let reach = (kernel[axis] - 1) * dilation[axis] + 1;
                let total = ((n.div_ceil(stride[axis]) - 1) * stride[axis] + reach).saturating_sub(n);
                let small = total / 2;
                if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) }
            };
            let ((top, bottom), (left, right)) = (split(input.height, 0), split(input.width, 1));
            padding = Padding { top, left, bottom, right };
        }
        other => return Err(node.fail(Fault::Attribute { name: "auto_pad", value: other.into() })),
    }
    Ok(Geometry { kernel, stride, dilation, padding })
}

impl Geometry {
    pub(super) fn output(&self, input: Shape, channels: usize) -> Result<Shape, Fault> {
        let Padding { top, left, bottom, right } = self.padding;
        let height = extent(input.height, self.kernel[0], self.stride[0], self.dilation[0], top + bottom)?;
        let width = extent(input.width, self.kernel[1], self.stride[1], self.dilation[1], left + right)?;
        Ok(Shape { height, width, channels })
    }
}
