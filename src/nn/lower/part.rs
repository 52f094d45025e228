//! A part of a graph: what some of its outputs need, and nothing else.

use std::collections::HashSet;

use tract_onnx::pb::ModelProto;

use super::model::{Fault, Model, ModelError, Place};

/// Leaves of a graph only what `outputs` need, which become its outputs in this order: inputs, nodes and weights that serve none of
/// them are gone. What is left computes what it did before.
///
/// # Errors
/// [`ModelError`] where the graph has no such output, or cannot be run by anybody.
pub(crate) fn prune(proto: &mut ModelProto, outputs: &[&str]) -> Result<(), ModelError> {
    let whole = |fault| ModelError { place: Place::Graph, fault };
    let graph = proto.graph.as_mut().ok_or_else(|| whole(Fault::NoGraph))?;
    let wanted = outputs.iter().map(|name| {
        let found = graph.output.iter().find(|output| output.name == *name);
        found.cloned().ok_or_else(|| whole(Fault::Shape(format!("has no output {name}"))))
    });
    graph.output = wanted.collect::<Result<_, _>>()?;
    let model = Model::read(proto)?;
    let given: HashSet<String> = model.nodes.iter().flat_map(|node| node.outputs()).map(Into::into).collect();
    let mut taken: HashSet<String> = model.nodes.iter().flat_map(|node| node.inputs()).map(Into::into).collect();
    taken.extend(outputs.iter().map(|name| (*name).to_owned()));
    let Some(graph) = &mut proto.graph else { return Ok(()) };
    graph.node.retain(|node| node.output.iter().any(|output| given.contains(output)));
    graph.input.retain(|input| taken.contains(&input.name));
    graph.initializer.retain(|tensor| taken.contains(&tensor.name));
    graph.value_info.retain(|info| given.contains(&info.name) || taken.contains(&info.name));
    graph.quantization_annotation.clear();
    Ok(())
}
