//! The graph that is left once the lowered parts are one node each.

use std::collections::HashSet;

use tract_onnx::pb::{ModelProto, NodeProto, TensorProto};
use visaged_int8::graph::Quant;

use super::{DOMAIN, Lowerer, SEGMENT, Segment, segment_name};

/// What integers that leave a segment are called as real numbers.
pub(super) fn real_name(name: &str) -> String {
    format!("{name}.visaged.real")
}

impl Lowerer<'_, '_> {
    pub(super) fn rest(&self, proto: &ModelProto, segments: &[Segment]) -> ModelProto {
        let mut rest = proto.clone();
        let Some(graph) = &mut rest.graph else { return rest };
        let stays = |at: &usize| self.left.contains_key(at) || self.kept.contains(at);
        let nodes = (0..self.model.nodes.len()).filter(stays).map(|at| self.model.nodes[at].proto.clone());
        graph.node = segments.iter().enumerate().map(|(i, segment)| segment_node(i, segment)).chain(nodes).collect();
        let taken: HashSet<&str> = graph.node.iter().flat_map(|node| node.input.iter().map(String::as_str)).collect();
        let hidden = (0..self.model.nodes.len()).filter(stays).flat_map(|at| self.model.nodes[at].inputs());
        let taken: HashSet<&str> = taken.into_iter().chain(hidden).chain(self.model.outputs.iter().copied()).collect();
        graph.initializer.retain(|tensor| taken.contains(tensor.name.as_str()));
        graph.value_info.clear();
        graph.quantization_annotation.clear();
        for (name, quant, signed) in &self.requantised {
            let [scale, zero_point] = grid(name, *quant, *signed);
            graph.node.push(NodeProto {
                name: format!("{name}.visaged.integers"),
                op_type: "QuantizeLinear".into(),
                input: vec![real_name(name), scale.name.clone(), zero_point.name.clone()],
                output: vec![(*name).to_owned()],
                ..NodeProto::default()
            });
            graph.initializer.extend([scale, zero_point]);
        }
        rest
    }
}

fn segment_node(i: usize, segment: &Segment) -> NodeProto {
    NodeProto {
        name: segment_name(i),
        op_type: SEGMENT.into(),
        domain: DOMAIN.into(),
        input: segment.inputs.iter().map(|port| port.name.clone()).collect(),
        output: segment.outputs.iter().map(|port| port.name.clone()).collect(),
        ..NodeProto::default()
    }
}

fn grid(name: &str, quant: Quant, signed: bool) -> [TensorProto; 2] {
    let scale = TensorProto {
        name: format!("{name}.visaged.scale"),
        data_type: 1,
        float_data: vec![quant.scale()],
        ..TensorProto::default()
    };
    let (data_type, moved) = if signed { (3, 128) } else { (2, 0) };
    let zero_point = TensorProto {
        name: format!("{name}.visaged.zero_point"),
        data_type,
        int32_data: vec![i32::from(quant.zero_point()) - moved],
        ..TensorProto::default()
    };
    [scale, zero_point]
}
