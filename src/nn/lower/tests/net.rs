//! Small quantised graphs, written down node by node.

use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// A graph being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Net {
    pub(crate) graph: GraphProto,
}

pub(crate) fn attribute(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 7, ints: ints.to_vec(), ..Default::default() }
}

pub(crate) fn integer(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 2, i, ..Default::default() }
}

pub(crate) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 3, s: s.into(), ..Default::default() }
}

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| Dimension { value: Some(Value::DimValue(*size)), ..Default::default() };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape) };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { value, ..Default::default() }), ..Default::default() }
}

impl Net {
    pub(crate) fn input(&mut self, name: &str, dims: &[i64]) -> String {
        self.graph.input.push(info(name, dims));
        name.into()
    }

    pub(crate) fn output(&mut self, name: &str) {
        self.graph.output.push(info(name, &[]));
    }

    pub(crate) fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: 1,
            raw_data,
            ..Default::default()
        })
    }

    pub(crate) fn longs(&mut self, name: &str, values: &[i64]) -> String {
        let dims = vec![values.len() as i64];
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(TensorProto { name: name.into(), dims, data_type: 7, raw_data, ..Default::default() })
    }

    pub(crate) fn tensor(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone();
        if !self.graph.initializer.iter().any(|known| known.name == name) {
            self.graph.initializer.push(tensor);
        }
        name
    }

    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> String {
        self.graph.node.push(NodeProto {
            name: format!("{op} to {output}"),
            op_type: op.into(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.into()],
            attribute: attributes,
            ..NodeProto::default()
        });
        output.into()
    }

    /// QuantizeLinear and DequantizeLinear on unsigned bytes.
    pub(crate) fn pair(&mut self, from: &str, scale: f32, zero_point: u8) -> String {
        self.pair_of(from, scale, i32::from(zero_point), 2)
    }

    /// The same on bytes of a type of ONNX.
    pub(crate) fn pair_of(&mut self, from: &str, scale: f32, zero_point: i32, data_type: i32) -> String {
        let scale = self.floats(&format!("{from}.scale"), &[], &[scale]);
        let zero = TensorProto {
            name: format!("{from}.zero"),
            data_type,
            int32_data: vec![zero_point],
            ..TensorProto::default()
        };
        let zero = self.tensor(zero);
        let bytes = self.node("QuantizeLinear", &[from, &scale, &zero], &format!("{from}.q"), vec![]);
        self.node("DequantizeLinear", &[&bytes, &scale, &zero], &format!("{from}.dq"), vec![])
    }

    /// Signed bytes that stand for weights, pseudo-random, with a scale a place of `axis`.
    pub(crate) fn weights(&mut self, name: &str, dims: &[i64], axis: usize) -> String {
        let count: i64 = dims.iter().product();
        let raw_data = (0..count).map(|i| ((i * 37 + 11) % 201 - 100) as i8 as u8).collect();
        let bytes = TensorProto {
            name: format!("{name}.bytes"),
            dims: dims.to_vec(),
            data_type: 3,
            raw_data,
            ..TensorProto::default()
        };
        let bytes = self.tensor(bytes);
        let scales: Vec<f32> = (0..dims[axis]).map(|i| 0.002 + 0.0005 * i as f32).collect();
        let scale = self.floats(&format!("{name}.scale"), &[dims[axis]], &scales);
        self.node("DequantizeLinear", &[&bytes, &scale], name, vec![integer("axis", axis as i64)])
    }

    /// A convolution of 3 by 3 with pads, without bias.
    pub(crate) fn conv(&mut self, from: &str, output: &str, channels: (i64, i64)) -> String {
        let weights = self.weights(&format!("{output}.w"), &[channels.1, channels.0, 3, 3], 0);
        self.node("Conv", &[from, &weights], output, vec![attribute("pads", &[1, 1, 1, 1])])
    }

    pub(crate) fn model(self) -> ModelProto {
        let set = OperatorSetIdProto { domain: String::new(), version: 17 };
        ModelProto { ir_version: 8, opset_import: vec![set], graph: Some(self.graph), ..ModelProto::default() }
    }
}
