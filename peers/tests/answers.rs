//! Both peers give the stored answer of a small graph; a peer that is not installed is left out, with a word.

use std::path::PathBuf;

use visaged_peers::litert::LiteRt;
use visaged_peers::onnxruntime::{OnnxRuntime, Options};
use visaged_peers::{Peer, installed};

const NAME: &str = "block_inverted_residual";
const SHAPE: [usize; 4] = [1, 12, 6, 7];

fn file(extension: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nn/layers");
    std::fs::read(folder.join(format!("{NAME}.{extension}"))).unwrap()
}

fn stored() -> (Vec<f32>, Vec<f32>) {
    let values: Vec<f32> = file("f32").chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let (input, output) = values.split_at(SHAPE.iter().product());
    (input.to_vec(), output.to_vec())
}

fn worst_difference(peer: &mut dyn Peer) -> f32 {
    let (input, expected) = stored();
    assert_eq!(peer.inputs()[0].shape, SHAPE);
    assert_eq!(peer.outputs()[0].shape, SHAPE);
    // Twice, so that nothing is left over from a run.
    for scale in [0.0, 1.0] {
        peer.set_input(0, &input.iter().map(|v| v * scale).collect::<Vec<_>>()).unwrap();
        peer.run().unwrap();
    }
    let output = peer.output(0).unwrap();
    output.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// One step of the output's grid.
fn step() -> f32 {
    let mut values = stored().1;
    values.sort_by(f32::total_cmp);
    values.windows(2).map(|w| w[1] - w[0]).filter(|d| *d > 1e-4).fold(f32::INFINITY, f32::min)
}

#[test]
fn onnx_runtime_gives_the_stored_answer_as_written_and_in_integers() {
    for (optimised, tolerance) in [(false, 1e-5), (true, 1.01 * step())] {
        let options = Options { optimised, ..Options::default() };
        let Some(mut peer) = installed(OnnxRuntime::prepare(&file("onnx"), &[&SHAPE], options)) else { return };
        let worst = worst_difference(&mut peer);
        assert!(worst <= tolerance, "optimised {optimised}: {worst}");
    }
}

#[test]
fn litert_gives_the_stored_answer_but_for_its_way_of_rounding_sums() {
    let Some(mut peer) = installed(LiteRt::prepare(&file("tflite"), 1)) else { return };
    assert!(peer.is_fully_accelerated().unwrap());
    let worst = worst_difference(&mut peer);
    assert!(worst <= 2.01 * step(), "{worst}");
}

#[test]
fn a_peer_says_what_it_cannot_read() {
    let Some(peer) = installed(OnnxRuntime::prepare(&file("onnx"), &[&SHAPE], Options::default())) else { return };
    drop(peer);
    let error = OnnxRuntime::prepare(b"no graph", &[&SHAPE], Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("ONNX Runtime: read the graph: "), "{error}");
    let error = OnnxRuntime::prepare(&file("onnx"), &[], Options::default()).unwrap_err();
    assert!(error.to_string().contains("1 inputs, 0 shapes"), "{error}");
    let Some(mut peer) = installed(LiteRt::prepare(&file("tflite"), 1)) else { return };
    assert!(peer.set_input(0, &[0.0]).unwrap_err().to_string().contains("takes 504 values, got 1"));
    assert!(LiteRt::prepare(b"no graph", 1).is_err());
}
